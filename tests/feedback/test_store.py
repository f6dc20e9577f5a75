from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from humanward.errors import RunError, UserError
from humanward.feedback import Answer, Counts, Snapshot, Store
from humanward.feedback.database import SAFE_WAL, sqlite_module
from humanward.records import Question

Ask = Callable[..., Question]


def test_questions_are_added_once_and_served_in_order(store: Store, ask: Ask) -> None:
    questions = [ask(number, round=number % 2, split="validation" if number == 3 else "train") for number in range(4)]
    assert store.add_questions(questions[:2]) == 2
    assert store.add_questions([*questions, questions[3]]) == 2
    assert store.questions() == questions
    assert store.questions(round=1, split="train") == [questions[1]]
    served = [store.lease("ann") for _ in range(5)]
    assert [a and a.question for a in served] == [*questions, None]


def test_an_id_belongs_to_one_question(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0)])
    for others in ([ask(1), ask(0, round=1)], [ask(1), ask(1, k=3)]):
        with pytest.raises(UserError, match=r"question q[01]: another question has this id"):
            store.add_questions(others)
    assert store.questions() == [ask(0)]


def test_a_question_must_fit_its_kind(store: Store, ask: Ask) -> None:
    with pytest.raises(UserError, match="question q1: pair needs 2 responses, found 4"):
        store.add_questions([ask(0), ask(1, kind="pair")])
    with pytest.raises(UserError, match="question q1: unknown kind 'favourite'; expected one of best_of_k, "):
        store.add_questions([ask(1, kind="favourite")])
    assert store.questions() == []


def test_overlap_bounds_how_many_hold_a_question(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0, overlap=2), ask(1)])
    assert [[a.question.id for a in store.lease_many(name, 9)] for name in ("ann", "bob", "cy")] == [["q0", "q1"], ["q0"], []]
    store.record("ann", "q0", 0, "1")
    assert store.lease("cy") is None
    assert store.counts() == Counts(questions=2, wanted=3, labels=1, missing=2, leased=2, skipped=0, flagged=0)


def test_never_twice_to_one_labeler(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0, overlap=3)])
    assert store.lease("ann")
    assert store.lease("ann") is None
    store.record("ann", "q0", 2, "1")
    assert store.lease("ann") is None
    with pytest.raises(UserError, match="question q0: ann has already answered it; undo that first"):
        store.record("ann", "q0", 1, "2")


def test_an_expired_lease_is_served_again_and_a_late_answer_is_kept(store: Store, ask: Ask, clock: Any) -> None:
    store.add_questions([ask(0)])
    first = store.lease("ann", seconds=60)
    clock.now += 59
    assert store.lease("bob") is None
    clock.now += 1
    assert store.lease("bob")
    label = store.record("ann", "q0", 3, "late")
    assert first
    assert label.permutation == first.permutation
    store.record("bob", "q0", 1, "1")
    assert [label.answer for label in store.labels()] == [3, 1]
    assert store.counts().missing == 0


def test_an_expired_lease_comes_back_to_the_same_labeler_in_the_same_order(store: Store, ask: Ask, clock: Any) -> None:
    store.add_questions([ask(0), ask(1)])
    first = store.lease("ann")
    clock.now += 601
    assert store.lease("ann") == first


def test_released_leases_are_served_again(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0), ask(1)])
    store.lease_many("ann", 2)
    assert store.release("ann") == 2
    assert store.release("ann") == 0
    assert [a.question.id for a in store.lease_many("bob", 2)] == ["q0", "q1"]


