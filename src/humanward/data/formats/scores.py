"""``prompt``, ``responses``, ``scores``: how good each of K responses is; or ``prompt``, ``response``, ``rating`` of one alone."""

from __future__ import annotations

from typing import Any

from humanward.data.formats import conversation
from humanward.data.formats.k_wise import WRITTEN as _K_WISE
from humanward.data.formats.k_wise import read_k_wise, write_k_wise
from humanward.data.formats.pairs import ABOUT
from humanward.data.formats.rows import Labeled, Row, asked, marked, said
from humanward.data.formats.unpaired import answered
from humanward.records import Label, Question
from humanward.records.answers import number_answer, scores_answer

COLUMNS = ("prompt", "responses", "scores")
RATING_COLUMNS = ("prompt", "rating")
WRITTEN = {**_K_WISE, "scores": "numbers"}
RATING_WRITTEN = {"prompt": "talk", "response": "text", "rating": "number", "weight": "number", **ABOUT}


def read(row: Row) -> Labeled:
    """A question of kind ``scores``: trained on, it is the differences of all its pairs."""
    return read_k_wise(row, "scores", "scores", scores_answer)


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """One row of scores; 1 beside it for anything else."""
    return write_k_wise(question, label, scores=label.answer) if label.kind == "scores" else ([], 1)


def read_rating(row: Row) -> Labeled:
    """A question of kind ``rating``."""
    prompt, response, metadata = answered(row)
    question = asked(prompt, [response], "rating", split=row.split(), metadata=metadata)
    return Labeled(row.where, question, (said("rating", row.answer("rating", number_answer, 1), **marked(row)),))


def write_rating(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A row for each response that has a number of its own; 1 beside them where none has."""
    numbers = [label.answer] if label.kind == "rating" else label.answer if label.kind == "scores" else []
    about = {"labeler": label.labeler, "question_id": question.id, "split": question.split}
    weight = {} if label.weight == 1 else {"weight": label.weight}
    rows = [
        {"prompt": conversation.written_prompt(question.prompt), "response": response.text, "rating": number, **weight, **about}
        for response, number in zip(question.responses, numbers, strict=False)
    ]
    return rows, int(not rows)
