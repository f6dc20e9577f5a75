"""Losses of methods that know one advantage per response: ratios of responses or of tokens, and how a response's length counts."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from humanward.maths.policy_losses import ppo_clip_loss

Average = Literal["sum", "response", "batch", "fixed"]


def sequence_clip_loss(
    logprobs: Float[Tensor, "N R"],
    old_logprobs: Float[Tensor, "N R"],
    advantages: Float[Tensor, " N"],
    response_mask: Bool[Tensor, "N R"],
    *,
    clip_range: float,
) -> Float[Tensor, " N"]:
    """Clipped surrogate loss where a whole response is one action.

        ratio = exp(sum over t of logprobs[t] - old_logprobs[t])
        loss  = max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range))

    Ahmadian et al. 2024 (arXiv:2402.14740), section 3.1: a language model's environment is a bandit, whose arm is the response. On samples
    of the policy itself its gradient is that of REINFORCE, -A * grad log pi(y|x).

    Args:
        logprobs: log pi of the sampled tokens under the policy being trained.
        old_logprobs: the same under the policy that sampled them.
        advantages: of each response. Positive raises its probability.
        response_mask: True = real token.
        clip_range: how far the ratio of the response may leave 1 before its gradient stops, > 0. Usually 0.2.

    Returns:
        Loss per response, -A where the policies agree.
    """
    whole = [x.where(response_mask, 0).sum(dim=1, keepdim=True) for x in (logprobs, old_logprobs)]
    return ppo_clip_loss(whole[0], whole[1], advantages[:, None], clip_range=clip_range)[:, 0]


def length_divisor(lengths: Float[Tensor, " N"], average: Average, *, mean_length: float, response_length: int) -> Float[Tensor, " N"]:
    """What the sum over a response's tokens is divided by before the mean over responses is taken.

        sum       1                 every token counts the same, and a batch's loss grows with its lengths (REINFORCE)
        response  |y|               every response counts the same (GRPO: Shao et al. 2024, arXiv:2402.03300, eq. 3)
        batch     mean |y|          every token counts the same: the mean over all tokens (Ziegler et al. 2019; DAPO: Yu et al. 2025)
        fixed     response_length   every token counts the same in every batch (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, section 3.2)

    careful: with ``response`` a token of a long wrong response is punished less than one of a short wrong one, so that wrong responses
    grow (Liu et al. 2025, section 3.1).

    Args:
        lengths: real tokens of each response, |y|.
        average: one of the four.
        mean_length: over the whole batch of the update, not this part of it.
        response_length: the most tokens that a response may have.

    Returns:
        Tokens, > 0: a response without tokens is divided by 1.
    """
    if average == "response":
        return lengths.clamp(min=1)
    constant = {"sum": 1.0, "batch": mean_length, "fixed": float(response_length)}[average]
    return torch.full_like(lengths, max(constant, 1.0))


def over_tokens(x: Float[Tensor, "N R"], response_mask: Bool[Tensor, "N R"], divisor: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Sum over the real tokens of each response, over its ``length_divisor``. What padded slots hold does not matter."""
    return x.where(response_mask, 0).sum(dim=1) / divisor
