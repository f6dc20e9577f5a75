"""DPO on the policy's own responses, judged as they are written (Guo et al. 2024, arXiv:2402.04792)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from humanward.maths.preferences import divergence
from humanward.trainers.group import Groups, GroupSettings, WithoutRatio
from humanward.trainers.objective import Objective, Said
from humanward.trainers.questions import Questions
from humanward.trainers.rollout import Rollout
from humanward.trainers.scoring import Scores


class OnlineDPOConfig(GroupSettings):
    """Online DPO."""

    responses_per_prompt: PositiveInt = 2
    """K: two are a pair; of more, the best is preferred to the others. A prompt is computed once for all of them."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """DPO's, IPO's or SLiC's, the three of the paper."""
    beta: PositiveFloat = 0.1
    """Score units per nat that the policy moves away from the reference: large holds it near."""
    preference: Literal["best", "bradley_terry"] = "best"
    """What the scores say of the responses: ``best``, the highest one is preferred, equals half each; ``bradley_terry``, each is preferred
    with the probability softmax(scores), so that the policy goes to that of the highest score less beta times the KL."""

    def objective(self, method: str, *, response_length: int) -> OnlineDPO:
        return OnlineDPO(self)

    @model_validator(mode="after")
    def _pairs(self) -> OnlineDPOConfig:
        if self.responses_per_prompt < 2:
            raise ValueError("responses_per_prompt must be 2 or more: a response alone is preferred to nothing")
        return self


class OnlineDPO(WithoutRatio):
    """The loss of a direct method, with the sampled responses as its questions and the scores as its labels.

    A labeler who answers at once judges in place of a score as ``LabelerChoice``.
    """

    def __init__(self, config: OnlineDPOConfig) -> None:
        self.config, self.kl_coef = config, config.beta
        self.losses = Objective({config.loss: 1.0}, {"beta": config.beta}, divergence("reverse_kl", None))

    def worth(self, rollout: Rollout, scores: Scores) -> Float[Tensor, "B K"]:
        """The probability that a response is the best one of its prompt."""
        if self.config.preference == "bradley_terry":
            return scores.scores.softmax(dim=1)
        best = (scores.scores == scores.scores.amax(dim=1, keepdim=True)).to(scores.scores.dtype)
        return best / best.sum(dim=1, keepdim=True)

    def loss(self, logprobs: Float[Tensor, "B K R"], part: Groups, whole: Groups) -> Float[Tensor, ""]:
        """The mean over prompts."""
        r = part.rollout
        questions = Questions(r.prompts, r.prompt_mask, r.responses, r.response_mask, False, part.worth)
        per_prompt = self.losses.per_question(Said(logprobs, r.reference_logprobs), questions, {})
        return per_prompt.sum() / len(whole.worth)
