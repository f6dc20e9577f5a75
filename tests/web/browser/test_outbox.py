"""No answer is lost or doubled: the network goes, answers of the server are lost, tabs close, sessions end, leases expire."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

NO_LUXURY = """
Object.defineProperty(window, "indexedDB", { value: undefined });
Object.defineProperty(navigator, "locks", { value: undefined });
crypto.randomUUID = undefined;
"""


@pytest.fixture
def desk(desk: Any, make_questions: Any) -> Any:
    desk.store.add_questions(make_questions(20, "best_of_k"))
    desk.network_fails = True
    return desk


def api(path: str) -> bool:
    return path.startswith("/api/")


def test_a_lost_network_loses_nothing(desk: Any) -> None:
    page = desk.page()
    desk.answer(page, "q0", "1")
    desk.asked(page, "q1")
    desk.saved(page)
    page.context.set_offline(True)
    desk.answer(page, "q1", "2")
    desk.answer(page, "q2", "3")  # it was fetched ahead
    expect(page.get_by_role("heading", name="No connection")).to_be_visible()
    desk.saved(page, "unsaved: 2 (no connection)")
    page.get_by_role("button", name="Undo").click()
    desk.asked(page, "q2")
    desk.answer(page, "q2", "4")
    desk.saved(page, "unsaved: 4 (no connection)")
    page.context.set_offline(False)
    desk.saved(page)
    desk.asked(page, "q3")
    labels = desk.labels(3)
    assert [e.kind for e in desk.store.events()] == ["label", "label", "label", "undo", "label"]
    shown = desk.store.assignment(next(iter(labels.values())).labeler, "q2").permutation
    assert labels["q2"].answer == shown[3]


@pytest.mark.parametrize("lacks", ["", NO_LUXURY], ids=["IndexedDB", "localStorage alone"])
def test_unsaved_answers_outlive_a_reload_and_a_closed_tab(desk: Any, lacks: str) -> None:
    context = desk.context()
    if lacks:
        context.add_init_script(lacks)
    desk.sign_in(context)
    page = context.new_page()
    page.goto(desk.server.url + "/label")
    desk.asked(page, "q0")
    desk.saved(page)
    desk.server.refused = api
    desk.answer(page, "q0", "1")
    desk.asked(page, "q1")
    desk.saved(page, "unsaved: 1 (no connection)")
    page.reload()
    desk.saved(page, "unsaved: 1 (no connection)")
    page.close()
    page = context.new_page()
    page.goto(desk.server.url + "/history")
    desk.saved(page, "unsaved: 1 (no connection)")
    desk.server.well()
    page.goto(desk.server.url + "/label")
    desk.asked(page, "q1")
    desk.saved(page)
    assert list(desk.labels(1)) == ["q0"]


def test_a_lost_answer_of_the_server_doubles_nothing(desk: Any) -> None:
    page = desk.page()
    desk.asked(page, "q0")
    desk.server.lost = lambda path: path == "/api/events"
    desk.answer(page, "q0", "1")
    desk.labels(1)  # the server has it, the page does not know
    desk.saved(page, "unsaved: 1 (no connection)")
    page.keyboard.press("Control+z")
    desk.answer(page, "q0", "2")
    desk.asked(page, "q1")
    desk.server.well()
    desk.saved(page)
    desk.labels(1)
    assert [e.kind for e in desk.store.events()] == ["label", "undo", "label"]
    assert desk.store.verify() == []


def test_an_answer_leaves_with_the_page(desk: Any) -> None:
    page = desk.page()
    desk.answer(page, "q0", "1")
    page.goto("about:blank")  # at once
    assert list(desk.labels(1)) == ["q0"]


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(desk: Any) -> None:
    page = desk.page()
    desk.asked(page, "q0")
    desk.saved(page)
    desk.server.answers = {"/api/events": (503, {"Retry-After": "3"})}
    desk.answer(page, "q0", "1")
    desk.saved(page, "unsaved: 1 (the server is busy)")
    seen = desk.server.seen.count("/api/events")
    page.wait_for_timeout(1500)
    assert desk.server.seen.count("/api/events") == seen
    desk.server.well()
    desk.saved(page)
    desk.labels(1)


def test_a_question_that_was_answered_elsewhere_is_said_and_dropped(desk: Any) -> None:
    context = desk.context()
    labeler = desk.sign_in(context)
    page = context.new_page()
    page.goto(desk.server.url + "/label")
    desk.asked(page, "q0")
    desk.store.record(labeler, "q0", 0, "from-another-device")
    desk.answer(page, "q0", "2")
    expect(page.locator("#alerts")).to_contain_text("Not saved:")
    expect(page.locator("#alerts")).to_contain_text("q0")
    desk.asked(page, "q1")
    desk.saved(page)
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#alerts")).to_be_empty()
    assert desk.labels(1)["q0"].answer == 0


def test_the_undo_of_a_refused_answer_takes_back_nothing_else(desk: Any) -> None:
    context = desk.context()
    labeler = desk.sign_in(context)
    page = context.new_page()
    page.goto(desk.server.url + "/label")
    desk.answer(page, "q0", "1")
    desk.asked(page, "q1")
    desk.saved(page)
    context.set_offline(True)
    desk.store.record(labeler, "q1", 0, "from-another-device")
    desk.answer(page, "q1", "2")
    page.keyboard.press("Control+z")
    desk.asked(page, "q1")
    desk.saved(page, "unsaved: 2 (no connection)")
    context.set_offline(False)
    expect(page.locator("#alerts")).to_contain_text("Not saved:")
    desk.saved(page)
    desk.asked(page, "q2")
    assert sorted(desk.labels(2)) == ["q0", "q1"]


@pytest.mark.parametrize("lacks", ["", NO_LUXURY], ids=["locks", "without locks"])
def test_two_tabs_do_not_fight(desk: Any, lacks: str) -> None:
    context = desk.context()
    if lacks:
        context.add_init_script(lacks)
    desk.sign_in(context)
    first, second = context.new_page(), context.new_page()
    first.goto(desk.server.url + "/label")
    desk.answer(first, "q0", "1")
    desk.asked(first, "q1")
    first.keyboard.press("3")
    second.goto(desk.server.url + "/label")
    expect(second.get_by_role("heading", name="You are labelling in another tab")).to_be_visible()
    second.keyboard.press("1")
    second.keyboard.press("Enter")
    second.get_by_role("button", name="Label in this tab").click()
    desk.asked(second, "q1")
    expect(first.get_by_role("heading", name="You are labelling in another tab")).to_be_visible()
    assert second.locator("input[name=answer]:checked").get_attribute("value") == "2"  # begun in the first tab
    desk.answer(second, "q1", "2")
    desk.asked(second, "q2")
    desk.saved(second)
    second.close()
    desk.answer(first, "q2", "1")  # by itself
    desk.asked(first, "q3")
    desk.labels(3)


def test_an_expired_lease_does_not_lose_the_answer(desk: Any) -> None:
    page = desk.page()
    desk.asked(page, "q0")
    page.keyboard.press("1")
    desk.now += 4_000
    desk.store.lease_many("somebody-else", 5)
    page.keyboard.press("Enter")
    desk.asked(page, "q1")
    desk.saved(page)
    assert list(desk.labels(1)) == ["q0"]


def test_a_session_that_ended_keeps_the_outbox_until_the_next_one(desk: Any) -> None:
    context = desk.context()
    labeler = desk.sign_in(context)
    page = context.new_page()
    page.goto(desk.server.url + "/label")
    desk.asked(page, "q0")
    desk.saved(page)
    cookies = context.cookies()
    context.clear_cookies()
    desk.answer(page, "q0", "1")
    desk.saved(page, "unsaved: 1 (signed out)")
    expect(page.locator("#alerts")).to_contain_text("1 thing you did is kept in this browser")
    assert cookies
    desk.sign_in(context, labeler)
    page.bring_to_front()
    page.evaluate("dispatchEvent(new Event('focus'))")
    desk.saved(page)
    expect(page.locator("#alerts")).to_be_empty()
    assert desk.labels(1)["q0"].labeler == labeler


def test_answers_of_one_person_are_never_sent_as_those_of_another(desk: Any) -> None:
    context = desk.context()
    first = desk.sign_in(context)
    page = context.new_page()
    page.goto(desk.server.url + "/label")
    desk.asked(page, "q0")
    desk.saved(page)
    second = desk.sign_in(context)
    assert first != second
    desk.answer(page, "q0", "1")
    desk.saved(page, "unsaved: 1 (signed in as somebody else)")
    assert desk.store.labels() == []
    other = context.new_page()
    other.goto(desk.server.url + "/label")
    desk.answer(other, "q0", "2")
    desk.saved(other)
    desk.asked(other, "q1")
    assert {label.labeler for label in desk.store.labels()} == {second}
    other.close()
    desk.sign_in(context, first)
    page.evaluate("dispatchEvent(new Event('focus'))")
    desk.saved(page)
    assert [label.labeler for label in desk.store.labels()] == [second, first]


def test_a_half_done_answer_outlives_a_reload(desk: Any, make_questions: Any) -> None:
    page = desk.page()
    desk.asked(page, "q0")
    page.keyboard.press("3")
    page.keyboard.press(".")
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.reload()
    desk.asked(page, "q0")
    assert page.locator("input[name=answer]:checked").get_attribute("value") == "2"
    assert page.locator("#comment").input_value() == "half a thought"
    page.keyboard.press("Enter")
    desk.asked(page, "q1")
    expect(page.locator("#comment-box")).to_be_hidden()
    label = desk.labels(1)["q0"]
    assert (label.comment, label.confidence) == ("half a thought", 0.5)
