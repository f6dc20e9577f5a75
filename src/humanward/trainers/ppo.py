"""Proximal policy optimisation against a learned reward, as Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, and its released code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from humanward.config import Config
from humanward.data import Task
from humanward.data.batches import epoch_order
from humanward.errors import UserError
from humanward.maths.advantages import gae
from humanward.maths.kl import adapted_kl_coef
from humanward.maths.masks import add_at_last_token, masked_mean
from humanward.maths.policy_losses import ppo_clip_loss
from humanward.maths.value_losses import clipped_value_loss
from humanward.maths.whitening import whiten
from humanward.models import Policy, RewardEnsemble, RewardModel, ValueNetwork
from humanward.models.policy import ResponseOutputs, disable_dropout
from humanward.storage import derive_seed
from humanward.trainers.diagnostics import combined, explained_variance, mean_of, ratio_metrics, rollout_metrics
from humanward.trainers.responses import plain_task
from humanward.trainers.rollout import Rollout, RolloutSampler
from humanward.trainers.scoring import Score, Scores
from humanward.trainers.updates import Updater, gather_rows, my_rows, with_prefix, without_prefix


class PPOConfig(Config):
    """PPO against a learned reward (Ziegler et al. 2019, section 2.2)."""

    episodes: PositiveInt = 1_000_000
    """Sampled responses over the whole training."""
    batch_size: PositiveInt = 512
    """Episodes per step, over all processes."""
    minibatches: PositiveInt = 1
    """Updates that one pass over a step's episodes is divided into."""
    ppo_epochs: PositiveInt = 4
    """Passes over a step's episodes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole episodes, like lengths together. Changes memory and speed, never the result.
    null: 1536 on a CPU, 16384 on a GPU."""
    lr: PositiveFloat = 1e-5
    """Learning rate at the start."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """``linear``: to 0 over the training, as the 2019 code."""
    adam_eps: PositiveFloat = 1e-5
    """Adam's epsilon."""
    adam_eps_hat: bool = False
    """Epsilon outside the bias correction, as in TensorFlow's Adam."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient's norm; null: do not (2019)."""
    kl_coef: NonNegativeFloat = 0.15
    """Weight of the KL penalty, score units per nat; the start value when ``kl_target`` is set."""
    kl_target: PositiveFloat | None = 6.0
    """KL that the adaptive controller steers to, nats per response; null: ``kl_coef`` stays."""
    kl_horizon: PositiveInt = 10_000
    """Episodes over which the controller could change the coefficient by its clip."""
    kl_clip: PositiveFloat = 0.2
    """Largest relative error of the KL that the controller acts on."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Discount per token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Generalised advantage estimation: 0 trusts the values, 1 the returns."""
    clip_range: PositiveFloat = 0.2
    """How far a probability ratio may leave 1 before its gradient stops."""
    value_clip_range: PositiveFloat = 0.2
    """How far a value may move from its old self before its gradient stops."""
    value_coef: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    value_network: Literal["policy", "reward_model"] = "policy"
    """Who gives the values. ``policy``: a head on the policy's trunk (2019). ``reward_model``: a network of its own that begins as the
    first reward model (Stiennon et al. 2020), for twice the time of an update."""
    whiten_rewards: bool = True
    """Rewards to unit variance, their mean kept."""
    whiten_advantages: bool = True
    """Advantages to unit variance and mean 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the policy. Off, or the ratio would not start at 1 (2019)."""

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided into {self.minibatches} minibatches; choose a divisor")
        if self.episodes < self.batch_size:
            raise ValueError(f"episodes {self.episodes} is less than one batch of {self.batch_size}; raise it or lower batch_size")
        if self.whiten_rewards and self.batch_size // self.minibatches < 8:
            # lm-human-preferences asks for 8 rows where rewards are whitened: the deviation of fewer says little.
            raise ValueError(f"whiten_rewards needs minibatches of 8 episodes or more, not {self.batch_size // self.minibatches}")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0 to start from, since the controller multiplies it")
        return self


@dataclass(frozen=True)
class Minibatch:
    """Rows of a rollout with what their update needs."""

    rollout: Rollout
    advantages: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"]

    def rows(self, index: Tensor) -> Minibatch:
        return Minibatch(self.rollout.rows(index), self.advantages[index], self.returns[index])

    def tensors(self) -> dict[str, Tensor]:
        return vars(self.rollout) | {"advantages": self.advantages, "returns": self.returns}


class ActorCritic(nn.Module):
    """What PPO tunes as one module: a policy whose values are its own head's, or those of a network beside it."""

    def __init__(self, policy: Policy, value_network: ValueNetwork | None) -> None:
        super().__init__()
        self.policy, self.value_network = policy, value_network

    def forward(self, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, response_mask: Tensor, **settings: Any) -> ResponseOutputs:
        outputs = self.policy(prompts, prompt_mask, responses, response_mask, **settings)
        if self.value_network is None:
            return outputs
        return replace(outputs, values=self.value_network(prompts, prompt_mask, responses, response_mask))


