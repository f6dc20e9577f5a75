"""The learning curve of a run's reward model: what it is fitted to and measured on, and that it goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from humanward.errors import UserError
from humanward.records import Comparison
from humanward.rounds import Loop, reward_curve
from humanward.storage import Stopped


@pytest.fixture
def run(loop: Loop, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(loop.folder.path, folder)
    return folder


def context(run: Path, loop: Loop) -> Any:
    return Loop(run, labelers=loop.context.labelers).context


def test_parts_are_nested_and_nothing_that_is_measured_is_trained_on(run: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """52 questions: 13 held out, 39, 19 and 9 trained on; labels of a question that several answered stay together."""
    fits: list[tuple[int, int, set[str], set[str]]] = []

    def noted(_: Any, training: list[Comparison], held_out: list[list[Comparison]], repeat: int, size: int) -> tuple[int, int]:
        inside, outside = {c.question_id for c in training}, {c.question_id for row in held_out for c in row}
        fits.append((repeat, size, inside, outside))
        return size // 2, 40

    monkeypatch.setattr(reward_curve, "measure", noted)
    results = reward_curve.reward_curve(context(run, loop), repeats=2)
    assert [(repeat, size) for repeat, size, _, _ in fits] == [(r, size) for r in (0, 1) for size in (9, 19, 39)]
    for repeat in (0, 1):
        mine = [fit for fit in fits if fit[0] == repeat]
        assert mine[0][2] < mine[1][2] < mine[2][2]
        assert len({frozenset(outside) for _, _, _, outside in mine}) == 1
        assert all(len(inside) == size and len(outside) == 13 and not inside & outside for _, size, inside, outside in mine)
    assert fits[0][3] != fits[3][3], "another part is held out each time"
    assert [point["accuracy"] for point in results["points"]] == [4 / 40, 9 / 40, 19 / 40]
    assert [row["labels"] for row in results["forecasts"]] == [78, 156]


def test_it_goes_on_and_says_the_same(run: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reward_curve.reward_curve(context(run, loop), sizes=2, repeats=1)
    assert whole["points"][-1]["accuracy"] > 0.35, "chance is a quarter; where two responses are equally good, nobody can know"
    shutil.rmtree(run / "reward_curve")
    stopped = context(run, loop)
    real, calls = reward_curve.measure, []

    def once(*arguments: Any) -> tuple[int, int]:
        calls.append(arguments[-1])
        result = real(*arguments)
        stopped.stop.request()
        return result

    monkeypatch.setattr(reward_curve, "measure", once)
    with pytest.raises(Stopped):
        reward_curve.reward_curve(stopped, sizes=2, repeats=1)
    assert reward_curve.reward_curve(context(run, loop), sizes=2, repeats=1) == whole
    assert calls == [19, 39], "what was fitted is not fitted again"
    assert json.loads((run / "reward_curve/results.json").read_text()) == whole


def test_too_few_labels_are_said() -> None:
    with pytest.raises(UserError, match="a curve needs two parts of 8 questions or more, but there are 15 questions to train on"):
        reward_curve.nested_sizes(15, 5)
    assert reward_curve.nested_sizes(16, 5) == [8, 16]
