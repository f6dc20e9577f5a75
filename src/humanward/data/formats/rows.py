"""A row of somebody's file, what it becomes, and the small readers that every format needs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from humanward.errors import UserError
from humanward.records import Label, Prompt, Question, Response, content_id, question_id
from humanward.records.answers import is_number, is_whole
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

    def filled_list(self, key: str, least: int) -> list[str]:
        """At least so many texts that are not blank."""
        texts = self.sequence(key, "a list of texts")
        if len(texts) < least:
            raise UserError(f"{self.where}: `{key}`: {len(texts)} response, but at least {least} are needed to compare")
        return [written(text, f"{self.where}: `{key}[{k}]`") for k, text in enumerate(texts)]

    def sequence(self, key: str, expected: str = "a list") -> list[Any]:
        """A list; a cell of a CSV file may spell it as JSON."""
        value = spelled_list(self.take(key))
        return value if isinstance(value, list) else self._wrong(key, expected, value)

    def answer(self, key: str, parse: Callable[[Any, int], Any], count: int) -> Any:
        """An answer about ``count`` responses, by a function of ``records.answers``."""
        try:
            return parse(spelled_list(numeric(self.take(key))), count)
        except UserError as error:
            raise UserError(f"{self.where}: `{key}`: {clipped(str(error))}") from None

    def weight(self) -> float:
        """The column ``weight``; 1 where there is none."""
        value = self.number("weight")
        if value == 0:
            raise UserError(f"{self.where}: `weight` is 0: such a row trains nothing; delete it")
        return 1.0 if value is None else float(value)

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

    def score(self, key: str) -> float:
        """A number of any size that must be there."""
        value = numeric(self.take(key))
        return float(value) if is_number(value) else self._wrong(key, "a number", value)

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

    def safe(self, count: int) -> dict[str, Any]:
        """Metadata out of the column ``safe``, true or false for each of ``count`` responses; none where there is no such column."""
        if not self.has("safe"):
            return {}
        flags = spelled_list(self.values["safe"])
        if not is_flags(flags, count):
            raise self.fault("safe", f"a list of {count} times true or false, one for each response", flags)
        return {"safe": flags}

    def _wrong(self, key: str, expected: str, found: Any) -> Any:
        raise self.fault(key, expected, found)


def is_flags(value: Any, count: int) -> bool:
    """Whether it is a list of ``count`` times true or false."""
    return isinstance(value, list) and len(value) == count and all(isinstance(flag, bool) for flag in value)


def safety(question: Question, indices: Sequence[int]) -> dict[str, list[bool]]:
    """The column ``safe`` of some of a question's responses; none where nobody has said which are safe."""
    flags: Any = question.prompt.metadata.get("safe")
    return {"safe": [flags[index] for index in indices]} if is_flags(flags, len(question.responses)) else {}


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


def marked(row: Row, names: Sequence[str] = ("labeler", "time", "weight")) -> dict[str, Any]:
    """What a row says of its label in columns of these names."""
    return {name: _MARKS[name](row) for name in names if row.has(name)}


def said(kind: str, answer: Any, **fields: Any) -> Label:
    """A label of which the file tells the answer and, at most, the given fields."""
    return Label(fields.pop("id", ""), "", fields.pop("labeler", ""), kind, answer, **fields)


def named(question: Question) -> Question:
    """The question with ids, by its content where the file gave none: labels of one question are then known to be that."""
    prompt = question.prompt
    if not prompt.id:
        prompt = replace(prompt, id=content_id("prompt", prompt.text, prompt.tokens))
    name = question.id or question_id(prompt, question.responses, kind=question.kind, round=question.round)
    return replace(question, id=name, prompt=prompt)


_MARKS: dict[str, Callable[[Row], Any]] = {
    "labeler": lambda row: row.name("labeler"),
    "time": lambda row: row.time("time"),
    "weight": lambda row: row.weight(),
    "seconds": lambda row: row.number("seconds"),
    "confidence": lambda row: row.number("confidence", 0, 1),
    "comment": lambda row: row.text("comment"),
}
MARKS = tuple(_MARKS)


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


def spelled_list(value: Any) -> Any:
    """The list that a cell of a CSV file spells as JSON; anything else as it is."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        found = json.loads(value, parse_constant=lambda word: word)
    except (ValueError, RecursionError):
        return value
    return found


def clipped(text: str, most: int = 200) -> str:
    """A message that is not long, whatever value it quotes."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def short(value: Any) -> str:
    """A value for a message, on one line and not long."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
