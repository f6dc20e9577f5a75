"""Lists of messages, each with a role and a content: checked, divided into prompt and responses, and told as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from humanward.data.formats.rows import Row, short, spelled_list, written
from humanward.errors import UserError
from humanward.records import Prompt

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


def taken(row: Row, key: str) -> Any:
    """What stands in a column; messages also where a text spells them as JSON, as a cell of a CSV file does."""
    value = row.take(key)
    found = spelled_list(value)
    spelled = found is not value and is_conversation(found) and all(set(message) == {"role", "content"} for message in found)
    return found if spelled else value


def read_prompt(row: Row) -> tuple[str, dict[str, Any]]:
    """(the prompt as text, metadata) of a column ``prompt`` that is a text or messages."""
    value = taken(row, "prompt")
    if not isinstance(value, list):
        return row.filled("prompt"), {}
    what = f"{row.where}: `prompt`"
    messages = prompt_of(read_messages(value, what), what)
    return as_text(messages), {"messages": messages}


def messages_of(prompt: Prompt) -> list[Message] | None:
    """The messages that the prompt came as; None where it is a text, whatever else its metadata says."""
    messages: Any = prompt.metadata.get("messages")
    if not is_conversation(messages) or not all(_is_plain(message) for message in messages):
        return None
    return messages if messages[-1]["role"] == "user" and as_text(messages) == prompt.text else None


def written_prompt(prompt: Prompt) -> str | list[Message]:
    """The messages that the prompt came as, else its text."""
    return messages_of(prompt) or prompt.text


def answered_by(text: str) -> list[Message]:
    """A response as the message with which the assistant answers."""
    return [{"role": "assistant", "content": text}]


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


def _is_plain(message: Mapping[str, Any]) -> bool:
    return set(message) == {"role", "content"} and message["role"] in _SPOKEN and isinstance(message["content"], str)


def _message(message: Mapping[str, Any], what: str) -> Message:
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role is None:
        raise UserError(f"{what}: `role` is missing")
    if role not in ROLES:
        raise UserError(f"{what}: `role`: expected {', '.join(ROLES)}, found {short(role)}")
    return {"role": ROLES[role], "content": written(content, f"{what}: `content`")}
