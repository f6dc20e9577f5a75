"""Losses that fit a reward model to labels. One per kind of comparison."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Real
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


def choice_loss(scores: Float[Tensor, "B K"], probabilities: Float[Tensor, "B K"], *, noise: float = 0.0) -> Float[Tensor, " B"]:
    """The labeler said how likely each response is the best one: cross-entropy of that distribution.

        loss = -sum over k of probability[k] * log( (1 - noise) * exp(score[k]) / sum over j of exp(score[j]) + noise / K )

    One-hot probabilities give ``best_of_k_loss``; [1/2, 1/2] is a tie (Christiano et al. 2017, arXiv:1706.03741, section 2.2.3, where the
    noise is 0.1).

    Args:
        scores: r(x, y_k) of the K responses of each question.
        probabilities: they sum to 1.
        noise: share of answers thought to be given blindly, 0 <= noise < 1. Larger forgives a wrong label more: no label costs more than
            log(K / noise), and its gradient fades.

    Returns:
        Loss per question, nats; log K where all scores are equal. Not reduced.

    Raises:
        ValueError: ``noise`` is not in [0, 1).
    """
    _check_noise(noise)
    if noise == 0:
        return torch.logsumexp(scores, dim=-1) - (probabilities * scores).sum(-1)
    return -(probabilities * _noisy(scores.log_softmax(-1), noise, scores.shape[-1])).sum(-1)


def all_pairs_loss(
    scores: Float[Tensor, "B K"], ranks: Real[Tensor, "B K"], *, margin: float = 0.0, noise: float = 0.0
) -> Float[Tensor, " B"]:
    """The labeler ordered K responses: the mean of ``pair_loss`` over all pairs.

        loss = 1 / C(K, 2) * sum over pairs with rank[i] < rank[j] of -log sigmoid(score[i] - score[j])

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 1: a ranking is one element of the batch, its pairs are not spread over several. Equal
    ranks count as half a pair each way.

    Args:
        scores: r(x, y_k) of the K >= 2 responses of each question.
        ranks: 0 is best; equal ranks are ties.
        margin: by how much the better one of a pair should lead, score units; none between tied ones.
        noise: share of pairs thought to be ordered blindly, as in ``choice_loss``.

    Returns:
        Loss per question, nats; log 2 where all scores are equal and the margin is 0. Not reduced.

    Raises:
        ValueError: ``noise`` is not in [0, 1).
    """
    _check_noise(noise)
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1, device=scores.device)
    order = (ranks[:, second] - ranks[:, first]).sign()
    lead = scores[:, first] - scores[:, second] - margin * order
    preferred = (0.5 + 0.5 * order).to(lead.dtype)
    if noise == 0:
        return torch.nn.functional.binary_cross_entropy_with_logits(lead, preferred, reduction="none").mean(-1)
    first_wins, second_wins = (_noisy(torch.nn.functional.logsigmoid(x), noise, 2) for x in (lead, -lead))
    return -(preferred * first_wins + (1 - preferred) * second_wins).mean(-1)


def pair_loss(
    chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"], *, margin: float | Float[Tensor, " B"] = 0.0
) -> Float[Tensor, " B"]:
    """The labeler preferred one of two responses (Bradley and Terry 1952).

        loss = -log sigmoid(chosen_scores - rejected_scores - margin)

    Stiennon et al. 2020 (arXiv:2009.01325), section 3.4; the margin is that of Touvron et al. 2023 (arXiv:2307.09288), eq. 2.

    Args:
        chosen_scores: r(x, y) of the preferred response.
        rejected_scores: of the other one.
        margin: by how much the chosen score should lead, score units; one for all pairs, or one for each.

    Returns:
        Loss per pair, nats; log 2 where the scores are equal and the margin is 0. Not reduced.
    """
    return torch.nn.functional.softplus(rejected_scores - chosen_scores + margin)


def rating_loss(scores: Float[Tensor, " B"], ratings: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The labeler rated one response: the squared error.

        loss = (score - rating)^2

    lm-human-preferences (Ziegler et al. 2019), ``label_types.py``, scalar ratings.

    Args:
        scores: r(x, y).
        ratings: in score units.

    Returns:
        Loss per response, score units squared; 0 where they are equal. Not reduced.
    """
    return (scores - ratings).square()


def difference_loss(scores: Float[Tensor, "B 2"], differences: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The labeler said how much better the first of two responses is: the squared error.

        loss = (score[0] - score[1] - difference)^2

    lm-human-preferences (Ziegler et al. 2019), ``label_types.py``, scalar comparisons, where the difference is second minus first.

    Args:
        scores: r(x, y_k) of both responses.
        differences: first minus second, score units; negative where the second is better.

    Returns:
        Loss per pair, score units squared; 0 where they are equal. Not reduced.
    """
    return (scores[:, 0] - scores[:, 1] - differences).square()


def binary_loss(scores: Float[Tensor, " B"], liked: Float[Tensor, " B"], *, noise: float = 0.0) -> Float[Tensor, " B"]:
    """The labeler liked one response, or did not: the score is the log-odds that it is liked.

        loss = -log( (1 - noise) * sigmoid(score) + noise / 2 )  where it was liked, and of sigmoid(-score) where it was not

    Logistic regression. Jung et al. 2024 (arXiv:2404.04656): it bounds from above the loss of the pairs that could be made of liked and
    disliked responses.

    Args:
        scores: r(x, y).
        liked: 1 where the response was liked, 0 where it was not; between both, the probability of it.
        noise: share of answers thought to be given blindly, as in ``choice_loss``.

    Returns:
        Loss per response, nats; log 2 where the score is 0. Not reduced.

    Raises:
        ValueError: ``noise`` is not in [0, 1).
    """
    _check_noise(noise)
    if noise == 0:
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, liked, reduction="none")
    good, bad = (_noisy(torch.nn.functional.logsigmoid(x), noise, 2) for x in (scores, -scores))
    return -(liked * good + (1 - liked) * bad)


def _noisy(logprobs: Tensor, noise: float, K: int) -> Tensor:
    """log( (1 - noise) * probability + noise / K ), without leaving the logarithm."""
    return torch.logaddexp(logprobs + math.log1p(-noise), logprobs.new_tensor(math.log(noise / K)))


def _check_noise(noise: float) -> None:
    if not 0 <= noise < 1:
        raise ValueError(f"noise must be at least 0 and below 1, not {noise}")
