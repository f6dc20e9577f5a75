"""Checking a label store: the hash chains, and the state that follows from the events. One row in memory at a time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
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
    yield from _dispute_faults(connection)


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
    twice = select(view.c.question_id, view.c.labeler).where(view.c.kind.in_(kinds)).group_by(view.c.question_id, view.c.labeler)
    for question, labeler in _rows(connection, twice.having(func.count() > 1)):
        yield f"question {question}: {labeler} has two answers that count"


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


def _dispute_faults(connection: Connection) -> Iterator[str]:
    table, view = schema.questions, schema.current_events
    common = and_(table.c.gold.is_(None), table.c.only_for.is_(None))
    query = (
        select(table.c.id, table.c.disputed, table.c.body, view.c.seq, view.c.body.label("label"))
        .join_from(table, view, and_(view.c.question_id == table.c.id, view.c.kind == "label"))
        .where(common, or_(table.c.labels > 1, table.c.disputed.is_not(None)))
        .order_by(table.c.id, view.c.seq)
    )
    last, labels = None, []
    for row in _rows(connection, query):
        if last is not None and row.id != last.id:
            yield from _misjudged(last, labels)
            labels = []
        last = row
        labels.append((row.seq, json.loads(row.label)["answer"]))
    if last is not None:
        yield from _misjudged(last, labels)


def _misjudged(question: Row[*tuple[Any, ...]], labels: list[tuple[int, object]]) -> Iterator[str]:
    disagree = len(labels) > 1 and kind_of(question_of(question.body)).disagree([answer for _, answer in labels])
    if question.disputed != (labels[-1][0] if disagree else None):
        yield f"question {question.id}: whether its labels disagree is noted wrongly"
