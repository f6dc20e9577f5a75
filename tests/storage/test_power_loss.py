"""Power loss costs nothing that was saved, and the run goes on from what is left; without fsync it would not."""

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

from humanward.storage import verify_folder

WRITER = Path(__file__).with_name("writer.py")
TRIALS = 25

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is absent: install it to record what a power loss may take")


@pytest.fixture(scope="module")
def bench(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The part of the bench of faults that plays power losses back; loaded by path."""
    return load_module(Path(__file__).parents[2] / "bench/power_loss.py")


@pytest.fixture(scope="module")
def writer(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(WRITER)


@pytest.fixture(scope="module")
def recorded(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A whole small run and the calls by which it was written."""
    top = tmp_path_factory.mktemp("recorded")
    (top / "alone").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    run = top / "alone/run"
    return run, bench.record([sys.executable, str(WRITER), "--stages", str(run)], run, top / "log", environment)


def _learned(tree: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Without who wrote it, and without checkpoints, which a stage that is done no longer needs."""
    return {name: content for name, content in tree.items() if name != "lock" and not name.startswith("checkpoints/")}


def test_what_was_saved_survives_power_loss_and_the_run_goes_on(
    bench: ModuleType, writer: ModuleType, recorded: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a run that goes on is not recorded, and is quicker so
    run, operations = recorded
    undisturbed = _learned(bench.read_tree(run))
    lots = random.Random(0)
    for trial in range(TRIALS):
        loss = bench.lose_power(operations, run, tmp_path / f"run-{trial}", lots)
        assert loss.kept(), loss
        writer.stages(loss.folder)
        assert _learned(bench.read_tree(loss.folder)) == undisturbed, loss


def test_an_output_that_is_being_replaced_is_the_old_or_the_new_one(
    bench: ModuleType, recorded: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    run, operations = recorded
    if all(operation.call != "exchange" for operation in operations):
        pytest.skip("this file system cannot exchange two folders in one step")
    first, last = (number for number, operation in enumerate(operations) if operation.call == "safe" and operation.path == f"{run}/policy")
    for end in range(max(first, last - 40), last):
        for seed in range(3):
            disk = bench.Disk(run)
            for operation in operations[:end]:
                disk.do(operation)
            left = disk.lose_power(random.Random(seed))
            policy = {name: content for name, content in left.items() if name.split("/")[0] == "policy"}
            bench.write_tree(policy, tmp_path / f"run-{end}-{seed}")
            assert verify_folder(tmp_path / f"run-{end}-{seed}/policy") is None


def test_what_a_done_stage_left_to_remove_is_removed_by_the_next_start(
    bench: ModuleType, writer: ModuleType, recorded: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power is lost while the policy before the last is being removed: no stage will write there again."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run, operations = recorded
    undisturbed = _learned(bench.read_tree(run))
    first = max(
        number for number, operation in enumerate(operations) if operation.call in ("exchange", "rename") and "policy" in operation.other
    )
    leftovers = 0
    for end in range(first + 2, len(operations)):
        disk = bench.Disk(run)
        for operation in operations[:end]:
            disk.do(operation)
        left = disk.lose_power(random.Random(end))
        leftovers += any(name.startswith("policy.") for name in left)
        bench.write_tree(left, tmp_path / f"run-{end}")
        writer.stages(tmp_path / f"run-{end}")
        assert _learned(bench.read_tree(tmp_path / f"run-{end}")) == undisturbed
    assert leftovers > 0


def test_without_fsync_power_loss_takes_what_was_saved(bench: ModuleType, recorded: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run, operations = recorded
    lots = random.Random(0)
    losses = [bench.lose_power(operations, run, tmp_path / f"run-{trial}", lots, syncs=False) for trial in range(TRIALS)]
    assert sum(not loss.kept() for loss in losses) > TRIALS / 2


def test_only_what_was_fsynced_is_promised(bench: ModuleType, tmp_path: Path) -> None:
    """Of a synced "ab" and an unsynced "cd" behind it: any size between two and four, each byte the new one or zero."""
    run = tmp_path / "run"
    file = str(run / "a")
    calls = [
        bench.Operation("mkdir", str(run)),
        bench.Operation("fsync", str(tmp_path)),
        bench.Operation("create", file),
        bench.Operation("write", file, content=b"ab"),
        bench.Operation("fsync", file),
        bench.Operation("fsync", str(run)),
        bench.Operation("write", file, content=b"cd"),
        bench.Operation("rename", file, str(run / "b")),
    ]
    seen = set()
    for seed in range(200):
        disk = bench.Disk(run)
        for call in calls:
            disk.do(call)
        left = disk.lose_power(random.Random(seed))
        assert set(left) in ({"", "a"}, {"", "b"})
        seen |= {(name, content) for name, content in left.items() if name}
    contents = (b"ab", b"ab\0", b"ab\0\0", b"abc", b"abcd")
    assert seen == {(name, content) for name in "ab" for content in contents}
