"""Losses that fit a policy to compared pairs, without a reward model and, for some, without a reference.

All have one shape: ``loss(pairs, *, options) -> [N]``, one number per pair, not reduced. A new one is such a function, a line in
``trainers.objective.LOSSES`` and a test. In the formulas chosen and rejected stand for f'(pi / rho) of each response, which is
log(pi / rho) for the reverse KL, and margin for their difference.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from humanward.maths.preferences import Pairs


def dpo_loss(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, " N"]:
    """Direct preference optimisation; with label smoothing, conservative DPO.

        loss = -(1 - e) * log sigmoid(beta * margin) - e * log sigmoid(-beta * margin)

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; e: Mitchell 2023, "A note on DPO with noisy preferences"; other divergences: Wang et
    al. 2023 (arXiv:2309.16240), the loss of f-DPO.

    Args:
        pairs: compared responses.
        beta: pull toward the reference, > 0. Larger stays closer. Usually 0.01 to 0.5.
        label_smoothing: e, share of labels thought to be wrong, 0 to 0.5. Larger stops at a smaller margin.

    Returns:
        Loss per pair; log 2 where policy equals reference.
    """
    _check(beta)
    z = beta * pairs.margin
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def robust_loss(pairs: Pairs, *, beta: float, label_smoothing: float = 0.1) -> Float[Tensor, " N"]:
    """DPO under labels of which a known share is flipped: unbiased for the loss on clean labels.

        loss = ( -(1 - e) * log sigmoid(beta * margin) + e * log sigmoid(-beta * margin) ) / (1 - 2e)

    Ray Chowdhury et al. 2024 (arXiv:2403.00409), section 3.1.

    Args:
        pairs: compared responses.
        beta: pull toward the reference, > 0.
        label_smoothing: e, share of flipped labels, 0 <= e < 0.5.

    Returns:
        Loss per pair; log 2 where policy equals reference. Its mean over labels flipped with probability e is ``dpo_loss`` of the clean
        ones.
    """
    _check(beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, not {label_smoothing}")
    z = beta * pairs.margin
    return (-(1 - label_smoothing) * logsigmoid(z) + label_smoothing * logsigmoid(-z)) / (1 - 2 * label_smoothing)


def hinge_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """Sequence likelihood calibration on likelihoods relative to the reference.

        loss = max(0, 1 - beta * margin)

    Zhao et al. 2023 (arXiv:2305.10425), section 2, normalised by the reference as in Liu et al. 2023 (arXiv:2309.06657), section 3.

    Args:
        pairs: compared responses.
        beta: the reciprocal of the margin at which a pair stops to count, 1 / nats, > 0.

    Returns:
        Loss per pair; 1 where policy equals reference, 0 from a margin of 1 / beta on.
    """
    _check(beta)
    return torch.relu(1 - beta * pairs.margin)


def ipo_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """Identity preference optimisation: bring the margin to a fixed value instead of to infinity.

        loss = ( chosen / tokens - rejected / tokens - 1 / (2 * beta) )^2

    Azar et al. 2023 (arXiv:2310.12036), eq. 17, per token: the paper's text has the sum; its authors have confirmed that its results are
    those of the mean.

    Args:
        pairs: compared responses.
        beta: tau in the paper, > 0. Larger stays closer: the margin sought is 1 / (2 * beta) nats per token.

    Returns:
        Loss per pair; 1 / (4 * beta^2) where policy equals reference, 0 at the margin sought.
    """
    _check(beta)
    return (_margin_per_token(pairs) - 1 / (2 * beta)).square()


def sigmoid_norm_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """DPO on the mean per token, so that a longer response does not weigh more.

        loss = -log sigmoid(beta * (chosen / tokens - rejected / tokens))

    Lambert et al. 2024, "Tulu 3" (arXiv:2411.15124), section 5.1: length-normalised DPO.

    Args:
        pairs: compared responses.
        beta: pull toward the reference, > 0; larger than for ``dpo_loss`` by about the number of tokens. Tulu 3 has 5.

    Returns:
        Loss per pair; log 2 where policy equals reference.
    """
    _check(beta)
    return -logsigmoid(beta * _margin_per_token(pairs))


def exo_pair_loss(pairs: Pairs, *, beta: float, label_smoothing: float = 1e-3) -> Float[Tensor, " N"]:
    """Exact optimisation: the reverse KL from the policy's own preference to the smoothed label.

        q = sigmoid(beta * margin)
        loss = q * (log q - log(1 - e)) + (1 - q) * (log(1 - q) - log e)

    Ji et al. 2024 (arXiv:2402.00856), eq. 16.

    Args:
        pairs: compared responses.
        beta: pull toward the reference, > 0.
        label_smoothing: e, 0 < e < 0.5: the probability left to the rejected response.

    Returns:
        Loss per pair, nats; 0 where q = 1 - e.
    """
    _check(beta)
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie between 0 and 0.5, not {label_smoothing}")
    z = beta * pairs.margin
    for_chosen = z.sigmoid() * (logsigmoid(z) - math.log1p(-label_smoothing))
    return for_chosen + (-z).sigmoid() * (logsigmoid(-z) - math.log(label_smoothing))


def nca_pair_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """Noise contrastive alignment: the absolute likelihood of each response, not only the margin.

        loss = -log sigmoid(beta * chosen) - 1/2 * log sigmoid(-beta * chosen) - 1/2 * log sigmoid(-beta * rejected)

    Chen et al. 2024 (arXiv:2402.05369), section 4.1, K = 2.

    Args:
        pairs: compared responses; always the reverse KL.
        beta: pull toward the reference, > 0.

    Returns:
        Loss per pair; 2 log 2 where policy equals reference.
    """
    _check(beta)
    chosen, rejected = beta * pairs.chosen_logratio, beta * pairs.rejected_logratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair_loss(pairs: Pairs, *, beta: float, reward_shift: float = 0.0) -> Float[Tensor, " N"]:
    """Binary classifier optimisation: chosen responses are 1, rejected ones 0.

        loss = -log sigmoid(beta * chosen - shift) - log sigmoid(-(beta * rejected - shift))

    Jung et al. 2024 (arXiv:2404.04656), section 4.

    Args:
        pairs: compared responses; always the reverse KL.
        beta: pull toward the reference, > 0.
        reward_shift: delta in the paper, the running mean of beta * log(pi / rho) over chosen and rejected responses, score units. With
            it the loss bounds that of DPO most closely.

    Returns:
        Loss per pair; 2 log 2 where policy equals reference and there is no shift.
    """
    _check(beta)
    return -logsigmoid(beta * pairs.chosen_logratio - reward_shift) - logsigmoid(reward_shift - beta * pairs.rejected_logratio)


def sppo_hard_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """Self-play preference optimisation with certain labels: the chosen response half up, the rejected one half down.

        loss = (chosen - 1 / (2 * beta))^2 + (rejected + 1 / (2 * beta))^2

    Wu et al. 2024 (arXiv:2405.00675), eq. 4.7, with P = 1 and 0 and eta = 1 / beta.

    Args:
        pairs: compared responses; always the reverse KL.
        beta: pull toward the reference, > 0. Larger stays closer.

    Returns:
        Loss per pair; 1 / (2 * beta^2) where policy equals reference.
    """
    _check(beta)
    return (pairs.chosen_logratio - 0.5 / beta).square() + (pairs.rejected_logratio + 0.5 / beta).square()


def apo_zero_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """Anchored preference optimisation where chosen responses are better than the policy's own: chosen up, rejected down.

        loss = 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)

    D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7.

    Args:
        pairs: compared responses; always the reverse KL.
        beta: pull toward the reference, > 0.

    Returns:
        Loss per pair, 0 to 2; 1 where policy equals reference.
    """
    _check(beta)
    return (-beta * pairs.chosen_logratio).sigmoid() + (beta * pairs.rejected_logratio).sigmoid()


def apo_down_loss(pairs: Pairs, *, beta: float) -> Float[Tensor, " N"]:
    """Anchored preference optimisation where the policy's own responses are better than both: chosen down, rejected further down.

        loss = sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))

    D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 8.

    Args:
        pairs: compared responses; always the reverse KL.
        beta: pull toward the reference, > 0.

    Returns:
        Loss per pair, 0 to 2; 1 where policy equals reference.
    """
    _check(beta)
    return (beta * pairs.chosen_logratio).sigmoid() + (-beta * (pairs.chosen_logratio - pairs.rejected_logratio)).sigmoid()


def discopop_loss(pairs: Pairs, *, beta: float, discopop_tau: float = 0.05) -> Float[Tensor, " N"]:
    """The loss that a language model proposed: logistic where the pair is wrong, exponential where it is right.

        gate = sigmoid(beta * margin / tau)
        loss = (1 - gate) * -log sigmoid(beta * margin) + gate * exp(-beta * margin)

    Lu et al. 2024 (arXiv:2406.08414), eq. 5. Careful: below tau = 0.1 the loss rises around margin 0, so that a policy that starts at the
    reference is first pushed the wrong way.

    Args:
        pairs: compared responses.
        beta: pull toward the reference, > 0.
        discopop_tau: width of the gate, score units, > 0.

    Returns:
        Loss per pair; (log 2 + 1) / 2 where policy equals reference.
    """
    _check(beta)
    z = beta * pairs.margin
    gate = (z / discopop_tau).sigmoid()
    # careful: where the pair is very wrong exp(-z) overflows, and 0 * inf is NaN; the gate has long been 0 there.
    return -(1 - gate) * logsigmoid(z) + gate * (-z).clamp(max=80.0).exp()


def _margin_per_token(pairs: Pairs) -> Float[Tensor, " N"]:
    return pairs.chosen_score / pairs.chosen_length.clamp(min=1) - pairs.rejected_score / pairs.rejected_length.clamp(min=1)


def _check(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
