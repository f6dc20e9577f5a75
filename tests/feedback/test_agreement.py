"""The agreement report: numbers worked out by hand, and what is left out where it says nothing."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from humanward.feedback import Snapshot, Store
from humanward.feedback.agreement import agreement_report, rows_of
from humanward.feedback.reading import LabelerRow
from humanward.records import Prompt, Question, Response


def row(question: str, labeler: str, answer: Any, seq: int = 0, kind: str = "best_of_k", K: int = 4, **more: Any) -> LabelerRow:
    values: dict[str, Any] = {
        "permutation": tuple(range(K)), "seconds": 20.0, "lengths": (10,) * (K + 1), "time": "", "gold": None, "repeat_of": None,
    }  # fmt: skip
    return LabelerRow(question, labeler, kind, answer, **(values | more), seq=seq)


def measures(report: dict[str, Any], kind: str = "best_of_k") -> dict[str, float]:
    return {m["name"]: m["value"] for m in report["kinds"][kind]["measures"]}


def test_the_measures_of_two_people_by_hand() -> None:
    """Four questions; the same answer to three: raw 3/4, chance 1/4, S = (3/4 - 1/4) / (3/4) = 2/3.

    Labels 0 0 | 1 1 | 2 2 | 3 0: shares 3/8, 2/8, 2/8, 1/8, their squares sum to 18/64. Fleiss: (3/4 - 9/32) / (1 - 9/32) = 15/23.
    Alpha: D_o = 1/4; D_e = (64 - 18) / (8 * 7) = 46/56; 1 - 56/184 = 16/23.
    """
    given = [(0, 0), (1, 1), (2, 2), (3, 0)]
    report = agreement_report([row(f"q{i}", name, a[j]) for i, a in enumerate(given) for j, name in enumerate(("ann", "ben"))])
    made = measures(report)
    assert made["Same answer"] == pytest.approx(3 / 4)
    assert made["Bennett’s S"] == pytest.approx(2 / 3)
    assert made["Fleiss’ kappa"] == pytest.approx(15 / 23)
    assert made["Krippendorff’s alpha"] == pytest.approx(16 / 23)
    assert report["kinds"]["best_of_k"]["chance"] == 0.25
    assert report["kinds"]["best_of_k"]["pairs"] == [], "four shared questions are too few for a kappa of two people"
    for one in report["kinds"]["best_of_k"]["measures"]:
        assert one["low"] <= one["value"] <= one["high"]


def test_kappa_of_each_pair_that_shares_enough() -> None:
    rows = [row(f"q{i}", name, i % 4) for i in range(12) for name in ("ann", "ben")] + [row(f"q{i}", "cleo", 0) for i in range(12)]
    pairs = agreement_report(rows)["kinds"]["best_of_k"]["pairs"]
    assert [(p["a"], p["b"], p["questions"]) for p in pairs] == [("ann", "ben", 12), ("ann", "cleo", 12), ("ben", "cleo", 12)]
    assert [p["kappa"] for p in pairs] == pytest.approx([1.0, 0.0, 0.0])


def test_nothing_is_said_where_nobody_was_asked_the_same() -> None:
    assert agreement_report([]) == {}
    assert agreement_report([row(f"q{i}", "ann", 0) for i in range(9)]) == {}


def test_self_gold_and_researcher_are_shares_with_intervals() -> None:
    rows = [row(f"q{i}", "ann", 1, i) for i in range(8)]
    rows += [row(f"r{i}", "ann", int(i > 1), 10 + i, repeat_of=f"q{i}") for i in range(8)]  # 6 of 8 as before
    rows += [row(f"g{i}", "ann", 2, 20 + i, gold=2 if i else 3) for i in range(4)]  # 3 of 4 right
    rows += [row(f"q{i}", "researcher-1", 1 if i < 2 else 0, 30 + i) for i in range(4)]  # 2 of 4
    report = agreement_report(rows, ["researcher-1"])
    shares = {name: (share["successes"], share["trials"]) for name, share in report["shares"].items()}
    assert shares["repeats"] == (6, 8)
    assert shares["gold"] == (3, 4)
    assert report["people"][0]["labeler"] == "ann"
    assert report["people"][0]["researcher"]["rate"] == 0.5
    assert math.isclose(report["shares"]["gold"]["low"], 0.1941, abs_tol=1e-4)  # Clopper and Pearson, 3 of 4


def test_the_researchers_own_answers_are_not_compared_with_themselves() -> None:
    rows = [row(f"q{i}", name, 0) for i in range(5) for name in ("ann", "researcher-1")]
    report = agreement_report(rows, ["researcher-1"])
    assert report["shares"]["researcher"] == {"successes": 5, "trials": 5, "rate": 1.0, "low": pytest.approx(0.4782, abs=1e-4), "high": 1.0}


@pytest.mark.parametrize(
    ("kind", "answers", "raw"),
    [
        ("pair", [("tie", "tie"), (0, 1), (0, 0), (1, 1)], 3 / 4),
        ("ranking", [([0, 1, 2], [0, 2, 1]), ([1, 0, 2], [0, 1, 2])], 1 / 2),
        ("soft", [([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]), ([0.1, 0.8, 0.1], [0.8, 0.1, 0.1])], 1 / 2),
        ("rating", [(3.0, 3.0), (5.0, 6.0)], 1 / 2),
    ],
)
def test_every_kind_has_an_agreement(kind: str, answers: list[tuple[Any, Any]], raw: float) -> None:
    K = {"pair": 2, "rating": 1}.get(kind, 3)
    rows = [row(f"q{i}", name, a[j], kind=kind, K=K) for i, a in enumerate(answers) for j, name in enumerate(("ann", "ben"))]
    assert measures(agreement_report(rows), kind)["Same answer"] == raw


def test_somebody_who_clicks_one_place_is_flagged_and_careful_people_are_not() -> None:
    """Six people share 150 questions; five say the best in four of five cases, one always takes what stands first."""
    lots = random.Random(1)
    rows, seq = [], 0
    for i in range(150):
        best = lots.randrange(4)
        for name in ("ann", "ben", "cleo", "dora", "eve", "clicks"):
            order = tuple(lots.sample(range(4), 4))
            answer = order[0] if name == "clicks" else best if lots.random() < 0.8 else lots.randrange(4)
            rows.append(row(f"q{i}", name, answer, seq, permutation=order))
            seq += 1
    flagged = {person["labeler"]: person["flags"] for person in agreement_report(rows)["people"] if person["flags"]}
    assert list(flagged) == ["clicks"]
    assert any("always one place" in flag for flag in flagged["clicks"])


def test_a_snapshot_gives_the_rows_of_the_store() -> None:
    store = Store.in_memory(clock=iter(range(1_000_000)).__next__)
    questions = [
        Question(f"q{i}", Prompt(f"p{i}", "a b"), tuple(Response(f"r {k}") for k in range(3)), "best_of_k", 1, overlap=2) for i in range(4)
    ]
    store.add_questions(questions)
    for name in ("ann", "ben"):
        for assignment in store.lease_many(name, 9):
            store.record(name, assignment.question.id, len(name + assignment.question.id) % 3, f"{name} {assignment.question.id}")
    snapshot = Snapshot.of(questions, store.labels())
    assert [r._replace(seq=0) for r in rows_of(snapshot)] == [r._replace(seq=0) for r in store.labeler_rows()]
    assert agreement_report(rows_of(snapshot)) == agreement_report(store.labeler_rows())
