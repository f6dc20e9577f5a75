"""The labeler's JSON: what the page gets, and what becomes of what it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Site, ask, event, question, send

ANSWERS: dict[str, tuple[int, Any]] = {  # kind: K, an answer about the responses as shown
    "best_of_k": (4, 2),
    "pair": (2, "tie"),
    "ranking": (3, [1, 0, 1]),
    "rating": (1, 7.0),
    "difference": (2, -3.0),
    "soft": (3, [0.2, 0.5, 0.3]),
}


def in_the_questions_order(kind: str, shown: list[int], answer: Any) -> Any:
    """shown: the index of the response in each place."""
    if kind == "best_of_k":
        return shown[answer]
    if kind == "difference":
        return answer if shown[0] == 0 else -answer
    return [answer[shown.index(i)] for i in range(len(shown))] if isinstance(answer, list) else answer


def test_questions_are_held_until_they_are_answered(site: Site) -> None:
    site.store.add_questions([question(f"q{i}") for i in range(3)])
    client = site.signed_in("labeler")
    first = ask(client, 2)
    assert len(first["questions"]) == 2
    assert ask(client, 2)["questions"] == first["questions"]  # a client that lost the answer asks again
    assert first["progress"] == {"done": 0, "session_done": 0, "pace_seconds": None, "left": 3, "goal": 50}
    send(client, event(1, first["questions"][0]["id"], answer=0, seconds=4.0))
    second = ask(client, 2)
    assert second["questions"][0] == first["questions"][1]
    assert second["progress"] == {"done": 1, "session_done": 1, "pace_seconds": 4.0, "left": 2, "goal": 50}


def test_responses_are_shown_in_an_order_of_the_labelers_own(site: Site) -> None:
    site.store.add_questions([question("q0", K=9, overlap=3)])
    orders = [tuple(ask(site.signed_in("labeler"))["questions"][0]["responses"]) for _ in range(3)]
    assert len(set(orders)) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple(f"response {i} of q0" for i in range(9))}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_are_about_the_responses_as_shown(site: Site, kind: str) -> None:
    """What was on top on the screen is what is stored as the best, and an undo brings back what was on the screen."""
    K, answer = ANSWERS[kind]
    for number in range(4):  # so many that an order other than the question's comes up
        site.store.add_questions([question(f"q{number}", K, kind)])
    client = site.signed_in("labeler")
    orders = set()
    for number in range(4):
        asked = ask(client)["questions"][0]
        [kept] = send(client, event(number, asked["id"], answer=answer, seconds=2.5, confidence=0.75, comment="why"))
        assert kept == {"client_event_id": f"event-{number:04}", "ok": True}
        label = site.store.labels()[-1]
        shown = [int(text.split()[1]) for text in asked["responses"]]
        orders.add(tuple(shown))
        expected = in_the_questions_order(kind, shown, answer)
        assert (label.answer, label.seconds, label.confidence, label.comment) == (expected, 2.5, 0.75, "why")
    assert len(orders) > 1 or K == 1
    [undone] = send(client, event(9, kind="undo"))
    assert undone["question"] == asked | {"attempt": 1, "answer": answer, "comment": "why", "confidence": 0.75}
    assert client.get("/api/history").json()["events"][0]["answer"] == answer


def test_sending_again_changes_nothing_and_is_answered_the_same(site: Site) -> None:
    site.store.add_questions([question("q0"), question("q1")])
    client = site.signed_in("labeler")
    first, second = ask(client, 2)["questions"]
    batch = [event(1, first["id"], answer=1), event(2, second["id"], "skip", reason="dull"), event(3, second["id"], "flag")]
    batch.append(event(4, kind="undo"))
    results = send(client, *batch)
    assert [result["ok"] for result in results] == [True] * 4
    events = site.store.events()
    assert send(client, *batch) == results
    assert site.store.events() == events


def test_events_of_a_batch_are_looked_at_one_by_one(site: Site) -> None:
    """One that is wrong does not hold up the outbox."""
    site.store.add_questions([question("q0"), question("q1")])
    client = site.signed_in("labeler")
    first, second = ask(client, 2)["questions"]
    wrong = [
        7, {}, {"client_event_id": "short"}, event(1, first["id"], answer=4), event(2, first["id"], answer="1"), event(3, first["id"]),
        event(4, first["id"], "praise"), event(5, None, answer=0), event(6, first["id"], "comment", comment=" "),
        event(7, first["id"], answer=0, seconds=-1), event(8, first["id"], answer=0, who="me"), event(9, "a" * 900, answer=0),
        event(10, "q\0", answer=0), event(11, first["id"], answer=0, confidence=2), event(12, first["id"], answer=[[[]]]),
        event(13, "\ud800", answer=0), {"client_event_id": "\ud800" * 9}, {"\ud800": 1}, event(14, first["id"], answer="\ud800"),
    ]  # fmt: skip
    results = send(client, *wrong, event(20, second["id"], answer=0))
    assert [result["ok"] for result in results] == [False] * len(wrong) + [True]
    for result in results[:-1]:
        assert result["final"] is True
        assert "\n" not in result["error"]
        assert 0 < len(result["error"]) < 300
    assert [label.question_id for label in site.store.labels()] == [second["id"]]


@pytest.mark.parametrize("text", ["\ud800 half", "nul \0 byte", "\u202e turned", "<script>alert(1)</script>", "x" * 4000])
def test_any_text_can_be_a_comment(site: Site, text: str) -> None:
    site.store.add_questions([question("q0")])
    client = site.signed_in("labeler")
    asked = ask(client)["questions"][0]
    assert send(client, event(1, asked["id"], "comment", comment=text), event(2, asked["id"], answer=0, comment=text))[1]["ok"]
    assert site.store.verify() == []
    assert client.get("/api/history").json()["events"][0]["comment"] == site.store.labels()[0].comment
    assert site.signed_in("researcher").get("/run/inbox").status_code == 200


def test_an_answer_that_comes_after_the_lease_has_ended_is_kept(site: Site) -> None:
    site.store.add_questions([question("q0")])
    late, other = site.signed_in("labeler"), site.signed_in("labeler")
    asked = ask(late)["questions"][0]
    site.clock.now += 3600
    send(other, event(1, ask(other)["questions"][0]["id"], answer=0))
    assert send(late, event(1, asked["id"], answer=0))[0]["ok"]
    assert len(site.store.labels()) == 2


def test_leases_last_as_long_as_the_settings_say(with_settings: Callable[..., Site]) -> None:
    site = with_settings(lease_seconds=60)
    site.store.add_questions([question("q0")])
    first, second = site.signed_in("labeler"), site.signed_in("labeler")
    assert ask(first)["questions"]
    assert not ask(second)["questions"]
    site.clock.now += 61
    assert ask(second)["questions"]


def test_undo_goes_back_any_number_of_steps_over_flags_and_comments(site: Site) -> None:
    site.store.add_questions([question(f"q{i}") for i in range(3)])
    client = site.signed_in("labeler")
    for number in range(3):
        asked = ask(client)["questions"][0]["id"]
        kind = ("label", "skip", "label")[number]
        send(client, event(number, asked, kind, answer=1), event(10 + number, asked, "flag", reason="odd"))
    reopened = [send(client, event(20 + number, kind="undo"))[0]["question"] for number in range(4)]
    assert [one and (one["id"], one["answer"]) for one in reopened] == [("q2", 1), ("q1", None), ("q0", 1), None]
    assert len(site.store.flags()) == 3
    assert ask(client)["progress"]["done"] == 0


def test_a_new_sitting_begins_after_a_pause(site: Site) -> None:
    site.store.add_questions([question(f"q{i}") for i in range(5)])
    client = site.signed_in("labeler")
    for number, pause in enumerate((0, 60, 3600, 60)):
        site.clock.now += pause
        send(client, event(number, ask(client)["questions"][0]["id"], answer=0, seconds=float(number)))
    progress = ask(client)["progress"]
    assert (progress["done"], progress["session_done"], progress["pace_seconds"]) == (4, 2, 1.5)


def test_history_is_paged_and_says_what_was_taken_back(site: Site) -> None:
    site.store.add_questions([question(f"q{i}") for i in range(60)])
    client = site.signed_in("labeler")
    for number in range(55):
        send(client, event(number, ask(client)["questions"][0]["id"], answer=0))
    send(client, event(99, kind="undo"))
    first = client.get("/api/history").json()["events"]
    rest = client.get("/api/history", params={"before": first[-1]["seq"]}).json()["events"]
    assert (len(first), len(rest)) == (50, 5)
    assert [entry["undone"] for entry in first[:2]] == [True, False]
    assert set(first[0]) == {"seq", "kind", "time", "undone", "question", "answer", "seconds", "confidence", "comment"}
    assert client.get("/api/history?before=x").status_code == 422


def test_instructions_have_versions(site: Site) -> None:
    client = site.signed_in("labeler")
    assert client.get("/api/instructions").json() == {"version": "", "text": ""}
    old, new = site.store.add_instructions("Be kind."), site.store.add_instructions("Be just.")
    site.store.add_questions([question("q0"), question("q1", instructions="Only this once.")])
    first, second = ask(client, 2)["questions"]
    assert first["instructions"] == new
    for version, text in ((new, "Be just."), (old, "Be kind."), (second["instructions"], "Only this once."), ("", "Be just.")):
        assert client.get("/api/instructions", params={"version": version}).json() == {"version": version or new, "text": text}
    assert client.get("/api/instructions?version=0123456789abcdef").status_code == 404
    send(client, event(1, first["id"], answer=0, instructions=new))
    assert site.store.events()[-1].body["instructions"] == new


def test_a_tab_of_somebody_else_sends_nothing(site: Site) -> None:
    """Two people, one browser: the first one's tab is still open when the second one signs in."""
    site.store.add_questions([question("q0")])
    client = site.signed_in("labeler")
    asked = ask(client)["questions"][0]["id"]
    body = {"events": [event(1, asked, answer=0)]}
    assert client.post("/api/events", json=body, headers={"x-humanward-labeler": "labeler-2"}).status_code == 409
    assert site.store.events() == []
    assert client.post("/api/events", json=body, headers={"x-humanward-labeler": "labeler-1"}).status_code == 200
