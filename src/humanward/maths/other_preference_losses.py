"""Losses of direct methods beside those of one pair against a reference: without a reference, of responses that were judged alone, and of
whole batches.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from humanward.maths.preferences import Pairs, Singles


def sft_loss(pairs: Pairs, *, mean_chosen_length: float) -> Float[Tensor, " N"]:
    """Supervised fine-tuning on what was chosen; keeps its likelihood up beside another loss.

        loss = -log pi(chosen) / mean tokens of the chosen ones

    The negative log-likelihood of Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, as a term: its mean over the batch is the mean over
    all tokens of chosen responses. Pang et al. 2024 (arXiv:2404.19733), eq. 1, has it beside DPO.

    Args:
        pairs: compared responses.
        mean_chosen_length: tokens of the chosen responses of the global batch, on average.

    Returns:
        Loss per pair, nats per token on average.
    """
    return -pairs.chosen_logprob / mean_chosen_length


def cpo_loss(pairs: Pairs, *, beta: float, mean_chosen_length: float, label_smoothing: float = 0.0) -> Float[Tensor, " N"]:
    """Contrastive preference optimisation: DPO without a reference, and the likelihood of what was chosen.

        loss = -(1 - e) * log sigmoid(beta * margin) - e * log sigmoid(-beta * margin) - log pi(chosen) / mean tokens
        margin = log pi(chosen) - log pi(rejected)

    Xu et al. 2024 (arXiv:2401.08417), L_prefer (eq. 3) + L_NLL; the second term as a mean over tokens, as its code has it.

    Args:
        pairs: compared responses.
        beta: weight of the margin, > 0.
        mean_chosen_length: tokens of the chosen responses of the global batch, on average.
        label_smoothing: e, 0 to 0.5.

    Returns:
        Loss per pair.
    """
    _check(beta)
    z = beta * (pairs.chosen_logprob - pairs.rejected_logprob)
    prefer = -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
    return prefer + sft_loss(pairs, mean_chosen_length=mean_chosen_length)


def simpo_loss(pairs: Pairs, *, beta: float, simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> Float[Tensor, " N"]:
    """Simple preference optimisation: the mean log-probability per token is the reward, with a margin and without a reference.

        z = beta * (log pi(chosen) / tokens - log pi(rejected) / tokens) - gamma
        loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z)

    Meng et al. 2024 (arXiv:2405.14734), eq. 6.

    Args:
        pairs: compared responses.
        beta: scale of the reward, > 0. Usually 2 to 10.
        simpo_gamma: by how much the chosen reward should lead, score units, >= 0.
        label_smoothing: e, 0 to 0.5.

    Returns:
        Loss per pair; log 2 where the lead is gamma.
    """
    _check(beta)
    z = beta * (_per_token(pairs.chosen_logprob, pairs.chosen_length) - _per_token(pairs.rejected_logprob, pairs.rejected_length))
    z = z - simpo_gamma
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def orpo_loss(pairs: Pairs, *, odds_weight: float = 0.1) -> Float[Tensor, " N"]:
    """Odds ratio preference optimisation: fine-tuning on the chosen response with a penalty on the odds of the rejected one.

        P(y) = exp(log pi(y) / tokens)           odds(y) = P(y) / (1 - P(y))
        loss = -log P(chosen) - weight * log sigmoid(log odds(chosen) - log odds(rejected))

    Hong et al. 2024 (arXiv:2403.07691), eq. 6 and 7. TRL's first term is over the prompt's tokens too and a mean over the batch's tokens.

    Args:
        pairs: compared responses.
        odds_weight: lambda in the paper, >= 0.

    Returns:
        Loss per pair.
    """
    chosen = _per_token(pairs.chosen_logprob, pairs.chosen_length)
    rejected = _per_token(pairs.rejected_logprob, pairs.rejected_length)
    return -chosen - odds_weight * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto_loss(
    singles: Singles, *, beta: float, reference_point: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Float[Tensor, " N"]:
    """Kahneman-Tversky optimisation: gains and losses of single responses against what the policy moved on average.

        loss = weight[liked] * (1 - sigmoid(beta * (logratio - point)))        where it was liked
        loss = weight[disliked] * (1 - sigmoid(beta * (point - logratio)))     where it was not

    Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 7, up to the constant lambda.

    Args:
        singles: judged responses.
        beta: pull toward the reference, > 0.
        reference_point: z0 = KL(pi || rho) by ``kto_reference_point``, nats, >= 0, without gradient.
        desirable_weight: lambda_D. Weight times count should be alike on both sides, within 1 to 4/3.
        undesirable_weight: lambda_U.

    Returns:
        Loss per response, 0 to its weight; half of it where logratio = point.
    """
    _check(beta)
    weight = torch.where(singles.desirable, desirable_weight, undesirable_weight).to(singles.logprob.dtype)
    return weight * (-singles.sign * beta * (singles.logratio - reference_point)).sigmoid()


def kto_reference_point(mismatched_logratio: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """z0, the estimate of KL(pi || rho): the mean log-ratio of responses under prompts that they were not written for, at least 0.

    Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1.
    """
    return mismatched_logratio.detach().mean().clamp(min=0)


def bco_loss(singles: Singles, *, beta: float, reward_shift: float = 0.0) -> Float[Tensor, " N"]:
    """Binary classifier optimisation on unpaired data: liked responses are 1, the others 0.

        loss = -log sigmoid(beta * logratio - shift)        where it was liked
        loss = -log sigmoid(-(beta * logratio - shift))     where it was not

    Jung et al. 2024 (arXiv:2404.04656), section 4, without the density ratio of prompts. Arguments as ``bco_pair_loss``.

    Returns:
        Loss per response; log 2 where policy equals reference and there is no shift.
    """
    _check(beta)
    return -logsigmoid(singles.sign * (beta * singles.logratio - reward_shift))


def apo_zero_unpaired_loss(singles: Singles, *, beta: float) -> Float[Tensor, " N"]:
    """Anchored preference optimisation on unpaired data: liked responses up, the others down.

        loss = 1 - sigmoid(beta * logratio)     where it was liked
        loss = sigmoid(beta * logratio)         where it was not

    D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7, each term by itself.

    Returns:
        Loss per response, 0 to 1; 1/2 where policy equals reference.
    """
    _check(beta)
    return (-singles.sign * beta * singles.logratio).sigmoid()


def aot_loss(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Alignment by optimal transport: the distribution of the policy's margins shall lie above that of the reference's.

        lead = sorted(log pi(chosen) - log pi(rejected)) - sorted(log rho(chosen) - log rho(rejected))
        loss = mean of -(1 - e) * log sigmoid(beta * lead) - e * log sigmoid(-beta * lead)

    Melnyk et al. 2024 (arXiv:2406.05882), section 3, paired. A statement about the whole batch: the mean, not one loss per pair.

    Args:
        pairs: compared responses, all of the global batch, each counting the same; always the reverse KL.
        beta: pull toward the reference, > 0.
        label_smoothing: e, 0 to 0.5.

    Returns:
        The mean; log 2 where policy equals reference.
    """
    _check(beta)
    policy = (pairs.chosen_logprob - pairs.rejected_logprob).sort().values
    reference = (pairs.chosen_reference - pairs.rejected_reference).sort().values
    z = beta * (policy - reference)
    return (-(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)).mean()


