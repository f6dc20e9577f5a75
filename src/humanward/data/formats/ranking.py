"""``prompt``, ``responses``, ``ranks``: the rank of each of K responses, 0 best, or 1 best where no rank is 0. Equal ranks are ties."""

from __future__ import annotations

from typing import Any

from humanward.data.formats.k_wise import WRITTEN as _K_WISE
from humanward.data.formats.k_wise import read_k_wise, write_k_wise
from humanward.data.formats.rows import Labeled, Row
from humanward.data.formats.views import values
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import ranking_answer

COLUMNS = ("prompt", "responses", "ranks")
WRITTEN = {**_K_WISE, "ranks": "wholes"}


def read(row: Row) -> Labeled:
    """A question of kind ``ranking``."""
    return read_k_wise(row, "ranking", "ranks", dense_ranks)


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """One row; 1 beside it where the label orders nothing."""
    found = values(label.kind, label.answer, len(question.responses))
    if found is None:
        return [], 1
    order = sorted(set(found), reverse=True)
    return write_k_wise(question, label, ranks=[order.index(value) for value in found])


def dense_ranks(answer: Any, k: int, *, first: int = 1) -> list[int]:
    """Ranks that count 0, 1, … or, where ``first`` allows it, 1, 2, … without a gap; as 0, 1, …"""
    found = ranking_answer(answer, k)
    least = min(answer)
    if least > first or [rank + least for rank in found] != answer:
        raise UserError(f"a gap in the ranks {answer}: they count 0, 1, … without a gap; equal ranks are ties")
    return found
