"""Which questions to ask: those on which an ensemble disagrees, each with a known probability of being asked. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = Sequence[Any] | NDArray[Any]


def choice_variance(probabilities: Values) -> Floats:
    """How far the members of an ensemble differ about which response will be chosen.

        variance[n] = sum over k of var over members m of probability[m, n, k]

    Christiano et al. 2017 (arXiv:1706.03741), section 2.2.4, asks where the predictions vary most; for K = 2 both responses vary alike and
    the sum is twice the variance of the preference.

    Args:
        probabilities: [M, N, K], each member's distribution of the choice.

    Returns:
        [N], 0 where all members say the same, at most 1.
    """
    return _checked(probabilities).var(0).sum(-1)


def bald(probabilities: Values) -> Floats:
    """What an answer is expected to tell about which member is right: the mutual information of answer and member.

        bald[n] = H( mean over m of probability[m, n] ) - mean over m of H( probability[m, n] )

    Houlsby et al. 2011 (arXiv:1112.5745), eq. 2. Unlike the variance it leaves alone questions of which every member knows that the answer
    is a toss.

    Args:
        probabilities: [M, N, K], each member's distribution of the choice.

    Returns:
        [N], nats; 0 where all members say the same, at most log M and log K.
    """
    p = _checked(probabilities)
    return np.maximum(_entropy(p.mean(0)) - _entropy(p).mean(0), 0.0)


def propensities(disagreement: Values, count: int, *, uniform_share: float | int = 0.25) -> Floats:
    """The probability with which each of N candidates is asked when ``count`` of them are.

        p[n] = min(1, count * (uniform_share / N + (1 - uniform_share) * disagreement[n] * c)), with c such that they sum to ``count``

    No candidate with a share of the uniform part has probability 0, so that means over all candidates can be estimated from those asked
    (Horvitz and Thompson 1952): sum over asked of value / p / N.

    Args:
        disagreement: of each candidate, >= 0. All zero: every candidate alike.
        count: 0 to N.
        uniform_share: of the questions that go to candidates whatever their disagreement, 0 to 1. 1 is random choice.

    Returns:
        [N], 0 to 1, their sum is ``count``.

    Raises:
        ValueError: ``count`` or ``uniform_share`` out of range, or a disagreement that is negative or not finite.
    """
    d = np.asarray(disagreement, dtype=float)
    if d.ndim != 1 or not 0 <= count <= len(d) or not 0 <= uniform_share <= 1:
        raise ValueError(f"count must be 0 to {d.size} and uniform_share 0 to 1, not {count} and {uniform_share}")
    if not np.isfinite(d).all() or (d < 0).any():
        raise ValueError("disagreements must be finite and at least 0")
    if len(d) == 0:
        return d
    pull = d / d.sum() if d.sum() > 0 else np.full(len(d), 1 / len(d))
    weight = uniform_share / len(d) + (1 - uniform_share) * pull
    weight = np.maximum(weight, np.finfo(float).tiny)
    p = np.zeros(len(d))
    certain = np.zeros(len(d), dtype=bool)
    while True:
        left = count - certain.sum()
        rest = np.where(certain, 0.0, weight)
        p = np.where(certain, 1.0, left * rest / rest.sum() if left > 0 and rest.sum() > 0 else 0.0)
        if (p <= 1.0).all():
            return p
        certain |= p > 1.0


def draw_with_propensities(probabilities: Values, uniform: float | int, order: Sequence[int] | None = None) -> list[int]:
    """Candidates drawn so that each is in with exactly its probability and their number is the sum: systematic sampling (Madow 1949).

    Args:
        probabilities: [N], 0 to 1, their sum a whole number, as ``propensities`` gives them.
        uniform: one random number, 0 <= uniform < 1; all the randomness there is.
        order: a permutation in which the candidates are gone through; a random one keeps neighbours from excluding each other. None: as
            they stand.

    Returns:
        Indices, ascending.

    Raises:
        ValueError: the probabilities do not sum to a whole number, or ``uniform`` is out of range.
    """
    p = np.asarray(probabilities, dtype=float)
    count = round(float(p.sum()))
    if abs(p.sum() - count) > 1e-6 or (p < 0).any() or (p > 1 + 1e-9).any() or not 0 <= uniform < 1:
        raise ValueError(f"probabilities must be 0 to 1 with a whole sum, not {p.sum()}, and uniform at least 0 and below 1, not {uniform}")
    if count == 0:
        return []
    through = np.arange(len(p)) if order is None else np.asarray(order)
    ends = np.cumsum(p[through])
    ends *= count / ends[-1]
    places = np.searchsorted(ends, uniform + np.arange(count), side="right")
    return sorted(through[np.minimum(places, len(p) - 1)].tolist())


def reweighted_mean(values: Values, probabilities: Values) -> float:
    """The mean over all candidates, estimated from those that were asked, each with its probability of having been asked.

        mean = sum of value / p  /  sum of 1 / p

    Hajek 1971: the ratio form of Horvitz and Thompson's estimate; it does not depend on a shift of the values.

    Raises:
        ValueError: no values, or a probability that is not above 0.
    """
    v, p = np.asarray(values, dtype=float), np.asarray(probabilities, dtype=float)
    if len(v) == 0 or v.shape != p.shape or not (p > 0).all():
        raise ValueError("give one value and one probability above 0 for each question asked")
    return float((v / p).sum() / (1 / p).sum())


def _checked(probabilities: Values) -> Floats:
    p = np.asarray(probabilities, dtype=float)
    if p.ndim != 3 or p.shape[0] < 1 or not np.allclose(p.sum(-1), 1.0, atol=1e-4):
        raise ValueError(f"probabilities of shape {p.shape}; give [members, questions, responses] that sum to 1 over responses")
    return p


def _entropy(p: Floats) -> Floats:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
