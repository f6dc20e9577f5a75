"""``humanward label`` for people, ``invite`` and ``labels``: in a process of its own, spoken to over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from humanward.feedback import Store
from humanward.records import Prompt, Question, Response

from .conftest import Parts, run, start


def make_run(folder: Path, labeler: str = "people") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"labeler: {labeler}\nlabels:\n  repeat_share: 0.0\n")
    return folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """The folder of a run whose labeler is people, before its first round."""
    return make_run(tmp_path / "own")


class Server:
    """A page that is being served."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        self.told = json.loads(line)
        self.address = urlsplit(self.told["url"])

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port or 0, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.body = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer


@pytest.fixture
def server(people: Path) -> Iterator[Server]:
    process = start("label", people, "--port", "0", "--json")
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate()


FORM = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}


def test_people_sign_in_and_label_before_and_after_the_first_questions(people: Path, server: Server) -> None:
    link = urlsplit(server.told["link"])
    assert (link.hostname, link.port) == ("127.0.0.1", server.address.port)
    assert server.ask("GET", link.path).status == 200
    token = link.path.rpartition("/")[2]
    signed_in = server.ask("POST", "/join", f"token={token}", **FORM)
    assert (signed_in.status, signed_in.headers["location"]) == (303, "/run")
    cookie = {"Cookie": signed_in.headers["set-cookie"].partition(";")[0]}
    assert b"No questions yet: they come with round 1." in server.ask("GET", "/run", **cookie).body  # type: ignore[attr-defined]

    store = Store(people / "labels.db")
    store.add_questions([Question("q0", Prompt("p0", "Once"), (Response("a"), Response("b")), round=1)])
    asked = json.loads(server.ask("POST", "/api/questions", "{}", **JSON, **cookie).body)["questions"][0]  # type: ignore[attr-defined]
    event = {"client_event_id": "event-0001", "kind": "label", "question_id": "q0", "answer": 0}
    assert server.ask("POST", "/api/events", json.dumps({"events": [event]}), **JSON, **cookie).status == 200
    [label] = store.labels()
    assert (label.labeler, ["a", "b"][label.answer]) == ("admin-1", asked["responses"][0])
    store.close()

    invited = run("invite", people, "--name", "Ann", "--json")  # knows where the page is
    assert json.loads(invited.out)["link"].startswith(server.told["url"] + "/join/")

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) in (0, -signal.SIGTERM)
    assert (people / "web-secret").stat().st_mode & 0o777 == 0o600
    again = Server(start("label", people, "--port", "0", "--json"))
    try:
        assert again.told["link"] is None  # the admin has been here
        assert again.ask("GET", "/run", **cookie).status == 200  # and still is
    finally:
        again.process.kill()
        again.process.communicate()


def test_serving_needs_no_torch(people: Path) -> None:
    """The command itself, stopped where it would begin to listen."""
    program = (
        "import sys; from humanward.cli import main; import uvicorn; uvicorn.Server.run = lambda self, sockets: None;"
        f"code = main(['label', {str(people)!r}, '--port', '0']);"
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules], code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert "no questions yet: they come with round 1" in done.stderr
    assert re.search(r"^http://127\.0\.0\.1:\d+/join/[\w-]{43}$", done.stdout, re.MULTILINE)
    assert f"invite a labeler: humanward invite {people} --name Ann" in done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others could read along"),
        (["--host", "::"], "others could read along"),
        (["--host", "192.0.2.1"], "others could read along"),
        (["--host", "0.0.0.0", "--behind-proxy"], "--public-name is missing"),
        (["--behind-proxy"], "--public-name is missing"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "cert.pem", "--tls-key", "none.pem", "--host", "127.0.0.1"], "cert.pem: no such file"),
        (["--host", "192.0.2.1", "--behind-proxy", "--public-name", "labels.example"], "--host 192.0.2.1 --port 8000: Cannot assign"),
    ],
)
def test_a_page_that_strangers_could_read_is_not_served(people: Path, words: list[str], complaint: str) -> None:
    done = run("label", people, *words)
    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1


