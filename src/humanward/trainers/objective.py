"""What a direct method minimises: a weighted sum of losses of what policy and reference say about judged responses.

A new loss is a function of ``maths.Pairs`` (or ``Singles``) with its options behind the star, and a line in ``LOSSES``. Options are
settings of the same name; what only the trainer can know of a batch (``MEASURED``) is asked for in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from humanward.errors import UserError
from humanward.maths import other_preference_losses as others
from humanward.maths import preference_losses as paired
from humanward.maths.preferences import (
    Divergence,
    Pairs,
    Singles,
    desensitized_logprob,
    dpo_choice_loss,
    on_policy_weight,
    pair_weights,
    plackett_luce_loss,
)
from humanward.records import Comparison
from humanward.trainers.questions import Questions

MEASURED = ("reference_point", "reward_shift", "mean_chosen_length")


@dataclass(frozen=True)
class Loss:
    """A line of ``LOSSES``."""

    function: Callable[..., Tensor]
    reads: Literal["pairs", "singles", "orders"] = "pairs"
    """pairs: ``function(pairs, **options)`` -> [N]. singles: ``function(singles, **options)`` -> [N]; also for unpaired data. orders:
    ``function(beta * scores, ranks)`` -> [B] for an order of K, ``choice`` for a choice among K."""
    reference: bool = True
    """Whether it reads the reference."""
    divergence: bool = False
    """Whether it is defined for all f-divergences."""
    whole_batch: bool = False
    """A statement about the global batch, [] in place of [N]."""
    choice: Callable[..., Tensor] | None = None
    """What a choice among K > 2 is instead of the mean over K - 1 pairs: ``choice(scores, probabilities, **options)`` -> [B]."""

    @property
    def options(self) -> tuple[str, ...]:
        names = [p.name for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return ("beta",) if self.reads == "orders" else tuple(names)


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(paired.dpo_loss, divergence=True, choice=dpo_choice_loss),
    "robust": Loss(paired.robust_loss, divergence=True),
    "hinge": Loss(paired.hinge_loss, divergence=True),
    "ipo": Loss(paired.ipo_loss, divergence=True),
    "sigmoid_norm": Loss(paired.sigmoid_norm_loss, divergence=True),
    "exo_pair": Loss(paired.exo_pair_loss, divergence=True),
    "discopop": Loss(paired.discopop_loss, divergence=True),
    "nca_pair": Loss(paired.nca_pair_loss),
    "bco_pair": Loss(paired.bco_pair_loss),
    "sppo_hard": Loss(paired.sppo_hard_loss),
    "apo_zero": Loss(paired.apo_zero_loss),
    "apo_down": Loss(paired.apo_down_loss),
    "aot": Loss(others.aot_loss, whole_batch=True),
    "plackett_luce": Loss(plackett_luce_loss, "orders", divergence=True, choice=dpo_choice_loss),
    "sft": Loss(others.sft_loss, reference=False),
    "cpo": Loss(others.cpo_loss, reference=False),
    "simpo": Loss(others.simpo_loss, reference=False),
    "orpo": Loss(others.orpo_loss, reference=False),
    "kto": Loss(others.kto_loss, "singles"),
    "bco": Loss(others.bco_loss, "singles"),
    "apo_zero_unpaired": Loss(others.apo_zero_unpaired_loss, "singles"),
    "aot_unpaired": Loss(others.aot_unpaired_loss, "singles", whole_batch=True),
}


class Said(NamedTuple):
    """What policy and reference say about the responses of some questions; 0 on pads."""

    logprobs: Float[Tensor, "B K R"]
    reference: Float[Tensor, "B K R"] | None
    """None where no loss needs a reference."""
    log_collision: Float[Tensor, "B K R"] | None = None
    """log of the sum of squared probabilities at each token, where responses are weighted by it."""

    @property
    def logratio(self) -> Float[Tensor, "B K R"]:
        return self.logprobs if self.reference is None else self.logprobs - self.reference


class Rows(NamedTuple):
    """Pairs or single responses of some questions, and how much each counts: 1 over a question."""

    question: Int[Tensor, " N"]
    first: Int[Tensor, " N"]
    """The preferred response, or the single one."""
    second: Int[Tensor, " N"]
    """The other response of a pair; whether a single one was liked, 0 or 1."""
    weight: Float[Tensor, " N"]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of ``LOSSES``."""

    weights: Mapping[str, float]
    options: Mapping[str, Any]
    """Of all losses; each takes those that it has."""
    divergence: Divergence
    ld_alpha: float | None = None
    wpo: bool = False

    @property
    def losses(self) -> list[Loss]:
        return [LOSSES[name] for name in self.weights]

    @property
    def whole_batch(self) -> bool:
        return any(loss.whole_batch for loss in self.losses)

    def reads(self, option: str) -> bool:
        """Whether some loss takes this option or measured number."""
        return any(option in loss.options for loss in self.losses)

    def scores(self, said: Said, questions: Questions) -> Float[Tensor, "B K"]:
        """Implicit rewards of the responses in units of beta; without a reference the mean log-probability per token."""
        if said.reference is None:
            return said.logprobs.sum(-1) / questions.response_mask.sum(-1)
        return self.divergence(self._sums(said.logratio, questions))

    def per_question(self, said: Said, questions: Questions, measured: Mapping[str, float]) -> Float[Tensor, " B"]:
        """Loss of each question by those losses that are not of the whole batch."""
        total = said.logprobs.new_zeros(len(questions.prompts))
        for name, weight in self.weights.items():
            if not LOSSES[name].whole_batch:
                total = total + weight * self._one(LOSSES[name], said, questions, measured)
        return total

    def of_the_batch(self, said: Said, questions: Questions) -> Float[Tensor, ""]:
        """Loss of the global batch by those losses that are of the whole of it."""
        total = said.logprobs.new_zeros(())
        for name, weight in self.weights.items():
            loss = LOSSES[name]
            if loss.whole_batch:
                rows = _rows(questions, loss.reads)
                read = _pairs(self, said, questions, rows) if loss.reads == "pairs" else _singles(said, rows)
                total = total + weight * loss.function(read, **self._options(loss.function, {}))
        return total

    def _one(self, loss: Loss, said: Said, questions: Questions, measured: Mapping[str, float]) -> Float[Tensor, " B"]:
        orders = loss.reads == "orders"
        if loss.choice is not None and not questions.ranked and (orders or questions.target.shape[1] > 2):
            losses = loss.choice(self.scores(said, questions), questions.target, **self._options(loss.choice, measured))
            return losses if said.log_collision is None else losses * self._trust(said, questions).prod(1)
        if orders:
            losses = loss.function(self.options["beta"] * self.scores(said, questions), questions.target)
            return losses if said.log_collision is None else losses * self._trust(said, questions).prod(1)
        rows = _rows(questions, loss.reads)
        read = _pairs(self, said, questions, rows) if loss.reads == "pairs" else _singles(said, rows)
        losses = rows.weight * loss.function(read, **self._options(loss.function, measured))
        if said.log_collision is not None:
            trust = self._trust(said, questions)
            losses = losses * trust[rows.question, rows.first]
            losses = losses * trust[rows.question, rows.second] if loss.reads == "pairs" else losses
        return said.logprobs.new_zeros(len(questions.prompts)).index_add(0, rows.question, losses)

    def _options(self, function: Callable[..., Tensor], measured: Mapping[str, float]) -> dict[str, Any]:
        return {n: v for n, v in {**self.options, **measured}.items() if n in inspect.signature(function).parameters}

    def _trust(self, said: Said, questions: Questions) -> Float[Tensor, "B K"]:
        assert said.log_collision is not None
        return on_policy_weight(said.logprobs, said.log_collision, questions.response_mask)

    def _sums(self, logprobs: Float[Tensor, "B K R"], questions: Questions) -> Float[Tensor, "B K"]:
        """Per response; tokens beyond the shortest of the question count ``ld_alpha``."""
        if self.ld_alpha is None:
            return logprobs.sum(-1)
        mask = questions.response_mask
        shared = mask.sum(-1).amin(1, keepdim=True).expand(mask.shape[:2])
        flat = desensitized_logprob(logprobs.flatten(0, 1), mask.flatten(0, 1), shared.flatten(), alpha=self.ld_alpha)
        return flat.view(mask.shape[:2])


