"""Methods that learn from K responses to one prompt: sample them, score them, and let an objective say what each is worth.

What the methods differ in is a ``GroupObjective``: ``policy_gradient.py`` (RLOO, GRPO, Dr. GRPO, REINFORCE), ``online_dpo.py`` and
``expert_iteration.py``. Episodes, scores, updates, checkpoints and the numbers logged are the same for all, and those of PPO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from humanward.config import Config
from humanward.data import Task
from humanward.data.batches import epoch_order
from humanward.maths.policy_losses import clip_fraction
from humanward.models import Policy
from humanward.models.adapters import disable_adapter_dropout
from humanward.models.policy import disable_dropout
from humanward.storage import derive_seed
from humanward.trainers.diagnostics import combined, ratio_metrics, rollout_metrics, update_metrics
from humanward.trainers.guards import KL_LIMIT
from humanward.trainers.responses import plain_task
from humanward.trainers.rewards import Reward, Score, moved
from humanward.trainers.rollout import Rollout, RolloutSampler
from humanward.trainers.run import Trainer
from humanward.trainers.scoring import Scores
from humanward.trainers.updates import Updater, my_rows, with_prefix, without_prefix


class GroupSettings(Config):
    """What every method on groups has; each adds its own."""

    episodes: PositiveInt = 1_000_000
    """Sampled responses over the whole training; the last batch is a whole one."""
    batch_size: PositiveInt = 512
    """Episodes per step, over all processes: so many prompts times ``responses_per_prompt``."""
    responses_per_prompt: PositiveInt = 4
    """K. A prompt is computed once for all its responses."""
    minibatches: PositiveInt = 1
    """Updates that one pass over a step's prompts is divided into."""
    epochs: PositiveInt = 1
    """Passes over a step's episodes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole prompts with their responses, like lengths together. Changes memory and speed, never the result.
    null: 384 to 1536 on a CPU, fewer for wider models; 16384 on a GPU."""
    lr: PositiveFloat = 1e-6
    """Learning rate at the start."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "constant"
    """``linear``: to 0 over the training. A step's updates have one rate."""
    adam_eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm; null: do not."""

    @property
    def steps(self) -> int:
        return math.ceil(self.episodes / self.batch_size)

    @property
    def prompts_per_step(self) -> int:
        return self.batch_size // self.responses_per_prompt

    def objective(self, method: str, *, response_length: int) -> GroupObjective:
        """The method of that name with these settings; ``response_length``: the most tokens that a response may have.

        Raises:
            UserError: settings that do not go together.
        """
        raise NotImplementedError

    @model_validator(mode="after")
    def _divides(self) -> GroupSettings:
        K = self.responses_per_prompt
        if self.batch_size % (K * self.minibatches):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided into {self.minibatches} minibatches of whole groups of "
                f"responses_per_prompt {K}; choose a multiple of {K * self.minibatches}"
            )
        if self.episodes < self.batch_size:
            raise ValueError(f"episodes {self.episodes} is less than one batch of {self.batch_size}; raise it or lower batch_size")
        return self


@dataclass(frozen=True)
class Groups:
    """Prompts with K responses each, and what each response is worth to the update."""

    rollout: Rollout
    worth: Float[Tensor, "B K"]
    """An advantage, the probability of being the best one, or whether it is kept: the objective knows."""

    def rows(self, index: Tensor | slice) -> Groups:
        return Groups(self.rollout.rows(index), self.worth[index])

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of a batch for inspection."""
        return self.rollout.tensors() | {"worth": self.worth}

    @property
    def responses(self) -> int:
        return self.worth.numel()

    @property
    def tokens(self) -> int:
        return int(self.rollout.response_mask.sum())


