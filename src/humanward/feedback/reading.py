"""What can be asked of a label store without changing it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select

from humanward.feedback import schema
from humanward.feedback.database import Database
from humanward.feedback.log import current, label_of, sha256
from humanward.feedback.queue import ANSWERED, Assignment, assignment_of, left, place_of, places_of, question_of
from humanward.feedback.snapshot import Snapshot
from humanward.feedback.verify import faults
from humanward.records import Label, Question

_BATCH = 500
_is_common = and_(schema.questions.c.gold.is_(None), schema.questions.c.only_for.is_(None))


@dataclass(frozen=True)
class Counts:
    """How far the labelling has come. Gold questions and repeats do not count."""

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


@dataclass(frozen=True)
class Event:
    """One line of the log: what somebody did with a question."""

    seq: int
    kind: str
    """label, skip, flag, comment, adjudicate, undo."""
    question_id: str
    labeler: str
    client_event_id: str
    target: int | None
    """Of an undo: the seq of what it took back."""
    body: dict[str, Any]
    time: str
    undone: bool
    """Taken back by a later undo."""


class Past(NamedTuple):
    """An event with its question as the labeler saw it."""

    event: Event
    assignment: Assignment


class Disputed(NamedTuple):
    """A question about which labels disagree."""

    question: Question
    labels: list[Label]
    adjudication: Label | None
    """The newest one."""


class LabelerRow(NamedTuple):
    """One label that counts now, as ``maths.labeler_quality`` and ``maths.agreement`` need it."""

    question_id: str
    labeler: str
    kind: str
    answer: Any
    permutation: tuple[int, ...]
    seconds: float | None
    lengths: tuple[int, ...]
    """Words of the prompt and of each response."""
    time: str
    gold: Any
    """The known answer, or None."""
    repeat_of: str | None
    seq: int


class Reader:
    """The questions that a label store answers. Each method sees one consistent state."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    # Questions

    def questions(self, round: int | None = None, split: str | None = None) -> list[Question]:
        """All questions, or those of one round or split, in the order in which they were added. Gold and repeats are left out."""
        table = schema.questions
        query = select(table.c.body).where(_is_common).order_by(table.c.position)
        if round is not None:
            query = query.where(table.c.round == round)
        if split is not None:
            query = query.where(table.c.split == split)
        with self._database.read(whole=True) as connection:
            return [question_of(body) for body in connection.scalars(query)]

    def gold(self) -> list[tuple[Question, Any]]:
        """The gold questions with their known answers."""
        table = schema.questions
        with self._database.read() as connection:
            rows = connection.execute(select(table.c.body, table.c.gold).where(schema.is_gold).order_by(table.c.position))
            return [(question_of(body), json.loads(gold)) for body, gold in rows]

    def assignment(self, labeler: str, question_id: str) -> Assignment | None:
        """What the labeler was shown for a question, in whatever state it is; None when they never got it."""
        with self._database.read() as connection:
            place = place_of(connection, labeler, question_id)
            return None if place.state is None else assignment_of(place, labeler)

    # Labels

    def labels(self, round: int | None = None) -> list[Label]:
        """The labels that count now, oldest first: no gold, no repeats, no adjudications."""
        query = current("label").where(_is_common)
        if round is not None:
            query = query.where(schema.questions.c.round == round)
        with self._database.read(whole=True) as connection:
            return [label_of(row) for row in connection.execute(query).mappings()]

    def adjudications(self, last_round: int | None = None) -> list[Label]:
        """The newest adjudication of each question that has one, oldest first."""
        with self._database.read() as connection:
            return _adjudications(connection, last_round)

    def each_label(self, round: int | None = None) -> Iterator[tuple[Question, Label]]:
        """The labels that count now with their questions, oldest first, one in memory at a time."""
        query = current("label", schema.questions.c.body.label("question")).where(_is_common)
        if round is not None:
            query = query.where(schema.questions.c.round == round)
        with self._database.read(whole=True) as connection:
            for row in connection.execution_options(yield_per=_BATCH).execute(query).mappings():
                yield question_of(row["question"]), label_of(row)

    def labels_by(self, labelers: Iterable[str]) -> dict[str, int]:
        """How many answers each of them has given that count now, gold and repeats too."""
        mine = schema.assignments
        names = list(labelers)
        query = select(mine.c.labeler, func.count()).where(mine.c.labeler.in_(names), mine.c.state == ANSWERED).group_by(mine.c.labeler)
        with self._database.read() as connection:
            return dict.fromkeys(names, 0) | dict(iter(connection.execute(query)))

    def rounds(self) -> list[int]:
        """The rounds that have questions, ascending."""
        with self._database.read() as connection:
            return list(connection.scalars(select(schema.tallies.c.round).where(schema.tallies.c.questions > 0).order_by("round")))

    def left(self, labeler: str, most: int = 1000) -> int:
        """How many questions there are for the labeler now, those they hold, gold and repeats too, counted to ``most``."""
        with self._database.read() as connection:
            return left(connection, labeler, most)

    def counts(self, round: int | None = None) -> Counts:
        """How many labels there are and how many are still to come, over all rounds or in one."""
        columns = [column for column in schema.tallies.c if not column.primary_key]
        query = select(*(func.coalesce(func.sum(column), 0) for column in columns))
        if round is not None:
            query = query.where(schema.tallies.c.round == round)
        with self._database.read() as connection:
            return Counts(*(int(number) for number in connection.execute(query).one()))

    def snapshot(self, last_round: int | None = None) -> Snapshot:
        """The current labels of all rounds up to ``last_round`` with their questions, frozen, in an order that tells no time.

        Gold and repeats are not in it. An adjudicated question also has its newest adjudication, which alone decides it.
        """
        table, view = schema.questions, schema.current_events
        labels = current("label").where(_is_common)
        asked = select(table.c.body).where(
            _is_common, table.c.id.in_(select(view.c.question_id).where(view.c.kind.in_(("label", "adjudicate"))))
        )
        if last_round is not None:
            asked, labels = asked.where(table.c.round <= last_round), labels.where(table.c.round <= last_round)
        with self._database.read(whole=True) as connection:
            questions = [question_of(body) for body in connection.scalars(asked)]
            found = [label_of(row) for row in connection.execute(labels).mappings()]
            return Snapshot.of(questions, [*found, *_adjudications(connection, last_round)])

    # Events

    def events(
        self,
        labeler: str | None = None,
        question_id: str | None = None,
        kinds: Sequence[str] | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[Event]:
        """The log from ``after`` on, oldest first, undone events too."""
        table = schema.events
        query = _events(table.c.seq > after).order_by(table.c.seq).limit(limit)
        for column, value in ((table.c.labeler, labeler), (table.c.question_id, question_id)):
            if value is not None:
                query = query.where(column == value)
        if kinds is not None:
            # careful: beside a labeler or a question the index of kinds would be the longer way, and SQLite takes it
            kind = table.c.kind if labeler is None and question_id is None else table.c.kind.concat("")
            query = query.where(kind.in_(kinds))
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    def history(self, labeler: str, before: int | None = None, limit: int = 50) -> list[Past]:
        """What the labeler did, newest first, with the questions; ``before``: only smaller seqs. An undo is seen at its target."""
        table = schema.events
        query = _events(table.c.labeler == labeler, table.c.kind != "undo").order_by(table.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.seq < before)
        with self._database.read() as connection:
            found = [_event(row) for row in connection.execute(query)]
            places = places_of(connection, labeler, {event.question_id for event in found})
            return [Past(event, assignment_of(places[event.question_id], labeler)) for event in found]

    def inbox(self, limit: int = 100) -> list[Event]:
        """Flags, comments, skips with a reason and labels with a comment that were not undone, newest first."""
        table, later = schema.events, schema.events.alias("later")
        query = _events(schema.has_remark, ~select(later.c.seq).where(later.c.target == table.c.seq).exists())
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query.order_by(table.c.seq.desc()).limit(limit))]

    def flags(self) -> list[dict[str, Any]]:
        """The flags that were not undone, oldest first: question_id, labeler, reason, time."""
        view = schema.current_events
        with self._database.read() as connection:
            rows = connection.execute(select(view).where(view.c.kind == "flag").order_by(view.c.seq)).mappings()
            return [{name: row[name] for name in ("question_id", "labeler", "time")} | json.loads(row["body"]) for row in rows]

    def disputed(self, limit: int = 100) -> list[Disputed]:
        """Questions with labels that disagree, the most recently labelled first."""
        table, view = schema.questions, schema.current_events
        query = select(table.c.id, table.c.body).where(schema.is_disputed, _is_common).order_by(table.c.disputed.desc()).limit(limit)
        with self._database.read() as connection:
            found = []
            for key, body in connection.execute(query).all():
                said = select(view).where(view.c.question_id == key, view.c.kind.in_(("label", "adjudicate"))).order_by(view.c.seq)
                labels = [label_of(row) for row in connection.execute(said).mappings()]
                last = next((label for label in reversed(labels) if label.adjudication), None)
                found.append(Disputed(question_of(body), [label for label in labels if not label.adjudication], last))
            return found

    def labeler_rows(self, labeler: str | None = None) -> list[LabelerRow]:
        """The labels that count now, of everybody or of one labeler, oldest first, gold and repeats too."""
        table = schema.questions
        query = current("label", table.c.words, table.c.gold, table.c.repeat_of)
        if labeler is not None:
            query = query.where(schema.current_events.c.labeler == labeler)
        with self._database.read(whole=True) as connection:
            return [_labeler_row(row) for row in connection.execute(query)]

    # Instructions and the cord

    @staticmethod
    def instructions_version(text: str) -> str:
        """The name of a text: 16 hex digits of its SHA-256."""
        return sha256(text)[:16]

    def instructions(self, version: str) -> str | None:
        """The text of a version."""
        table = schema.instructions
        with self._database.read() as connection:
            return connection.scalar(select(table.c.text).where(table.c.version == version).limit(1))

    def current_instructions(self) -> tuple[str, str] | None:
        """(version, text) of what holds now."""
        table = schema.instructions
        with self._database.read() as connection:
            row = connection.execute(select(table.c.version, table.c.text).order_by(table.c.seq.desc()).limit(1)).one_or_none()
            return (row.version, row.text) if row else None

    def verify(self) -> list[str]:
        """Recompute the hash chains and the state that follows from them; one line per fault, an empty list when all is well."""
        with self._database.read(whole=True) as connection:
            return list(faults(connection))


def _adjudications(connection: Connection, last_round: int | None) -> list[Label]:
    query = current("adjudicate").where(_is_common)
    if last_round is not None:
        query = query.where(schema.questions.c.round <= last_round)
    newest = {label.question_id: label for label in (label_of(row) for row in connection.execute(query).mappings())}
    return list(newest.values())


def _events(*conditions: ColumnElement[bool]) -> Select[Any]:
    table, later = schema.events, schema.events.alias("taken_back")
    undone = case((select(later.c.seq).where(later.c.target == table.c.seq).exists(), 1), else_=0).label("undone")
    return select(table, undone).where(*conditions)


def _event(row: Any) -> Event:
    return Event(
        row.seq, row.kind, row.question_id, row.labeler, row.client_event_id, row.target, json.loads(row.body), row.time, bool(row.undone)
    )


def _labeler_row(row: Any) -> LabelerRow:
    body = json.loads(row.body)
    gold = None if row.gold is None else json.loads(row.gold)
    return LabelerRow(
        row.question_id, row.labeler, body["kind"], body["answer"], tuple(body["permutation"]), body["seconds"],
        tuple(json.loads(row.words)), row.time, gold, row.repeat_of, row.seq,
    )  # fmt: skip
