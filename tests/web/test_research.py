"""The researcher's and the admin's pages: what they say, and what they change."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from humanward.feedback import Answer, Store
from humanward.feedback.quality import choice, quality_table
from humanward.web import WebSettings
from humanward.web.run_view import RunView, averaged

from .conftest import Clock, Site, ask, event, question, send


def text_of(html: str) -> str:
    """What a page says, without its marks."""
    html = re.sub(r"<[^>]*>", " ", html.partition("<main")[2])
    return re.sub(r"\s+([.,:;])", r"\1", re.sub(r"\s+", " ", html)).replace("&#39;", "'").replace("&#34;", '"')


@pytest.fixture
def run(tmp_path: Path) -> Site:
    """A site beside a run that waits for the labels of its second round."""
    (tmp_path / "config.yaml").write_text("labels:\n  rounds: 3\n")
    (tmp_path / "state.json").write_text(json.dumps({"stage": "label", "round": 2, "waiting": {"for": "labels"}}))
    rows = [{"stage": "ppo", "round": 1, "step": step, "score": step / 10, "kl": 2.0, "text": "no number"} for step in range(500)]
    rows += [{"stage": "reward", "round": number, "step": step, "loss": 1.0} for number in (1, 2) for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    clock = Clock()
    return Site(Store.in_memory(clock=clock), clock, WebSettings(run=tmp_path))


def labelled(site: Site, answers: list[int], *, kind: str = "best_of_k", K: int = 4) -> list[str]:
    """One question, answered by as many labelers; answers are about the question's own order. Returns the pseudonyms."""
    site.store.add_questions([question("q0", K, kind, overlap=len(answers))])
    ids = []
    for number, answer in enumerate(answers):
        client = site.signed_in("labeler", f"Labeler {number}")
        shown = [int(text.split()[1]) for text in ask(client)["questions"][0]["responses"]]
        send(client, event(1, "q0", answer=shown.index(answer), comment=f"comment {number}"))
        ids.append(site.ids[f"Labeler {number}"])
    return ids


def test_the_run_says_how_far_it_is(run: Site) -> None:
    asked = [question(f"q{i}") for i in range(5)]
    run.store.add_questions([*asked[:2], *(type(one)(**{**vars(one), "round": 2}) for one in asked[2:])])
    client = run.signed_in("labeler")
    for number in range(3):
        send(client, event(number, ask(client)["questions"][0]["id"], answer=0))
    ask(client)
    page = run.signed_in("researcher").get("/run")
    said = text_of(page.text)
    assert "1 of 3 labels for round 2, policy SECRET-p" in said
    assert "The trainer waits for the labels of round 2: 2 labels are missing. 1 question is with labelers now." in said
    assert "1 SECRET-p 2 2 2 0 0 0" in said  # round 1: questions, labels, wanted, missing, skipped, flagged
    assert "Score of the policy reward model 498 49.8" in said
    progress = run.signed_in("researcher").get("/api/run").json()["progress"]
    assert (progress["now"]["round"], progress["waits"], progress["labels"], progress["missing"]) == (2, True, 3, 2)


def test_a_run_without_questions_says_when_they_come(site: Site) -> None:
    said = text_of(site.signed_in("researcher").get("/run").text)
    assert "No questions yet: they come with round 1." in said
    assert "The trainer has not begun." in said
    assert "No training has begun yet" in said


def test_curves_are_of_numbers_and_short(run: Site) -> None:
    charts = {chart["id"]: chart for chart in run.signed_in("researcher").get("/api/run").json()["charts"]}
    assert set(charts) == {"score", "kl", "reward-loss"}
    assert [one["name"] for one in charts["reward-loss"]["series"]] == ["round 1", "round 2"]
    points = charts["score"]["series"][0]["points"]
    assert len(points) == 167  # 500 in threes
    assert points[0] == [1.0, 0.1]


