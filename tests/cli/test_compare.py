"""``humanward compare`` on a finished run: what it prints, its exit codes, and that the report shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .conftest import run


def test_a_comparison_is_said_and_kept(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    words = ("compare", folder, "--labeler", "score:length:2", "--maximum", "8", "--name", "short")
    done = run(*words, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["comparison"] == json.loads((folder / "comparisons/short/results.json").read_text())
    assert told["comparison"]["labels"] + told["comparison"]["same_text"] <= 8
    again = run(*words)
    assert again.code == 0
    assert f"{told['comparison']['wins']} wins" in again.out


def test_what_cannot_be_compared_is_one_line(finished: Path, tmp_path: Path) -> None:
    for words, error in (
        (("--b", "policy"), "error: both sides are policy; name two different ones"),
        (("--b", "round:7"), "round"),
        (("--labeler", "peple"), "error: labeler 'peple': expected people or score:SPEC (for example score:positive)"),
        (("--level", "2"), "error: --level: Input should be less than 1"),
    ):
        done = run("compare", finished, *words)
        assert done.code == 2
        faults = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(faults) == 1
        assert error in faults[0]
    assert run("compare", tmp_path / "nowhere").code == 2