def test_a_port_in_use_is_told(people: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("label", people, "--port", str(port))
    assert (done.code, done.err) == (
        2, f"error: --host 127.0.0.1 --port {port}: Address already in use; choose another, or --port 0 for any free one\n",
    )  # fmt: skip


def test_a_secret_that_others_may_read_keeps_the_page_shut(people: Path) -> None:
    (people / "web-secret").write_text("0" * 64)
    (people / "web-secret").chmod(0o644)
    done = run("label", people, "--port", "0")
    assert done.code == 2
    assert "web-secret: others may read it (mode 644)" in done.err


def test_where_there_is_no_run_there_is_no_page(tmp_path: Path) -> None:
    for words in (["label"], ["invite"], ["labels", "verify"]):
        done = run(*words, tmp_path / "none")
        assert done.code == 2
        assert "no run here yet" in done.err
        assert not (tmp_path / "none").exists()


def test_a_comparison_by_people_needs_the_page_too(tmp_path: Path) -> None:
    from humanward.cli.label import asks_people

    folder = make_run(tmp_path / "own", "score:positive")
    assert not asks_people(folder)
    (folder / "comparisons" / "policy-against-reference").mkdir(parents=True)
    (folder / "comparisons" / "policy-against-reference" / "settings.json").write_text('{"labeler": "people"}')
    assert asks_people(folder)
    (folder / "comparisons" / "policy-against-reference" / "results.json").write_text("{}")
    assert not asks_people(folder)


def test_links_for_new_and_for_known_people(people: Path) -> None:
    first = run("invite", people, "--name", "Ann")
    assert re.fullmatch(r"http://127\.0\.0\.1:8000/join/[\w-]{43}\n", first.out)
    assert "labeler-1: the link works once, within 72 hours" in first.err
    again = json.loads(run("invite", people, "--person", "labeler-1", "--url", "https://labels.example/", "--json").out)
    assert (again["person"], again["role"]) == ("labeler-1", "labeler")
    assert again["link"].startswith("https://labels.example/join/")
    assert json.loads(run("invite", people, "--role", "researcher", "--json").out)["person"] == "researcher-1"
    store = Store(people / "labels.db")
    person = store.people.person("labeler-1")
    assert person is not None
    assert person.name == "Ann"
    assert [store.people.redeem(urlsplit(link).path.rpartition("/")[2].strip()) is not None for link in (first.out, again["link"])] == [
        False,
        True,
    ]
    store.close()
    for words in (["--role", "owner"], ["--person", "labeler-9"]):
        done = run("invite", people, *words)
        assert (done.code, done.err.count("\n")) == (2, 1)


def test_labels_are_verified_and_copied(people: Path, tmp_path: Path) -> None:
    store = Store(people / "labels.db")
    store.add_questions([Question("q0", Prompt("p0", "Once"), (Response("a"), Response("b")), round=1)])
    store.lease("ann")
    store.record("ann", "q0", 1, "event-1")
    store.close()
    done = run("labels", "verify", people)
    assert (done.code, done.out) == (0, "")
    assert "1 labels, 0 faults" in done.err
    assert run("labels", "backup", people, tmp_path / "copy.db").code == 0
    copy = Store(tmp_path / "copy.db")
    assert [label.answer for label in copy.labels()] == [1]
    copy.close()

    from humanward.feedback.database import sqlite_module

    with sqlite_module().connect(people / "labels.db") as connection:
        connection.execute("UPDATE questions SET body = replace(body, 'Once', 'Never')")
    done = run("labels", "verify", people, "--json")
    assert done.code == 3
    assert json.loads(done.out)["faults"] == ["event 1: question q0 was changed or removed after it was answered"]


def test_a_forgotten_labeler_has_no_name_and_keeps_the_labels(people: Path) -> None:
    store = Store(people / "labels.db")
    person, _ = store.people.invite("labeler", "Zenobia Quux")
    store.add_questions([Question("q0", Prompt("p0", "Once"), (Response("a"), Response("b")), round=1)])
    store.record(person.id, "q0", 1, "event-1")
    store.close()
    done = run("labels", "forget-labeler", people, person.id)
    assert (done.code, done.err) == (0, "labeler-1: forgotten; 1 labels stay\n")
    assert b"Zenobia" not in b"".join(path.read_bytes() for path in people.glob("labels.db*"))
    store = Store(people / "labels.db")
    assert [label.labeler for label in store.labels()] == ["labeler-1"]
    assert store.people.audit_log(1)[0].action == "forget"
    store.close()
    done = run("labels", "forget-labeler", people, "labeler-9")
    assert (done.code, done.err) == (2, "error: labeler-9: there is no such person in this store; invite them first\n")


def test_the_stage_of_a_run_with_people_is_asked_for_by_name(parts: Parts, tmp_path: Path) -> None:
    """It waits for labels, which people give on a page that another process serves."""
    folder = tmp_path / "own"
    assert run("init", folder, *parts.options(labeler="people"), "labels.repeat_share=0.0").code == 0
    assert f"next: label, round 1: humanward label {folder} --stage" in run("sample", folder).err
    assert f"humanward label {folder} --stage" in run("status", folder).out
    waiting = start("label", folder, "--stage")
    try:
        store = Store(folder / "labels.db")
        while not (shown := store.lease("ann")):
            assert waiting.poll() is None
            time.sleep(0.1)
        while shown:
            store.record("ann", shown.question.id, 0, f"event-{shown.question.id}")
            shown = store.lease("ann")
        store.close()
        out, err = waiting.communicate(timeout=300)
    finally:
        waiting.kill()
    assert waiting.returncode == 0, out + err
    assert (folder / "rounds" / "1" / "labels" / "manifest.json").is_file()