def test_the_page_follows_a_run_of_another_method(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: dpo\n")
    (tmp_path / "state.json").write_text('{"stage": "dpo", "round": 2}')
    moved = {"stage": "dpo", "chosen_moved": 0.1, "rejected_moved": -0.2, "accuracy": 0.5}
    rows = [{**moved, "round": number, "step": step} for number in (1, 2) for step in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    view = RunView(tmp_path)
    assert view.doing() == "tunes the policy in round 2"
    assert view.why_nothing() == "The policy is being trained on what was preferred."
    charts = {chart["id"]: [one["name"] for one in chart["series"]] for chart in view.charts()}
    assert charts == {
        "implicit": ["round 1", "round 2"],
        "displacement": ["chosen, round 1", "chosen, round 2", "rejected, round 1", "rejected, round 2"],
    }


def test_curves_follow_a_log_that_grows_and_is_cut_back(tmp_path: Path) -> None:
    log, view = tmp_path / "metrics.jsonl", RunView(tmp_path)
    assert view.rows() == []
    row = {"stage": "sft", "step": 0, "loss": 1.0}
    log.write_text(json.dumps(row) + "\n" + '{"stage": "sf')
    assert view.rows() == [row]
    with open(log, "a") as file:
        file.write('t", "step": 1}\nnot json\n[1]\n{"stage": "sft", "step": "x"}\n{"stage": "sft", "step": 2}\n')
    assert [one["step"] for one in view.rows()] == [0, 1, 2]
    log.write_text(json.dumps(row | {"step": 7}) + "\n")
    assert [one["step"] for one in view.rows()] == [7]
    log.write_bytes(b"\xff\xfe\n" * 3)
    assert view.rows() == []
    log.unlink()
    assert view.rows() == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"stage": 3}', '{"stage": "ppo", "round": "x"}', "\0"])
def test_a_state_that_cannot_be_read_is_no_fault(run: Site, content: str) -> None:
    assert run.settings.run is not None
    (run.settings.run / "state.json").write_text(content)
    assert "The trainer has not begun" in text_of(run.signed_in("researcher").get("/run").text)


def test_averaging_keeps_the_mean() -> None:
    points = averaged([(float(x), float(x)) for x in range(10)], most=4)
    assert points == [(1.0, 1.0), (4.0, 4.0), (7.0, 7.0), (9.0, 9.0)]


def test_the_cord_is_pulled_with_a_reason_and_released(run: Site) -> None:
    client = run.signed_in("researcher", "Rae")
    assert client.post("/run/cord", data={"reason": "  "}).status_code == 400
    assert run.store.cord() is None
    assert client.post("/run/cord", data={"reason": "It writes <b>obscene</b> text"}).status_code == 303
    cord = run.store.cord()
    assert cord is not None
    assert (cord.person, cord.reason) == ("researcher-1", "It writes <b>obscene</b> text")
    page = client.get("/run").text
    assert "&lt;b&gt;obscene" in page
    assert "Rae researcher-1 pulled the cord" in text_of(page)
    client.post("/run/cord/release", data={"note": "fixed"})
    assert run.store.cord() is None
    assert [line.action for line in run.store.people.audit_log()][:2] == ["release cord", "pull cord"]


def test_a_labeler_may_pull_the_cord_and_not_release_it(run: Site) -> None:
    client = run.signed_in("labeler")
    assert "What is wrong?" in client.get("/stop").text
    assert client.post("/run/cord", data={"reason": "It only says one thing"}).headers["location"] == "/stop"
    cord = run.store.cord()
    assert cord is not None
    assert (cord.person, cord.reason) == ("labeler-1", "It only says one thing")
    page = text_of(client.get("/stop").text)
    assert "The training is asked to stop" in page
    assert "one thing" not in page  # who pulled it and why is for researchers
    assert client.post("/run/cord/release", data={"note": "x"}).status_code == 403
    assert run.store.cord() is not None


def test_a_disputed_question_is_shown_with_who_said_what_and_decided(site: Site) -> None:
    labelled(site, [0, 2, 2])
    client = site.signed_in("researcher", "Rae")
    said = text_of(client.get("/run/disputes").text)
    assert "Best of 4, round 1" in said
    assert re.search(r"response 2 of q0 Labeler 1 labeler-2, Labeler 2 labeler-3 response 3", said)
    assert '"comment 0"' not in said  # a q element makes the marks
    assert "comment 0" in said
    assert client.post("/run/disputes/q0", data={"answer": "2", "comment": "clearer"}).status_code == 303
    [decided] = site.store.adjudications()
    assert (decided.labeler, decided.answer, decided.comment) == ("researcher-1", 2, "clearer")
    assert "decided by Rae" in text_of(client.get("/run/disputes").text)


@pytest.mark.parametrize(
    "form", [{}, {"answer": "4"}, {"answer": "-1"}, {"answer": "x"}, {"answer": "nan"}, {"answer": "9" * 5000}, {"answer": "tie"}]
)
def test_an_answer_that_does_not_fit_decides_nothing(site: Site, form: dict[str, str]) -> None:
    labelled(site, [0, 1])
    assert site.signed_in("researcher").post("/run/disputes/q0", data=form or {"other": "1"}).status_code == 400
    assert site.store.adjudications() == []


@pytest.mark.parametrize("name", ["q-none", "%00", "q1"])
def test_only_labelled_questions_are_decided(site: Site, name: str) -> None:
    site.store.add_questions([question("q1")])
    assert site.signed_in("researcher").post(f"/run/disputes/{name}", data={"answer": "0"}).status_code == 404


def test_pressing_decide_twice_decides_once(site: Site) -> None:
    labelled(site, [0, 1])
    client = site.signed_in("researcher")
    key = re.search(r'name="client_event_id" value="(\w+)"', client.get("/run/disputes").text)
    assert key is not None
    for _ in range(2):
        assert client.post("/run/disputes/q0", data={"answer": "1", "client_event_id": key[1]}).status_code == 303
    assert len(site.store.events(kinds=("adjudicate",))) == 1


def test_the_inbox_holds_what_labelers_wrote(site: Site) -> None:
    site.store.add_questions([question(f"q{i}") for i in range(3)])
    client = site.signed_in("labeler", "Ann")
    one, two = (asked["id"] for asked in ask(client, 2)["questions"])
    send(
        client,
        event(1, one, "flag", reason="a <i>flag</i>"),
        event(2, one, "comment", comment="a remark"),
        event(3, one, "skip", reason="dull"),
    )
    send(client, event(4, two, answer=0, comment="close call"))
    page = site.signed_in("researcher").get("/run/inbox").text
    said = text_of(page)
    for words in ("Flag Ann labeler-1", "a remark", "Skipped Ann labeler-1", "dull", "Comment on a label", "close call", "prompt of q0"):
        assert words in said
    assert "a &lt;i&gt;flag&lt;/i&gt;" in page
    assert said.index("close call") < said.index("dull") < said.index("a remark")


# Labelers


def simulate(store: Store, count: int, choose: dict[str, Callable[[int, random.Random], int]], *, seconds: dict[str, float]) -> None:
    """Labelers answer questions whose best response is 0; each by a function of the place where that one is shown."""
    lot = random.Random(1)
    store.add_questions([question(f"q{i}", overlap=len(choose)) for i in range(count)], gold={f"q{i}": 0 for i in range(0, count, 8)})
    for labeler, chooser in choose.items():
        answers = []
        for number, shown in enumerate(store.lease_many(labeler, count)):
            place = chooser(shown.permutation.index(0), lot)
            answers.append(Answer(shown.question.id, shown.permutation[place], f"event-{number}", seconds[labeler]))
        store.record_many(labeler, answers)


def test_who_clicks_without_reading_is_flagged_and_who_reads_is_not(site: Site) -> None:
    good = {f"good-{i}": lambda right, lot: right if lot.random() < 0.8 else lot.randrange(4) for i in range(4)}
    choose = good | {"left": lambda right, lot: 0, "random": lambda right, lot: lot.randrange(4)}
    words = 3 * 5  # "prompt of q0", four times "response 0 of q0"
    assert words == 15
    simulate(site.store, 104, choose, seconds=dict.fromkeys(good, 9.0) | {"left": 0.3, "random": 9.0})
    table = quality_table(site.store.labeler_rows(), ["good-0"])
    by = {one.labeler: one for one in table.labelers}
    assert {name for name, one in by.items() if one.flags} == {"left", "random"}
    assert by["left"].flags[0].startswith("always one place, clear after 9 labels")
    assert by["random"].flags[0].startswith("agrees no better than chance, clear after ")
    assert "100 % of the answers came faster than the texts can be read" in by["left"].flags
    assert by["left"].bias.shares == (1.0, 0.0, 0.0, 0.0)
    assert (by["good-1"].gold.trials, by["good-1"].labels, by["good-1"].median_seconds) == (13, 104, 9.0)
    assert 0.7 < (by["good-1"].gold.rate or 0) <= 1
    assert by["good-1"].researcher.trials == 91  # all that is not gold
    [kind] = table.kinds
    assert kind.raw.chance == pytest.approx(0.25)
    assert kind.interval is not None
    assert kind.interval[0] < (kind.raw.observed or 0) < kind.interval[1]
    said = text_of(site.signed_in("researcher").get("/run/labelers").text)
    assert "left: always one place, clear after 9 labels" in said
    assert "By chance" in said


def test_repeats_measure_whether_labelers_agree_with_themselves(site: Site) -> None:
    site.store.set_repeats(1.0)
    site.store.add_questions([question(f"q{i}") for i in range(10)])
    for number in range(20):
        shown = site.store.lease("ann")
        assert shown is not None
        # the first time response 1, the second time the same for all but four
        site.store.record("ann", shown.question.id, 1 if number < 16 else 2, f"event-{number}", seconds=5.0)
    [ann] = quality_table(site.store.labeler_rows(), []).labelers
    assert (ann.repeats.successes, ann.repeats.trials, ann.labels) == (6, 10, 20)
    assert ann.others.trials == 0


def test_the_first_choice_of_every_kind(site: Site) -> None:
    kinds: dict[str, tuple[int, Any, Any]] = {
        "best_of_k": (3, 1, 1),
        "pair": (2, "tie", "tie"),
        "ranking": (3, [1, 0, 2], 1),
        "soft": (3, [0.2, 0.2, 0.6], 2),
        "rating": (1, 7.0, None),
        "difference": (2, -2.0, 1),
    }
    for kind, (K, answer, _) in kinds.items():
        site.store.add_questions([question(kind, K, kind)])
        site.store.lease("ann")
        site.store.record("ann", kind, answer, f"event-{kind}")
    rows = site.store.labeler_rows()
    assert {row.kind: choice(row, row.answer) for row in rows} == {kind: first for kind, (_, _, first) in kinds.items()}
    assert [choice(row, tied) for row, tied in ((rows[2], [0, 0, 1]), (rows[3], [0.4, 0.4, 0.2]), (rows[5], 0.0))] == ["tie"] * 3
    assert site.signed_in("researcher").get("/run/labelers").status_code == 200


# People


def test_the_admin_invites_by_a_link_that_is_shown_once(site: Site) -> None:
    admin = site.signed_in("admin")
    page = admin.post("/run/people", data={"name": "Ann <Lee>", "role": "labeler"})
    link = re.search(r'value="(http://127\.0\.0\.1:8000/join/[\w-]{43})"', page.text)
    assert link is not None
    assert link[1] not in admin.get("/run/people").text
    assert "Ann &lt;Lee&gt;" in page.text
    from .conftest import browser

    ann = browser(site.app)
    assert ann.post("/join", data={"token": link[1].rpartition("/")[2]}).headers["location"] == "/label"
    assert "Ann &lt;Lee&gt;" in ann.get("/account").text


@pytest.mark.parametrize(
    "form", [{"role": "owner", "name": "x"}, {"name": "x"}, {"role": "labeler", "name": "a\x1bb"}, {"role": "labeler", "name": "x" * 201}]
)
def test_an_invite_that_cannot_be_is_told(site: Site, form: dict[str, str]) -> None:
    assert site.signed_in("admin").post("/run/people", data=form).status_code == 400
    assert len(site.store.people.all()) == 1


def test_forgetting_drops_the_name_and_keeps_the_labels(site: Site) -> None:
    labelled(site, [0])
    admin = site.signed_in("admin")
    assert admin.post("/run/people/labeler-1/forget", data={"confirm": "yes"}).status_code == 400
    assert "Labeler 0" in admin.get("/run/people").text
    assert admin.post("/run/people/labeler-1/forget", data={"confirm": "labeler-1"}).status_code == 303
    for path in ("/run/people", "/run/labelers", "/run/inbox"):
        assert "Labeler 0" not in admin.get(path).text
    assert site.store.labels()[0].labeler == "labeler-1"


def test_the_last_admin_stays(site: Site) -> None:
    admin = site.signed_in("admin")
    for action in ("disable", "forget"):
        assert admin.post(f"/run/people/admin-1/{action}", data={"confirm": "admin-1"}).status_code == 400
    assert admin.get("/run/people").status_code == 200
    site.signed_in("admin")
    assert admin.post("/run/people/admin-2/disable", data={}).status_code == 303


def test_somebody_known_gets_a_new_link_a_new_name_and_comes_back(site: Site) -> None:
    admin = site.signed_in("admin")
    site.signed_in("labeler", "Ann")
    assert "/join/" in admin.post("/run/people/labeler-1/link", data={}).text
    admin.post("/run/people/labeler-1/rename", data={"name": "Anna"})
    admin.post("/run/people/labeler-1/disable", data={})
    assert admin.post("/run/people/labeler-1/link", data={}).status_code == 400
    admin.post("/run/people/labeler-1/enable", data={})
    person = site.store.people.person("labeler-1")
    assert person is not None
    assert (person.name, person.disabled) == ("Anna", False)
    actions = [
        (line.who, line.action, line.detail and line.detail.get("person")) for line in site.store.people.audit_log() if line.request_id
    ]
    assert ("admin-1", "rename", "labeler-1") in actions
    assert ("admin-1", "disable", "labeler-1") in actions
