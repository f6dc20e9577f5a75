"""The label store: a queue of questions with leases, and an append-only, hash-chained log of what labelers did."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, Executable, Row, and_, bindparam, func, insert, or_, select, update

from humanward.errors import UserError
from humanward.feedback import schema
from humanward.feedback.database import Database
from humanward.feedback.kinds import kind_of
from humanward.feedback.log import Log, canonical, current_labels, faults, label_of, sha256
from humanward.feedback.snapshot import Snapshot
from humanward.records import Label, Question, content_id

LEASE_SECONDS = 600.0
_Row = Row[*tuple[Any, ...]]
_CHUNK = 500
_ANSWERED, _FREE, _LEASED, _SKIPPED = "answered", "free", "leased", "skipped"


@dataclass(frozen=True)
class Assignment:
    """A question lent to one labeler until the lease expires."""

    question: Question
    labeler: str
    permutation: tuple[int, ...]
    """permutation[i] is the index in ``question.responses`` of the response to show in place i. The same whenever the labeler sees it."""
    attempt: int = 0
    """How often the labeler has undone an answer to it."""

    def unpermute(self, answer: Any) -> Any:
        """An answer about the responses as shown -> the answer in the order of the question, which is what ``Store.record`` takes."""
        return kind_of(self.question).unpermute(kind_of(self.question).check_answer(self.question, answer), self.permutation)


class Answer(NamedTuple):
    """One answer for ``Store.record_many``; the fields of ``Store.record``."""

    question_id: str
    answer: Any
    client_event_id: str
    seconds: float | None = None
    confidence: float | None = None
    comment: str = ""


@dataclass(frozen=True)
class Counts:
    """How far the labelling has come."""

    questions: int
    wanted: int
    """Labels asked for: the overlaps of all questions, summed."""
    labels: int
    """Labels that count now."""
    missing: int
    """Labels still to come: what each question lacks of its overlap, summed."""
    leased: int
    """Leases that are out, live or not yet noticed as expired."""
    skipped: int
    flagged: int


class Store:
    """Questions, leases and labels in one SQL database.

    Every method is one short transaction, and what it returned is on disk. Threads and processes may share one database. A labeler never
    gets a question again that they answered or skipped, and a question is never out to more labelers than its overlap says. An answer
    that comes after its lease has expired is kept even where somebody else has answered meanwhile: work that was done is not thrown away.
    """

    def __init__(self, address: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        """address: a file (made when it is not there) or a database URL. clock: seconds since 1970."""
        self._database = Database(address)
        self._clock = clock

    @classmethod
    def in_memory(cls, *, clock: Callable[[], float] = time.time) -> Self:
        """A store that dies with the process."""
        return cls(":memory:", clock=clock)

    def close(self) -> None:
        self._database.close()

    # Questions

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Put questions at the end of the queue and return how many were new. A question that is there already is passed over.

        Raises:
            UserError: a question does not fit its kind, or its id belongs to another question. Nothing is added then.
        """
        rows: dict[str, dict[str, Any]] = {}
        for question in questions:
            kind_of(question).check_question(question)
            row = {
                "id": question.id, "round": question.round, "split": question.split, "overlap": question.overlap, "leases": 0, "labels": 0,
                "body": canonical(question.to_json()),
            }  # fmt: skip
            _same_question(rows.setdefault(question.id, row), row["body"])
        table = schema.questions
        with self._database.write() as connection:
            for ids in _chunks(list(rows)):
                for known in connection.execute(select(table.c.id, table.c.body).where(table.c.id.in_(ids))):
                    _same_question({"id": known.id, "body": known.body}, rows.pop(known.id)["body"])
            last = connection.scalar(select(func.max(table.c.position))) or 0
            for position, row in enumerate(rows.values(), start=last + 1):
                row["position"] = position
            if rows:
                connection.execute(insert(table), list(rows.values()))
        return len(rows)

    def questions(self, round: int | None = None, split: str | None = None) -> list[Question]:
        """All questions, or those of one round or split, in the order in which they were added."""
        table = schema.questions
        query = select(table.c.body).order_by(table.c.position)
        if round is not None:
            query = query.where(table.c.round == round)
        if split is not None:
            query = query.where(table.c.split == split)
        with self._database.read() as connection:
            return [_question(body) for body in connection.scalars(query)]

    # Leases

    def lease(self, labeler: str, seconds: float = LEASE_SECONDS) -> Assignment | None:
        """Lend the next question to a labeler; None when there is none for them now."""
        return next(iter(self.lease_many(labeler, 1, seconds)), None)

    def lease_many(self, labeler: str, limit: int, seconds: float = LEASE_SECONDS) -> list[Assignment]:
        """Lend up to ``limit`` questions at once."""
        names, expires = schema.labelers, self._clock() + seconds
        with self._database.write() as connection:
            self._expire(connection)
            cursor = connection.scalar(select(names.c.cursor).where(names.c.name == labeler))
            if cursor is None:
                connection.execute(insert(names), {"name": labeler, "cursor": 0})
            rows = connection.execute(_NEXT, {"labeler": labeler, "cursor": cursor or 0, "limit": limit}).all()
            last = rows[-1].position if len(rows) == limit else connection.scalar(_LAST_POSITION) or 0
            connection.execute(update(names).where(names.c.name == labeler).values(cursor=last + 1))
            assignments = [_assignment(row, labeler) for row in rows]
            fresh, again = [], []
            for row, made in zip(rows, assignments, strict=True):
                (fresh if row.state is None else again).append(_row_of(made, _LEASED, expires))
            _execute_many(connection, insert(schema.assignments), fresh)
            _execute_many(connection, _SET_ASSIGNMENT, [_keyed(row) for row in again])
            _execute_many(connection, _ADD_COUNTS, [{"key": row.id, "more_leases": 1, "more_labels": 0} for row in rows])
            return assignments

    def release(self, labeler: str) -> int:
        """Give back every question that the labeler holds, without an answer; returns how many."""
        with self._database.write() as connection:
            return self._free(connection, connection.execute(_HELD, {"labeler": labeler}).all())

    def assignment(self, labeler: str, question_id: str) -> Assignment | None:
        """What the labeler was shown for a question, in whatever state it is; None when they never got it."""
        with self._database.read() as connection:
            place = _place(connection, labeler, question_id)
            return None if place.state is None else _assignment(place, labeler)

    # Events

    def record(
        self,
        labeler: str,
        question_id: str,
        answer: Any,
        client_event_id: str,
        seconds: float | None = None,
        confidence: float | None = None,
        comment: str = "",
    ) -> Label:
        """Keep one answer, given in the order of ``question.responses``. The same client_event_id is answered with the same label.

        Raises:
            UserError: no such question, an answer that does not fit the kind, a question that the labeler already answered or skipped, or a
                client_event_id that the labeler used for something else.
        """
        return self.record_many(labeler, [Answer(question_id, answer, client_event_id, seconds, confidence, comment)])[0]

    def record_many(self, labeler: str, answers: Sequence[Answer]) -> list[Label]:
        """Keep several answers in one transaction: all of them or none."""
        with self._database.write() as connection:
            log = Log(connection, self._clock)
            return [self._record(log, labeler, answer) for answer in answers]

    def skip(self, labeler: str, question_id: str, client_event_id: str, reason: str = "") -> None:
        """Hand the question to others and never show it to this labeler again, unless they undo the skip."""
        with self._database.write() as connection:
            log = Log(connection, self._clock)
            if log.known(labeler, client_event_id, "skip", question_id) is None:
                self._settle(connection, labeler, _place(connection, labeler, question_id), _SKIPPED)
                log.append("skip", question_id, labeler, client_event_id, {"reason": reason})

    def flag(self, labeler: str, question_id: str, client_event_id: str, reason: str = "") -> None:
        """Tell the researcher that something is wrong with a question. It stays where it is: flagging is neither an answer nor a skip."""
        with self._database.write() as connection:
            _place(connection, labeler, question_id)
            log = Log(connection, self._clock)
            if log.known(labeler, client_event_id, "flag", question_id) is None:
                log.append("flag", question_id, labeler, client_event_id, {"reason": reason})

    def undo(self, labeler: str, client_event_id: str, seconds: float = LEASE_SECONDS) -> Assignment | None:
        """Take back the labeler's newest label, skip or flag that still counts, and lend them the question again.

        Returns the assignment, or None when there is nothing to take back. After the undo of a skip the lease is new only if the question
        still wants answers. The log keeps both the event and its undo.
        """
        view = schema.current_events
        with self._database.write() as connection:
            log = Log(connection, self._clock)
            done = log.known(labeler, client_event_id, "undo", None)
            if done is None:
                newest = select(view).where(view.c.labeler == labeler, view.c.kind != "undo").order_by(view.c.seq.desc()).limit(1)
                target = connection.execute(newest).one_or_none()
                if target is None:
                    return None
                self._expire(connection)
                if target.kind != "flag":
                    self._reopen(connection, labeler, target, seconds)
                done = log.append("undo", target.question_id, labeler, client_event_id, {"kind": target.kind}, target=target.seq)
            return _assignment(_place(connection, labeler, done["question_id"]), labeler)

    # Reading

    def labels(self, round: int | None = None) -> list[Label]:
        """The labels that count now, oldest first."""
        with self._database.read() as connection:
            query = current_labels()
            if round is not None:
                query = query.where(schema.questions.c.round == round)
            return [label_of(row) for row in connection.execute(query).mappings()]

    def flags(self) -> list[dict[str, Any]]:
        """The flags that were not undone, oldest first: question_id, labeler, reason, time."""
        view = schema.current_events
        with self._database.read() as connection:
            rows = connection.execute(select(view).where(view.c.kind == "flag").order_by(view.c.seq)).mappings()
            return [{name: row[name] for name in ("question_id", "labeler", "time")} | json.loads(row["body"]) for row in rows]

    def counts(self, round: int | None = None) -> Counts:
        """How many labels there are and how many are still to come, over all rounds or in one."""
        table, view = schema.questions, schema.current_events
        lacking = func.max(table.c.overlap - table.c.labels, 0)
        if self._database.engine.dialect.name == "postgresql":
            lacking = func.greatest(table.c.overlap - table.c.labels, 0)
        sums = [func.coalesce(func.sum(c), 0) for c in (table.c.overlap, table.c.labels, lacking, table.c.leases)]
        of_round = select(func.count(), *sums)
        other = select(view.c.kind, func.count()).where(view.c.kind.in_(("skip", "flag"))).group_by(view.c.kind)
        if round is not None:
            of_round = of_round.where(table.c.round == round)
            other = other.join_from(view, table, table.c.id == view.c.question_id).where(table.c.round == round)
        with self._database.read() as connection:
            totals = connection.execute(of_round.select_from(table)).one()
            marks = dict(iter(connection.execute(other)))
        return Counts(*totals, skipped=marks.get("skip", 0), flagged=marks.get("flag", 0))

    def labels_by(self, labelers: Iterable[str]) -> dict[str, int]:
        """How many labels each of them has that count now."""
        mine = schema.assignments
        names = list(labelers)
        query = select(mine.c.labeler, func.count()).where(mine.c.labeler.in_(names), mine.c.state == _ANSWERED).group_by(mine.c.labeler)
        with self._database.read() as connection:
            return dict.fromkeys(names, 0) | dict(iter(connection.execute(query)))

    def snapshot(self, last_round: int | None = None) -> Snapshot:
        """The current labels of all rounds up to ``last_round`` with their questions, frozen, in an order that tells no time."""
        table = schema.questions
        asked = select(table.c.body)
        labels = current_labels()
        if last_round is not None:
            asked, labels = asked.where(table.c.round <= last_round), labels.where(table.c.round <= last_round)
        with self._database.read() as connection:
            questions = [_question(body) for body in connection.scalars(asked)]
            return Snapshot.of(questions, [label_of(row) for row in connection.execute(labels).mappings()])

    def verify(self) -> list[str]:
        """Recompute the hash chain and the state that follows from it; one line per fault, an empty list when all is well."""
        with self._database.read() as connection:
            return faults(connection)

    # Inside a transaction

    def _expire(self, connection: Connection) -> None:
        self._free(connection, connection.execute(_EXPIRED, {"now": self._clock()}).all())

    def _free(self, connection: Connection, held: Sequence[_Row]) -> int:
        keys = [{"the_question": row.question_id, "the_labeler": row.labeler, "new_state": _FREE} for row in held]
        _execute_many(connection, _SET_STATE, keys)
        _execute_many(connection, _ADD_COUNTS, [{"key": row.question_id, "more_leases": -1, "more_labels": 0} for row in held])
        _look_back(connection, [row.question_id for row in held])
        return len(held)

    def _record(self, log: Log, labeler: str, answer: Answer) -> Label:
        row = log.known(labeler, answer.client_event_id, "label", answer.question_id)
        if row is None:
            place = _place(log.connection, labeler, answer.question_id)
            question = _question(place.body)
            stored = kind_of(question).check_answer(question, answer.answer)
            permutation = self._settle(log.connection, labeler, place, _ANSWERED)
            body = {
                "kind": question.kind, "answer": stored, "permutation": permutation, "seconds": answer.seconds,
                "confidence": answer.confidence, "comment": answer.comment, "question": sha256(place.body),
            }  # fmt: skip
            row = log.append("label", answer.question_id, labeler, answer.client_event_id, body)
        return label_of(row)

    def _settle(self, connection: Connection, labeler: str, place: _Row, state: str) -> tuple[int, ...]:
        """Turn a lease (live, expired or never taken) into an answer or a skip and return the permutation that was shown."""
        if place.state in (_ANSWERED, _SKIPPED):
            raise UserError(f"question {place.id}: {labeler} has already {place.state} it; undo that first")
        if place.state is None:
            question = _question(place.body)
            shown = Assignment(question, labeler, tuple(range(len(question.responses))))
            connection.execute(insert(schema.assignments), _row_of(shown, state, 0.0))
        else:
            shown = _assignment(place, labeler)
            connection.execute(_SET_STATE, {"the_question": place.id, "the_labeler": labeler, "new_state": state})
        leased = place.state == _LEASED
        connection.execute(_ADD_COUNTS, {"key": place.id, "more_leases": -leased, "more_labels": int(state == _ANSWERED)})
        if leased and state == _SKIPPED:
            _look_back(connection, [place.id])
        return shown.permutation

    def _reopen(self, connection: Connection, labeler: str, target: _Row, seconds: float) -> None:
        place = _place(connection, labeler, target.question_id)
        answered = target.kind == "label"
        state = _LEASED if place.labels + place.leases - answered < place.overlap else _FREE
        row = _row_of(_assignment(place, labeler), state, self._clock() + seconds)
        connection.execute(_SET_ASSIGNMENT, _keyed(row | {"attempt": place.attempt + 1}))
        connection.execute(_ADD_COUNTS, {"key": place.id, "more_leases": int(state == _LEASED), "more_labels": -answered})
        _look_back(connection, [place.id])


