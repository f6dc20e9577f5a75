"""The tables of the label store, in one place. Events are the truth; assignments, tallies and counters are an index over them."""

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
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    event,
    select,
    table,
    text,
)
from sqlalchemy.sql import column, exists

SCHEMA_VERSION = 2
"""A change here needs a new file in ``migrations/versions``."""

metadata = MetaData()

about = Table("about", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

alembic_version = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))  # as Alembic makes it

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
    Column("gold", Text),  # the known answer as JSON: every labeler gets the question once, nobody is told, no loss sees it
    Column("repeat_of", Text),  # the question that this one asks again
    Column("only_for", Text),  # the one labeler who gets it
    Column("disputed", Integer),  # the newest label's seq where its labels disagree
    Column("words", Text, nullable=False),  # JSON: how many the prompt has, and each response
    Column(
        "is_open",  # wants answers from anybody who has not given one
        Integer,
        Computed("CASE WHEN labels + leases < overlap AND gold IS NULL AND only_for IS NULL THEN 1 ELSE 0 END", persisted=True),
    ),
    Column("body", Text, nullable=False),  # the question as JSON
    CheckConstraint("leases >= 0 AND labels >= 0 AND overlap >= 1"),
)
lacks_labels = questions.c.labels + questions.c.leases < questions.c.overlap
is_gold, is_repeat = questions.c.gold.is_not(None), and_(questions.c.only_for.is_not(None), lacks_labels)
is_disputed = questions.c.disputed.is_not(None)
Index("open_questions", questions.c.is_open, questions.c.position)
Index("questions_by_round", questions.c.round, questions.c.position)
Index("gold_questions", questions.c.position, sqlite_where=is_gold, postgresql_where=is_gold)
Index("repeated_questions", questions.c.only_for, questions.c.position, sqlite_where=is_repeat, postgresql_where=is_repeat)
Index("disputed_questions", questions.c.disputed, sqlite_where=is_disputed, postgresql_where=is_disputed)

tallies = Table(
    "tallies",
    metadata,  # per round, of the questions that are neither gold nor repeats; see store.Counts
    Column("round", Integer, primary_key=True, autoincrement=False),
    *(
        Column(name, Integer, nullable=False, default=0)
        for name in ("questions", "wanted", "labels", "missing", "leased", "skipped", "flagged")
    ),
)

assignments = Table(
    "assignments",
    metadata,
    Column("question_id", Text, primary_key=True),
    Column("labeler", Text, primary_key=True),
    Column("permutation", Text, nullable=False),
    Column("state", Text, nullable=False),  # leased, free (expired or given back), answered, skipped
    Column("turn", Integer, nullable=False, server_default=text("0")),  # the n-th question lent to the labeler; 0 comes before all
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
    Column("gold_cursor", Integer, nullable=False, server_default=text("0")),  # no gold question below this position is unseen
    Column("lent", Integer, nullable=False, server_default=text("0")),  # how many questions the labeler has been lent
    Column("gold_at", Integer, nullable=False, server_default=text("0")),  # what ``lent`` was at the last gold one
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),  # label, skip, flag, comment, adjudicate, undo
    Column("question_id", Text, nullable=False),
    Column("labeler", Text, nullable=False),
    Column("client_event_id", Text, nullable=False),
    Column("target", Integer),  # undo: the seq of the event that no longer counts
    Column("body", Text, nullable=False),  # JSON
    Column("time", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("remark", Integer),  # 1 where the labeler wrote or flagged something: the researcher's inbox
    UniqueConstraint("labeler", "client_event_id"),
)
has_remark = events.c.remark.is_not(None)
Index("events_by_labeler", events.c.labeler, events.c.seq)
Index("events_by_question", events.c.question_id, events.c.seq)
Index("events_by_kind", events.c.kind, events.c.seq)
Index("remarks", events.c.seq, sqlite_where=has_remark, postgresql_where=has_remark)
Index("undone", events.c.target, unique=True, sqlite_where=events.c.target.is_not(None), postgresql_where=events.c.target.is_not(None))

instructions = Table(
    "instructions",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),  # the last one holds
    Column("version", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("time", Text, nullable=False),
)
Index("instructions_by_version", instructions.c.version)

cord = Table(
    "cord",
    metadata,  # the andon cord: pulled by the last line, or not
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("pulled", Integer, nullable=False),
    Column("person", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
)

people = Table(
    "people",
    metadata,
    Column("id", Text, primary_key=True),  # a pseudonym; all that events and exports say
    Column("name", Text, nullable=False),  # the only place of a name; empty when forgotten
    Column("role", Text, nullable=False),
    Column("disabled", Integer, nullable=False, default=0),
    Column("created", Float, nullable=False),
    CheckConstraint("role IN ('labeler', 'researcher', 'admin')"),
)

invites = Table(
    "invites",
    metadata,
    Column("token", Text, primary_key=True),  # SHA-256 of it
    Column("person", Text, nullable=False),
    Column("expires", Float, nullable=False),
)
Index("invites_by_person", invites.c.person)

sessions = Table(
    "sessions",
    metadata,
    Column("token", Text, primary_key=True),  # SHA-256 of it
    Column("person", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("seen", Float, nullable=False),
)
Index("sessions_by_person", sessions.c.person)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Column("request_id", Text, nullable=False),
    Column("time", Text, nullable=False),
    Column("hash", Text, nullable=False),
)

_later = events.alias("later")
_current = select(events).where(~exists(select(text("1")).select_from(_later).where(_later.c.target == events.c.seq)))
current_events = table("current_events", *(column(c.name, c.type) for c in events.c))
"""A view: the events that no undo took back. The current labels are those of kind "label"."""

VIEW = f"VIEW current_events AS {_current.compile(compile_kwargs={'literal_binds': True})}"
APPEND_ONLY = ("events", "audit", "cord")


def guards(dialect: str) -> list[str]:
    """The statements that make the view, and the tables that are only ever added to refuse everything else."""
    if dialect == "sqlite":
        trigger = "CREATE TRIGGER {0}_no_{1} BEFORE {1} ON {0} BEGIN SELECT RAISE(ABORT, 'the table {0} is append-only'); END"
        return [f"CREATE {VIEW}", *(trigger.format(name, verb.lower()) for name in APPEND_ONLY for verb in ("UPDATE", "DELETE"))]
    refuse = (
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'the table %% is append-only', TG_TABLE_NAME; END$$"
    )
    trigger = (
        "CREATE TRIGGER {0}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {0} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    return [f"CREATE {VIEW}", refuse, *(trigger.format(name) for name in APPEND_ONLY)]


for _dialect in ("sqlite", "postgresql"):
    for _statement in guards(_dialect):
        event.listen(metadata, "after_create", DDL(_statement).execute_if(dialect=_dialect))
