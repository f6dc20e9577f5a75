"""How often each labeler is right, estimated from labels alone, and what the true choices then are. numpy only: imports no torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = Sequence[Any] | NDArray[Any]


class LabelerNoise(NamedTuple):
    """What the labels say about the questions and about those who gave them."""

    items: list[Any]
    """The questions, in order of first appearance."""
    posterior: Floats
    """[N, K]: probability that each response is truly the best one of its question."""
    labelers: list[Any]
    """In order of first appearance."""
    right: Floats
    """[L]: probability that a labeler's choice is the true one."""


def estimate_labeler_noise(
    items: Sequence[Hashable], labelers: Sequence[Hashable], votes: Values, *,
    prior_right: float = 4.0, prior_wrong: float = 1.0, tolerance: float = 1e-9, most_iterations: int = 1000,
) -> LabelerNoise:  # fmt: skip
    """True choices and each labeler's rate of right answers, by expectation maximisation.

        p(vote k | truth t) = right[l] where k = t, (1 - right[l]) / (K - 1) elsewhere
        posterior[n, t] ~ product over labels of p(vote | t), every t as likely as another beforehand
        right[l] = (prior_right + expected right votes) / (prior_right + prior_wrong + votes)

    Dawid and Skene 1979 (doi:10.2307/2346806), with one rate for each labeler in place of a table: responses stand in no particular order,
    so none is confused with another more than with a third. A divided vote ([1/2, 1/2] is a tie) counts with its shares.

    Args:
        items: the question of each label.
        labelers: who gave it.
        votes: [labels, K], the share of the vote that each response got; a row sums to 1.
        prior_right: right votes that each labeler is taken to have given already. Labelers who share no question with another keep
            prior_right / (prior_right + prior_wrong).
        prior_wrong: wrong ones; more makes single labels softer.
        tolerance: stop when no rate moves more.
        most_iterations: stop then anyway.

    Returns:
        Posteriors and rates. A question with one label, by a labeler who is right at 0.8, has 0.8 there and 0.2 / (K - 1) elsewhere.

    Raises:
        ValueError: lengths differ, no labels, K below 2, or votes that are not shares.
    """
    shares = np.asarray(votes, dtype=float)
    if shares.ndim != 2 or len(shares) == 0 or shares.shape[1] < 2 or not len(items) == len(labelers) == len(shares):
        raise ValueError(f"{len(items)} items, {len(labelers)} labelers, votes of shape {shares.shape}; give one row of K >= 2 per label")
    if (shares < 0).any() or not np.allclose(shares.sum(1), 1.0, atol=1e-6):
        raise ValueError("votes must be shares of at least 0 that sum to 1 in each row")
    if not (prior_right > 0 and prior_wrong > 0):
        raise ValueError(f"prior votes must be positive, not {prior_right} and {prior_wrong}")
    item_names, item = _numbered(items)
    labeler_names, labeler = _numbered(labelers)
    K = shares.shape[1]
    votes_of = np.bincount(labeler, minlength=len(labeler_names))
    right = np.full(len(labeler_names), prior_right / (prior_right + prior_wrong))
    posterior = np.full((len(item_names), K), 1.0 / K)
    for _ in range(most_iterations):
        # log p(vote | t) = share[t] * log right + (1 - share[t]) * log wrong
        wrong = np.log((1 - right) / (K - 1))[labeler, None]
        evidence = np.zeros_like(posterior)
        np.add.at(evidence, item, shares * np.log(right)[labeler, None] + (1 - shares) * wrong)
        evidence = np.exp(evidence - evidence.max(1, keepdims=True))
        posterior = evidence / evidence.sum(1, keepdims=True)
        expected = np.bincount(labeler, weights=(posterior[item] * shares).sum(1), minlength=len(labeler_names))
        before, right = right, (prior_right + expected) / (prior_right + prior_wrong + votes_of)
        if np.abs(right - before).max() <= tolerance:
            break
    return LabelerNoise(item_names, posterior, labeler_names, right)


def _numbered(keys: Sequence[Hashable]) -> tuple[list[Any], NDArray[np.int64]]:
    """The different keys in order of first appearance, and the number of each key."""
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return list(places), np.array([places[key] for key in keys], dtype=np.int64)