# Statements are built once: building one costs SQLAlchemy more than SQLite takes to run it.

_asked, _mine = schema.questions, schema.assignments
_of_labeler = and_(_mine.c.question_id == _asked.c.id, _mine.c.labeler == bindparam("labeler"))
_PLACE = select(_asked, _mine.c.permutation, _mine.c.state, _mine.c.attempt).select_from(_asked.outerjoin(_mine, _of_labeler))
_PLACE_OF = _PLACE.where(_asked.c.id == bindparam("question"))
_NEXT = (
    _PLACE.where(_asked.c.is_open == 1, _asked.c.position >= bindparam("cursor"), or_(_mine.c.state.is_(None), _mine.c.state == _FREE))
    .order_by(_asked.c.position)
    .limit(bindparam("limit"))
)
_LAST_POSITION = select(func.max(_asked.c.position))
_EXPIRED = select(_mine.c.question_id, _mine.c.labeler).where(schema.is_leased, _mine.c.expires <= bindparam("now"))
_HELD = select(_mine.c.question_id, _mine.c.labeler).where(_mine.c.labeler == bindparam("labeler"), _mine.c.state == _LEASED)
_this = update(_mine).where(_mine.c.question_id == bindparam("the_question"), _mine.c.labeler == bindparam("the_labeler"))
_SET_STATE = _this.values(state=bindparam("new_state"))
_SET_ASSIGNMENT = _this.values({name: bindparam(f"new_{name}") for name in ("state", "expires", "attempt")})
_ADD_COUNTS = (
    update(_asked)
    .where(_asked.c.id == bindparam("key"))
    .values(leases=_asked.c.leases + bindparam("more_leases"), labels=_asked.c.labels + bindparam("more_labels"))
)


