"""Give a reward model's scores a known mean and scale, so that the KL coefficient keeps its meaning."""

from __future__ import annotations


def gain_and_bias(mean: float, std: float, *, target_mean: float = 0.0, target_std: float = 1.0) -> tuple[float, float]:
    """Gain and bias that bring scores with ``mean`` and ``std`` to the target: score = gain * raw + bias.

        gain = target_std / std        bias = target_mean - gain * mean

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2; lm-human-preferences, ``rewards.py``.

    Args:
        mean: of the raw scores (gain 1, bias 0) of responses that the reference wrote.
        std: their standard deviation, > 0.
        target_mean: wanted mean of the scores.
        target_std: wanted standard deviation, > 0.

    Returns:
        (gain, bias). Mean 3 and std 2 give (0.5, -1.5).

    Raises:
        ValueError: a standard deviation is not positive: all scores are equal and no gain can spread them.
    """
    if not (std > 0 and target_std > 0):
        raise ValueError(f"std and target_std must be positive, not {std} and {target_std}; are all scores equal?")
    gain = target_std / std
    return gain, target_mean - gain * mean
