"""Our own format, exact: JSON lines of instructions, questions and events, from which an empty store becomes the same store.

    {"format": "humanward-labels-1"}
    {"instructions": {"version": …, "text": …, "time": …}}
    {"question": {…}, "gold": …, "repeat_of": …, "only_for": …, "permutation": […]}      the last four where they are not null
    {"event": {"kind": "label", "question_id": …, "labeler": …, "client_event_id": …, "time": …, "undoes": null, "body": {…}}}
    {"end": {"questions": n, "events": n}}

Questions stand before their events; ``undoes`` is the client_event_id of what an undo takes back. A line ``{"person": …}`` has a display
name; it is written only when asked for, and passed over when read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from humanward.errors import UserError
from humanward.feedback.exchange.checks import at, event_body, known_id, permutation, utc_time
from humanward.feedback.exchange.spool import Asked, Event, Instruction, Record, asked_of
from humanward.feedback.exchange.streaming import Part, each_event, each_instruction, each_question, last_event
from humanward.feedback.kinds import kind_of
from humanward.feedback.log import canonical, sha256
from humanward.feedback.store import Store
from humanward.records import Question
from humanward.records.files import Faults, InputFile

FORMAT = "humanward-labels-1"
_KINDS = ("label", "skip", "flag", "comment", "adjudicate", "undo")
_EVENT_KEYS = {"kind", "question_id", "labeler", "client_event_id", "time", "undoes", "body"}
_QUESTION_KEYS = {"question", "gold", "repeat_of", "only_for", "permutation"}


def write_exact(
    file: IO[bytes], store: Store, part: Part, *, names: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda labels: None,
) -> tuple[int, int]:  # fmt: skip
    """Write a store to an open file, and return how many questions and events.

    Args:
        file: where to.
        store: the label store.
        part: which questions, with all that was done with them.
        names: display names by pseudonym, to be written too.
        progress: told the number of events written so far.
    """
    last = last_event(store)
    file.write((json.dumps({"format": FORMAT}) + "\n").encode())
    for row in each_instruction(store):
        file.write((canonical({"instructions": {"version": row.version, "text": row.text, "time": row.time}}) + "\n").encode())
    for key, name in (names or {}).items():
        file.write((canonical({"person": {"id": key, "name": name}}) + "\n").encode())
    questions = events = 0
    for row in each_question(store, part):
        questions += 1
        file.write(_question_line(row).encode())
    for row in each_event(store, part, last):
        events += 1
        file.write(_event_line(row).encode())
        progress(events)
    file.write((json.dumps({"end": {"questions": questions, "events": events}}) + "\n").encode())
    return questions, events


def _question_line(row: Any) -> str:
    # bodies are JSON already: they are copied, neither parsed nor changed
    extra = "".join(f',"{name}":{json.dumps(row._mapping[name])}' for name in ("repeat_of", "only_for") if row._mapping[name] is not None)
    gold = "" if row.gold is None else f',"gold":{row.gold}'
    order = "" if row.only_for is None or row.permutation is None else f',"permutation":{row.permutation}'
    return f'{{"question":{row.body}{gold}{extra}{order}}}\n'


def _event_line(row: Any) -> str:
    about = json.dumps(
        {
            "kind": row.kind, "question_id": row.question_id, "labeler": row.labeler, "client_event_id": row.client_event_id,
            "time": row.time, "undoes": row.undoes,
        },
        ensure_ascii=False, separators=(",", ":"),
    )  # fmt: skip
    return f'{{"event":{about[:-1]},"body":{row.body}}}}}\n'


def is_exact(file: InputFile) -> bool:
    """Whether a file begins as our own format does."""
    return file.head(200).lstrip().startswith((b'{"format": "humanward-labels', b'{"format":"humanward-labels'))


def read_exact(file: InputFile) -> Iterator[Record]:
    """What the lines say, checked. Faults go to ``file.faults``; a line with a fault is left out."""
    reader = _ExactReader(file.faults)
    where = f"{file.path}:1"
    try:
        for where, row in file.objects():
            with file.faults.noted():
                record = reader.read(row, where)
                if record is not None:
                    yield record
        if not reader.ended and not file.faults.count:
            line = int(where.rpartition(":")[2]) + 1
            file.faults.add(f'{file.path}:{line}: the file ends without its last line {{"end": …}}: it was cut off')
    except UserError as error:
        file.faults.add(str(error))


class _ExactReader:
    """The lines of one file, each checked against those before it."""

    def __init__(self, faults: Faults) -> None:
        self.ended, self._started, self._faults = False, False, faults
        self._asked: dict[str, tuple[str, int, str]] = {}  # id -> (kind, K, digest)
        self._events = self._event_faults = 0

    def read(self, row: Mapping[str, Any], where: str) -> Record | None:
        if self.ended:
            raise UserError(f'{where}: a line behind {{"end": …}}; two files were joined, import them one by one')
        if not self._started:
            self._started = True
            if row.get("format") != FORMAT:
                raise UserError(f'{where}: expected {{"format": "{FORMAT}"}}, found format {row.get("format")!r}')
            return None
        kinds = {"instructions": self._instruction, "question": self._question, "event": self._event, "end": self._end}
        name = next((name for name in (*kinds, "person") if name in row), None)
        if name is None:
            raise UserError(f"{where}: expected instructions, question, event or end, found {', '.join(list(row)[:5]) or 'nothing'}")
        return None if name == "person" else kinds[name](row, where)

    def _question(self, row: Mapping[str, Any], where: str) -> Asked:
        _only(row, _QUESTION_KEYS, where)
        question = Question.from_json(row["question"], f"{where}: question")
        known_id(question.id, f"{where}: question: id")
        record = asked_of(question, where, exact=True, obj=row["question"])
        kind = kind_of(question)
        for name in ("repeat_of", "only_for"):
            if row.get(name) is not None:
                known_id(row[name], f"{where}: {name}")
        if (row.get("repeat_of") is None) != (row.get("only_for") is None):
            raise UserError(f"{where}: repeat_of and only_for belong together; one of them is missing")
        gold = row.get("gold")
        if gold is not None:
            with at(f"{where}: gold"):
                gold = canonical(kind.parse(gold, len(question.responses)))
        order = row.get("permutation")
        if order is not None:
            permutation(order, len(question.responses), where)
        if question.id in self._asked and self._asked[question.id][2] != sha256(record.body):
            raise UserError(f"{where}: another question of this file has the id {question.id}")
        self._asked[question.id] = (question.kind, len(question.responses), sha256(record.body))
        return record._replace(gold=gold, repeat_of=row.get("repeat_of"), only_for=row.get("only_for"), permutation=order)

    def _event(self, row: Mapping[str, Any], where: str) -> Event | None:
        try:
            return self._sound_event(row, where)
        except UserError:
            self._event_faults += 1
            raise

    def _sound_event(self, row: Mapping[str, Any], where: str) -> Event | None:
        event = row["event"]
        if not isinstance(event, Mapping):
            raise UserError(f"{where}: event: expected an object")
        _only(row, {"event"}, where)
        _only(event, _EVENT_KEYS, f"{where}: event")
        kind = event.get("kind")
        if kind not in _KINDS:
            raise UserError(f"{where}: event: kind: expected {', '.join(_KINDS)}, found {kind!r}")
        labeler = known_id(event.get("labeler"), f"{where}: labeler")
        client = known_id(event.get("client_event_id"), f"{where}: client_event_id")
        about = self._asked.get(event.get("question_id"))  # type: ignore[arg-type]
        if about is None and self._faults.count > self._event_faults:
            return None  # a line above has a fault; it may have been the question
        if about is None:
            raise UserError(f"{where}: question_id: {event.get('question_id')!r} is not the id of a question above this line")
        undoes = event.get("undoes")
        if (kind == "undo") != (undoes is not None):
            raise UserError(f"{where}: undoes: expected for events of kind undo, and for no other")
        if undoes is not None:
            known_id(undoes, f"{where}: undoes")
        said = event.get("body")
        if not isinstance(said, Mapping):
            raise UserError(f"{where}: body: expected an object")
        body = event_body(kind, said, about, where)
        self._events += 1
        remark = kind in ("flag", "comment") or bool(said.get("reason") or said.get("comment"))
        return Event(
            where,
            kind,
            event["question_id"],
            labeler,
            client,
            undoes,
            body,
            utc_time(event.get("time"), where),
            remark,
            said.get("permutation"),
            True,
        )

    def _instruction(self, row: Mapping[str, Any], where: str) -> Instruction:
        found = row["instructions"]
        if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in ("version", "text", "time")):
            raise UserError(f"{where}: instructions: expected version, text and time")
        if sha256(found["text"])[:16] != found["version"]:
            raise UserError(f"{where}: instructions: the text is not that of version {found['version']}: it was changed")
        return Instruction(where, found["version"], found["text"], utc_time(found["time"], where))

    def _end(self, row: Mapping[str, Any], where: str) -> None:
        self.ended = True
        wanted = {"questions": len(self._asked), "events": self._events}
        if row["end"] != wanted and not self._faults.count:
            raise UserError(
                f"{where}: end: expected {json.dumps(row['end'])[:80]} above this line, found {json.dumps(wanted)}: lines are missing"
            )


def _only(row: Mapping[str, Any], known: set[str], where: str) -> None:
    strange = sorted(set(row) - known)
    if strange:
        raise UserError(f"{where}: unknown key {', '.join(strange)}")
