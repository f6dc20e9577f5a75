"""What a label of any kind says in the words of simpler formats: which response is best, which pairs are ordered."""

from __future__ import annotations

from itertools import combinations
from typing import Any

TIE = "tie"
MIDDLE_RATING = 5.0
"""Ratings go from 1 to 9."""


def values(kind: str, answer: Any, count: int) -> list[float] | None:
    """A number for each of ``count`` responses, larger is better; None where the label compares nothing (a rating)."""
    if kind == "best_of_k" or (kind == "pair" and answer != TIE):
        return [float(index == answer) for index in range(count)]
    if kind == "pair":
        return [0.0] * count
    if kind == "ranking":
        return [-float(rank) for rank in answer]
    if kind == "soft":
        return [float(probability) for probability in answer]
    return [float(answer), 0.0] if kind == "difference" else None


def best(kind: str, answer: Any, count: int) -> int | None:
    """The index of the one best response; None where there is no single one."""
    found = values(kind, answer, count)
    if found is None or found.count(max(found)) > 1:
        return None
    return found.index(max(found))


def pairs(kind: str, answer: Any, count: int) -> tuple[list[tuple[int, int]], int]:
    """((chosen, rejected) of every pair that the label orders, how many pairs it calls equal).

    A choice of one among K orders K - 1 pairs and says nothing about the others.
    """
    found = values(kind, answer, count)
    if found is None:
        return [], 0
    if kind == "best_of_k":
        return [(answer, other) for other in range(count) if other != answer], 0
    ordered = [(a, b) if found[a] > found[b] else (b, a) for a, b in combinations(range(count), 2) if found[a] != found[b]]
    return ordered, count * (count - 1) // 2 - len(ordered)


def approved(kind: str, answer: Any, count: int) -> list[tuple[int, bool]]:
    """(index, whether it is a good one) of every response that the label judges.

    The best ones are good and all others are not; nothing is said where all are equal. A rating is good above the middle of its scale.
    """
    found = values(kind, answer, count)
    if found is None:
        return [] if answer == MIDDLE_RATING else [(0, answer > MIDDLE_RATING)]
    top = max(found)
    return [] if min(found) == top else [(index, value == top) for index, value in enumerate(found)]
