"""The store beside a model of it: whatever two labelers do, and in whatever order, both must say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from humanward.feedback import Store, queue
from humanward.feedback.store import _lot
from humanward.records import Prompt, Question, Response, content_id

LABELERS = ("ann", "bob")
LEASE = 100.0


def question(number: int, overlap: int = 1) -> Question:
    return Question(f"q{number}", Prompt(f"p{number}", "Once"), (Response("a"), Response("b")), overlap=overlap)


@dataclass
class Asked:
    """A question of the model."""

    id: str
    overlap: int = 1
    gold: bool = False
    repeat_of: str | None = None
    only_for: str | None = None

    @property
    def common(self) -> bool:
        return not self.gold and self.only_for is None


@dataclass
class Held:
    """What the model knows about one labeler and one question."""

    state: str = "free"
    end: float = 0.0
    turn: int = 0


class StoreMachine(RuleBasedStateMachine):
    """The store beside a model that walks over lists. Every answer of the store must be the model's."""

    address = ":memory:"

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(queue, "GOLD_GAP", 1)  # so that gold comes often
        self.now, self.number, self.late = 1000.0, 0, Counter[str]()
        self.store = Store(self.address, clock=lambda: self.now, repeat_share=0.5)
        self.asked: dict[str, Asked] = {}
        self.held: dict[tuple[str, str], Held] = {}
        self.lent, self.gold_at = Counter[str](), Counter[str]()
        self.acts: dict[str, list[tuple[str, str]]] = {name: [] for name in LABELERS}
        self.remarks: Counter[tuple[str, bool]] = Counter()

    # The model

    def event_id(self) -> str:
        self.number += 1
        return f"e{self.number}"

    def state(self, asked: str, name: str) -> str:
        found = self.held.get((asked, name), Held())
        return "free" if found.state == "leased" and found.end <= self.now else found.state

    def taken(self, asked: str) -> int:
        return sum(self.state(asked, name) in ("leased", "label") for name in LABELERS)

    def may_get(self, asked: Asked, name: str) -> bool:
        if self.state(asked.id, name) != "free":
            return False
        if asked.repeat_of:
            return asked.only_for == name and self.state(asked.repeat_of, name) == "label"
        return asked.gold or self.taken(asked.id) < asked.overlap

    def next_for(self, name: str, limit: int) -> list[str]:
        """In the order of the list; gold when it is reached, or nothing else is left, and GOLD_GAP others lie between."""
        places = {asked.id: place for place, asked in enumerate(self.asked.values())}
        left = [asked for asked in self.asked.values() if self.may_get(asked, name)]
        served: list[str] = []
        while left and len(served) < limit:
            gold, other = (next((a for a in left if a.gold == kind), None) for kind in (True, False))
            if gold and other:
                due = self.lent[name] - self.gold_at[name] >= queue.GOLD_GAP and places[gold.id] < places[other.id]
                chosen = gold if due else other
            else:
                chosen = gold or left[0]
            left.remove(chosen)
            self.lent[name] += 1
            if chosen.gold:
                self.gold_at[name] = self.lent[name]
            self.held[chosen.id, name] = Held("leased", self.now + LEASE, self.lent[name])
            served.append(chosen.id)
        return served

    def leases(self, name: str) -> list[str]:
        """Live ones, oldest first."""
        places = list(self.asked)
        mine = [(found.turn, places.index(q)) for (q, who), found in self.held.items() if who == name and self.state(q, name) == "leased"]
        return [places[place] for _, place in sorted(mine)]

    # What people do

    @initialize(kinds=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=3, max_size=9))
    def begin(self, kinds: list[tuple[int, bool]]) -> None:
        for overlap, gold in kinds:
            self.add(overlap, gold)

    @rule(overlap=st.integers(1, 3), gold=st.booleans())
    def add(self, overlap: int, gold: bool) -> None:
        made = question(len(self.asked), overlap)
        self.store.add_questions([made], gold={made.id: 0} if gold else None)
        self.asked[made.id] = Asked(made.id, overlap, gold)

    @rule(name=st.sampled_from(LABELERS), limit=st.integers(1, 3))
    def lease(self, name: str, limit: int) -> None:
        assert [a.question.id for a in self.store.lease_many(name, limit, LEASE)] == self.next_for(name, limit)

    @rule(name=st.sampled_from(LABELERS), limit=st.integers(1, 5))
    def hold(self, name: str, limit: int) -> None:
        mine = self.leases(name)
        expected = (mine + self.next_for(name, max(0, limit - len(mine))))[:limit]
        for asked in mine:
            self.held[asked, name].end = self.now + LEASE
        for _ in range(2):  # the second is a retry
            assert [a.question.id for a in self.store.held(name, limit, LEASE)] == expected

    @rule(name=st.sampled_from(LABELERS), kind=st.sampled_from(["label", "label", "skip"]), data=st.data())
    def settle(self, name: str, kind: str, data: st.DataObject) -> None:
        mine = [q for (q, who), found in self.held.items() if who == name and found.state in ("leased", "free")]  # late ones too
        if mine:
            self.act(name, data.draw(st.sampled_from(mine)), kind)

    @rule(name=st.sampled_from(LABELERS), kinds=st.lists(st.sampled_from(["label", "label", "label", "skip"]), min_size=1, max_size=4))
    def work(self, name: str, kinds: list[str]) -> None:
        for kind in kinds:
            self.hold(name, 2)
            for asked in self.leases(name)[:1]:
                self.act(name, asked, kind)

    def act(self, name: str, asked: str, kind: str) -> None:
        event = self.event_id()
        first = kind == "label" and self.asked[asked].common and _lot(asked, name) < 0.5
        for answer in (1, 0):  # the second is a retry, and changes nothing
            if kind == "label":
                assert self.store.record(name, asked, answer, event).answer == 1
            else:
                self.store.skip(name, asked, event)
        self.late[asked] += kind == "label" and self.state(asked, name) != "leased"
        self.held[asked, name].state = kind
        self.acts[name].append((asked, kind))
        repeat = content_id("repeat", asked, name)
        if first and repeat not in self.asked:
            self.asked[repeat] = Asked(repeat, repeat_of=asked, only_for=name)
            self.held[repeat, name] = Held()

    @rule(name=st.sampled_from(LABELERS))
    def undo(self, name: str) -> None:
        event = self.event_id()
        undone = [self.store.undo(name, event, LEASE) for _ in range(2)]
        assert undone[0] == undone[1]
        if not self.acts[name]:
            assert undone[0] is None
            return
        asked, kind = self.acts[name].pop()
        assert undone[0] is not None
        assert undone[0].question.id == asked
        self.late[asked] -= kind == "label" and self.late[asked] > 0
        room = not self.asked[asked].common or self.taken(asked) - (kind == "label") < self.asked[asked].overlap
        self.held[asked, name] = Held("leased", self.now + LEASE) if room else Held()

    @rule(name=st.sampled_from(LABELERS), kind=st.sampled_from(["flag", "comment"]), data=st.data())
    def remark(self, name: str, kind: str, data: st.DataObject) -> None:
        mine = [asked.id for asked in self.asked.values() if asked.only_for in (None, name)]
        if not mine:
            return
        asked, event = data.draw(st.sampled_from(mine)), self.event_id()
        for _ in range(2):
            (self.store.flag if kind == "flag" else self.store.comment)(name, asked, event, "so")
        self.remarks[kind, self.asked[asked].common] += 1

    @rule(name=st.sampled_from(LABELERS))
    def release(self, name: str) -> None:
        mine = [(q, who) for (q, who), found in self.held.items() if who == name and self.state(q, who) == "leased"]
        expired = [key for key, found in self.held.items() if key[1] == name and found.state == "leased" and key not in mine]
        assert len(mine) <= self.store.release(name) <= len(mine) + len(expired)  # those run out may not have been noticed yet
        for key in [*mine, *expired]:
            self.held[key].state = "free"

    @rule(seconds=st.sampled_from([60.0, 60.0, 60.0, 150.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # What must always hold

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        labels = Counter((q, name) for (q, name), found in self.held.items() if found.state == "label")
        assert Counter((row.question_id, row.labeler) for row in self.store.labeler_rows()) == labels
        common = [asked for asked in self.asked.values() if asked.common]
        times = {asked.id: sum(labels[asked.id, name] for name in LABELERS) for asked in common}
        counts = self.store.counts()
        assert (counts.questions, counts.wanted, counts.labels, counts.missing, counts.skipped, counts.flagged) == (
            len(common), sum(asked.overlap for asked in common), sum(times.values()),
            sum(max(0, asked.overlap - times[asked.id]) for asked in common),
            sum(self.asked[q].common for (q, _), found in self.held.items() if found.state == "skip"), self.remarks["flag", True],
        )  # fmt: skip
        assert Counter(label.question_id for label in self.store.labels()) == {q: n for q, n in times.items() if n}
        for asked in common:
            assert times[asked.id] <= asked.overlap + self.late[asked.id]  # only answers that came late may exceed the overlap

    def teardown(self) -> None:
        self.patch.undo()
        assert self.store.verify() == []
        self.store.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def test_the_machine_on_postgresql(new_address: Callable[[], str]) -> None:
    class OnPostgreSQL(StoreMachine):
        def __init__(self) -> None:
            self.address = new_address()
            super().__init__()

    run_state_machine_as_test(OnPostgreSQL, settings=settings(max_examples=3, stateful_step_count=20, deadline=None))
