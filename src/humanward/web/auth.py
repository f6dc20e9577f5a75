"""Who asks: sessions by cookie, invite links, and the one check that every request passes."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from humanward.feedback import Person
from humanward.web.errors import Refusal
from humanward.web.site import Site, clean

RANK = {"labeler": 1, "researcher": 2, "admin": 3}
HOME = {"labeler": "/label", "researcher": "/run", "admin": "/run"}
SESSION_SECONDS = 7 * 24 * 3600
LABELER = "x-humanward-labeler"
"""Whom a page was made for. Another tab may have signed in as somebody else, who must not send what the first one did."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,100}")
_MOST_FIELDS = 40


def authorise(request: Request) -> None:
    """Find out who asks and refuse unless the table of routes lets them in. What is not in the table is let in for nobody."""
    site: Site = request.app.state.site
    role = role_of(request)
    token = request.cookies.get(site.cookie, "")
    person = site.store.people.session(token) if role != "public" and _TOKEN.fullmatch(token) else None
    request.scope["state"]["person"] = person
    if role == "public":
        return
    if person is None:
        raise Refusal(401)
    if request.headers.get(LABELER, person.id) != person.id:
        raise Refusal(409)
    if role is None:
        return  # no such route: it answers 404 or 405, to those who are signed in
    if RANK.get(person.role, 0) < RANK.get(role, len(RANK) + 1):
        raise Refusal(403)


def role_of(request: Request) -> str | None:
    """What the table says of the route that will serve this request: a role, "public", or None where no route will."""
    roles: dict[Any, str] = request.app.state.roles
    for route in request.app.routes:
        if route.matches(request.scope)[0] is Match.FULL:
            return roles.get((request.method, getattr(route, "path", None)), "nobody")
    return None


def the_site(request: Request) -> Site:
    """For handlers: what all pages share."""
    return request.app.state.site


def the_person(request: Request) -> Person:
    """For handlers: who asks."""
    person = request.scope["state"]["person"]
    if person is None:
        raise Refusal(401)
    return person


async def the_form(request: Request) -> dict[str, str]:
    """For handlers: the fields of a form, as clean text."""
    try:
        pairs = parse_qsl((await request.body()).decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Refusal(400) from None
    return {name: clean(value) for name, value in pairs}


Here = Annotated[Site, Depends(the_site)]
Who = Annotated[Person, Depends(the_person)]
Form = Annotated[dict[str, str], Depends(the_form)]


def address(request: Request, site: Site) -> str:
    """Where the request comes from: the peer, or what our own proxy saw."""
    if site.settings.behind_proxy:
        forwarded = request.headers.getlist("x-forwarded-for")
        if forwarded:
            return forwarded[-1].rpartition(",")[2].strip()
    return request.client.host if request.client else "unknown"


# Pages. The table of routes is in app.py.


def sign_in(request: Request, site: Here) -> Response:
    """What to do to get in."""
    return site.page(request, "sign-in.html.jinja")


def join(request: Request, site: Here, token: str) -> Response:
    """A button: programs that fetch links to show a preview do not press it, and so do not use the invite up."""
    if not _TOKEN.fullmatch(token):
        raise Refusal(404, "This is no invite link; copy the whole of it.")
    return site.page(request, "join.html.jinja", token=token)


def redeem(request: Request, site: Here, form: Form) -> Response:
    """Exchange the invite for a session. The token leaves the address bar with the redirect."""
    origin = site.blinded(f"address {address(request, site)}")
    wait = site.limits.seconds_to_wait("sign-in", origin, site.settings.sign_ins_per_minute, 1)
    if wait:
        raise Refusal(429, "Too many sign-ins that failed; wait a minute.", {"Retry-After": str(round(wait + 0.5))})
    token = form.get("token", "")
    session = site.store.people.redeem(token) if _TOKEN.fullmatch(token) else None
    person = site.store.people.session(session) if session is not None else None
    request_id = request.scope["state"]["request_id"]
    if session is None or person is None:
        site.limits.count("sign-in", origin, site.settings.sign_ins_per_minute)
        site.store.people.audit("", "sign-in refused", {"from": origin[:12]}, request_id)
        raise Refusal(403, "This invite was used already, has expired or was withdrawn; ask for a new one.")
    old = request.cookies.get(site.cookie, "")
    if _TOKEN.fullmatch(old):
        site.store.people.sign_out(old)
    site.store.people.audit(person.id, "sign-in", {"from": origin[:12]}, request_id)
    response = RedirectResponse(HOME[person.role], 303)
    response.set_cookie(site.cookie, session, max_age=SESSION_SECONDS, path="/", secure=site.settings.secure, httponly=True, samesite="lax")
    return response


def sign_out(request: Request, site: Here, who: Who) -> Response:
    """End this session."""
    site.store.people.sign_out(request.cookies.get(site.cookie, ""))
    return _signed_out(request, site, who, "sign-out")


def sign_out_everywhere(request: Request, site: Here, who: Who) -> Response:
    """End all sessions of this person."""
    site.store.people.revoke(who.id)
    return _signed_out(request, site, who, "sign-out everywhere")


def _signed_out(request: Request, site: Site, who: Person, action: str) -> Response:
    site.store.people.audit(who.id, action, None, request.scope["state"]["request_id"])
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(site.cookie, path="/", secure=site.settings.secure, httponly=True, samesite="lax")
    return response
