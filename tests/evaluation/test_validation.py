"""What predictions of labels tell: groups, pairs, calibration of the members' mean, their disagreement. By hand."""

from __future__ import annotations

from typing import Any

import pytest

from humanward.evaluation import validation_report


def row(question: str, scores: list[float], best: list[int], members: list[list[float]], **others: Any) -> dict[str, Any]:
    target = [float(k in best) / len(best) for k in range(len(scores))]
    right = None if len(best) == len(scores) else scores.index(max(scores)) in best
    given = {"labeler": "ann", "round": 1, "confidence": None, "sources": ["policy", "reference"][: len(scores)]}
    return {"question": question, "scores": scores, "best": best, "target": target, "right": right, "members": members} | given | others


ROWS = [
    row("a", [2.0, 1.0], [0], [[0.87, 0.13], [0.67, 0.33]]),
    row("b", [0.0, 1.0], [0], [[0.23, 0.77], [0.23, 0.77]], labeler="ben", round=2, confidence=0.9),
    row("c", [0.0, 1.0], [1], [[0.23, 0.77], [0.23, 0.77]], round=2, sources=["policy", "policy"]),
    row("d", [0.0, 1.0], [0, 1], [[0.5, 0.5], [0.5, 0.5]]),
]


def test_accuracy_by_group_and_by_pair() -> None:
    found = validation_report(ROWS)
    assert (found["labels"], found["questions"]) == (4, 4)
    by = {key: {r["group"]: (r["accuracy"], r["labels"]) for r in rows} for key, rows in found["by"].items()}
    # The tie of d tells nothing and counts nowhere.
    assert by["round"] == {1: (1.0, 1), 2: (0.5, 2)}
    assert by["labeler"] == {"ann": (1.0, 2), "ben": (0.0, 1)}
    assert by["confidence"] == {"0.8 to 1.0": (0.0, 1), "not given": (1.0, 2)}
    assert by["policies"] == {"policy and reference": (0.5, 2), "policy": (1.0, 1)}


def test_batches_are_told_where_labels_have_them() -> None:
    assert "batch" not in validation_report(ROWS)["by"]
    found = validation_report([{**ROWS[0], "batch": "batch3"}, *ROWS[1:]])["by"]["batch"]
    assert {r["group"]: (r["accuracy"], r["labels"]) for r in found} == {"batch3": (1.0, 1), "not given": (0.5, 2)}


def test_all_pairs_that_a_ranking_orders_count() -> None:
    ranking = row("e", [3.0, 1.0, 2.0], [0], [[0.6, 0.2, 0.2]], target=[0.0, -1.0, -2.0], sources=["policy", "policy", "reference"])
    by = {r["group"]: (r["accuracy"], r["labels"]) for r in validation_report([ranking])["by"]["policies"]}
    # 0 over 1 (both of the policy) and 0 over 2 are right; 1 over 2 is not.
    assert by == {"policy": (1.0, 1), "policy and reference": (0.5, 2)}


def test_calibration_is_that_of_the_mean_belief() -> None:
    curve = validation_report(ROWS)["calibration"]["curve"]
    # a: 0.77 for what was chosen; b and c: 0.77 for the second, chosen in one of them. In the bin of 0.77: two of three came true.
    assert [(r["predicted"], r["observed"], r["responses"]) for r in curve] == [
        (pytest.approx(0.23), pytest.approx(1 / 3), 3),
        (pytest.approx(0.77), pytest.approx(2 / 3), 3),
    ]


def test_members_alone_and_how_far_they_differ() -> None:
    found = validation_report(ROWS)["members"]
    assert [(r["group"], r["accuracy"]) for r in found["accuracy"]] == [(1, pytest.approx(2 / 3)), (2, pytest.approx(2 / 3))]
    # Only a divides them: 0.87 and 0.67 have the variance 0.01, and so have 0.13 and 0.33.
    assert found["disagreement"]["mean"] == pytest.approx(0.02 / 3)
    assert "members" not in validation_report([row("a", [1.0, 0.0], [0], [[0.7, 0.3]])])


def test_a_belief_of_nothing_is_no_fault() -> None:
    assert validation_report([row("a", [900.0, 0.0], [1], [[1.0, 0.0]])])["calibration"]["ece"] == pytest.approx(1.0)
    assert validation_report([])["calibration"] is None
