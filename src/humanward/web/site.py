"""What all pages share: the store, the settings, the templates and the static files."""

from __future__ import annotations

import hashlib
import hmac
import statistics
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from humanward.feedback import Store
from humanward.web.progress import Paces
from humanward.web.quality import Qualities
from humanward.web.run_view import RunView
from humanward.web.settings import WebSettings

CONTENT_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "woff2": "font/woff2"}


@dataclass(frozen=True)
class StaticFile:
    """One file that every visitor may have."""

    content: bytes
    content_type: str
    etag: str


class Limits:
    """Moving windows of a minute, kept in memory."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def seconds_to_wait(self, what: str, who: str, per_minute: int, cost: int) -> float:
        """0 where ``cost`` more are allowed now, else about how long to wait."""
        item = RateLimitItemPerMinute(per_minute)
        if self._limiter.test(item, what, who, cost=cost):
            return 0.0
        return max(1.0, self._limiter.get_window_stats(item, what, who).reset_time - time.time())

    def count(self, what: str, who: str, per_minute: int, cost: int = 1) -> None:
        """Note that ``who`` did ``cost`` of it."""
        self._limiter.hit(RateLimitItemPerMinute(per_minute), what, who, cost=cost)


class Site:
    """Made once by ``create_app`` and reached as ``app.state.site``."""

    def __init__(self, store: Store, settings: WebSettings) -> None:
        self.store, self.settings = store, settings
        self.limits, self.paces, self.qualities = Limits(), Paces(store), Qualities(store)
        self.run = RunView(settings.run)
        self._policies: dict[int, str] = {}
        self.own_instructions: dict[str, str] = {}
        """Texts by version, of questions that came with their own."""
        self.static = read_static()
        self.templates = Environment(
            loader=PackageLoader("humanward.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            finalize=lambda value: "" if value is None else value,
        )  # fmt: skip

    def policy_of(self, round: int) -> str:
        """The first digits of the policy that wrote most responses of a round; empty where it is not recorded."""
        if round not in self._policies:
            policies = [response.policy for question in self.store.questions(round) for response in question.responses if response.policy]
            if not policies:
                return ""
            self._policies[round] = statistics.mode(policies)[:8]
        return self._policies[round]

    @property
    def cookie(self) -> str:
        """Its name. Cookies do not tell ports apart, so two runs on one machine need two names."""
        name = f"humanward-{self.blinded('cookie')[:8]}"
        return f"__Host-{name}" if self.settings.secure else name

    def blinded(self, text: str) -> str:
        """A stand-in for a text that must not be kept; 64 hex digits, other ones in every installation."""
        return hmac.new(self.settings.secret.encode(), text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def page(
        self, request: Request, template: str, status_code: int = 200, headers: Mapping[str, str] | None = None, **context: Any
    ) -> Response:  # fmt: skip
        """A rendered template. Every template has ``site_title``, ``person`` (None before sign-in), ``path`` and ``goal``."""
        shared = {
            "site_title": self.settings.title, "person": request.scope["state"].get("person"), "path": request.url.path,
            "goal": self.settings.goal,
        }  # fmt: skip
        return HTMLResponse(self.templates.get_template(template).render(shared | context), status_code, headers)


def read_static() -> dict[str, StaticFile]:
    """The files of ``static``, by name. Read once, so that no path is ever made from a request."""
    found = {}
    for file in resources.files("humanward.web").joinpath("static").iterdir():
        kind = CONTENT_TYPES.get(file.name.rpartition(".")[2])
        if kind is not None and file.is_file():
            content = file.read_bytes()
            found[file.name] = StaticFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def wants_json(scope: MutableMapping[str, Any]) -> bool:
    """Whether the request is a program's."""
    return scope["path"].startswith("/api/")


def clean(text: str) -> str:
    """Text that every database and every encoding can hold: without NUL and without halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
