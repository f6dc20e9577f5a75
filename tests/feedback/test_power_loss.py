"""Power loss takes no label that was promised; without fsync it would."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from humanward.errors import RunError, UserError
from humanward.feedback import Store

WRITER = Path(__file__).with_name("label_writer.py")
TRIALS = 25

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is absent: install it to record what a power loss may take")


@pytest.fixture(scope="module")
def bench(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The part of the bench of faults that plays power losses back; loaded by path."""
    return load_module(Path(__file__).parents[2] / "bench/power_loss.py")


@pytest.fixture(scope="module")
def lose_power(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """lose_power(folder, lots, syncs=…) -> what is left of a store to which labels were being given."""
    top = tmp_path_factory.mktemp("recorded")
    (top / "alone").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    run = top / "alone/run"
    operations = bench.record([sys.executable, str(WRITER), str(run / "labels.db")], run, top / "log", environment)
    return lambda folder, lots, **settings: bench.lose_power(operations, run, folder, lots, **settings)


def _left(loss: Any) -> int:
    """How many labels are there, in order and unhurt; -1 where the store is damaged."""
    if not (loss.folder / "labels.db").exists():
        return 0
    try:
        store = Store(loss.folder / "labels.db")
        labels = store.labels()
        faults = store.verify()
        store.close()
    except (RunError, UserError):
        return -1
    return len(labels) if not faults and [label.question_id for label in labels] == [f"q{number}" for number in range(len(labels))] else -1


def _promised(loss: Any) -> int:
    return loss.safe.size if loss.safe is not None else 0


def test_every_promised_label_survives_power_loss(lose_power: Callable[..., Any], tmp_path: Path) -> None:
    lots = random.Random(0)
    for trial in range(TRIALS):
        loss = lose_power(tmp_path / f"run-{trial}", lots)
        assert _left(loss) in (_promised(loss), _promised(loss) + 1), loss


def test_without_fsync_power_loss_takes_promised_labels(lose_power: Callable[..., Any], tmp_path: Path) -> None:
    lots = random.Random(0)
    losses = [lose_power(tmp_path / f"run-{trial}", lots, syncs=False) for trial in range(TRIALS)]
    assert sum(_left(loss) < _promised(loss) for loss in losses) > TRIALS / 2
