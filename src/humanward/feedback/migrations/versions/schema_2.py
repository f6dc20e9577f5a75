"""Schema 2: gold questions, repeats, disputes, an inbox, tallies per round, people, instructions, the cord."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column, Float, Integer, Text

from humanward.feedback.kinds import kind_of
from humanward.records import Question

revision = "2"
down_revision = None  # schema 1 had no revision
_BATCH = 500
_OPEN = "CASE WHEN labels + leases < overlap AND gold IS NULL AND only_for IS NULL THEN 1 ELSE 0 END"
_COUNTERS = "leases >= 0 AND labels >= 0 AND overlap >= 1"
_COLUMNS = "seq, kind, question_id, labeler, client_event_id, target, body, time, hash, remark"
_VIEW = (
    f"CREATE VIEW current_events AS SELECT {', '.join('events.' + name for name in _COLUMNS.split(', '))} FROM events "
    "WHERE NOT (EXISTS (SELECT 1 FROM events AS later WHERE later.target = events.seq))"
)
_REFUSE = """CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'the table % is append-only', TG_TABLE_NAME; END$$"""
_TRIGGER = {
    "sqlite": "CREATE TRIGGER {0}_no_{1} BEFORE {1} ON {0} BEGIN SELECT RAISE(ABORT, 'the table {0} is append-only'); END",
    "postgresql": "CREATE TRIGGER {0}_append_only BEFORE {1} ON {0} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
}


def upgrade() -> None:
    """From schema 1."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute("DROP VIEW current_events")
    if sqlite:
        op.execute("DROP TRIGGER events_no_UPDATE")
        op.execute("DROP TRIGGER events_no_DELETE")
    _change_questions(sqlite)
    op.add_column("assignments", Column("turn", Integer, nullable=False, server_default=sa.text("0")))
    for name in ("gold_cursor", "lent", "gold_at"):
        op.add_column("labelers", Column(name, Integer, nullable=False, server_default=sa.text("0")))
    _change_events()
    op.execute(_VIEW)
    _make_tables()
    _fill_tallies()
    _fill_disputes()
    verbs = ("UPDATE", "DELETE") if sqlite else ("UPDATE OR DELETE OR TRUNCATE",)
    if not sqlite:
        op.execute(_REFUSE)
    for name in ("events", "audit", "cord"):
        for verb in verbs:
            op.execute(_TRIGGER["sqlite" if sqlite else "postgresql"].format(name, verb.lower() if sqlite else verb))
    op.execute("UPDATE about SET value = '2' WHERE key = 'schema'")