def test_a_retry_gets_the_same_label(store: Store, ask: Ask, clock: Any) -> None:
    store.add_questions([ask(0), ask(1)])
    first = store.record("ann", "q0", 2, "same", seconds=3.5, confidence=0.5, comment="hm")
    clock.now += 10
    assert store.record("ann", "q0", 2, "same") == first
    assert store.labels() == [first]
    assert (first.seconds, first.confidence, first.comment, first.time) == (3.5, 0.5, "hm", "1970-01-12T13:46:40.000+00:00")
    with pytest.raises(UserError, match="client_event_id 'same' of ann was used for the label of question q0; take a new one"):
        store.record("ann", "q1", 2, "same")
    with pytest.raises(UserError, match="was used for the label"):
        store.skip("ann", "q0", "same")
    assert store.record("bob", "q1", 0, "same").labeler == "bob"


def test_several_answers_are_kept_together_or_not_at_all(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0), ask(1), ask(2)])
    with pytest.raises(UserError, match="question q1: answer of kind best_of_k: expected the index of a response, 0 to 3, found 4"):
        store.record_many("ann", [Answer("q0", 0, "1"), Answer("q1", 4, "2")])
    assert store.labels() == []
    labels = store.record_many("ann", [Answer("q0", 0, "1"), Answer("q1", 1, "2"), Answer("q0", 0, "1")])
    assert labels[0] == labels[2]
    assert store.labels() == labels[:2]
    with pytest.raises(UserError, match="question q9: there is no such question"):
        store.record("ann", "q9", 0, "3")


def test_skip_hands_the_question_to_others(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0), ask(1)])
    store.lease("ann")
    for _ in range(2):
        store.skip("ann", "q0", "1", reason="cannot judge")
    assert [a.question.id for a in store.lease_many("ann", 2)] == ["q1"]
    assert [a.question.id for a in store.lease_many("bob", 2)] == ["q0"]
    assert store.counts().skipped == 1
    with pytest.raises(UserError, match="ann has already skipped it"):
        store.record("ann", "q0", 0, "2")


def test_a_flag_changes_nothing_but_is_seen(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0)])
    store.lease("ann")
    for _ in range(2):
        store.flag("ann", "q0", "1", reason="names a person")
    store.record("ann", "q0", 0, "2")
    assert store.flags() == [{"question_id": "q0", "labeler": "ann", "reason": "names a person", "time": "1970-01-12T13:46:40.000+00:00"}]
    assert store.counts().flagged == 1
    with pytest.raises(UserError, match="there is no such question"):
        store.flag("ann", "q9", "3")


def test_undo_goes_back_any_number_of_steps(store: Store, ask: Ask) -> None:
    store.add_questions([ask(number) for number in range(3)])
    leases = store.lease_many("ann", 3)
    store.record("ann", "q0", 0, "1")
    store.skip("ann", "q1", "2")
    store.flag("ann", "q2", "3")
    store.record("bob", "q2", 1, "1")
    store.comment("ann", "q2", "5", "hm")
    for number, (event, missing) in enumerate([("u2", 1), ("u3", 2)]):
        for _ in range(2):  # a retry takes back nothing more
            undone = store.undo("ann", event)
        assert undone
        assert undone.question == leases[1 - number].question
        assert undone.permutation == leases[1 - number].permutation
        assert store.counts().missing == missing
    assert store.undo("ann", "u4") is None
    assert [label.labeler for label in store.labels()] == ["bob"]
    assert (store.counts().flagged, store.counts().skipped) == (1, 0)  # flags and comments stay
    again = store.record("ann", "q0", 2, "4")
    assert store.labels()[-1] == again
    assert store.labels_by(["ann", "bob", "cy"]) == {"ann": 1, "bob": 1, "cy": 0}


def test_undo_of_a_skip_takes_nothing_from_others(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0)])
    store.lease("ann")
    store.skip("ann", "q0", "1")
    assert store.lease("bob")
    undone = store.undo("ann", "2")
    assert undone
    assert undone.question.id == "q0"
    assert store.counts().leased == 1
    store.release("bob")
    assert store.lease("ann")


