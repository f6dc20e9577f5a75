"""A row of somebody's file, what it becomes, and the small readers that every format needs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from humanward.errors import UserError
from humanward.records import Label, Prompt, Question, Response
from humanward.records.nouns import Split


@dataclass(frozen=True)
class Labeled:
    """A question and the labels that a file has of it.

    What the file does not say is empty: the ``id`` of the question or of a label, the ``labeler``, the order shown (``permutation``) and
    the ``time``.
    """

    where: str
    """``file:line``, for messages about it."""
    question: Question
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Row:
    """The columns of one row. Every complaint is one line that begins with where the row stands."""

    where: str
    values: Mapping[str, Any]

    def fault(self, key: str, expected: str, found: Any) -> UserError:
        return UserError(f"{self.where}: `{key}`: expected {expected}, found {short(found)}")

    def has(self, key: str) -> bool:
        """Whether the column is there and filled in."""
        return self.values.get(key) not in (None, "")

    def take(self, key: str) -> Any:
        if key not in self.values:
            raise UserError(f"{self.where}: `{key}` is missing; the row has {', '.join(f'`{name}`' for name in list(self.values)[:8])}")
        return self.values[key]

    def filled(self, key: str) -> str:
        """A text that is not blank."""
        return written(self.take(key), f"{self.where}: `{key}`")

    def text(self, key: str, default: str = "") -> str:
        """A text that may be absent or empty."""
        value = self.values.get(key)
        if value is None:
            return default
        return value if isinstance(value, str) else str(value) if is_whole(value) else self._wrong(key, "a text", value)

    def name(self, key: str) -> str:
        """An id or a labeler's name: text without control characters, or a whole number. Empty where it is absent."""
        value = self.text(key)
        if any(ord(letter) < 32 for letter in value) or len(value) > 200:
            raise self.fault(key, "a name of at most 200 letters without control characters", value)
        return value

    def whole(self, key: str, least: int, most: int) -> int:
        value = numeric(self.take(key))
        return value if is_whole(value) and least <= value <= most else self._wrong(key, f"a whole number from {least} to {most}", value)

    def number(self, key: str, least: float = 0.0, most: float = math.inf) -> float | None:
        """A number, None where the column is empty or absent."""
        if not self.has(key):
            return None
        value = numeric(self.values[key])
        span = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        return value if is_number(value) and least <= value <= most else self._wrong(key, f"a number {span}", value)

    def time(self, key: str) -> str:
        """A time as UTC in ISO 8601 with milliseconds; empty where there is none."""
        value = self.text(key)
        try:
            return utc(value) if value else ""
        except ValueError:
            raise self.fault(key, "a time like 2026-11-21T14:30:00Z", value) from None

    def split(self) -> Split:
        """The column ``split``; "train" where there is none."""
        value = self.text("split") or "train"
        return value if value in ("train", "validation") else self._wrong("split", '"train" or "validation"', value)

    def _wrong(self, key: str, expected: str, found: Any) -> Any:
        raise self.fault(key, expected, found)


def written(value: Any, what: str) -> str:
    """A text that is not blank and has no NUL; ``what`` begins the complaint about anything else."""
    if not isinstance(value, str):
        raise UserError(f"{what}: expected a text, found {short(value)}")
    if not value.strip():
        raise UserError(f"{what} is empty; write something or delete the row")
    if "\x00" in value:
        raise UserError(f"{what} has a NUL character; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{what} has half of a surrogate pair, which is not text; remove it") from None
    return value


def asked(
    prompt: str, responses: Sequence[str], kind: str, *, id: str = "", round: int = 0, split: Split = "train",
    metadata: Mapping[str, Any] | None = None, sources: Sequence[str] = (),
) -> Question:  # fmt: skip
    """A question out of plain texts, without tokens. ``sources``: which policy wrote each response, where the file says it."""
    made = [Response(text, (), "file", policy) for text, policy in zip(responses, sources or [""] * len(responses), strict=True)]
    return Question(id, Prompt("", prompt, (), dict(metadata or {})), tuple(made), kind, round, split)


def said(kind: str, answer: Any, **fields: Any) -> Label:
    """A label of which the file tells the answer and, at most, the given fields."""
    return Label(fields.pop("id", ""), "", fields.pop("labeler", ""), kind, answer, **fields)


def utc(text: str) -> str:
    """ISO 8601 with any offset as UTC with milliseconds. ValueError where it is no time."""
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")


def numeric(value: Any) -> Any:
    """The number that a cell of a CSV file spells; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=lambda word: word) if len(value) < 40 else value
    except ValueError:
        return value


def is_whole(value: Any) -> bool:
    """Whether it is an int; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def short(value: Any) -> str:
    """A value for a message, on one line and not long."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
