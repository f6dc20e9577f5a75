"""No crash point, failing call, full disk or flipped bit costs more than the checkpoint that was being written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from humanward.storage import Checkpoints, MetricsLog, RunFolder, read_json, verify_folder

WRITER = Path(__file__).with_name("writer.py")
# every call through which a save changes the disk; a kill is delivered before the call takes place
CALLS = ("mkdir", "openat", "write", "fsync", "rename", "renameat2", "unlink", "unlinkat", "rmdir", "ftruncate", "flock")
FULL = r"the disk is full: (more than )?\d+ bytes needed, \d+ bytes free; "

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is absent: install it to test every crash point")


def _writer(folder: Path, steps: list[int], *prefix: str, files: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*prefix, sys.executable, str(WRITER), *(["--files"] if files else []), str(folder), *map(str, steps)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _base(folder: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    assert _writer(folder, [1, 2]).returncode == 0
    return folder


def _calls(folder: Path, steps: list[int], *, files: bool = False) -> list[tuple[str, int]]:
    """(call, n) for each n-th call of a save below ``folder`` that changes the disk, as strace counts them for `inject=call:when=n`."""
    log = folder.with_suffix(".log")
    result = _writer(folder, steps, "strace", "-f", "--seccomp-bpf", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}", files=files)
    assert result.returncode == 0, result.stderr
    seen: dict[str, int] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match:
            seen[match[1]] = seen.get(match[1], 0) + 1
            if str(folder) in line and (match[1] != "openat" or "O_CREAT" in line):
                found.append((match[1], seen[match[1]]))
    return found


def _inject(call: str, what: str) -> list[str]:
    # careful: --seccomp-bpf, which is quicker, delivers injected errors but not injected signals
    return ["strace", "-f", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:{what}"]


def _check(folder: Path, allowed: set[int], capsys: pytest.CaptureFixture[str]) -> None:
    """The newest checkpoint is whole, it is one of ``allowed``, nothing is said of damage, and the next save works."""
    store = Checkpoints(folder)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.step in allowed
    assert checkpoint.state == {"step": checkpoint.step}
    assert capsys.readouterr().err == ""
    assert [entry.name for entry in folder.iterdir() if ".tmp-" in entry.name] == []
    assert all(verify_folder(folder / f"step-{step}") is None for step in store.steps())
    store.save(9, {"a": b"x"}, {"step": 9})
    again = store.latest()
    assert again is not None
    assert again.step == 9


@strace
@pytest.mark.parametrize(("steps", "before", "after"), [([3], 2, 3), ([2], 2, 2)], ids=["new", "replaced"])
def test_kill_at_every_system_call(steps: list[int], before: int, after: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = _base(tmp_path / "base")
    shutil.copytree(base, tmp_path / "counted")
    calls = _calls(tmp_path / "counted", steps)
    assert len(calls) >= 18
    outcomes = set()
    for call, count in calls:
        # one name for all: the path and so the calls are the same in every process
        folder = tmp_path / "counted"
        shutil.rmtree(folder)
        shutil.copytree(base, folder)
        result = _writer(folder, steps, *_inject(call, f"signal=SIGKILL:when={count}"))
        assert result.returncode in (-9, 137), f"{call} {count} was not reached: {result}"
        checkpoint = Checkpoints(folder).latest()
        assert checkpoint is not None
        outcomes.add(checkpoint.step)
        _check(folder, {before, after}, capsys)
    assert outcomes == {before, after}


@strace
@pytest.mark.parametrize(
    ("fault", "word"), [("ENOSPC", FULL), ("EIO", "could not be written: Input/output error")], ids=["full", "failing"]
)
def test_every_failing_write_is_one_line_and_costs_nothing(
    fault: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = _base(tmp_path / "base")
    folder = tmp_path / "counted"
    shutil.copytree(base, folder)
    for call, count in [entry for entry in _calls(folder, [3]) if entry[0] in ("mkdir", "openat", "write", "fsync", "rename")]:
        shutil.rmtree(folder)
        shutil.copytree(base, folder)
        result = _writer(folder, [3], *_inject(call, f"error={fault}:when={count}"), "--seccomp-bpf")
        if result.returncode == 0:  # only removing the oldest one failed: it is still there, whole
            assert call == "rename"
            assert Checkpoints(folder).steps() == [1, 2, 3]
        else:
            assert result.returncode == 3, f"{call} {count}: {result}"
            assert re.fullmatch(rf"\S+/step-3: {word}.*\n", result.stderr), result.stderr
        _check(folder, {2, 3}, capsys)


def _check_files(folder: Path, expected: dict[str, bytes]) -> int:
    """The step of state.json, whose row is in the log; written once more, both are as if nothing had happened."""
    step = read_json(folder / "state.json")["step"]
    steps = [row["step"] for row in MetricsLog(folder / "metrics.jsonl").read()]
    assert steps in ([1, 2], [1, 2, 3])
    assert step <= steps[-1]
    with RunFolder(folder).lock():
        (folder / "lock").unlink()
        assert _writer(folder, [3], files=True).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    return step


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, dict[str, bytes], list[tuple[str, int]]]:
    """state.json and a log of steps 1 and 2; what they are with step 3; the calls that write it, below `tmp_path / "counted"`."""
    assert _writer(tmp_path / "base", [1, 2], files=True).returncode == 0
    shutil.copytree(tmp_path / "base", tmp_path / "counted")
    calls = _calls(tmp_path / "counted", [3], files=True)
    return tmp_path / "base", {path.name: path.read_bytes() for path in (tmp_path / "counted").iterdir()}, calls


@strace
def test_kill_at_every_system_call_of_state_and_log(files: tuple[Path, dict[str, bytes], list[tuple[str, int]]], tmp_path: Path) -> None:
    base, expected, calls = files
    assert {call for call, _ in calls} == {"openat", "write", "fsync", "rename"}
    outcomes = set()
    for call, count in calls:
        shutil.rmtree(tmp_path / "counted")
        shutil.copytree(base, tmp_path / "counted")
        result = _writer(tmp_path / "counted", [3], *_inject(call, f"signal=SIGKILL:when={count}"), files=True)
        assert result.returncode in (-9, 137), f"{call} {count} was not reached: {result}"
        outcomes.add(_check_files(tmp_path / "counted", expected))
    assert outcomes == {2, 3}


@strace
@pytest.mark.parametrize(
    ("fault", "word"), [("ENOSPC", FULL), ("EIO", "could not be written: Input/output error")], ids=["full", "failing"]
)
def test_every_failing_write_of_state_and_log_is_one_line(
    fault: str, word: str, files: tuple[Path, dict[str, bytes], list[tuple[str, int]]], tmp_path: Path
) -> None:
    base, expected, calls = files
    for call, count in calls:
        shutil.rmtree(tmp_path / "counted")
        shutil.copytree(base, tmp_path / "counted")
        result = _writer(tmp_path / "counted", [3], *_inject(call, f"error={fault}:when={count}"), "--seccomp-bpf", files=True)
        assert result.returncode == 3, f"{call} {count}: {result}"
        assert re.fullmatch(rf"\S+/(state.json|metrics.jsonl): {word}.*\n", result.stderr), result.stderr
        _check_files(tmp_path / "counted", expected)


def test_full_disk_keeps_the_old_checkpoint_and_says_what_is_needed(tmp_path: Path) -> None:
    """On a disk of 1 MiB of its own: a checkpoint of 2 MB is refused before it begins, one that no longer fits while it is written."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare -rm is not permitted here: no disk of one's own to fill")
    code = """
import os, sys
from humanward.errors import RunError
from humanward.storage import Checkpoints, MetricsLog, atomic_folder, write_json
def fallocate(folder):
    os.posix_fallocate(os.open(folder / "a", os.O_RDWR | os.O_CREAT), 0, 2 << 20)
store = Checkpoints("disk/c")
store.save(1, {"a": b"1" * 100_000}, {})
try:
    store.save(2, {"a": b"2" * 2_000_000}, {})
except RunError as error:
    print(error)
for attempt in (lambda folder: (folder / "big").write_bytes(b"x" * 2_000_000), fallocate):
    try:
        with atomic_folder("disk/policy") as folder:
            attempt(folder)
    except RunError as error:
        print(error)
log = MetricsLog("disk/metrics.jsonl")
log.append({"stage": "ppo", "step": 0})
with open("disk/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(b"x" * 4096)
    except OSError:
        pass
for step in range(1, 1000):
    try:
        log.append({"stage": "ppo", "step": step, "text": "x" * 300})
    except RunError as error:
        print(error)
        break
assert [row["step"] for row in log.read()] == list(range(step))
try:
    write_json("disk/state.json", list(range(9999)))
except RunError as error:
    print(error)
print(sorted(os.listdir("disk")), os.listdir("disk/c"), store.latest().step)
os.unlink("disk/filler")
store.save(3, {"a": b"3" * 100_000}, {})
log.append({"stage": "ppo", "step": step})
print(store.latest().step, len(log.read()) == step + 1)
"""
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=1m none disk && exec "$0" -c "$1"'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script, sys.executable, code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    checkpoint, folder, fallocated, log, state, listed, last = result.stdout.splitlines()
    full = r"the disk is full: {} bytes needed, \d+ bytes free; free some space and start again"
    assert re.fullmatch("disk/c/step-2: " + full.format(r"20\d{5}"), checkpoint)
    assert re.fullmatch("disk/policy: " + full.format(r"more than \d+"), folder)
    assert re.fullmatch("disk/policy: " + full.format(r"more than \d+"), fallocated)
    assert re.fullmatch("disk/metrics.jsonl: " + full.format(r"\d+"), log)
    assert re.fullmatch("disk/state.json: " + full.format(r"\d+"), state)
    assert listed == "['c', 'filler', 'metrics.jsonl'] ['step-1'] 1"
    assert last == "3 True"
