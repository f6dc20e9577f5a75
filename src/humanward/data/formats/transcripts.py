"""Writing ``chosen`` and ``rejected`` with their prompt in front, as HH-RLHF has them, and as lists of messages. ``pairs`` reads both."""

from __future__ import annotations

from typing import Any

from humanward.data.formats import conversation, pairs
from humanward.data.formats.conversation import ASSISTANT, HUMAN, Message
from humanward.records import Label, Question

WRITTEN = {"chosen": "text", "rejected": "text", "margin": "number", "safe": "flags", "weight": "number", **pairs.ABOUT}
MESSAGES_WRITTEN = {**WRITTEN, "prompt": "messages", "chosen": "messages", "rejected": "messages"}


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """Rows of whole dialogues, ``\\n\\nHuman: … \\n\\nAssistant: …``."""
    rows, left_out = pairs.write_texts(question, label)
    text = question.prompt.text
    prompt = text if text.endswith(ASSISTANT) else _transcript(messages_of(question))
    for row in rows:
        del row["prompt"]
        row |= {name: prompt + _spaced(row[name]) for name in pairs.COLUMNS}
    return rows, left_out


def write_messages(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """Rows of ``prompt``, ``chosen``, ``rejected``, each a list of messages."""
    rows, left_out = pairs.write_texts(question, label)
    text = question.prompt.text
    # the space behind the mark belongs to the transcript, not to the answer
    spaced = text.endswith(ASSISTANT) and conversation.messages_of(question.prompt) is None
    for row in rows:
        row["prompt"] = messages_of(question)
        row |= {name: conversation.answered_by(row[name].strip() if spaced else row[name]) for name in pairs.COLUMNS}
    return rows, left_out


def messages_of(question: Question) -> list[Message]:
    """The prompt's messages: those that it came with, those of a transcript, else one message of the user."""
    text = question.prompt.text
    given = conversation.messages_of(question.prompt)
    return given or conversation.of_transcript(text) or [{"role": "user", "content": text}]


def _transcript(messages: list[Message]) -> str:
    marks = {"system": "\n\nSystem:", "user": HUMAN, "assistant": ASSISTANT}
    return "".join(f"{marks[message['role']]} {message['content']}" for message in messages) + ASSISTANT


def _spaced(text: str) -> str:
    return text if text[:1].isspace() else f" {text}"
