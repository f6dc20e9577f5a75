"""``prompt``, ``completion``, ``label``: single responses that were liked (true) or not (false), as KTO trains on."""

from __future__ import annotations

from typing import Any

from humanward.data.formats import conversation, views
from humanward.data.formats.pairs import ABOUT
from humanward.data.formats.rows import Labeled, Row, asked, marked, said
from humanward.errors import UserError
from humanward.records import Label, Question

COLUMNS = ("prompt", "label")
RESPONSES = ("completion", "response")
WRITTEN = {"prompt": "talk", "completion": "talk", "label": "flag", "weight": "number", **ABOUT}
_WORDS = {"true": True, "false": False}


def read(row: Row) -> Labeled:
    """A question of kind ``binary`` with one response."""
    good = _WORDS.get(str(row.take("label")).lower())
    if good is None:
        raise row.fault("label", "true or false", row.values["label"])
    prompt, response, metadata = answered(row)
    question = asked(prompt, [response], "binary", split=row.split(), metadata=metadata)
    return Labeled(row.where, question, (said("binary", good, **marked(row)),))


def answered(row: Row) -> tuple[str, str, dict[str, Any]]:
    """(prompt, response, metadata) of a row with one response; texts, or lists of messages."""
    name = next((name for name in RESPONSES if name in row.values), None)
    if name is None:
        raise UserError(f"{row.where}: neither `completion` nor `response`; the row has {', '.join(f'`{key}`' for key in row.values)}")
    prompt, metadata = conversation.read_prompt(row)
    response = conversation.taken(row, name)
    if metadata and isinstance(response, list):
        what = f"{row.where}: `{name}`"
        return prompt, conversation.answer_of(conversation.read_messages(response, what), what), metadata
    return prompt, row.filled(name), metadata


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A row for each text that the label judges; 1 beside them where it judges none. A text that came twice is as good as its best.

    Lists of messages where the prompt came as such.
    """
    found: dict[str, bool] = {}
    for index, good in views.approved(label.kind, label.answer, len(question.responses)):
        text = question.responses[index].text
        found[text] = found.get(text, False) or good
    about = {"labeler": label.labeler, "question_id": question.id, "split": question.split}
    weight = {} if label.weight == 1 else {"weight": label.weight}
    messages = conversation.messages_of(question.prompt)
    rows = [
        {
            "prompt": messages or question.prompt.text, "completion": conversation.answered_by(text) if messages else text, "label": good,
            **weight, **about,
        }
        for text, good in found.items()
    ]  # fmt: skip
    return rows, int(not rows)
