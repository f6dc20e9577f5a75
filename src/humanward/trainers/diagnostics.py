"""What is logged of a step by every method that samples: the same names and units, so that runs can be laid beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from humanward.maths.kl import kl_estimate
from humanward.maths.masks import masked_mean
from humanward.maths.policy_losses import approx_kl, clip_fraction
from humanward.trainers.rollout import Rollout
from humanward.trainers.scoring import Scores
from humanward.trainers.updates import gather_rows

LARGEST = ("ratio_max", "ratio_error", "old_kl_max")
"""Metrics of an update of which the largest counts; of all others, the sum of shares."""


def rollout_metrics(rollout: Rollout, scores: Scores, kl: Float[Tensor, "B *K R"], kl_coef: float) -> dict[str, float]:
    """Of the episodes of a step. ``kl`` is log(pi / rho) of each token, 0 on pads.

    kl: to the reference, nats per response. kl_per_token: mean over the tokens. kl_token_max: the largest, by k3, which is not negative.
    """
    sequence_kl, tokens = kl.sum(-1), rollout.response_mask.sum()
    responses, mask = rollout.responses.flatten(0, -2), scores.scored_mask.flatten(0, -2)
    return {
        "score": float(scores.scores.mean()),
        "kl": float(sequence_kl.mean()),
        "kl_per_token": float(sequence_kl.sum() / tokens.clamp(min=1)),
        "kl_token_max": float(kl_estimate(kl, torch.zeros_like(kl), "k3").max()),
        "penalized_score": float((scores.scores - kl_coef * sequence_kl).mean()),
        "response_length": float(mask.sum(1).float().mean()),
        "repetition": float(repetition(responses, mask).mean()),
        "missing_truncation": float((~scores.found).float().mean()),
    } | {f"score/{name}": float(term.mean()) for name, term in scores.terms.items()}


@torch.no_grad()
def ratio_metrics(
    logprobs: Float[Tensor, "B *K R"], old_logprobs: Float[Tensor, "B *K R"], advantages: Float[Tensor, "B *K R"],
    mask: Bool[Tensor, "B *K R"], *, clip_range: float, share: Tensor, old_kl: Float[Tensor, "B *K R"] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """How far a forward of an update is from the policy that sampled: parts for ``combined``.

    Means are weighted by ``share``, the micro-batch's part of the global minibatch; maxima are as they are. ``old_kl`` is
    KL(sampling policy || policy) of each token; None: k3 of the sampled one.
    """
    ratio = torch.exp(logprobs - old_logprobs).where(mask, 1)
    old_kl = (kl_estimate(old_logprobs, logprobs, "k3") if old_kl is None else old_kl).where(mask, 0)
    return {
        "approx_kl": share * approx_kl(logprobs, old_logprobs, mask),
        "clip_fraction": share * clip_fraction(logprobs, old_logprobs, advantages, mask, clip_range=clip_range),
        "out_of_range": share * masked_mean(((ratio - 1).abs() > clip_range).float(), mask),
        "ratio_mean": share * masked_mean(ratio, mask),
        "ratio_max": ratio.max(),
        "ratio_error": (ratio - 1).abs().max(),
        "old_kl": share * masked_mean(old_kl, mask),
        "old_kl_max": old_kl.max(),
    }


def combined(parts: Sequence[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """The parts of all micro-batches and processes as one: sums, and of ``LARGEST`` the largest."""
    result: dict[str, float] = {}
    for largest in (False, True):
        names = [name for name in parts[0] if (name in LARGEST) == largest]
        if not names:
            continue
        own = torch.stack([torch.stack([part[name].float() for name in names]) for part in parts])
        # careful: processes may have cut their shares into different numbers of parts.
        everyones = gather_rows(accelerator, own.amax(0, keepdim=True) if largest else own.sum(0, keepdim=True))
        result |= dict(zip(names, (everyones.amax(0) if largest else everyones.sum(0)).tolist(), strict=True))
    return result


def update_metrics(updates: Sequence[dict[str, float]], epochs: Sequence[int]) -> dict[str, float]:
    """Of the updates of a step, ``epochs`` being the pass over the episodes that each belongs to: means, maxima, the KL pass by pass."""
    means = (
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "out_of_range",
        "ratio_mean",
        "old_kl",
        "ptx_loss",
        "grad_norm",
    )
    metrics = mean_of(updates, *means)
    metrics |= {name: max(u[name] for u in updates) for name in ("ratio_max", "old_kl_max")}
    for epoch in sorted(set(epochs)):
        in_pass = [update for update, its_epoch in zip(updates, epochs, strict=True) if its_epoch == epoch]
        metrics[f"old_kl_epoch_{epoch + 1}"] = mean_of(in_pass, "old_kl")["old_kl"]
    metrics |= {"first_ratio_error": updates[0]["ratio_error"], "lr": updates[-1]["lr"], "skipped": sum(u["skipped"] for u in updates)}
    return metrics | {"updates": float(sum("stopped" not in u for u in updates))}


def repetition(responses: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, " B"]:
    """Share of a response's tokens that stand in it before; 0 for an empty one."""
    ordered = responses.masked_fill(~mask, -1).sort(1).values
    again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return again.sum(1) / mask.sum(1).clamp(min=1)


def explained_variance(values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> float:
    """1 - var(return - value) / var(return), over tokens; 0 for values that know nothing."""
    values, returns = values[mask], returns[mask]
    variance = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 0 else 0.0


def mean_of(parts: Sequence[dict[str, float]], *names: str) -> dict[str, float]:
    """Means over the updates of a step that have the metric."""
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}
