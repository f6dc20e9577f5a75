"""Who gets in where, and what a labeler never sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.routing import BaseRoute, Mount
from starlette.testclient import TestClient

from humanward.web.app import ROUTES, Route

from .conftest import Site, ask, browser, event, question, send

GOLDEN = Path(__file__).with_name("routes.txt")
PUBLIC = {"GET /health", "GET /static/{name}", "GET /sign-in", "GET /join/{token}", "POST /join"}
ROLES = ("anonymous", "labeler", "researcher", "admin")
SAMPLES = {"name": "icon.svg", "token": "a" * 43, "question_id": "q0", "person_id": "nobody-1"}


def every(routes: list[BaseRoute], prefix: str = "") -> list[tuple[str, str]]:
    """(method, path) of each route, mounts walked."""
    found = []
    for route in routes:
        if isinstance(route, Mount):
            found += every(list(route.routes), prefix + route.path)
        else:
            methods = getattr(route, "methods", None) or {"WEBSOCKET"}
            found += [(method, prefix + getattr(route, "path", "?")) for method in sorted(methods)]
    return found


def call(client: TestClient, method: str, path: str) -> str:
    """How a request ends, as far as access goes."""
    path = re.sub(r"\{(\w+)\}", lambda name: SAMPLES[name[1]], path)
    if method == "GET":
        answer = client.get(path)
    else:
        answer = client.post(path, json={}) if path.startswith("/api/") else client.post(path, data={"field": "value"})
    if answer.status_code == 401 or answer.headers.get("location") == "/sign-in":
        return "in" if path.startswith("/sign-out") and answer.status_code == 303 else "sign in"
    # the public way in refuses a token that is none, which is no matter of roles
    return "refused" if answer.status_code == 403 and path != "/join" else "in"


def test_the_application_has_the_routes_of_the_table_and_no_other(site: Site) -> None:
    assert sorted(every(site.app.routes)) == sorted((route.method, route.path) for route in ROUTES)
    assert site.app.openapi_url is site.app.docs_url is site.app.redoc_url is None


def test_five_routes_are_public() -> None:
    assert {f"{route.method} {route.path}" for route in ROUTES if route.role == "public"} == PUBLIC


@pytest.mark.parametrize("route", [route for route in ROUTES if route.role != "public"], ids=lambda route: f"{route.method} {route.path}")
def test_nobody_gets_in_without_signing_in(site: Site, route: Route) -> None:
    assert call(browser(site.app), route.method, route.path) == "sign in"


def test_routes_and_roles_are_those_of_the_golden_table(site: Site) -> None:
    lines = []
    for route in ROUTES:
        # a new browser each time: signing out is one of the routes
        clients = [browser(site.app) if role == "anonymous" else site.signed_in(role) for role in ROLES]
        lines.append(f"{route.method:<5}{route.path:<34}" + "".join(f"{call(client, route.method, route.path):<12}" for client in clients))
    table = "".join(line.rstrip() + "\n" for line in [f"{'':<39}" + "".join(f"{role:<12}" for role in ROLES), *lines])
    assert table == GOLDEN.read_text(), "who may do what has changed: if that is meant, write tests/web/routes.txt anew"


def test_a_route_that_no_table_names_is_for_nobody(site: Site) -> None:
    site.app.add_api_route("/forgotten", lambda: {"secret": 1}, methods=["GET"])
    assert browser(site.app).get("/forgotten").headers["location"] == "/sign-in"
    assert site.signed_in("admin").get("/forgotten").status_code == 403


@pytest.mark.parametrize("path", ["/nothing", "/api/nothing", "/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/app.py"])
def test_what_is_not_there_is_not_found(site: Site, path: str) -> None:
    assert site.signed_in("admin").get(path).status_code == 404


def test_strangers_do_not_learn_what_is_there(site: Site) -> None:
    stranger = browser(site.app)
    assert stranger.get("/nothing").headers["location"] == stranger.get("/run/people").headers["location"] == "/sign-in"
    assert stranger.get("/api/nothing").status_code == stranger.get("/api/run").status_code == 401


@pytest.mark.parametrize("kind", ["label", "skip", "flag", "comment"])
def test_a_labeler_cannot_touch_what_another_one_was_asked(site: Site, kind: str) -> None:
    """It is answered as a question that does not exist is."""
    site.store.add_questions([question("q0"), question("q1")])
    ann, bob = site.signed_in("labeler", "Ann"), site.signed_in("labeler", "Bob")
    hers = ask(ann)["questions"][0]["id"]
    before = site.store.events()
    details = {"answer": 0, "comment": "mine"}
    [refused] = send(bob, event(1, hers, kind, **details))
    [unknown] = send(bob, event(2, "q-nothing", kind, **details))
    assert refused["ok"] is unknown["ok"] is False
    assert refused["error"].replace(hers, "") == unknown["error"].replace("q-nothing", "") != ""
    assert site.store.events() == before


def test_a_labeler_undoes_only_their_own(site: Site) -> None:
    site.store.add_questions([question("q0")])
    ann, bob = site.signed_in("labeler"), site.signed_in("labeler")
    send(ann, event(1, ask(ann)["questions"][0]["id"], answer=0))
    assert send(bob, event(2, kind="undo")) == [{"client_event_id": "event-0002", "ok": True, "question": None}]
    assert len(site.store.labels()) == 1


def test_the_same_event_id_of_two_labelers_is_two_events(site: Site) -> None:
    site.store.add_questions([question("q0", overlap=2)])
    for client in (site.signed_in("labeler"), site.signed_in("labeler")):
        assert send(client, event(1, ask(client)["questions"][0]["id"], answer=0))[0]["ok"]
    assert len(site.store.labels()) == 2


def test_no_response_to_a_labeler_says_more_than_the_texts(site: Site) -> None:
    """Raw bytes of everything that a labeler can ask for: who wrote a response, what is gold, what others said."""
    questions = [question(f"q{i}", overlap=2) for i in range(9)]
    site.store.add_questions(questions, gold={"q1": 3, "q4": 2})
    site.store.set_repeats(1.0)
    other = site.signed_in("labeler", "SECRET-other-labeler")
    for number in range(12):
        for asked in ask(other)["questions"]:
            send(other, event(number, asked["id"], answer=1, comment="SECRET-comment"))
            send(other, event(100 + number, asked["id"], "flag", reason="SECRET-reason"))
    client, seen = site.signed_in("labeler"), []
    number = 0
    while questions_now := (answer := client.post("/api/questions", json={"want": 2})).json()["questions"]:
        seen.append(answer)
        for asked in questions_now:
            assert set(asked) == {"id", "kind", "prompt", "responses", "attempt", "instructions"}
            number += 1
            seen.append(client.post("/api/events", json={"events": [event(number, asked["id"], answer=0)]}))
    assert number == 16  # each question once, and those that are not gold once more
    seen.append(client.post("/api/events", json={"events": [event(99, kind="undo")]}))
    seen += [client.get(route.path) for route in ROUTES if route.method == "GET" and route.role == "labeler" and "{" not in route.path]
    raw = b"\n".join(answer.content for answer in seen).decode()
    assert "response 0 of q0" in raw
    for word in ("SECRET", "labeler-1", "gold", "repeat", "policy", "score", "sampling", "tokens", "overlap", "split"):
        assert word not in re.sub(r"(?s)<script.*?</script>|/static/\S+", "", raw), word


def test_gold_and_repeats_look_like_the_others_in_the_counters(site: Site) -> None:
    site.store.add_questions([question(f"q{i}") for i in range(5)], gold={"q1": 0})
    site.store.set_repeats(1.0)
    client = site.signed_in("labeler")
    for number in range(9):
        got = ask(client)
        assert got["progress"]["done"] == number
        send(client, event(number, got["questions"][0]["id"], answer=0, seconds=3.0))
    assert ask(client)["progress"] == {"done": 9, "session_done": 9, "pace_seconds": 3.0, "left": 0, "goal": 50}


def test_labels_carry_the_pseudonym_and_never_the_name(site: Site) -> None:
    site.store.add_questions([question("q0")])
    client = site.signed_in("labeler", "Ann Lee")
    send(client, event(1, ask(client)["questions"][0]["id"], answer=0))
    assert site.store.labels()[0].labeler == site.ids["Ann Lee"] == "labeler-1"
    assert "Ann" not in json.dumps([[line.who, line.action, line.detail] for line in site.store.people.audit_log()])
