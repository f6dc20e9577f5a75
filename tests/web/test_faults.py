"""The page of labels when the machine around it fails: a full disk, a wrong clock, a taken port, a database that hangs, a signal."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from humanward.cli import main
from humanward.feedback import Store

from .conftest import Site, ask, event, question, send

SOURCE = str(Path(__file__).parents[2] / "src")
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of people, with questions."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("labeler: people\n")
    with closing(Store(folder / "labels.db")) as store:
        store.add_questions([question(f"q{number}") for number in range(20)])
    return folder


class Served:
    """`humanward label` in a process of its own, and a labeler who is signed in."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "humanward", "label", str(run), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        assert self.process.stdout is not None
        self.client = httpx.Client(base_url=json.loads(self.process.stdout.readline())["url"], timeout=30)
        self.client.headers["Sec-Fetch-Site"] = "same-origin"
        with closing(Store(run / "labels.db")) as store:
            _, token = store.people.invite("labeler", "")
        assert self.client.post("/join", data={"token": token}).status_code == 303
        self.question = self.client.post("/api/questions", json={"want": 1}).json()["questions"][0]["id"]

    def label(self) -> Any:
        """The status of a request that labels, or the name of what became of it instead."""
        body = {"events": [event(1, self.question, answer=2)]}
        try:
            return self.client.post("/api/events", json=body).status_code
        except httpx.TransportError as error:
            return type(error).__name__


@pytest.fixture
def served(run: Path) -> Iterator[Served]:
    made = Served(run)
    yield made
    made.client.close()
    made.process.kill()
    made.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("held_for", [1.0, 8.0])
def test_a_signal_ends_the_server_within_five_seconds(run: Path, served: Served, held_for: float) -> None:
    """A request that can end ends; one that waits for a database that hangs does not keep the server, and its label is not kept."""
    answers: list[Any] = []
    with closing(sqlite3.connect(run / "labels.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        labelling = threading.Thread(target=lambda: answers.append(served.label()))
        labelling.start()
        time.sleep(0.5)
        freeing = threading.Timer(held_for, other.rollback)
        freeing.start()
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        _, err = served.process.communicate(timeout=30)
        seconds = time.monotonic() - began
        freeing.cancel()
        freeing.join()
        labelling.join()
    with closing(Store(run / "labels.db")) as store:
        stored = [label.question_id for label in store.labels()]
        assert store.verify() == []
    assert seconds < 5
    assert served.process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    if held_for < 5:
        assert (answers, stored) == ([200], [served.question])
    else:
        assert (answers != [200], stored) == (True, [])


def test_a_taken_port_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["label", str(run), "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    said = f"error: --host 127.0.0.1 --port {port}: Address already in use; choose another, or --port 0 for any free one\n"
    assert (out, err) == ("", said)


@pytest.mark.parametrize("hours", [-2, -0.1, 2])
def test_a_clock_that_jumps_loses_nothing(site: Site, hours: float) -> None:
    site.store.add_questions([question(f"q{number}", overlap=1) for number in range(6)])
    ann, bob, researcher = site.signed_in("labeler", "Ann"), site.signed_in("labeler", "Bob"), site.signed_in("researcher")
    before = [one["id"] for one in ask(ann, 2)["questions"]]
    assert send(ann, event(1, before[0], answer=0))[0]["ok"]
    site.clock.now += hours * 3600
    theirs = {one["id"] for one in ask(bob, 2)["questions"]}
    assert (before[1] in theirs) == (hours > 0)  # a lease that is over is served again
    assert send(ann, event(2, before[1], answer=1), event(3, None, "undo"))[1]["question"]["id"] == before[1]
    assert send(ann, event(4, before[1], answer=3)) == send(ann, event(4, before[1], answer=3))
    assert {label.question_id for label in site.store.labels() if label.labeler == site.ids["Ann"]} == set(before)
    for client, paths in ((ann, ("/label", "/history", "/api/history")), (researcher, ("/run", "/api/run", "/run/labelers", "/run/inbox"))):
        assert [client.get(path).status_code for path in paths] == [200] * len(paths)
    assert site.store.verify() == []


FULL_DISK = """
import json, subprocess, sys
disk = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
from pathlib import Path
from starlette.testclient import TestClient
from humanward.feedback import Store
from humanward.records import Prompt, Question, Response
from humanward.web import WebSettings, create_app

store = Store(Path(disk) / "labels.db")
texts = tuple(Response(f"response {i}") for i in range(4))
store.add_questions([Question(f"q{n}", Prompt(f"p{n}", "Once"), texts) for n in range(400)])
headers = {"Sec-Fetch-Site": "same-origin"}
app = create_app(store, WebSettings(labels_per_minute=10**6))
client = TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False, follow_redirects=False)
person, token = store.people.invite("labeler", "")
assert client.post("/join", data={"token": token}).status_code == 303

def fill():
    with open(Path(disk) / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

asked = [one["id"] for one in client.post("/api/questions", json={"want": 5}).json()["questions"]]
outbox, refused, statuses = [], [], []
fill()
for number in range(40):
    comment = "long " * 700 if number % 2 else ""
    outbox += [{"client_event_id": f"label-{key}", "kind": "label", "question_id": key, "answer": 1, "comment": comment} for key in asked]
    answer = client.post("/api/events", json={"events": outbox})
    statuses.append(answer.status_code)
    if answer.status_code == 503:
        refused.append([answer.headers.get("retry-after"), answer.json()["error"]])
        more = client.post("/api/questions", json={"want": 5})
        statuses.append(more.status_code)
        (Path(disk) / "filler").unlink()
        answer = client.post("/api/events", json={"events": outbox})
        statuses.append(answer.status_code)
        assert all(result["ok"] for result in answer.json()["results"])
        if len(refused) == 3:
            break
    outbox = []
    (Path(disk) / "filler").unlink(missing_ok=True)
    asked = [one["id"] for one in client.post("/api/questions", json={"want": 5}).json()["questions"]]
    fill()
(Path(disk) / "filler").unlink(missing_ok=True)
labels = [label.question_id for label in store.labels()]
counts = {"labels": len(labels), "different": len(set(labels)), "faults": store.verify()}
print(json.dumps({"statuses": statuses, "refused": refused, **counts}))
"""


@pytest.mark.slow
def test_a_full_disk_is_503_and_nothing_is_lost(tmp_path: Path) -> None:
    """Labels are refused while the disk is full; sent again from the outbox, each is stored once."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own here")
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["refused"]
    assert set(found["statuses"]) <= {200, 503}
    assert all(wait == "5" and "kept" in message for wait, message in found["refused"])
    assert found["labels"] == found["different"] > 5
    assert found["faults"] == []
