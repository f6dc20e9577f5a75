"""The tables of the label store, in one place. Events are the truth; assignments and the counters of questions are an index over them."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    Computed,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
    select,
    table,
    text,
)
from sqlalchemy.sql import column, exists

SCHEMA_VERSION = 1

metadata = MetaData()

about = Table("about", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

questions = Table(
    "questions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("position", Integer, nullable=False, unique=True),  # the order in which they are served
    Column("round", Integer, nullable=False),
    Column("split", Text, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("leases", Integer, nullable=False, default=0),  # assignments in state "leased"
    Column("labels", Integer, nullable=False, default=0),  # assignments in state "answered"
    Column("is_open", Integer, Computed("CASE WHEN labels + leases < overlap THEN 1 ELSE 0 END", persisted=True)),
    Column("body", Text, nullable=False),  # the question as JSON
    CheckConstraint("leases >= 0 AND labels >= 0 AND overlap >= 1"),
)
Index("open_questions", questions.c.is_open, questions.c.position)
Index("questions_by_round", questions.c.round, questions.c.position)

assignments = Table(
    "assignments",
    metadata,
    Column("question_id", Text, primary_key=True),
    Column("labeler", Text, primary_key=True),
    Column("permutation", Text, nullable=False),
    Column("state", Text, nullable=False),  # leased, free (expired or given back), answered, skipped
    Column("expires", Float, nullable=False),  # seconds since 1970; only "leased" reads it
    Column("attempt", Integer, nullable=False, default=0),  # how many answers or skips were undone
    CheckConstraint("state IN ('leased', 'free', 'answered', 'skipped')"),
)
is_leased = assignments.c.state == text("'leased'")
Index("live_leases", assignments.c.expires, sqlite_where=is_leased, postgresql_where=is_leased)
Index("assignments_by_labeler", assignments.c.labeler, assignments.c.state)

labelers = Table(
    "labelers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("cursor", Integer, nullable=False),  # no question below this position is open and unseen by the labeler
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),  # label, skip, flag, undo
    Column("question_id", Text, nullable=False),
    Column("labeler", Text, nullable=False),
    Column("client_event_id", Text, nullable=False),
    Column("target", Integer),  # undo: the seq of the event that no longer counts
    Column("body", Text, nullable=False),  # JSON
    Column("time", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("labeler", "client_event_id"),
)
Index("events_by_labeler", events.c.labeler, events.c.seq)
Index("events_by_question", events.c.question_id)
Index("undone", events.c.target, unique=True, sqlite_where=events.c.target.is_not(None), postgresql_where=events.c.target.is_not(None))

_later = events.alias("later")
_current = select(events).where(~exists(select(text("1")).select_from(_later).where(_later.c.target == events.c.seq)))
current_events = table("current_events", *(column(c.name, c.type) for c in events.c))
"""A view: the events that no undo took back. The current labels are those of kind "label"."""

_VIEW = f"VIEW current_events AS {_current.compile(compile_kwargs={'literal_binds': True})}"
_TRIGGER = "TRIGGER IF NOT EXISTS events_no_{verb} BEFORE {verb} ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
for _statement, _dialect in (
    (f"CREATE {_VIEW}".replace("VIEW", "VIEW IF NOT EXISTS", 1), "sqlite"),
    (f"CREATE OR REPLACE {_VIEW}", "postgresql"),
    (f"CREATE {_TRIGGER.format(verb='UPDATE')}", "sqlite"),
    (f"CREATE {_TRIGGER.format(verb='DELETE')}", "sqlite"),
):
    event.listen(metadata, "after_create", DDL(_statement).execute_if(dialect=_dialect))
