"""What the exports of labelling tools have in common: which columns are the prompt and the responses, and which of them a word means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from humanward.errors import UserError
from humanward.records import Question

PROMPTS = ("prompt", "question", "query", "instruction", "input", "context", "conversation", "post", "article", "document", "text")
_RESPONSE = re.compile(
    r"(?:answer|response|reply|completion|output|option|candidate|generation|summary|model|text|txt)s?[ _-]*(\d|[a-i]|left|right)"
)
_TIES = {"tie", "tied", "equal", "same", "both", "equally good", "no preference", "about the same", "neither"}
_PLACES = {"left": 0, "first": 0, "right": 1, "second": 1, "third": 2, "fourth": 3}


def response_columns(names: Iterable[str]) -> list[str]:
    """The columns that hold responses, such as answer1 and answer2, in their order."""
    found = [(_place(match[1]), name) for name in names if (match := _RESPONSE.fullmatch(name.lower()))]
    return [name for _, name in sorted(found)]


def prompt_column(names: Iterable[str], where: str, taken: Iterable[str]) -> str:
    """The column that holds the prompt; UserError where none has a name for it."""
    free = {name.lower(): name for name in names if name not in set(taken)}
    found = next((free[name] for name in PROMPTS if name in free), None)
    if found is None:
        raise UserError(f"{where}: no prompt: expected a column `prompt`, `question` or `query`, found {_list(free.values())}")
    return found


def chosen(word: Any, columns: list[str], where: str) -> int | str:
    """Which response a choice names: its column, its number or letter, left or right; or "tie"."""
    plain = " ".join(str(word).lower().replace("_", " ").replace("-", " ").split())
    if plain in _TIES:
        return "tie"
    names = [name.lower().replace("_", " ").replace("-", " ") for name in columns]
    if plain in names:
        return names.index(plain)
    if plain in _PLACES and _PLACES[plain] < len(columns):
        return _PLACES[plain]
    match = re.fullmatch(r"(?:[a-z]+ ?)?(\d|[a-i])(?: is better)?", plain)
    place = _place(match[1]) if match else -1
    # careful: answer0, answer1 count from 0; everything else counts from 1
    first = 0 if columns and columns[0].endswith("0") else 1
    index = place - first if match and match[1].isdigit() else place - 1
    if not match or not 0 <= index < len(columns):
        raise UserError(f"{where}: the choice {str(word)[:40]!r} names none of the responses {_list(columns)}")
    return index


def ranks(groups: list[list[Any]], names: list[str], where: str) -> list[int]:
    """Groups of names from best to worst -> the rank of each of ``names``; UserError where one is missing, strange or there twice."""
    found: dict[str, int] = {}
    for rank, group in enumerate(groups):
        for name in map(str, group):
            if name not in names:
                raise UserError(f"{where}: the ranking has {name[:40]!r}, which is none of {_list(names)}")
            if name in found:
                raise UserError(f"{where}: the ranking has {name[:40]!r} twice")
            found[name] = rank
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{where}: the ranking leaves out {_list(missing)}; every response needs a rank")
    return [found[name] for name in names]


def numbered(word: str, question: Question) -> dict[str, str]:
    """The responses of a question in columns such as answer1 and answer2."""
    return {f"{word}{number}": response.text for number, response in enumerate(question.responses, 1)}


def _place(word: str) -> int:
    if word in _PLACES:
        return _PLACES[word] + 1
    return int(word) if word.isdigit() else ord(word) - ord("a") + 1


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in list(names)[:8]) or "nothing"
