"""Policy gradients without a value network: RLOO, GRPO, Dr. GRPO and REINFORCE, which differ in a baseline and in how lengths count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from humanward.errors import UserError
from humanward.maths.advantages import group_advantage, leave_one_out_advantage
from humanward.maths.group_losses import Average, length_divisor, over_tokens, sequence_clip_loss
from humanward.maths.kl import kl_estimate
from humanward.maths.policy_losses import ppo_clip_loss
from humanward.trainers.group import Groups, GroupSettings
from humanward.trainers.rollout import Rollout
from humanward.trainers.scoring import Scores

Baseline = Literal["leave_one_out", "group", "batch", "running"]


@dataclass(frozen=True)
class Recipe:
    """What the methods differ in."""

    baseline: Baseline
    scale_advantages: bool
    ratio: Literal["sequence", "token"]
    average: Average
    kl_in: Literal["reward", "loss"]
    kl_estimator: Literal["k1", "k2", "k3"]
    kl_coef: float


RECIPES: dict[str, Recipe] = {
    # Ahmadian et al. 2024 (arXiv:2402.14740): section 3.1, the response is one action; eq. 8; appendix C, beta 0.03 (TL;DR).
    "rloo": Recipe("leave_one_out", False, "sequence", "sum", "reward", "k1", 0.03),
    # Shao et al. 2024 (arXiv:2402.03300): eq. 3 and 4, section 4.1.2; section 4.2, KL coefficient 0.04.
    "grpo": Recipe("group", True, "token", "response", "loss", "k3", 0.04),
    # Liu et al. 2025 (arXiv:2503.20783), section 3.2: neither the deviation nor the response's own length; no KL.
    "dr_grpo": Recipe("group", False, "token", "fixed", "loss", "k3", 0.0),
    # Ahmadian et al. 2024, eq. 5 and 6: the mean of all rewards so far.
    "reinforce": Recipe("running", False, "sequence", "sum", "reward", "k1", 0.03),
}


class GroupConfig(GroupSettings):
    """RLOO, GRPO, Dr. GRPO and REINFORCE. What is null is the method's own, as its paper has it."""

    kl_coef: NonNegativeFloat | None = None
    """Weight of the KL to the reference, score units per nat. null: rloo and reinforce 0.03, grpo 0.04, dr_grpo 0."""
    kl_in: Literal["reward", "loss"] | None = None
    """Where the KL counts: ``reward`` subtracts it from a response's score before the baseline; ``loss`` adds it to every token's loss.
    null: rloo and reinforce reward, grpo and dr_grpo loss."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Of a token's KL: k1 log(pi / rho), k2 half its square, k3 (rho / pi) - 1 + log(pi / rho). null: k1 in the reward, k3 in the loss."""
    clip_range: PositiveFloat = 0.2
    """How far a probability ratio may leave 1 before its gradient stops. Of no effect in the first update of a step."""
    baseline: Baseline | None = None
    """What a response is compared with: ``leave_one_out``, the mean of the other responses to its prompt; ``group``, the mean of all of
    them; ``batch``, the mean of the step; ``running``, the mean of all steps so far. null: rloo the first, grpo and dr_grpo the second,
    reinforce the last."""
    scale_advantages: bool | None = None
    """Divide the advantages of a group by the deviation of its scores. null: grpo yes, the others no."""
    ratio: Literal["sequence", "token"] | None = None
    """Whether the whole response is one action with one ratio, or each token. null: rloo and reinforce sequence, grpo and dr_grpo token."""
    average: Average | None = None
    """What the sum over a response's tokens is divided by: nothing (``sum``), its own length (``response``), the batch's mean length
    (``batch``) or the longest possible (``fixed``). null: rloo and reinforce sum, grpo response, dr_grpo fixed."""

    def objective(self, method: str, *, response_length: int) -> PolicyGradient:
        try:
            return PolicyGradient(self.recipe(method), clip_range=self.clip_range, response_length=response_length)
        except ValueError as fault:
            raise UserError(str(fault)) from None

    def recipe(self, method: str) -> Recipe:
        """The method's own, with what is set here in its place.

        Raises:
            ValueError: settings that do not go together.
        """
        if method not in RECIPES:
            raise ValueError(f"{method}: no policy gradient of that name; expected {', '.join(RECIPES)}")
        given = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        recipe = replace(RECIPES[method], **{name: value for name, value in given.items() if value is not None})
        if self.kl_in == "reward" and self.kl_estimator is None:
            recipe = replace(recipe, kl_estimator="k1")
        if self.kl_in == "loss" and self.kl_estimator is None:
            recipe = replace(recipe, kl_estimator="k3")
        if recipe.baseline in ("leave_one_out", "group") and self.responses_per_prompt < 2:
            raise ValueError(
                f"{method}: baseline {recipe.baseline} needs responses_per_prompt of 2 or more; raise it, or use baseline batch"
            )
        if recipe.scale_advantages and recipe.baseline != "group":
            raise ValueError(f"{method}: scale_advantages is the deviation of a group; it needs baseline group, not {recipe.baseline}")
        if recipe.ratio == "sequence" and recipe.average != "sum":
            raise ValueError(
                f"{method}: average {recipe.average} is over tokens, but ratio sequence has one loss per response; set ratio token"
            )
        if recipe.kl_in == "loss" and recipe.kl_estimator == "k1" and recipe.kl_coef:
            raise ValueError(f"{method}: the gradient of k1 in a loss is 0 in the mean; set kl_estimator k2 or k3, or kl_in reward")
        return recipe


