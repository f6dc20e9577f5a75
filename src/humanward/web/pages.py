"""The labeler's pages. Their scripts talk to ``api``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from humanward.web.auth import HOME, Here, Who
from humanward.web.errors import Refusal


def home(who: Who) -> Response:
    """To the page that this person needs most."""
    return RedirectResponse(HOME[who.role], 303)


def label(request: Request, site: Here, who: Who) -> Response:
    """The questions."""
    version, text = site.store.current_instructions() or ("", "")
    return site.page(request, "label.html.jinja", instructions={"version": version, "text": text}, keys=dict(site.settings.keys))


def history(request: Request, site: Here, who: Who) -> Response:
    """What the labeler did."""
    return site.page(request, "history.html.jinja", pace=site.paces.of(who.id))


def instructions(request: Request, site: Here) -> Response:
    """What is asked of labelers."""
    version, text = site.store.current_instructions() or ("", "")
    return site.page(request, "instructions.html.jinja", instructions={"version": version, "text": text})


def account(request: Request, site: Here, who: Who) -> Response:
    """Who one is, and ways out."""
    return site.page(request, "account.html.jinja")


def stop(request: Request, site: Here, who: Who) -> Response:
    """The andon cord: whoever sees that something is badly wrong may stop the training."""
    return site.page(request, "stop.html.jinja", pulled=site.store.cord() is not None)


def static(request: Request, site: Here, name: str) -> Response:
    """A style sheet, a script or a picture."""
    file = site.static.get(name)
    if file is None:
        raise Refusal(404)
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.content_type)


def health() -> Response:
    """For whoever waits for the server: it is up."""
    return JSONResponse({"ok": True})
