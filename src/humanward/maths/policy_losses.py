"""Losses that move the policy toward higher advantage, and the two numbers that say how far one update moved it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from humanward.maths.masks import masked_mean


def ppo_clip_loss(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    *,
    clip_range: float,
) -> Float[Tensor, "B R"]:
    """Clipped surrogate loss of proximal policy optimisation, per token.

        ratio = exp(logprobs - old_logprobs)
        loss  = max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range))

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7, with the sign of a loss.

    Args:
        logprobs: log pi of the sampled tokens under the policy being trained.
        old_logprobs: the same under the policy that sampled them.
        advantages: score units (or whitened). Positive raises the token's probability.
        clip_range: how far the ratio may leave 1 before its gradient stops, > 0. Usually 0.2.

    Returns:
        Loss per token, -A where the policies agree. Not reduced: only the caller knows the mask and the global batch.
    """
    unclipped, clipped = _surrogates(logprobs, old_logprobs, advantages, clip_range)
    return torch.maximum(unclipped, clipped)


def clip_fraction(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_range: float,
) -> Float[Tensor, ""]:
    """Share of real tokens whose loss is the clipped one, 0 to 1; 0 where the policies agree.

    As ``policy/clipfrac`` of lm-human-preferences: a ratio outside the range counts only on the side that its advantage pushes it to.
    """
    unclipped, clipped = _surrogates(logprobs, old_logprobs, advantages, clip_range)
    return masked_mean((clipped > unclipped).to(logprobs.dtype), response_mask)


def approx_kl(logprobs: Float[Tensor, "B R"], old_logprobs: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]) -> Float[Tensor, ""]:
    """Half the mean squared change of the real tokens' log-probabilities, nats per token: ``policy/approxkl`` of lm-human-preferences."""
    return 0.5 * masked_mean((logprobs - old_logprobs).square(), response_mask)


def _surrogates(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    ratio = torch.exp(logprobs - old_logprobs)
    return -advantages * ratio, -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
