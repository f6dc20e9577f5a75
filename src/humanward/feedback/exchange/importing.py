"""Putting checked records into a store: one transaction, all or nothing, chain and counters as if people had typed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, tuple_, update

from humanward.errors import UserError
from humanward.feedback import queue, schema
from humanward.feedback.exchange.spool import Asked, Event, Instruction, Record
from humanward.feedback.kinds import KINDS
from humanward.feedback.log import HASHED, chained, sha256, time_text
from humanward.feedback.people import append_audit
from humanward.feedback.store import Store
from humanward.records.files import Faults

CHUNK = 2000
"""Records handled together."""

_asked, _mine, _events = schema.questions, schema.assignments, schema.events
_STANDING = select(*(column for column in _asked.c if column.name not in ("body", "words", "split", "is_open")))
_SET_QUESTION = update(_asked).where(_asked.c.id == bindparam("key")).values(labels=bindparam("new_labels"), leases=bindparam("new_leases"))
_SET_PLACE = (
    update(_mine)
    .where(_mine.c.question_id == bindparam("the_question"), _mine.c.labeler == bindparam("the_labeler"))
    .values(state=bindparam("new_state"), permutation=bindparam("new_permutation"), attempt=bindparam("new_attempt"))
)
_SET_DISPUTED = update(_asked).where(_asked.c.id == bindparam("key")).values(disputed=bindparam("new_disputed"))
_ENDS = {"label": queue.ANSWERED, "skip": queue.SKIPPED}


@dataclass
class Imported:
    """What an import added."""

    questions: int = 0
    labels: int = 0
    others: int = 0
    """Skips, flags, comments, adjudications and undos."""
    known: int = 0
    """Events that were there already, from the same file given before."""
    instructions: int = 0


@dataclass
class _Place:
    """One labeler's assignment, as it changes."""

    state: str | None
    permutation: str
    attempt: int
    stored: bool = False
    before: str | None = None
    undone: int = 0
    """Answers taken back in this chunk."""


