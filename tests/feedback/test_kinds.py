from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from humanward.errors import UserError
from humanward.feedback import KINDS, Assignment, to_comparisons
from humanward.records import Label, Question

Ask = Callable[..., Question]

GOOD = [
    ("best_of_k", 4, 3, 3),
    ("pair", 2, 1, 1),
    ("pair", 2, "tie", "tie"),
    ("ranking", 3, [2, 0, 2], [1, 0, 1]),
    ("rating", 1, 7, 7.0),
    ("difference", 2, -1.5, -1.5),
    ("soft", 3, [0.25, 0.5, 0.25], [0.25, 0.5, 0.25]),
]
BAD = [
    ("best_of_k", 4, 4), ("best_of_k", 4, -1), ("best_of_k", 4, True), ("best_of_k", 4, "1"), ("best_of_k", 4, 1.0), ("pair", 2, 2),
    ("pair", 2, None), ("ranking", 3, [0, 1]), ("ranking", 3, [0, 1, -1]), ("ranking", 3, 0), ("rating", 1, 10),
    ("rating", 1, float("nan")), ("difference", 2, 5), ("soft", 3, [0.5, 0.5, 0.5]), ("soft", 3, [1.5, -0.5, 0]), ("soft", 3, [1.0]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "k", "answer", "stored"), GOOD)
def test_answers_that_fit(ask: Ask, kind: str, k: int, answer: Any, stored: Any) -> None:
    question = ask(0, k=k, kind=kind)
    KINDS[kind].check_question(question)
    assert KINDS[kind].check_answer(question, answer) == stored


@pytest.mark.parametrize(("kind", "k", "answer"), BAD)
def test_answers_that_do_not_fit(ask: Ask, kind: str, k: int, answer: Any) -> None:
    with pytest.raises(UserError, match=f"question q0: answer of kind {kind}: expected ") as caught:
        KINDS[kind].check_answer(ask(0, k=k, kind=kind), answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "k", "shown", "in_question"),
    [
        ("best_of_k", 3, 0, 2),  # the first place showed response 2
        ("pair", 2, "tie", "tie"),
        ("pair", 2, 0, 1),
        ("ranking", 3, [0, 1, 2], [1, 2, 0]),  # place 0, the best, is response 2; place 1 is response 0; place 2 is response 1
        ("soft", 3, [0.7, 0.2, 0.1], [0.2, 0.1, 0.7]),
        ("difference", 2, 3, -3),
        ("rating", 1, 5, 5),
    ],
)
def test_answers_about_what_was_shown(ask: Ask, kind: str, k: int, shown: Any, in_question: Any) -> None:
    permutation = {1: (0,), 2: (1, 0), 3: (2, 0, 1)}[k]
    assert Assignment(ask(0, k=k, kind=kind), "ann", permutation).unpermute(shown) == in_question


def test_comparisons(ask: Ask) -> None:
    questions = [ask(0), ask(1, k=2, kind="pair")]
    labels = [Label("l1", "q1", "ann", "pair", "tie"), Label("l0", "q0", "bob", "best_of_k", 2)]
    tied, best = to_comparisons(questions, labels)
    assert (tied.target, tied.kind, tied.responses) == ([0.5, 0.5], "pair", questions[1].responses)
    assert (best.target, best.labeler, best.question_id, best.prompt) == (2, "bob", "q0", questions[0].prompt)


@pytest.mark.parametrize(("kind", "k"), [("best_of_k", 1), ("best_of_k", 10), ("pair", 3), ("rating", 2)])
def test_questions_that_cannot_be_asked(ask: Ask, kind: str, k: int) -> None:
    question = ask(0, k=1, kind=kind)
    question = Question("q0", question.prompt, question.responses * k, kind)
    with pytest.raises(UserError, match=f"question q0: {kind} needs .* found {k}"):
        KINDS[kind].check_question(question)
