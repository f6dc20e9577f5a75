"""Puts the pages together: one table says which routes there are, and who may use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from humanward.feedback import Store
from humanward.web import api, auth, pages, people_pages, research
from humanward.web.errors import Refusal, answer_error
from humanward.web.guard import Guard
from humanward.web.settings import WebSettings
from humanward.web.site import Site


class Route(NamedTuple):
    """One route. Researchers may do what labelers may, admins what researchers may; "public" needs no sign-in."""

    role: str
    method: str
    path: str
    handler: Callable[..., Any]


ROUTES = [
    Route("public", "GET", "/health", pages.health),
    Route("public", "GET", "/static/{name}", pages.static),
    Route("public", "GET", "/sign-in", auth.sign_in),
    Route("public", "GET", "/join/{token}", auth.join),
    Route("public", "POST", "/join", auth.redeem),
    Route("labeler", "POST", "/sign-out", auth.sign_out),
    Route("labeler", "POST", "/sign-out-everywhere", auth.sign_out_everywhere),
    Route("labeler", "GET", "/", pages.home),
    Route("labeler", "GET", "/label", pages.label),
    Route("labeler", "GET", "/history", pages.history),
    Route("labeler", "GET", "/instructions", pages.instructions),
    Route("labeler", "GET", "/account", pages.account),
    Route("labeler", "GET", "/stop", pages.stop),
    Route("labeler", "POST", "/run/cord", research.pull_cord),
    Route("labeler", "POST", "/api/questions", api.questions),
    Route("labeler", "POST", "/api/events", api.events),
    Route("labeler", "GET", "/api/history", api.history),
    Route("labeler", "GET", "/api/instructions", api.instructions),
    Route("researcher", "GET", "/run", research.run),
    Route("researcher", "GET", "/api/run", research.run_json),
    Route("researcher", "POST", "/run/cord/release", research.release_cord),
    Route("researcher", "GET", "/run/labelers", research.labelers),
    Route("researcher", "GET", "/run/disputes", research.disputes),
    Route("researcher", "POST", "/run/disputes/{question_id}", research.adjudicate),
    Route("researcher", "GET", "/run/inbox", research.inbox),
    Route("admin", "GET", "/run/people", people_pages.people),
    Route("admin", "POST", "/run/people", people_pages.invite),
    Route("admin", "POST", "/run/people/{person_id}/link", people_pages.link),
    Route("admin", "POST", "/run/people/{person_id}/rename", people_pages.rename),
    Route("admin", "POST", "/run/people/{person_id}/disable", people_pages.disable),
    Route("admin", "POST", "/run/people/{person_id}/enable", people_pages.enable),
    Route("admin", "POST", "/run/people/{person_id}/revoke", people_pages.revoke),
    Route("admin", "POST", "/run/people/{person_id}/forget", people_pages.forget),
]


def create_app(store: Store, settings: WebSettings | None = None) -> FastAPI:
    """The web application over a label store. Without settings: for a test or a look, on this machine, beside no run."""
    app = FastAPI(title="Humanward", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.site = Site(store, settings or WebSettings())
    app.state.roles = {(route.method, route.path): route.role for route in ROUTES}
    for route in ROUTES:
        app.add_api_route(route.path, route.handler, methods=[route.method], response_model=None, name=route.handler.__name__)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_middleware(Guard)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer_error(request, error)


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"][1:])
    return answer_error(request, Refusal(422, f"{name}: {fault['msg']}" if name else str(fault["msg"])))
