"""What a label of one kind says in the words of another: which response is best, which pairs are ordered, which are good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from humanward.data.formats.rows import Labeled, clipped, safety
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import TIE

MIDDLE_RATING = 5.0
"""Ratings of a store go from 1 to 9. Those of files have scales of their own."""
KINDS = ("best_of_k", "pair", "ranking", "soft", "difference", "rating", "scores", "binary")
"""What a label may be. ``scores``: a number for each of K responses; ``binary``: whether the one response was liked."""


def values(kind: str, answer: Any, count: int) -> list[float] | None:
    """A number for each of ``count`` responses, larger is better; None where the label compares nothing."""
    if kind == "best_of_k" or (kind == "pair" and answer != TIE):
        return [float(index == answer) for index in range(count)]
    if kind == "pair":
        return [0.0] * count
    if kind == "ranking":
        return [-float(rank) for rank in answer]
    if kind in ("soft", "scores"):
        return [float(value) for value in answer]
    return [float(answer), 0.0] if kind == "difference" else None


def best(kind: str, answer: Any, count: int) -> int | None:
    """The index of the one best response; None where there is no single one."""
    found = values(kind, answer, count)
    if found is None or found.count(max(found)) > 1:
        return None
    return found.index(max(found))


def pairs(kind: str, answer: Any, count: int) -> tuple[list[tuple[int, int, float | None]], int]:
    """((chosen, rejected, by how much) of every pair that the label orders, how many pairs it calls equal).

    Only scores and differences say by how much. A choice of one among K orders K - 1 pairs and says nothing about the others.
    """
    found = values(kind, answer, count)
    if found is None:
        return [], 0
    if kind == "best_of_k":
        return [(answer, other, None) for other in range(count) if other != answer], 0
    graded = kind in ("scores", "difference")
    ordered = [(a, b) if found[a] > found[b] else (b, a) for a, b in combinations(range(count), 2) if found[a] != found[b]]
    return [(a, b, found[a] - found[b] if graded else None) for a, b in ordered], count * (count - 1) // 2 - len(ordered)


def approved(kind: str, answer: Any, count: int, middle: float | None = None) -> list[tuple[int, bool]]:
    """(index, whether it is a good one) of every response that the label judges.

    The best ones are good and all others are not; nothing is said where all are equal. Ratings, and scores where ``middle`` is given, are
    good above the middle of their scale, and say nothing there. ``middle``: None is that of a store's ratings.
    """
    if kind == "binary":
        return [(0, answer)]
    if kind == "rating" or (kind == "scores" and middle is not None):
        numbers, middle = [answer] if kind == "rating" else answer, MIDDLE_RATING if middle is None else middle
        return [(index, number > middle) for index, number in enumerate(numbers) if number != middle]
    found = values(kind, answer, count)
    if found is None:
        return []
    top = max(found)
    return [] if min(found) == top else [(index, value == top) for index, value in enumerate(found)]


def as_kind(labeled: Labeled, kind: str, middle: float | None = None) -> Iterator[Labeled]:
    """The same as labels of another kind, as many as come of it. ``middle``: of the scale of ratings and scores that become binary.

    Raises:
        UserError: the kind has no word for what the label says; the message names those that have. Or ratings without a ``middle``.
    """
    if labeled.question.kind == kind:
        yield labeled
        return
    for label in labeled.labels:
        count = len(labeled.question.responses)
        if kind == "binary" and label.kind == "rating" and middle is None:
            raise UserError(f"{labeled.where}: the scale of {told(label)} is not known: write FILE?kind=binary&middle=NUMBER")
        if kind == "binary" and middle is not None and label.kind in ("rating", "scores"):
            found = [((index,), good) for index, good in approved(label.kind, label.answer, count, middle)]
        else:
            found = _BECOMES[kind](label, count) if kind in _BECOMES else None
        if found is None:
            raise UserError(f"{labeled.where}: {told(label)} cannot become {kind}; it can become {_alternatives(label, labeled.question)}")
        for indices, answer in found:
            yield Labeled(labeled.where, _part(labeled.question, kind, indices), (replace(label, kind=kind, answer=answer),))


def trainable(labeled: Labeled) -> Iterator[Labeled]:
    """The label as losses read it: scores of K responses are the differences of their pairs, everything else is itself."""
    return as_kind(labeled, "difference") if labeled.question.kind == "scores" else iter((labeled,))


def told(label: Label) -> str:
    """A label in a message."""
    return "a tied pair" if label.answer == TIE else f"a label of kind {label.kind} ({clipped(str(label.answer), 40)})"


def _part(question: Question, kind: str, indices: tuple[int, ...]) -> Question:
    whole = len(indices) == len(question.responses)
    responses = tuple(question.responses[index] for index in indices)
    prompt = replace(question.prompt, metadata={**question.prompt.metadata, **safety(question, indices)})
    name = question.id if whole else ""  # a part is another question than the file's
    return replace(question, id=name, prompt=prompt, kind=kind, responses=responses)


def _alternatives(label: Label, question: Question) -> str:
    return ", ".join(name for name, become in _BECOMES.items() if name == label.kind or become(label, len(question.responses)) is not None)


Made = list[tuple[tuple[int, ...], Any]]
"""(which responses, the answer about them) of each label that another becomes."""


def _to_pair(label: Label, count: int) -> Made | None:
    if values(label.kind, label.answer, count) is None:
        return None
    ordered, ties = pairs(label.kind, label.answer, count)
    made: Made = [((min(a, b), max(a, b)), int(a > b)) for a, b, _ in ordered]
    return made + (_tied(label, count) if ties else [])


def _tied(label: Label, count: int) -> Made:
    found = values(label.kind, label.answer, count) or []
    return [((a, b), TIE) for a, b in combinations(range(count), 2) if found[a] == found[b]]


def _to_difference(label: Label, count: int) -> Made | None:
    if label.kind != "scores":
        return None
    return [((a, b), label.answer[a] - label.answer[b]) for a, b in combinations(range(count), 2)]


def _to_rating(label: Label, count: int) -> Made | None:
    numbers = label.answer if label.kind == "scores" else [float(label.answer)] if label.kind == "binary" else None
    return None if numbers is None else [((index,), number) for index, number in enumerate(numbers)]


def _to_best(label: Label, count: int) -> Made | None:
    index = best(label.kind, label.answer, count)
    return None if index is None else [(tuple(range(count)), index)]


def _to_ranking(label: Label, count: int) -> Made | None:
    found = values(label.kind, label.answer, count)
    if found is None or (label.kind == "best_of_k" and count > 2):  # nobody said that the others are equally good
        return None
    order = sorted(set(found), reverse=True)
    return [(tuple(range(count)), [order.index(value) for value in found])]


def _to_soft(label: Label, count: int) -> Made | None:
    if label.kind not in ("pair", "best_of_k"):
        return None
    found = [0.5, 0.5] if label.answer == TIE else [float(index == label.answer) for index in range(count)]
    return [(tuple(range(count)), found)]


def _to_binary(label: Label, count: int) -> Made | None:
    found = approved(label.kind, label.answer, count)
    return [((index,), good) for index, good in found] or None


_BECOMES: dict[str, Callable[[Label, int], Made | None]] = {
    "best_of_k": _to_best, "pair": _to_pair, "ranking": _to_ranking, "soft": _to_soft, "difference": _to_difference,
    "rating": _to_rating, "binary": _to_binary,
}  # fmt: skip
