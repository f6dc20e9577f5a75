"""A score from a server: a real one on this machine, that answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from humanward.errors import RunError, UserError
from humanward.feedback import load_score
from humanward.feedback.http_score import TOKEN, HTTPScore


class Server:
    """Answers each request with the next of ``answers``, and with the lengths of the responses when there are none left."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.answers: list[Any] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(asked)
                server.tokens.append(self.headers["Authorization"])
                answer = server.answers.pop(0) if server.answers else {"scores": [len(r) for r in asked["responses"]]}
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = {"scores": [0.0]}
                if isinstance(answer, Iterator):
                    self.send_response(200)
                    self.send_header("Content-Length", "100")
                    self.end_headers()
                    for byte in answer:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                    return
                code, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def handle(self) -> None:
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):  # who asked has gone
                    return

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/score"

    def score(self, **settings: Any) -> HTTPScore:
        return HTTPScore(self.url, **{"timeout": 5.0, "retries": 2, "backoff": 0.0, **settings})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()
    thread.join()


def test_a_batch_is_divided_into_requests(server: Server) -> None:
    prompts, responses = ["p"] * 5, ["a", "bb", "ccc", "dddd", "größer"]
    assert server.score(batch_size=2)(prompts, responses) == [1, 2, 3, 4, 6]
    assert [request["responses"] for request in server.requests] == [["a", "bb"], ["ccc", "dddd"], ["größer"]]
    assert server.requests[0].keys() == {"prompts", "responses"}
    assert server.score()([], []) == []


def test_the_spec_is_the_address(server: Server) -> None:
    assert load_score(server.url)(["p"], ["four"]) == [4]


def test_what_may_pass_is_tried_again(server: Server) -> None:
    server.answers = [(503, {}, b""), (429, {"Retry-After": "0"}, b"")]
    assert server.score()(["p"], ["four"]) == [4]
    assert len(server.requests) == 3


def test_a_server_that_is_always_busy(server: Server) -> None:
    server.answers = [(503, {}, b"")] * 3
    with pytest.raises(RunError, match=f"reward {server.url}: the server answered 503, 3 times in a row; is the server up and fast enough"):
        server.score()(["p"], ["four"])


def test_a_server_that_hangs(server: Server) -> None:
    server.answers = [0.3]
    assert server.score(timeout=0.1)(["p"], ["four"]) == [4]
    server.answers = [0.3]
    with pytest.raises(RunError, match=r"no answer within 0\.1 s, 1 times in a row"):
        server.score(timeout=0.1, retries=0)(["p"], ["four"])


def test_a_server_whose_answer_never_ends(server: Server) -> None:
    """A byte every 50 ms, each of which comes in time."""
    server.answers = [iter(b" " * 100)]
    started = time.monotonic()
    with pytest.raises(RunError, match=r"no answer within 0\.2 s, 1 times in a row"):
        server.score(timeout=0.2, retries=0)(["p"], ["a"])
    assert time.monotonic() - started < 2


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(RunError, match=r"reward http://127.0.0.1:9/: no connection \(.*refused.*\), 2 times in a row"):
        HTTPScore("http://127.0.0.1:9/", retries=1, backoff=0.0)(["p"], ["four"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}, b"no such\npage"), "the server answered 404 Not Found: no such page"),
        ((422, {}, b""), "the server answered 422 Unprocessable"),
        ((302, {"Location": "http://elsewhere/"}, b""), "the server answered 302 Found to http://elsewhere/; give that address"),
        (b"<html>", "the answer is not JSON: '<html>'"),
        ([1.0], 'the answer has no list "scores"'),
        ({"score": [1.0]}, 'the answer has no list "scores"; expected {"scores": [number, …]}'),
        ({"scores": [1.0, 2.0]}, "2 scores for 1 responses; the server must give one for each"),
    ],
)
def test_an_answer_that_is_none_is_an_error_at_once(server: Server, answer: Any, message: str) -> None:
    server.answers = [answer]
    with pytest.raises(RunError) as caught:
        server.score()(["p"], ["four"])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"reward {server.url}: ")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_token_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.score()(["p"], ["a"])
    monkeypatch.setenv(TOKEN, "secret")
    server.score()(["p"], ["a"])
    assert server.tokens == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("http:host", "http:host: expected http://HOST/PATH or https://HOST/PATH"),
        ("https://", "expected http://HOST/PATH"),
        ("http://me:secret@host/x", "a password has no place in settings; put a token into HUMANWARD_SCORE_TOKEN"),
    ],
)
def test_addresses_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_score(spec)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
