"""One Chromium and one server per module; per test a fresh application in memory, and pages on which a script error is a failure."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from humanward.feedback import Store
from humanward.records import Label, Prompt, Question, Response
from humanward.web import WebSettings, create_app

expect.set_options(timeout=10_000)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KINDS = {"best_of_k": 4, "pair": 2, "ranking": 4, "rating": 1, "difference": 2, "soft": 3}
INSTRUCTIONS = "Choose what continues the story best.\n\nDo not reward length."


def question(name: str, kind: str = "best_of_k", texts: list[str] | None = None, **more: Any) -> Question:
    """Every labeler gets it. Its texts name it."""
    given = texts or [f"This is response {i} of {name}, and it goes on for a while." for i in range(KINDS[kind])]
    prompt = more.pop("prompt", f"The prompt of {name}")
    return Question(name, Prompt(f"prompt-{name}", prompt), tuple(map(Response, given)), kind, overlap=99, **more)


def questions(count: int, *kinds: str) -> list[Question]:
    return [question(f"q{i}", (kinds or tuple(KINDS))[i % len(kinds or KINDS)]) for i in range(count)]


class Server:
    """Serves whatever application is set, and fails in the ways that are asked for."""

    def __init__(self) -> None:
        self.app: Any = None
        self.refused: Callable[[str], bool] = lambda path: False
        """Paths whose connection is cut before anything is done."""
        self.lost: Callable[[str], bool] = lambda path: False
        """Paths that are served, and whose answer is lost."""
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        """Paths that are answered with a status and headers instead."""
        self.seen: list[str] = []
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.seen.append(path)
        if self.refused(path):
            await self._cut(send)
        if path in self.answers:
            status, headers = self.answers[path]
            pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": [*pairs, (b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": b"{}"})
        elif self.lost(path):
            await self.app(scope, receive, self._into_the_void)
            await self._cut(send)
        else:
            await self.app(scope, receive, send)

    async def _cut(self, send: Any) -> None:
        """An answer that breaks off: uvicorn closes the connection."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionAbortedError

    async def _into_the_void(self, message: Any) -> None:
        await asyncio.sleep(0)

    def well(self) -> None:
        """No more failures."""
        self.refused = self.lost = lambda path: False
        self.answers = {}

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


class Desk:
    """An application over a store, and the browsers of its labelers."""

    def __init__(self, server: Server, chromium: Browser) -> None:
        self.server, self.chromium = server, chromium
        self.now = 1_790_000_000.0
        self.store = Store.in_memory(clock=lambda: self.now)
        self.faults: list[str] = []
        self.network_fails = False
        """Whether the test makes requests fail, which the browser reports on its console."""
        self.contexts: list[BrowserContext] = []
        server.well()
        server.seen.clear()
        self.serve()

    def serve(self, **settings: Any) -> None:
        """Another application over the same store."""
        self.server.app = create_app(self.store, WebSettings(labels_per_minute=100_000, **settings))

    def context(self, **options: Any) -> BrowserContext:
        """A browser profile of its own."""
        made = self.chromium.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 800}), **options)
        made.on("page", self._watch)
        self.contexts.append(made)
        return made

    def sign_in(self, context: BrowserContext, person_id: str | None = None, role: str = "labeler") -> str:
        """Redeem an invite in a browser; returns the pseudonym."""
        person, token = self.store.people.invite(role, "Ada", person_id)
        headers = {"Origin": self.server.url}
        answer = context.request.post(f"{self.server.url}/join", form={"token": token}, headers=headers, max_redirects=0)
        assert answer.status == 303
        return person.id

    def page(self, *, path: str = "/label", **options: Any) -> Page:
        """The page of a new labeler."""
        context = self.context(**options)
        self.sign_in(context)
        page = context.new_page()
        page.goto(self.server.url + path)
        return page

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", self._heard)

    def _heard(self, message: ConsoleMessage) -> None:
        failed = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not (failed and self.network_fails):
            self.faults.append(f"console: {message.text}")

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        self.store.close()

    # What the tests say often

    def asked(self, page: Page, name: str | None = None) -> str:
        """Wait for a question, that one if it has a name; returns its prompt."""
        expect(page.locator("#question")).to_be_visible()
        if name is not None:
            expect(page.locator("#prompt")).to_have_text(f"The prompt of {name}")
        return page.locator("#prompt").inner_text()

    def answer(self, page: Page, name: str, *keys: str) -> None:
        """Answer a question by its name, with the keyboard."""
        self.asked(page, name)
        for key in (*keys, "Enter"):
            page.keyboard.press(key)

    def shown(self, page: Page) -> list[str]:
        """The texts of the responses, as they stand on the page."""
        return page.locator("#responses .foreign").all_text_contents()

    def saved(self, page: Page, text: str = "all saved") -> None:
        expect(page.locator("#saved")).to_have_text(text)

    def labels(self, count: int) -> dict[str, Label]:
        """Wait until that many labels count, and return them by their question."""
        end = time.monotonic() + 15
        while len(self.store.labels()) < count and time.monotonic() < end:
            time.sleep(0.02)
        labels = self.store.labels()
        assert len(labels) == count
        return {label.question_id: label for label in labels}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium on this machine; install one of {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def desk(server: Server, chromium: Browser) -> Iterator[Desk]:
    made = Desk(server, chromium)
    yield made
    made.close()
    assert made.faults == []


@pytest.fixture
def make_question() -> Callable[..., Question]:
    return question


@pytest.fixture
def make_questions() -> Callable[..., list[Question]]:
    return questions
