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


def ratio_loss(
    logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The surrogate without a limit, per token, to be held by a KL penalty: loss = -A * ratio.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 6, with the sign of a loss. Arguments as ``ppo_clip_loss``.
    """
    return -advantages * torch.exp(logprobs - old_logprobs)


def rollback_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip_range: float,
    slope: float,
) -> Float[Tensor, "*shape"]:
    """PPO-RB: outside the clip range, the slope of the surrogate turns and pulls the ratio back, where clipping only lets go of it.

        F(ratio) = -slope * ratio + (1 + slope) * (1 + clip_range)      where ratio >= 1 + clip_range
                   -slope * ratio + (1 + slope) * (1 - clip_range)      where ratio <= 1 - clip_range
                   ratio                                                between
        loss     = max(-A * ratio, -A * F(ratio))

    Wang et al. 2019 (arXiv:1903.07940), eq. 11, with the sign of a loss.

    Args:
        logprobs: log pi of the sampled tokens under the policy being trained.
        old_logprobs: the same under the policy that sampled them.
        advantages: as for ``ppo_clip_loss``.
        clip_range: how far the ratio may leave 1, > 0. Usually 0.2.
        slope: strength of the pull, > 0; 0 would be clipping. Usually 0.3.

    Returns:
        Loss per token; continuous, -A where the policies agree. Not reduced.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    edge = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    rolled_back = torch.where(ratio == edge, ratio, -slope * ratio + (1.0 + slope) * edge)
    return torch.maximum(-advantages * ratio, -advantages * rolled_back)


def trust_region_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    kl: Float[Tensor, "*shape"],
    *,
    kl_limit: float,
    slope: float | None = None,
) -> Float[Tensor, "*shape"]:
    """TR-PPO: a token's gradient stops not where its ratio, but where its state's KL leaves the trust region.

        F(ratio) = 1 where kl >= kl_limit, else ratio
        loss     = max(-A * ratio, -A * F(ratio))

    Wang et al. 2019 (arXiv:1903.07940), eq. 13 to 15, with the sign of a loss; without the maximum it "performs extremely badly". With
    ``slope`` it is TR-PPO-RB (eq. 16): what TR-PPO would stop is pulled back instead,

        loss     = slope * A * ratio where kl >= kl_limit and A * ratio > A, else -A * ratio

    the condition being that of the authors' code (ppo2_AdaClip, kl_ratiorollback); eq. 16 as a maximum would not stop negative advantages.

    Args:
        logprobs: log pi of the sampled tokens under the policy being trained.
        old_logprobs: the same under the policy that sampled them.
        advantages: as for ``ppo_clip_loss``.
        kl: KL(sampling policy || policy) of the next-token distribution at each token, nats, without gradient.
        kl_limit: how far a state may go, nats, > 0. Usually 0.025; 0.03 with ``slope``.
        slope: strength of the pull, > 0, usually 0.05; None: TR-PPO.

    Returns:
        Loss per token, -A where the policies agree. Not reduced.
    """
    gain = advantages * torch.exp(logprobs - old_logprobs)
    stopped = (kl >= kl_limit) & (gain > advantages)
    return torch.where(stopped, -advantages if slope is None else slope * gain, -gain)


def dual_clipped(losses: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], *, limit: float) -> Float[Tensor, "*shape"]:
    """Dual clip: however likely a bad token has become, its loss is no larger than ``limit`` times the advantage.

        loss = min(loss, -limit * A)      where A < 0

    Ye et al. 2020 (arXiv:1912.09729), dual-clip PPO, with the sign of a loss. ``ppo_clip_loss`` grows without bound there.

    Args:
        losses: of any surrogate, per token.
        advantages: the same that gave them.
        limit: largest ratio that counts, > 1. Usually 3.

    Returns:
        Losses per token, those of positive advantages as they were.
    """
    return torch.where(advantages < 0, torch.minimum(losses, -limit * advantages), losses)


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
