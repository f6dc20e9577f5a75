"""The terms of PPO's loss that a setting chooses: one function for each surrogate, and the KL to both policies that it must stay near."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from humanward.maths.kl import kl_estimate
from humanward.maths.policy_losses import dual_clipped, ppo_clip_loss, ratio_loss, rollback_loss, trust_region_loss
from humanward.models import ResponseOutputs
from humanward.trainers.ppo_config import PPOConfig
from humanward.trainers.rollout import Rollout

Surrogate = Callable[[ResponseOutputs, Rollout, Tensor, PPOConfig], Tensor]
"""(outputs of the policy as it is now, the episodes, their advantages, settings) -> loss per token."""


def _trust_region(outputs: ResponseOutputs, r: Rollout, advantages: Tensor, c: PPOConfig, **slope: float) -> Tensor:
    assert outputs.kl_from is not None
    return trust_region_loss(outputs.logprobs, r.logprobs, advantages, outputs.kl_from.detach(), kl_limit=c.trust_region_kl, **slope)


SURROGATES: dict[str, Surrogate] = {
    "clip": lambda o, r, a, c: ppo_clip_loss(o.logprobs, r.logprobs, a, clip_range=c.clip_range),
    "rollback": lambda o, r, a, c: rollback_loss(o.logprobs, r.logprobs, a, clip_range=c.clip_range, slope=c.rollback_slope),
    "trust_region": _trust_region,
    "trust_region_rollback": lambda o, r, a, c: _trust_region(o, r, a, c, slope=c.rollback_slope),
    "ratio": lambda o, r, a, c: ratio_loss(o.logprobs, r.logprobs, a),
}


def policy_loss(outputs: ResponseOutputs, r: Rollout, advantages: Float[Tensor, "B R"], c: PPOConfig) -> Float[Tensor, "B R"]:
    """The surrogate of the settings, per token."""
    losses = SURROGATES[c.surrogate](outputs, r, advantages, c)
    return losses if c.dual_clip is None else dual_clipped(losses, advantages, limit=c.dual_clip)


def old_kl(outputs: ResponseOutputs, r: Rollout) -> Float[Tensor, "B R"]:
    """KL(the policy that sampled || the policy), nats per token: over the vocabulary where that is known, else k3 of the sampled token.

    Both are unbiased, gradient included, since the tokens are the sampling policy's own.
    """
    return kl_estimate(r.logprobs, outputs.logprobs, "k3") if outputs.kl_from is None else outputs.kl_from


def reference_kl(outputs: ResponseOutputs, r: Rollout, c: PPOConfig) -> Float[Tensor, "B R"]:
    """KL(the policy || the reference), nats per token, by the settings' estimator. The sampled tokens are taken as the policy's own."""
    if c.kl_estimator == "full":
        assert outputs.kl_to is not None
        return outputs.kl_to
    return kl_estimate(outputs.logprobs, r.reference_logprobs.where(r.response_mask, 0), c.kl_estimator)


def needs_distributions(c: PPOConfig) -> bool:
    """Whether the distributions that were sampled from must be kept for the updates."""
    return c.surrogate.startswith("trust_region")


def needs_reference_distributions(c: PPOConfig) -> bool:
    """Whether the reference's distributions must be kept."""
    return c.kl_estimator == "full"
