"""The append-only event log: writing to the hash chain, and reading labels out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, insert, select

from humanward.errors import UserError
from humanward.feedback import schema
from humanward.records import Label, content_id

LONGEST_ID = 200
HASHED = ("seq", "kind", "question_id", "labeler", "client_event_id", "target", "body", "time")

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_events = schema.events
_LAST = select(_events.c.seq, _events.c.hash).order_by(_events.c.seq.desc()).limit(1)
_KNOWN = select(_events).where(_events.c.labeler == bindparam("the_labeler"), _events.c.client_event_id == bindparam("the_id"))


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return _canonical(value)


def checked_id(what: str, value: str) -> str:
    """A name that any database can hold; UserError when it is not."""
    if not 0 < len(value) <= LONGEST_ID or not value.isprintable():
        raise UserError(f"{what} {value[:40]!r}: expected 1 to {LONGEST_ID} printable characters")
    return value


def sha256(text: str) -> str:
    """64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def chained(previous: str, values: Mapping[Any, Any], hashed: Sequence[str]) -> str:
    """The hash of a line: SHA-256 of the previous line's hash and everything that the line says."""
    return sha256(previous + canonical([values[name] for name in hashed]))


def time_text(now: float) -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")


class Log:
    """Appends to the hash chain within one transaction."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self.connection, self._clock = connection, clock
        last = connection.execute(_LAST).one_or_none()
        self._seq, self._hash = (last.seq, last.hash) if last else (0, "")

    def known(self, labeler: str, client_event_id: str, kind: str, question_id: str | None) -> Mapping[Any, Any] | None:
        """The event that was recorded under this id before; UserError when it was something else."""
        key = {"the_labeler": checked_id("labeler", labeler), "the_id": checked_id("client_event_id", client_event_id)}
        row = self.connection.execute(_KNOWN, key).mappings().one_or_none()
        if row is not None and (row["kind"] != kind or question_id not in (None, row["question_id"])):
            used = f"the {row['kind']} of question {row['question_id']}"
            raise UserError(f"client_event_id {client_event_id!r} of {labeler} was used for {used}; take a new one")
        return row

    def append(
        self, kind: str, question_id: str, labeler: str, client_event_id: str, body: dict[str, Any], *, target: int | None = None
    ) -> Mapping[Any, Any]:
        """Add one event and return its row. ``target``: the seq of the event that an undo takes back."""
        values: dict[str, Any] = {
            "seq": self._seq + 1, "kind": kind, "question_id": question_id, "labeler": labeler, "client_event_id": client_event_id,
            "target": target, "body": canonical(body), "time": time_text(self._clock()),
        }  # fmt: skip
        values["hash"] = chained(self._hash, values, HASHED)
        values["remark"] = 1 if kind in ("flag", "comment") or body.get("reason") or body.get("comment") else None
        self.connection.execute(insert(schema.events), values)
        self._seq, self._hash = values["seq"], values["hash"]
        return values


def current(kind: str, *columns: ColumnElement[Any]) -> Select[Any]:
    """The events of a kind that no undo took back, oldest first, joined with their questions, of which ``columns`` are taken along."""
    view, table = schema.current_events, schema.questions
    return select(view, *columns).join_from(view, table, table.c.id == view.c.question_id).where(view.c.kind == kind).order_by(view.c.seq)


def label_of(row: Mapping[Any, Any]) -> Label:
    """A label out of its event."""
    body = json.loads(row["body"])
    return Label(
        content_id("label", row["labeler"], row["client_event_id"]), row["question_id"], row["labeler"], body["kind"], body["answer"],
        tuple(body["permutation"]), body["seconds"], body["confidence"], body["comment"], row["time"], body.get("instructions", ""),
        row["kind"] == "adjudicate",
    )  # fmt: skip
