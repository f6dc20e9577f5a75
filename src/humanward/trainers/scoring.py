"""From sampled tokens to scores: the truncation rule, the scorer, and the fixed score of a response that never reaches its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from humanward.data import Task
from humanward.data.batches import left_pad, right_pad
from humanward.errors import RunError, UserError
from humanward.maths.masks import truncate_at
from humanward.models import RewardEnsemble, RewardModel, context_length
from humanward.storage import Stopped

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Any callable of (prompts, responses) -> scores, texts in, one number per response out."""


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
    task: Task, reward: Score | RewardModel | RewardEnsemble, episodes: Episodes, *, fixed_score: bool = True, rows_at_once: int = 64
) -> Scores:
    """r(x, y) of the truncated responses; where the end is missing, less the task's penalty or replaced by its fixed score, unless
    ``fixed_score`` is False.
    """
    mask, found = truncated(task, episodes.responses, episodes.response_mask)
    if isinstance(reward, RewardModel | RewardEnsemble):
        scores = _model_scores(reward, episodes, mask, rows_at_once)
    else:
        prompts = [task.prompt_text(row[keep].tolist()) for row, keep in zip(episodes.prompts, episodes.prompt_mask, strict=True)]
        responses = texts(task, episodes.responses.flatten(0, -2), mask.flatten(0, -2))
        repeated = [prompt for prompt in prompts for _ in range(len(responses) // len(prompts))]
        scores = call_score(reward, repeated, responses).view(found.shape)
    scores = scores.to(episodes.responses.device)
    if fixed_score:
        scores = scores - task.config.missing_eos_penalty * ~found
        if task.config.missing_truncation_score is not None:
            scores = scores.where(found, task.config.missing_truncation_score)
    return Scores(scores, found, mask)


@dataclass(frozen=True)
class Scores:
    """What the responses scored."""

    scores: Float[Tensor, " B *K"]
    found: Bool[Tensor, " B *K"]
    """Whether the response reached its end; the score is the fixed one where not."""
    scored_mask: Bool[Tensor, "B *K R"]
    """The tokens that were scored."""


def texts(task: Task, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> list[str]:
    """The text of each row's real tokens."""
    return [task.decode(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]


@torch.no_grad()
def _model_scores(reward: RewardModel | RewardEnsemble, episodes: Episodes, mask: Tensor, rows_at_once: int) -> Float[Tensor, " B *K"]:
    """Each prompt is computed once for its responses."""
    responses, mask = (x if x.dim() == 3 else x[:, None] for x in (episodes.responses, mask))
    parts = (x.split(max(1, rows_at_once // responses.shape[1])) for x in (episodes.prompts, episodes.prompt_mask, responses, mask))
    scores = torch.cat([reward(*part) for part in zip(*parts, strict=True)])
    return scores.view(episodes.responses.shape[:-1])


def call_score(score: Score, prompts: Sequence[str], responses: Sequence[str]) -> Float[Tensor, " B"]:
    """Ask a user's callable and check what comes back.

    Raises:
        RunError: it raised, or gave the wrong number of scores, None, or a number that is not finite.
    """
    name = getattr(score, "__name__", type(score).__name__)
    try:
        given: Sequence[Any] = score(prompts, responses)
        values = [None if v is None else float(v) for v in given]
    except (Stopped, UserError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"reward {name}: raised {type(error).__name__}: {' '.join(str(error).split())}; "
            "it must map (prompts, responses) to one number each"
        ) from error
    if len(values) != len(responses):
        raise RunError(f"reward {name}: {len(values)} scores for {len(responses)} responses; it must return one number per response")
    for value, response in zip(values, responses, strict=True):
        if value is None or not math.isfinite(value):
            raise RunError(f"reward {name}: the score of {response[:60]!r} is {value}; scores must be finite numbers")
    return torch.tensor(values, dtype=torch.float32)


class TextReward:
    """A reward model, or an ensemble of them, as a plain callable of (prompts, responses).

    Args:
        model: the reward model.
        task: the one whose responses it was fitted to; None: ``Task.plain``.
    """

    def __init__(self, model: RewardModel | RewardEnsemble, task: Task | None = None) -> None:
        self.model = model
        self.task = task or Task.plain(model.tokenizer, context_length=context_length(model.model))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The score of each response, in texts as ``Prompt.text`` and ``Response.text`` have them; an empty one is read at an end token."""
        scores: list[float] = []
        for start in range(0, len(prompts), 64):
            rows = slice(start, start + 64)
            p, pm = left_pad([self.task.encode_prompt(text) for text in prompts[rows]], self.model.pad_id)
            r, rm = right_pad([self._tokens(text) for text in responses[rows]], self.model.pad_id)
            device = self.model.device
            scores += self.model(p.to(device), pm.to(device), r[:, None].to(device), rm[:, None].to(device))[:, 0].tolist()
        return scores

    def _tokens(self, response: str) -> tuple[int, ...]:
        eos = self.model.tokenizer.eos_token_id
        tokens = self.task.encode_continuation(response) or ((eos,) if isinstance(eos, int) else ())
        if not tokens:
            raise UserError("an empty response cannot be scored: the tokenizer has no end-of-text token to read instead")
        return tokens
