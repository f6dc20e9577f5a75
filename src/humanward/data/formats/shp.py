"""Stanford Human Preferences: ``history``, ``human_ref_A``, ``human_ref_B``, ``labels`` (1: A is preferred), by the votes of readers."""

from __future__ import annotations

from typing import Any

from humanward.data.formats import views
from humanward.data.formats.pairs import compared
from humanward.data.formats.rows import Labeled, Row, numeric
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import is_number

COLUMNS = ("history", "human_ref_A", "human_ref_B", "labels")
WRITTEN = {"history": "text", "human_ref_A": "text", "human_ref_B": "text", "labels": "whole"}


def read(row: Row) -> Labeled:
    """A question of kind ``pair``. Votes are no scale, so they give no margin; those against the label are a fault."""
    first, second = row.filled("human_ref_A"), row.filled("human_ref_B")
    a_is_better = row.whole("labels", 0, 1)
    votes = [numeric(row.values.get(name)) for name in ("score_A", "score_B")]
    if all(map(is_number, votes)) and votes[0] != votes[1] and (votes[0] > votes[1]) != bool(a_is_better):
        raise UserError(f"{row.where}: `labels`: {a_is_better}, but `score_A` is {votes[0]} and `score_B` {votes[1]}; one of them is wrong")
    names = ("human_ref_A", "human_ref_B")
    chosen, rejected = (first, second) if a_is_better else (second, first)
    return compared(row, row.filled("history"), chosen, rejected, columns=names)


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """Labels about two responses; 1 beside them for a tie or another number of responses."""
    best = views.best(label.kind, label.answer, 2) if len(question.responses) == 2 else None
    if best is None:
        return [], 1
    first, second = (response.text for response in question.responses)
    return [{"history": question.prompt.text, "human_ref_A": first, "human_ref_B": second, "labels": int(best == 0)}], 0
