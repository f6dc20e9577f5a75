"""Rejection-sampling fine-tuning: sample n responses, keep the best, fine-tune on them, and again from the policy that results.

Expert iteration (Anthony et al. 2017, arXiv:1705.08439) with best-of-n as the expert; RAFT (Dong et al. 2023, arXiv:2304.06767), ReST
(Gulcehre et al. 2023, arXiv:2308.08998), and the rejection sampling of Llama 2 (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).
Nothing holds the policy to its reference but the number of steps: n samples move it by at most log n - (n - 1) / n nats a step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor

from humanward.trainers.group import Groups, GroupSettings, WithoutRatio
from humanward.trainers.rollout import Rollout
from humanward.trainers.scoring import Scores, ranked


class ExpertIterationConfig(GroupSettings):
    """Rejection-sampling fine-tuning, step by step."""

    responses_per_prompt: PositiveInt = 8
    """n: the best of so many are kept. A prompt is computed once for all its responses."""
    keep: PositiveInt = 1
    """Responses to each prompt that are fine-tuned on, those with the highest scores."""

    def objective(self, method: str, *, response_length: int) -> ExpertIteration:
        return ExpertIteration(self)

    @model_validator(mode="after")
    def _chooses(self) -> ExpertIterationConfig:
        if self.keep >= self.responses_per_prompt:
            raise ValueError(f"keep {self.keep} of responses_per_prompt {self.responses_per_prompt} rejects nothing; lower it")
        return self


class ExpertIteration(WithoutRatio):
    """Maximum likelihood of the responses that are kept, averaged over their tokens, at the temperature that they were sampled at."""

    kl_coef = 0.0
    skips_worthless = True

    def __init__(self, config: ExpertIterationConfig) -> None:
        self.keep = config.keep

    def worth(self, rollout: Rollout, scores: Scores) -> Float[Tensor, "B K"]:
        """1 for each response that is kept; among equals those that were drawn first."""
        best = ranked(scores.scores).sort(dim=1, descending=True, stable=True).indices[:, : self.keep]
        return torch.zeros_like(scores.scores).scatter(1, best, 1.0)

    def loss(self, logprobs: Float[Tensor, "B K R"], part: Groups, whole: Groups) -> Float[Tensor, ""]:
        """-log pi per token; of the responses, only those that are kept are there."""
        return -(logprobs * part.rollout.response_mask).sum() / max(whole.tokens, 1)
