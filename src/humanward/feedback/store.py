"""The label store: a queue of questions with leases, and an append-only, hash-chained log of what labelers did."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, func, insert, select

from humanward.errors import UserError
from humanward.feedback import queue, schema
from humanward.feedback.database import Database, retried
from humanward.feedback.kinds import kind_of
from humanward.feedback.log import Log, canonical, checked_id, label_of, sha256, time_text
from humanward.feedback.people import People, append_audit
from humanward.feedback.queue import Assignment, assignment_of, place_of, question_of
from humanward.feedback.reading import Counts, Reader
from humanward.records import Label, Question, content_id

__all__ = ["LEASE_SECONDS", "Answer", "Assignment", "Cord", "Counts", "Store"]

LEASE_SECONDS = 600.0
LONGEST_TEXT = 10_000
"""Of a comment or a reason, characters."""
_CHUNK = 500
_UNDOABLE = ("label", "skip")


class Answer(NamedTuple):
    """One answer for ``Store.record_many``; the fields of ``Store.record``."""

    question_id: str
    answer: Any
    client_event_id: str
    seconds: float | None = None
    confidence: float | None = None
    comment: str = ""
    instructions: str = ""
    """Version of the instructions that were shown."""


@dataclass(frozen=True)
class Cord:
    """The andon cord is pulled: training is to stop until a researcher lets it go."""

    person: str
    reason: str
    time: str


class Store(Reader):
    """Questions, leases and labels in one SQL database.

    Every method is one short transaction, and what it returned is on disk. Threads and processes may share one database. A labeler never
    gets a question again that they answered or skipped, and a question is never out to more labelers than its overlap says. An answer
    that comes after its lease has expired is kept even where somebody else has answered meanwhile: work that was done is not thrown away.

    Gold questions have a known answer and go to every labeler once; repeats ask a labeler the same again. Neither counts or trains.
    """

    def __init__(
        self, address: str | os.PathLike[str], *, clock: Callable[[], float] = time.time, repeat_share: float = 0.0,
        patience: float | None = None,
    ) -> None:  # fmt: skip
        """address: a file (made when it is not there) or a database URL. clock: seconds since 1970. repeat_share: see ``set_repeats``.

        patience: how long to wait for a database server that is away, seconds; None: as long as suits a page.
        """
        self.set_repeats(repeat_share)
        super().__init__(Database(address, patience), clock)
        self.people = People(self._database, clock)

    @classmethod
    def in_memory(cls, *, clock: Callable[[], float] = time.time, repeat_share: float = 0.0) -> Self:
        """A store that dies with the process."""
        return cls(":memory:", clock=clock, repeat_share=repeat_share)

    def close(self) -> None:
        self._database.close()

    # Questions

    @retried
    def add_questions(self, questions: Iterable[Question], *, gold: Mapping[str, Any] | None = None) -> int:
        """Put questions at the end of the queue and return how many were new. A question that is there already is passed over.

        Args:
            questions: in the order in which they are to be served.
            gold: the known answers of some of them, by question id, in the order of ``question.responses``. These are served to every
                labeler once, spread among the others.

        Raises:
            UserError: a question or a known answer does not fit its kind, or an id belongs to another question. Nothing is added then.
        """
        known_answers = dict(gold or {})
        rows: dict[str, dict[str, Any]] = {}
        for question in questions:
            kind = kind_of(question)
            kind.check_question(question)
            row = {
                "id": question.id, "round": question.round, "split": question.split, "overlap": question.overlap, "leases": 0, "labels": 0,
                "words": canonical([len(text.split()) for text in (question.prompt.text, *(r.text for r in question.responses))]),
                "gold": None, "body": canonical(question.to_json()),
            }  # fmt: skip
            if question.id in known_answers:
                row["gold"] = canonical(kind.check_answer(question, known_answers[question.id]))
            _same_question(rows.setdefault(question.id, row), row)
        if strangers := known_answers.keys() - rows.keys():
            raise UserError(f"gold: question {min(strangers)}: a known answer for a question that is not among those given")
        table = schema.questions
        with self._database.write() as connection:
            for ids in _chunks(list(rows)):
                for known in connection.execute(select(table.c.id, table.c.body, table.c.gold).where(table.c.id.in_(ids))):
                    _same_question(known._mapping, rows.pop(known.id))
            self._insert(connection, _spread(list(rows.values())))
        return len(rows)

    def set_repeats(self, share: float) -> None:
        """Ask about ``share`` of the answered questions once more, 0 to 1: the same labeler, later, with the responses in another order.

        Which ones depends on the question and the labeler alone.
        """
        if not 0 <= share <= 1:
            raise UserError(f"repeats: a share of {share}: expected 0 to 1")
        self._repeat_share = share

    # Leases

    def lease(self, labeler: str, seconds: float = LEASE_SECONDS) -> Assignment | None:
        """Lend the next question to a labeler; None when there is none for them now."""
        return next(iter(self.lease_many(labeler, 1, seconds)), None)

    def lease_many(self, labeler: str, limit: int, seconds: float = LEASE_SECONDS) -> list[Assignment]:
        """Lend up to ``limit`` questions at once, besides those that the labeler holds."""
        now = self._clock()
        with self._database.write() as connection:
            queue.expire(connection, now)
            return queue.lend(connection, checked_id("labeler", labeler), limit, now + seconds)

    @retried
    def held(self, labeler: str, limit: int, seconds: float = LEASE_SECONDS) -> list[Assignment]:
        """What the labeler holds, oldest first, topped up with new questions to ``limit``; all their leases last ``seconds`` from now.

        Asked again, it gives the same questions: a client that lost the answer simply repeats the request.
        """
        now = self._clock()
        with self._database.write() as connection:
            queue.expire(connection, now)
            mine = [assignment_of(place, labeler) for place in queue.held(connection, labeler)]
            queue.renew(connection, labeler, now + seconds)
            more = queue.lend(connection, checked_id("labeler", labeler), limit - len(mine), now + seconds) if limit > len(mine) else []
            return [*mine, *more][:limit]

    @retried
    def release(self, labeler: str) -> int:
        """Give back every question that the labeler holds, without an answer; returns how many."""
        with self._database.write() as connection:
            places = queue.held(connection, labeler)
            queue.free(connection, places)
            return len(places)

    # Events

    def record(
        self,
        labeler: str,
        question_id: str,
        answer: Any,
        client_event_id: str,
        seconds: float | None = None,
        confidence: float | None = None,
        comment: str = "",
        instructions: str = "",
    ) -> Label:
        """Keep one answer, given in the order of ``question.responses``. The same client_event_id is answered with the same label.

        Raises:
            UserError: no such question, an answer that does not fit the kind, a question that the labeler already answered or skipped, or a
                client_event_id that the labeler used for something else.
        """
        return self.record_many(labeler, [Answer(question_id, answer, client_event_id, seconds, confidence, comment, instructions)])[0]

    @retried
    def record_many(self, labeler: str, answers: Sequence[Answer]) -> list[Label]:
        """Keep several answers in one transaction: all of them or none."""
        with self._database.write() as connection:
            log = Log(connection, self._clock)
            return [self._record(log, labeler, answer) for answer in answers]

    @retried
    def skip(self, labeler: str, question_id: str, client_event_id: str, reason: str = "") -> None:
        """Hand the question to others and never show it to this labeler again, unless they undo the skip."""
        with self._database.write() as connection:
            log, body = Log(connection, self._clock), {"reason": _checked_text("reason", reason)}
            if log.known(labeler, client_event_id, "skip", question_id) is None:
                queue.settle(connection, labeler, place_of(connection, labeler, question_id), queue.SKIPPED)
                log.append("skip", question_id, labeler, client_event_id, body)

    def flag(self, labeler: str, question_id: str, client_event_id: str, reason: str = "") -> None:
        """Tell the researcher that something is wrong with a question. It stays where it is: flagging is neither an answer nor a skip."""
        self._remark("flag", labeler, question_id, client_event_id, {"reason": _checked_text("reason", reason)})

    def comment(self, labeler: str, question_id: str, client_event_id: str, text: str) -> None:
        """Tell the researcher something about a question."""
        self._remark("comment", labeler, question_id, client_event_id, {"comment": _checked_text("comment", text)})

    @retried
    def undo(self, labeler: str, client_event_id: str, seconds: float = LEASE_SECONDS) -> Assignment | None:
        """Take back the labeler's newest label or skip that still counts, and lend them the question again. Flags and comments stay.

        Returns the assignment, or None when there is nothing to take back. After the undo of a skip the lease is new only if the question
        still wants answers. The log keeps both the event and its undo.
        """
        view, now = schema.current_events, self._clock()
        with self._database.write() as connection:
            log = Log(connection, self._clock)
            done = log.known(labeler, client_event_id, "undo", None)
            if done is None:
                newest = select(view).where(view.c.labeler == labeler, view.c.kind.in_(_UNDOABLE)).order_by(view.c.seq.desc()).limit(1)
                target = connection.execute(newest).one_or_none()
                if target is None:
                    return None
                queue.expire(connection, now)
                place = place_of(connection, labeler, target.question_id)
                queue.reopen(connection, labeler, place, now + seconds)
                done = log.append("undo", target.question_id, labeler, client_event_id, {"kind": target.kind}, target=target.seq)
                if target.kind == "label" and queue.is_common(place) and place.labels > 1:
                    queue.mark_dispute(connection, place.id)
            return assignment_of(place_of(connection, labeler, done["question_id"]), labeler)

    @retried
    def adjudicate(self, person: str, question_id: str, answer: Any, client_event_id: str, comment: str = "") -> Label:
        """Decide a question about which labelers disagree: from now on its newest adjudication alone trains. It can be done again.

        Raises:
            UserError: no such question, a gold question or a repeat, an answer that does not fit, or a client_event_id used before.
        """
        with self._database.write() as connection:
            log = Log(connection, self._clock)
            row = log.known(person, client_event_id, "adjudicate", question_id)
            if row is None:
                place = place_of(connection, person, question_id)
                if not queue.is_common(place):
                    raise UserError(f"question {question_id}: gold questions and repeats train nothing; adjudicate another one")
                body = _label_body(place, Answer(question_id, answer, client_event_id, comment=comment), ())
                row = log.append("adjudicate", question_id, person, client_event_id, body)
            return label_of(row)

    # Instructions

    @retried
    def add_instructions(self, text: str) -> str:
        """Make a text the instructions that hold now and return its version. The current text again changes nothing."""
        version, table = self.instructions_version(text), schema.instructions
        with self._database.write() as connection:
            last = connection.execute(select(table.c.seq, table.c.version).order_by(table.c.seq.desc()).limit(1)).one_or_none()
            if last is None or last.version != version:
                values = {"seq": last.seq + 1 if last else 1, "version": version, "text": text, "time": time_text(self._clock())}
                connection.execute(insert(table), values)
        return version

    # The andon cord

    def pull_cord(self, person: str, reason: str, request_id: str = "") -> Cord:
        """Ask the training to stop now."""
        self._move_cord(1, person, _checked_text("reason", reason), request_id)
        cord = self.cord()
        return cord or Cord(person, reason, time_text(self._clock()))

    def release_cord(self, person: str, note: str = "", request_id: str = "") -> None:
        """Let the training go on."""
        if self.cord():
            self._move_cord(0, person, _checked_text("note", note), request_id)

    def cord(self) -> Cord | None:
        """Who pulled the cord and why; None when it is not pulled."""
        table = schema.cord
        with self._database.read() as connection:
            last = connection.execute(select(table).order_by(table.c.seq.desc()).limit(1)).one_or_none()
            return Cord(last.person, last.reason, last.time) if last and last.pulled else None

    def backup(self, path: Path | str) -> None:
        """Copy the store to a new file while others work with it."""
        self._database.backup(Path(path))

    # Inside a transaction

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        last = connection.scalar(queue.LAST_POSITION) or 0
        for position, row in enumerate(rows, start=last + 1):
            row["position"] = position
        if rows:
            connection.execute(insert(schema.questions), rows)
        for number in sorted({row["round"] for row in rows}):
            wanted = [row["overlap"] for row in rows if row["round"] == number and row["gold"] is None]
            queue.add_tally(connection, number, questions=len(wanted), wanted=sum(wanted), missing=sum(wanted))

    def _record(self, log: Log, labeler: str, answer: Answer) -> Label:
        row = log.known(labeler, answer.client_event_id, "label", answer.question_id)
        if row is None:
            place = place_of(log.connection, labeler, answer.question_id)
            body = _label_body(place, answer, ())
            body["permutation"] = queue.settle(log.connection, labeler, place, queue.ANSWERED)
            row = log.append("label", answer.question_id, labeler, answer.client_event_id, body)
            if queue.is_common(place):
                if place.labels:
                    queue.mark_dispute(log.connection, place.id)
                if self._repeat_share and _lot(place.id, labeler) < self._repeat_share:
                    queue.queue_repeat(log.connection, labeler, place, body["permutation"])
        return label_of(row)

    @retried
    def _remark(self, kind: str, labeler: str, question_id: str, client_event_id: str, body: dict[str, Any]) -> None:
        with self._database.write() as connection:
            place = place_of(connection, labeler, question_id)
            log = Log(connection, self._clock)
            if log.known(labeler, client_event_id, kind, question_id) is None:
                log.append(kind, question_id, labeler, client_event_id, body)
                queue.count(connection, [place], flagged=int(kind == "flag"))

    def _move_cord(self, pulled: int, person: str, reason: str, request_id: str) -> None:
        now, table = self._clock(), schema.cord
        with self._database.write() as connection:
            seq = (connection.scalar(select(func.max(table.c.seq))) or 0) + 1
            values = {"seq": seq, "pulled": pulled, "person": person, "reason": reason, "time": time_text(now)}
            connection.execute(insert(table), values)
            append_audit(connection, now, person, "pull cord" if pulled else "release cord", {"reason": reason}, request_id)


def _label_body(place: queue.Place, answer: Answer, permutation: tuple[int, ...]) -> dict[str, Any]:
    question = question_of(place.body)
    return {
        "kind": question.kind, "answer": kind_of(question).check_answer(question, answer.answer), "permutation": permutation,
        "seconds": answer.seconds, "confidence": answer.confidence, "comment": _checked_text("comment", answer.comment),
        "instructions": answer.instructions, "question": sha256(place.body),
    }  # fmt: skip


def _same_question(known: Mapping[Any, Any], row: Mapping[str, Any]) -> None:
    if known["body"] != row["body"]:
        raise UserError(f"question {known['id']}: another question has this id; give every question its own")
    if known["gold"] != row["gold"]:
        raise UserError(f"question {known['id']}: is there already with another known answer, or without one")


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gold questions among the others at even distances, each shifted by lot."""
    gold, others = [row for row in rows if row["gold"] is not None], [row for row in rows if row["gold"] is None]
    if not gold or not others:
        return rows
    places = {id(row): (number + _lot("gold", row["id"])) * len(others) / len(gold) for number, row in enumerate(gold)}
    places |= {id(row): number + 0.5 for number, row in enumerate(others)}
    return sorted(rows, key=lambda row: places[id(row)])


def _lot(*parts: str) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    return int(content_id("lot", *parts), 16) / 2**64


def _checked_text(what: str, value: str) -> str:
    if len(value) > LONGEST_TEXT:
        raise UserError(f"{what}: {len(value)} characters are too long; {LONGEST_TEXT} at most")
    return value.encode("utf-8", "replace").decode("utf-8")


def _chunks(items: list[str]) -> Iterator[list[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
