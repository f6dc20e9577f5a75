"""What direct methods make of labels that are numbers, and which labels are left out for the safety of their responses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from humanward.errors import UserError
from humanward.records import Comparison, Prompt, Response
from humanward.trainers.questions import agreement_marks, as_judged, without_dual


def label(kind: str, target: Any, count: int = 2, **metadata: Any) -> Comparison:
    responses = tuple(Response(str(k), (k,)) for k in range(count))
    return Comparison(Prompt("p", "p", (1,), metadata), responses, kind, target, question_id="q")


def test_differences_become_judgements() -> None:
    rows = [label("difference", 2), label("difference", -0.5), label("difference", 0), label("pair", 1)]
    assert [(c.kind, c.target) for c in as_judged(rows)] == [("pair", 0), ("pair", 1), ("pair", [0.5, 0.5]), ("pair", 1)]


def test_pairs_of_equal_safety_are_left_out() -> None:
    """Xu et al. 2024: both filters together leave what tells safe from unsafe."""
    both, neither, mixed = (label("pair", 0, safe=flags) for flags in ([True, True], [False, False], [False, True]))
    rows = [both, neither, mixed]
    assert without_dual(rows, []) == rows
    assert without_dual(rows, ["dual_safe"]) == [neither, mixed]
    assert without_dual(rows, ["dual_unsafe"]) == [both, mixed]
    assert without_dual(rows, ["dual_safe", "dual_unsafe"]) == [mixed]
    for flags in (None, [True], [1, 0]):
        prompt = replace(both.prompt, metadata={"safe": flags} if flags else {})
        with pytest.raises(UserError, match=r"question q: dpo.drop needs `safe` in its row"):
            without_dual([replace(both, prompt=prompt)], ["dual_safe"])


def test_what_was_judged_alone_agrees_two_by_two() -> None:
    """(9, 1): right; (0, 0) says nothing; (1, 0): wrong; the last has nobody to be compared with."""
    rows = [label("binary", target, 1) for target in (1, 0, 0, 0, 1, 0, 1)]
    assert agreement_marks(rows, [[0.5], [0.1], [1.0], [2.0], [-1.0], [0.0], [3.0]]) == [True, False]
    assert agreement_marks([label("pair", 1), label("pair", [0.5, 0.5])], [[0.0, 1.0], [1.0, 0.0]]) == [True]
