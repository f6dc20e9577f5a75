"""The append-only event log: writing to the hash chain, reading labels out of it, and checking that nobody has touched it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, insert, select

from humanward.errors import UserError
from humanward.feedback import schema
from humanward.records import Label, content_id

_HASHED = ("seq", "kind", "question_id", "labeler", "client_event_id", "target", "body", "time")

_events = schema.events
_LAST = select(_events.c.seq, _events.c.hash).order_by(_events.c.seq.desc()).limit(1)
_KNOWN = select(_events).where(_events.c.labeler == bindparam("the_labeler"), _events.c.client_event_id == bindparam("the_id"))


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str) -> str:
    """64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def chained(previous: str, values: Mapping[Any, Any]) -> str:
    """The hash of an event: SHA-256 of the previous event's hash and everything that the event says."""
    return sha256(previous + canonical([values[name] for name in _HASHED]))


class Log:
    """Appends to the hash chain within one transaction."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self.connection, self._clock = connection, clock
        last = connection.execute(_LAST).one_or_none()
        self._seq, self._hash = (last.seq, last.hash) if last else (0, "")

    def known(self, labeler: str, client_event_id: str, kind: str, question_id: str | None) -> Mapping[Any, Any] | None:
        """The event that was recorded under this id before; UserError when it was something else."""
        row = self.connection.execute(_KNOWN, {"the_labeler": labeler, "the_id": client_event_id}).mappings().one_or_none()
        if row is not None and (row["kind"] != kind or question_id not in (None, row["question_id"])):
            used = f"the {row['kind']} of question {row['question_id']}"
            raise UserError(f"client_event_id {client_event_id!r} of {labeler} was used for {used}; take a new one")
        return row

    def append(
        self, kind: str, question_id: str, labeler: str, client_event_id: str, body: Any, *, target: int | None = None
    ) -> Mapping[Any, Any]:
        """Add one event and return its row. ``target``: the seq of the event that an undo takes back."""
        stamp = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        values: dict[str, Any] = {
            "seq": self._seq + 1, "kind": kind, "question_id": question_id, "labeler": labeler, "client_event_id": client_event_id,
            "target": target, "body": canonical(body), "time": stamp,
        }  # fmt: skip
        values["hash"] = chained(self._hash, values)
        self.connection.execute(insert(schema.events), values)
        self._seq, self._hash = values["seq"], values["hash"]
        return values


def current_labels() -> Select[Any]:
    """The label events that no undo took back, oldest first, joined with their questions."""
    view, table = schema.current_events, schema.questions
    return select(view).join_from(view, table, table.c.id == view.c.question_id).where(view.c.kind == "label").order_by(view.c.seq)


def label_of(row: Mapping[Any, Any]) -> Label:
    """A label out of its event."""
    body = json.loads(row["body"])
    return Label(
        content_id("label", row["labeler"], row["client_event_id"]), row["question_id"], row["labeler"], body["kind"], body["answer"],
        tuple(body["permutation"]), body["seconds"], body["confidence"], body["comment"], row["time"],
    )  # fmt: skip


def faults(connection: Connection) -> list[str]:
    """One line per fault: a broken chain, a question that changed after it was answered, a state that does not follow from the events."""
    return [*_chain_faults(connection), *_state_faults(connection)]


def _chain_faults(connection: Connection) -> Iterator[str]:
    table = schema.questions
    digests: dict[str, str] = {row.id: sha256(row.body) for row in connection.execute(select(table.c.id, table.c.body))}
    previous, seq = "", 0
    for row in connection.execute(select(schema.events).order_by(schema.events.c.seq)).mappings():
        seq += 1
        if row["seq"] != seq:
            yield f"event {seq}: missing from the log"
            seq = row["seq"]
        elif chained(previous, row) != row["hash"]:
            yield f"event {seq}: does not match its hash: it or the event before it was changed after it was written"
        previous = row["hash"]
        question = row["question_id"]
        if row["kind"] == "label" and json.loads(row["body"])["question"] != digests.get(question):
            yield f"event {seq}: question {question} was changed or removed after it was answered"


def _state_faults(connection: Connection) -> Iterator[str]:
    mine, table, view = schema.assignments, schema.questions, schema.current_events
    ended = {"label": "answered", "skip": "skipped"}
    settled = Counter((r.question_id, r.labeler, ended[r.kind]) for r in connection.execute(select(view).where(view.c.kind.in_(ended))))
    states = Counter((r.question_id, r.labeler, r.state) for r in connection.execute(select(mine)))
    noted = Counter({key: number for key, number in states.items() if key[2] in ended.values()})
    for question, labeler, state in sorted((settled - noted) | (noted - settled)):
        yield f"question {question}: the events and the assignments disagree whether {labeler} has {state} it"
    counted = Counter((question, state) for question, _, state in states)
    for row in connection.execute(select(table)):
        if (row.labels, row.leases) != (counted[row.id, "answered"], counted[row.id, "leased"]):
            yield f"question {row.id}: its counters of labels and leases are wrong"