@dataclass
class _Import:
    connection: Connection
    faults: Faults
    now: float
    progress: Callable[[int], None]
    done: Imported = field(default_factory=Imported)
    several: set[str] = field(default_factory=set)
    """Questions that may have got a second label."""
    broken: set[tuple[str, str]] = field(default_factory=set)
    """(question, labeler) with a fault: what follows from it is no further fault."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of questions whose labels come without it."""
    seen: set[int] = field(default_factory=set)
    """Hashes of what this import has added: of anything else a store that was empty need not be asked."""

    def run(self, records: Iterable[Record]) -> None:
        last = self.connection.execute(select(_events.c.seq, _events.c.hash).order_by(_events.c.seq.desc()).limit(1)).one_or_none()
        self.seq, self.hash = (last.seq, last.hash) if last else (0, "")
        self.position = self.connection.scalar(queue.LAST_POSITION) or 0
        self.was_empty = not self.position  # no question, so no event and no assignment
        remaining = iter(records)
        while chunk := list(islice(remaining, CHUNK)):
            self._instructions([record for record in chunk if isinstance(record, Instruction)])
            self._questions([record for record in chunk if isinstance(record, Asked)])
            self._chunk([record for record in chunk if isinstance(record, Event)])
        self._disputes(sorted(self.several))

    # Instructions and questions

    def _instructions(self, records: Sequence[Instruction]) -> None:
        table = schema.instructions
        for record in records:
            if self.connection.scalar(select(table.c.seq).where(table.c.version == record.version).limit(1)) is None:
                seq = (self.connection.scalar(select(func.max(table.c.seq))) or 0) + 1
                self.connection.execute(insert(table), {"seq": seq, "version": record.version, "text": record.text, "time": record.time})
                self.done.instructions += 1

    def _questions(self, records: Sequence[Asked]) -> None:
        fresh = {record.id: record for record in reversed(records)}
        keys = self._to_look_up(fresh)
        known = {row.id: row for row in self.connection.execute(select(_asked).where(_asked.c.id.in_(keys)))} if keys else {}
        for record in records:
            row = known.get(record.id)
            if row is not None and not _same_question(row, record):
                self.faults.add(f"{record.where}: question {record.id}: the store has another question with this id; nothing was imported")
        rows = [
            self._question_row(record)
            for record in dict.fromkeys(r.id for r in records)
            if record not in known
            for record in [fresh[record]]
        ]
        if not rows:
            return
        _many(self.connection, insert(_asked), rows)
        self.seen.update(hash(row["id"]) for row in rows)
        self.digests |= {row["id"]: sha256(row["body"]) for row in rows if not fresh[row["id"]].exact}
        shown = [record for record in fresh.values() if record.id not in known and record.only_for and record.permutation]
        if shown:
            self.seen.update(hash((record.id, record.only_for)) for record in shown)
            self.connection.execute(
                insert(_mine), [_assignment(r.id, r.only_for or "", json.dumps(r.permutation), queue.FREE) for r in shown]
            )
        rounds: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            if row["gold"] is None and row["only_for"] is None:
                rounds[row["round"]].append(row["overlap"])
        for number, wanted in rounds.items():
            queue.add_tally(self.connection, number, questions=len(wanted), wanted=sum(wanted), missing=sum(wanted))
        self.done.questions += len(rows)

    def _question_row(self, record: Asked) -> dict[str, Any]:
        self.position += 1
        return {
            "id": record.id, "position": self.position, "round": record.round, "split": record.split, "overlap": record.overlap,
            "leases": 0, "labels": 0, "gold": record.gold, "repeat_of": record.repeat_of, "only_for": record.only_for,
            "words": record.words, "body": record.body,
        }  # fmt: skip

    # Events

    def _chunk(self, events: Sequence[Event]) -> None:
        if not events:
            return
        keys = self._to_look_up({(event.labeler, event.client_event_id) for event in events})
        query = select(_events).where(tuple_(_events.c.labeler, _events.c.client_event_id).in_(keys))
        known: dict[tuple[str, str], Any] = {(r.labeler, r.client_event_id): r for r in self.connection.execute(query)} if keys else {}
        ids = list({event.question_id for event in events})
        asked = {row.id: row for row in self.connection.execute(_STANDING.where(_asked.c.id.in_(ids))).all()}
        self._look_up_digests({event.question_id for event in events if not event.exact} & asked.keys())
        places = self._places(list({(event.question_id, event.labeler) for event in events}))
        rows: list[dict[str, Any]] = []
        flagged: dict[str, int] = defaultdict(int)
        for event in events:
            if event.question_id not in asked or (event.question_id, event.labeler) in self.broken:
                continue
            self.broken.add((event.question_id, event.labeler))
            with self.faults.noted():
                row = self._event(event, known, asked[event.question_id], places)
                self.broken.remove((event.question_id, event.labeler))
                if row is not None:
                    rows.append(row)
                    flagged[event.question_id] += event.kind == "flag"
        if rows:
            _many(self.connection, insert(_events), rows)
            self.seen.update(hash((row["labeler"], row["client_event_id"])) for row in rows)
            self.seen.update(map(hash, places))
        self._settle(asked, places, flagged)
        self.progress(self.done.labels + self.done.others + self.done.known)

    def _to_look_up(self, keys: Iterable[Any]) -> list[Any]:
        """Those of the keys that the store may know."""
        return [key for key in keys if hash(key) in self.seen] if self.was_empty else list(keys)

    def _look_up_digests(self, ids: set[str]) -> None:
        missing = list(ids - self.digests.keys())
        if missing:
            bodies = self.connection.execute(select(_asked.c.id, _asked.c.body).where(_asked.c.id.in_(missing)))
            self.digests |= {row.id: sha256(row.body) for row in bodies}

    def _event(self, event: Event, known: dict[tuple[str, str], Any], asked: Any, places: dict[tuple[str, str], _Place]) -> Any:
        # in a JSON text this stands nowhere but between two members: inside a string its quotes are escaped
        digest = "" if event.exact else self.digests[event.question_id]
        body = event.body if event.exact else event.body.replace(',"question":""', f',"question":"{digest}"', 1)
        key = (event.labeler, event.client_event_id)
        if key in known:
            row = known[key]
            same_time = not event.time or row.time == event.time
            if (row.kind, row.question_id, row.body) != (event.kind, event.question_id, body) or not same_time:
                raise UserError(
                    f"{event.where}: {event.labeler} has another event with the id {event.client_event_id}; give every label its own id"
                )
            self.done.known += 1
            return None
        target = None
        if event.kind == "undo":
            target = self._undo(event, known, places)
        elif event.kind in _ENDS:
            self._answer(event, asked, places)
        values: dict[str, Any] = {
            "seq": self.seq + 1, "kind": event.kind, "question_id": event.question_id, "labeler": event.labeler,
            "client_event_id": event.client_event_id, "target": target, "body": body, "time": event.time or time_text(self.now),
        }  # fmt: skip
        values["hash"] = chained(self.hash, values, HASHED)
        values["remark"] = 1 if event.remark else None
        self.seq, self.hash = values["seq"], values["hash"]
        known[key] = _Known(**{name: values[name] for name in ("seq", "kind", "question_id", "body", "time")})
        self.done.labels += event.kind == "label"
        self.done.others += event.kind != "label"
        return values

    def _answer(self, event: Event, asked: Any, places: dict[tuple[str, str], _Place]) -> None:
        place = places[event.question_id, event.labeler]
        if asked.only_for not in (None, event.labeler):
            raise UserError(f"{event.where}: question {event.question_id} is a repeat for {asked.only_for}, not for {event.labeler}")
        if place.state in (queue.ANSWERED, queue.SKIPPED):
            raise UserError(
                f"{event.where}: {event.labeler} has {place.state} question {event.question_id} before, with another id or answer"
            )
        if event.kind == "label":
            place.permutation = json.dumps(event.permutation)
        elif not place.permutation:
            body = self.connection.scalar(select(_asked.c.body).where(_asked.c.id == event.question_id)) or ""
            place.permutation = json.dumps(queue.random_order(queue.question_of(body), event.labeler))
        place.state = _ENDS[event.kind]

    def _undo(self, event: Event, known: dict[tuple[str, str], Any], places: dict[tuple[str, str], _Place]) -> int:
        target = known.get((event.labeler, event.undoes or ""))
        if target is None:
            query = select(_events).where(_events.c.labeler == event.labeler, _events.c.client_event_id == event.undoes)
            target = self.connection.execute(query).one_or_none()
        place = places[event.question_id, event.labeler]
        if target is None or target.question_id != event.question_id or place.state != _ENDS.get(target.kind, ""):
            raise UserError(f"{event.where}: undoes: {event.labeler} has no answer {event.undoes!r} to this question that still counts")
        place.state, place.attempt, place.undone = queue.FREE, place.attempt + 1, place.undone + 1
        return target.seq

    # What follows from the events

    def _places(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], _Place]:
        found = {pair: _Place(None, "", 0) for pair in pairs}
        keys = self._to_look_up(pairs)
        query = select(_mine).where(tuple_(_mine.c.question_id, _mine.c.labeler).in_(keys))
        for row in self.connection.execute(query) if keys else ():
            found[row.question_id, row.labeler] = _Place(row.state, row.permutation, row.attempt, True, row.state)
        return found

    def _settle(self, asked: dict[str, Any], places: dict[tuple[str, str], _Place], flagged: dict[str, int]) -> None:
        """Bring assignments, counters and tallies to where the chunk's events leave them."""
        changed = {
            pair: place for pair, place in places.items() if place.state is not None and (place.state != place.before or place.undone)
        }
        new = [_assignment(*pair, p.permutation, p.state or "", p.attempt) for pair, p in changed.items() if not p.stored]
        if new:
            _many(self.connection, insert(_mine), new)
        old = [
            {"the_question": q, "the_labeler": w, "new_state": p.state, "new_permutation": p.permutation, "new_attempt": p.attempt}
            for (q, w), p in changed.items() if p.stored
        ]  # fmt: skip
        if old:
            _many(self.connection, _SET_PLACE, old)
        labels, leases, skipped = (defaultdict[str, int](int) for _ in range(3))
        for (key, _), place in changed.items():
            labels[key] += (place.state == queue.ANSWERED) - (place.before == queue.ANSWERED)
            skipped[key] += (place.state == queue.SKIPPED) - (place.before == queue.SKIPPED)
            leases[key] -= place.before == queue.LEASED
        rows = [
            {"key": key, "new_labels": asked[key].labels + labels[key], "new_leases": asked[key].leases + leases[key]}
            for key in labels if labels[key] or leases[key]
        ]  # fmt: skip
        if rows:
            _many(self.connection, _SET_QUESTION, rows)
        self.several |= {row["key"] for row in rows if row["new_labels"] > 1 or asked[row["key"]].disputed is not None}
        self._tallies(asked, labels, leases, skipped, flagged)
        self._reopened(asked, changed)

    def _tallies(
        self, asked: dict[str, Any], labels: dict[str, int], leases: dict[str, int], skipped: dict[str, int], flagged: dict[str, int]
    ) -> None:
        rounds: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for key in {*labels, *flagged}:
            row = asked[key]
            if not queue.is_common(row):
                continue
            more, added = rounds[row.round], labels.get(key, 0)
            more["labels"] += added
            more["missing"] += max(row.overlap - row.labels - added, 0) - max(row.overlap - row.labels, 0)
            more["leased"] += leases.get(key, 0)
            more["skipped"] += skipped.get(key, 0)
            more["flagged"] += flagged.get(key, 0)
        for number, more in rounds.items():
            queue.add_tally(self.connection, number, **more)

    def _reopened(self, asked: dict[str, Any], changed: dict[tuple[str, str], _Place]) -> None:
        """A lease that ended in a skip, or an answer that was taken back, may open a question again for those who have passed it."""
        freed = [
            key for (key, _), place in changed.items() if place.before in (queue.LEASED, queue.ANSWERED) and place.state != queue.ANSWERED
        ]
        opened = [asked[key].position for key in freed if queue.is_common(asked[key])]
        if opened:
            names = schema.labelers
            self.connection.execute(update(names).where(names.c.cursor > min(opened)).values(cursor=min(opened)))

    def _disputes(self, ids: list[str]) -> None:
        view = schema.current_events
        for part in (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)):
            said: dict[str, list[tuple[int, Any]]] = defaultdict(list)
            query = select(view.c.question_id, view.c.seq, view.c.body).where(view.c.question_id.in_(part), view.c.kind == "label")
            for row in self.connection.execute(query.order_by(view.c.seq)):
                said[row.question_id].append((row.seq, json.loads(row.body)))
            common = select(_asked.c.id).where(_asked.c.id.in_(part), _asked.c.gold.is_(None), _asked.c.only_for.is_(None))
            marks = []
            for key in self.connection.scalars(common):
                labels = said[key]
                disagree = len(labels) > 1 and KINDS[labels[0][1]["kind"]].disagree([body["answer"] for _, body in labels])
                marks.append({"key": key, "new_disputed": labels[-1][0] if disagree else None})
            if marks:
                self.connection.execute(_SET_DISPUTED, marks)


