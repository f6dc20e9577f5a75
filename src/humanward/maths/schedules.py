"""How the learning rate falls and the labels arrive: pure functions of the position in the run. No torch."""

from __future__ import annotations

import math


def warmup_share(step: int, warmup: int) -> float:
    """Share of the full learning rate in a linear rise over ``warmup`` steps, (step + 1) / (warmup + 1); 1 behind it."""
    return min(1.0, (step + 1) / (warmup + 1))


def linear_to_zero(step: int, total: int, warmup: int = 0) -> float:
    """Share of the full learning rate at optimiser step ``step`` (from 0) of ``total``, never below 0.

        step < warmup:  (step + 1) / (warmup + 1)
        otherwise:      1 - (step - warmup) / (total - warmup)

    lm-human-preferences anneals policy and reward model so, without a rise: the first step has the full rate, the last 1 / total.
    """
    if step < warmup:
        return warmup_share(step, warmup)
    return max(0.0, 1.0 - (step - warmup) / (total - warmup)) if total > warmup else 0.0


def cosine(step: int, total: int, warmup: int) -> float:
    """Share of the full learning rate: a linear rise over ``warmup`` steps, then half a cosine to 0.

        step < warmup:  (step + 1) / (warmup + 1)
        otherwise:      (1 + cos(pi * (step - warmup) / (total - warmup))) / 2

    Loshchilov and Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts. No step, not even the first, has rate 0.

    Args:
        step: optimiser step, from 0.
        total: steps in the run.
        warmup: steps that rise, 0 to ``total``.

    Returns:
        0 to 1; 1 at ``step == warmup``, 0 from ``total`` on.
    """
    if step < warmup:
        return warmup_share(step, warmup)
    if step >= total:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def labels_required(episode: int, episodes: int, initial: int, total: int) -> int:
    """Labels that must have been collected before an episode may start, in online collection.

        l(i) = N0 + (N - N0) * (1 - (1 - i / N_pi)^2), rounded up

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.3: many labels early, when the policy moves most.

    Args:
        episode: i, from 0; behind the last episode nothing more is required.
        episodes: N_pi, episodes in the run, > 0.
        initial: N0, labels before the first episode.
        total: N, labels in the whole run, >= ``initial``.

    Returns:
        A count between ``initial`` and ``total``. Half-way, three quarters of the later labels: l(50 of 100, 0, 100) = 75.
    """
    remaining = max(0, episodes - episode)
    # Whole numbers throughout: a float would round 75.00000000000001 up to 76.
    later = (total - initial) * (episodes**2 - remaining**2)
    return initial - (-later // episodes**2)