def test_the_order_shown_is_random_but_fixed(store: Store, ask: Ask) -> None:
    store.add_questions([ask(number, overlap=2) for number in range(300)])
    shown = [a.permutation for name in ("ann", "bob") for a in store.lease_many(name, 300)]
    assert all(sorted(permutation) == [0, 1, 2, 3] for permutation in shown)
    # 600 shows of 4 responses: each is expected 150 times in the first place, standard deviation sqrt(600 * 3/16) = 10.6.
    for response in range(4):
        assert abs(sum(permutation[0] == response for permutation in shown) - 150) < 4 * 10.6
    held = store.assignment("ann", "q7")
    assert held
    assert held.permutation == shown[7]
    assert held.unpermute(2) == shown[7][2]
    assert store.assignment("cy", "q7") is None


def test_labels_of_a_round(store: Store, ask: Ask) -> None:
    store.add_questions([ask(number, round=number) for number in range(3)])
    for number in range(3):
        store.record("ann", f"q{number}", number, f"{number}")
    assert [label.answer for label in store.labels(round=1)] == [1]
    assert store.counts(round=2) == Counts(1, 1, 1, 0, 0, 0, 0)
    assert [label.answer for label in store.snapshot(last_round=1).labels] == [0, 1]


def test_snapshots_do_not_depend_on_order_ids_or_times(ask: Ask, clock: Any) -> None:
    answers = [(name, number, (number * 3 + len(name)) % 4) for number in range(12) for name in ("ann", "bobby")]
    questions = [ask(number, overlap=2) for number in range(12)]
    hashes, comparisons = set(), set()
    for seed in range(20):  # 20 orders of arrival
        lots = random.Random(seed)
        lots.shuffle(answers)
        lots.shuffle(questions)
        store = Store.in_memory(clock=clock)
        store.add_questions(questions)
        for name, number, answer in answers:
            clock.now += lots.random()
            store.record(name, f"q{number}", answer, str(lots.random()), seconds=lots.random())
            if lots.random() < 0.2:
                store.undo(name, str(lots.random()))
                store.record(name, f"q{number}", answer, str(lots.random()))
        snapshot = store.snapshot()
        hashes.add(snapshot.sha256)
        comparisons.add(repr(snapshot.comparisons()))
        assert store.verify() == []
        store.close()
    assert len(hashes) == len(comparisons) == 1
    other = Store.in_memory()
    other.add_questions(questions)
    for name, number, answer in answers:
        other.record(name, f"q{number}", (answer + (number == 7)) % 4, f"{number}")
    assert other.snapshot().sha256 not in hashes


def test_a_snapshot_stays_what_it_was(store: Store, ask: Ask, tmp_path: Path) -> None:
    store.add_questions([ask(0), ask(1, split="validation"), ask(2)])
    store.record("ann", "q0", 3, "1")
    store.record("ann", "q1", 1, "2")
    snapshot = store.snapshot()
    snapshot.save(tmp_path / "labels.jsonl")
    store.undo("ann", "3")
    assert [label.answer for label in store.snapshot().labels] == [3]
    loaded = Snapshot.load(tmp_path / "labels.jsonl")
    assert loaded == snapshot
    assert [c.target for c in loaded.of_split("validation").comparisons()] == [1]
    lines = (tmp_path / "labels.jsonl").read_text()
    (tmp_path / "labels.jsonl").write_text(lines.replace('"answer": 3', '"answer": 2'))
    with pytest.raises(UserError, match="the labels do not match their hash"):
        Snapshot.load(tmp_path / "labels.jsonl")


TWICE = """INSERT INTO events SELECT 4, kind, question_id, labeler, 'x', target, body, time, hash, remark FROM events WHERE seq = 1"""


def damaged(tmp_path: Path, ask: Ask, statement: str) -> list[str]:
    path = tmp_path / f"{abs(hash(statement))}.db"
    store = Store(path)
    store.add_questions([ask(number) for number in range(3)])
    for number in range(3):
        store.record("ann", f"q{number}", number, f"{number}")
    assert store.verify() == []
    store.close()
    with sqlite_module().connect(path) as connection:
        connection.executescript(f"DROP TRIGGER events_no_update; DROP TRIGGER events_no_delete; {statement}")
    connection.close()
    again = Store(path)
    faults = again.verify()
    again.close()
    return faults