class PolicyGradient:
    """-A * ratio, clipped, over responses or tokens, where A is the score less a baseline.

    Args:
        recipe: what the method is.
        clip_range: see ``GroupConfig``.
        response_length: the most tokens that a response may have.
    """

    skips_worthless = False

    def __init__(self, recipe: Recipe, *, clip_range: float, response_length: int) -> None:
        self.recipe, self.clip_range, self.response_length, self.kl_coef = recipe, clip_range, response_length, recipe.kl_coef
        self.whole_responses = recipe.ratio == "sequence"
        self.mean, self.count = 0.0, 0
        """Of all finite rewards so far."""

    def worth(self, rollout: Rollout, scores: Scores) -> Float[Tensor, "B K"]:
        """The advantage of each response: R(x, y) less a baseline."""
        recipe, rewards = self.recipe, scores.scores
        if recipe.kl_in == "reward":
            kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs, recipe.kl_estimator).where(rollout.response_mask, 0)
            rewards = rewards - recipe.kl_coef * kl.sum(-1)
        if recipe.baseline == "leave_one_out":
            return leave_one_out_advantage(rewards)
        if recipe.baseline == "group":
            return group_advantage(rewards, scale=recipe.scale_advantages)
        if recipe.baseline == "batch":
            return rewards - rewards.mean()
        finite = rewards[rewards.isfinite()].double()
        if len(finite):
            self.count += len(finite)
            self.mean += (float(finite.mean()) - self.mean) * len(finite) / self.count
        return rewards - self.mean

    def loss(self, logprobs: Float[Tensor, "B K R"], part: Groups, whole: Groups) -> Float[Tensor, ""]:
        """The mean over responses."""
        recipe, r = self.recipe, part.rollout
        new, old, reference, mask = (x.flatten(0, 1) for x in (logprobs, r.logprobs, r.reference_logprobs, r.response_mask))
        advantages = part.worth.flatten()
        divisor = length_divisor(
            mask.sum(1).to(new.dtype), recipe.average, mean_length=whole.tokens / whole.responses, response_length=self.response_length
        )
        if recipe.ratio == "sequence":
            losses = sequence_clip_loss(new, old, advantages, mask, clip_range=self.clip_range)
        else:
            tokens = ppo_clip_loss(new, old, advantages[:, None].expand_as(new), clip_range=self.clip_range)
            losses = over_tokens(tokens, mask, divisor)
        if recipe.kl_in == "loss" and recipe.kl_coef:
            losses = losses + recipe.kl_coef * over_tokens(kl_estimate(new, reference, recipe.kl_estimator), mask, divisor)
        return losses.sum() / whole.responses

    def state(self) -> dict[str, Any]:
        return {"reward_mean": self.mean, "reward_count": self.count} if self.recipe.baseline == "running" else {}

    def load(self, state: Mapping[str, Any]) -> None:
        if self.recipe.baseline == "running":
            self.mean, self.count = float(state["reward_mean"]), int(state["reward_count"])
