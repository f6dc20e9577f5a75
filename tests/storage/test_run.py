"""Logs, the run folder, seeds, the wish to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from humanward.errors import RunError, UserError
from humanward.storage import MetricsLog, RunFolder, StopFlag, Stopped, derive_seed, generator

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def test_seeds_are_those_of_every_version() -> None:
    """Pinned: another number here would change every run. First 63 bits of SHA-256 of the text `[1, "rollout", 2, 3]`, by sha256sum."""
    assert derive_seed(1, "rollout", 2, 3) == 0x94C3DA41AC43A395 >> 1
    assert generator(1, "rollout", 2, 3).initial_seed() == derive_seed(1, "rollout", 2, 3)


@given(st.lists(st.tuples(st.integers(), st.text(max_size=3), st.lists(st.integers(0, 9), max_size=3)), unique_by=repr, max_size=20))
def test_seeds_differ_and_are_in_range(places: list[tuple[int, str, list[int]]]) -> None:
    seeds = [derive_seed(run_seed, stream, *indices) for run_seed, stream, indices in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def _rows(*places: tuple[str, int, int]) -> list[dict[str, object]]:
    return [{"stage": stage, "round": number, "step": step, "loss": step / 3} for stage, number, step in places]


def _log(path: Path, rows: list[dict[str, object]]) -> MetricsLog:
    log = MetricsLog(path)
    for row in rows:
        log.append(row)
    return log


PLACES = [("sft", 0, 0), ("ppo", 0, 0), ("ppo", 0, 1), ("reward", 1, 0), ("ppo", 1, 0), ("ppo", 1, 1), ("ppo", 1, 2)]


def test_truncate_drops_one_stage_and_round_from_a_step_on(tmp_path: Path) -> None:
    log = _log(tmp_path / "m.jsonl", _rows(*PLACES))
    log.truncate("ppo", 1, 1)
    assert log.read() == _rows(*PLACES[:5])
    log.truncate("ppo", 0, 0)
    assert log.read() == _rows(PLACES[0], PLACES[3], PLACES[4])
    log.append(_rows(("ppo", 1, 1))[0])
    assert log.read() == _rows(PLACES[0], PLACES[3], PLACES[4], PLACES[5])


@pytest.mark.parametrize(
    ("position", "kept"),
    [
        (("ppo", 0, 1), 2),
        (("ppo", 0, 2), 3),
        (("reward", 1, 0), 3),
        (("ppo", 1, 0), 4),
        (("ppo", 1, 9), 7),
        (("dpo", 0, 0), 7),
        (("sft", 0, 0), 0),
    ],
)
def test_drop_after_drops_later_stages_too(position: tuple[str, int, int], kept: int, tmp_path: Path) -> None:
    log = _log(tmp_path / "m.jsonl", _rows(*PLACES))
    log.drop_after(*position)
    assert log.read() == _rows(*PLACES[:kept])


def test_a_resumed_log_has_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = _log(tmp_path / "whole.jsonl", _rows(*PLACES))
    killed = _log(tmp_path / "killed.jsonl", _rows(*PLACES[:6]))
    killed.close()
    with open(killed.path, "ab") as file:
        file.write(b'{"stage": "ppo", "round": 1, "st')  # torn by the kill
    assert killed.read() == _rows(*PLACES[:6])
    resumed = MetricsLog(killed.path)
    resumed.drop_after("ppo", 0, 1)
    for row in _rows(*PLACES[2:]):
        resumed.append(row)
    resumed.sync()
    assert killed.path.read_bytes() == whole.path.read_bytes()


def test_a_torn_line_is_cut_before_the_next_row(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"stage": "a", "step": 0}\n{"sta')
    log = _log(tmp_path / "m.jsonl", [{"stage": "a", "step": 1}])
    assert log.read() == [{"stage": "a", "step": 0}, {"stage": "a", "step": 1}]


@pytest.mark.parametrize("zeros", [b"\0\0\n", b'{"st\0\0\0tep": 1}\n{"stage": "a", "step": 2}\n', b"\0" * 600])
def test_rows_that_power_loss_took_are_cut_with_those_behind_them(zeros: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"stage": "a", "step": 0}\n' + zeros)
    assert MetricsLog(tmp_path / "m.jsonl").read() == [{"stage": "a", "step": 0}]
    log = _log(tmp_path / "m.jsonl", [{"stage": "a", "step": 1}])
    assert log.path.read_bytes() == b'{"stage": "a", "step": 0}\n{"stage": "a", "step": 1}\n'


def test_logs_refuse_bad_numbers_and_name_damaged_lines(tmp_path: Path) -> None:
    log = _log(tmp_path / "m.jsonl", [{"stage": "ppo", "step": 0}])
    with pytest.raises(RunError, match=r"/m\.jsonl: kl is nan, not a finite number; it was not written$"):
        log.append({"stage": "ppo", "step": 1, "kl": float("nan")})
    with pytest.raises(ValueError, match="a row needs a stage and a step"):
        log.append({"step": 1})
    assert len(log.read()) == 1
    for line in (b"x\n", b"[1]\n", b'{"stage": 1, "step": 1}\n', b'{"stage": "a", "step": 1, "x": NaN}\n', b"\xff\n"):
        log.path.write_bytes(b'{"stage": "ppo", "step": 0}\n' + line)
        with pytest.raises(RunError, match=r"/m\.jsonl:2: damaged line: .*; remove the line$"):
            log.read()
    assert MetricsLog(tmp_path / "none.jsonl").read() == []


@given(steps=st.lists(st.tuples(st.sampled_from(["sft", "ppo"]), st.integers(0, 2), st.integers(0, 3)), max_size=12), cut=st.integers(0, 4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncate_equals_a_slow_filter(steps: list[tuple[str, int, int]], cut: int, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").unlink(missing_ok=True)
    log = _log(tmp_path / "m.jsonl", _rows(*steps))
    log.truncate("ppo", 1, cut)
    assert log.read() == _rows(*[place for place in steps if not (place[:2] == ("ppo", 1) and place[2] >= cut)])
    log.close()


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    code = """
import sys
from humanward.storage import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("in", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError) as caught, run.lock():
            pass
        assert str(caught.value).startswith(f"{run.path}: another process works in this folder (process {holder.pid} on ")
        holder.kill()
    left = [run.path / name for name in (".state.json.tmp-1", "policy.tmp-1", "rounds/2/reward.tmp-1")]
    left[0].touch()
    left[1].mkdir()  # the policy that was replaced: its stage is done, so that nobody will write there again
    left[2].mkdir(parents=True)
    with run.lock():  # the lock died with its process
        assert not [path for path in left if path.exists()]
        with pytest.raises(UserError, match="another process works"), RunFolder(run.path).lock():
            pass
    with run.lock():
        pass


