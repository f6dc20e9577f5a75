"""A run that is killed, stopped or done stage by stage ends with the same bytes as an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from humanward.storage import Checkpoints, MetricsLog, verify_folder

from .conftest import SOURCE, Parts, run, start

BENCH = Path(__file__).parents[2] / "bench/kill_resume.py"


@pytest.mark.slow
def test_a_short_version_of_the_bench_of_faults() -> None:
    """12 kills, 6 signals, damages, full disks and power losses; the bench itself compares every end with the undisturbed one."""
    full = 0 if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode else 2
    losses = 3 if shutil.which("strace") else 0
    counts = {"kills": 12, "stops": 6, "damages": 3, "full": full, "losses": losses}
    command = [sys.executable, str(BENCH), *(word for name, count in counts.items() for word in (f"--{name}", str(count)))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    beyond = ["full disk"] * bool(full) + ["power loss"] * bool(losses)
    assert [row["fault"] for row in rows] == ["none", "SIGKILL", "SIGTERM", "damaged checkpoint", *beyond]
    assert all(row["good"] for row in rows)
    # a kill may come just behind the place that it was meant for
    assert min(rows[1]["shares"].values()) >= 2
    assert len(rows[1]["shares"]) == 4


STAGES = [*("sample", "label", "reward", "ppo") * 2, "evaluate"]


def test_stage_by_stage_gives_the_same_bytes(
    parts: Parts, finished: Path, fingerprint: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run("init", folder, *parts.options()).code == 0
    wrong = run("ppo", folder)
    assert (wrong.code, wrong.err.splitlines()[-1]) == (
        2, f"error: {folder}: the next stage is sample of round 1; run `humanward sample {folder}` first",
    )  # fmt: skip
    for stage, following in zip(STAGES, [*STAGES[1:], None], strict=True):
        done = run(stage, folder)
        assert done.code == 0, done.err
        if following is not None:
            assert done.err.splitlines()[-1].endswith(f"humanward {following} {folder}")
    assert fingerprint(folder) == fingerprint(finished)
    again = run("evaluate", folder)
    assert (again.code, again.err.splitlines()[-1]) == (2, f"error: {folder}: evaluate is done already")
    off = run("sft", folder)
    assert (off.code, off.err.splitlines()[-1]) == (2, f"error: {folder}: this run has no stage sft (it is turned off in config.yaml)")


def test_what_stands_behind_a_damaged_stage_is_made_again(
    parts: Parts, finished: Path, fingerprint: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/rounds/1/policy/model.safetensors").write_bytes(b"damaged")
    done = run("loop", tmp_path / "run", *parts.options())
    assert done.code == 0, done.err
    assert f"{tmp_path / 'run'}: goes on with ppo, round 1" in done.err
    assert fingerprint(tmp_path / "run") == fingerprint(finished)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_code(number: signal.Signals, parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = MetricsLog(folder / "metrics.jsonl")
    # The only checkpoint of PPO is the one that the signal brings.
    process = start("loop", folder, *parts.options(), "ppo.episodes=160000", "labels.rounds=1", "checkpoint_seconds=1000")
    wait_for(lambda: any(row["stage"] == "ppo" for row in log.read()), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.splitlines()[-1] == f"error: stopped by {number.name}; what was done is saved: give the command again to go on"
    checkpoint = Checkpoints(folder / "checkpoints/ppo").latest()
    assert checkpoint is not None
    assert checkpoint.step == sum(row["stage"] == "ppo" for row in log.read())
    assert verify_folder(folder / "rounds/1/reward") is None


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("lost", ["newest", "all"])
def test_steps_of_an_earlier_round_are_made_up_for_against_its_own_reward_model(
    parts: Parts, finished: Path, fingerprint: Callable[[Path], dict[str, str]], tmp_path: Path, lost: str
) -> None:
    """Round 2 begins, and the checkpoint that round 1 ended with is gone."""
    folder = tmp_path / "run"
    assert run("init", folder, *parts.options()).code == 0
    for stage in ("sample", "label", "reward", "ppo", "sample", "label", "reward"):
        assert run(stage, folder).code == 0
    steps = sorted((folder / "checkpoints/ppo").iterdir(), key=lambda path: int(path.name[5:]))
    for step in steps[-1:] if lost == "newest" else steps:
        shutil.rmtree(step)
    assert run("loop", folder).code == 0
    assert fingerprint(folder) == fingerprint(finished)
