"""Reading a label store from end to end in short transactions: nobody waits, and what is added meanwhile is not in it.

Questions and events are only ever added, so everything up to the last event at the start is one consistent state, however many
transactions read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from sqlalchemy import ColumnElement, Select, and_, func, select

from humanward.feedback import schema
from humanward.feedback.store import Store
from humanward.records import Label, Prompt, Question, Response

PAGE = 500

_events, _asked = schema.events, schema.questions
_later = schema.events.alias("taken_back")
_is_common = and_(_asked.c.gold.is_(None), _asked.c.only_for.is_(None))


@dataclass(frozen=True)
class Part:
    """Which questions are meant; None: all."""

    round: int | None = None
    split: str | None = None

    def of(self, query: Select[Any]) -> Select[Any]:
        """The query, kept to these questions."""
        for column, value in ((_asked.c.round, self.round), (_asked.c.split, self.split)):
            query = query if value is None else query.where(column == value)
        return query


def last_event(store: Store) -> int:
    """The seq of the newest event, 0 where there is none."""
    with store._database.read() as connection:
        return connection.scalar(select(func.max(_events.c.seq))) or 0


def each_label(store: Store, part: Part, *, training: bool) -> Iterator[tuple[Question, Label]]:
    """The labels that count now with their questions, oldest first; gold questions and repeats are left out.

    The ``id`` of a label is its client_event_id, which is what an import takes.

    Args:
        store: the label store.
        part: which questions.
        training: what a loss would see: an adjudicated question has its newest adjudication instead of its labels.
    """
    last = last_event(store)
    decided = _adjudicated(store, last)
    query = part.of(_current(last, "label", "adjudicate").where(_is_common))
    for row in _pages(store, query, _events.c.seq):
        newest = decided.get(row.question_id)
        outdated = newest is not None and row.seq != newest and (training or row.kind == "adjudicate")
        if not outdated:
            yield _question(_parsed(row.question)), _label(row)


def label_count(store: Store, part: Part) -> int:
    """About how many labels ``each_label`` gives, for a progress bar."""
    with store._database.read() as connection:
        return connection.scalar(part.of(select(func.coalesce(func.sum(_asked.c.labels), 0)).where(_is_common))) or 0


def left_out(store: Store, part: Part) -> int:
    """How many answers to gold questions and repeats ``each_label`` leaves out."""
    with store._database.read() as connection:
        return connection.scalar(part.of(select(func.coalesce(func.sum(_asked.c.labels), 0)).where(~_is_common))) or 0


def most_responses(store: Store, part: Part) -> int:
    """The most responses that a question has; 1 at least."""
    table = _asked
    with store._database.read() as connection:
        # `words` is a list of numbers, the prompt's first: [64,24,24] has as many commas as there are responses
        commas = func.length(table.c.words) - func.length(func.replace(table.c.words, ",", ""))
        return connection.scalar(part.of(select(func.max(commas)).where(_is_common))) or 1


def names(store: Store) -> dict[str, str]:
    """The display names of those who have one, by pseudonym."""
    with store._database.read() as connection:
        people = schema.people
        return dict(connection.execute(select(people.c.id, people.c.name).where(people.c.name != "")).all())


def each_event(store: Store, part: Part, last: int) -> Iterator[Any]:
    """Every event up to ``last``, oldest first, undone ones too; ``undoes``: the client_event_id of what an undo takes back."""
    target = schema.events.alias("target")
    query = (
        select(_events, target.c.client_event_id.label("undoes"))
        .join(_asked, _asked.c.id == _events.c.question_id)
        .outerjoin(target, target.c.seq == _events.c.target)
        .where(_events.c.seq <= last)
    )
    yield from _pages(store, part.of(query), _events.c.seq)


def each_question(store: Store, part: Part) -> Iterator[Any]:
    """Every question in the order in which they are served; repeats with the order in which they are to be shown."""
    mine = schema.assignments
    shown = and_(mine.c.question_id == _asked.c.id, mine.c.labeler == _asked.c.only_for)
    query = select(_asked, mine.c.permutation).outerjoin(mine, shown)
    yield from _pages(store, part.of(query), _asked.c.position)


def each_instruction(store: Store) -> list[Any]:
    """Every text of instructions in the order in which they came."""
    with store._database.read() as connection:
        return list(connection.execute(select(schema.instructions).order_by(schema.instructions.c.seq)))


def _current(last: int, *kinds: str) -> Select[Any]:
    # careful: with a plain list of kinds SQLite reads the index of kinds and sorts all of it again for every page.
    kind = _events.c.kind.concat("")
    undone = select(_later.c.seq).where(_later.c.target == _events.c.seq, _later.c.seq <= last).exists()
    return (
        select(_events, _asked.c.body.label("question"))
        .join(_asked, _asked.c.id == _events.c.question_id)
        .where(kind.in_(kinds), _events.c.seq <= last, ~undone)
    )


def _adjudicated(store: Store, last: int) -> dict[str, int]:
    """The seq of the newest adjudication of each question that has one."""
    query = select(_events.c.question_id, func.max(_events.c.seq)).where(_events.c.kind == "adjudicate", _events.c.seq <= last)
    with store._database.read() as connection:
        return dict(connection.execute(query.group_by(_events.c.question_id)).all())


def _pages(store: Store, query: Select[Any], key: ColumnElement[int]) -> Iterator[Any]:
    """The rows of a query in the order of a key that is larger than 0, a page of them in each transaction."""
    query, after = query.order_by(key).limit(PAGE), 0
    while True:
        with store._database.read() as connection:
            rows = connection.execute(query.where(key > after)).all()
        yield from rows
        if len(rows) < PAGE:
            return
        after = rows[-1]._mapping[key]


def _parsed(text: str) -> Any:
    """JSON out of the store. Most of an export is this, and pydantic's parser takes two thirds of the time."""
    try:
        return from_json(text, cache_strings="none")
    except ValueError:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.loads(text)


def _question(obj: dict[str, Any]) -> Question:
    """A question out of the store, which was checked on its way in."""
    prompt = obj["prompt"]
    responses = tuple(
        Response(r["text"], tuple(r["tokens"]), r["source"], r["policy"], r["tokenizer"], r["sampling"]) for r in obj["responses"]
    )
    return Question(
        obj["id"], Prompt(prompt["id"], prompt["text"], tuple(prompt["tokens"]), prompt["metadata"]), responses, obj["kind"],
        obj["round"], obj["split"], obj["overlap"], obj["instructions"], obj.get("propensity", 1.0),
    )  # fmt: skip


def _label(row: Any) -> Label:
    body = _parsed(row.body)
    return Label(
        row.client_event_id, row.question_id, row.labeler, body["kind"], body["answer"], tuple(body["permutation"]), body["seconds"],
        body["confidence"], body["comment"], row.time, body.get("instructions", ""), row.kind == "adjudicate",
    )  # fmt: skip
