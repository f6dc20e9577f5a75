"""Who may do what: pseudonyms and names, one-time invites, sessions, and an audit log that is only ever added to."""

from __future__ import annotations

import json
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from humanward.errors import UserError
from humanward.feedback import schema
from humanward.feedback.database import Database
from humanward.feedback.log import canonical, chained, sha256, time_text

ROLES = ("labeler", "researcher", "admin")
"""Each may do what those before it may."""
INVITE_HOURS = 72.0
IDLE_SECONDS = 12 * 3600.0
LONGEST_SECONDS = 7 * 24 * 3600.0
"""A session ends then, however busy."""
AUDITED = ("seq", "who", "action", "detail", "request_id", "time")
_SEEN_EVERY = 60.0  # a session is written at most so often: reading must stay reading
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Person:
    """Somebody who may sign in."""

    id: str
    """A pseudonym such as "labeler-7": all that events and exports say."""
    name: str
    """For the eyes of researchers; empty when forgotten."""
    role: str
    disabled: bool
    created: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class AuditLine:
    """Something that somebody did to the store, other than labelling."""

    seq: int
    who: str
    action: str
    detail: Any
    request_id: str
    time: str


class People:
    """The people of one label store. Tokens are stored hashed; each is 32 random bytes, so a plain SHA-256 is enough."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    # Invites and sessions

    def invite(self, role: str, name: str, person_id: str | None = None, hours: float = INVITE_HOURS) -> tuple[Person, str]:
        """A token that signs somebody in once: a new person, or ``person_id`` again. Their earlier invites are void.

        Raises:
            UserError: no such role or person, the person is disabled, or has another role.
        """
        if role not in ROLES:
            raise UserError(f"role {role!r}: expected one of {', '.join(ROLES)}")
        token, name = secrets.token_urlsafe(32), _checked_name(name)
        table = schema.invites
        with self._database.write() as connection:
            if person_id is None:
                person_id = _new_id(connection, role)
                values = {"id": person_id, "name": name, "role": role, "disabled": 0, "created": self._clock()}
                connection.execute(insert(schema.people), values)
            person = _person(connection, person_id)
            if person.disabled or person.role != role:
                what = "is disabled; enable them first" if person.disabled else f"has the role {person.role}, not {role}"
                raise UserError(f"{person_id}: {what}")
            connection.execute(delete(table).where(table.c.person == person_id))
            values = {"token": sha256(token), "person": person_id, "expires": self._clock() + hours * 3600}
            connection.execute(insert(table), values)
        return person, token

    def redeem(self, token: str) -> str | None:
        """Exchange an invite for a session token; None when the invite is unknown, used, too old, or the person is disabled."""
        invites, sessions, now = schema.invites, schema.sessions, self._clock()
        session = secrets.token_urlsafe(32)
        with self._database.write() as connection:
            connection.execute(delete(invites).where(invites.c.expires <= now))
            connection.execute(
                delete(sessions).where((sessions.c.seen <= now - IDLE_SECONDS) | (sessions.c.created <= now - LONGEST_SECONDS))
            )
            mine = invites.c.token == sha256(token)
            person_id = connection.scalar(select(invites.c.person).where(mine))
            if person_id is None or _person(connection, person_id).disabled:
                return None
            connection.execute(delete(invites).where(mine))
            connection.execute(insert(sessions), {"token": sha256(session), "person": person_id, "created": now, "seen": now})
        return session

    def session(self, token: str) -> Person | None:
        """Who has this session; None when there is no such session, it has ended or the person is disabled."""
        table, now = schema.sessions, self._clock()
        with self._database.read() as connection:
            row = connection.execute(select(table).where(table.c.token == sha256(token))).one_or_none()
            if row is None or now - row.seen >= IDLE_SECONDS or now - row.created >= LONGEST_SECONDS:
                return None
            person = _person(connection, row.person)
        if person.disabled:
            return None
        if now - row.seen >= _SEEN_EVERY:
            with self._database.write() as connection:
                connection.execute(update(table).where(table.c.token == row.token).values(seen=now))
        return person

    def sign_out(self, token: str) -> None:
        """End one session."""
        self._end(schema.sessions.c.token == sha256(token))

    def revoke(self, person_id: str) -> int:
        """End all sessions of a person and void their invites; returns how many sessions there were."""
        with self._database.write() as connection:
            _person(connection, person_id)
            return _shut_out(connection, person_id)

    # People

    def person(self, person_id: str) -> Person | None:
        """The person with this pseudonym."""
        with self._database.read() as connection:
            row = connection.execute(select(schema.people).where(schema.people.c.id == person_id)).mappings().one_or_none()
        return Person(**{**row, "disabled": bool(row["disabled"])}) if row else None

    def all(self) -> list[Person]:
        """Everybody, oldest first."""
        table = schema.people
        with self._database.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.created, table.c.id)).mappings()
            return [Person(**{**row, "disabled": bool(row["disabled"])}) for row in rows]

    def rename(self, person_id: str, name: str) -> None:
        """Change the name that researchers see."""
        self._set(person_id, name=_checked_name(name))

    def disable(self, person_id: str) -> None:
        """Sign the person out everywhere and let them in no more; their labels stay."""
        self._set(person_id, disabled=1)

    def enable(self, person_id: str) -> None:
        """Let the person in again; they need a new invite."""
        self._set(person_id, disabled=0)

    def forget(self, person_id: str) -> None:
        """Drop the name, sessions and invites for good, from the file too. Labels stay, under the pseudonym."""
        self._set(person_id, name="", disabled=1)
        self._database.scrub()

    # Audit

    def audit(self, who: str, action: str, detail: Any = None, request_id: str = "") -> None:
        """Note what somebody did. ``detail`` is JSON; leave names out of it, for nothing here is ever forgotten."""
        with self._database.write() as connection:
            append_audit(connection, self._clock(), who, action, detail, request_id)

    def audit_log(self, limit: int = 100) -> list[AuditLine]:
        """The newest lines, newest first."""
        table = schema.audit
        with self._database.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.seq.desc()).limit(limit))
            return [AuditLine(r.seq, r.who, r.action, json.loads(r.detail), r.request_id, r.time) for r in rows]

    def _set(self, person_id: str, **values: Any) -> None:
        with self._database.write() as connection:
            _person(connection, person_id)
            connection.execute(update(schema.people).where(schema.people.c.id == person_id).values(**values))
            if values.get("disabled"):
                _shut_out(connection, person_id)

    def _end(self, which: Any) -> None:
        with self._database.write() as connection:
            connection.execute(delete(schema.sessions).where(which))


def append_audit(connection: Connection, now: float, who: str, action: str, detail: Any, request_id: str = "") -> None:
    """Add one line to the audit log, within a transaction."""
    table = schema.audit
    last = connection.execute(select(table.c.seq, table.c.hash).order_by(table.c.seq.desc()).limit(1)).one_or_none()
    values: dict[str, Any] = {
        "seq": last.seq + 1 if last else 1, "who": who, "action": action, "detail": canonical(detail), "request_id": request_id,
        "time": time_text(now),
    }  # fmt: skip
    values["hash"] = chained(last.hash if last else "", values, AUDITED)
    connection.execute(insert(table), values)


def _person(connection: Connection, person_id: str) -> Person:
    row = connection.execute(select(schema.people).where(schema.people.c.id == person_id)).mappings().one_or_none()
    if row is None:
        raise UserError(f"{person_id}: there is no such person in this store; invite them first")
    return Person(**{**row, "disabled": bool(row["disabled"])})


def _new_id(connection: Connection, role: str) -> str:
    known = connection.scalars(select(schema.people.c.id).where(schema.people.c.role == role))
    numbers = [int(one.removeprefix(f"{role}-")) for one in known if one.removeprefix(f"{role}-").isdecimal()]
    return f"{role}-{max(numbers, default=0) + 1}"


def _shut_out(connection: Connection, person_id: str) -> int:
    connection.execute(delete(schema.invites).where(schema.invites.c.person == person_id))
    return connection.execute(delete(schema.sessions).where(schema.sessions.c.person == person_id)).rowcount


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if len(name) > _LONGEST_NAME or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        raise UserError(f"name {name[:40]!r}: expected at most {_LONGEST_NAME} printable characters")
    return name
