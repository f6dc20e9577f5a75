"""What every request passes before a page sees it, and what every response carries."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from humanward.web.auth import authorise
from humanward.web.errors import Refusal, answer_error, as_refusal
from humanward.web.site import Site, wants_json

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
HSTS = "max-age=31536000"
SAFE = ("GET", "HEAD", "OPTIONS")
MOST_BYTES = {"application/json": 256 * 1024, "application/x-www-form-urlencoded": 64 * 1024}
"""Of a body, by its content type; no other type is taken."""
BODY_SECONDS = 20.0


class Guard:
    """The outermost layer: host, origin, body, sign-in and role; security headers; and errors, so that they carry the headers too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no WebSockets here
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(8)
        state["person"] = None
        request = Request(scope)
        answer = _Answer(send, request)
        try:
            body = await self._admitted(request, receive)
            await self._app(scope, _replay(body, receive), answer)
        except Exception as error:
            refusal = as_refusal(error, where(scope), state["request_id"])
            if answer.begun:  # too late for another answer: the client sees a connection that broke off
                raise
            response = await run_in_threadpool(answer_error, request, refusal)
            await response(scope, receive, answer)

    async def _admitted(self, request: Request, receive: Receive) -> bytes:
        """The body of a request that may go on; raises Refusal otherwise."""
        site: Site = request.app.state.site
        check_host(request.headers, site.settings.hosts)
        changes = request.method not in SAFE
        if changes:
            check_origin(request.headers, site.settings.secure)
        most = check_type(request.headers, wants_json(request.scope)) if changes else 0
        await run_in_threadpool(authorise, request)
        return await _read(receive, most)


class _Answer:
    """``send`` with the headers that every response carries."""

    def __init__(self, send: Send, request: Request) -> None:
        self._send, self._request = send, request
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers["X-Request-Id"] = self._request.scope["state"]["request_id"]
            headers.setdefault("Cache-Control", "no-store")
            site: Site = self._request.app.state.site
            if site.settings.secure:
                headers["Strict-Transport-Security"] = HSTS
        await self._send(message)


def check_host(headers: Headers, allowed: tuple[str, ...]) -> None:
    """Refuse a Host that is not ours: a name that an attacker's DNS points here."""
    hosts = headers.getlist("host")
    host = hosts[0].lower() if len(hosts) == 1 else ""
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    if name not in allowed:
        raise Refusal(421)


def check_origin(headers: Headers, secure: bool) -> None:
    """Refuse a change that another site's page asked for. Browsers say where a request comes from; a program says it with Origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site != "same-origin":
            raise Refusal(403, "This request came from another site.")
        return
    origin = headers.get("origin")
    if origin is None:
        raise Refusal(403, "A request that changes something needs the header Origin or Sec-Fetch-Site: same-origin.")
    try:
        parts = urlsplit(origin)
    except ValueError:
        parts = urlsplit("")
    if (parts.scheme, parts.netloc.lower()) != ("https" if secure else "http", headers.get("host", "").lower()):
        raise Refusal(403, "This request came from another site.")


def check_type(headers: Headers, is_api: bool) -> int:
    """Refuse a body of another type than the route takes, or one that says itself that it is too large; returns the most bytes."""
    expected = "application/json" if is_api else "application/x-www-form-urlencoded"
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    empty = not is_api and not given and headers.get("content-length") == "0"  # a form without fields, sent by a program
    if given != expected and not empty:
        raise Refusal(415, f"The content type must be {expected}.")
    most = MOST_BYTES[expected]
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > most:
        raise Refusal(413, f"The request is too large: at most {most // 1024} KiB are taken.")
    return most


async def _read(receive: Receive, most: int) -> bytes:
    if most == 0:
        return b""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The connection was closed.")
                body += message.get("body", b"")
                if len(body) > most:
                    raise Refusal(413, f"The request is too large: at most {most // 1024} KiB are taken.")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(408) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def where(scope: MutableMapping[str, Any]) -> str:
    """Method and path for the log, without the token of an invite link."""
    path = scope["path"]
    return f"{scope['method']} {'/join/…' if path.startswith('/join/') else path!r}"
