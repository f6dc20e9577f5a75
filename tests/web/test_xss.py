"""Text that attacks (xss.jsonl), wherever people or models write, on every page in a real browser and in the report: it stays text.

A page is at fault if a dialog opens, its console says anything, its policy is broken, anything is asked of another place, or an element
appears that no page of ours has.
"""

from __future__ import annotations

import importlib
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from humanward.errors import UserError
from humanward.feedback import Store
from humanward.records import Prompt, Question, Response
from humanward.report import build_report
from humanward.web import WebSettings, create_app

HERE = Path(__file__).parent
PAYLOADS: list[str] = [json.loads(line) for line in (HERE / "xss.jsonl").read_text().splitlines()]
KINDS = {"best_of_k": 9, "pair": 2, "ranking": 4, "rating": 1, "difference": 2, "soft": 3}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
STRANGE = """() => {
  const strange = [];
  const wrong = "iframe,frame,object,embed,base,video,audio,applet,marquee,math,style,isindex,portal,bgsound,xmp,plaintext,listing," +
    "foreignObject,animate,set,image,[srcdoc],[style],meta[http-equiv=refresh],script:not([src^='/static/'])," +
    "link:not([href^='/static/']),img:not([src^='/static/']):not([src^='data:image/svg'])";
  for (const element of document.querySelectorAll(wrong)) strange.push(element.outerHTML.slice(0, 200));
  for (const element of document.querySelectorAll("*"))
    for (const { name, value } of element.attributes)
      if (name.startsWith("on") || (name !== "value" && /^\\s*(javascript|vbscript|data:text)/i.test(value)))
        strange.push(`${element.tagName} ${name}=${value}`);
  return strange;
}"""
IN_REPORT = STRANGE.replace("style,", "").replace("[style],", "").replace("script:not([src^='/static/']),", "script,")


def packed(most: int) -> list[str]:
    """All payloads, as few texts of at most ``most`` characters."""
    texts = [""]
    for payload in PAYLOADS:
        if texts[-1] and len(texts[-1]) + len(payload) + 1 > most:
            texts.append("")
        texts[-1] += f"{payload}\n"
    return texts


ALL = packed(10**6)[0]


