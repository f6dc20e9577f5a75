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
