"""``humanward data``: what people read, what programs read, and files that are whole or not there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from humanward.data.formats import LabelFile

from .conftest import run

ROWS = [
    {"prompt": "Say hi", "responses": ["Hi there!", "No.", "Oh."], "best": 0},
    {"prompt": "Say ho", "responses": ["Ho.", "Never, a@b.org", "Oh."], "best": 1},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "best.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_inspect_says_what_it_understood(source: Path) -> None:
    done = run("data", "inspect", source, "--split", source)
    assert (done.code, done.err) == (0, "")
    lines = {line.strip().partition("  ")[0]: line.strip().partition("  ")[2].strip() for line in done.out.splitlines()}
    assert done.out.splitlines()[0] == (
        f"{source}: best_of_k: which of K responses is best; the first row has `prompt`, `responses`, `best`"
    )
    assert lines["labels"] == "2 best of k; responses per question: 2 of 3"
    assert f"also in {source}: 2" in done.out
    assert lines["length, characters"].split() == ["10%", "50%", "90%", "99%", "longest"]
    assert lines["chosen"].split() == ["9", "9", "14", "14", "14"]
    assert lines["length bias"] == "the chosen response is the longer one in 100.0% (51.0% to 100.0%) of 4 pairs of different length"
    assert lines["personal data"].startswith("1 emails, in 1 rows (by patterns, a heuristic")
    assert "    | Say hi" in done.out


def test_inspect_as_json(source: Path) -> None:
    told = json.loads(run("data", "inspect", source, source, "--json").out)
    assert [one["source"] for one in told["files"]] == [str(source)] * 2
    one: dict[str, Any] = told["files"][0]
    assert (one["format"], one["labels"], one["ties"], one["lengths"]["rejected"]["100%"]) == ("best_of_k", {"best_of_k": 2}, 0, 3)
    assert one["length_bias"]["share"] == 1.0


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.csv", "out.parquet", "out.jsonl.gz", "out.csv.gz"])
def test_convert_writes_what_the_name_says(name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    done = run("data", "convert", source, out, "--to", "pairs")
    assert (done.code, done.out, done.err) == (0, "", f"{source}: 2 best_of_k -> 4 rows of pairs in {out}\n")
    file = LabelFile(out)
    assert len(list(file.labeled())) == 4
    file.faults.check()
    assert out.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


def test_convert_as_json_and_onto_itself(source: Path) -> None:
    told = json.loads(run("data", "convert", source, source, "--to", "soft", "--json").out)
    assert told == {
        "source": str(source), "file": str(source), "format": "soft", "labels": {"best_of_k": 2}, "rows": 2, "left_out": 0, "skipped": 0,
    }  # fmt: skip
    assert json.loads(source.read_text().splitlines()[0])["probabilities"] == [1.0, 0.0, 0.0]


def test_a_failed_conversion_leaves_the_old_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "y.jsonl"
    out.write_text("old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("humanward.data.formats.converting.write_labels", full)
    done = run("data", "convert", source, out, "--to", "pairs")
    assert done.code == 3
    assert "the disk is full" in done.err
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.jsonl", "y.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert", "none.jsonl", "y.jsonl", "--to", "pairs"], "none.jsonl: no such file or folder"),
        (["convert", "best.jsonl", "y.xml/z.jsonl", "--to", "pairs"], "no such folder"),
        (["convert", "best.jsonl", ".", "--to", "pairs"], "this is a folder"),
        (["convert", "best.jsonl", "y.jsonl", "--to", "xml"], "xml: cannot be written; there are table, pairs"),
        (["convert", "best.jsonl", "y.jsonl"], "--to"),
        (["inspect", "none.jsonl"], "no such file or folder"),
        (["inspect", "best.jsonl", "--model", "none/at/all"], "no such folder"),
        (["inspect"], "FILE"),
    ],
)
def test_what_is_refused(arguments: list[str], says: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("data", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best.jsonl"]


def test_inspect_with_the_embedded_model(source: Path) -> None:
    done = run("data", "inspect", source, "--model", "asset:storyteller", "--json")
    if "no such embedded model" in done.err:
        pytest.skip("the embedded model is not there")
    one = json.loads(done.out)["files"][0]
    assert (one["unit"], one["double_beginnings"], one["beyond_context"], one["template_faults"]) == ("tokens", 0, 0, {})
    assert 0 < one["lengths"]["prompt"]["100%"] < 6


def test_help_has_an_example_that_works(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("inspect", "convert"):
        out = run("data", command, "--help").out
        assert "Example:" in out
        assert f"humanward data {command} " in out


def test_a_packed_file_is_found_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert run("data", "inspect", path, "--json").code == 0
