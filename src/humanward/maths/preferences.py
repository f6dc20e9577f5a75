"""What the losses of direct methods read: compared pairs, single judged responses, and the parts that several methods share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from humanward.maths.reward_losses import choice_loss

Divergence = Callable[[Tensor], Tensor]
"""log(pi / rho) -> f'(pi / rho), up to a constant."""
_LARGEST_EXPONENT = 80.0
"""Its exponential is still a float32."""


def reverse_kl(logratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """f(u) = u log u, so f'(u) = log u: DPO itself (Rafailov et al. 2023)."""
    return logratio


def forward_kl(logratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The forward KL: mass where the reference has it.

        f(u) = -log u, so f'(u) = 1 - 1 / u

    Wang et al. 2023 (arXiv:2309.16240), table 1; 1 is added so that it is 0 at u = 1.
    """
    return 1 - (-logratio).clamp(max=_LARGEST_EXPONENT).exp()


def jensen_shannon(logratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The Jensen-Shannon divergence: between the two KLs.

        f'(u) = log(2u / (1 + u))

    Wang et al. 2023 (arXiv:2309.16240), table 1.
    """
    return math.log(2) + torch.nn.functional.logsigmoid(logratio)


def alpha_divergence(logratio: Float[Tensor, "*shape"], *, alpha: float = 0.5) -> Float[Tensor, "*shape"]:
    """The alpha divergences, from one KL to the other.

        f'(u) = (1 - u^-alpha) / alpha

    Wang et al. 2023 (arXiv:2309.16240), table 1.

    Args:
        logratio: log(pi / rho), nats.
        alpha: 0 < alpha < 1; toward 0 it is the reverse KL, toward 1 the forward KL. 1 - alpha is TRL's coefficient.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    return -(-alpha * logratio).clamp(max=_LARGEST_EXPONENT).expm1() / alpha


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js": jensen_shannon,
    "alpha": alpha_divergence,
}


def divergence(name: str, alpha: float | None = None) -> Divergence:
    """One of ``DIVERGENCES``; ``alpha`` is read by the alpha divergence only."""
    return partial(alpha_divergence, alpha=alpha) if name == "alpha" and alpha is not None else DIVERGENCES[name]


@dataclass(frozen=True)
class Pairs:
    """N compared pairs: what a loss of pairs reads."""

    chosen_logprob: Float[Tensor, " N"]
    """log pi(y|x) of the preferred response, the sum over its tokens, nats."""
    rejected_logprob: Float[Tensor, " N"]
    chosen_reference: Float[Tensor, " N"]
    """log rho(y|x), the same under the reference; 0 for losses that need none."""
    rejected_reference: Float[Tensor, " N"]
    chosen_length: Float[Tensor, " N"]
    """Tokens of the response."""
    rejected_length: Float[Tensor, " N"]
    divergence: Divergence = reverse_kl
    """What holds the policy to the reference."""

    @property
    def chosen_logratio(self) -> Float[Tensor, " N"]:
        """log(pi / rho), nats."""
        return self.chosen_logprob - self.chosen_reference

    @property
    def rejected_logratio(self) -> Float[Tensor, " N"]:
        """The same of the other response."""
        return self.rejected_logprob - self.rejected_reference

    @property
    def chosen_score(self) -> Float[Tensor, " N"]:
        """f'(pi / rho): the implicit reward in units of beta, the log-ratio for the reverse KL."""
        return self.divergence(self.chosen_logratio)

    @property
    def rejected_score(self) -> Float[Tensor, " N"]:
        """The same of the other response."""
        return self.divergence(self.rejected_logratio)

    @property
    def margin(self) -> Float[Tensor, " N"]:
        """By how much the chosen score leads."""
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True)
class Singles:
    """N responses that were judged alone: what a loss of unpaired data reads."""

    logprob: Float[Tensor, " N"]
    """log pi(y|x), the sum over its tokens, nats."""
    reference: Float[Tensor, " N"]
    """log rho(y|x), the same under the reference."""
    desirable: Bool[Tensor, " N"]
    """True where the response was liked."""

    @property
    def logratio(self) -> Float[Tensor, " N"]:
        """log(pi / rho), nats."""
        return self.logprob - self.reference

    @property
    def sign(self) -> Float[Tensor, " N"]:
        """1 where it was liked, -1 where it was not."""
        return torch.where(self.desirable, 1.0, -1.0).to(self.logprob.dtype)


def pair_weights(target: Float[Tensor, "B K"], *, ranked: bool) -> Float[Tensor, "B K K"]:
    """How much each pair of a question counts: [b, i, j] for response i preferred to j. They sum to 1 over a question.

        best response:  weight[i, j] = probability[i] / (K - 1)
        order:          weight[i, j] = 1 / C(K, 2) where rank[i] < rank[j], half of that each way where they are equal

    Two responses with one certain choice are one pair of weight 1; a tie is half a pair each way.

    Args:
        target: the probability that each response is the best one, or its rank with 0 best.
        ranked: which of both.
    """
    K = target.shape[1]
    if ranked:
        weights = 0.5 + 0.5 * (target[:, None, :] - target[:, :, None]).sign()
        weights = weights / math.comb(K, 2)
    else:
        weights = (target / (K - 1))[:, :, None].expand(-1, -1, K)
    return weights * ~torch.eye(K, dtype=torch.bool, device=target.device)


def desensitized_logprob(
    logprobs: Float[Tensor, "N R"], response_mask: Bool[Tensor, "N R"], shared_length: Int[Tensor, " N"], *, alpha: float
) -> Float[Tensor, " N"]:
    """Log-probability of a response in which the tokens beyond the shorter one of its pair count less (LD-DPO).

        logprob = sum over t <= shared of logprob[t] + alpha * sum over t > shared of logprob[t]

    Liu et al. 2024 (arXiv:2409.06411), the modified likelihood of section 4, as a sum of logarithms.

    Args:
        logprobs: log pi of each token; anything on pads.
        response_mask: True = real token; pads on any side.
        shared_length: tokens of the shorter response of the pair.
        alpha: 0 <= alpha <= 1. 1 is the plain sum; 0 forgets the excess.
    """
    place = response_mask.cumsum(1)
    factor = torch.where(place <= shared_length[:, None], 1.0, alpha).to(logprobs.dtype)
    return torch.where(response_mask, logprobs * factor, 0.0).sum(1)


def on_policy_weight(
    logprobs: Float[Tensor, "*batch R"], log_collision: Float[Tensor, "*batch R"], response_mask: Bool[Tensor, "*batch R"]
) -> Float[Tensor, "*batch"]:
    """How likely the present policy itself is to write a response: the weight of WPO, without gradient.

        weight = exp( mean over tokens of ( log pi(y[t]) - log( sum over v of pi(v)^2 ) ) )

    Zhou et al. 2024 (arXiv:2406.11827), eq. 2 with the sampled alignment of section 3.2: 1 in expectation of the logarithm's
    argument under the policy's own samples. A pair is weighted by the product of its two.

    Args:
        logprobs: log pi of each token.
        log_collision: log of the sum of the squared probabilities of the distribution that the token was drawn from.
        response_mask: True = real token.
    """
    aligned = torch.where(response_mask, logprobs - log_collision, 0.0).detach()
    return (aligned.sum(-1) / response_mask.sum(-1).clamp(min=1)).exp()


def plackett_luce_loss(scores: Float[Tensor, "B K"], ranks: Num[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """The labeler ordered K responses: negative log-likelihood of that order.

        loss = -sum over places k of log( exp(score of place k) / sum over places j >= k of exp(score of place j) )

    Plackett 1975, Luce 1959; for DPO with score = beta * log(pi / rho), Rafailov et al. 2023 (arXiv:2305.18290), eq. 20.

    Args:
        scores: of the K responses of each question.
        ranks: 0 is best, all different.

    Returns:
        Loss per question, nats; log K! where all scores are equal, -log sigmoid(lead) for K = 2. Not reduced.
    """
    ordered = scores.gather(1, ranks.argsort(dim=1))
    return (ordered.flip(1).logcumsumexp(1).flip(1) - ordered).sum(1)


def dpo_choice_loss(
    scores: Float[Tensor, "B K"], probabilities: Float[Tensor, "B K"], *, beta: float, label_smoothing: float = 0.0
) -> Float[Tensor, " B"]:
    """The labeler picked one of K responses: the first place of ``plackett_luce_loss``, for certain and for uncertain choices.

        loss = -sum over k of q[k] * log( exp(beta * score[k]) / sum over j of exp(beta * score[j]) )
        q = (1 - e) * probability + e * (1 - probability) / (K - 1)

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 20, its first factor; Ziegler et al. 2019 (arXiv:1909.08593), eq. 1, with the implicit
    reward.

    Args:
        scores: implicit rewards of the K responses of each question, in units of beta.
        probabilities: that each response is the best one; they sum to 1.
        beta: pull toward the reference, > 0.
        label_smoothing: e, share of choices thought to be wrong.

    Returns:
        Loss per question, nats; log K where all scores are equal; for K = 2 ``dpo_loss``. Not reduced.
    """
    q = (1 - label_smoothing) * probabilities + label_smoothing * (1 - probabilities) / (scores.shape[1] - 1)
    return choice_loss(beta * scores, q)