class GroupObjective(Protocol):
    """What a method makes of scored responses."""

    @property
    def kl_coef(self) -> float:
        """Of the objective that is logged as ``penalized_score``, score units per nat."""
        ...

    @property
    def clip_range(self) -> float | None:
        """How far a ratio may leave 1; None where there is no ratio."""
        ...

    @property
    def whole_responses(self) -> bool:
        """Whether a ratio is that of a whole response, not of a token."""
        ...

    @property
    def skips_worthless(self) -> bool:
        """Whether responses of worth 0 are nothing to the loss, so that they are left out of its forward."""
        ...

    def worth(self, rollout: Rollout, scores: Scores) -> Float[Tensor, "B K"]:
        """Of each response of the global batch, the same on every process. Called once per step."""
        ...

    def loss(self, logprobs: Float[Tensor, "B K R"], part: Groups, whole: Groups) -> Float[Tensor, ""]:
        """A part's share of the loss of the whole minibatch, so that the shares of all parts and processes add up to it."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must have of it."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...


class WithoutRatio:
    """An objective that remembers nothing between steps and knows no policy but the present one."""

    clip_range = None
    whole_responses = False
    skips_worthless = False

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class GroupTrainer(Trainer):
    """Sample K responses to each prompt, score them, update; the objective is the method.

    Args:
        policy: what is tuned. It needs no value head.
        reference: where it must stay near; frozen.
        reward: a reward model, an ensemble, any callable of (prompts, responses) -> scores on texts, or a ``WeightedReward`` of such.
        prompts: texts, used whole; or token ids, as ``Task.prompts`` gives them.
        config: settings: a ``GroupConfig``, ``OnlineDPOConfig`` or ``ExpertIterationConfig``.
        method: rloo, grpo, dr_grpo or reinforce with the first; online_dpo; expert_iteration.
        task: how responses are sampled and truncated; None: ``Task.plain``.
        true_score: a second score, only logged: the labeler's own where it is known.
        check: called while sampling and scoring; may raise to stop.
    """

    def __init__(
        self, policy: Policy, reference: Policy, reward: Reward, prompts: Sequence[str | Sequence[int]], config: GroupSettings,
        method: str, *, task: Task | None = None, seed: int = 0, accelerator: Accelerator | None = None,
        true_score: Score | None = None, check: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.accelerator = accelerator or Accelerator()
        my_rows(self.accelerator, config.prompts_per_step // config.minibatches)  # every process must have its share of every update
        self.policy = policy.to(self.accelerator.device)
        self.task, self.config, self.seed, self.method = task or plain_task(policy), config, seed, method
        self.objective = config.objective(method, response_length=self.task.config.response_length)
        self.rollouts = RolloutSampler(
            self.policy, reference.to(self.accelerator.device), prompts, self.task, self.accelerator,
            prompts_per_step=config.prompts_per_step, num_responses=config.responses_per_prompt, seed=seed, stream=method,
            micro_batch_tokens=config.micro_batch_tokens, check=check,
        )  # fmt: skip
        self.reward = self.rollouts.prepared(reward)
        self.true_score = None if true_score is None else moved(true_score, self.accelerator.device)
        self.total_steps = config.steps
        disable_dropout(self.policy)
        disable_adapter_dropout(self.policy.trunk, self.policy.adapter)
        updates_per_step = config.epochs * config.minibatches
        self.updater = Updater(
            self.policy, self.accelerator, lr=config.lr, total_updates=self.total_steps * updates_per_step,
            updates_per_step=updates_per_step, lr_schedule=config.lr_schedule, adam_eps=config.adam_eps, max_grad_norm=config.max_grad_norm,
        )  # fmt: skip

    def step(self, index: int) -> dict[str, float]:
        """New groups of responses, then ``epochs`` passes of updates over them."""
        c = self.config
        rollout = self.rollouts.sample(index)  # x ~ D, y_1 … y_K ~ pi(.|x)
        scores = self.rollouts.score(rollout, self.reward)  # r(x, y), [B, K]
        truth = self.rollouts.truth(rollout, self.true_score)
        if self.task.config.train_on_truncated:
            rollout = replace(rollout, response_mask=scores.scored_mask)
        groups = self.groups(rollout, scores)
        parts = [(epoch, rows) for epoch in range(c.epochs) for rows in self.minibatch_rows(index, epoch)]
        updates = [self.update(groups.rows(rows)) for _, rows in parts]
        metrics = {"episodes": float((index + 1) * c.batch_size)} | update_metrics(updates, [epoch for epoch, _ in parts])
        return metrics | self.metrics(rollout, scores) | truth

    def groups(self, rollout: Rollout, scores: Scores) -> Groups:
        """What the updates of a step work on."""
        worth = self.objective.worth(rollout, scores)
        if self.objective.skips_worthless:
            rollout = replace(rollout, response_mask=rollout.response_mask & (worth != 0)[:, :, None])
        return Groups(rollout, worth)

    def minibatch_rows(self, index: int, epoch: int) -> Iterator[Tensor]:
        """Prompts of each update of one pass."""
        B = self.config.prompts_per_step
        order = epoch_order(derive_seed(self.seed, f"{self.method} minibatches", index), epoch, B)
        return iter(torch.tensor(order, device=self.accelerator.device).split(B // self.config.minibatches))

    def update(self, whole: Groups) -> dict[str, float]:
        """One update on a minibatch of the global batch."""
        own = whole.rows(my_rows(self.accelerator, len(whole.worth)))
        seen: list[dict[str, Tensor]] = []
        self.updater.module.train()

        def loss(module: nn.Module, part: Groups) -> Tensor:
            r, mask = part.rollout, part.rollout.response_mask
            outputs = module(
                r.prompts, r.prompt_mask, r.responses, mask, temperature=self.rollouts.sampling.temperature,
                suppressed=self.rollouts.suppressed, want_entropy=True,
            )  # fmt: skip
            share = self.objective.loss(outputs.logprobs, part, whole)
            entropy = (outputs.entropy.detach() * mask).sum() / max(whole.tokens, 1)
            seen.append({"policy_loss": share.detach(), "entropy": entropy} | self.ratios(outputs.logprobs.detach(), part, whole))
            return share

        micro = [own.rows(rows) for rows in self.rollouts.micro_batches(own.rollout.prompt_mask, own.rollout.response_mask)]
        step = self.updater.update(micro, loss, what=self.method, batch=own.tensors)
        return step | combined(seen, self.accelerator)

    def ratios(self, logprobs: Float[Tensor, "B K R"], part: Groups, whole: Groups) -> dict[str, Tensor]:
        """How far the forward of an update is from the policy that sampled. Clipped is what the objective clips."""
        r, clip_range = part.rollout, self.objective.clip_range
        new, old, mask = (x.flatten(0, 1) for x in (logprobs, r.logprobs, r.response_mask))
        worth = part.worth.flatten()[:, None]
        share = mask.sum() / max(whole.tokens, 1)
        found = ratio_metrics(new, old, worth.expand_as(new), mask, clip_range=clip_range or math.inf, share=share)
        if self.objective.whole_responses and clip_range is not None:
            new, old = (x.where(mask, 0).sum(1, keepdim=True) for x in (new, old))
            every = torch.ones_like(worth, dtype=torch.bool)
            found["clip_fraction"] = clip_fraction(new, old, worth, every, clip_range=clip_range) * part.responses / whole.responses
        return found

    def metrics(self, rollout: Rollout, scores: Scores) -> dict[str, float]:
        """What is logged of the episodes of a step: PPO's names and units. KL in nats per response."""
        kl = (rollout.logprobs - rollout.reference_logprobs) * rollout.response_mask
        metrics = rollout_metrics(rollout, scores, kl, self.objective.kl_coef) | {"kl_coef": self.objective.kl_coef}
        metrics["equal_scores"] = float((scores.scores == scores.scores[:, :1]).all(1).float().mean())
        return metrics

    @property
    def kl_limit(self) -> float:
        return KL_LIMIT

    @property
    def ratio_limit(self) -> float:
        return self.rollouts.ratio_limit

    @property
    def reference(self) -> Policy:
        return self.rollouts.reference

    def tensors(self) -> dict[str, Tensor]:
        return with_prefix("policy", self.updater.weights()) | with_prefix("optimizer", self.updater.state_dict())

    def state(self) -> dict[str, Any]:
        return self.updater.state() | self.objective.state()

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights(without_prefix("policy", tensors))
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)
        self.objective.load(state)
