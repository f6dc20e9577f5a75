"""Two policies head to head: what is shown, in which order outcomes count, when it ends, and that it goes on where it was."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from humanward.errors import UserError
from humanward.feedback import Store
from humanward.maths import fixed_sample_size
from humanward.rounds import CompareConfig, HeadToHead, Loop, people
from humanward.rounds.head_to_head import default_name, fixed_size
from humanward.storage import StopFlag, Stopped

GOOD = """
def good(prompts, responses):
    return [response.split().count("good") for response in responses]
"""


@pytest.fixture
def run(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, whose policy writes more `good` than its reference."""
    monkeypatch.setattr(people, "POLL_SECONDS", 0.02)
    folder = tmp_path / "run"
    shutil.copytree(loop.folder.path, folder)
    (tmp_path / "scores.py").write_text(GOOD)
    return folder


def score(run: Path) -> str:
    return f"score:python:{run.parent / 'scores.py'}:good"


def compare(run: Path, name: str | None = None, stop: StopFlag | None = None, said: list[str] | None = None, **values: Any) -> Any:
    loop = Loop(run, labelers=[Named(n) for n in range(3)], stop=stop, tell=(said if said is not None else list[str]()).append)
    return HeadToHead(loop.context, CompareConfig(**values), name)


class Named:
    def __init__(self, number: int) -> None:
        self.name = f"labeler-{number}"

    def answer(self, question: Any) -> int:
        return 0


class Page(threading.Thread):
    """Somebody who answers head-to-heads: ``rule`` of the shown texts."""

    def __init__(self, store: Path, rule: Any, name: str = "labeler-1") -> None:
        super().__init__(daemon=True)
        self.store, self.rule, self.name_, self.over = store, rule, name, threading.Event()
        self.shown: list[tuple[str, ...]] = []
        self.start()

    def run(self) -> None:
        store = Store(self.store)
        while not self.over.wait(0.02):
            for assignment in store.held(self.name_, 2):
                texts = tuple(assignment.question.responses[i].text for i in assignment.permutation)
                self.shown.append(texts)
                answer = self.rule(texts)
                event = f"{self.name_} {assignment.question.id}"
                if answer == "skip":
                    store.skip(self.name_, assignment.question.id, event)
                else:
                    store.record(self.name_, assignment.question.id, assignment.unpermute(answer), event, seconds=3.0)
        store.close()

    def leave(self) -> None:
        self.over.set()
        self.join()


def more_good(texts: tuple[str, ...]) -> Any:
    counts = [text.split().count("good") for text in texts]
    return "tie" if counts[0] == counts[1] else counts.index(max(counts))


def test_a_score_and_people_with_the_same_taste_find_the_same(run: Path) -> None:
    by_score = compare(run, labeler=score(run), precise=0.0).run()
    person = Page(run / "labels.db", more_good)
    said: list[str] = []
    by_people = compare(run, default_name(CompareConfig(labeler=score(run))), said=said, labeler=score(run), precise=0.0)
    assert by_people.run() == by_score, "given again it is read"
    asked = compare(run, said=said, precise=0.0).run()
    person.leave()
    assert said == [f"waiting for labels: 0 so far, 16 at most; the page: humanward label {run}"]
    for results in (by_score, asked):
        assert results["wins"] + results["losses"] + results["ties"] == len(results["path"])
        assert results["labels"] + results["same_text"] == len(results["path"])
        assert results["rate"] == pytest.approx((results["wins"] + results["ties"] / 2) / len(results["path"]))
    assert asked["labels"] <= len(person.shown) <= asked["labels"] + asked["labels_beyond"]


def test_the_sides_are_blind_and_no_round_trains_on_them(run: Path) -> None:
    before = Store(run / "labels.db")
    snapshot = before.snapshot(2).sha256
    firsts: list[bool] = []
    person = Page(run / "labels.db", lambda texts: 0)
    results = compare(run, precise=0.0).run()
    person.leave()
    rows = [row for row in before.labeler_rows() if row.kind == "pair"]
    firsts = [row.permutation[0] == 0 for row in rows]
    assert 0 < sum(firsts) < len(firsts), "either side stands first"
    assert {row.answer for row in rows} == {0, 1}, "always left is not always the same side"
    assert before.snapshot(2).sha256 == snapshot
    assert results["reason"] == "maximum"
    before.close()


def test_it_stops_as_soon_as_it_is_known_and_asks_few_beyond(run: Path) -> None:
    """The side a always wins: 10 wins in a row are the first to exclude one half, 1.5^10 / 2 > 20."""
    store = Store(run / "labels.db")
    head = compare(run, precise=0.0)

    def a_wins(texts: tuple[str, ...]) -> int:
        pairs = {tuple(r.text for r in q.responses) for q in store.questions(head.round)}
        return 0 if texts in pairs else 1

    person = Page(run / "labels.db", a_wins)
    results = head.run()
    person.leave()
    assert (results["decided"], results["reason"]) == ("a", "decided")
    assert results["wins"] + results["same_text"] == len(results["path"])
    assert results["low"] >= 0.5
    if not results["same_text"]:
        assert results["labels"] == 10
    store.close()


def test_a_question_that_everybody_skips_is_left_out(run: Path) -> None:
    skipped: list[Any] = []

    def skips_first(texts: tuple[str, ...]) -> Any:
        if not skipped:
            skipped.append(texts)
            return "skip"
        return more_good(texts)

    person = Page(run / "labels.db", skips_first)
    results = compare(run, precise=0.0, maximum=6).run()
    person.leave()
    assert len(results["path"]) == 5


def test_it_goes_on_where_it_was(run: Path) -> None:
    stop = StopFlag()
    person = Page(run / "labels.db", lambda texts: stop.request() or 0 if len(person.shown) > 3 else more_good(texts))
    with pytest.raises(Stopped):
        compare(run, stop=stop, precise=0.0).run()
    person.leave()
    pairs = {path: path.read_bytes() for path in (run / "comparisons").rglob("pairs-*.jsonl")}
    again = Page(run / "labels.db", more_good)
    results = compare(run, precise=0.0).run()
    again.leave()
    assert pairs == {path: path.read_bytes() for path in (run / "comparisons").rglob("pairs-*.jsonl")}
    assert len(results["path"]) <= 16
    with pytest.raises(UserError, match=r"this comparison has other settings \(maximum\); give it another --name"):
        compare(run, precise=0.0, maximum=7).run()


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"b": "sft"}, "baseline_sft: no whole policy there"),
        ({"b": "round:9"}, "rounds/9/policy: no whole policy there"),
        ({"b": "polcy"}, "polcy: expected policy, reference, sft, round:N or the folder of a model"),
    ],
)
def test_a_side_that_is_not_there_is_said(run: Path, values: dict[str, str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        compare(run, **values).run()


def test_what_a_test_of_fixed_size_would_take() -> None:
    assert fixed_size(65, 35, 0, 0.95) == fixed_sample_size(0.65)
    assert fixed_size(65, 35, 100, 0.95) == 2 * fixed_sample_size(0.65)
    assert fixed_size(5, 5, 3, 0.95) is None


def test_the_results_are_json(run: Path) -> None:
    results = compare(run, "mine", labeler=score(run), maximum=3).run()
    assert json.loads((run / "comparisons/mine/results.json").read_text()) == results
