"""UltraFeedback: ``instruction`` and scored ``completions``, or Argilla's ``chosen_response`` and ``rejected_response`` with ratings.

Binarised UltraFeedback has ``chosen`` and ``rejected``: that is the format ``pairs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from humanward.data.formats.pairs import compared, margin
from humanward.data.formats.rows import Labeled, Row, asked, marked, numeric, said, short, written
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import is_number

COLUMNS = ("instruction", "completions")
PAIR_COLUMNS = ("instruction", "chosen_response", "rejected_response")
RATINGS = ("chosen_avg_rating", "rejected_avg_rating")
SCORES = ("fine-grained_score", "overall_score")
"""The first that a completion has. The overall score of the first release is 10 where the critique says 1 in some rows."""


def read(row: Row) -> Labeled:
    """A question of kind ``scores``, or of two responses and their difference."""
    prompt = row.filled("instruction")
    if "completions" not in row.values:
        chosen, rejected = row.filled(PAIR_COLUMNS[1]), row.filled(PAIR_COLUMNS[2])
        return compared(row, prompt, chosen, rejected, margin(row, RATINGS), columns=PAIR_COLUMNS[1:])
    completions = row.sequence("completions", "a list of objects with `response` and a score")
    if len(completions) < 2:
        raise UserError(f"{row.where}: `completions`: {len(completions)} response, but at least 2 are needed to compare")
    found = [_completion(one, f"{row.where}: `completions[{number}]`") for number, one in enumerate(completions)]
    sources = [source for *_, source in found]
    question = asked(prompt, [text for text, *_ in found], "scores", split=row.split(), sources=sources)
    return Labeled(row.where, question, (said("scores", [score for _, score, _ in found], **marked(row)),))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A row of scored completions; 1 beside it for anything but scores."""
    if label.kind != "scores":
        return [], 1
    completions = [
        {"model": response.policy, "response": response.text, "fine-grained_score": score}
        for response, score in zip(question.responses, label.answer, strict=True)
    ]
    return [{"instruction": question.prompt.text, "completions": completions}], 0


def _completion(one: Any, what: str) -> tuple[str, float, str]:
    """(response, score, model)."""
    if not isinstance(one, Mapping):
        raise UserError(f"{what}: expected an object with `response` and a score, found {short(one)}")
    text = written(one.get("response"), f"{what}: `response`")
    name = next((name for name in SCORES if one.get(name) is not None), None)
    if name is None:
        raise UserError(f"{what}: neither `{'` nor `'.join(SCORES)}`")
    score = numeric(one[name])
    if not is_number(score):
        raise UserError(f"{what}: `{name}`: expected a number, found {short(one[name])}")
    return text, float(score), str(one.get("model") or "")
