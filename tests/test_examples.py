"""The examples do what they promise, on a model of a quarter of a million parameters."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from humanward.errors import UserError
from humanward.rounds import Loop

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def model(shared_data: Path) -> str:
    return str(shared_data / "models/stories260K")


def call(name: str, *arguments: str | Path) -> None:
    """Run an example in this process, as if it had been typed."""
    path = next(path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        module.main()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_explains_itself(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    with pytest.raises(SystemExit) as done:
        call(path.stem, "--help")
    assert done.value.code == 0
    assert f"python examples/{path.name}" in capsys.readouterr().out


def test_a_function_tunes_a_model(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("tune_with_a_function", "--model", model, "--steps", "6", "--batch-size", "32", "--lr", "1e-3", "--out", tmp_path / "tuned")
    lines = capsys.readouterr().out.splitlines()
    (before, kl_before), (after, kl_after) = (map(float, re.findall(r"-?\d+\.\d+", line)) for line in lines[:2])
    assert after > before + 0.3
    assert kl_before == pytest.approx(0, abs=1e-3)
    assert kl_after > 0.1
    assert len([line for line in lines if " -> " in line]) == 2
    assert (tmp_path / "tuned/model.safetensors").exists()


def test_a_loop_of_ones_own_learns(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    call("own_loop_with_maths", model, "--steps", "5", "--lr", "1e-3")
    scores = [float(score) for score in re.findall(r"score (-?\d+\.\d+)", capsys.readouterr().out)]
    assert len(scores) == 5
    assert max(scores[-2:]) > scores[0] + 0.01


def test_a_labeler_of_ones_own_labels_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people, deeds = ("The cat", "A boy", "Tom", "Lily"), ("saw a ball", "ran home", "was happy", "found a toy", "said hello")
    texts = [f"Once upon a time. {who} {what}. {other} {then}.\n" for who in people for other in people for what in deeds for then in deeds]
    (tmp_path / "texts.txt").write_text("".join(texts), encoding="utf-8")
    run = tmp_path / "run"
    call(
        "loop_with_own_labeler", run, "--model", model, "--prompts", tmp_path / "texts.txt", "--preset", "demo_quick",
        "baseline_sft=null", "self_test=false", "threads=1", "evaluation.prompts=8", "labels.rounds=1",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(r"ppo against reference: \d+% of 8", out)
    assert (run / "report.html").exists()
    assert (run / "policy/model.safetensors").exists()
    assert Loop(run).config.labeler == "own:shouter"
    assert {label.labeler for label in Loop(run).context.store.labels()} == {"shouter"}

    # Whoever goes on without the labeler is told, instead of getting another one's labels.
    with pytest.raises(UserError, match="continue it with that program"):
        _ = Loop(run).context.labelers
