"""``prompt``, ``chosen``, ``rejected``: the preference data of TRL and most others, with an explicit prompt of plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from humanward.data.formats import views
from humanward.data.formats.rows import Labeled, Row, asked, said
from humanward.errors import UserError
from humanward.records import Label, Question, content_id

COLUMNS = ("chosen", "rejected")


def read(row: Row) -> Iterator[Labeled]:
    """A question of kind ``pair``. The order of its responses is by lot of their texts, so that the place tells nothing."""
    if "prompt" not in row.values:
        raise UserError(f"{row.where}: no `prompt`: only explicit prompts are read; give the common beginning its own column")
    texts = [row.filled("chosen"), row.filled("rejected")]
    if texts[0] == texts[1]:
        raise UserError(f"{row.where}: `chosen` and `rejected` are the same text; delete the row")
    prompt = row.filled("prompt")
    order = sorted(texts, key=lambda text: content_id("order", prompt, text))
    question = asked(prompt, order, "pair", split=row.split())
    yield Labeled(row.where, question, (said("pair", order.index(texts[0]), labeler=row.name("labeler"), time=row.time("time")),))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A row for each pair that the label orders, and how many pairs it leaves equal. A text is never chosen over itself."""
    ordered, ties = views.pairs(label.kind, label.answer, len(question.responses))
    texts = [response.text for response in question.responses]
    different = [(a, b) for a, b in ordered if texts[a] != texts[b]]
    about = {"labeler": label.labeler, "question_id": question.id, "split": question.split}
    rows = [{"prompt": question.prompt.text, "chosen": texts[a], "rejected": texts[b], **about} for a, b in different]
    return rows, ties + len(ordered) - len(different)