def test_the_hash_chain_shows_every_edit(tmp_path: Path, ask: Ask) -> None:
    edits = {
        "UPDATE events SET body = replace(body, '\"answer\":1', '\"answer\":3') WHERE seq = 2": "event 2: does not match its hash",
        "UPDATE events SET labeler = 'bob' WHERE seq = 1": "event 1: does not match its hash",
        "UPDATE events SET time = '2001-01-01' WHERE seq = 3": "event 3: does not match its hash",
        "DELETE FROM events WHERE seq = 2": "event 2: missing from the log",
        "DELETE FROM events WHERE seq = 3": "question q2: the events and the assignments disagree whether ann has answered it",
        "UPDATE questions SET body = replace(body, 'good', 'evil') WHERE id = 'q1'": "event 2: question q1 was changed or removed",
        "DELETE FROM questions WHERE id = 'q0'": "event 1: question q0 was changed or removed",
        "UPDATE questions SET labels = 0 WHERE id = 'q0'": "question q0: its counters of labels and leases are wrong",
        "UPDATE questions SET disputed = 1 WHERE id = 'q0'": "question q0: whether its labels disagree is noted wrongly",
        "UPDATE tallies SET missing = 7": "round 0: its sums of labels and questions are wrong",
        TWICE: "question q0: ann has two answers that count",
    }
    for statement, expected in edits.items():
        assert any(fault.startswith(expected) for fault in damaged(tmp_path, ask, statement)), statement


@pytest.mark.parametrize("statement", ["UPDATE events SET body = ''", "DELETE FROM events"])
def test_events_are_append_only(store: Store, ask: Ask, statement: str) -> None:
    store.add_questions([ask(0)])
    store.record("ann", "q0", 0, "1")
    with pytest.raises(Exception, match="the table events is append-only"), store._database.write() as connection:
        connection.execute(text(statement))


def test_what_people_wait_for_is_found_by_an_index(tmp_path: Path, ask: Ask) -> None:
    """No query behind a page reads a whole table or sorts one, so that a million questions are no slower than a thousand."""
    store = Store(tmp_path / "labels.db", repeat_share=1.0)
    store.add_questions([ask(number, overlap=2) for number in range(9)], gold={"q0": 0})
    said: dict[str, Any] = {}

    def note(_c: object, _x: object, statement: str, parameters: Any, _e: object, many: bool) -> None:
        said.setdefault(statement, parameters[0] if many else parameters)

    sqlalchemy_event.listen(store._database.engine, "before_cursor_execute", note)
    for name in ("ann", "bob"):
        for number, lent in enumerate(store.held(name, 4)):
            store.record(name, lent.question.id, number % 2, f"{number}", comment="hm")
        store.held(name, 3)
        store.undo(name, "u")
        store.skip(name, store.held(name, 1)[0].question.id, "s", "why")
    store.adjudicate("eve", "q1", 0, "a")
    store.release("bob")
    for reads in (
        lambda: store.left("ann"), lambda: store.history("ann"), store.disputed, store.inbox, lambda: store.counts(0), store.cord,
        lambda: store.events(labeler="ann", kinds=("label", "undo"), after=1), lambda: store.events(question_id="q1", kinds=("label",)),
        lambda: store.events(kinds=("skip",)), lambda: store.assignment("ann", "q1"), store.current_instructions,
    ):  # fmt: skip
        reads()
    sqlalchemy_event.remove(store._database.engine, "before_cursor_execute", note)
    small = r"labelers|tallies|cord|instructions|anon_\d|questions USING (COVERING )?INDEX (disputed|gold|repeated)_questions"
    fits = re.compile(rf"SCAN ({small}|events USING INDEX remarks|events$)")
    with store._database.read() as connection:
        for statement, parameters in said.items():
            if not statement.startswith(("SELECT", "UPDATE")):
                continue
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            scans = [step for step in plan if step.startswith("SCAN") and not fits.match(step)]
            assert not scans, (statement, plan)
            if "SCAN events" in plan:  # from its end, and no further than one row
                assert "ORDER BY events.seq DESC" in statement
            if any("TEMP B-TREE" in step for step in plan):  # a labeler's leases or repeats, or one question's events
                assert re.search(r"assignments_by_labeler|events_by_question", str(plan)), (statement, plan)
    assert len(said) > 40
    store.close()


