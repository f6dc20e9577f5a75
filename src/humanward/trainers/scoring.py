"""From sampled tokens to scores: the truncation rule, the scorer, and the fixed score of a response that never reaches its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from humanward.data import Task
from humanward.maths.masks import truncate_at
from humanward.models import RewardEnsemble, RewardModel
from humanward.trainers.rewards import AsyncScore, GuardedScore, Reward, Score, WeightedReward, call_score
from humanward.trainers.updates import micro_batches


@dataclass(frozen=True)
class Episodes:
    """Prompts (left-padded) with one response each, or K (right-padded)."""

    prompts: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    responses: Int[Tensor, "B *K R"]
    response_mask: Bool[Tensor, "B *K R"]


def truncated(task: Task, responses: Int[Tensor, "*B R"], response_mask: Bool[Tensor, "*B R"]) -> tuple[Tensor, Tensor]:
    """What is scored of each response: (mask up to its end, whether it has one).

    Ziegler et al. 2019: cut behind the first truncate token at index >= truncate_after. A task that stops at end-of-text asks for that
    token where there is no truncate token.
    """
    if task.truncate_token_id is not None:
        mask, found = truncate_at(responses, task.truncate_token_id, task.config.truncate_after)
        return mask & response_mask, found & (mask & response_mask).eq(mask).all(-1)
    if task.config.stop_at_eos:
        eos = task.tokenizer.eos_token_id
        return response_mask, ((responses == eos) & response_mask).any(-1)
    return response_mask, torch.ones(responses.shape[:-1], dtype=torch.bool, device=responses.device)


def score_episodes(
    task: Task, reward: Reward, episodes: Episodes, *, fixed_score: bool = True, rows_at_once: int = 64,
    check: Callable[[], None] | None = None,
) -> Scores:  # fmt: skip
    """r(x, y) of the truncated responses; where the end is missing, less the task's penalty or replaced by its fixed score, unless
    ``fixed_score`` is False.
    """
    mask, found = truncated(task, episodes.responses, episodes.response_mask)

    def of(part: Reward) -> Tensor:
        if isinstance(part, RewardModel | RewardEnsemble):
            scores = model_scores(part, replace(episodes, response_mask=mask), rows_at_once=rows_at_once, check=check)
        else:
            scores = _text_scores(task, part, episodes, mask, check)  # pyright: ignore[reportArgumentType]  a sum of sums is none
        return scores.to(episodes.responses.device)

    terms = {name: (weight, of(part)) for name, (weight, part) in reward.terms.items()} if isinstance(reward, WeightedReward) else {}
    scores = torch.stack([weight * term for weight, term in terms.values()]).sum(0) if terms else of(reward)
    if fixed_score:
        scores = scores - task.config.missing_eos_penalty * ~found
        if task.config.missing_truncation_score is not None:
            scores = scores.where(found, task.config.missing_truncation_score)
    return Scores(scores, found, mask, {name: term for name, (_, term) in terms.items()})


@dataclass(frozen=True)
class Scores:
    """What the responses scored."""

    scores: Float[Tensor, " B *K"]
    found: Bool[Tensor, " B *K"]
    """Whether the response reached its end; the score is the fixed one where not."""
    scored_mask: Bool[Tensor, "B *K R"]
    """The tokens that were scored."""
    terms: Mapping[str, Float[Tensor, " B *K"]] = field(default_factory=dict)
    """Of a weighted sum: what each of its terms gave, unweighted, wherever the response ended."""


def ranked(scores: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Scores to choose the best by: one that is no number is worse than all others, where torch would put it first."""
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf)


def texts(task: Task, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> list[str]:
    """The text of each row's real tokens."""
    return [task.decode(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]


@torch.no_grad()
def model_scores(
    reward: RewardModel | RewardEnsemble, episodes: Episodes, *, rows_at_once: int, tokens_at_once: int | None = None,
    check: Callable[[], None] | None = None,
) -> Float[Tensor, " B *K"]:  # fmt: skip
    """What a reward model says of responses. Each prompt is computed once for its responses.

    Args:
        reward: the model.
        episodes: with the mask of what is scored.
        rows_at_once: most responses in one forward.
        tokens_at_once: most tokens in one forward, in whole prompts with their responses; None: as many as are fast on the device.
        check: called before each forward; may raise to stop.
    """
    responses, mask = (x if x.dim() == 3 else x[:, None] for x in (episodes.responses, episodes.response_mask))
    lengths = (episodes.prompt_mask.sum(1) + mask.flatten(1).sum(1)).tolist()
    prompts_at_once = max(1, rows_at_once // responses.shape[1])
    scores: list[Tensor] = []
    order: list[int] = []
    for batch in micro_batches(lengths, tokens_at_once, reward):
        for rows in (batch[start : start + prompts_at_once] for start in range(0, len(batch), prompts_at_once)):
            if check is not None:
                check()
            scores.append(reward(episodes.prompts[rows], episodes.prompt_mask[rows], responses[rows], mask[rows]))
            order += rows
    return torch.cat(scores)[np.argsort(order)].view(episodes.responses.shape[:-1])


def _text_scores(
    task: Task, score: Score | AsyncScore | GuardedScore, episodes: Episodes, mask: Tensor, check: Callable[[], None] | None
) -> Float[Tensor, " B *K"]:
    prompts = [task.prompt_text(row[keep].tolist()) for row, keep in zip(episodes.prompts, episodes.prompt_mask, strict=True)]
    responses = texts(task, episodes.responses.flatten(0, -2), mask.flatten(0, -2))
    repeated = [prompt for prompt in prompts for _ in range(len(responses) // len(prompts))]
    return call_score(score, repeated, responses, check).view(mask.shape[:-1])
