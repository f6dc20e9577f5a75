"""The store against threads and processes that share it, kill -9, restarts of the database server, and a full disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from humanward.feedback import ScoreLabeler, Store, answer_questions
from humanward.feedback.database import LostConnectionError, sqlite_module
from humanward.records import Prompt, Question, Response

SRC = str(Path(__file__).parents[2] / "src")


def question(number: int, overlap: int = 1) -> Question:
    return Question(f"q{number}", Prompt(f"p{number}", "Once"), (Response("a"), Response("b")), overlap=overlap)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where several threads or processes can meet."""
    return str(tmp_path / "labels.db") if request.param == "sqlite" else request.getfixturevalue("new_address")()


def in_threads(work: Callable[[str], None], names: list[str]) -> list[BaseException]:
    """Run ``work(name)`` for every name at once, wait, and return what was raised."""
    faults: list[BaseException] = []

    def guarded(name: str) -> None:
        try:
            work(name)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return faults


def test_threads_share_a_store(address: str) -> None:
    store = Store(address)
    store.add_questions([question(number, overlap=1 + number % 2) for number in range(60)])

    def work(name: str) -> None:
        while lent := store.held(name, 1):
            for _ in range(2):
                store.record(name, lent[0].question.id, 0, f"{name} {lent[0].question.id}")

    assert in_threads(work, [f"labeler {number}" for number in range(8)]) == []
    assert Counter(label.question_id for label in store.labels()) == {f"q{number}": 1 + number % 2 for number in range(60)}
    assert store.verify() == []
    store.close()


WRITER = """
import sys
from humanward.feedback import Store
path, name = sys.argv[1:]
store = Store(path)
while True:
    lent = store.lease(name, seconds=0.5)
    if lent is None:
        continue
    store.record(name, lent.question.id, int(lent.question.id[1:]) % 2, name + lent.question.id)
    print(lent.question.id, flush=True)
"""


