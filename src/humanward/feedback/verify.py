"""Checking a label store: the hash chains, and the state that follows from the events. One row in memory at a time."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, case, func, literal, or_, select
from sqlalchemy.sql import exists

from humanward.feedback import schema
from humanward.feedback.kinds import kind_of
from humanward.feedback.log import HASHED, chained, sha256
from humanward.feedback.people import AUDITED
from humanward.feedback.queue import ANSWERED, LEASED, SKIPPED, question_of

_BATCH = 500


def faults(connection: Connection) -> Iterator[str]:
    """One line per fault: a broken chain, a question that changed after it was answered, a state that does not follow from the events."""
    yield from _chain_faults(connection)
    yield from _audit_faults(connection)
    yield from _assignment_faults(connection)
    yield from _counter_faults(connection)
    yield from _answer_faults(connection)


def _rows(connection: Connection, query: Select[*tuple[Any, ...]]) -> Iterator[Row[*tuple[Any, ...]]]:
    return iter(connection.execution_options(yield_per=_BATCH).execute(query))


def _chain_faults(connection: Connection) -> Iterator[str]:
    events, table = schema.events, schema.questions
    query = select(events, table.c.body.label("question")).outerjoin(table, table.c.id == events.c.question_id).order_by(events.c.seq)
    previous, seq = "", 0
    for row in _rows(connection, query):
        values = row._mapping
        seq += 1
        if row.seq != seq:
            yield f"event {seq}: missing from the log"
            seq = row.seq
        elif chained(previous, values, HASHED) != row.hash:
            yield f"event {seq}: does not match its hash: it or the event before it was changed after it was written"
        previous = row.hash
        if row.kind in ("label", "adjudicate") and json.loads(row.body)["question"] != (row.question and sha256(row.question)):
            yield f"event {seq}: question {row.question_id} was changed or removed after it was answered"


def _audit_faults(connection: Connection) -> Iterator[str]:
    previous, seq = "", 0
    for row in _rows(connection, select(schema.audit).order_by(schema.audit.c.seq)):
        seq += 1
        if row.seq != seq or chained(previous, row._mapping, AUDITED) != row.hash:
            yield f"audit {seq}: it or the line before it was changed or removed after it was written"
            seq = row.seq
        previous = row.hash


def _assignment_faults(connection: Connection) -> Iterator[str]:
    mine, view = schema.assignments, schema.current_events
    same = and_(view.c.question_id == mine.c.question_id, view.c.labeler == mine.c.labeler)
    kinds = {"label": ANSWERED, "skip": SKIPPED}
    state_of = case(*((view.c.kind == kind, state) for kind, state in kinds.items()))
    settled = mine.c.state.in_(kinds.values())
    unsaid = select(mine.c.question_id, mine.c.labeler, mine.c.state).where(
        settled, ~exists(select(literal(1)).select_from(view).where(same, state_of == mine.c.state))
    )
    unnoted = select(view.c.question_id, view.c.labeler, state_of).where(
        view.c.kind.in_(kinds), ~exists(select(literal(1)).select_from(mine).where(same, state_of == mine.c.state))
    )
    for query in (unsaid, unnoted):
        for question, labeler, state in _rows(connection, query):
            yield f"question {question}: the events and the assignments disagree whether {labeler} has {state} it"


def _counter_faults(connection: Connection) -> Iterator[str]:
    table, mine, tally = schema.questions, schema.assignments, schema.tallies
    times_in = {state: func.coalesce(func.sum(case((mine.c.state == state, 1), else_=0)), 0) for state in (ANSWERED, LEASED)}
    counted = select(table.c.id).outerjoin(mine, mine.c.question_id == table.c.id).group_by(table.c.id, table.c.labels, table.c.leases)
    wrong = or_(table.c.labels != times_in[ANSWERED], table.c.leases != times_in[LEASED])
    for (question,) in _rows(connection, counted.having(wrong)):
        yield f"question {question}: its counters of labels and leases are wrong"
    common, view = and_(table.c.gold.is_(None), table.c.only_for.is_(None)), schema.current_events
    lacking = case((table.c.overlap > table.c.labels, table.c.overlap - table.c.labels), else_=0)
    sums = [func.sum(column) for column in (table.c.overlap, table.c.labels, lacking, table.c.leases)]
    of_rounds = select(table.c.round, func.count(), *sums).where(common).group_by(table.c.round)
    found: dict[int, list[int]] = defaultdict(lambda: [0] * 7)
    for row in connection.execute(of_rounds):
        found[row[0]][:5] = row[1:]
    marks = (
        select(table.c.round, view.c.kind, func.count())
        .join_from(view, table, table.c.id == view.c.question_id)
        .where(common, view.c.kind.in_(("skip", "flag")))
        .group_by(table.c.round, view.c.kind)
    )
    for number, kind, times in connection.execute(marks):
        found[number][5 if kind == "skip" else 6] = times
    noted = {row[0]: list(row[1:]) for row in connection.execute(select(tally))}
    for number in sorted(found.keys() | noted.keys()):
        if found[number] != noted.get(number, [0] * 7):
            yield f"round {number}: its sums of labels and questions are wrong"


def _answer_faults(connection: Connection) -> Iterator[str]:
    """Two answers of one labeler that count, and disputes. In the order of an index: SQLite may sort in memory."""
    table, view = schema.questions, schema.current_events
    several = or_(table.c.labels > 1, table.c.disputed.is_not(None))
    common = and_(table.c.gold.is_(None), table.c.only_for.is_(None))
    query = (
        select(view.c.question_id, view.c.labeler, view.c.kind, view.c.seq, view.c.body, table.c.disputed)
        .add_columns(case((and_(several, common), table.c.body)).label("question"))
        .join_from(view, table, view.c.question_id == table.c.id)
        .where(view.c.kind.concat("").in_(("label", "skip")))  # careful: the index of kinds would have to be sorted
        .order_by(view.c.question_id, view.c.seq)
    )
    for question_id, group in groupby(_rows(connection, query), key=lambda row: row.question_id):
        answers = list(group)
        for labeler, times in Counter(row.labeler for row in answers).items():
            if times > 1:
                yield f"question {question_id}: {labeler} has two answers that count"
        labels = [row for row in answers if row.kind == "label"]
        if answers[0].question is not None:
            said = [json.loads(row.body)["answer"] for row in labels]
            disagree = len(said) > 1 and kind_of(question_of(answers[0].question)).disagree(said)
            if answers[0].disputed != (labels[-1].seq if disagree else None):
                yield f"question {question_id}: whether its labels disagree is noted wrongly"
