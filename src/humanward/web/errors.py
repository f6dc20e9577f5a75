"""How a request fails: one line for people, JSON for programs, and never what happened inside."""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from humanward.errors import RunError, UserError
from humanward.web.site import Site, clean, wants_json

log = logging.getLogger("humanward.web")

RETRY_SECONDS = 5
MESSAGES = {
    400: "The request cannot be understood.",
    401: "Sign in first.",
    403: "This is not for you.",
    404: "There is no such page.",
    405: "This is not done here.",
    408: "The request took too long.",
    409: "Somebody else has signed in here meanwhile.",
    413: "The request is too large.",
    415: "The request has the wrong content type.",
    421: "This server does not answer under that name.",
    422: "The request cannot be understood.",
    429: "Too many requests; wait a moment.",
    500: "Something went wrong here.",
    503: "The labels cannot be reached now. What you did is kept on this page; try again in a moment.",
}


class Refusal(HTTPException):
    """A request that is answered with an error. ``message``: one line that the user may see."""

    def __init__(self, status: int, message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message or MESSAGES[status], headers)


def as_refusal(error: Exception, where: str, request_id: str) -> HTTPException:
    """What the client is told. Only the log knows more."""
    match error:
        case HTTPException():
            return error
        case UserError():
            return Refusal(400, str(error).splitlines()[0])
        case RunError() | DBAPIError() | PoolTimeout():
            log.error("request %s: %s: %s", request_id, where, " ".join(str(error).split()))
            return Refusal(503, headers={"Retry-After": str(RETRY_SECONDS)})
        case _:
            log.error("request %s: %s", request_id, where, exc_info=error)
            return Refusal(500)


def answer_error(request: Request, error: HTTPException) -> Response:
    """The response to a request that failed."""
    site: Site = request.app.state.site
    message = clean(error.detail) if isinstance(error, Refusal) else MESSAGES.get(error.status_code, MESSAGES[400])
    request_id = request.scope["state"]["request_id"]
    headers = dict(error.headers or {})
    if wants_json(request.scope):
        return JSONResponse({"error": message, "request": request_id}, error.status_code, headers)
    if error.status_code == 401 and request.method == "GET":
        return RedirectResponse("/sign-in", 303, headers)
    return site.page(
        request, "error.html.jinja", error.status_code, headers, message=message, request_id=request_id, status=error.status_code
    )
