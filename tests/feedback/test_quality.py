"""Gold questions, repeats, held leases, comments, adjudication, and what a researcher reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from humanward.errors import UserError
from humanward.feedback import Answer, Counts, Snapshot, Store
from humanward.feedback.database import sqlite_module
from humanward.records import Question

Ask = Callable[..., Question]


def all_of(store: Store, labeler: str) -> list[str]:
    return [a.question.id for a in iter(lambda: store.lease(labeler), None)]


def test_held_is_idempotent_topped_up_and_renewed(store: Store, ask: Ask, clock: Any) -> None:
    store.add_questions([ask(number) for number in range(6)])
    first = store.held("ann", 2, seconds=60)
    assert [a.question.id for a in first] == ["q0", "q1"]
    clock.now += 50
    assert store.held("ann", 2, seconds=60) == first
    clock.now += 50  # renewed, or they would have run out
    assert [a.question.id for a in store.held("bob", 2)] == ["q2", "q3"]
    store.record("ann", "q0", 0, "1")
    assert [a.question.id for a in store.held("ann", 2)] == ["q1", "q4"]
    store.undo("ann", "2")
    assert [a.question.id for a in store.held("ann", 2)] == ["q0", "q1"]
    assert [a.question.id for a in store.held("ann", 9)] == ["q0", "q1", "q4", "q5"]
    clock.now += 601
    assert [a.question.id for a in store.held("cy", 9)] == [f"q{number}" for number in range(6)]
    assert store.held("ann", 2) == []


def test_gold_goes_to_everybody_once_and_counts_nowhere(store: Store, ask: Ask) -> None:
    questions = [ask(number) for number in range(30)]
    assert store.add_questions(questions, gold={f"q{number}": number % 4 for number in range(3)}) == 30
    assert store.add_questions(questions, gold={f"q{number}": number % 4 for number in range(3)}) == 0
    served = all_of(store, "ann")
    assert sorted(served) == sorted(q.id for q in questions)
    places = [served.index(f"q{number}") for number in range(3)]
    assert min(places) >= 4
    assert min(b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)) > 4
    assert sorted(all_of(store, "bob")) == ["q0", "q1", "q2"]
    store.record_many("ann", [Answer(f"q{number}", 1, f"{number}") for number in range(5)])
    store.skip("bob", "q0", "1")
    store.record("bob", "q1", 1, "2")
    assert store.counts() == Counts(questions=27, wanted=27, labels=2, missing=25, leased=25, skipped=0, flagged=0)
    assert [label.question_id for label in store.labels()] == ["q3", "q4"]
    assert [label.question_id for label in store.snapshot().labels] == ["q3", "q4"]
    assert len(store.questions()) == 27
    assert [answer for _, answer in store.gold()] == [0, 1, 2]
    rows = store.labeler_rows("ann")
    assert [(row.question_id, row.answer, row.gold) for row in rows] == [
        ("q0", 1, 0),
        ("q1", 1, 1),
        ("q2", 1, 2),
        ("q3", 1, None),
        ("q4", 1, None),
    ]
    assert rows[0].lengths == (5, 5, 5, 5, 5)
    undone = store.undo("ann", "u1")
    assert undone
    assert undone.question.id == "q4"


def test_gold_that_was_given_back_is_served_again(store: Store, ask: Ask, clock: Any) -> None:
    store.add_questions([ask(0), ask(1)], gold={"q0": 0, "q1": 1})
    assert len(all_of(store, "ann")) == 2
    clock.now += 601
    assert all_of(store, "bob") == all_of(store, "ann")
    store.release("ann")
    store.record("ann", "q0", 0, "1")
    assert all_of(store, "ann") == ["q1"]
    store.undo("ann", "2")
    assert [a.question.id for a in store.held("ann", 9)] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ({"q9": 0}, "gold: question q9: a known answer for a question that is not among those given"),
        ({"q0": 4}, "question q0: answer of kind best_of_k: expected the index of a response, 0 to 3, found 4"),
    ],
)
def test_gold_must_fit(store: Store, ask: Ask, gold: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        store.add_questions([ask(0)], gold=gold)
    store.add_questions([ask(0)])
    with pytest.raises(UserError, match="question q0: is there already with another known answer, or without one"):
        store.add_questions([ask(0)], gold={"q0": 1})


def test_repeats_come_last_in_another_order_for_one_labeler(store: Store, ask: Ask) -> None:
    store.set_repeats(1.0)
    store.add_questions([ask(number, kind="pair", k=2) for number in range(4)])
    for number in range(4):
        lent = store.lease("ann")
        assert lent
        assert lent.question.id == f"q{number}"
        store.record("ann", lent.question.id, 0, f"{number}")
    assert store.lease("bob") is None
    before = store.counts()
    for number in range(4):
        again, first = store.lease("ann"), store.assignment("ann", f"q{number}")
        assert again
        assert first
        assert again.question.responses == first.question.responses
        assert again.permutation == first.permutation[::-1]
        with pytest.raises(UserError, match="there is no such question"):
            store.record("bob", again.question.id, 0, f"r{number}")
        store.record("ann", again.question.id, number % 2, f"r{number}")
    assert store.lease("ann") is None
    assert store.counts() == before
    assert len(store.labels()) == len(store.snapshot().labels) == len(store.questions()) == 4
    assert [(row.repeat_of, row.answer) for row in store.labeler_rows()][4:] == [("q0", 0), ("q1", 1), ("q2", 0), ("q3", 1)]


def test_a_repeat_waits_for_its_first_answer(store: Store, ask: Ask) -> None:
    store.set_repeats(1.0)
    store.add_questions([ask(0)])
    store.record("ann", "q0", 0, "1")
    store.undo("ann", "2")
    assert [a.question.id for a in store.held("ann", 9)] == ["q0"]
    store.record("ann", "q0", 1, "3")
    assert len(store.held("ann", 9)) == 1


def test_the_share_of_repeats(ask: Ask) -> None:
    store = Store.in_memory(repeat_share=0.05)
    store.add_questions([ask(number) for number in range(2000)])
    store.record_many("ann", [Answer(f"q{number}", 0, f"{number}") for number in range(2000)])
    # 2000 lots of 0.05: expected 100, standard deviation sqrt(2000 * 0.05 * 0.95) = 9.7
    assert abs(len(store.lease_many("ann", 2000)) - 100) < 4 * 9.7
    store.close()
    with pytest.raises(UserError, match=r"repeats: a share of 1\.5: expected 0 to 1"):
        Store.in_memory(repeat_share=1.5)


def test_disputes_are_decided_by_the_newest_adjudication(store: Store, ask: Ask, tmp_path: Path) -> None:
    store.add_questions([ask(0, overlap=3), ask(1, overlap=2), ask(2, overlap=2)])
    for number, (name, asked, answer) in enumerate(
        [("ann", 0, 1), ("bob", 0, 2), ("ann", 1, 3), ("bob", 1, 3), ("ann", 2, 0), ("bob", 2, 1)]
    ):
        store.record(name, f"q{asked}", answer, f"{number}")
    assert [(d.question.id, [label.answer for label in d.labels], d.adjudication) for d in store.disputed()] == [
        ("q2", [0, 1], None),
        ("q0", [1, 2], None),
    ]
    before = store.snapshot()
    store.undo("bob", "u")
    assert [d.question.id for d in store.disputed()] == ["q0"]
    for answer, event in ((3, "a"), (0, "b"), (0, "b")):
        decided = store.adjudicate("researcher-1", "q0", answer, event, comment="see the guide")
    assert store.disputed()[0].adjudication == decided
    assert decided.adjudication
    assert store.counts().labels == 5
    snapshot = store.snapshot()
    assert snapshot.sha256 != before.sha256
    assert [(c.question_id, c.target, c.labeler, c.weight) for c in snapshot.comparisons() if c.question_id == "q0"] == [
        ("q0", 0, "researcher-1", 1.0)
    ]
    assert len(snapshot.comparisons()) == 4  # q0 once, q1 twice, q2 once
    snapshot.save(tmp_path / "snapshot.jsonl")
    assert Snapshot.load(tmp_path / "snapshot.jsonl").comparisons() == snapshot.comparisons()
    assert store.adjudications() == [decided]
    with pytest.raises(UserError, match="question q0: answer of kind best_of_k"):
        store.adjudicate("researcher-1", "q0", 9, "c")


def test_kinds_say_what_a_dispute_is(store: Store, ask: Ask) -> None:
    answers = [
        ("rating", 1, 4.0, 6.0, False), ("rating", 1, 2.0, 6.0, True), ("difference", 2, 1.0, 4.0, False),
        ("difference", 2, -1.0, 4.0, True),
        ("soft", 2, [0.9, 0.1], [0.6, 0.4], False), ("soft", 2, [0.9, 0.1], [0.4, 0.6], True), ("ranking", 3, [0, 1, 2], [0, 2, 1], False),
        ("ranking", 3, [0, 1, 2], [1, 0, 2], True), ("pair", 2, 0, "tie", True),
    ]  # fmt: skip
    store.add_questions([ask(number, kind=kind, k=k, overlap=2) for number, (kind, k, *_) in enumerate(answers)])
    for number, (_, _, one, other, _) in enumerate(answers):
        store.record("ann", f"q{number}", one, f"{number}")
        store.record("bob", f"q{number}", other, f"{number}")
    assert sorted(d.question.id for d in store.disputed()) == [f"q{number}" for number, answer in enumerate(answers) if answer[-1]]


def test_the_log_the_history_and_the_inbox(store: Store, ask: Ask) -> None:
    store.add_questions([ask(number, overlap=2) for number in range(3)])
    store.record("ann", "q0", 1, "1", comment="hard", instructions="abc")
    store.skip("ann", "q1", "2", "cannot judge")
    store.skip("bob", "q1", "2")
    for _ in range(2):
        store.comment("ann", "q2", "3", "typo \ud800 <b>")
    store.flag("bob", "q2", "3", "a name")
    store.undo("ann", "4")
    assert [(e.seq, e.kind, e.labeler, e.undone) for e in store.events()] == [
        (1, "label", "ann", False), (2, "skip", "ann", True), (3, "skip", "bob", False), (4, "comment", "ann", False),
        (5, "flag", "bob", False), (6, "undo", "ann", False),
    ]  # fmt: skip
    assert [e.seq for e in store.events(labeler="ann", kinds=["label", "skip"], after=1)] == [2]
    assert [e.seq for e in store.events(question_id="q2", limit=1)] == [4]
    assert store.events(labeler="ann", kinds=["undo"])[0].target == 2
    assert [(p.event.seq, p.assignment.question.id) for p in store.history("ann")] == [(4, "q2"), (2, "q1"), (1, "q0")]
    assert [p.event.seq for p in store.history("ann", before=4, limit=1)] == [2]
    assert [(e.seq, e.body.get("reason"), e.body.get("comment")) for e in store.inbox()] == [
        (5, "a name", None), (4, None, "typo ? <b>"), (1, None, "hard"),
    ]  # fmt: skip
    assert store.labels()[0].instructions == "abc"
    with pytest.raises(UserError, match="comment: 10001 characters are too long; 10000 at most"):
        store.comment("ann", "q2", "9", "x" * 10_001)
    assert [(q.id, label.answer) for q, label in store.each_label()] == [("q0", 1)]


def test_instructions_have_versions(store: Store) -> None:
    assert store.current_instructions() is None
    first, second = store.add_instructions("Be kind."), store.add_instructions("Be strict.")
    assert first == store.instructions_version("Be kind.")
    assert len(first) == 16
    assert store.add_instructions("Be strict.") == second
    assert store.current_instructions() == (second, "Be strict.")
    store.add_instructions("Be kind.")
    assert store.current_instructions() == (first, "Be kind.")
    assert store.instructions(second) == "Be strict."
    assert store.instructions("none") is None


def test_the_cord(store: Store) -> None:
    assert store.cord() is None
    store.release_cord("researcher-1")
    pulled = store.pull_cord("researcher-1", "scores run away")
    assert (pulled.person, pulled.reason) == ("researcher-1", "scores run away")
    assert store.cord() == pulled
    store.release_cord("researcher-2", "fixed")
    assert store.cord() is None
    assert [(line.who, line.action) for line in store.people.audit_log()] == [
        ("researcher-2", "release cord"),
        ("researcher-1", "pull cord"),
    ]


def test_a_backup_is_whole_and_new(tmp_path: Path, ask: Ask) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([ask(number) for number in range(9)])
    store.record("ann", "q0", 1, "1")
    store.backup(tmp_path / "copy.db")
    with pytest.raises(UserError, match=r"copy.db: is there already; choose a new name for the backup"):
        store.backup(tmp_path / "copy.db")
    store.record("ann", "q1", 1, "2")
    copy = Store(tmp_path / "copy.db")
    assert copy.labels() == store.labels()[:1]
    assert copy.verify() == []
    copy.close()
    store.close()
    assert sqlite_module().connect(tmp_path / "copy.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(tmp_path.glob(".*"))
