"""Advantages and returns of sampled responses."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation over each response.

        delta[t]     = rewards[t] + gamma * values[t + 1] - values[t]
        advantage[t] = delta[t] + gamma * gae_lambda * advantage[t + 1]
        return[t]    = advantage[t] + values[t]

    Schulman et al. 2016 (arXiv:1506.02438), eq. 16, on episodes that end: value and advantage after the last real token are 0.

    Args:
        rewards: per token, score units; the score is on the last real token.
        values: value of the state before each token, score units.
        response_mask: True = real token. The real tokens of a row are contiguous.
        gamma: discount, 0 to 1; 1 for language (Ziegler et al. 2019).
        gae_lambda: 0 = one-step error (biased by the values), 1 = whole return (high variance). Usually 0.95.

    Returns:
        Advantages and returns, 0 on pads. With gamma = gae_lambda = 1 a return is the sum of the rewards from there to the end.
    """
    rewards, values = rewards.where(response_mask, 0), values.where(response_mask, 0)
    advantage = next_value = torch.zeros_like(values[:, 0])
    reversed_advantages = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * gae_lambda * advantage).where(response_mask[:, t], 0)
        next_value = values[:, t]
        reversed_advantages.append(advantage)
    advantages = torch.stack(reversed_advantages[::-1], dim=1)
    return advantages, advantages + values


def leave_one_out_advantage(scores: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Advantage of each response over the mean of the others to its prompt.

        A[k] = r[k] - 1 / (K - 1) * sum over j != k of r[j]

    RLOO: Ahmadian et al. 2024 (arXiv:2402.14740), eq. 8, after Kool et al. 2019. The baseline of a response does not contain it, so the
    gradient is unbiased at any K.

    Args:
        scores: r(x, y) of K >= 2 responses to each of B prompts, less the KL penalty where that is part of the reward.

    Returns:
        Score units; 0 where all responses score the same. K / (K - 1) times the score less the group's mean.

    Raises:
        ValueError: K is 1: there are no others.
    """
    K = _group_size(scores)
    return (scores - scores.mean(dim=1, keepdim=True)) * (K / (K - 1))


def group_advantage(scores: Float[Tensor, "B K"], *, scale: bool, epsilon: float = 1e-4) -> Float[Tensor, "B K"]:
    """Advantage of each response relative to its group.

        A[k] = r[k] - mean(r)                               Dr. GRPO: Liu et al. 2025 (arXiv:2503.20783), section 3.2
        A[k] = (r[k] - mean(r)) / (std(r) + epsilon)        GRPO: Shao et al. 2024 (arXiv:2402.03300), section 4.1.2

    careful: the deviation weights prompts: one on which all but one response score the same counts as much as one on which they differ a
    lot, and a group of equal scores up to rounding is blown up but for epsilon. Both means contain the response itself, so that these
    advantages are (K - 1) / K of the unbiased ones.

    Args:
        scores: r(x, y) of K >= 2 responses to each of B prompts.
        scale: divide by the group's deviation.
        epsilon: added to the deviation, score units; 1e-4 as TRL has it, the paper has none.

    Returns:
        Score units, or deviations where ``scale``; 0 where all responses score the same. The deviation is over K - 1, as in TRL and verl.

    Raises:
        ValueError: K is 1: a group of one has neither others nor a deviation.
    """
    _group_size(scores)
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / (scores.std(dim=1, keepdim=True, correction=1) + epsilon) if scale else centred


def _group_size(scores: Tensor) -> int:
    if scores.shape[1] < 2:
        raise ValueError(f"a group needs 2 responses or more to one prompt, not {scores.shape[1]}")
    return scores.shape[1]
