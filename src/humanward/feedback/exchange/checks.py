"""What an event from outside must be like before it may stand in the log."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from humanward.errors import UserError
from humanward.feedback.kinds import KINDS
from humanward.feedback.log import canonical

LONGEST_ID = 200
LONGEST_TEXT = 10_000
_LABEL_KEYS = {"kind", "answer", "permutation", "seconds", "confidence", "comment", "instructions", "question"}
_TEXTS = {"skip": "reason", "flag": "reason", "comment": "comment"}


@contextmanager
def at(where: str) -> Generator[None]:
    """A UserError inside the block begins with a place."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def known_id(value: Any, where: str) -> str:
    """An id or a pseudonym that a store can keep."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID or not value.isprintable():
        raise UserError(f"{where}: expected 1 to {LONGEST_ID} printable characters, found {str(value)[:40]!r}")
    return value


def utc_time(value: Any, where: str) -> str:
    """A time as the store writes it."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where}: time: expected one like 2026-11-21T14:30:00.000+00:00, found {str(value)[:40]!r}")


def permutation(value: Any, count: int, where: str) -> tuple[int, ...]:
    """The order in which ``count`` responses were shown."""
    whole = isinstance(value, list | tuple) and all(isinstance(index, int) and not isinstance(index, bool) for index in value)
    if not whole or sorted(value) != list(range(count)):
        raise UserError(f"{where}: permutation: expected each of the {count} responses once, found {str(value)[:40]}")
    return tuple(value)


def answer(kind: str, value: Any, count: int, where: str) -> Any:
    """An answer in its stored form."""
    if kind == "best_of_k" and value == "tie":
        raise UserError(f"{where}: answer: a tie, but only kinds pair and ranking have ties")
    with at(f"{where}: answer of kind {kind}"):
        found = KINDS[kind].parse(value, count)
    if kind == "ranking" and found != value:
        raise UserError(f"{where}: answer: a gap in the ranks {value}: they count 0, 1, … without a gap; equal ranks are ties")
    return found


def event_body(kind: str, body: Mapping[str, Any], about: tuple[str, int, str], where: str) -> str:
    """The body of an event as canonical JSON. ``about``: kind, K and digest of its question."""
    if kind == "undo":
        _keys(body, {"kind"}, where)
    elif kind in _TEXTS:
        _keys(body, {_TEXTS[kind]}, where)
        text(body.get(_TEXTS[kind], ""), f"{where}: {_TEXTS[kind]}")
    else:
        _keys(body, _LABEL_KEYS, where)
        _label_body(kind, body, about, where)
    return canonical(body)


def text(value: Any, where: str) -> str:
    """A comment or a reason."""
    if not isinstance(value, str):
        raise UserError(f"{where}: expected a text, found {str(value)[:40]!r}")
    if len(value) > LONGEST_TEXT:
        raise UserError(f"{where}: {len(value)} characters are too long; {LONGEST_TEXT} at most")
    return value


def number(value: Any, most: float, where: str) -> None:
    """None, or a number from 0 on."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= most:
        span = f"from 0 to {most:g}" if most < math.inf else "of at least 0"
        raise UserError(f"{where}: expected a number {span}, found {str(value)[:40]!r}")


def _label_body(kind: str, body: Mapping[str, Any], about: tuple[str, int, str], where: str) -> None:
    expected, count, digest = about
    if body.get("kind") != expected:
        raise UserError(f"{where}: kind: {body.get('kind')!r}, but the question is of kind {expected}")
    if answer(expected, body.get("answer"), count, where) != body.get("answer"):
        raise UserError(f"{where}: answer: {body.get('answer')!r} is not in the form in which answers are stored")
    if kind == "label" or body.get("permutation"):
        permutation(body.get("permutation"), count, where)
    number(body.get("seconds"), math.inf, f"{where}: seconds")
    number(body.get("confidence"), 1, f"{where}: confidence")
    for name in ("comment", "instructions"):
        text(body.get(name, ""), f"{where}: {name}")
    if body.get("question") != digest:
        raise UserError(f"{where}: question: the label was given to another text than that of its question: one of them was changed")
    missing = {"seconds", "confidence", "comment", "permutation"} - set(body)
    if missing:
        raise UserError(f"{where}: body: {', '.join(sorted(missing))} is missing")


def _keys(body: Mapping[str, Any], known: set[str], where: str) -> None:
    strange = sorted(set(body) - known)
    if strange:
        raise UserError(f"{where}: body: unknown key {', '.join(strange)}")
