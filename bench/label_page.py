"""How long from a key press to the next question on the screen, while fifty others label?

    python bench/label_page.py [--labelers 50] [--every 2] [--labels 200] [--think 0.6] [--target 150] [--store ADDRESS]

The pages are served by a process of their own over a store on disk. In another process, simulated labelers ask for questions and answer
them over HTTP, one label per `--every` seconds each, as people do. Meanwhile a real Chromium labels by keyboard: a digit, Enter, and
`--think` seconds until the next one. Measured in the page: from the time stamp of Enter to the end of the first frame with the next
prompt in it (p50, p95, p99, most), and how long the server took to confirm (POST /api/events). One JSON line on stdout; exit code 1 when
p95 is above the target or a label is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from playwright.sync_api import sync_playwright

from humanward.feedback import Store
from humanward.records import Prompt, Question, Response
from humanward.web import WebSettings, create_app

WORDS = ("the", "wind", "came", "from", "west", "and", "nobody", "in", "old", "house", "could", "sleep", "for", "noise", "of", "river")
MEASURE = """
(() => {
  window.painted = [];
  let pressed = null;
  document.addEventListener("keydown", (event) => { if (event.key === "Enter") pressed = event.timeStamp; }, true);
  new MutationObserver(() => {
    const since = pressed;
    if (since === null) return;
    pressed = null;
    requestAnimationFrame(() => setTimeout(() => window.painted.push(performance.now() - since)));
  }).observe(document.getElementById("prompt"), { childList: true, characterData: true, subtree: true });
})()
"""
CONFIRMED = """() => performance.getEntriesByType("resource").filter((e) => e.name.endsWith("/api/events")).map((e) => e.duration)"""


def question(number: int) -> Question:
    """A prompt of some 60 words, four responses of some 50."""
    lots = random.Random(number)

    def text(words: int) -> str:
        return " ".join(lots.choices(WORDS, k=words)) + f" ({number})."

    return Question(f"q{number}", Prompt(f"p{number}", text(60)), tuple(Response(text(50)) for _ in range(4)), "best_of_k")


def serve(address: str, port: int) -> None:
    app = create_app(Store(address), WebSettings(labels_per_minute=100_000))
    uvicorn.run(app, port=port, log_level="warning", lifespan="off", ws="none")


def label_over_http(url: str, tokens: list[str], every: float, until: Any, count: Any) -> None:
    """One thread per simulated labeler."""
    threads = [threading.Thread(target=_one_labeler, args=(url, token, every, until, count, i)) for i, token in enumerate(tokens)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _one_labeler(url: str, token: str, every: float, until: Any, count: Any, seed: int) -> None:
    lots = random.Random(seed)
    until.wait(lots.uniform(0, every))
    with httpx.Client(base_url=url, headers={"Origin": url}, timeout=30) as client:
        assert client.post("/join", data={"token": token}).status_code == 303
        number = 0
        while not until.is_set():
            begun = time.monotonic()
            held = client.post("/api/questions", json={"want": 2}).raise_for_status().json()["questions"]
            if held:
                number += 1
                event = {
                    "client_event_id": f"simulated-{seed}-{number}", "kind": "label", "question_id": held[0]["id"],
                    "answer": lots.randrange(4), "seconds": every, "instructions": held[0]["instructions"],
                }  # fmt: skip
                (result,) = client.post("/api/events", json={"events": [event]}).raise_for_status().json()["results"]
                assert result["ok"], result
                with count.get_lock():
                    count.value += 1
            until.wait(max(0.0, lots.uniform(0.5, 1.5) * every - (time.monotonic() - begun)))


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    at = {f"p{q}": ordered[min(len(ordered) - 1, math.ceil(q / 100 * len(ordered)) - 1)] for q in (50, 95, 99)}
    return {name: round(value, 1) for name, value in (at | {"most": ordered[-1]}).items()}


def label_in_a_browser(url: str, token: str, labels: int, think: float) -> tuple[list[float], list[float]]:
    """Milliseconds from Enter to the next question, and until the server confirmed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("bench/label_page.py: no Chromium on this machine; install chromium or google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.request.post(f"{url}/join", form={"token": token}, headers={"Origin": url}, max_redirects=0)
        page = context.new_page()
        page.goto(f"{url}/label")
        page.wait_for_selector("#question:not([hidden])")
        page.evaluate(MEASURE)
        page.evaluate("performance.setResourceTimingBufferSize(100000)")
        for turn in range(labels):
            page.wait_for_selector("#question:not([hidden])")
            page.keyboard.press(str(turn % 4 + 1))
            page.keyboard.press("Enter")
            time.sleep(think)
        page.wait_for_selector('#saved[data-state="saved"]')
        painted, confirmed = page.evaluate("window.painted"), page.evaluate(CONFIRMED)
        browser.close()
    return painted, confirmed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--think", type=float, default=0.6)
    parser.add_argument("--target", type=float, default=150.0)
    parser.add_argument("--store", default="")
    asked = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        address = asked.store or str(Path(folder) / "labels.db")
        store = Store(address)
        questions = int(asked.labels * 1.2 + asked.labelers * (asked.labels * (asked.think + 0.5) / asked.every) * 1.5) + 500
        store.add_questions(map(question, range(questions)))
        me, token = store.people.invite("labeler", "Browser")
        tokens = [store.people.invite("labeler", f"Simulated {i}")[1] for i in range(asked.labelers)]
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        url = f"http://127.0.0.1:{port}"
        server = spawn.Process(target=serve, args=(address, port), daemon=True)
        server.start()
        until, count = spawn.Event(), spawn.Value("i", 0)
        others = spawn.Process(target=label_over_http, args=(url, tokens, asked.every, until, count), daemon=True)
        try:
            _wait_for(url)
            others.start()
            while count.value < asked.labelers:
                time.sleep(0.05)
            begun, before = time.monotonic(), count.value
            painted, confirmed = label_in_a_browser(url, token, asked.labels, asked.think)
            rate = (count.value - before) / (time.monotonic() - begun)
        finally:
            until.set()
            if others.pid:
                others.join(30)
            server.terminate()
            server.join(30)
        mine = store.labels_by([me.id])[me.id]
        found = {
            "key_to_painted_ms": quantiles(painted), "confirmed_ms": quantiles(confirmed), "labels": len(painted), "stored": mine,
            "other_labelers": asked.labelers, "other_labels_per_second": round(rate, 1), "faults": store.verify(), "cores": os.cpu_count(),
        }  # fmt: skip
        store.close()
    print(json.dumps(found))
    return int(found["key_to_painted_ms"]["p95"] > asked.target or mine != asked.labels or bool(found["faults"]))


def _wait_for(url: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    sys.exit(f"bench/label_page.py: nothing answers at {url}")


if __name__ == "__main__":
    sys.exit(main())
