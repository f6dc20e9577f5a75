"""Lists of messages, each with a role and a content: checked, divided into prompt and responses, and told as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from humanward.data.formats.rows import short, written
from humanward.errors import UserError

Message = dict[str, str]
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""Roles as others write them, and as chat templates know them."""
_SPOKEN = {"system": "System", "user": "Human", "assistant": "Assistant"}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""The marks of the transcripts of Bai et al. 2022 (HH-RLHF)."""


def is_conversation(value: Any) -> bool:
    """Whether it is a list of objects, not a text."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def read_messages(value: Any, what: str) -> list[Message]:
    """Messages in the order that a conversation has: perhaps a system message, then user and assistant in turn.

    Raises:
        UserError: no list, a message without role or content, an unknown role, roles out of order. ``what`` begins it.
    """
    if not is_conversation(value):
        raise UserError(f"{what}: expected a list of messages with `role` and `content`, found {short(value)}")
    messages = [_message(message, f"{what}[{number}]") for number, message in enumerate(value)]
    check_order(messages, what)
    return messages


def check_order(messages: Sequence[Message], what: str) -> None:
    """UserError where the roles are out of order. A list that begins with the assistant goes on from another one."""
    expected = ("system", "user", "assistant")
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in expected:
            before = f" behind {messages[number - 1]['role']}" if number else ""
            raise UserError(f"{what}[{number}]: roles out of order: {role}{before}; user and assistant take turns, system stands first")
        expected = ("assistant",) if role == "user" else ("user",)


def prompt_of(messages: Sequence[Message], what: str) -> list[Message]:
    """The messages, if they are a prompt: somebody begins, and the assistant is to answer."""
    if messages[0]["role"] == "assistant" or messages[-1]["role"] != "user":
        wrong = "begins with the assistant" if messages[0]["role"] == "assistant" else f"ends with {messages[-1]['role']}"
        raise UserError(f"{what}: roles out of order: the prompt {wrong}; it must end with the user, whom the assistant answers")
    return list(messages)


def answer_of(messages: Sequence[Message], what: str) -> str:
    """The content of the one message with which the assistant answers."""
    roles = [message["role"] for message in messages]
    if roles != ["assistant"]:
        found = ", ".join(roles) or "nothing"
        raise UserError(f"{what}: expected one message of the assistant behind the prompt, found {found}; cut the rest off")
    return messages[0]["content"]


def common_messages(first: Sequence[Message], second: Sequence[Message]) -> int:
    """With how many equal messages both begin."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as people read it: the one question alone, else a transcript."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "".join(f"\n\n{_SPOKEN[message['role']]}: {message['content']}" for message in messages) + ASSISTANT


def of_transcript(prompt: str) -> list[Message] | None:
    """The messages of a prompt that is a transcript; None where it is not one."""
    if not prompt.startswith(HUMAN) or not prompt.endswith(ASSISTANT):
        return None
    messages: list[Message] = []
    for turn in prompt.removesuffix(ASSISTANT).split(HUMAN)[1:]:
        question, *answers = turn.split(ASSISTANT)
        spoken = [("user", question), *(("assistant", answer) for answer in answers)]
        messages += [{"role": role, "content": content.strip()} for role, content in spoken]
    try:
        check_order(messages, "")
        prompt_of(messages, "")
    except UserError:
        return None
    return messages if all(message["content"] for message in messages) else None


def _message(message: Mapping[str, Any], what: str) -> Message:
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role is None:
        raise UserError(f"{what}: `role` is missing")
    if role not in ROLES:
        raise UserError(f"{what}: `role`: expected {', '.join(ROLES)}, found {short(role)}")
    return {"role": ROLES[role], "content": written(content, f"{what}: `content`")}
