"""The store against a model, against threads and processes that share it, and against kill -9."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from humanward.feedback import ScoreLabeler, Store, answer_questions
from humanward.records import Prompt, Question, Response

LABELERS = ("ann", "bob", "cy")
LEASE = 100.0


def question(number: int, overlap: int = 1) -> Question:
    return Question(f"q{number}", Prompt(f"p{number}", "Once"), (Response("a"), Response("b")), overlap=overlap)


class StoreMachine(RuleBasedStateMachine):
    """The model is a dictionary (question, labeler) -> state; a lease also has its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.number = 1000.0, 0
        self.store = Store.in_memory(clock=lambda: self.now)
        self.overlaps: dict[str, int] = {}
        self.states: dict[tuple[str, str], tuple[str, float]] = {}
        self.acts: dict[str, list[tuple[str, str]]] = {name: [] for name in LABELERS}

    def event_id(self) -> str:
        self.number += 1
        return f"e{self.number}"

    def taken(self, asked: str) -> int:
        live = [state for (q, _), (state, end) in self.states.items() if q == asked and (state != "leased" or end > self.now)]
        return sum(state in ("leased", "label") for state in live)

    def state(self, asked: str, name: str) -> str:
        state, end = self.states.get((asked, name), ("free", 0.0))
        return "free" if state == "leased" and end <= self.now else state

    @rule(overlap=st.integers(1, 3))
    def add(self, overlap: int) -> None:
        asked = question(len(self.overlaps), overlap)
        self.store.add_questions([asked])
        self.overlaps[asked.id] = overlap

    @rule(name=st.sampled_from(LABELERS), limit=st.integers(1, 3))
    def lease(self, name: str, limit: int) -> None:
        expected = [q for q, overlap in self.overlaps.items() if self.taken(q) < overlap and self.state(q, name) == "free"][:limit]
        assert [a.question.id for a in self.store.lease_many(name, limit, LEASE)] == expected
        self.states |= {(q, name): ("leased", self.now + LEASE) for q in expected}

    @rule(name=st.sampled_from(LABELERS), kind=st.sampled_from(["label", "skip"]), data=st.data())
    def settle(self, name: str, kind: str, data: st.DataObject) -> None:
        mine = [q for (q, labeler), (state, _) in self.states.items() if labeler == name and state == "leased"]  # expired ones too
        if not mine:
            return
        asked, event = data.draw(st.sampled_from(mine)), self.event_id()
        for _ in range(2):  # the second is a retry
            if kind == "label":
                assert self.store.record(name, asked, 1, event).question_id == asked
            else:
                self.store.skip(name, asked, event)
        self.states[asked, name] = (kind, 0.0)
        self.acts[name].append((asked, kind))

    @rule(name=st.sampled_from(LABELERS))
    def undo(self, name: str) -> None:
        event = self.event_id()
        undone = [self.store.undo(name, event, LEASE) for _ in range(2)] if self.acts[name] else [self.store.undo(name, event)] * 2
        assert undone[0] == undone[1]
        if not self.acts[name]:
            assert undone[0] is None
            return
        asked, kind = self.acts[name].pop()
        assert undone[0] is not None
        assert undone[0].question.id == asked
        live = [q for (q, labeler) in self.states if labeler == name and self.state(q, name) == "leased"]
        room = self.taken(asked) - (kind == "label") < self.overlaps[asked]
        expected = len(live) + room
        held = self.store.release(name)
        self.states = {key: value for key, value in self.states.items() if key[1] != name or value[0] != "leased"}
        self.states.pop((asked, name))
        assert held == expected

    @rule(seconds=st.sampled_from([1.0, 60.0, 150.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def labels_are_those_of_the_model(self) -> None:
        expected = Counter((q, name) for (q, name), (state, _) in self.states.items() if state == "label")
        assert Counter((label.question_id, label.labeler) for label in self.store.labels()) == expected

    def teardown(self) -> None:
        assert self.store.verify() == []
        self.store.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([question(number, overlap=1 + number % 2) for number in range(60)])
    faults: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while (lent := store.lease(name)) is not None:
                for _ in range(2):
                    store.record(name, lent.question.id, 0, f"{name} {lent.question.id}")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(f"labeler {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
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


def start_writer(path: Path, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_no_acknowledged_label_is_lost_or_doubled_under_kill_9(tmp_path: Path) -> None:
    """Two processes write into one store and are killed again and again; every printed label is there afterwards, once."""
    path, lots = tmp_path / "labels.db", random.Random(0)
    store = Store(path)
    store.add_questions([question(number) for number in range(20_000)])
    acknowledged: set[tuple[str, str]] = set()
    for _ in range(3):
        writers = {name: start_writer(path, name) for name in ("ann", "bob")}
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
    with store._database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    store.close()


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
