"""``humanward study``: the same end however it came about, a cell's fault that is its own, and the report."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from humanward.report import build_study_report
from humanward.storage import StopFlag
from humanward.studies import Study
from humanward.studies.folder import StudyFolder
from humanward.studies.manager import start as begin
from humanward.studies.summary import summarize
from humanward.studies.worker import work

from .conftest import Parts, run, start

STUDY = {
    "title": "Which rate",
    "about": "Two rates of a tiny model.",
    "arms": {"slow": {"ppo.lr": 1e-4}, "fast": {"ppo.lr": 1e-2}},
    "seeds": [1, 2],
    "table": ["true_score", "kl", "max(ratio_max)"],
    "curves": ["true_score", "true_score over kl with optimum"],
    "claims": [
        {"says": "Fast goes further", "check": "kl: fast > slow", "source": "by construction"},
        {"says": "Slow goes further", "check": "kl: slow > fast"},
    ],
}


def write_study(parts: Parts, file: Path, **changed: object) -> Path:
    settings = yaml.safe_load(parts.config.read_text()) | {
        "model": str(parts.model), "prompts": str(parts.prompts), "labeler": f"score:python:{parts.folder / 'scores.py'}:good",
        "labels": {"initial": 24, "total": 24, "rounds": 1, "overlap_share": 0.0}, "baseline_sft": None,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(STUDY | {"settings": settings} | changed, sort_keys=False))
    return file


def here(file: Path, out: Path) -> StudyFolder:
    """The whole study in this process, as one worker does it."""
    study = Study.load(file)
    place = begin(study, file, out)
    work(place, study, StopFlag())
    summarize(place, study)
    build_study_report(out)
    return place


@pytest.fixture(scope="module")
def study(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(parts, tmp_path_factory.mktemp("study") / "rates.yaml")


@pytest.fixture(scope="module")
def folder(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran undisturbed."""
    return here(study, tmp_path_factory.mktemp("studies") / "rates").path


def test_it_compares_the_arms_seed_by_seed(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert {(c["arm"], c["seed"], c["state"]) for c in results["cells"]} == {(arm, s, "done") for arm in ("slow", "fast") for s in (1, 2)}
    kl = {row["arm"]: row["values"] for row in results["table"] if row["measure"] == "kl"}
    difference = next(row for row in results["differences"] if row["measure"] == "kl")
    assert difference["mean"] == pytest.approx(sum(kl["fast"][s] - kl["slow"][s] for s in "12") / 2)
    assert kl["fast"]["1"] > kl["slow"]["1"]
    assert [claim["word"] for claim in results["claims"]][1] != "holds"
    assert results["curves"][0]["x"] == "episodes"
    assert len(results["curves"][0]["series"][0]["points"]) == 8
    assert set(results["curves"][1]["beside"]) == {"optimum"}


def test_arms_share_what_comes_before_the_tuning(folder: Path) -> None:
    """One reward model per seed, made once; a finished cell keeps its numbers and no weights."""
    assert len(list((folder / "shared").iterdir())) == 2
    for cell in folder.glob("cells/*/seed-*"):
        assert {path.name for path in cell.iterdir()} >= {"config.yaml", "metrics.jsonl", "evaluation", "cell.json"}
        assert not list(cell.rglob("*.safetensors"))
        rows = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
        assert {row["stage"] for row in rows} == {"ppo"}


@pytest.mark.slow
def test_killed_and_given_again_it_ends_as_one_that_nothing_disturbed(folder: Path, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "rates"
    process = start("study", study, out, "--workers", "2")
    deadline = time.monotonic() + 300
    while not list(out.glob("cells/*/*/metrics.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run("study", study, out, "--workers", "2")
    assert done.code == 0, done.err
    assert "cell 4 of 4: fast, seed 2: done" in done.err
    assert "| fast | " in done.out
    for name in ("results.json", "results.md", "report.html"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    again = run("study", study, out)
    assert "4 of 4 cells are done" in again.err


def test_a_cell_that_fails_is_one_line_and_stops_no_other(parts: Parts, tmp_path: Path) -> None:
    broken = f"score:python:{parts.folder / 'scores.py'}:broken"
    file = write_study(parts, tmp_path / "s.yaml", arms={"broken": {"labeler": broken}, "good": {}}, seeds=[1], claims=[])
    place = here(file, tmp_path / "out")
    bad, good = Study.load(file).cells()
    assert (place.state(bad), place.state(good)) == ("failed", "done")
    assert "scores must be finite" in place.error(bad)
    assert "\n" not in place.error(bad)
    assert "What failed" in (tmp_path / "out/report.html").read_text()
    again = run("study", file, tmp_path / "out", "--dry-run")
    assert [line.split()[1] for line in again.out.splitlines()] == ["failed", "done"]


def test_a_worker_that_dies_of_a_cell_is_told_and_replaced(parts: Parts, tmp_path: Path) -> None:
    """The process ends in the middle of a score, as one that the system kills does."""
    (tmp_path / "deadly.py").write_text("import os\ndef score(prompts, responses):\n    os._exit(9)\n")
    arms = {"deadly": {"labeler": f"score:python:{tmp_path / 'deadly.py'}:score"}}
    file = write_study(parts, tmp_path / "s.yaml", arms=arms, seeds=[1], claims=[])
    done = run("study", file, tmp_path / "out")
    assert done.code == 3
    assert done.err.splitlines()[-1] == "error: 1 of 1 cells failed; give the command again to try them again"
    lines = [line for line in done.err.splitlines() if "deadly, seed 1: failed: its process ended with code 9" in line]
    assert len(lines) == 1


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(folder: Path, parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "rates"
    shutil.copytree(folder, out)
    other = write_study(parts, tmp_path / "rates.yaml", arms={"slow": {"ppo.lr": 5e-4}, "fast": {"ppo.lr": 1e-2}})
    done = run("study", other, out)
    assert done.code == 2
    assert f"error: {out}/cells/slow/seed-1: this cell has begun with other settings (ppo); choose another folder, or remove it" in done.err


def test_a_dry_run_lists_and_writes_nothing(study: Path, tmp_path: Path) -> None:
    done = run("study", study, tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()] == [
        [f"{tmp_path}/out/cells/{arm}/seed-{seed}", "pending"] for seed in (1, 2) for arm in ("slow", "fast")
    ]
    assert not (tmp_path / "out").exists()
    bad = run("study", study, tmp_path / "out", "ppo.epochs=3", "--dry-run")
    assert bad.code == 2
    assert bad.err.splitlines()[-1].startswith("error: override ppo.epochs=3: ppo.epochs: unknown setting; did you mean ")


def test_shipped_studies_are_listed() -> None:
    done = run("study", "--list")
    assert done.code == 0
    assert any(line.startswith("kl_controller ") for line in done.out.splitlines())
    assert run("study").code == 2


def test_the_report_is_one_file_that_loads_nothing(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert html.count('<svg class="small"') == 2
    assert "http" not in html.replace("http-equiv", "")
    assert "Fast goes further" in html
    assert "Less slow, seed by seed" in html
