"""What is logged of a step by every method that samples: the same names and units, so that runs can be laid beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from humanward.maths.policy_losses import approx_kl, clip_fraction
from humanward.trainers.rollout import Rollout
from humanward.trainers.scoring import Scores
from humanward.trainers.updates import gather_rows


def rollout_metrics(rollout: Rollout, scores: Scores, kl: Float[Tensor, "B *K R"], kl_coef: float) -> dict[str, float]:
    """Of the episodes of a step. ``kl`` is log(pi / rho) of each token, 0 on pads; the logged KL is in nats per response."""
    sequence_kl = kl.sum(-1)
    responses, mask = rollout.responses.flatten(0, -2), scores.scored_mask.flatten(0, -2)
    return {
        "score": float(scores.scores.mean()),
        "kl": float(sequence_kl.mean()),
        "penalized_score": float((scores.scores - kl_coef * sequence_kl).mean()),
        "response_length": float(mask.sum(1).float().mean()),
        "repetition": float(repetition(responses, mask).mean()),
        "missing_truncation": float((~scores.found).float().mean()),
    }


@torch.no_grad()
def ratio_metrics(
    logprobs: Float[Tensor, "B *K R"], old_logprobs: Float[Tensor, "B *K R"], advantages: Float[Tensor, "B *K R"],
    mask: Bool[Tensor, "B *K R"], *, clip_range: float, share: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """How far a forward of an update is from the policy that sampled: parts for ``combined``.

    Means are weighted by ``share``, the micro-batch's part of the global minibatch; maxima are as they are.
    """
    ratio = torch.exp(logprobs - old_logprobs).where(mask, 1)
    return {
        "approx_kl": share * approx_kl(logprobs, old_logprobs, mask),
        "clip_fraction": share * clip_fraction(logprobs, old_logprobs, advantages, mask, clip_range=clip_range),
        "ratio_max": ratio.max(),
        "ratio_error": (ratio - 1).abs().max(),
    }


def combined(parts: Sequence[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """The parts of all micro-batches and processes as one: sums, and maxima of the names that begin with ``ratio``."""
    result: dict[str, float] = {}
    for name in parts[0]:
        largest = name.startswith("ratio")
        own = torch.stack([part[name] for part in parts])
        # careful: processes may have cut their shares into different numbers of parts.
        all_of_it = gather_rows(accelerator, own.amax(0, keepdim=True) if largest else own.sum(0, keepdim=True))
        result[name] = float(all_of_it.max() if largest else all_of_it.sum())
    return result


def repetition(responses: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, " B"]:
    """Share of a response's tokens that stand in it before; 0 for an empty one."""
    same = (responses[:, :, None] == responses[:, None, :]) & mask[:, None, :]
    before = torch.tril(same, diagonal=-1).any(-1) & mask
    return before.sum(1) / mask.sum(1).clamp(min=1)


def explained_variance(values: Float[Tensor, "B R"], rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> float:
    """1 - var(return - value) / var(return), over tokens, with undiscounted returns; 0 for a value head that knows nothing."""
    returns = rewards.flip(1).cumsum(1).flip(1)[mask]
    variance = returns.var(correction=0)
    return float(1 - (returns - values[mask]).var(correction=0) / variance) if variance > 0 else 0.0


def mean_of(parts: Sequence[dict[str, float]], *names: str) -> dict[str, float]:
    """Means over the updates of a step."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in names}