def _execute_many(connection: Connection, statement: Executable, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _place(connection: Connection, labeler: str, question_id: str) -> _Row:
    """A question with the labeler's assignment to it, whose columns are None where they have none."""
    row = connection.execute(_PLACE_OF, {"labeler": labeler, "question": question_id}).one_or_none()
    if row is None:
        raise UserError(f"question {question_id}: there is no such question in this store")
    return row


def _assignment(place: _Row, labeler: str) -> Assignment:
    question = _question(place.body)
    if place.state is None:
        return Assignment(question, labeler, _permutation(question, labeler))
    return Assignment(question, labeler, tuple(json.loads(place.permutation)), place.attempt)


def _row_of(assignment: Assignment, state: str, expires: float) -> dict[str, Any]:
    return {
        "question_id": assignment.question.id, "labeler": assignment.labeler, "permutation": json.dumps(assignment.permutation),
        "state": state, "expires": expires, "attempt": assignment.attempt,
    }  # fmt: skip


def _keyed(row: dict[str, Any]) -> dict[str, Any]:
    """The parameters of ``_SET_ASSIGNMENT``; the permutation never changes."""
    new = {f"new_{name}": row[name] for name in ("state", "expires", "attempt")}
    return {"the_question": row["question_id"], "the_labeler": row["labeler"], **new}


def _permutation(question: Question, labeler: str) -> tuple[int, ...]:
    """A random order that depends on nothing but who is asked what, so that a repeated run shows, and stores, the same."""
    return tuple(sorted(range(len(question.responses)), key=lambda index: content_id("order", question.id, labeler, index)))


def _look_back(connection: Connection, question_ids: Sequence[str]) -> None:
    """These questions may be open again: every labeler whose cursor has passed them looks there once more."""
    table, names = schema.questions, schema.labelers
    for ids in _chunks(list(question_ids)):
        first = connection.scalar(select(func.min(table.c.position)).where(table.c.id.in_(ids)))
        connection.execute(update(names).where(names.c.cursor > first).values(cursor=first))


def _same_question(known: dict[str, Any], body: str) -> None:
    if known["body"] != body:
        raise UserError(f"question {known['id']}: another question has this id; give every question its own")


def _question(body: str) -> Question:
    obj = json.loads(body)
    return Question.from_json(obj, f"question {obj.get('id')}")


def _chunks(items: list[str]) -> Iterator[list[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