def start_writer(address: str, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SRC}
    return subprocess.Popen([sys.executable, "-c", WRITER, address, name], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_no_acknowledged_label_is_lost_or_doubled_under_kill_9(address: str) -> None:
    """Two processes write into one store and are killed again and again; every printed label is there afterwards, once."""
    lots = random.Random(0)
    store = Store(address)
    store.add_questions([question(number) for number in range(20_000)])
    acknowledged: set[tuple[str, str]] = set()
    for _ in range(3):
        writers = {name: start_writer(address, name) for name in ("ann", "bob")}
        for writer in writers.values():
            assert writer.stdout
            acknowledged.add((next(name for name, one in writers.items() if one is writer), writer.stdout.readline().strip()))
        time.sleep(lots.uniform(0.05, 0.4))
        for name, writer in writers.items():
            writer.send_signal(signal.SIGKILL)
            said = writer.communicate()[0]
            acknowledged |= {(name, line.strip()) for line in said.splitlines(keepends=True) if line.endswith("\n")}
    labels = [(label.labeler, label.question_id) for label in store.labels()]
    assert len(acknowledged) > 6
    assert acknowledged <= set(labels)
    assert len(set(labels)) == len(labels)
    assert all(label.answer == int(label.question_id[1:]) % 2 for label in store.labels())
    assert store.verify() == []
    if "://" not in address:
        with store._database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    store.close()


@pytest.mark.slow
def test_a_restarted_database_server_loses_nothing(postgresql: Any, new_address: Callable[[], str]) -> None:
    """Six threads label while the server is stopped and killed; all of them wait for it, and what was acknowledged is there."""
    store = Store(new_address())
    store.add_questions([question(number) for number in range(20_000)])
    acknowledged: list[tuple[str, str]] = []
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            asked = store.held(name, 1)[0].question.id
            store.record(name, asked, 0, f"{name} {asked}")
            acknowledged.append((name, asked))

    def disturb(_: str) -> None:
        try:
            for end in (lambda: postgresql.stop("fast"), postgresql.kill):
                before = len(acknowledged)
                while len(acknowledged) < before + 20:
                    time.sleep(0.01)
                end()
                time.sleep(0.2)
                postgresql.start()
        finally:
            stop.set()

    names = [f"labeler {number}" for number in range(6)]
    assert in_threads(lambda name: disturb(name) if name == "disturb" else work(name), [*names, "disturb"]) == []
    labels = [(label.labeler, label.question_id) for label in store.labels()]
    assert len(acknowledged) >= 40
    assert set(acknowledged) <= set(labels)
    assert len(set(labels)) == len(labels)
    assert store.verify() == []
    store.close()


def test_a_lost_acknowledgement_is_no_second_label(new_address: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    store = Store(new_address())
    store.add_questions([question(0)])
    dialect, lost = store._database.engine.dialect, [0]
    commit = dialect.do_commit

    def commit_and_lose(connection: Any) -> None:
        commit(connection)
        lost[0] += 1
        if lost[0] == 1:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_commit", commit_and_lose)
    assert store.record("ann", "q0", 1, "1").answer == 1
    assert lost[0] == 2
    assert [event.seq for event in store.events()] == [1]
    store.close()


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(
        LostConnectionError, match=r"^postgresql://ann:\*\*\*@/labels\?host=.*: the database server does not answer: .*$"
    ) as caught:
        Store(f"postgresql://ann:secret@/labels?host={tmp_path}")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 5  # at first it does not wait


def test_a_backup_while_fifty_write(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([question(number) for number in range(4000)])
    acknowledged: list[tuple[str, str]] = []
    enough = threading.Event()
    copies: list[tuple[Path, set[tuple[str, str]]]] = []

    def work(name: str) -> None:
        while not enough.is_set():
            asked = store.held(name, 1)[0].question.id
            store.record(name, asked, 0, f"{name} {asked}")
            acknowledged.append((name, asked))

    def copy(_: str) -> None:
        try:
            for number in range(3):
                while len(acknowledged) < 60 * (number + 1):
                    time.sleep(0.01)
                before = set(acknowledged)
                store.backup(tmp_path / f"copy-{number}.db")
                copies.append((tmp_path / f"copy-{number}.db", before))
        finally:
            enough.set()

    names = [f"labeler {number}" for number in range(50)]
    assert in_threads(lambda name: copy(name) if name == "copy" else work(name), [*names, "copy"]) == []
    store.close()
    assert len(copies) == 3
    for path, before in copies:
        connection = sqlite_module().connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        found = Store(path)
        assert before <= {(label.labeler, label.question_id) for label in found.labels()}
        assert found.verify() == []
        found.close()


FULL = """
import os
from humanward.errors import RunError
from humanward.feedback import Store
from humanward.records import Prompt, Question, Response
store = Store("disk/labels.db")
store.add_questions([Question(f"q{n}", Prompt(f"p{n}", "Once"), (Response("a"), Response("b"))) for n in range(300)])
with open("disk/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(b"0" * 4096)
    except OSError:
        pass
kept = []
def fill():
    for number in range(300):
        kept.append(store.record("ann", f"q{number}", number % 2, f"{number}", comment="x" * 500))
for attempt in range(2):
    try:
        fill()
    except RunError as error:
        print(error)
try:
    store.backup("disk/copy.db")
except RunError as error:
    print(error)
assert store.labels()[:len(set(kept))] == sorted(set(kept), key=lambda label: int(label.question_id[1:]))
assert len(store.labels()) == len({label.id for label in kept}), "an answer that was refused is there"
print(store.verify(), sorted(os.listdir("disk"))[:2])
os.unlink("disk/filler")
fill()
store.backup("disk/copy.db")
print(len(store.labels()), store.verify(), "copy.db" in os.listdir("disk"))
store.close()
"""


@pytest.mark.skipif(subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0, reason="needs a mount namespace")
def test_a_full_disk_refuses_labels_and_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=8m none disk && exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-ec", script, sys.executable, FULL]
    result = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": SRC}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    *refused, state, end = result.stdout.splitlines()
    assert [line.split(":")[0] for line in refused] == ["disk/labels.db", "disk/labels.db", "disk/copy.db"]
    assert all("disk is full" in line for line in refused[:2]), refused
    assert state.startswith("[]")
    assert "copy.db" not in state
    assert end == "300 [] True"


def test_a_fork_opens_its_own_connection(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([question(0), question(1)])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.record("child", "q0", 0, "1")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    store.record("parent", "q1", 1, "1")
    assert sorted(label.labeler for label in store.labels()) == ["child", "parent"]
    assert store.verify() == []
    store.close()


@pytest.mark.slow
def test_a_thousand_questions_are_answered_quickly(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([question(number) for number in range(1000)])

    def score(prompts: Any, responses: Any) -> list[float]:
        return [float(len(response)) for response in responses]

    started = time.process_time()
    assert answer_questions(store, [ScoreLabeler("ann", score)]) == 1000
    assert time.process_time() - started < 4  # about 1 s of one core here; the margin is for a slow machine
    store.close()
