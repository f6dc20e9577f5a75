"""``prompt``, ``responses``, ``best``: which of K responses is best, counted from 0."""

from __future__ import annotations

from typing import Any

from humanward.data.formats import views
from humanward.data.formats.k_wise import WRITTEN as _K_WISE
from humanward.data.formats.k_wise import read_k_wise, write_k_wise
from humanward.data.formats.rows import Labeled, Row
from humanward.records import Label, Question
from humanward.records.answers import best_of_k_answer

COLUMNS = ("prompt", "responses", "best")
WRITTEN = {**_K_WISE, "best": "whole"}


def read(row: Row) -> Labeled:
    """A question of kind ``best_of_k``."""
    return read_k_wise(row, "best_of_k", "best", best_of_k_answer)


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """One row; 1 beside it where no single response is the best."""
    best = views.best(label.kind, label.answer, len(question.responses))
    return ([], 1) if best is None else write_k_wise(question, label, best=best)
