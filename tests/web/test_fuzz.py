"""Requests made from the schema of the application, right and wrong ones, by every role: none may end in an error of the server.

HUMANWARD_FUZZ_REQUESTS=50000 asks for more of them than the 3,000 of every day.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from humanward.feedback import Store
from humanward.web import WebSettings, create_app
from humanward.web.guard import CSP

from .conftest import HOST, question

REQUESTS = int(os.environ.get("HUMANWARD_FUZZ_REQUESTS", "3000"))
ROLES = ("anonymous", "labeler", "researcher", "admin")
KINDS = {"best_of_k": 4, "pair": 2, "ranking": 4, "rating": 1, "difference": 2, "soft": 3}
TEXT = {"type": "string"}
ANSWER = {"anyOf": [{"enum": ["0", "1", "tie", "-2", "9"]}, TEXT]}
ANSWERS = {"answer": ANSWER} | {f"answer-{index}": ANSWER for index in range(4)}
FORMS: dict[str, dict[str, Any]] = {
    "/join": {"token": TEXT},
    "/run/cord": {"reason": TEXT},
    "/run/cord/release": {"note": TEXT},
    "/run/disputes/{question_id}": {"comment": TEXT, "client_event_id": TEXT} | ANSWERS,
    "/run/people": {"role": {"anyOf": [{"enum": ["labeler", "researcher", "admin"]}, TEXT]}, "name": TEXT},
    "/run/people/{person_id}/rename": {"name": TEXT},
    "/run/people/{person_id}/forget": {"confirm": TEXT},
}
"""Fields of the forms: the application reads them itself, so its schema does not name them."""


@dataclass
class World:
    """An application with questions, labels and people, and what it answered."""

    store: Store = field(default_factory=Store.in_memory)
    loop: asyncio.Runner = field(default_factory=asyncio.Runner)
    """One for all requests: the usual test client starts a thread for each."""
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = [kind for kind in KINDS for _ in range(30)]
        asked = [question(f"q{i}", KINDS[kind], kind, overlap=3) for i, kind in enumerate(kinds)]
        self.store.add_questions(asked, gold={"q0": 1, "q30": "tie"})
        self.store.add_instructions("Choose the best.")
        self.app = create_app(self.store, WebSettings(labels_per_minute=10**6, sign_ins_per_minute=10**6))
        for role in ROLES:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            self.clients[role] = httpx.AsyncClient(transport=transport, base_url=HOST, headers={"Sec-Fetch-Site": "same-origin"})
            self.sign_in(role)
        self.questions = [one.question.id for one in self.store.held(self.ids["labeler"], 5)]
        self.store.record(self.ids["labeler"], self.questions[1], 0, "first-label")
        self.store.flag(self.ids["labeler"], self.questions[1], "first-flag", "odd")

    def sign_in(self, role: str) -> None:
        """As somebody new, where the one before was signed out, disabled or forgotten."""
        client = self.clients[role]
        cookie = self.app.state.site.cookie
        if role == "anonymous" or self.store.people.session(client.cookies.get(cookie, "")) is not None:
            return
        person, token = self.store.people.invite(role, f"{role} <b>")
        session = self.store.people.redeem(token)
        assert session is not None
        self.ids[role] = person.id
        client.cookies.clear()
        client.cookies.set(cookie, session)

    def send(self, role: str, case: Any, lot: int) -> None:
        """One request; ``lot`` says whether ids in it become real ones."""
        if lot % 4:
            case.path_parameters = {name: self.real(name, value, lot) for name, value in (case.path_parameters or {}).items()}
            case.body = self.with_real_ids(case.body, lot)
        parts = case.as_transport_kwargs(base_url=HOST)
        headers = {"Content-Type": parts["headers"]["Content-Type"]} if "Content-Type" in parts["headers"] else {}
        body: dict[str, Any] = {}
        if "json" in parts:
            body = {"content": json.dumps(parts["json"]).encode()}
        elif isinstance(parts.get("data"), dict):
            body = {"data": parts["data"]}
        elif parts.get("data") is not None:
            body = {"content": parts["data"] if isinstance(parts["data"], bytes) else str(parts["data"]).encode()}
        request = self.clients[role].request(parts["method"], parts["url"], params=parts["params"], headers=headers, **body)
        answer = self.loop.run(request)
        self.statuses[answer.status_code] += 1
        said = f"{role}: {parts['method']} {parts['url']} {parts['params']} {body}: {answer.status_code}"
        if answer.status_code >= 500:
            self.faults.append(f"{said} {answer.text[:200]}")
        elif answer.headers.get("content-security-policy") != CSP:
            self.faults.append(f"{said}: without the policy")
        self.sign_in(role)

    def real(self, name: str, value: Any, lot: int) -> Any:
        """An id that exists, for a parameter that is one."""
        known = {"question_id": self.questions, "person_id": list(self.ids.values()), "name": ["style.css", "label.js"]}.get(name)
        return known[lot % len(known)] if known else value

    def with_real_ids(self, body: Any, lot: int) -> Any:
        if isinstance(body, dict):
            return {name: self.real(name, self.with_real_ids(value, lot + 1), lot) for name, value in body.items()}
        if isinstance(body, list):
            return [self.with_real_ids(value, lot + place) for place, value in enumerate(body)]
        return body


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    assert made.store.verify() == []
    made.store.close()
    made.loop.close()


def schema_of(app: Any) -> dict[str, Any]:
    """The application's own, though it shows it to nobody, with the fields of its forms."""
    raw = app.openapi()
    for path, fields in FORMS.items():
        form = {"type": "object", "properties": fields, "additionalProperties": False}
        raw["paths"][path]["post"]["requestBody"] = {"content": {"application/x-www-form-urlencoded": {"schema": form}}}
    return raw


@pytest.mark.slow
def test_no_request_is_answered_with_an_error_of_the_server(world: World) -> None:
    operations = [found.ok() for found in schemathesis.openapi.from_dict(schema_of(world.app)).get_all_operations()]
    assert len(operations) == len(world.app.state.roles)
    weights = {one.label: 8 if "/api/" in one.path else 4 if one.body or one.path_parameters else 1 for one in operations}
    for one in operations:
        modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if one.body or one.query else [])]
        count = -(-REQUESTS * weights[one.label] // (sum(weights.values()) * len(modes) * len(ROLES)))
        for mode in modes:
            many(world, one.as_strategy(generation_mode=mode), count)
    assert world.faults == []
    assert world.statuses.total() >= REQUESTS
    assert {200, 303, 400, 401, 403, 404, 422} <= world.statuses.keys(), world.statuses


def many(world: World, cases: Any, count: int) -> None:
    """``count`` cases at least, each sent by every role."""
    sent = 0

    @settings(max_examples=count, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(cases, st.integers(0, 1000))
    def send(case: Any, lot: int) -> None:
        nonlocal sent
        for role in ROLES:
            world.send(role, case, lot)
            sent += 1

    for _ in range(100):  # an operation without parameters has few different cases
        send()
        if sent >= count * len(ROLES):
            return