def _change_questions(sqlite: bool) -> None:
    """A computed column cannot be altered: SQLite gets a new table, PostgreSQL the column anew."""
    for name in ("open_questions", "questions_by_round"):
        op.drop_index(name, "questions")
    added = [Column("gold", Text), Column("repeat_of", Text), Column("only_for", Text), Column("disputed", Integer)]
    is_open = Column("is_open", Integer, sa.Computed(_OPEN, persisted=True))
    if sqlite:
        kept = "id, position, round, split, overlap, leases, labels, body"
        op.rename_table("questions", "old_questions")
        whole = [Column(name, Integer, nullable=False) for name in ("round", "overlap", "leases", "labels")]
        op.create_table(
            "questions", Column("id", Text, primary_key=True), Column("position", Integer, nullable=False, unique=True), *whole,
            Column("split", Text, nullable=False), *added, Column("words", Text, nullable=False), is_open,
            Column("body", Text, nullable=False), sa.CheckConstraint(_COUNTERS),
        )  # fmt: skip
        op.execute(f"INSERT INTO questions ({kept}, words) SELECT {kept}, '' FROM old_questions")
        op.drop_table("old_questions")
    else:
        op.drop_column("questions", "is_open")
        for column in [*added, Column("words", Text, nullable=False, server_default=""), is_open]:
            op.add_column("questions", column)
        op.alter_column("questions", "words", server_default=None)
    _fill_words()
    op.create_index("open_questions", "questions", ["is_open", "position"])
    op.create_index("questions_by_round", "questions", ["round", "position"])
    for name, columns, where in (
        ("gold_questions", ["position"], "gold IS NOT NULL"),
        ("repeated_questions", ["only_for", "position"], "only_for IS NOT NULL AND labels + leases < overlap"),
        ("disputed_questions", ["disputed"], "disputed IS NOT NULL"),
    ):
        op.create_index(name, "questions", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _fill_words() -> None:
    questions = sa.table("questions", sa.column("id"), sa.column("position"), sa.column("body"), sa.column("words"))
    bind, position = op.get_bind(), 0
    set_words = sa.update(questions).where(questions.c.id == sa.bindparam("key")).values(words=sa.bindparam("found"))
    while True:
        query = sa.select(questions).where(questions.c.position > position).order_by(questions.c.position).limit(_BATCH)
        rows = bind.execute(query).all()
        if not rows:
            return
        position = rows[-1].position
        bind.execute(set_words, [{"key": row.id, "found": _words(row.body)} for row in rows])


def _words(body: str) -> str:
    question = Question.from_json(json.loads(body))
    texts = (question.prompt.text, *(response.text for response in question.responses))
    return json.dumps([len(text.split()) for text in texts], separators=(",", ":"))


def _change_events() -> None:
    op.add_column("events", Column("remark", Integer))
    silent = (("skip", '%"reason":""%'), ("label", '%"comment":""%'))
    said = " OR ".join(f"(kind = '{kind}' AND body NOT LIKE :{kind})" for kind, _ in silent)
    op.get_bind().execute(sa.text(f"UPDATE events SET remark = 1 WHERE kind = 'flag' OR {said}"), dict(silent))
    op.drop_index("events_by_question", "events")
    op.create_index("events_by_question", "events", ["question_id", "seq"])
    op.create_index("events_by_kind", "events", ["kind", "seq"])
    where = sa.text("remark IS NOT NULL")
    op.create_index("remarks", "events", ["seq"], sqlite_where=where, postgresql_where=where)


def _make_tables() -> None:
    def texts(*names: str) -> list[Column[str]]:
        return [Column(name, Text, nullable=False) for name in names]

    def seq() -> Column[int]:
        return Column("seq", Integer, primary_key=True, autoincrement=False)

    sums = [Column(n, Integer, nullable=False) for n in ("questions", "wanted", "labels", "missing", "leased", "skipped", "flagged")]
    op.create_table("tallies", Column("round", Integer, primary_key=True, autoincrement=False), *sums)
    op.create_table("instructions", seq(), *texts("version", "text", "time"))
    op.create_index("instructions_by_version", "instructions", ["version"])
    op.create_table("cord", seq(), Column("pulled", Integer, nullable=False), *texts("person", "reason", "time"))
    op.create_table(
        "people", Column("id", Text, primary_key=True), *texts("name", "role"), Column("disabled", Integer, nullable=False),
        Column("created", Float, nullable=False), sa.CheckConstraint("role IN ('labeler', 'researcher', 'admin')"),
    )  # fmt: skip
    for name, times in (("invites", ("expires",)), ("sessions", ("created", "seen"))):
        moments = [Column(time, Float, nullable=False) for time in times]
        op.create_table(name, Column("token", Text, primary_key=True), *texts("person"), *moments)
        op.create_index(f"{name}_by_person", name, ["person"])
    op.create_table("audit", seq(), *texts("who", "action", "detail", "request_id", "time", "hash"))


def _fill_tallies() -> None:
    op.execute(
        "INSERT INTO tallies SELECT round, count(*), sum(overlap), sum(labels), "
        "sum(CASE WHEN overlap > labels THEN overlap - labels ELSE 0 END), sum(leases), 0, 0 FROM questions GROUP BY round"
    )
    for column, kind in (("skipped", "skip"), ("flagged", "flag")):
        op.execute(
            f"UPDATE tallies SET {column} = (SELECT count(*) FROM current_events JOIN questions ON questions.id = question_id "
            f"WHERE kind = '{kind}' AND questions.round = tallies.round)"
        )


def _fill_disputes() -> None:
    bind = op.get_bind()
    labels = sa.text("SELECT seq, body FROM current_events WHERE question_id = :id AND kind = 'label' ORDER BY seq")
    several = bind.execute(sa.text("SELECT id, body FROM questions WHERE labels > 1 ORDER BY position")).all()
    for key, body in several:
        question = Question.from_json(json.loads(body))
        found = bind.execute(labels, {"id": key}).all()
        if kind_of(question).disagree([json.loads(label)["answer"] for _, label in found]):
            bind.execute(sa.text("UPDATE questions SET disputed = :seq WHERE id = :id"), {"seq": found[-1][0], "id": key})
