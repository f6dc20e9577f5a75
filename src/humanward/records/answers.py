"""What an answer of each kind of label looks like: functions of (answer, K) that return the stored form, or say what they expected."""

from __future__ import annotations

import math
import sys
from typing import Any

from humanward.errors import UserError

TIE = "tie"
"""Neither of two responses is better."""
PROBABILITY_SLACK = 1e-6
"""By how much probabilities may miss 1 in sum."""
_LARGEST = sys.float_info.max


def best_of_k_answer(answer: Any, k: int) -> int:
    """The index of the best response."""
    if not is_whole(answer) or not 0 <= answer < k:
        raise UserError(f"expected the index of a response, 0 to {k - 1}, found {answer!r}")
    return answer


def pair_answer(answer: Any, k: int) -> int | str:
    """0, 1 or "tie"."""
    if answer != TIE and (not is_whole(answer) or not 0 <= answer < k):
        raise UserError(f'expected 0, 1 or "{TIE}", found {answer!r}')
    return answer


def ranking_answer(answer: Any, k: int) -> list[int]:
    """The rank of each response: 0 is best, equal ranks are ties. Stored dense: [2, 5, 5] becomes [0, 1, 1]."""
    if not isinstance(answer, list) or len(answer) != k or not all(is_whole(rank) and rank >= 0 for rank in answer):
        raise UserError(f"expected a rank from 0 (best) for each of the {k} responses, found {answer!r}")
    order = sorted(set(answer))
    return [order.index(rank) for rank in answer]


def soft_answer(answer: Any, k: int) -> list[float]:
    """The probability that each response is the best one; they sum to 1."""
    valid = isinstance(answer, list) and len(answer) == k and all(is_number(p) and 0 <= p <= 1 for p in answer)
    if not valid or abs(math.fsum(answer) - 1) > PROBABILITY_SLACK:
        raise UserError(f"expected {k} probabilities that sum to 1, found {answer!r}")
    return [float(p) for p in answer]


def scores_answer(answer: Any, k: int) -> list[float]:
    """How good each response is, on a scale of its own: larger is better."""
    if not isinstance(answer, list) or len(answer) != k or not all(map(is_number, answer)):
        raise UserError(f"expected a number for each of the {k} responses, found {answer!r}")
    return [float(score) for score in answer]


def number_answer(answer: Any, k: int) -> float:
    """A rating, or a difference, on a scale of its own."""
    if not is_number(answer):
        raise UserError(f"expected a number, found {answer!r}")
    return float(answer)


def binary_answer(answer: Any, k: int) -> bool:
    """Whether the one response was liked."""
    if not isinstance(answer, bool):
        raise UserError(f"expected true or false, found {answer!r}")
    return answer


def is_whole(value: Any) -> bool:
    """Whether it is an int; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float; an int that no float can hold is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
