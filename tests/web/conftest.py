"""A whole application in memory per test, and browsers that are signed in to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from humanward.feedback import Store
from humanward.records import Prompt, Question, Response
from humanward.web import WebSettings, create_app

HOST = "http://127.0.0.1:8000"
START = 1_790_000_000.0


@dataclass
class Clock:
    """The store's time."""

    now: float = START

    def __call__(self) -> float:
        return self.now


def question(name: str, K: int = 4, kind: str = "best_of_k", **more: Any) -> Question:
    """Everything about it that a labeler must not see carries the word SECRET."""
    responses = tuple(
        Response(f"response {i} of {name}", (i,), "SECRET-source", "SECRET-policy", "SECRET-tokenizer", {"temperature": "SECRET-sampling"})
        for i in range(K)
    )
    prompt = Prompt(f"SECRET-prompt-{name}", f"prompt of {name}", (7,), {"split": "SECRET-metadata"})
    return Question(name, prompt, responses, kind, round=1, **more)


def browser(app: FastAPI, **more: Any) -> TestClient:
    """Somebody who is not signed in."""
    more = {"headers": {"Sec-Fetch-Site": "same-origin"}} | more
    return TestClient(app, base_url=HOST, raise_server_exceptions=False, follow_redirects=False, **more)


@dataclass
class Site:
    """An application, its store, and its people."""

    store: Store
    clock: Clock
    settings: WebSettings = field(default_factory=WebSettings)
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = create_app(self.store, self.settings)

    def signed_in(self, role: str, name: str = "") -> TestClient:
        """A browser of a new person; their pseudonym is in ``ids`` under the name, or the role."""
        person, token = self.store.people.invite(role, name)
        self.ids[name or role] = person.id
        client = browser(self.app)
        assert client.post("/join", data={"token": token}).status_code == 303
        return client


@pytest.fixture
def site() -> Iterator[Site]:
    clock = Clock()
    store = Store.in_memory(clock=clock)
    yield Site(store, clock)
    store.close()


@pytest.fixture
def with_settings() -> Iterator[Callable[..., Site]]:
    stores = []

    def made(**settings: Any) -> Site:
        clock = Clock()
        stores.append(Store.in_memory(clock=clock))
        return Site(stores[-1], clock, WebSettings(**settings))

    yield made
    for store in stores:
        store.close()


def ask(client: TestClient, want: int = 1) -> dict[str, Any]:
    """The questions that the page gets."""
    answer = client.post("/api/questions", json={"want": want})
    assert answer.status_code == 200, answer.text
    return answer.json()


def send(client: TestClient, *events: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a batch of events."""
    # written as ASCII, so that halves of surrogate pairs can be sent too
    answer = client.post("/api/events", content=json.dumps({"events": list(events)}), headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def event(number: int, question_id: str | None = None, kind: str = "label", **more: Any) -> dict[str, Any]:
    """An event as the page sends it."""
    return {"client_event_id": f"event-{number:04}", "kind": kind, "question_id": question_id, **more}
