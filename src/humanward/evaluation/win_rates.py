"""Rows of the results: win rates, mean scores and accuracies, each with its interval and what it was counted from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from humanward.maths.statistics import bootstrap_interval, wilson_interval, win_rate


def win_rates(scores: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]) -> list[dict[str, str | float]]:
    """Compare policies on the same prompts, pair by pair.

    Args:
        scores: the labeler's score of each policy's response, one per prompt, prompts in the same order for all.
        pairs: (policy, against), in the order in which they are reported.

    Returns:
        One row per pair: policy, against, wins, losses, ties, rate (ties count half), low and high (Wilson, 95 %).

    Raises:
        ValueError: a policy has no scores, or two have not as many scores as each other.
    """
    found: list[dict[str, str | float]] = []
    for policy, against in pairs:
        absent = [name for name in (policy, against) if name not in scores]
        if absent:
            raise ValueError(f"no scores for {absent[0]!r}; there are scores for {', '.join(sorted(scores)) or 'nobody'}")
        found.append({"policy": policy, "against": against, **win_rate(scores[policy], scores[against])._asdict()})
    return found


def mean_with_interval(values: Sequence[float], *, seed: int, clusters: Sequence[Hashable] | None = None) -> dict[str, float]:
    """A mean with its 95 % bootstrap interval.

    Args:
        values: one per response: a score, or a KL in nats per response.
        seed: of the resampling; the same seed gives the same interval.
        clusters: the prompt of each response where a prompt has several; None where each has one.

    Returns:
        ``mean``, ``low`` and ``high``; all equal where all values are equal.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite; an interval needs at least one, all finite"
        )
    low, high = bootstrap_interval(array, lambda drawn: float(drawn.mean()), seed, clusters)
    return {"mean": float(array.mean()), "low": low, "high": high}


def accuracy_row(correct: Sequence[bool], *, round_number: int, responses_per_question: int) -> dict[str, float]:
    """How often a reward model's highest score is the labeler's choice, as one row of ``reward_model`` in the results.

    Args:
        correct: one per held-out question.
        round_number: of the reward model, from 1.
        responses_per_question: K; chance is 1 / K.

    Returns:
        ``round``, ``accuracy``, ``low`` and ``high`` (Wilson, 95 %), ``questions`` and ``chance``.

    Raises:
        ValueError: no questions, or fewer than two responses each.
    """
    if len(correct) == 0 or responses_per_question < 2:
        raise ValueError(f"{len(correct)} questions of {responses_per_question} responses; give at least one question of two responses")
    right = sum(map(bool, correct))
    low, high = wilson_interval(right, len(correct))
    share = right / len(correct)
    return {
        "round": round_number,
        "accuracy": share,
        "low": low,
        "high": high,
        "questions": len(correct),
        "chance": 1 / responses_per_question,
    }
