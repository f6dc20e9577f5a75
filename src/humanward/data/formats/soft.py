"""``prompt``, ``responses``, ``probabilities``: how likely each of K responses is the best one, or the share of votes that it got."""

from __future__ import annotations

from typing import Any

from humanward.data.formats.k_wise import WRITTEN as _K_WISE
from humanward.data.formats.k_wise import read_k_wise, write_k_wise
from humanward.data.formats.rows import Labeled, Row
from humanward.records import Label, Question
from humanward.records.answers import TIE, soft_answer

COLUMNS = ("prompt", "responses", "probabilities")
WRITTEN = {**_K_WISE, "probabilities": "numbers"}


def read(row: Row) -> Labeled:
    """A question of kind ``soft``."""
    return read_k_wise(row, "soft", "probabilities", soft_answer)


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """One row of a soft label or of a certain choice; a tied pair is even. 1 beside it for anything else."""
    count = len(question.responses)
    if label.kind == "soft":
        found = label.answer
    elif label.kind in ("pair", "best_of_k"):
        found = [0.5, 0.5] if label.answer == TIE else [float(index == label.answer) for index in range(count)]
    else:
        return [], 1
    return write_k_wise(question, label, probabilities=found)