def aot_unpaired_loss(singles: Singles, *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Alignment by optimal transport without pairs: log-ratios of liked responses shall lie above those of the others.

        lead = quantile(liked, q) - quantile(disliked, q)
        loss = mean over q of -(1 - e) * log sigmoid(beta * lead) - e * log sigmoid(-beta * lead)

    Melnyk et al. 2024 (arXiv:2406.05882), section 3, unpaired. As many of both are sorted and subtracted, as the paper does; otherwise
    each pair of quantiles counts for the share of q in which it holds (the plan of optimal transport in one dimension).

    Args:
        singles: judged responses, all of the global batch; at least one of each kind.
        beta: pull toward the reference, > 0.
        label_smoothing: e, 0 to 0.5.

    Returns:
        The mean; log 2 where policy equals reference.
    """
    _check(beta)
    liked = singles.logratio[singles.desirable].sort().values
    disliked = singles.logratio[~singles.desirable].sort().values
    if not len(liked) or not len(disliked):
        raise ValueError("a batch needs a liked and a disliked response; make it larger")
    # whole numbers, so that equal steps of both are one step: liked i ends at (i + 1) * D, disliked j at (j + 1) * C
    C, D = len(liked), len(disliked)
    ends = torch.unique(torch.cat([torch.arange(1, C + 1) * D, torch.arange(1, D + 1) * C])).to(liked.device)
    share = ends.diff(prepend=ends.new_zeros(1)) / (C * D)
    z = beta * (liked[(ends - 1) // D] - disliked[(ends - 1) // C])
    return (share * (-(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z))).sum()


def _per_token(logprob: Float[Tensor, " N"], length: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return logprob / length.clamp(min=1)


def _log_odds(logprob: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """log(P / (1 - P)) of a mean log-probability, for P up to the largest number below 1."""
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).tiny)
    return logprob - (-logprob.expm1()).log()


def _check(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
