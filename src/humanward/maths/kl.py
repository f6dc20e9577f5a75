"""How far the policy is from its reference, and the controller that holds it there. Everything in nats."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def kl_estimate(
    logprobs: Float[Tensor, "*shape"],
    reference_logprobs: Float[Tensor, "*shape"],
    estimator: Literal["k1", "k2", "k3"],
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

        logratio = logprobs - reference_logprobs
        k1 = logratio        k2 = logratio^2 / 2        k3 = exp(-logratio) - 1 + logratio

    Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html). k1 is the penalty of Ziegler et al. 2019
    (arXiv:1909.08593), eq. 2.

    Args:
        logprobs: log pi of the sampled tokens.
        reference_logprobs: log rho of the same tokens.
        estimator: k1 is unbiased and may be negative; k2 is biased, >= 0, of low variance; k3 is unbiased and >= 0. That is their value.
            As a loss on tokens that the policy has just sampled, k1 has no gradient on average, k2 that of KL(policy || reference), k3
            that of KL(reference || policy). As a part of the reward, k1 has that of KL(policy || reference), and k3 the difference of
            the two, which vanishes near the reference.

    Returns:
        Nats per token; 0 where policy and reference agree. For logratio = log 2: k1 = 0.6931, k2 = 0.2402, k3 = 0.1931.

    Raises:
        ValueError: another ``estimator``.
    """
    logratio = logprobs - reference_logprobs
    if estimator == "k1":
        return logratio
    if estimator == "k2":
        return 0.5 * logratio.square()
    if estimator == "k3":
        return torch.expm1(-logratio) + logratio
    raise ValueError(f"estimator is {estimator!r}; use 'k1', 'k2' or 'k3'")


def adapted_kl_coef(kl_coef: float, kl: float, *, kl_target: float, batch_size: int, horizon: int = 10_000, clip: float = 0.2) -> float:
    """The next KL coefficient of the proportional controller.

        kl_coef <- kl_coef * (1 + clip(kl / kl_target - 1, -clip, clip) * batch_size / horizon)

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, in the form of the released code (AdaptiveKLController),
    where batch_size / horizon stands for the paper's K_beta.

    Args:
        kl_coef: the coefficient with which the batch was trained.
        kl: measured KL of that batch, nats per response as in 2019 (summed over tokens, averaged over responses), or nats per token.
        kl_target: wanted KL in the same unit, > 0. A KL above it raises the coefficient.
        batch_size: responses in the batch, over all processes.
        horizon: responses after which a full error would have changed the coefficient by ``clip``; larger is slower.
        clip: largest relative error that counts.

    Returns:
        The new coefficient. 0.15 at KL 12, target 6, batch 512 becomes 0.15 * (1 + 0.2 * 0.0512) = 0.151536.

    Raises:
        ValueError: ``kl_target`` or ``horizon`` is not positive.
    """
    if kl_target <= 0 or horizon <= 0:
        raise ValueError(f"kl_target and horizon must be positive, not {kl_target} and {horizon}")
    error = min(max(kl / kl_target - 1.0, -clip), clip)
    return kl_coef * (1.0 + error * batch_size / horizon)


def doubled_or_halved_kl_coef(kl_coef: float, kl: float, *, kl_target: float) -> float:
    """The next coefficient of the KL penalty toward the policy that sampled.

        kl_coef / 2   where kl < kl_target / 1.5
        kl_coef * 2   where kl > kl_target * 1.5
        kl_coef       between

    Schulman et al. 2017 (arXiv:1707.06347), section 4.

    Args:
        kl_coef: the coefficient with which the batch was trained, > 0.
        kl: KL(sampling policy || policy) after the updates on that batch, nats per token.
        kl_target: wanted KL per batch, in the same unit, > 0.

    Returns:
        The new coefficient. 0.2 at KL 0.02, target 0.01 becomes 0.4; at KL 0.006, 0.1.

    Raises:
        ValueError: ``kl_target`` is not positive.
    """
    if kl_target <= 0:
        raise ValueError(f"kl_target must be positive, not {kl_target}")
    return kl_coef / 2 if kl < kl_target / 1.5 else kl_coef * 2 if kl > kl_target * 1.5 else kl_coef