def test_postgresql_takes_the_same_ways(new_address: Callable[[], str], ask: Ask) -> None:
    store = Store(new_address())
    store.add_questions([ask(number, overlap=2) for number in range(300)], gold={"q0": 0})
    store.record_many("ann", [Answer(f"q{number}", 0, f"{number}") for number in range(200)])
    said: dict[str, Any] = {}

    def note(_c: object, _x: object, statement: str, parameters: Any, _e: object, many: bool) -> None:
        if statement.startswith("SELECT questions") or "FROM events" in statement or "count(*)" in statement:
            said.setdefault(statement, parameters[0] if many else parameters)

    sqlalchemy_event.listen(store._database.engine, "before_cursor_execute", note)
    store.held("ann", 2)
    store.left("ann")
    store.history("ann")
    store.inbox()
    store.undo("ann", "u")
    sqlalchemy_event.remove(store._database.engine, "before_cursor_execute", note)
    for analyzed in (False, True):
        with store._database.write() as connection:
            if analyzed:
                connection.exec_driver_sql("ANALYZE")
            for statement, parameters in said.items():
                plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
                assert not re.search("Seq Scan|Hash|Merge|Materialize|JIT", plan), plan
                assert "Sort Key" not in plan or "assignments_by_labeler" in plan, plan
    assert len(said) > 8
    store.close()


def test_journal_and_durability(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    with store._database.read() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    store.close()
    assert pragmas == ["wal" if sqlite_module().sqlite_version_info >= SAFE_WAL else "delete", 2]  # 2 is FULL


def test_an_old_library_takes_the_old_journal(tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "labels.db").close()
    monkeypatch.setattr("humanward.feedback.database.sqlite_module", lambda: sqlite3)
    monkeypatch.setattr("humanward.feedback.database.SAFE_WAL", (99, 0, 0))
    store = Store(tmp_path / "labels.db")
    store.add_questions([ask(0)])
    store.record("ann", "q0", 0, "1")
    with store._database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    store.close()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, ask: Ask) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_questions([ask(number) for number in range(200)])
    with store._database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    kept = []

    def fill() -> None:
        for number in range(200):
            kept.append(store.record("ann", f"q{number}", 0, f"{number}"))

    with pytest.raises(
        RunError, match=r"labels.db: the disk is full: more than (\d+) bytes needed, \1 bytes free; free some space and start again$"
    ):
        fill()
    with store._database.read() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.labels() == kept
    fill()
    assert len(store.labels()) == 200
    assert store.verify() == []
    store.close()


def test_addresses_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("this is not a database, whatever its name may say " * 100)
    for address, message in (
        (tmp_path / "none" / "labels.db", "the folder does not exist"),
        (tmp_path, "unable to open database file"),
        (tmp_path / "note.txt", "file is not a database"),
        ("://", "not a database address"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Store(address)
        assert "\n" not in str(caught.value)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "labels.db").close()
    with sqlite_module().connect(tmp_path / "labels.db") as connection:
        connection.execute("UPDATE about SET value = '3' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(UserError, match=r"labels.db: made by schema 3, this version reads 2: update humanward"):
        Store(tmp_path / "labels.db")
