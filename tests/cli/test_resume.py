"""A run that is killed, stopped or done stage by stage ends with the same bytes as an undisturbed one."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from humanward.cli import main
from humanward.storage import Checkpoints, MetricsLog, verify_folder

from .conftest import Parts, run, start

KILLS = 10
HEAVY = ["humanward.cli", "humanward.cli.running", "humanward.rounds", "humanward.report.build", "accelerate"]
"""Imported once by the process that the killed ones are forked from, so that kills meet work and not imports."""


@pytest.fixture(scope="module")
def forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


def kill_after(context: Any, seconds: float, arguments: Sequence[str]) -> bool:
    """kill -9 after so many seconds; False when the command was done by then."""
    process = context.Process(target=main, args=(list(arguments),))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_random_times_it_ends_like_an_undisturbed_run(
    parts: Parts, finished: Path, fingerprint: Callable[[Path], dict[str, str]], forks: Any, tmp_path: Path
) -> None:
    arguments = ["loop", str(tmp_path / "run"), *parts.options()]
    kill_after(forks, 600, ["loop", str(tmp_path / "first")])  # starts the server: its imports are not to be measured
    began = time.monotonic()
    assert not kill_after(forks, 600, ["loop", str(tmp_path / "timed"), *parts.options()])
    whole = time.monotonic() - began
    lots = random.Random(7)
    seen = set()
    for _ in range(KILLS):
        if not kill_after(forks, lots.uniform(0.05, 0.5) * whole, arguments):
            break
        rows = MetricsLog(tmp_path / "run/metrics.jsonl").read()
        seen.add((rows[-1]["stage"], rows[-1].get("round")) if rows else None)
    assert len(seen) > 1, "the kills all met the same stage; the test shows nothing"
    done = run(*arguments)
    assert done.code == 0, done.err
    assert fingerprint(tmp_path / "run") == fingerprint(finished)
    assert fingerprint(tmp_path / "timed") == fingerprint(finished)


STAGES = [*("sample", "label", "reward", "ppo") * 2, "evaluate"]


def test_stage_by_stage_gives_the_same_bytes(
    parts: Parts, finished: Path, fingerprint: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run("init", folder, *parts.options()).code == 0
    wrong = run("ppo", folder)
    assert (wrong.code, wrong.err.splitlines()[-1]) == (
        2, f"error: {folder}: the next stage is sample of round 1; run `humanward sample` first",
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
