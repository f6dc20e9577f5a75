"""What is to be imported, checked and on its way: read once into a temporary file, so that the store is locked only for the writing."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol, Self

from humanward.errors import UserError
from humanward.feedback.exchange.checks import answer, known_id, number, permutation, text
from humanward.feedback.kinds import KINDS, RATING_RANGE
from humanward.feedback.log import canonical, sha256
from humanward.records import Label, Prompt, Question, Response, content_id
from humanward.records.files import Faults
from humanward.records.nouns import question_id


class Asked(NamedTuple):
    """A question."""

    where: str
    id: str
    round: int
    split: str
    overlap: int
    words: str
    body: str
    gold: str | None = None
    repeat_of: str | None = None
    only_for: str | None = None
    permutation: list[int] | None = None
    exact: bool = False
    """False: a question of the store with this id and the same texts is the same one, whatever else it has."""


class Event(NamedTuple):
    """Something that somebody did with a question."""

    where: str
    kind: str
    question_id: str
    labeler: str
    client_event_id: str
    undoes: str | None
    body: str
    time: str
    """Empty: now."""
    remark: bool
    """Whether the researcher's inbox shows it."""
    permutation: list[int] | None = None
    """The order shown, of a label."""
    exact: bool = False
    """False: the digest of the question in the body is empty, since only the store knows it."""


class Instruction(NamedTuple):
    """A version of the instructions."""

    where: str
    version: str
    text: str
    time: str


Record = Asked | Event | Instruction
_QUESTION_KEYS, _PROMPT_KEYS, _RESPONSE_KEYS = (len(fields(record)) for record in (Question, Prompt, Response))
_TYPES = {"q": Asked, "e": Event, "i": Instruction}
_MARKS = {made: mark for mark, made in _TYPES.items()}
_BODY = 1 + Asked._fields.index("body")
assert Event._fields.index("body") + 1 == _BODY


class Labeled(Protocol):
    """A question and its labels out of somebody's file; ``data.formats`` makes them."""

    @property
    def where(self) -> str: ...
    @property
    def question(self) -> Question: ...
    @property
    def labels(self) -> tuple[Label, ...]: ...


class Spool:
    """Records in a temporary file that has no name: a line for each, of its fields, a tab, and its body as it is."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115
        self.events = 0
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        for record in records:
            values, body = [_MARKS[type(record)], *record], ""
            if not isinstance(record, Instruction):
                # JSON has no bare tab or line end in it: a body need not be packed into another JSON text
                body, values[_BODY] = record.body, ""
                self.events += isinstance(record, Event)
            self._file.write(f"{encode(values)}\t{body}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        self._file.seek(0)
        for line in self._file:
            head, _, body = line[:-1].partition("\t")
            values = json.loads(head)
            if body:
                values[_BODY] = body
            yield _TYPES[values[0]](*values[1:])


def asked_of(question: Question, where: str, *, exact: bool, obj: Mapping[str, Any] | None = None) -> Asked:
    """A question that can be asked; UserError where it does not fit its kind. ``obj``: what it was read from."""
    if question.kind not in KINDS:
        raise UserError(f"{where}: kind: expected one of {', '.join(KINDS)}, found {question.kind!r}")
    kind, count = KINDS[question.kind], len(question.responses)
    if not kind.least_responses <= count <= kind.most_responses:
        span = f"{kind.least_responses}" + (f" to {kind.most_responses}" if kind.most_responses > kind.least_responses else "")
        raise UserError(f"{where}: {question.kind} needs {span} responses, found {count}")
    texts = (question.prompt.text, *(response.text for response in question.responses))
    words = canonical([len(text.split()) for text in texts])
    body = canonical(obj if obj is not None and _is_whole(obj) else question.to_json())
    return Asked(where, question.id, question.round, question.split, question.overlap, words, body, exact=exact)


def _is_whole(obj: Mapping[str, Any]) -> bool:
    """Whether a question's JSON leaves nothing to defaults: then it is what ``to_json`` gives."""
    responses = all(len(response) == _RESPONSE_KEYS for response in obj["responses"])
    keys = _QUESTION_KEYS if obj.get("propensity", 1.0) != 1.0 else _QUESTION_KEYS - 1  # written only where there was a draw
    return responses and len(obj["prompt"]) == _PROMPT_KEYS and len(obj) == keys


