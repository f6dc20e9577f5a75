"""``chosen`` and ``rejected``: the preference data of TRL and most others.

The prompt has its own column, or is what both begin with; texts or lists of messages. ``margin``, or ``score_chosen`` and
``score_rejected``, say by how much the chosen one is better (UltraFeedback, binarised): such pairs are differences. ``safe``: whether the
chosen and the rejected response are safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

from humanward.data.formats import conversation, views
from humanward.data.formats.conversation import ASSISTANT, HUMAN
from humanward.data.formats.rows import Labeled, Row, asked, marked, safety, said, written
from humanward.errors import UserError
from humanward.records import Label, Question

COLUMNS = ("chosen", "rejected")
SCORES = ("score_chosen", "score_rejected")
ABOUT = {"labeler": "text", "question_id": "text", "split": "text"}
WRITTEN = {"prompt": "talk", "chosen": "talk", "rejected": "talk", "margin": "number", "safe": "flags", "weight": "number", **ABOUT}


def read(row: Row) -> Labeled:
    """A question of kind ``pair``, or ``difference`` where the row has a margin."""
    if any(isinstance(conversation.taken(row, name), list) for name in COLUMNS):
        prompt, texts, metadata = _conversation(row)
    elif row.values.get("prompt") is None:
        prompt, *texts = _divided(row)
        metadata = {}
    else:
        prompt, metadata = conversation.read_prompt(row)
        texts = [row.filled(name) for name in COLUMNS]
    return compared(row, prompt, texts[0], texts[1], margin(row), metadata=metadata | row.safe(2))


def compared(
    row: Row, prompt: str, chosen: str, rejected: str, margin: float | None = None, *, metadata: Mapping[str, Any] | None = None,
    columns: Sequence[str] = COLUMNS,
) -> Labeled:  # fmt: skip
    """Two responses, the first of which was preferred. Their order is by lot of their texts, so that the place tells nothing.

    ``metadata`` may have ``safe`` of the chosen and the rejected one.
    """
    if chosen == rejected:
        raise UserError(f"{row.where}: `{columns[0]}` and `{columns[1]}` are the same text; delete the row")
    texts = sorted((chosen, rejected), key=lambda text: crc32(f"{prompt}\n{text}".encode()))
    best = texts.index(chosen)
    kind = "pair" if margin is None else "difference"
    answer = best if margin is None else -margin if best else margin
    question = asked(prompt, texts, kind, split=row.split(), metadata=metadata)
    if best:
        question = replace(question, prompt=replace(question.prompt, metadata={**question.prompt.metadata, **safety(question, (1, 0))}))
    return Labeled(row.where, question, (said(kind, answer, **marked(row)),))


def margin(row: Row, scores: Sequence[str] = SCORES) -> float | None:
    """By how much the chosen response is better; None where the row does not say."""
    if row.has("margin"):
        return row.number("margin")
    if not any(row.has(name) for name in scores):
        return None
    chosen, rejected = (row.score(name) for name in scores)
    if chosen < rejected:
        raise UserError(f"{row.where}: `{scores[0]}`: {chosen:g} is less than `{scores[1]}`, {rejected:g}; one of both is wrong")
    return chosen - rejected


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """``write_texts``; lists of messages where the prompt came as such."""
    rows, left_out = write_texts(question, label)
    messages = conversation.messages_of(question.prompt)
    if messages is not None:
        for row in rows:
            row |= {"prompt": messages, **{name: conversation.answered_by(row[name]) for name in COLUMNS}}
    return rows, left_out


def write_texts(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A row for each pair that the label orders, and how many pairs it leaves equal. A text is never chosen over itself."""
    ordered, ties = views.pairs(label.kind, label.answer, len(question.responses))
    texts = [response.text for response in question.responses]
    different = [(a, b, lead) for a, b, lead in ordered if texts[a] != texts[b]]
    about = {"labeler": label.labeler, "question_id": question.id, "split": question.split}
    rows = [
        {
            "prompt": question.prompt.text, "chosen": texts[a], "rejected": texts[b], **({} if lead is None else {"margin": lead}),
            **safety(question, (a, b)), **({} if label.weight == 1 else {"weight": label.weight}), **about,
        }
        for a, b, lead in different
    ]  # fmt: skip
    return rows, ties + len(ordered) - len(different)


def common_prompt(chosen: str, rejected: str) -> int:
    """How many letters of two texts are their common prompt; 0 where they have none.

    Transcripts are divided behind the last ``Assistant:`` that both have, other texts at the last space before they differ, which then
    begins both responses.
    """
    common = _common_letters(chosen, rejected)
    mark = chosen.rfind(ASSISTANT, 0, common)
    if mark >= 0 or chosen.startswith(HUMAN):
        return 0 if mark < 0 else mark + len(ASSISTANT)
    while common and not chosen[common - 1].isspace():
        if chosen[common : common + 1].isspace() and rejected[common : common + 1].isspace():
            break
        common -= 1
    return len(chosen[:common].rstrip())


def _common_letters(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def _divided(row: Row) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two texts that begin with the prompt."""
    chosen, rejected = (row.filled(name) for name in COLUMNS)
    if chosen == rejected:
        raise UserError(f"{row.where}: `chosen` and `rejected` are the same text; delete the row")
    length = common_prompt(chosen, rejected)
    if not length:
        wanted = f"`{ASSISTANT.strip()}`" if chosen.startswith(HUMAN) else "beginning"
        raise UserError(f"{row.where}: no `prompt`, and `chosen` and `rejected` have no common {wanted} that could be it")
    what = f"{row.where}: `%s` behind the prompt"
    return chosen[:length], written(chosen[length:], what % "chosen"), written(rejected[length:], what % "rejected")


def _conversation(row: Row) -> tuple[str, list[str], dict[str, Any]]:
    """(prompt as text, the two answers, metadata with the prompt's messages).

    The prompt's column, a text or messages, may or may not stand at the beginning of ``chosen`` and ``rejected`` again.
    """
    chosen, rejected = (conversation.read_messages(conversation.taken(row, name), f"{row.where}: `{name}`") for name in COLUMNS)
    if chosen == rejected:
        raise UserError(f"{row.where}: `chosen` and `rejected` are the same conversation; delete the row")
    given = conversation.taken(row, "prompt") if "prompt" in row.values else None
    shared = conversation.common_messages(chosen, rejected)
    if given is None or (isinstance(given, str) and shared):
        if not shared:
            raise UserError(f"{row.where}: no `prompt`, and `chosen` and `rejected` have no common messages that could be it")
        prompt = chosen[:shared]
    else:
        messages = given if isinstance(given, list) else [{"role": "user", "content": row.filled("prompt")}]
        prompt = conversation.read_messages(messages, f"{row.where}: `prompt`")
        chosen, rejected = (_behind(prompt, messages) for messages in (chosen, rejected))
        shared = 0
    conversation.prompt_of(prompt, f"{row.where}: `{'prompt' if given is not None else 'chosen'}`")
    answers = zip(COLUMNS, (chosen[shared:], rejected[shared:]), strict=True)
    texts = [conversation.answer_of(answer, f"{row.where}: `{name}`") for name, answer in answers]
    return conversation.as_text(prompt), texts, {"messages": prompt}


def _behind(prompt: list[dict[str, str]], messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
