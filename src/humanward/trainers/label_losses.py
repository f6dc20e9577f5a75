"""Label kind -> comparison -> loss: what a reward model is fitted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from humanward.errors import UserError
from humanward.maths.labeler_noise import estimate_labeler_noise
from humanward.maths.preferences import plackett_luce_loss
from humanward.maths.reward_losses import all_pairs_loss, binary_loss, choice_loss, difference_loss, rating_loss
from humanward.records import Comparison
from humanward.trainers.questions import target_of

LossName = Literal["auto", "choice", "all_pairs", "plackett_luce", "regression", "binary"]
Target = Float[Tensor, "B K"]


@dataclass(frozen=True)
class LabelLoss:
    """A loss of scores [B, K] and of targets [B, K], as ``questions.collate`` gives them."""

    name: str
    margin: float = 0.0
    noise: float = 0.0

    def __call__(self, scores: Float[Tensor, "B K"], target: Target) -> Float[Tensor, " B"]:
        return LOSSES[self.name](self, scores, target)


def choice(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """The preferred response should lead the others by the margin; one that is preferred with probability p, by p of it."""
    return choice_loss(scores - loss.margin * target if loss.margin else scores, target, noise=loss.noise)


def graded_choice(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """The sign of the difference is the choice, its size the margin (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""
    difference = target[:, 0] - target[:, 1]
    first = 0.5 + 0.5 * difference.sign()
    shift = torch.stack([loss.margin * difference, torch.zeros_like(difference)], dim=1)
    return choice_loss(scores - shift, torch.stack([first, 1 - first], dim=1), noise=loss.noise)


def all_pairs(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """A ranking as one element of the batch: each of its C(K, 2) pairs weighs 1 / C(K, 2)."""
    return all_pairs_loss(scores, target, margin=loss.margin, noise=loss.noise)


def plackett_luce(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """A ranking as a row of choices, the best of what is left each time."""
    return plackett_luce_loss(scores, target)


def rating(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """The score is the rating."""
    return rating_loss(scores[:, 0], target[:, 0])


def difference(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """The lead of the first score is the difference."""
    return difference_loss(scores, target[:, 0] - target[:, 1])


def binary(loss: LabelLoss, scores: Tensor, target: Tensor) -> Tensor:
    """The score is the log-odds that the response is liked."""
    return binary_loss(scores[:, 0], target[:, 0], noise=loss.noise)


LOSSES: dict[str, Callable[[LabelLoss, Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (choice, graded_choice, all_pairs, plackett_luce, rating, difference, binary)
}
LOSSES_OF_KIND: dict[str, dict[str, str]] = {
    "best_of_k": {"choice": "choice"},
    "pair": {"choice": "choice"},
    "soft": {"choice": "choice"},
    "ranking": {"all_pairs": "all_pairs", "plackett_luce": "plackett_luce"},
    "rating": {"regression": "rating"},
    "difference": {"regression": "difference", "choice": "graded_choice"},
    "binary": {"binary": "binary"},
}
"""Kind of label -> what ``reward.loss`` may be -> the loss. The first is meant by ``auto``."""
READS_MARGIN = ("choice", "graded_choice", "all_pairs")
READS_NOISE = ("choice", "graded_choice", "all_pairs", "binary")
GRADED = ("rating", "difference")
"""Kinds whose target is a number of score units."""


def loss_for(comparisons: Sequence[Comparison], name: LossName, *, margin: float, noise: float) -> LabelLoss:
    """The loss of these labels, which ``check_questions`` has passed.

    Raises:
        UserError: a loss that is not the kind's, or an option that the loss does not read.
    """
    kind = comparisons[0].kind
    known = LOSSES_OF_KIND[kind]
    chosen = next(iter(known)) if name == "auto" else name
    if chosen not in known:
        raise UserError(f"reward.loss: {chosen} has no use for labels of kind {kind}; choose auto or {' or '.join(known)}")
    loss = known[chosen]
    for option, value, readers in (("margin", margin, READS_MARGIN), ("label_noise", noise, READS_NOISE)):
        if value and loss not in readers:
            raise UserError(f"reward.{option}: the loss {chosen} of labels of kind {kind} does not read it; set it to 0")
    if loss == "plackett_luce":
        for comparison in comparisons:
            if isinstance(comparison.target, list) and len(set(comparison.target)) < len(comparison.target):
                raise UserError(f"question {comparison.question_id}: plackett_luce knows no equal ranks; use reward.loss=all_pairs")
    return LabelLoss(loss, margin, noise)


def without_labeler_noise(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """One comparison per question, whose target says how likely each response is the best one, given who said what.

    The probability that a labeler is right is estimated from all labels together; see ``maths.labeler_noise``. What one labeler said alone
    stays, softened by that labeler's own noise. A question weighs as much as its labels on average.

    Raises:
        UserError: labels that are no choices, or that do not say who gave them.
    """
    for c in comparisons:
        if c.kind not in ("best_of_k", "pair", "soft"):
            raise UserError(f"reward.label_noise: estimated: labels of kind {c.kind} are no choices; give a number, or 0")
        if not c.question_id or not c.labeler:
            raise UserError(
                f"reward.label_noise: estimated: question {c.question_id or '?'}: the label does not say who gave it; give a number"
            )
    labels: dict[str, list[Comparison]] = {}
    for c in comparisons:
        labels.setdefault(c.question_id, []).append(c)
    votes = [target_of(c, len(c.responses)) for c in comparisons]
    found = estimate_labeler_noise([c.question_id for c in comparisons], [c.labeler for c in comparisons], votes)
    return [
        replace(labels[item][0], kind="soft", target=shares.tolist(), labeler="", weight=fmean(c.weight for c in labels[item]))
        for item, shares in zip(found.items, found.posterior, strict=True)
    ]
