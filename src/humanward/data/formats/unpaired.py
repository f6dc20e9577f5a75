"""``prompt``, ``completion``, ``label``: single responses that were found good (true) or not (false), as KTO trains on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from humanward.data.formats import views
from humanward.data.formats.rows import Labeled, Row, asked, said
from humanward.errors import UserError
from humanward.records import Label, Question

COLUMNS = ("prompt", "label")
RESPONSES = ("completion", "response")
GOOD, BAD = 9.0, 1.0
"""The ratings that true and false become: the ends of the scale."""


def read(row: Row) -> Iterator[Labeled]:
    """A question of kind ``rating`` with one response."""
    name = next((name for name in RESPONSES if name in row.values), None)
    if name is None:
        raise UserError(f"{row.where}: neither `completion` nor `response`; the row has {', '.join(f'`{key}`' for key in row.values)}")
    good = {"true": True, "false": False}.get(str(row.take("label")).lower())
    if good is None:
        raise row.fault("label", "true or false", row.values["label"])
    question = asked(row.filled("prompt"), [row.filled(name)], "rating", split=row.split())
    yield Labeled(row.where, question, (said("rating", GOOD if good else BAD, labeler=row.name("labeler"), time=row.time("time")),))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A row for each text that the label judges; 1 beside them where it judges none. A text that came twice is as good as its best."""
    found: dict[str, bool] = {}
    for index, good in views.approved(label.kind, label.answer, len(question.responses)):
        text = question.responses[index].text
        found[text] = found.get(text, False) or good
    about = {"labeler": label.labeler, "question_id": question.id, "split": question.split}
    rows = [{"prompt": question.prompt.text, "completion": text, "label": good, **about} for text, good in found.items()]
    return rows, int(not rows)
