"""The labeler's JSON: questions in, events out, history. Nothing in it says who or what wrote a response, or what others answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from starlette.requests import Request

from humanward.errors import UserError
from humanward.feedback import Assignment, Event, Person, kind_of
from humanward.records import Question
from humanward.web.auth import Here, Who
from humanward.web.errors import Refusal
from humanward.web.site import Site, clean

MOST_HELD = 5
MOST_EVENTS = 50
MOST_TEXT = 4000
HISTORY = 50
SAID = ("seconds", "confidence", "comment", "reason")
"""Parts of an event's body that its labeler sees again."""


class Want(BaseModel):
    """How many questions the page wants to hold: the one shown and those fetched ahead."""

    model_config = ConfigDict(extra="forbid")
    want: Annotated[int, Field(ge=1, le=MOST_HELD, strict=True)] = 2


class SentEvent(BaseModel):
    """One thing that the labeler did. ``answer`` is about the responses in the order in which they were shown."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    client_event_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    """Made by the page, once per event: sending it again changes nothing and is answered the same."""
    kind: Literal["label", "skip", "flag", "comment", "undo"]
    question_id: Annotated[str, Field(max_length=200)] | None = None
    answer: Any = None
    seconds: Annotated[float, Field(ge=0, le=604_800)] | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    comment: Annotated[str, Field(max_length=MOST_TEXT)] = ""
    reason: Annotated[str, Field(max_length=MOST_TEXT)] = ""
    instructions: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    """Version of the instructions that were shown."""


_SENT_EVENT = TypeAdapter(SentEvent)


class Sent(BaseModel):
    """A batch from the outbox. Each event is looked at on its own, so that one that is wrong does not hold up the others."""

    model_config = ConfigDict(extra="forbid")
    events: Annotated[
        list[Any],
        Field(min_length=1, max_length=MOST_EVENTS),
        WithJsonSchema({"type": "array", "minItems": 1, "maxItems": MOST_EVENTS, "items": SentEvent.model_json_schema()}),
    ]


def questions(site: Here, who: Who, body: Want) -> dict[str, Any]:
    """The questions that the labeler holds, topped up to ``want``. Asking again gives the same ones."""
    held = site.store.held(who.id, body.want, site.settings.lease_seconds)
    left, version = site.store.left(who.id), current_version(site)
    return {
        "questions": [question_json(site, one, version) for one in held],
        "progress": site.paces.of(who.id) | {"left": left, "goal": site.settings.goal},
        "waiting": "" if held else site.run.why_nothing(),
    }


def events(site: Here, who: Who, body: Sent) -> dict[str, Any]:
    """Apply the events in order, each on its own."""
    most, cost = site.settings.labels_per_minute, len(body.events)
    wait = site.limits.seconds_to_wait("labels", who.id, most, min(cost, most))
    if wait:
        raise Refusal(
            429,
            f"Too fast: at most {most} answers a minute are taken. They are kept on this page.",
            {"Retry-After": str(round(wait + 0.5))},
        )
    site.limits.count("labels", who.id, most, min(cost, most))
    return {"results": [_result(site, who, event) for event in body.events]}


def history(site: Here, who: Who, before: Annotated[int | None, Query(ge=0, lt=2**31)] = None) -> dict[str, Any]:
    """What the labeler did, newest first."""
    return {"events": own_events(site, who, before)}


def instructions(request: Request, site: Here, version: Annotated[str, Query(pattern=r"^[0-9a-f]{0,64}$")] = "") -> dict[str, str]:
    """The instructions of now, or those of a version that a question came with."""
    current = site.store.current_instructions() or ("", "")
    if version in ("", current[0]):
        return {"version": current[0], "text": current[1]}
    text = site.own_instructions.get(version) or site.store.instructions(version)
    if text is None:
        raise Refusal(404, "There are no instructions of that version.")
    return {"version": version, "text": text}


def own_events(site: Site, who: Person, before: int | None) -> list[dict[str, Any]]:
    """A page of the labeler's history, as the labeler saw it."""
    found, version = [], current_version(site)
    for event, shown in site.store.history(who.id, before, HISTORY):
        entry = {
            "seq": event.seq, "kind": event.kind, "time": event.time, "undone": event.undone,
            "question": question_json(site, shown, version),
            "answer": as_shown(shown, event.body["answer"]) if event.kind == "label" else None,
        }  # fmt: skip
        found.append(entry | {name: event.body[name] for name in SAID if name in event.body})
    return found


def question_json(site: Site, shown: Assignment, current: str | None = None) -> dict[str, Any]:
    """A question as its labeler may see it: texts in the order shown, and nothing else about them.

    current: the version of the run's instructions, where it is known already.
    """
    question = shown.question
    return {
        "id": question.id,
        "kind": question.kind,
        "prompt": question.prompt.text,
        "responses": [question.responses[index].text for index in shown.permutation],
        "attempt": shown.attempt,
        "instructions": _instructions_of(site, question, current),
    }


