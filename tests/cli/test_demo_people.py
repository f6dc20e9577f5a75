"""The whole way with a person: the demo's process, its page in another, and somebody who answers over HTTP up to the report."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from humanward.feedback import Snapshot, Store

from .conftest import SETTINGS, Parts, start


class Person:
    """Opens the link, and answers what the page gives: the response with most `good`, a tie where a pair has equally many."""

    def __init__(self, link: str) -> None:
        self.address = urlsplit(link)
        token = self.address.path.rpartition("/")[2]
        signed_in = self.ask("/join", f"token={token}", "application/x-www-form-urlencoded")
        assert signed_in.status == 303
        self.cookie = signed_in.headers["set-cookie"].partition(";")[0]
        self.sent: list[dict[str, Any]] = []

    cookie = ""

    def ask(self, path: str, body: str, kind: str = "application/json") -> Any:
        connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port or 0, timeout=30)
        headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": kind, "Cookie": self.cookie}
        connection.request("POST", path, body, headers)
        answer: Any = connection.getresponse()
        answer.text = answer.read().decode()
        connection.close()
        return answer

    def works(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            try:
                found = self.ask("/api/questions", json.dumps({"want": 2}))
                held = json.loads(found.text)["questions"]
                events = [
                    {
                        "client_event_id": str(uuid.uuid5(uuid.NAMESPACE_URL, one["id"])), "kind": "label", "question_id": one["id"],
                        "answer": choice(one), "seconds": 5.0, "instructions": one["instructions"],
                    }
                    for one in held
                ]  # fmt: skip
                if events:
                    told = json.loads(self.ask("/api/events", json.dumps({"events": events})).text)["results"]
                    assert all(result["ok"] for result in told), told
                    self.sent += events
            except (OSError, http.client.HTTPException):
                pass
            if not self.sent or process.poll() is None:
                time.sleep(0.05)


def choice(question: Mapping[str, Any]) -> Any:
    counts = [text.split().count("good") for text in question["responses"]]
    if question["kind"] == "pair" and counts[0] == counts[1]:
        return "tie"
    return counts.index(max(counts))


def overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from overrides(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={json.dumps(value)}"


def test_one_person_labels_a_whole_run_over_http(parts: Parts, tmp_path: Path) -> None:
    """Killed in the middle of the labels and started again with a new page and a new link."""
    folder = tmp_path / "mine"
    settings = {**SETTINGS, "model": str(parts.model), "prompts": str(parts.prompts)}
    command = ["demo", folder, "--labeler", "people", "--quick", "--check", "6", *overrides(settings)]
    process = start(*command)
    person = Person(link_of(process))
    works = threading.Thread(target=person.works, args=(process,))
    works.start()
    while len(person.sent) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    works.join()
    process.communicate()
    assert page_is_gone(folder)

    process = start(*command)
    again = Person(link_of(process))
    works = threading.Thread(target=again.works, args=(process,))
    works.start()
    out, err = process.communicate(timeout=300)
    works.join()
    assert process.returncode == 0, err
    assert "What it wrote before (-) and writes now (+)" in out
    assert "on the page: at most 6 blind pairs, old against new" in err
    store = Store(folder / "labels.db")
    assert [(one.id, one.name) for one in store.people.all() if one.role == "labeler"] == [("labeler-1", "you")]
    last = Snapshot.load(folder / "rounds/2/labels/snapshot.jsonl")
    assert len(last.labels) == len(last.questions) == 42  # 48 - (48 - 24) / 4, the schedule at half of PPO
    assert {label.labeler for label in last.labels} == {"labeler-1"}
    assert store.verify() == []
    store.close()
    report = (folder / "report.html").read_text()
    for expected in ("Asked blind, people said", "write what people prefer", "labelers with themselves, again"):
        assert expected in report, expected
    results = json.loads((folder / "comparisons/policy-against-reference/results.json").read_text())
    assert results["labels"] + results["same_text"] <= 6


def link_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+/join/\S+", line):
            return found[0]
    raise AssertionError("no link")


def page_is_gone(folder: Path, seconds: float = 20.0) -> bool:
    """Whether no page of the folder is served any more; it ends with the demo, however that ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        commands = [read_quietly(path).split(b"\0") for path in Path("/proc").glob("[0-9]*/cmdline")]
        if not any(b"label" in words and str(folder).encode() in words for words in commands):
            return True
        time.sleep(0.1)
    return False


def read_quietly(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
