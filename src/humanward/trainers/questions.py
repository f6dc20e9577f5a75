"""Labelled questions as tensors, and the loss that belongs to each kind of label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from humanward.data.batches import left_pad, right_pad
from humanward.errors import UserError
from humanward.models import check_context
from humanward.records import Comparison

KINDS = ("best_of_k", "pair", "soft", "ranking")
"""What can be learnt from: a choice, or an order."""
DIRECT_KINDS = (*KINDS, "binary")
"""Direct methods learn from responses that were judged alone too."""


@dataclass(frozen=True)
class Questions:
    """A batch of comparisons as tensors."""

    prompts: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    responses: Int[Tensor, "B K R"]
    response_mask: Bool[Tensor, "B K R"]
    ranked: bool
    target: Float[Tensor, "B K"]
    """The rank of each response, 0 best, where the questions are ``ranked``; else the probability that each is the best one. A response
    that was judged alone: 1 where it was liked, 0 where it was not."""

    @property
    def are_best(self) -> Bool[Tensor, "B K"]:
        """Which responses were preferred; all of a question where its label prefers none."""
        return self.target == (self.target.amin(1, keepdim=True) if self.ranked else self.target.amax(1, keepdim=True))

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of a batch for inspection."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def check_questions(comparisons: Sequence[Comparison], model: PreTrainedModel, kinds: Sequence[str] = KINDS) -> None:
    """Can a model learn from them, in one batch?

    Raises:
        UserError: a kind that no choice follows from, another kind or K than the first one's, a weight that is not above 0, or more tokens
            than the model's context.
    """
    for c in comparisons:
        first = comparisons[0]
        if not 0 < c.weight < math.inf:
            raise UserError(f"question {c.question_id}: its weight is {c.weight:g}; a weight must be above 0")
        if c.kind not in kinds:
            raise UserError(f"question {c.question_id}: nothing is learnt from labels of kind {c.kind} yet; it must be {', '.join(kinds)}")
        if len(c.responses) != len(first.responses) or family(c) != family(first):
            raise UserError(
                f"question {c.question_id}: {c.kind} of {len(c.responses)} responses among {first.kind} of {len(first.responses)}; "
                "train on labels of one kind and one K: FILE?kind=pair reads choices and rankings as pairs"
            )
        check_context(model, len(c.prompt.tokens), max(len(r.tokens) for r in c.responses), what=f"question {c.question_id}")


def collate(comparisons: Sequence[Comparison], pad_id: int, device: torch.device) -> Questions:
    """Pad comparisons to one block. ``check_questions`` has passed them."""
    K = len(comparisons[0].responses)
    prompts, prompt_mask = left_pad([c.prompt.tokens for c in comparisons], pad_id)
    responses, response_mask = right_pad([r.tokens for c in comparisons for r in c.responses], pad_id)
    target = torch.tensor([target_of(c, K) for c in comparisons], dtype=torch.float32)
    shape = (len(comparisons), K, -1)
    return Questions(
        prompts.to(device), prompt_mask.to(device), responses.view(shape).to(device), response_mask.view(shape).to(device),
        comparisons[0].kind == "ranking", target.to(device),
    )  # fmt: skip


def best_responses(comparison: Comparison) -> list[int]:
    """The responses that the labeler found best: all of them where a pair is tied, several where an order begins with a tie."""
    target, K = comparison.target, len(comparison.responses)
    if comparison.kind == "difference":
        return [0, 1] if target == 0 else [0 if target > 0 else 1]  # pyright: ignore[reportOperatorIssue]
    if K == 1:  # judged alone: there is nothing to choose
        return [0]
    if not isinstance(target, (list, tuple)):
        return [int(target)]
    best = min(target) if comparison.kind == "ranking" else max(target)
    return [index for index, value in enumerate(target) if value == best]


def as_judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Differences as the judgements that direct methods learn from: the better of a pair, or a tie."""
    made = []
    for c in comparisons:
        if c.kind == "difference":
            best = best_responses(c)
            c = replace(c, kind="pair", target=best[0] if len(best) == 1 else [0.5, 0.5])
        made.append(c)
    return made


def without_dual(comparisons: Sequence[Comparison], drop: Sequence[str]) -> list[Comparison]:
    """Labels but for those whose responses are all safe (``dual_safe``) or all unsafe (``dual_unsafe``).

    Xu et al. 2024 (arXiv:2404.10719) leave both out of SafeRLHF's pairs: of two unsafe responses one is chosen all the same, and of two
    safe ones the label is about something else.

    Raises:
        UserError: a row of the labels does not say which responses are safe.
    """
    if not drop:
        return list(comparisons)
    kept = []
    for c in comparisons:
        safe = c.prompt.metadata.get("safe")
        if not isinstance(safe, list) or len(safe) != len(c.responses) or not all(isinstance(flag, bool) for flag in safe):
            raise UserError(
                f"question {c.question_id}: dpo.drop needs `safe` in its row, a list of true or false for each response; add it, or leave "
                "dpo.drop out"
            )
        if not (all(safe) and "dual_safe" in drop) and not (not any(safe) and "dual_unsafe" in drop):
            kept.append(c)
    return kept


def is_right(comparison: Comparison, choice: int) -> bool | None:
    """Whether the response that a model scores highest is one that the label prefers; None where the label prefers none."""
    best = best_responses(comparison)
    return None if len(best) == len(comparison.responses) else choice in best


def right_marks(comparisons: Sequence[Comparison], choices: Sequence[int]) -> list[bool]:
    """``is_right`` of the labels that prefer something."""
    marks = [is_right(c, choice) for c, choice in zip(comparisons, choices, strict=True)]
    return [mark for mark in marks if mark is not None]


def agreement_marks(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> list[bool]:
    """Whether the scores of the responses prefer what the labels prefer, a mark for each that prefers something; chance is 1 / K.

    What was judged alone prefers nothing. Such labels are taken two by two, each in one pair only so that the marks are independent, and
    the higher score should belong to the better judgement; chance is 1 / 2.
    """
    if comparisons and len(comparisons[0].responses) == 1:
        judged = [float(c.target) for c in comparisons]  # pyright: ignore[reportArgumentType]
        twos = [(i, i + 1) for i in range(0, len(judged) - 1, 2)]
        return [(scores[i][0] > scores[j][0]) == (judged[i] > judged[j]) for i, j in twos if judged[i] != judged[j]]
    return right_marks(comparisons, [values.index(max(values)) for values in scores])


def tokens_of(comparison: Comparison) -> int:
    """Of the prompt and all responses."""
    return len(comparison.prompt.tokens) + sum(len(response.tokens) for response in comparison.responses)


def family(comparison: Comparison) -> str:
    """Kinds of one family may stand in one batch: choices, whether certain or not; every other kind is its own."""
    return "choice" if comparison.kind in ("best_of_k", "pair", "soft") else comparison.kind


def target_of(comparison: Comparison, K: int) -> list[float]:
    """One number per response, as ``Questions.target`` has them."""
    target = comparison.target
    if isinstance(target, (list, tuple)):
        return [float(x) for x in target]
    if comparison.kind in ("rating", "difference", "binary"):  # a difference stands on the first of both
        return [float(target), *[0.0] * (K - 1)]
    return [float(k == target) for k in range(K)]