def as_shown(shown: Assignment, answer: Any) -> Any:
    """A stored answer, about the responses in the order in which they were shown: what ``Assignment.unpermute`` turns back."""
    if shown.question.kind in ("best_of_k", "pair"):
        return shown.permutation.index(answer) if isinstance(answer, int) else answer
    if isinstance(answer, list):
        return [answer[index] for index in shown.permutation]
    return kind_of(shown.question).unpermute(answer, shown.permutation)  # a difference, or a rating: its own inverse


def current_version(site: Site) -> str:
    """Of the run's instructions; empty where there are none."""
    current = site.store.current_instructions()
    return current[0] if current is not None else ""


def _instructions_of(site: Site, question: Question, current: str | None) -> str:
    """The version that the labeler has to have read. A question's own instructions count before those of the run."""
    if question.instructions:
        version = site.store.instructions_version(question.instructions)
        site.own_instructions[version] = question.instructions
        return version
    return current_version(site) if current is None else current


def _result(site: Site, who: Person, sent: Any) -> dict[str, Any]:
    fields = sent
    if isinstance(sent, dict):
        fields = {clean(key): clean(value) if isinstance(value, str) else value for key, value in sent.items()}
    given = fields.get("client_event_id") if isinstance(fields, dict) else None
    try:
        event = _SENT_EVENT.validate_python(fields)
        return {"client_event_id": event.client_event_id, "ok": True} | _APPLY[event.kind](site, who, event)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in fault["loc"])
        return _refused(given, f"{name}: {fault['msg']}" if name else fault["msg"])
    except UserError as error:
        return _refused(given, str(error).splitlines()[0])


def _refused(given: Any, reason: str) -> dict[str, Any]:
    known = given if isinstance(given, str) and len(given) <= 64 else None
    return {"client_event_id": known, "ok": False, "error": clean(reason), "final": True}


def _shown(site: Site, who: Person, event: SentEvent) -> Assignment:
    """What the labeler was shown. Questions of others are answered like questions that do not exist."""
    question_id = event.question_id or ""
    try:
        shown = site.store.assignment(who.id, question_id)
    except UserError:
        shown = None
    if shown is None:
        raise UserError(f"question {question_id[:80]}: not among yours")
    return shown


def _label(site: Site, who: Person, event: SentEvent) -> dict[str, Any]:
    shown = _shown(site, who, event)
    answer = shown.unpermute(event.answer)
    site.store.record(
        who.id, shown.question.id, answer, event.client_event_id, event.seconds, event.confidence, event.comment,
        instructions=event.instructions,
    )  # fmt: skip
    return {}


def _skip(site: Site, who: Person, event: SentEvent) -> dict[str, Any]:
    site.store.skip(who.id, _shown(site, who, event).question.id, event.client_event_id, event.reason)
    return {}


def _flag(site: Site, who: Person, event: SentEvent) -> dict[str, Any]:
    site.store.flag(who.id, _shown(site, who, event).question.id, event.client_event_id, event.reason)
    return {}


def _comment(site: Site, who: Person, event: SentEvent) -> dict[str, Any]:
    text = event.comment.strip()
    if not text:
        raise UserError("the comment is empty")
    site.store.comment(who.id, _shown(site, who, event).question.id, event.client_event_id, text)
    return {}


def _undo(site: Site, who: Person, event: SentEvent) -> dict[str, Any]:
    """Take back the newest answer or skip; the page shows the question again, with what was answered."""
    shown = site.store.undo(who.id, event.client_event_id, site.settings.lease_seconds)
    if shown is None:
        return {"question": None}
    return {"question": question_json(site, shown) | _undone_label(site, who, event.client_event_id, shown)}


def _undone_label(site: Site, who: Person, client_event_id: str, shown: Assignment) -> dict[str, Any]:
    """``answer`` as shown, or None where a skip was taken back; ``comment`` and ``confidence`` where the label had them."""
    own = site.store.events(labeler=who.id, question_id=shown.question.id, limit=10_000)
    target = next((event.target for event in own if event.kind == "undo" and event.client_event_id == client_event_id), None)
    label: Event | None = next((event for event in own if event.seq == target and event.kind == "label"), None)
    if label is None:
        return {"answer": None}
    more = {name: label.body.get(name) for name in ("comment", "confidence")}
    return {"answer": as_shown(shown, label.body["answer"])} | {name: value for name, value in more.items() if value not in (None, "")}


_APPLY: dict[str, Callable[[Site, Person, SentEvent], dict[str, Any]]] = {
    "label": _label,
    "skip": _skip,
    "flag": _flag,
    "comment": _comment,
    "undo": _undo,
}