def test_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file/run: cannot be made a run folder: Not a directory$"):
        RunFolder(tmp_path / "file" / "run").create()


def test_environment_is_recorded_once_and_changes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path).create()
    assert not run.started
    assert run.record_environment(seed=7, threads=2) == []
    assert run.record_environment(seed=7, threads=2) == []
    assert capsys.readouterr().err == ""
    expected = f"{tmp_path}/environment.json: threads was 2, is 3: results may differ"
    assert run.record_environment(seed=7, threads=3) == [expected]
    assert capsys.readouterr().err == expected + "\n"
    assert run.record_environment(seed=7, threads=3) == []  # said once: it was recorded
    monkeypatch.setattr("platform.python_version", lambda: "9.9")
    assert [line.partition(" was ")[0] for line in run.record_environment(seed=7, threads=3)] == [f"{run.environment}: versions.python"]
    with pytest.raises(UserError, match=r"the run began with seed 7, not 8; keep it or start a new run$"):
        run.record_environment(seed=8, threads=3)


def test_settings_that_were_edited_after_the_start_are_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.config.write_text("seed: 7\n")
    assert run.record_environment(seed=7, threads=2) == []
    run.config.write_text("seed: 7\nlr: 1\n")
    with pytest.raises(UserError, match=r"config.yaml: changed since the run began, .*; restore it or start a new run$"):
        run.record_environment(seed=7, threads=2)
    run.config.write_text("seed: 7\n")
    assert run.record_environment(seed=7, threads=2) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_check(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopFlag() as flag:
        flag.check()
        assert not flag.requested
        os.kill(os.getpid(), number)
        assert flag.requested
        with pytest.raises(Stopped) as caught:
            flag.check()
    assert (caught.value.signal, caught.value.exit_code) == (number, 128 + number)
    assert str(caught.value) == f"stopped by {number.name}"
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err == "stopping at the next safe point; once more to leave at once\n"


def test_waiting_is_interrupted() -> None:
    with StopFlag() as flag:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        begin = time.monotonic()
        with pytest.raises(Stopped):
            flag.wait(30)
        assert time.monotonic() - begin < 5
        timer.join()
    StopFlag().wait(0.01)


def test_a_second_signal_leaves_at_once() -> None:
    code = """
import time
from humanward.storage import StopFlag
with StopFlag():
    print("ready", flush=True)
    while True:
        time.sleep(60)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_outside_the_main_thread_it_installs_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopFlag() as flag:
            seen.append(signal.getsignal(signal.SIGTERM))
            flag.request()
            try:
                flag.check()
            except Stopped as stopped:
                seen.append(stopped.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, signal.SIGTERM]
