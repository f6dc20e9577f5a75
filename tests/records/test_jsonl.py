from __future__ import annotations

import gzip
import json
import math
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.errors import RunError, UserError
from humanward.records import content_id, read_jsonl, write_jsonl
from humanward.records.jsonl import MAX_DEPTH

texts = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=4)

MALFORMED = {
    "truncated": (b'{"a": 1', "not JSON"),
    "not JSON": (b"hello", "not JSON"),
    "two values": (b'{"a": 1} {"b": 2}', "not JSON"),
    "list": (b"[1, 2]", "expected an object"),
    "number": (b"12", "expected an object"),
    "string": (b'"a"', "expected an object"),
    "null": (b"null", "expected an object"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "Infinity": (b'{"a": [-Infinity]}', "Infinity"),
    "1e400": (b'{"a": 1e400}', "too large"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", ""),
    "twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', '"c" is there twice'),
    "NUL": (b'{"a": "\x00"}', "NUL"),
    "bad UTF-8": (b'{"a": "\xff\xfe"}', "not UTF-8 at byte 8"),
    "lone surrogate": (b'{"a": "\\ud800"}', "surrogate"),
    "lone surrogate key": (b'{"\\uDFFF": 1}', "surrogate"),
    "control character": (b'{"a": "\x01"}', "not JSON"),
    "deep": (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "deep"),
    "very deep": (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "deep"),
    "very deep open": (b'{"a":' * 10_000, ""),
    "BOM in the middle": (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("before", [0, 2])
def test_malformed_line_is_one_line_with_its_number(tmp_path: Path, name: str, before: int) -> None:
    line, message = MALFORMED[name]
    if name == "BOM in the middle" and before == 0:
        pytest.skip("a byte-order mark at the beginning is accepted")
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"a": 1}\n' * before + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError) as caught:
        list(read_jsonl(path))
    text = str(caught.value)
    assert text.startswith(f"{path}:{before + 1}: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 200


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(objects, max_size=5), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], suffix: str) -> None:
    path = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    assert write_jsonl(path, rows) == len(rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@settings(max_examples=150, deadline=None)
@given(good=st.integers(0, 3), line=st.binary(min_size=1, max_size=40), noise=st.text(string.printable, max_size=20))
def test_any_bytes_are_read_or_refused_on_their_line(tmp_path_factory: pytest.TempPathFactory, good: int, line: bytes, noise: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.jsonl"
    bad = (b'{"' + noise.encode() + b'": ' + line + b"}").replace(b"\n", b" ")
    path.write_bytes(b'{"a": 1}\n' * good + bad)
    read, refusal = [], ""
    try:
        read = list(read_jsonl(path))
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{path}:{good + 1}: ")
        assert "\n" not in refusal
    else:
        assert [number for number, _ in read] == list(range(1, good + 2))
        write_jsonl(path, (row for _, row in read))


def test_mark_line_ends_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]


def test_surrogate_pairs_and_escaped_backslashes_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n{"a": "\\\\ud800"}\n')
    assert [row["a"] for _, row in read_jsonl(path)] == ["\N{GRINNING FACE}", "\\ud800"]


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot read: "):
            list(read_jsonl(path))


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(b"".join(json.dumps({"a": content_id(i)}).encode() + b"\n" for i in range(20_000)))
    for data in (whole[: len(whole) // 2], whole[:-3], b"plain text", whole[:100_000] + b"\x00" * 50 + whole[100_050:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{path}:\d+: (damaged gzip|not JSON|the line has a NUL)") as caught:
            list(read_jsonl(path))
        assert "\n" not in str(caught.value)


def test_a_long_line_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("humanward.records.jsonl.MAX_LINE", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": "' + b"0" * (5 << 20) + b'"}'))
    with pytest.raises(UserError, match=rf"{path}:2: the line is longer than 1 MiB"):
        list(read_jsonl(path))


@pytest.mark.parametrize("bad", [math.nan, math.inf, object(), "\ud800"])
def test_what_is_not_json_is_not_written(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(UserError, match=rf"{path}:2: cannot be written as JSON"):
        write_jsonl(path, [{"a": 2}, {"a": bad}])
    assert list(read_jsonl(path)) == [(1, {"a": 1})]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        write_jsonl(tmp_path / "no folder" / "rows.jsonl", [{"a": 1}])


def test_compressed_bytes_do_not_depend_on_time(tmp_path: Path) -> None:
    written = []
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"a": 1}])
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_content_id_depends_on_content_alone() -> None:
    assert content_id("a", {"x": 1, "y": 2}) == content_id("a", {"y": 2, "x": 1})
    assert len({content_id("a", "b"), content_id("ab"), content_id(["a", "b"]), content_id("a", "b", None)}) == 4
    # SHA-256 of '["a"]', by hand: printf '["a"]' | sha256sum | cut -c1-16
    assert content_id("a") == "0eb5b8d6f81bc677"