def check_data(objective: Objective, comparisons: Sequence[Comparison]) -> None:
    """Raises UserError where a label is nothing that a chosen loss can learn from."""
    unpaired = [name for name, loss in LOSSES.items() if loss.reads == "singles"]
    for name in objective.weights:
        loss = LOSSES[name]
        for c in comparisons:
            target = c.target if isinstance(c.target, list | tuple) else [c.target]
            what = f"question {c.question_id}: loss {name}"
            if c.kind == "binary" and loss.reads != "singles":
                raise UserError(f"{what} compares responses, and this one was judged alone; use {', '.join(unpaired)}")
            if loss.reads == "orders" and c.kind == "ranking" and len(set(target)) < len(target):
                raise UserError(f"{what} has no use for ties; use sigmoid, where a tie is half a pair each way")
            certain = len(set(target)) == len(target) if c.kind == "ranking" else all(float(p).is_integer() for p in target)
            if loss.whole_batch and not certain:
                raise UserError(f"{what} sorts a batch of certain choices and has no place for ties and probabilities; use sigmoid")
            if loss.whole_batch and not float(c.weight).is_integer():
                raise UserError(f"{what} sorts a batch, in which a weight of {c.weight:g} has no meaning; use whole numbers, or sigmoid")


def _rows(questions: Questions, reads: str) -> Rows:
    target = questions.target
    if target.shape[1] == 1:
        count = torch.arange(len(target), device=target.device)
        return Rows(count, torch.zeros_like(count), target[:, 0].long(), torch.ones_like(target[:, 0]))
    weights = pair_weights(target, ranked=questions.ranked)
    if reads == "singles":  # what is preferred in all is liked, what is not is disliked: half of a question each
        weights = torch.stack([weights.sum(1), weights.sum(2)], dim=2) / 2
    question, first, second = weights.nonzero().unbind(1)
    return Rows(question, first, second, weights[question, first, second])


def _pairs(objective: Objective, said: Said, questions: Questions, rows: Rows) -> Pairs:
    mask = questions.response_mask
    length = mask.sum(-1)
    lengths = [length[rows.question, k] for k in (rows.first, rows.second)]
    reference = torch.zeros_like(said.logprobs) if said.reference is None else said.reference
    alpha = objective.ld_alpha
    sums = []
    for logprobs in (said.logprobs, reference):
        for k in (rows.first, rows.second):
            if alpha is None:
                sums.append(logprobs.sum(-1)[rows.question, k])
            else:
                shared = torch.minimum(*lengths)
                sums.append(desensitized_logprob(logprobs[rows.question, k], mask[rows.question, k], shared, alpha=alpha))
    return Pairs(*sums, *(n.to(sums[0].dtype) for n in lengths), divergence=objective.divergence)


def _singles(said: Said, rows: Rows) -> Singles:
    reference = torch.zeros_like(said.logprobs) if said.reference is None else said.reference
    logprob, before = (x.sum(-1)[rows.question, rows.first] for x in (said.logprobs, reference))
    return Singles(logprob, before, rows.second.bool())
