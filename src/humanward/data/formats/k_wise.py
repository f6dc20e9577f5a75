"""What the formats of K responses have in common: ``prompt``, a list of ``responses``, and one column that says which is how good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from humanward.data.formats import conversation
from humanward.data.formats.pairs import ABOUT
from humanward.data.formats.rows import MARKS, Labeled, Row, asked, marked, safety, said
from humanward.errors import UserError
from humanward.records import Label, Question

WRITTEN = {"prompt": "talk", "responses": "texts", "safe": "flags", "weight": "number", **ABOUT}


def read_k_wise(row: Row, kind: str, key: str, parse: Callable[[Any, int], Any]) -> Labeled:
    """A question of at least two responses and its label, which stands in the column ``key``.

    Some of the responses may be equal, as samples of a policy are now and then; not all of them.
    """
    responses = row.filled_list("responses", 2)
    if len(set(responses)) == 1:
        raise UserError(f"{row.where}: `responses`: all {len(responses)} are the same text; delete the row")
    answer = row.answer(key, parse, len(responses))
    prompt, metadata = conversation.read_prompt(row)
    metadata |= row.safe(len(responses))
    number = row.whole("round", 0, 1 << 30) if row.has("round") else 0
    question = asked(prompt, responses, kind, id=row.name("question_id"), round=number, split=row.split(), metadata=metadata)
    return Labeled(row.where, question, (said(kind, answer, **marked(row, MARKS)),))


def write_k_wise(question: Question, label: Label, **answer: Any) -> tuple[list[dict[str, Any]], int]:
    """One row; 1 beside it where all responses are the same text, so that nothing is compared."""
    responses = [response.text for response in question.responses]
    if len(set(responses)) == 1:
        return [], 1
    weight = {} if label.weight == 1 else {"weight": label.weight}
    about = {"labeler": label.labeler, "question_id": question.id, "split": question.split}
    safe = safety(question, range(len(responses)))
    return [{"prompt": conversation.written_prompt(question.prompt), "responses": responses, **answer, **safe, **weight, **about}], 0
