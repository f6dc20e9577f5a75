"""What the best possible policy would reach: the ceiling that a tuned policy is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def optimal_value(log_reference: Float[Tensor, "*batch N"], rewards: Float[Tensor, "*batch N"], beta: float) -> Float[Tensor, "*batch"]:
    """The largest value that E[r] - beta * KL(policy || reference) can have.

        value = beta * log( sum over y of reference(y) * exp(r(y) / beta) )

    The partition function of Rafailov et al. 2023 (arXiv:2305.18290), eq. 4, in score units.

    Args:
        log_reference: log-probabilities of all N responses under the reference.
        rewards: r(x, y) of each.
        beta: weight of the KL, score units per nat, > 0.

    Returns:
        Score units. Between E_reference[r] (beta to infinity) and max r (beta to 0); equals r where r is constant.

    Raises:
        ValueError: ``beta`` is not positive.
    """
    _check_beta(beta)
    return beta * torch.logsumexp(log_reference + rewards / beta, dim=-1)


def optimal_policy(log_reference: Float[Tensor, "*batch N"], rewards: Float[Tensor, "*batch N"], beta: float) -> Float[Tensor, "*batch N"]:
    """Log-probabilities of the policy that attains ``optimal_value``.

        log policy(y) = log reference(y) + r(y) / beta - log Z

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 4. Arguments as ``optimal_value``; the probabilities sum to 1.

    Raises:
        ValueError: ``beta`` is not positive.
    """
    _check_beta(beta)
    return torch.log_softmax(log_reference + rewards / beta, dim=-1)


def reweighted_frontier(scores: Float[Tensor, "P S"], betas: Sequence[float]) -> list[tuple[float, float]]:
    """KL and score of the optimal policy for each beta, estimated from samples of the reference.

        weight[s] = softmax over s of (score[s] / beta)        per prompt
        KL        = sum over s of weight[s] * log(S * weight[s])
        score     = sum over s of weight[s] * score[s]         both averaged over prompts

    Self-normalised importance sampling of the optimal policy (``optimal_policy``) with the reference as proposal.

    Args:
        scores: of S responses per prompt, sampled from the reference.
        betas: weights of the KL, score units per nat, > 0. Smaller goes further out.

    Returns:
        (KL in nats per response, mean score) for each beta. A KL near its bound log S says that one sample carries all the weight:
        the estimate is then too low in both.

    Raises:
        ValueError: a beta is not positive.
    """
    scores = scores.double()
    frontier = []
    for beta in betas:
        _check_beta(beta)
        log_weights = torch.log_softmax(scores / beta, dim=-1)
        weights = log_weights.exp()
        kl = (weights * log_weights).sum(dim=-1) + math.log(scores.shape[-1])
        frontier.append((kl.mean().item(), (weights * scores).sum(dim=-1).mean().item()))
    return frontier


def best_of_n_frontier(
    scores: Float[Tensor, "P S"], ns: Sequence[int], values: Float[Tensor, "P S"] | None = None
) -> list[tuple[float, float]]:
    """KL and expected score of answering with the best of n samples of the reference.

        KL    = log n - (n - 1) / n
        score = sum over i of C(i - 1, n - 1) / C(S, n) * score of rank i      (rank 1 = lowest), averaged over prompts

    KL: Stiennon et al. 2020 (arXiv:2009.01325), appendix G.3; an upper bound where responses can repeat (Beirami et al. 2024,
    arXiv:2401.01879). Score: the exact mean of the maximum over all sets of n of the S samples (order statistics without
    replacement), so drawing adds no variance.

    Args:
        scores: of S responses per prompt, sampled from the reference.
        ns: 1 to S.
        values: what is averaged over the responses that the scores choose, such as the truth that a reward model stands for; None: the
            scores themselves.

    Returns:
        (KL in nats per response, expected score) for each n. n = 1 gives (0, mean), n = S the mean of the maxima.

    Raises:
        ValueError: an n is outside 1 to S.
    """
    ordered = (scores if values is None else values).double().gather(-1, scores.argsort(dim=-1))
    samples = ordered.shape[-1]
    frontier = []
    for n in ns:
        if not 1 <= n <= samples:
            raise ValueError(f"n is {n}; with {samples} samples per prompt it must be 1 to {samples}")
        # weight[S] = n / S and weight[i - 1] = weight[i] * (i - n) / (i - 1): ratios of neighbouring binomials, so nothing overflows.
        ranks = torch.arange(samples, 1, -1, dtype=torch.float64)
        ratios = torch.cat([torch.ones(1, dtype=torch.float64), (ranks - n).clamp(min=0) / (ranks - 1)])
        weights = (n / samples) * ratios.cumprod(dim=0).flip(0)
        frontier.append((math.log(n) - (n - 1) / n, (ordered @ weights).mean().item()))
    return frontier


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
