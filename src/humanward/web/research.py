"""The researcher's pages: how the run does, how the labelers do, disputed questions, and what labelers wrote."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from humanward.errors import UserError
from humanward.feedback import Person, kind_of
from humanward.records import Label, Question
from humanward.web.auth import Form, Here, Who
from humanward.web.errors import Refusal
from humanward.web.site import Site

SHOWN = 50
DISPUTES = 20
MOST_TEXT = 2000


def progress(site: Site) -> dict[str, Any]:
    """Labels per round, the round that is asked now, what the trainer does, and the cord."""
    stage, cord, total = site.run.stage(), site.store.cord(), site.store.counts()
    rounds = [_round(site, number) for number in site.store.rounds()]
    now = next((one for one in reversed(rounds) if one["missing"]), rounds[-1] if rounds else None)
    return {
        "run": site.run.name, "stage": stage[0] if stage else None, "doing": site.run.doing(),
        "waits": bool(now and now["missing"] and site.run.waits_for_labels()), "now": now, "rounds": rounds,
        "labels": total.labels, "wanted": total.wanted, "missing": total.missing, "leased": total.leased,
        "cord": {"person": cord.person, "reason": cord.reason, "time": cord.time} if cord else None,
    }  # fmt: skip


def _round(site: Site, number: int) -> dict[str, Any]:
    counts = site.store.counts(number)
    return {
        "round": number, "name": site.run.round_name(number), "policy": site.policy_of(number), "questions": counts.questions,
        "labels": counts.labels, "wanted": counts.wanted, "missing": counts.missing, "leased": counts.leased, "skipped": counts.skipped,
        "flagged": counts.flagged,
    }  # fmt: skip


def run(request: Request, site: Here, who: Who) -> Response:
    """Progress, curves and the andon cord."""
    charts = site.run.charts()
    latest = [(chart["title"], one["name"], one["points"][-1]) for chart in charts for one in chart["series"]]
    return site.page(request, "run.html.jinja", progress=progress(site), charts=charts, latest=latest, names=_names(site))


def run_json(request: Request, site: Here, who: Who) -> Response:
    """The same for the script of the page, which asks every few seconds."""
    return JSONResponse({"progress": progress(site), "charts": site.run.charts()})


def pull_cord(request: Request, site: Here, who: Who, form: Form) -> Response:
    """Stop the training now. Labelers may, too: they are the first to see what it has come to."""
    reason = _text(form, "reason")
    if not reason:
        raise Refusal(400, "Say why the training should stop: whoever lets it go on needs to know.")
    site.store.pull_cord(who.id, reason, request.scope["state"]["request_id"])
    return RedirectResponse("/stop" if who.role == "labeler" else "/run", 303)


def release_cord(request: Request, site: Here, who: Who, form: Form) -> Response:
    """Let the training go on."""
    site.store.release_cord(who.id, _text(form, "note"), request.scope["state"]["request_id"])
    return RedirectResponse("/run", 303)


def labelers(request: Request, site: Here, who: Who) -> Response:
    """Pace, agreement and care of every labeler."""
    people = site.store.people.all()
    table = site.qualities.table([person.id for person in people if person.role != "labeler"])
    return site.page(request, "labelers.html.jinja", table=table, names=_names(site), idle=_idle(people, table.labelers))


def disputes(request: Request, site: Here, who: Who) -> Response:
    """Questions about which labels disagree, with who said what."""
    found = [_dispute_json(question, labels, decided) for question, labels, decided in site.store.disputed(DISPUTES)]
    return site.page(request, "disputes.html.jinja", disputes=found, names=_names(site), most=DISPUTES)


def adjudicate(request: Request, site: Here, who: Who, question_id: str, form: Form) -> Response:
    """Decide a question: this answer alone trains from now on."""
    question = _labelled(site, question_id)
    event_id = form.get("client_event_id") or secrets.token_hex(16)
    site.store.adjudicate(who.id, question_id, answer_of(question, form), event_id[:64], _text(form, "comment"))
    site.store.people.audit(who.id, "adjudicate", {"question": question_id}, request.scope["state"]["request_id"])
    return RedirectResponse("/run/disputes", 303)


def inbox(request: Request, site: Here, who: Who) -> Response:
    """What labelers wrote: flags, comments, skips with a reason."""
    return site.page(request, "inbox.html.jinja", entries=_inbox(site), names=_names(site), most=SHOWN)


def answer_of(question: Question, form: dict[str, str]) -> Any:
    """The answer out of the fields of the form, in the order of ``question.responses``: one number or word, or one number each."""
    K = len(question.responses)
    try:
        if question.kind in ("ranking", "soft"):
            values = [float(form[f"answer-{index}"]) for index in range(K)]
            return values if question.kind == "soft" else [round(value) - 1 for value in values]
        given = form["answer"]
        return given if given == "tie" else float(given) if question.kind in ("rating", "difference") else int(given)
    except (KeyError, ValueError, OverflowError):
        raise UserError("The answer is missing or no number; choose one.") from None


def _labelled(site: Site, question_id: str) -> Question:
    """A question that has a label, which is what can be disputed."""
    first = site.store.events(question_id=question_id, kinds=("label",), limit=1) if "\0" not in question_id else []
    shown = site.store.assignment(first[0].labeler, question_id) if first else None
    if shown is None:
        raise Refusal(404, "There is no labelled question of that name.")
    return shown.question


def _dispute_json(question: Question, labels: list[Label], decided: Label | None) -> dict[str, Any]:
    by = [{"labeler": label.labeler, "answer": label.answer, "comment": label.comment, "time": label.time} for label in labels]
    chosen: list[list[str]] = [[] for _ in question.responses]
    for label in labels:
        for index in _first(question, label.answer):
            chosen[index].append(label.labeler)
    said = None
    if decided is not None:
        first = _first(question, decided.answer)
        said = {"person": decided.labeler, "answer": decided.answer, "comment": decided.comment, "first": first}
    K = len(question.responses)
    return {
        "id": question.id, "kind": question.kind, "round": question.round, "prompt": question.prompt.text,
        "title": f"Best of {K}" if question.kind == "best_of_k" else question.kind.capitalize(),
        "responses": [response.text for response in question.responses], "chosen": chosen, "labels": by, "decided": said,
        "tie": [label.labeler for label in labels if label.answer == "tie"], "task": kind_of(question).default_instructions,
        "client_event_id": secrets.token_hex(16),
    }  # fmt: skip


def _first(question: Question, answer: Any) -> list[int]:
    """The responses that an answer puts first."""
    if question.kind in ("best_of_k", "pair"):
        return [answer] if isinstance(answer, int) else []
    if question.kind == "difference":
        return [int(answer < 0)] if answer else []
    if isinstance(answer, list):
        best = min(answer) if question.kind == "ranking" else max(answer)
        return [index for index, value in enumerate(answer) if value == best]
    return []


def _inbox(site: Site) -> list[dict[str, Any]]:
    entries = []
    for event in site.store.inbox(SHOWN):
        shown = site.store.assignment(event.labeler, event.question_id)
        entries.append({
            "kind": event.kind, "labeler": event.labeler, "time": event.time, "question_id": event.question_id,
            "text": event.body.get("reason") or event.body.get("comment") or "",
            "prompt": shown.question.prompt.text if shown else "", "responses": [r.text for r in shown.question.responses] if shown else [],
        })  # fmt: skip
    return entries


def _idle(people: list[Person], busy: list[Any]) -> list[Person]:
    known = {one.labeler for one in busy}
    return [person for person in people if person.role == "labeler" and person.id not in known and not person.disabled]


def _names(site: Site) -> dict[str, str]:
    """Names by pseudonym, for eyes that may see them."""
    return {person.id: person.name for person in site.store.people.all()}


def _text(form: dict[str, str], name: str) -> str:
    return form.get(name, "").strip()[:MOST_TEXT]