class Watched:
    """A browser whose pages must stay quiet."""

    def __init__(self, chromium: Browser, url: str) -> None:
        self.url, self.faults = url, list[str]()
        self.context: BrowserContext = chromium.new_context(viewport={"width": 1280, "height": 800})
        self.context.set_default_timeout(30_000)
        self.context.on("request", lambda request: self._asked(request.url))
        self.context.on("page", self._watch)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.url, "data:image/svg", "file:///")) or "evil.example" in url.partition("?")[0]:
            self.faults.append(f"request: {url[:200]}")

    def _watch(self, page: Page) -> None:
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("console", lambda said: self.faults.append(f"console: {said.text[:300]}") if said.type in ("error", "warning") else None)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('policy', event.violatedDirective, event.sample))"
        )

    def look(self, page: Page, where: str, strange: str = STRANGE) -> None:
        """Note what should not be there."""
        self.faults += [f"{where}: {found}" for found in page.evaluate(strange)]
        self.faults += [f"{where}: the page went to {page.url[:200]}"] if not page.url.startswith((self.url, "file:///")) else []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that says hostile things of itself."""
    folder = tmp_path / "<img src=x onerror=alert(1)>\"'{{7*7}}"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"stage": ALL, "round": 1}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"labeler": "people", "labels": {"rounds": ALL}, ALL[:500]: ALL}))
    rows = [
        {"stage": stage, "round": 1, "step": step, "score": 0.5, "accuracy": 0.5, ALL: 1.0}
        for stage in ("ppo", "reward")
        for step in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def store() -> Iterator[Store]:
    """Questions, people, labels, comments, flags, skips, instructions, a cord: all of them hostile."""
    made = Store.in_memory()
    made.add_instructions(ALL)
    parts = packed(4000)
    for place, (kind, K) in enumerate(KINDS.items()):
        texts = [f"{index}\n{parts[(place + index) % len(parts)]}" for index in range(K)] if K > 1 else [ALL]
        responses = tuple(Response(text, (), ALL, ALL[:3000], ALL, {ALL[:99]: ALL}) for text in texts)
        prompt = Prompt(f"p{place}", f"{kind}: {ALL}", (), {ALL[:99]: ALL})
        made.add_questions([Question(f"q<b>{place}", prompt, responses, kind, overlap=99, round=1)])
    for payload in PAYLOADS:
        with suppress(UserError):  # a name is at most 200 printable characters
            made.people.invite("labeler", payload)
    answers: dict[str, list[Any]] = {
        "best_of_k": [0, 1], "pair": [0, 1], "ranking": [[0, 1, 2, 3], [3, 2, 1, 0]], "rating": [1, 9], "difference": [-4, 4],
        "soft": [[1, 0, 0], [0, 0, 1]],
    }  # fmt: skip
    ids = [person.id for person in made.people.all()]
    for which in (0, 1):
        for place, kind in enumerate(KINDS):
            made.lease_many(ids[which], 6)
            made.record(ids[which], f"q<b>{place}", answers[kind][which], f"label{which}{place}", 5.0, None, ALL[:9000])
    for number, text in enumerate(parts):
        made.flag(ids[2], "q<b>0", f"flag{number}", text)
        made.comment(ids[2], "q<b>1", f"comment{number}", text)
    made.skip(ids[2], "q<b>2", "skip", ALL[:9000])
    made.pull_cord("researcher-1", ALL[:9000])
    made.people.audit(ALL[:500], ALL[:500], {ALL: ALL}, ALL[:500])
    yield made
    made.close()


@pytest.fixture
def url(store: Store, run: Path) -> Iterator[str]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = create_app(store, WebSettings(run=run, title=ALL, labels_per_minute=10_000, keys={"undo": '"><svg onload=alert(1)>'}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def signed_in(chromium: Browser, store: Store, url: str, role: str) -> Watched:
    watched = Watched(chromium, url)
    _, token = store.people.invite(role, "</script><script>alert(1)</script>")
    answer = watched.context.request.post(f"{url}/join", form={"token": token}, headers={"Origin": url}, max_redirects=0)
    assert answer.status == 303
    return watched


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 300
    for part in ("<script", "<svg", "javascript:", "onerror", "{{", "<style", "\u202e", "\x1b", "](", "<!--", "srcdoc", "=cmd", "\x00"):
        assert any(part in payload for payload in PAYLOADS), part


@pytest.mark.slow
def test_text_stays_text_on_the_pages_of_labelers(chromium: Browser, store: Store, url: str) -> None:
    watched = signed_in(chromium, store, url, "labeler")
    page = watched.context.new_page()
    for path in ("/history", "/instructions", "/account", "/sign-in", f"/join/{'a' * 43}", "/label"):
        page.goto(url + path)
        watched.look(page, path)
    page.locator("#read-button").click()
    for kind in KINDS:
        expect(page.locator("#prompt")).to_contain_text(f"{kind}: <img src=x onerror=alert(1)>", timeout=20_000)
        for key in ("d", "w", "p", "i"):
            page.keyboard.press(key)
        watched.look(page, f"a question of kind {kind}")
        for key in ("2", "Enter") if kind == "best_of_k" else ("s", "Enter"):
            page.keyboard.press(key)
    page.keyboard.press("?")
    watched.look(page, "the keys")
    page.goto(f"{url}/history")
    page.wait_for_load_state("networkidle")
    watched.look(page, "a history with answers")
    watched.context.close()
    assert watched.faults == []


@pytest.mark.slow
def test_text_stays_text_on_the_pages_of_researchers(chromium: Browser, store: Store, url: str) -> None:
    watched = signed_in(chromium, store, url, "admin")
    page = watched.context.new_page()
    for path in ("/run", "/run/labelers", "/run/disputes", "/run/inbox", "/run/people", "/label"):
        page.goto(url + path)
        page.wait_for_load_state("networkidle" if path == "/label" else "load")
        watched.look(page, path)
        assert "alert(1)" in page.content()
    assert watched.faults == []
    for path in ("/run/<script>alert(1)</script>", "/join/<img src=x onerror=alert(1)>"):  # the console says that these failed
        assert page.goto(url + path).status == 404  # type: ignore[union-attr]
        watched.look(page, path)
    assert [fault for fault in watched.faults if "the server responded with a status of 404" not in fault] == []
    watched.faults.clear()
    page.evaluate("document.body.innerHTML += '<img src=//evil.example/ onerror=alert(1)>'")  # what must not be is noticed
    watched.look(page, "an attack that succeeds")
    watched.context.close()
    assert len(watched.faults) >= 3


@pytest.mark.slow
def test_text_stays_text_in_the_report(chromium: Browser, tmp_path: Path) -> None:
    """In the browser, what tests/report looks for in the source."""
    folder = loaded("run_folder").write_run(tmp_path / "run")
    loaded("test_report").hostile(loaded("run_folder"), folder, PAYLOADS)
    report = build_report(folder)
    watched = Watched(chromium, "file:///")
    page = watched.context.new_page()
    page.goto(Path(report if report is not None else folder / "report.html").as_uri())
    watched.look(page, "the report", IN_REPORT)
    assert "alert(1)" in page.evaluate("document.body.textContent")
    watched.context.close()
    assert watched.faults == []


def loaded(name: str) -> ModuleType:
    """A module beside the tests of the report; tests are not a package, so one is made for it."""
    package = ModuleType("tests_of_the_report")
    package.__path__ = [str(HERE.parent / "report")]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{name}")
