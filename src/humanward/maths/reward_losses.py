"""Losses that fit a reward model to labels. One per kind of comparison."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def best_of_k_loss(scores: Float[Tensor, "B K"], best: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The labeler picked one of K responses: cross-entropy of the choice.

        loss = -log( exp(score[best]) / sum over k of exp(score[k]) )

    Ziegler et al. 2019 (arXiv:1909.08593), eq. 1.

    Args:
        scores: r(x, y_k) of the K responses of each question.
        best: index of the response that was picked, 0 to K - 1.

    Returns:
        Loss per question, nats; log K where all scores are equal. Not reduced.
    """
    return torch.logsumexp(scores, dim=-1) - scores.gather(-1, best[:, None]).squeeze(-1)


def pair_loss(chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"], *, margin: float = 0.0) -> Float[Tensor, " B"]:
    """The labeler preferred one of two responses (Bradley and Terry 1952).

        loss = -log sigmoid(chosen_scores - rejected_scores - margin)

    Stiennon et al. 2020 (arXiv:2009.01325), section 3.4; the margin is that of Touvron et al. 2023 (arXiv:2307.09288), eq. 2.

    Args:
        chosen_scores: r(x, y) of the preferred response.
        rejected_scores: of the other one.
        margin: by how much the chosen score should lead, score units.

    Returns:
        Loss per pair, nats; log 2 where the scores are equal and the margin is 0. Not reduced.
    """
    return torch.nn.functional.softplus(rejected_scores - chosen_scores + margin)
