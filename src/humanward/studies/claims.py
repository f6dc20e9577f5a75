"""Claims about a study as expressions that can be checked, and the verdicts on them.

    max(ratio_max): clip > rollback > tr_rb           arms in order, each pair compared seed by seed
    share_of_optimum: learned < true <= 1             a number may stand for an arm
    true_score: ppo > ppo.reference_score             and another measure of an arm for the first
    true_score: tr_rb >= clip - 0.1                   not worse by more than a margin
    tail(kl) in 5..7: adaptive, not fixed             every seed of an arm within bounds, and not every seed of another
    true_score rises then falls: weak                 over the steps; also `rises`, `falls`
    true_score ~ sqrt(kl) until 4: ppo                nearer to a straight line than over the kl itself

A difference is shown where its 95 % interval (Student's, over seeds) leaves out 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np

from humanward.maths.statistics import t_interval
from humanward.report.text import estimate
from humanward.studies.measures import Measure, Measured

Word = Literal["holds", "open", "does not hold", "cannot be judged"]
Cells = Mapping[str, Mapping[int, Measured]]
"""Arm -> seed -> what the finished cell left."""
WINDOWS = 8
"""Parts of a training whose means show its course."""
STRAIGHT = 0.9
"""Share of the variance that a straight line explains, at least."""
_ORDER = re.compile(r"(?P<measure>[^:<>]+):(?P<chain>.*[<>].*)")
_MARGIN = re.compile(r"(?P<operand>.+) (?P<sign>[+-]) (?P<size>\d*\.?\d+)")
_RANGE = re.compile(r"(?P<measure>.+?) in (?P<low>-?[\d.]+)\.\.(?P<high>-?[\d.]+): *(?P<arms>.+)")
_COURSE = re.compile(r"(?P<name>\w+) (?P<course>rises then falls|falls then rises|rises|falls): *(?P<arms>.+)")
_ROOT = re.compile(r"(?P<y>\w+) ~ sqrt\((?P<x>\w+)\)(?: until (?P<until>[\d.]+))?: *(?P<arms>.+)")


class Verdict(NamedTuple):
    """Whether a claim is seen, and the numbers that say so."""

    word: Word
    because: str


class Claim(Protocol):
    """Something that can be seen in a study or not."""

    def judge(self, cells: Cells) -> Verdict: ...


@dataclass(frozen=True)
class Difference:
    """A mean with its interval, over seeds; low and high are None where there is one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        low, high = t_interval(values) if len(values) > 1 else (None, None)
        return cls(sum(values) / len(values), low, high, len(values))

    @property
    def sign(self) -> int:
        """1 where it is shown to be above 0, -1 where below, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __str__(self) -> str:
        return estimate(self.mean, self.low, self.high, sign=True) + (" (one seed: no interval)" if self.low is None else "")


@dataclass(frozen=True)
class Operand:
    """An arm's measure, or a number; either with a margin."""

    text: str
    arm: str | None
    measure: Measure
    number: float | None = None
    margin: float | None = None
    """Added to it."""

    def values(self, cells: Cells) -> dict[int, float] | None:
        """By seed; None for a number, which every seed has."""
        if self.arm is None:
            return None
        found = {seed: self.measure.of(cell) for seed, cell in cells.get(self.arm, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Order:
    """Operands from the largest to the smallest, or the other way round."""

    operands: tuple[Operand, ...]
    signs: tuple[str, ...]

    def judge(self, cells: Cells) -> Verdict:
        words: list[Word] = []
        said = []
        for one, sign, other in zip(self.operands, self.signs, self.operands[1:], strict=False):
            larger, smaller = (one, other) if sign.startswith(">") else (other, one)
            difference = _difference(larger, smaller, cells)
            if difference is None:
                return Verdict("cannot be judged", f"no seed has {larger.text} and {smaller.text}")
            if sign.endswith("=") and one.margin is None and other.margin is None:
                words.append("does not hold" if difference.sign < 0 else "holds")
            else:
                words.append(_word(difference.sign))
            taken_off = smaller.text if smaller.margin is None else f"({smaller.text})"
            said.append(f"{larger.text} − {taken_off}: {difference}")
        return Verdict(_worst(words), "; ".join(said))


@dataclass(frozen=True)
class Range:
    """Every seed of some arms within bounds; of others, not every one."""

    measure: Measure
    low: float
    high: float
    inside: tuple[str, ...]
    outside: tuple[str, ...]

    def judge(self, cells: Cells) -> Verdict:
        words: list[Word] = []
        said = []
        for arm in (*self.inside, *self.outside):
            values = [v for cell in cells.get(arm, {}).values() if (v := self.measure.of(cell)) is not None]
            if not values:
                return Verdict("cannot be judged", f"{arm} has no {self.measure.text}")
            all_in = all(self.low <= value <= self.high for value in values)
            words.append("holds" if all_in == (arm in self.inside) else "does not hold")
            said.append(f"{arm}: {', '.join(f'{value:.3g}' for value in values)}")
        return Verdict(_worst(words), "; ".join(said))


@dataclass(frozen=True)
class Course:
    """How a number moves over the training of every named arm."""

    name: str
    course: str
    arms: tuple[str, ...]

    def judge(self, cells: Cells) -> Verdict:
        words: list[Word] = []
        said = []
        for arm in self.arms:
            found = [windows(cell.series(self.name)) for cell in cells.get(arm, {}).values()]
            rows = np.array([row for row in found if row is not None])
            if not len(rows):
                return Verdict("cannot be judged", f"{arm} has no course of {self.name}; it takes {WINDOWS} steps or more")
            if self.course in TURNS and len(rows) < 2:
                return Verdict("cannot be judged", f"{arm} has one seed; the turning point of a seed is that of others")
            for (first, then), rising in zip(self._parts(rows), (self.rises_first, not self.rises_first), strict=False):
                change = Difference.of([row[j] - row[i] for row, i, j in zip(rows, first, then, strict=True)])
                words.append(_word(change.sign if rising else -change.sign))
                said.append(f"{arm}, part {_numbers(first)} to {_numbers(then)} of {WINDOWS}: {change}")
        return Verdict(_worst(words), "; ".join(said))

    @property
    def rises_first(self) -> bool:
        return self.course.startswith("rises")

    def _parts(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Between which windows the seeds, [N, WINDOWS], must have changed: the first and the last window of each seed, [N] and [N]."""
        begin, end = np.zeros(len(rows), dtype=int), np.full(len(rows), WINDOWS - 1)
        if self.course not in TURNS:
            return [(begin, end)]
        # careful: at a turning point of its own, or of a mean that it is a large part of, a seed's noise looks like a turn
        turn = 1 + TURNS[self.course](means_of_other_half(rows)[:, 1:-1], axis=1)
        return [(begin, turn), (turn, end)]


@dataclass(frozen=True)
class Root:
    """A number that goes with the square root of another: nearer to a straight line over it than over the other itself."""

    y: str
    x: str
    until: float
    arms: tuple[str, ...]

    def judge(self, cells: Cells) -> Verdict:
        words: list[Word] = []
        said = []
        for arm in self.arms:
            points = self._mean_points(cells.get(arm, {}))
            if len(points) < 4:
                return Verdict("cannot be judged", f"{arm} has {len(points)} steps with a {self.x} up to {self.until:g}; it takes 4")
            xs, ys = points[:, 0].clip(min=0), points[:, 1]
            root, plain = straightness(np.sqrt(xs), ys), straightness(xs, ys)
            words.append("holds" if root >= STRAIGHT and root > plain else "open" if root > plain else "does not hold")
            said.append(f"{arm}: R² {root:.3f} over √{self.x}, {plain:.3f} over {self.x}, {len(points)} steps")
        return Verdict(_worst(words), "; ".join(said))

    def _mean_points(self, seeds: Mapping[int, Measured]) -> np.ndarray:
        """(x, y) of each step, meaned over seeds, up to the first step beyond ``until``."""
        rows = [np.array([(row[self.x], row[self.y]) for row in cell.steps if self.x in row and self.y in row]) for cell in seeds.values()]
        shortest = min(map(len, rows), default=0)
        if shortest == 0:
            return np.zeros((0, 2))
        mean = np.mean([row[:shortest] for row in rows], axis=0)
        beyond = np.flatnonzero(mean[:, 0] > self.until)
        return mean[: beyond[0]] if len(beyond) else mean


TURNS: dict[str, Callable[..., np.ndarray]] = {"rises then falls": np.argmax, "falls then rises": np.argmin}
"""Which of the windows is the turning point."""


def means_of_other_half(rows: np.ndarray) -> np.ndarray:
    """For each row of [N >= 2, W], the mean of every second row, of those that it does not belong to."""
    return np.stack([rows[1 - i % 2 :: 2].mean(axis=0) for i in range(len(rows))])


def _numbers(parts: np.ndarray) -> str:
    """Numbers of parts, from 1, each once."""
    return ", ".join(str(part + 1) for part in sorted(set(parts.tolist())))


def parse_claim(text: str, arms: Sequence[str]) -> Claim:
    """A claim about some of these arms.

    Raises:
        ValueError: no claim, or an arm that there is not.
    """
    text = " ".join(text.split())
    if found := _RANGE.fullmatch(text):
        listed = [word.strip() for word in found["arms"].split(",")]
        no = tuple(word.removeprefix("not ") for word in listed if word.startswith("not "))
        yes = tuple(word for word in listed if not word.startswith("not "))
        _check_arms([*yes, *no], arms)
        return Range(Measure.parse(found["measure"]), float(found["low"]), float(found["high"]), yes, no)
    if found := _COURSE.fullmatch(text):
        return Course(found["name"], found["course"], _arms_of(found["arms"], arms))
    if found := _ROOT.fullmatch(text):
        return Root(found["y"], found["x"], float(found["until"] or "inf"), _arms_of(found["arms"], arms))
    if found := _ORDER.fullmatch(text):
        measure = Measure.parse(found["measure"])
        parts = [part.strip() for part in re.split(r"([<>]=?)", found["chain"])]
        return Order(tuple(_operand(part, measure, arms) for part in parts[::2]), tuple(parts[1::2]))
    raise ValueError(f"{text!r} is no claim; write for example `max(kl): one > other`, `kl in 5..7: one, not other` or `score rises: one`")


def _operand(text: str, measure: Measure, arms: Sequence[str]) -> Operand:
    if text in arms:
        return Operand(text, text, measure)
    if found := _MARGIN.fullmatch(text):
        return replace(_operand(found["operand"], measure, arms), text=text, margin=float(found["sign"] + found["size"]))
    for arm in sorted(arms, key=len, reverse=True):
        if text.startswith(f"{arm}."):
            return Operand(text, arm, Measure.parse(text[len(arm) + 1 :]))
    try:
        return Operand(text, None, measure, float(text))
    except ValueError:
        raise ValueError(f"no arm is called {text!r}, and it is no number; there are {', '.join(arms)}") from None


def _arms_of(text: str, arms: Sequence[str]) -> tuple[str, ...]:
    named = tuple(word.strip() for word in text.split(","))
    _check_arms(named, arms)
    return named


def _check_arms(named: Sequence[str], arms: Sequence[str]) -> None:
    unknown = [name for name in named if name not in arms]
    if unknown:
        raise ValueError(f"no arm is called {unknown[0]!r}; there are {', '.join(arms)}")


def _difference(larger: Operand, smaller: Operand, cells: Cells) -> Difference | None:
    """Seed by seed; None where there is no seed that has both."""
    a, b = larger.values(cells), smaller.values(cells)
    known = [values.keys() for values in (a, b) if values is not None]
    seeds = sorted(set[int]().union(*known).intersection(*known))
    return Difference.of([_at(larger, a, seed) - _at(smaller, b, seed) for seed in seeds]) if seeds else None


def _at(operand: Operand, values: Mapping[int, float] | None, seed: int) -> float:
    value = operand.number if values is None else values[seed]
    assert value is not None
    return value + (operand.margin or 0.0)


def windows(values: Sequence[float]) -> list[float] | None:
    """Means of the eighths of a course; None for one that is shorter than that."""
    if len(values) < WINDOWS:
        return None
    return [float(part.mean()) for part in np.array_split(np.asarray(values, dtype=float), WINDOWS)]


def straightness(xs: np.ndarray, ys: np.ndarray) -> float:
    """Share of the variance that the best straight line explains, 0 to 1; 0 where nothing varies."""
    if xs.std() == 0 or ys.std() == 0:
        return 0.0
    return float(np.corrcoef(xs, ys)[0, 1] ** 2)


def _word(sign: int) -> Word:
    words: dict[int, Word] = {1: "holds", 0: "open", -1: "does not hold"}
    return words[sign]


def _worst(words: Sequence[Word]) -> Word:
    order: tuple[Word, ...] = ("does not hold", "open", "holds")
    return next(word for word in order if word in words)
