"""What every request passes and every response carries."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import humanward.web.app as app_module
from humanward.errors import RunError
from humanward.feedback import Store
from humanward.web.app import ROUTES, create_app
from humanward.web.guard import CSP

from .conftest import HOST, Site, ask, browser, event, question, send
from .test_access import SAMPLES

HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
JSON = {"content-type": "application/json"}
WEB = Path(str(resources.files("humanward.web")))
TEMPLATES = sorted((WEB / "templates").glob("*.jinja"))


def test_the_policy_allows_nothing_that_is_not_ours() -> None:
    assert CSP == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def test_every_response_carries_the_headers(site: Site) -> None:
    client, stranger = site.signed_in("admin"), browser(site.app)
    answers = [
        client.get("/run"), client.get("/api/run"), client.get("/static/icon.svg"), client.get("/nothing"), client.put("/label"),
        stranger.get("/label"), stranger.get("/api/run"), stranger.get("/health", headers={"host": "evil.example"}),
        client.post("/api/events", content=b"{", headers=JSON), client.post("/api/events", json={"events": "no"}),
        client.post("/api/events", content=b"x" * 300_000, headers=JSON), client.post("/run/cord", content=b"x"),
        client.post("/run/cord", data={"reason": "x"}, headers={"sec-fetch-site": "cross-site"}), client.get("/static/none.js"),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 405, 303, 401, 421, 422, 422, 413, 415, 403, 404]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, answer
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
        assert answer.headers["cache-control"] == ("no-cache" if answer.url.path == "/static/icon.svg" else "no-store")
        assert "strict-transport-security" not in answer.headers


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_bug_in_any_route_shows_a_number_and_nothing_else(
    site: Site, route: app_module.Route, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("SECRET of /root/labels.db")

    client = site.signed_in("admin")
    monkeypatch.setattr(app_module, "ROUTES", [one._replace(handler=broken) if one == route else one for one in ROUTES])
    faulty = browser(create_app(site.store, site.settings), cookies=client.cookies)
    path = re.sub(r"\{(\w+)\}", lambda name: SAMPLES[name[1]], route.path)
    if route.method == "GET":
        answer = faulty.get(path)
    else:
        answer = faulty.post(path, **({"json": {}} if path.startswith("/api/") else {"data": {}}))
    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    request_id = answer.headers["x-request-id"]
    assert request_id in answer.text
    assert not re.search("SECRET|ZeroDivision|Traceback|\\.py", answer.text)
    assert request_id in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert SAMPLES["token"] not in caplog.text.partition("Traceback")[0]


# Another site's page


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "origin": HOST},
        {"sec-fetch-site": "same-site", "origin": HOST},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "SAME-ORIGIN, cross-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "http://127.0.0.1:8000.evil.example"},
        {"origin": "null"},
        {"origin": "http://[::1"},
        {},
    ],
    ids=repr,
)
@pytest.mark.parametrize("path", ["/api/events", "/run/cord", "/join", "/sign-out"])
def test_another_sites_page_changes_nothing(site: Site, headers: dict[str, str], path: str) -> None:
    site.store.add_questions([question("q0")])
    client = site.signed_in("admin")
    asked = ask(client)["questions"][0]["id"]
    del client.headers["sec-fetch-site"]
    before = site.store.events(), site.store.cord(), len(site.store.people.audit_log())
    if path == "/api/events":
        answer = client.post(path, json={"events": [event(1, asked, answer=0)]}, headers=headers)
    else:
        answer = client.post(path, data={"reason": "evil", "token": "a" * 43}, headers=headers)
    assert answer.status_code == 403
    assert (site.store.events(), site.store.cord(), len(site.store.people.audit_log())) == before
    assert client.get("/run").status_code == 200  # still signed in


def test_programs_and_old_browsers_say_where_they_come_from_with_origin(site: Site) -> None:
    client = site.signed_in("labeler")
    del client.headers["sec-fetch-site"]
    assert client.post("/api/questions", json={}, headers={"origin": HOST}).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""])
def test_the_api_takes_json_only(site: Site, content_type: str) -> None:
    answer = site.signed_in("labeler").post("/api/questions", content=b'{"want": 1}', headers={"content-type": content_type})
    assert answer.status_code == 415


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "application/json"])
def test_forms_are_taken_as_browsers_encode_them_only(site: Site, content_type: str) -> None:
    answer = site.signed_in("admin").post("/run/cord", content=b"reason=x", headers={"content-type": content_type})
    assert answer.status_code == 415
    assert site.store.cord() is None


def test_no_method_changes_anything_but_post(site: Site) -> None:
    client = site.signed_in("admin")
    for method in ("GET", "HEAD", "OPTIONS"):
        assert client.request(method, "/run/cord").status_code == 405
    for method in ("PUT", "PATCH", "DELETE"):
        assert client.request(method, "/run/cord", data={"reason": "x"}).status_code == 405


# Host, sizes


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.2:8000", "[::2]:8000", "localhost.", "a" * 5000])
def test_an_unknown_host_is_refused(site: Site, host: str) -> None:
    assert browser(site.app).get("/health", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:8000", "[::1]"])
def test_this_machine_is_known_by_its_names(site: Site, host: str) -> None:
    assert browser(site.app).get("/health", headers={"host": host}).status_code == 200


def test_a_body_is_taken_up_to_a_size_whatever_it_says(site: Site) -> None:
    client = site.signed_in("labeler")

    def pieces(count: int) -> Iterator[bytes]:  # without content-length
        yield b'{"events": ["'
        for _ in range(count):
            yield b"x" * 1024
        yield b'"]}'

    assert client.post("/api/events", content=pieces(200), headers=JSON).status_code == 200
    assert client.post("/api/events", content=pieces(300), headers=JSON).status_code == 413
    assert client.post("/api/events", content=b"{}", headers=JSON | {"content-length": "99999999999999999999"}).status_code == 413
    assert client.post("/sign-out", content=b"a" * 70_000, headers={"content-type": "application/x-www-form-urlencoded"}).status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'{"want": 1.5}', b'{"want": 0}', b'{"want": 99}', b'{"want": "2"}', b'{"what": 2}', b"\xff\xfe", b"NaN",
     b'{"want": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"want": NaN}', b'{"want": true}',
     b'{"\\ud800": 1}'],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_a_malformed_request_is_told_in_a_line(site: Site, body: bytes) -> None:
    answer = site.signed_in("labeler").post("/api/questions", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"error", "request"}
    assert "\n" not in answer.json()["error"]
    assert len(answer.json()["error"]) < 200


# The store is away


class FullDisk:
    """A store whose disk is full, except that people can be looked up."""

    def __init__(self, store: Store, fault: Exception) -> None:
        self.people, self._fault = store.people, fault

    def __getattr__(self, name: str) -> Any:
        raise self._fault


def test_a_full_disk_is_no_fault_of_the_labeler(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """503: the page keeps everything and tries again."""
    client = site.signed_in("labeler")
    site.app.state.site.store = FullDisk(site.store, RunError("/secret/labels.db: the disk is full: 8 bytes needed, 0 bytes free"))
    answer = client.post("/api/events", json={"events": [event(1, "q0", answer=0)]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "secret" not in answer.text
    assert "the disk is full" in caplog.text
    assert client.get("/label").status_code == 503


# Rates


def test_too_many_answers_are_put_off_for_their_labeler_alone(with_settings: Callable[..., Site]) -> None:
    site = with_settings(labels_per_minute=6)
    site.store.add_questions([question(f"q{i}", overlap=2) for i in range(12)])
    fast, honest = site.signed_in("labeler"), site.signed_in("labeler")
    for number in range(6):
        assert send(fast, event(number, ask(fast)["questions"][0]["id"], answer=0))[0]["ok"]
    asked = ask(fast)["questions"][0]["id"]
    answer = fast.post("/api/events", json={"events": [event(9, asked, answer=0)]})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61
    assert len(site.store.labels()) == 6
    assert send(honest, event(1, ask(honest)["questions"][0]["id"], answer=0))[0]["ok"]


def test_guessing_links_is_slowed_down_for_that_address_alone(with_settings: Callable[..., Site]) -> None:
    site = with_settings(behind_proxy=True, hosts=("labels.example",))
    clients = [browser(site.app, headers={}) for _ in range(2)]
    for client, address in zip(clients, ("198.51.100.7", "203.0.113.9"), strict=True):
        # what the client itself adds comes first and says nothing
        client.headers.update({"host": "labels.example", "sec-fetch-site": "same-origin", "x-forwarded-for": f"1.2.3.4, {address}"})
    guesser, honest = clients
    assert [guesser.post("/join", data={"token": "b" * 43}).status_code for _ in range(6)] == [403] * 5 + [429]
    guesser.headers["x-forwarded-for"] = "9.9.9.9, 198.51.100.7"
    _, token = site.store.people.invite("labeler", "Ann")
    assert guesser.post("/join", data={"token": token}).status_code == 429
    assert honest.post("/join", data={"token": token}).status_code == 303


# The source


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_nothing_inline(template: Path) -> None:
    text = template.read_text()
    tags = re.findall(r"<[a-zA-Z][^<>]*>", re.sub(r"\{[%{#].*?[%}#]\}", "", text, flags=re.DOTALL))
    assert not [tag for tag in tags if re.search(r"\s(on\w+|style)\s*=", tag, re.IGNORECASE)]
    assert not re.search(r"<style|\"javascript:|\|\s*safe|autoescape\s+false|Markup", text, re.IGNORECASE)
    assert not [tag for tag in tags if tag.startswith("<script") and not re.search(r' src="/static/[\w.-]+\.js"', tag)]
    assert not re.search(r"(src|href|action)=\"(https?:)?//", text)


@pytest.mark.parametrize("script", sorted((WEB / "static").glob("*.js")), ids=lambda path: path.name)
def test_a_script_makes_no_html_and_no_code_of_text(script: Path) -> None:
    text = script.read_text()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org)", text)


@pytest.mark.parametrize("path", sorted([*(WEB).glob("*.py"), *(WEB.parent / "feedback").glob("*.py")]), ids=lambda path: path.name)
def test_no_sql_is_put_together_from_strings(path: Path) -> None:
    """Statements are SQLAlchemy's. Texts of SQL are for the schema alone, whose parts are ours."""
    verbs = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|DROP|ALTER)\b.*\b(FROM|INTO|SET|TABLE|WHERE)\b", re.DOTALL)
    made = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)]
    assert [ast.unparse(node) for node in made if verbs.search(ast.unparse(node))] == []