class _Known(NamedTuple):
    """An event of this import, as a row of the log."""

    seq: int
    kind: str
    question_id: str
    body: str
    time: str


def import_file(
    store: Store, records: Iterable[Record], *, source: str, faults: Faults, who: str = "command line",
    progress: Callable[[int], None] = lambda events: None,
) -> Imported:  # fmt: skip
    """Add records to a store, all of them or none, and say so in the audit log.

    Args:
        store: where they go.
        records: checked ones, a question before its events.
        source: the file's name, for the audit log.
        faults: told what the store contradicts.
        who: whom the audit log names.
        progress: told the number of events handled so far.

    Raises:
        UserError: one line per fault; the store is as it was.
    """
    now = store._clock()
    with store._database.write() as connection:
        work = _Import(connection, faults, now, progress)
        work.run(records)
        faults.check()
        done = work.done
        if done.questions or done.labels or done.others or done.instructions:
            append_audit(connection, now, who, "import", {"file": source, "questions": done.questions, "labels": done.labels})
    return done


def _many(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
    """Run a statement for each row, by the driver itself: preparing their parameters costs SQLAlchemy as much as SQLite's work."""
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(rows[0]))
    names = compiled.positiontup
    connection.exec_driver_sql(str(compiled), rows if names is None else [tuple(row[name] for name in names) for row in rows])


def _same_question(row: Any, record: Asked) -> bool:
    if row.body == record.body:
        return not record.exact or (row.gold, row.repeat_of, row.only_for) == (record.gold, record.repeat_of, record.only_for)
    return not record.exact and _content(row.body) == _content(record.body)


def _content(body: str) -> list[Any]:
    obj = json.loads(body)
    return [obj["kind"], obj["prompt"]["text"], [response["text"] for response in obj["responses"]]]


def _assignment(question_id: str, labeler: str, permutation: str, state: str, attempt: int = 0) -> dict[str, Any]:
    return {
        "question_id": question_id, "labeler": labeler, "permutation": permutation, "state": state, "turn": 0, "expires": 0.0,
        "attempt": attempt,
    }  # fmt: skip