class PPOTrainer:
    """PPO with a per-token KL penalty toward the reference and its score at the last token.

    Args:
        policy: what is tuned, with a value head unless there is a value network.
        reference: where it must stay near; frozen.
        reward: a reward model or an ensemble, or any callable of (prompts, responses) -> scores on texts.
        prompts: texts, used whole; or token ids, as ``Task.prompts`` gives them.
        config: settings.
        task: how responses are sampled and truncated; None: ``Task.plain``.
        true_score: a second score, only logged: the labeler's own where it is known.
        check: called while sampling; may raise to stop.
        value_network: is tuned too and gives the values; None: the policy's value head does.
    """

    def __init__(
        self, policy: Policy, reference: Policy, reward: Score | RewardModel | RewardEnsemble, prompts: Sequence[str | Sequence[int]],
        config: PPOConfig, *, task: Task | None = None, seed: int = 0, accelerator: Accelerator | None = None,
        true_score: Score | None = None, check: Callable[[], None] | None = None, value_network: ValueNetwork | None = None,
    ) -> None:  # fmt: skip
        if (policy.value_head is None) == (value_network is None):
            raise UserError("PPO needs a value head, Policy.load(…, value_head=True), or a value network; one of them")
        self.accelerator = accelerator or Accelerator()
        my_rows(self.accelerator, config.batch_size // config.minibatches)  # every process must have its share of every update
        self.policy = policy.to(self.accelerator.device)
        self.task, self.config, self.seed = task or plain_task(policy), config, seed
        self.reward, self.true_score = reward, true_score
        self.rollouts = RolloutSampler(
            self.policy, reference.to(self.accelerator.device), prompts, self.task, self.accelerator, prompts_per_step=config.batch_size,
            seed=seed, stream="ppo", micro_batch_tokens=config.micro_batch_tokens, check=check,
        )  # fmt: skip
        if isinstance(reward, RewardModel | RewardEnsemble):
            self.rollouts.check_context(reward.to(self.accelerator.device).eval().model)
        self.total_steps = config.episodes // config.batch_size
        self.kl_coef = config.kl_coef
        self.actor_critic = ActorCritic(self.policy, None if value_network is None else value_network.to(self.accelerator.device))
        disable_dropout(self.actor_critic, config.dropout)
        self.updater = Updater(
            self.actor_critic, self.accelerator, lr=config.lr, total_updates=self.total_steps * config.ppo_epochs * config.minibatches,
            lr_schedule=config.lr_schedule, adam_eps=config.adam_eps, adam_eps_hat=config.adam_eps_hat, max_grad_norm=config.max_grad_norm,
        )  # fmt: skip

    def run(self) -> list[dict[str, float]]:
        """All steps, without checkpoints; ``trainers.run.train`` has the rest."""
        return [self.step(index) for index in range(self.total_steps)]

    def start(self) -> None:
        """Nothing to prepare."""

    def finish(self) -> None:
        """Nothing to complete."""

    def step(self, index: int) -> dict[str, float]:
        """One iteration of section 2.2: batch_size new episodes, then ppo_epochs passes of clipped updates over them."""
        c = self.config
        rollout = self.sample_rollout(index)  # x ~ D, y ~ pi(.|x)
        scores = self.score(rollout, self.reward)  # r(x, y), [B]
        if self.task.config.train_on_truncated:
            rollout = replace(rollout, response_mask=scores.scored_mask)

        # R(x, y) = r(x, y) - kl_coef * log(pi(y|x) / rho(y|x)), eq. 2: the KL on every token, the score on the last.
        kl = (rollout.logprobs - rollout.reference_logprobs) * rollout.response_mask  # [B, R], nats
        rewards = add_at_last_token(-self.kl_coef * kl, scores.scores, rollout.response_mask)  # [B, R]

        updates: list[dict[str, float]] = []
        for epoch in range(c.ppo_epochs):
            for rows in self.minibatch_rows(index, epoch):
                minibatch = self.advantages(rollout.rows(rows), rewards[rows])
                updates.append(self.update(minibatch))

        metrics = {"episodes": float((index + 1) * c.batch_size)} | self.metrics(rollout, scores, kl, rewards, updates)
        if c.kl_target is not None and math.isfinite(metrics["kl"]):
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, metrics["kl"], kl_target=c.kl_target, batch_size=c.batch_size, horizon=c.kl_horizon, clip=c.kl_clip
            )
        return metrics

    def sample_rollout(self, index: int) -> Rollout:
        """New episodes for step ``index``, with the values of their states."""
        rollout = self.rollouts.sample(index)
        if self.actor_critic.value_network is None:
            return rollout
        own = rollout.rows(my_rows(self.accelerator, len(rollout.prompts)))
        return replace(rollout, values=gather_rows(self.accelerator, self.values(own)))

    @torch.no_grad()
    def values(self, rollout: Rollout) -> Float[Tensor, "B R"]:
        """Of the value network; a value head's come from the sampler."""
        network = self.actor_critic.value_network
        assert network is not None
        r, values = rollout, torch.zeros(rollout.responses.shape, device=rollout.responses.device)
        for rows in self.rollouts.micro_batches(r.prompt_mask, r.response_mask):
            values[rows] = network(r.prompts[rows], r.prompt_mask[rows], r.responses[rows], r.response_mask[rows])
        return values

    def score(self, rollout: Rollout, reward: Score | RewardModel | RewardEnsemble, *, fixed_score: bool = True) -> Scores:
        """r(x, y) of the truncated responses."""
        return self.rollouts.score(rollout, reward, fixed_score=fixed_score)

    def minibatch_rows(self, index: int, epoch: int) -> Iterator[Tensor]:
        order = epoch_order(derive_seed(self.seed, "ppo minibatches", index), epoch, self.config.batch_size)
        return iter(torch.tensor(order, device=self.accelerator.device).split(self.config.batch_size // self.config.minibatches))

    def advantages(self, rollout: Rollout, rewards: Float[Tensor, "B R"]) -> Minibatch:
        """Whitening and GAE inside the minibatch, again in every epoch, as the 2019 code does."""
        c, mask = self.config, rollout.response_mask
        if c.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, rollout.values, mask, gamma=c.gamma, gae_lambda=c.gae_lambda)
        if c.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Minibatch(rollout, advantages, returns)

    def update(self, minibatch: Minibatch) -> dict[str, float]:
        """One clipped update on a minibatch of the global batch."""
        c, device = self.config, self.accelerator.device
        own = minibatch.rows(torch.arange(len(minibatch.advantages), device=device)[my_rows(self.accelerator, len(minibatch.advantages))])
        tokens = minibatch.rollout.response_mask.sum()
        seen: list[dict[str, Tensor]] = []
        torch.manual_seed(derive_seed(self.seed, "ppo dropout", self.updater.updates, self.accelerator.process_index))
        self.updater.module.train()

        def loss(module: nn.Module, part: Minibatch) -> Tensor:
            r, mask = part.rollout, part.rollout.response_mask
            outputs = module(
                r.prompts, r.prompt_mask, r.responses, mask, temperature=self.rollouts.sampling.temperature,
                suppressed=self.rollouts.suppressed, want_entropy=True,
            )  # fmt: skip
            policy_loss = ppo_clip_loss(outputs.logprobs, r.logprobs, part.advantages, clip_range=c.clip_range)
            value_loss = clipped_value_loss(outputs.values, r.values, part.returns, value_clip_range=c.value_clip_range)
            losses = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": outputs.entropy}
            share = mask.sum() / tokens
            seen.append(
                {name: share * masked_mean(x.detach(), mask) for name, x in losses.items()}
                | ratio_metrics(outputs.logprobs, r.logprobs, part.advantages, mask, clip_range=c.clip_range, share=share)
            )
            return share * masked_mean(policy_loss + c.value_coef * value_loss, mask)

        micro = [own.rows(rows) for rows in self.rollouts.micro_batches(own.rollout.prompt_mask, own.rollout.response_mask)]
        step = self.updater.update(micro, loss, what="PPO", batch=own.tensors)
        return step | combined(seen, self.accelerator)

    def metrics(
        self, rollout: Rollout, scores: Scores, kl: Float[Tensor, "B R"], rewards: Float[Tensor, "B R"], updates: list[dict[str, float]]
    ) -> dict[str, float]:
        """What is logged of a step. KL in nats per response; losses are means over the step's updates."""
        metrics = rollout_metrics(rollout, scores, kl, self.kl_coef) | {"kl_coef": self.kl_coef}
        metrics |= mean_of(updates, "entropy", "policy_loss", "value_loss", "approx_kl", "clip_fraction", "grad_norm")
        metrics |= {
            "ratio_max": max(u["ratio_max"] for u in updates),
            "first_ratio_error": updates[0]["ratio_error"],
            "explained_variance": explained_variance(rollout.values, rewards, rollout.response_mask),
            "lr": updates[-1]["lr"],
            "skipped": sum(u["skipped"] for u in updates),
        }
        if self.true_score is not None:
            metrics["true_score"] = float(self.score(rollout, self.true_score, fixed_score=False).scores.mean())
        return metrics

    @property
    def reference(self) -> Policy:
        return self.rollouts.reference

    @property
    def kl_limit(self) -> float | None:
        """KL per response, nats, that the watch calls too far."""
        return None if self.config.kl_target is None else 4 * self.config.kl_target

    def tensors(self) -> dict[str, Tensor]:
        return self.updater.weights() | with_prefix("optimizer", self.updater.state_dict())

    def state(self) -> dict[str, Any]:
        return {**self.updater.state(), "kl_coef": self.kl_coef}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights({name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")})
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)
        self.kl_coef = float(state["kl_coef"])
