"""WCAG 2.2 AA on every page and state, in light and dark, on a phone, at 200 % zoom, in forced colours, and for a screen reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]},
    "resultTypes": ["violations"],
}
WIDE = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
ZOOMED = {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2}
"""What a page of 1280 x 800 gets at 200 %."""


def faults_of(page: Page, state: str) -> list[str]:
    page.mouse.move(0, 0)
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate("async (rules) => (await axe.run(document, rules)).violations", RULES)
    return [f"{state}: {one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


def wider_than_the_window(page: Page) -> list[str]:
    """Elements that make the page scroll sideways."""
    return page.evaluate("""() => {
        if (document.documentElement.scrollWidth <= innerWidth) return [];
        const wide = (e) => e.getBoundingClientRect().right > innerWidth + 1;
        return [...document.querySelectorAll("*")].filter(wide).map((e) => e.outerHTML.slice(0, 90));
      }""")


def walk(desk: Any, page: Page, look: Callable[[str], None]) -> None:
    """Every state of the labeler's pages."""
    expect(page.locator("#read-first")).to_be_visible()
    look("instructions to be read")
    page.get_by_role("button", name="I have read them").click()
    for question in desk.store.questions():
        desk.asked(page, question.id)
        page.keyboard.press("2")
        look(question.kind)
        if question.kind == "best_of_k":
            for key, state in (("?", "keys"), ("s", "skip"), ("f", "flag")):
                page.keyboard.press(key)
                look(state)
                page.keyboard.press("Escape")
            for key in ("d", "w", "."):
                page.keyboard.press(key)
            page.keyboard.press("c")
            look("differences, white space, sureness, comment")
            page.keyboard.press("Escape")
        for key in {"ranking": ("1", "3"), "rating": ("7",)}.get(question.kind, ()):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Nothing to do now")).to_be_visible()
    look("nothing to do")
    page.keyboard.press("Enter")
    page.context.clear_cookies()
    desk.network_fails = True
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#alerts .notice")).to_be_visible()
    look("signed out")


@pytest.mark.parametrize("options", [WIDE, PHONE], ids=["wide, light", "360 px, dark"])
def test_no_violations_in_any_state(desk: Any, make_questions: Any, options: Any) -> None:
    long = "word " * 600
    desk.store.add_questions(make_questions(6))
    desk.store.add_instructions("Read well.\n\n" + long)
    faults: list[str] = []
    context = desk.context(**options)
    labeler = desk.sign_in(context)
    page = context.new_page()

    def look(state: str) -> None:
        faults.extend(faults_of(page, state))
        faults.extend(f"{state}: too wide: {element}" for element in wider_than_the_window(page))

    page.goto(desk.server.url + "/label")
    walk(desk, page, look)
    _, token = desk.store.people.invite("labeler", "", labeler)
    for path in ("/sign-in", f"/join/{token}"):
        page.goto(desk.server.url + path)
        look(path[:8])
    page.get_by_role("button", name="Sign in").click()
    for path in ("/history", "/instructions", "/account", "/stop"):
        page.goto(desk.server.url + path)
        if path == "/history":
            page.locator("#history summary").first.click()
        look(path)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("options", [WIDE, PHONE], ids=["wide, light", "360 px, dark"])
def test_no_violations_on_the_pages_of_researchers(desk: Any, make_questions: Any, tmp_path: Path, options: Any) -> None:
    desk.store.add_questions(make_questions(6))
    for number, labeler in enumerate(desk.store.people.invite("labeler", name)[0].id for name in ("Ada", "Grace")):
        for turn, held in enumerate(desk.store.lease_many(labeler, 2)):
            desk.store.record(labeler, held.question.id, number, f"event-{labeler}-{turn}", 3.0, comment="I like it")
    (tmp_path / "state.json").write_text('{"stage": "ppo", "round": 1}')
    rows = [{"stage": "ppo", "step": i, "score": i / 9, "kl": i / 7} for i in range(20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk.serve(run=tmp_path)
    context = desk.context(**options)
    desk.sign_in(context, role="admin")
    page = context.new_page()
    faults = []
    for path in ("/run", "/run/labelers", "/run/disputes", "/run/inbox", "/run/people"):
        page.goto(desk.server.url + path, wait_until="networkidle" if path == "/run" else "load")
        faults += faults_of(page, path) + [f"{path}: too wide: {element}" for element in wider_than_the_window(page)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("options", [ZOOMED, {"viewport": {"width": 320, "height": 256}}], ids=["200 %", "400 %"])
def test_zoomed_pages_need_no_sideways_scrolling_and_hide_nothing(desk: Any, make_questions: Any, options: Any) -> None:
    desk.store.add_questions(make_questions(6))
    page = desk.page(**options)
    for question in desk.store.questions():
        desk.asked(page, question.id)
        assert wider_than_the_window(page) == []
        button = page.get_by_role("button", name="Confirm")
        button.scroll_into_view_if_needed()
        box = button.bounding_box()
        assert box["height"] >= 24
        for key in {"ranking": ("1", "2", "3"), "soft": ("1",)}.get(question.kind, ("1",)):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
    page.keyboard.press("?")
    assert wider_than_the_window(page) == []


def test_forced_colours_show_what_is_picked(desk: Any, make_questions: Any) -> None:
    desk.store.add_questions(make_questions(1, "best_of_k"))
    page = desk.page(forced_colors="active", reduced_motion="reduce")
    desk.asked(page, "q0")
    page.keyboard.press("2")
    width = "(i) => getComputedStyle(document.querySelectorAll('.card')[i]).borderTopWidth"
    assert (page.evaluate(width, 0), page.evaluate(width, 1)) == ("1px", "3px")
    assert page.evaluate("document.getAnimations().length") == 0


def test_a_screen_reader_hears_the_question_and_finds_the_choices(desk: Any, make_questions: Any) -> None:
    desk.store.add_questions(make_questions(3, "pair", "rating", "ranking"))
    page = desk.page()
    desk.asked(page, "q0")
    expect(page.locator("#live")).to_have_text("Question 1. Which response is better? 2 responses.")
    assert page.evaluate("document.activeElement.id") == "question-title"
    expect(page.get_by_role("radiogroup", name="Which response is better?").get_by_role("radio")).to_have_count(3)
    page.keyboard.press("2")
    expect(page.get_by_role("radio", name="Response 2")).to_be_checked()
    expect(page.locator("#live")).to_have_text("Response 2 picked.")
    page.keyboard.press("Enter")
    desk.asked(page, "q1")
    expect(page.locator("#live")).to_have_text("Kept: response 2. Question 2. How good is the response?")
    assert page.evaluate("document.activeElement.id") == "question-title"
    expect(page.get_by_role("radiogroup").get_by_role("radio")).to_have_count(9)
    page.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="2 of 9")).to_be_checked()
    page.keyboard.press("Enter")
    desk.asked(page, "q2")
    page.keyboard.press("4")
    expect(page.get_by_role("button", name="Response 4 is 1st: take it out")).to_be_visible()


def test_tab_walks_through_the_page_and_out_again(desk: Any, make_questions: Any) -> None:
    desk.store.add_questions(make_questions(1, "best_of_k"))
    page = desk.page()
    desk.asked(page, "q0")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.name || 'body'"))
    assert {"answer", "undo-button", "skip-button", "confirm-button", "help-button", "skip-link"} <= set(seen)
    assert seen.index("answer") < seen.index("undo-button") < seen.index("confirm-button")
