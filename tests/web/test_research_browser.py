"""The researcher's pages in Chromium: accessible, without scripts too, by keyboard, and deaf to other sites."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from humanward.feedback import Store
from humanward.web import WebSettings, create_app

from .conftest import question

PAGES = ["/run", "/run/labelers", "/run/disputes", "/run/inbox", "/run/people", "/account", "/nothing"]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}}
SNEAKY = "Ann \u202e<b>Lee</b>"


class Served:
    """A run with labelers, disputes and curves, served on a port, and a browser of its admin."""

    def __init__(self, folder: Path, chromium: Browser) -> None:
        (folder / "state.json").write_text('{"stage": "label", "round": 1}')
        rows = [{"stage": "ppo", "round": 1, "step": step, "score": step / 10, "true_score": 1.0, "kl": 2.0} for step in range(30)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.store = Store(folder / "labels.db")
        kinds = {
            "q0": (4, "best_of_k"),
            "q1": (2, "pair"),
            "q2": (3, "ranking"),
            "q3": (1, "rating"),
            "q4": (2, "difference"),
            "q5": (3, "soft"),
        }
        self.store.add_questions(question(name, K, kind, overlap=2) for name, (K, kind) in kinds.items())
        answers: dict[str, tuple[Any, Any]] = {
            "best_of_k": (0, 3), "pair": (0, "tie"), "ranking": ([0, 1, 2], [2, 1, 0]), "rating": (2.0, 8.0), "difference": (-1.0, 3.0),
            "soft": ([0.2, 0.3, 0.5], [0.6, 0.2, 0.2]),
        }  # fmt: skip
        for number in range(2):
            labeler = self.store.people.invite("labeler", SNEAKY if number else "Bob")[0].id
            for shown in self.store.lease_many(labeler, 9):
                name = shown.question.id
                self.store.flag(labeler, name, f"flag-{name}", "a <script>alert(1)</script> remark \u200b")
                self.store.record(labeler, name, answers[shown.question.kind][number], f"event-{name}", seconds=2.0, comment="why")
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(self.store, WebSettings(run=folder))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.chromium, self.faults = chromium, list[str]()

    def admin(self, **options: Any) -> BrowserContext:
        """Somebody who may see everything."""
        context = self.chromium.new_context(**options)
        context.set_default_timeout(90_000)  # a busy machine is no fault
        _, token = self.store.people.invite("admin", "Ada")
        answer = context.request.post(f"{self.url}/join", form={"token": token}, headers={"Origin": self.url}, max_redirects=0)
        assert answer.status == 303
        context.on("page", self._watch)
        return context

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: self.faults.append(message.text) if "404" not in message.text else None)
        page.on("request", lambda asked: self.faults.append(asked.url) if not asked.url.startswith(self.url) else None)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.store.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine; install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[Served]:
    import humanward.maths.labeler_quality  # noqa: F401  takes seconds under the checks of shapes; not to be waited for by a page

    made = Served(tmp_path_factory.mktemp("run"), chromium)
    yield made
    made.close()


@pytest.mark.parametrize(
    "look", [{"viewport": {"width": 1180, "height": 800}}, {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}]
)
def test_every_page_is_accessible_and_quiet(served: Served, look: dict[str, Any]) -> None:
    context = served.admin(**look)
    found = []
    for path in PAGES:
        page = context.new_page()
        page.goto(served.url + path)
        if path == "/run":
            expect(page.locator("#charts svg")).to_have_count(2)
        for summary in page.locator("main summary").all()[:3]:
            summary.click()
        page.evaluate(Axe().axe_script)
        violations = page.evaluate("async (rules) => (await axe.run(document, rules)).violations", RULES)
        found += [f"{path}: {one['id']}: {node['target']} {node['failureSummary']}" for one in violations for node in one["nodes"]]
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        page.close()
    context.close()
    assert found == []
    assert served.faults == []


def test_hidden_characters_are_seen_by_researchers(served: Served) -> None:
    context = served.admin()
    page = context.new_page()
    page.goto(f"{served.url}/run/inbox")
    expect(page.locator(".remark .mark-hidden").first).to_have_text("⟨U+200B⟩")
    expect(page.locator("bdi .mark-hidden").first).to_have_text("⟨U+202E⟩")
    expect(page.locator("bdi", has_text="<b>Lee</b>").first).to_be_visible()
    context.close()


def test_the_cord_is_pulled_by_keyboard_and_without_scripts(served: Served) -> None:
    context = served.admin(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served.url}/run")
    expect(page.locator("#now-line")).to_have_text("12 of 12 labels for round 1, policy SECRET-p")
    expect(page.get_by_role("table").first).to_contain_text("reward model")
    page.get_by_label("Reason").focus()
    page.keyboard.type("It repeats itself")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Stop now")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The training is asked to stop")).to_be_visible()
    assert served.store.cord() is not None
    page.get_by_role("button", name="Let the training go on").press("Enter")
    expect(page.get_by_role("heading", name="Stop the training")).to_be_visible()
    assert served.store.cord() is None
    context.close()


def test_a_dispute_of_every_kind_is_decided(served: Served) -> None:
    context = served.admin(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served.url}/run/disputes")
    assert page.locator("article").count() == 6
    fields = {
        "Best of 4": [],
        "Pair": [],
        "Ranking": ["1", "2", "2"],
        "Rating": ["5"],
        "Difference": ["-2.5"],
        "Soft": ["0.5", "0.25", "0.25"],
    }
    for title, values in fields.items():
        article = page.locator("article", has_text=f"{title}, round 1")
        if values:
            for index, value in enumerate(values):
                article.locator("input[type=number]").nth(index).fill(value)
        else:
            article.locator("input[type=radio]").last.check()
        article.get_by_role("button", name="Decide").click()
        expect(article.get_by_text("decided by Ada")).to_be_visible()
    decided = {label.kind: label.answer for label in served.store.adjudications()}
    assert decided == {
        "best_of_k": 3, "pair": "tie", "ranking": [0, 1, 1], "rating": 5.0, "difference": -2.5, "soft": [0.5, 0.25, 0.25],
    }  # fmt: skip
    context.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_form_on_another_site_or_port_changes_nothing(served: Served, tmp_path: Path, name: str) -> None:
    """The same host on another port counts as the same site, and the browser sends the cookie along."""
    (tmp_path / "evil.html").write_text(
        f'<form method="post" action="{served.url}/run/cord"><input name="reason" value="evil"><button>Win a prize</button></form>'
    )
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    evil = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    context = served.admin()
    try:
        page = context.new_page()
        page.goto(f"http://{name}:{evil.server_port}/evil.html")
        with page.expect_response(f"{served.url}/run/cord") as answer:
            page.get_by_role("button").click()
        assert answer.value.status == 403
        assert served.store.cord() is None
    finally:
        context.close()
        evil.shutdown()
        evil.server_close()
        served.faults.clear()  # the other site's own requests