def foreign_records(labeled: Iterable[Labeled], faults: Faults, *, round: int | None = None, labeler: str = "file") -> Iterator[Record]:
    """Questions and labels of other projects as records.

    Args:
        labeled: questions with labels, in the order of the file.
        faults: told what does not fit; it is left out.
        round: the round of every question; None: what the file says, else 0.
        labeler: what the labels of a file that names nobody are given by: the n-th label of each question by ``labeler``-n.
    """
    source = _Foreign(round, labeler)
    for item in labeled:
        with faults.noted():
            yield from list(source.records(item))


class _Foreign:
    def __init__(self, round: int | None, labeler: str) -> None:
        self._round, self._labeler = round, labeler
        self._bodies: dict[str, int] = {}
        self._unnamed: Counter[str] = Counter()
        self._answered: Counter[tuple[str, str]] = Counter()

    def records(self, item: Labeled) -> Iterator[Record]:
        where = item.where
        if item.question.kind == "scores":
            raise UserError(f"{where}: a store has no labels of kind scores; read them as others: FILE?kind=ranking, best_of_k or pair")
        question = self._question(item.question)
        known_id(question.id, f"{where}: question_id")
        yield self._asked(question, where)
        for label in item.labels:
            who = label.labeler or self._next_unnamed(question.id)
            known_id(who, f"{where}: labeler")
            again = question
            if not item.question.id:
                # Somebody was asked the same twice, and the file has no ids to tell the questions apart: they are two questions.
                self._answered[question.id, who] += 1
                times = self._answered[question.id, who]
                if times > 1:
                    again = replace(question, id=content_id("again", question.id, times))
                    yield self._asked(again, where)
            yield self._event(again, label, who, where)

    def _asked(self, question: Question, where: str) -> Asked:
        record = asked_of(question, where, exact=False)
        digest = hash(record.body)
        if self._bodies.setdefault(question.id, digest) != digest:
            raise UserError(f"{where}: another question of this file has the id {question.id}; give every question its own")
        return record

    def _next_unnamed(self, question: str) -> str:
        self._unnamed[question] += 1
        return f"{self._labeler}-{self._unnamed[question]}"

    def _question(self, question: Question) -> Question:
        prompt = question.prompt
        if not prompt.id:
            prompt = replace(prompt, id=content_id("prompt", prompt.text, prompt.tokens))
        number = question.round if self._round is None else self._round
        kind = "rating" if question.kind == "binary" else question.kind
        name = question.id or question_id(prompt, question.responses, kind=kind, round=number)
        return replace(question, id=name, prompt=prompt, kind=kind, round=number)

    def _event(self, question: Question, label: Label, who: str, where: str) -> Event:
        count = len(question.responses)
        if label.weight != 1:
            raise UserError(f"{where}: weight {label.weight:g}: a store keeps labels of weight 1 only; train on the file itself")
        given = RATING_RANGE[label.answer] if label.kind == "binary" else label.answer
        found = answer(question.kind, given, count, where)
        unshown = () if label.adjudication else tuple(range(count))
        order = permutation(label.permutation, count, where) if label.permutation else unshown
        number(label.confidence, 1, f"{where}: confidence")
        body: dict[str, Any] = {
            "kind": question.kind, "answer": found, "permutation": order, "seconds": label.seconds, "confidence": label.confidence,
            "comment": text(label.comment, f"{where}: comment"), "instructions": label.instructions, "question": "",
        }  # fmt: skip
        written = canonical(body)
        kind = "adjudicate" if label.adjudication else "label"
        client = label.id or content_id("import", kind, question.id, who, sha256(written), label.time)
        return Event(
            where,
            kind,
            question.id,
            who,
            known_id(client, f"{where}: event_id"),
            None,
            written,
            label.time,
            bool(label.comment),
            list(order),
        )
