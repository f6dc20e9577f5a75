"""How sure a measured rate or mean is. numpy and scipy only: imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats


class WinRate(NamedTuple):
    """How often a beats b, and how sure that is."""

    wins: int
    losses: int
    ties: int
    rate: float
    """(wins + ties / 2) / all, 0 to 1."""
    low: float
    high: float


def wilson_interval(successes: float | int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

        (p + z^2 / 2n -+ z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  p = successes / n

    Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4: the one to use unless coverage must be guaranteed.

    Args:
        successes: 0 to ``trials``; halves are allowed (ties), which makes the interval too wide, never too narrow.
        trials: n, >= 0.
        confidence: 0 to 1; higher is wider.

    Returns:
        (low, high). 5 of 10 gives (0.2366, 0.7634); 0 trials give (0, 1).

    Raises:
        ValueError: ``successes`` is not between 0 and ``trials``, or ``confidence`` not between 0 and 1.
    """
    _check_counts(successes, trials, confidence)
    if trials == 0:
        return 0.0, 1.0
    z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
    p = successes / trials
    centre = p + z2 / (2 * trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2)))
    low, high = (centre - half) / (1 + z2 / trials), (centre + half) / (1 + z2 / trials)
    # At p = 0 and p = 1 the bound is exactly p; rounding must not put it on the wrong side.
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion: covers at least ``confidence``, usually more.

        low = Beta quantile(alpha / 2; k, n - k + 1)        high = Beta quantile(1 - alpha / 2; k + 1, n - k)

    Clopper and Pearson 1934.

    Args:
        successes: k, a whole number, 0 to ``trials``.
        trials: n, >= 0.
        confidence: 1 - alpha, 0 to 1; higher is wider.

    Returns:
        (low, high). 0 of 10 gives (0, 0.3085); 0 trials give (0, 1).

    Raises:
        ValueError: ``successes`` is not a whole number between 0 and ``trials``, or ``confidence`` not between 0 and 1.
    """
    _check_counts(successes, trials, confidence)
    if successes != int(successes):
        raise ValueError(f"successes must be a whole number, not {successes}; ties have no exact interval, use wilson_interval")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def bootstrap_interval(
    values: Sequence[Any] | NDArray[Any],
    statistic: Callable[[NDArray[Any]], float],
    seed: int,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic, by whole clusters where observations hang together.

    Efron 1979; clusters: Davison and Hinkley 1997, section 3.8. Several responses to one prompt, or labels of one labeler, are a cluster:
    resampling them one by one would make the interval too narrow.

    Args:
        values: one observation per row.
        statistic: of an array like ``values`` (the number of rows may differ), for example ``np.mean``.
        seed: of the resampling; the same seed gives the same interval.
        clusters: one cluster key per row. None: every row for itself.
        confidence: 0 to 1; higher is wider.
        resamples: more is smoother.

    Returns:
        (low, high); both equal the statistic where all values are equal.

    Raises:
        ValueError: no values, or ``clusters`` has another length than ``values``.
    """
    values = np.asarray(values)
    if len(values) == 0:
        raise ValueError("no values to resample; give at least one")
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} cluster keys for {len(values)} values; give one key per value")
    rng = np.random.default_rng(seed)
    keys = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    order = np.argsort(keys, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    results = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        rows = order[drawn] if clusters is None else np.concatenate([members[j] for j in drawn])
        results[i] = statistic(values[rows])
    tail = (1 - confidence) / 2
    low, high = np.quantile(results, [tail, 1 - tail])
    return float(low), float(high)


def t_interval(values: Sequence[float] | NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean.

        mean -+ t(n - 1) * s / sqrt(n),  s with n - 1 below

    Student 1908. For a few independent repetitions, such as seeds, whose values lie about normally; the same of paired differences.

    Args:
        values: n of them, at least 2.
        confidence: 0 to 1; higher is wider.

    Returns:
        (low, high). 1, 2, 3 gives 2 -+ 2.4841; equal values give an interval without width.

    Raises:
        ValueError: fewer than two values, one that is not finite, or ``confidence`` not between 0 and 1.
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"an interval of a mean needs two finite values at least, not {array.tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(array) - 1)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()) - half, float(array.mean()) + half


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of "a wins as often as b": the exact binomial test with ties left out.

    Returns:
        0 to 1; 1 where nothing was decided or wins equal losses. 8 to 2 gives 0.1094.

    Raises:
        ValueError: a count is negative.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"wins and losses must not be negative, not {wins} and {losses}")
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def win_rate(a_scores: Sequence[Any] | NDArray[Any], b_scores: Sequence[Any] | NDArray[Any], *, confidence: float = 0.95) -> WinRate:
    """How often a scores higher than b on the same prompt; a tie counts one half.

        rate = (wins + ties / 2) / n, with Wilson's interval

    Args:
        a_scores: one score per prompt.
        b_scores: scores of the other side, in the same order.
        confidence: of the interval, 0 to 1.

    Returns:
        Counts, rate and interval; a against itself is 0.5.

    Raises:
        ValueError: the two differ in length, are empty, or hold a score that is not a number.
    """
    a, b = np.asarray(a_scores, dtype=float), np.asarray(b_scores, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape}; give two lists of the same length, at least 1")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a score is not a number (NaN); drop the prompt on both sides or score it again")
    wins, losses = int((a > b).sum()), int((a < b).sum())
    ties = len(a) - wins - losses
    successes = wins + ties / 2
    return WinRate(wins, losses, ties, successes / len(a), *wilson_interval(successes, len(a), confidence))


def _check_counts(successes: float | int, trials: int, confidence: float) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be between 0 and trials ({trials}), not {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
