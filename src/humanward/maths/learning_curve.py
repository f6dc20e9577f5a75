"""How an error falls with the number of labels, and how far that can be drawn on. numpy only: imports no torch.

S measurements: one size of training set, one repetition, each on its own held-out questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = Sequence[Any] | NDArray[Any]
EXPONENTS: Floats = np.linspace(0.05, 1.5, 30)
"""Candidates of b; learning curves of language models and of classifiers lie between 0.1 and 1 (Hestness et al. 2017)."""
FLOORS: Floats = np.linspace(0.0, 1.0, 26)
"""Candidates of c, as parts of the smallest error that was measured."""


class PowerLaw(NamedTuple):
    """error(n) = floor + scale * n^(-exponent)."""

    floor: float
    """c >= 0: what no number of labels takes away."""
    scale: float
    """a >= 0."""
    exponent: float
    """b > 0; higher falls faster."""

    def error(self, n: float | int) -> float:
        """The error at n labels."""
        return self.floor + self.scale * n**-self.exponent


class Forecast(NamedTuple):
    """Accuracy at some number of labels, by the curve, with its interval."""

    labels: float
    accuracy: float
    low: float
    high: float
    gain: float
    """Accuracy more than at the largest number that was measured."""
    gain_low: float
    gain_high: float


def fit_power_law(sizes: Values, errors: Values, weights: Values | None = None) -> PowerLaw:
    """Weighted least squares over a grid of exponents and floors, the scale in closed form.

        minimise sum_s w_s (e_s - c - a n_s^(-b))^2  over  a >= 0,  b in EXPONENTS,  c in FLOORS * min e

    Cortes et al. 1993, "Learning curves: asymptotic values and rate of convergence". A grid, because with few sizes b and c trade off
    along a valley in which a descent stops anywhere.

    Args:
        sizes: [S] labels, > 0, at least two different ones.
        errors: [S] 0 to 1.
        weights: [S] > 0; None: all alike.

    Returns:
        The best of the grid. Errors 0.8, 0.4, 0.2 at 10, 20, 40 labels give floor 0, scale 8 and exponent 1.

    Raises:
        ValueError: fewer than two sizes, or a number out of range.
    """
    n, e, w = _checked(sizes, errors, weights)
    a, b, c = _fit(n, e[None], w)
    return PowerLaw(float(c[0]), float(a[0]), float(b[0]))


def forecasts(
    sizes: Sequence[int], repeats: Sequence[int], correct: Sequence[int], questions: Sequence[int], at: Sequence[Any], seed: int,
    *, confidence: float | int = 0.9, resamples: int = 1000,
) -> tuple[PowerLaw, list[Forecast]]:  # fmt: skip
    """A fitted curve, and what it says of other numbers of labels, with bootstrap intervals.

    A resample draws repetitions with replacement and then, for each measurement, the number of right answers from a binomial distribution:
    the chance of another training and split, and that of other held-out questions. It does not hold the chance that the law is wrong:
    believe little beyond four times the labels.

    Args:
        sizes: [S] labels trained on.
        repeats: [S] which repetition.
        correct: [S] held-out questions answered right.
        questions: [S] held-out questions.
        at: numbers of labels to forecast.
        seed: of the resampling.
        confidence: of the intervals, 0 to 1; higher is wider.
        resamples: more is smoother.

    Returns:
        The curve of all measurements, and a ``Forecast`` for each number of ``at``.

    Raises:
        ValueError: fewer than two sizes, or numbers out of range.
    """
    total = np.asarray(questions, dtype=np.float64)
    if not (total > 0).all() or not 0 < confidence < 1 or resamples < 1:
        raise ValueError("questions must be positive, confidence between 0 and 1, resamples at least 1")
    n, e, w = _checked(sizes, 1 - np.asarray(correct, dtype=np.float64) / total, total)
    law = fit_power_law(n, e, w)
    rng = np.random.default_rng(seed)
    groups = np.unique(np.asarray(repeats), return_inverse=True)[1]
    drawn = rng.integers(groups.max() + 1, size=(resamples, groups.max() + 1))
    times = np.stack([(drawn == g).sum(1) for g in range(groups.max() + 1)], axis=1)[:, groups]  # [R, S]
    noisy = 1 - rng.binomial(total.astype(np.int64), 1 - e, size=(resamples, len(n))) / total
    a, b, c = _fit(n, noisy, w * times)
    last = float(n.max())
    edges = [(1 - confidence) / 2, (1 + confidence) / 2]
    found = []
    for wanted in at:
        accuracy = 1 - c - a * wanted**-b
        gains = accuracy - (1 - c - a * last**-b)
        ends, more = np.quantile(accuracy, edges), np.quantile(gains, edges)
        gain = law.error(last) - law.error(wanted)
        found.append(Forecast(float(wanted), 1 - law.error(wanted), float(ends[0]), float(ends[1]), gain, float(more[0]), float(more[1])))
    return law, found


def _checked(sizes: Any, errors: Any, weights: Any) -> tuple[Floats, Floats, Floats]:
    n, e = np.asarray(sizes, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    w = np.ones_like(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if n.ndim != 1 or n.shape != e.shape or n.shape != w.shape:
        raise ValueError(f"sizes, errors and weights of shapes {n.shape}, {e.shape} and {w.shape}; give three lists of one length")
    if not (n > 0).all() or not ((e >= 0) & (e <= 1)).all() or not (w > 0).all():
        raise ValueError("sizes and weights must be positive, errors 0 to 1")
    if len(np.unique(n)) < 2:
        raise ValueError("a curve needs at least two sizes")
    return n, e, w


def _fit(n: Floats, errors: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Errors [R, S], weights [S] or [R, S] -> a, b, c, each [R]."""
    w = np.broadcast_to(weights, errors.shape)
    smallest = np.min(np.where(w > 0, errors, np.inf), axis=1)
    best, found = np.full(len(errors), np.inf), np.zeros((3, len(errors)))
    for b in EXPONENTS:
        x = n**-b
        for part in FLOORS:
            c = part * smallest
            rest = errors - c[:, None]
            a = np.maximum((w * rest) @ x / (w @ x**2), 0.0)
            loss = (w * (rest - a[:, None] * x) ** 2).sum(axis=1)
            better = loss < best - 1e-15
            best = np.where(better, loss, best)
            for row, value in zip(found, (a, np.full_like(a, b), c), strict=True):
                row[better] = value[better]
    return found[0], found[1], found[2]
