"""What is read from a finished cell: final numbers, and its training step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

Row = dict[str, Any]

OVER_STEPS: dict[str, Callable[[Sequence[float]], float]] = {
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "max": max,
    "min": min,
    "mean": lambda values: sum(values) / len(values),
    "tail": lambda values: OVER_STEPS["mean"](values[-max(len(values) // 4, 1) :]),
}
"""How the values of all steps become one; ``tail`` is the mean of the last quarter."""
_MEASURE = re.compile(r"(?:(?P<how>\w+)\((?P<inside>\w+)\)|(?P<name>\w+)(?:@(?P<step>\d+))?)")
_CURVE = re.compile(r"(?P<y>\w+)(?: over (?P<x>\w+))?(?: with (?P<beside>\w+(?:, \w+)*))?")
BESIDE = ("optimum", "best_of_n")
"""Lines of the evaluation that may be drawn beside a score over the KL."""


@dataclass(frozen=True)
class Measured:
    """What a finished cell left."""

    final: dict[str, float]
    steps: list[Row]
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """(KL, score) of ``BESIDE``."""

    def series(self, name: str) -> list[float]:
        """A number of every step that has it, or the scores of one of ``lines``."""
        if name in self.lines:
            return [score for _, score in self.lines[name]]
        return [value for row in self.steps if (value := finite(row.get(name))) is not None]


@dataclass(frozen=True)
class Measure:
    """One number of a cell."""

    text: str
    name: str
    how: str = ""
    """Of ``OVER_STEPS``; empty: the final number."""
    step: int | None = None
    """Its value at this step, from 0."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``kl``, ``max(ratio_max)``, ``approx_kl@1``.

        Raises:
            ValueError: it is none of these.
        """
        found = _MEASURE.fullmatch(text.strip())
        if found is None or (found["how"] and found["how"] not in OVER_STEPS):
            raise ValueError(f"{text!r} is no measure; write a name, name@step, or one of {', '.join(OVER_STEPS)} with a name: max(kl)")
        step = int(found["step"]) if found["step"] else None
        return cls(text.strip(), found["inside"] or found["name"], found["how"] or "", step)

    def of(self, cell: Measured) -> float | None:
        """None where the cell has no such number. A name without a final number is that of the last step."""
        if self.how:
            values = cell.series(self.name)
            return OVER_STEPS[self.how](values) if values else None
        if self.step is not None:
            return finite(cell.steps[self.step].get(self.name)) if self.step < len(cell.steps) else None
        if self.name in cell.final:
            return cell.final[self.name]
        return (cell.series(self.name) or [None])[-1]


@dataclass(frozen=True)
class CurveSource:
    """A number over the steps of a cell, or over another one."""

    text: str
    y: str
    x: str
    beside: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """``kl``, ``true_score over kl``, ``true_score over kl with optimum, best_of_n``.

        Raises:
            ValueError: it is none of these.
        """
        found = _CURVE.fullmatch(text.strip())
        beside = tuple(found["beside"].split(", ")) if found is not None and found["beside"] else ()
        if found is None or not set(beside) <= set(BESIDE):
            raise ValueError(f"{text!r} is no curve; write `kl`, `score over kl`, or `score over kl with {', '.join(BESIDE)}`")
        return cls(text.strip(), found["y"], found["x"] or "", beside)

    def points(self, cell: Measured) -> tuple[str, list[float], list[float]]:
        """(name of x, xs, ys); without an x of its own, over episodes where they are counted, else over steps from 1."""
        rows = [(index, row) for index, row in enumerate(cell.steps) if finite(row.get(self.y)) is not None]
        x = self.x or ("episodes" if rows and all(finite(row.get("episodes")) is not None for _, row in rows) else "")
        if x:
            rows = [(index, row) for index, row in rows if finite(row.get(x)) is not None]
        return x or "step", [float(row[x]) if x else index + 1.0 for index, row in rows], [float(row[self.y]) for _, row in rows]


def finite(value: object) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
