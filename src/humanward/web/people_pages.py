"""The admin's page: who may come in, and what was done."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from humanward.errors import UserError
from humanward.feedback import Person
from humanward.web.auth import Form, Here, Who
from humanward.web.errors import Refusal
from humanward.web.site import Site

LOG_LINES = 100
LAST_ADMIN = "This is the last admin; make somebody else admin first."


def people(request: Request, site: Here, who: Who) -> Response:
    """Everybody, and the audit log."""
    return _page(request, site)


def invite(request: Request, site: Here, who: Who, form: Form) -> Response:
    """Invite somebody new. The link is shown once, here: only its hash is kept."""
    person, token = site.store.people.invite(form.get("role", ""), form.get("name", ""))
    _audit(request, site, who, "invite", person.id, role=person.role)
    return _page(request, site, link=f"{_origin(request, site)}/join/{token}", invited=person)


def link(request: Request, site: Here, who: Who, person_id: str) -> Response:
    """A new link for somebody who is known: how they sign in again."""
    person = _known(site, person_id)
    person, token = site.store.people.invite(person.role, person.name, person.id)
    _audit(request, site, who, "new link", person.id)
    return _page(request, site, link=f"{_origin(request, site)}/join/{token}", invited=person)


def rename(request: Request, site: Here, who: Who, person_id: str, form: Form) -> Response:
    """Another name, for the eyes of researchers."""
    site.store.people.rename(_known(site, person_id).id, form.get("name", ""))
    return _done(request, site, who, "rename", person_id)


def disable(request: Request, site: Here, who: Who, person_id: str) -> Response:
    """Out now, and in no more."""
    _keep_an_admin(site, _known(site, person_id))
    site.store.people.disable(person_id)
    return _done(request, site, who, "disable", person_id)


def enable(request: Request, site: Here, who: Who, person_id: str) -> Response:
    """May come in again, by a new link."""
    site.store.people.enable(_known(site, person_id).id)
    return _done(request, site, who, "enable", person_id)


def revoke(request: Request, site: Here, who: Who, person_id: str) -> Response:
    """Out everywhere; may come in again by a new link."""
    site.store.people.revoke(_known(site, person_id).id)
    return _done(request, site, who, "revoke sessions", person_id)


def forget(request: Request, site: Here, who: Who, person_id: str, form: Form) -> Response:
    """Drop the name for good; the labels stay under the pseudonym."""
    person = _known(site, person_id)
    _keep_an_admin(site, person)
    if form.get("confirm") != person_id:
        raise UserError(f"To forget {person_id}, type {person_id} into the field: it cannot be undone.")
    site.store.people.forget(person_id)
    return _done(request, site, who, "forget", person_id)


def _page(request: Request, site: Site, link: str = "", invited: Person | None = None) -> Response:
    everybody = site.store.people.all()
    context = {
        "people": everybody, "labels": site.store.labels_by([person.id for person in everybody]),
        "audit": site.store.people.audit_log(LOG_LINES), "link": link, "invited": invited,
    }  # fmt: skip
    return site.page(request, "people.html.jinja", **context)


def _known(site: Site, person_id: str) -> Person:
    person = site.store.people.person(person_id) if "\0" not in person_id else None
    if person is None:
        raise Refusal(404, "There is nobody of that name.")
    return person


def _keep_an_admin(site: Site, person: Person) -> None:
    admins = [one.id for one in site.store.people.all() if one.role == "admin" and not one.disabled]
    if admins == [person.id]:
        raise UserError(LAST_ADMIN)


def _origin(request: Request, site: Site) -> str:
    """How the page is reached, for links; the Host was checked."""
    return f"{'https' if site.settings.secure else 'http'}://{request.headers['host']}"


def _done(request: Request, site: Site, who: Person, action: str, person_id: str) -> Response:
    _audit(request, site, who, action, person_id)
    return RedirectResponse("/run/people", 303)


def _audit(request: Request, site: Site, who: Person, action: str, person_id: str, **more: Any) -> None:
    site.store.people.audit(who.id, action, {"person": person_id, **more}, request.scope["state"]["request_id"])
