"""Proximal policy optimisation against a learned reward, as Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, and its released code.

What later work has added is chosen by the settings (``ppo_config``): the terms of the loss are in ``ppo_objective``, the formulas in
``maths``, what other methods share in ``rollout`` and ``diagnostics``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from humanward.data import Task
from humanward.data.batches import epoch_order
from humanward.data.demonstrations import Demonstration
from humanward.errors import UserError
from humanward.maths.advantages import gae
from humanward.maths.kl import adapted_kl_coef, doubled_or_halved_kl_coef, kl_estimate
from humanward.maths.masks import add_at_last_token, masked_mean
from humanward.maths.value_losses import clipped_value_loss
from humanward.maths.whitening import whiten
from humanward.models import Policy, ValueNetwork
from humanward.models.adapters import adapter_tensors, disable_adapter_dropout
from humanward.models.policy import ResponseOutputs, disable_dropout, evaluating
from humanward.storage import derive_seed
from humanward.trainers.diagnostics import combined, explained_variance, ratio_metrics, rollout_metrics, update_metrics
from humanward.trainers.guards import KL_LIMIT
from humanward.trainers.moving_reference import MovingReference
from humanward.trainers.ppo_config import PPOConfig
from humanward.trainers.ppo_objective import needs_distributions, needs_reference_distributions, old_kl, policy_loss, reference_kl
from humanward.trainers.ptx import PretrainingMix, pretraining_texts
from humanward.trainers.responses import plain_task
from humanward.trainers.rewards import Reward, Score, moved
from humanward.trainers.rollout import Rollout, RolloutSampler
from humanward.trainers.run import Trainer
from humanward.trainers.scoring import Scores
from humanward.trainers.updates import Updater, gather_rows, my_rows, with_prefix, without_prefix


@dataclass(frozen=True)
class Minibatch:
    """Rows of a rollout with what their update needs."""

    rollout: Rollout
    advantages: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"]

    def rows(self, index: Tensor | slice) -> Minibatch:
        return Minibatch(self.rollout.rows(index), self.advantages[index], self.returns[index])

    def tensors(self) -> dict[str, Tensor]:
        return self.rollout.tensors() | {"advantages": self.advantages, "returns": self.returns}


class ValuePart(Minibatch):
    """What the value network learns from, in a forward and backward of its own: each model works in the memory that the other left."""


class ActorCritic(nn.Module):
    """What PPO tunes as one module: a policy whose values are its own head's, or those of a network beside it."""

    def __init__(self, policy: Policy, value_network: ValueNetwork | None) -> None:
        super().__init__()
        self.policy, self.value_network = policy, value_network

    def forward(
        self, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, response_mask: Tensor, *, network: bool = False, **settings: Any
    ) -> ResponseOutputs | Float[Tensor, "B R"]:
        """What the policy says of responses; or, with ``network``, the values of the network."""
        if network:
            assert self.value_network is not None
            return self.value_network(prompts, prompt_mask, responses, response_mask)
        return self.policy(prompts, prompt_mask, responses, response_mask, **settings)

    def value_weights(self) -> list[nn.Parameter]:
        """What values alone are made with: a head, or a value network without the trunk that it shares."""
        network = self.value_network
        if network is None:
            return [] if self.policy.value_head is None else [*self.policy.value_head.parameters()]
        own = network.trunk.parameters() if network.adapter is None else adapter_tensors(network.trunk, network.adapter).values()
        return [*own, *network.head.parameters()]


class PPOTrainer(Trainer):
    """PPO with a per-token KL penalty toward the reference and its score at the last token.

    Args:
        policy: what is tuned, with a value head unless there is a value network.
        reference: where it must stay near; frozen.
        reward: a reward model, an ensemble, any callable of (prompts, responses) -> scores on texts, or a ``WeightedReward`` of such.
        prompts: texts, used whole; or token ids, as ``Task.prompts`` gives them.
        config: settings.
        task: how responses are sampled and truncated; None: ``Task.plain``.
        true_score: a second score, only logged: the labeler's own where it is known.
        check: called while sampling and scoring; may raise to stop.
        value_network: is tuned too and gives the values; None: the policy's value head does.
    """

    def __init__(
        self, policy: Policy, reference: Policy, reward: Reward, prompts: Sequence[str | Sequence[int]],
        config: PPOConfig, *, task: Task | None = None, seed: int = 0, accelerator: Accelerator | None = None,
        true_score: Score | None = None, check: Callable[[], None] | None = None, value_network: ValueNetwork | None = None,
    ) -> None:  # fmt: skip
        if (policy.value_head is None) == (value_network is None):
            raise UserError("PPO needs a value head, Policy.load(…, value_head=True), or a value network; one of them")
        self.accelerator = accelerator or Accelerator()
        my_rows(self.accelerator, config.batch_size // config.minibatches)  # every process must have its share of every update
        self.policy = policy.to(self.accelerator.device)
        self.task, self.config, self.seed = task or plain_task(policy), config, seed
        self.true_score = None if true_score is None else moved(true_score, self.accelerator.device)
        self.rollouts = RolloutSampler(
            self.policy, reference.to(self.accelerator.device), prompts, self.task, self.accelerator, prompts_per_step=config.batch_size,
            seed=seed, stream="ppo", micro_batch_tokens=config.micro_batch_tokens, networks=2 if value_network is None else 3, check=check,
        )  # fmt: skip
        self.reward = self.rollouts.prepared(reward)
        if value_network is not None:
            value_network.check_tokens(policy.tokenizer)
            self.rollouts.check_context(value_network.trunk)  # pyright: ignore[reportArgumentType]
        self.total_steps = config.steps
        self.kl_coef, self.old_kl_coef = config.kl_coef, config.old_kl_coef
        ema = config.reference_ema
        self.moving_reference = None if ema is None else MovingReference(self.reference, self.policy, ema)
        rows = None if config.ptx is None else pretraining_texts(config.ptx, self.task)
        self.ptx = None if config.ptx is None or rows is None else PretrainingMix(config.ptx, rows, self.policy, self.accelerator, seed)
        self.actor_critic = ActorCritic(self.policy, None if value_network is None else value_network.to(self.accelerator.device))
        disable_dropout(self.actor_critic, config.dropout)
        disable_adapter_dropout(self.policy.trunk, self.policy.adapter)
        if value_network is not None:
            disable_adapter_dropout(value_network.trunk, value_network.adapter)
        self.updates_per_step = config.ppo_epochs * config.minibatches
        value_weights = {*self.actor_critic.value_weights()}
        value_scale = 1.0 if config.value_lr is None else config.value_lr / config.lr
        self.updater = Updater(
            self.actor_critic, self.accelerator, lr=config.lr, total_updates=self.total_steps * self.updates_per_step,
            updates_per_step=self.updates_per_step, lr_schedule=config.lr_schedule, adam_eps=config.adam_eps,
            adam_eps_hat=config.adam_eps_hat, max_grad_norm=config.max_grad_norm,
            warmup_updates=config.warmup_steps * self.updates_per_step,
            lr_scale=lambda weight: value_scale if weight in value_weights else 1.0,
        )  # fmt: skip

    def step(self, index: int) -> dict[str, float]:
        """One iteration of section 2.2: batch_size new episodes, then ppo_epochs passes of clipped updates over them."""
        c = self.config
        rollout = self.sample_rollout(index)  # x ~ D, y ~ pi(.|x)
        scores = self.score(rollout, self.reward)  # r(x, y), [B]
        truth = self.rollouts.truth(rollout, self.true_score)
        if self.task.config.train_on_truncated:
            rollout = replace(rollout, response_mask=scores.scored_mask)

        # R(x, y) = r(x, y) - kl_coef * log(pi(y|x) / rho(y|x)), eq. 2: the KL on every token, the score on the last.
        kl = (rollout.logprobs - rollout.reference_logprobs) * rollout.response_mask  # [B, R], nats
        penalty = self.kl_penalty(rollout, kl)
        clip = math.inf if c.score_clip is None else c.score_clip
        rewards = add_at_last_token(-self.kl_coef * penalty, scores.scores.clamp(-clip, clip), rollout.response_mask)  # [B, R]

        updates: list[dict[str, float]] = []
        epochs: list[int] = []
        fitted: list[tuple[Tensor, Tensor, Tensor]] = []
        for epoch, minibatch in self.minibatches(index, rollout, rewards):
            updates.append(self.update(minibatch, first_pass=epoch == 0))
            epochs.append(epoch)
            fitted.append((minibatch.rollout.values, minibatch.returns, minibatch.rollout.response_mask))
            if "stopped" in updates[-1]:
                break
        self.updater.updates = (index + 1) * self.updates_per_step  # the schedule goes on, whatever was left out

        metrics = {"episodes": float((index + 1) * c.batch_size), "kl_coef": self.kl_coef}
        metrics |= rollout_metrics(rollout, scores, kl, self.kl_coef) | update_metrics(updates, epochs)
        metrics["explained_variance"] = explained_variance(*(torch.cat(parts) for parts in zip(*fitted, strict=True)))
        return metrics | truth | self.adapt(rollout, metrics)

    def adapt(self, rollout: Rollout, metrics: Mapping[str, float]) -> dict[str, float]:
        """Move what the next step shall find moved: the coefficients of both KLs, and a reference that follows."""
        c, found = self.config, dict[str, float]()
        target, kl = (c.kl_target, metrics["kl"]) if c.kl_target is not None else (c.kl_target_per_token, metrics["kl_per_token"])
        if target is not None and math.isfinite(kl):
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, kl, kl_target=target, batch_size=c.batch_size, horizon=c.kl_horizon, clip=c.kl_clip
            )
        if c.old_kl_coef > 0:
            found["old_kl_coef"] = self.old_kl_coef
        if c.old_kl_target is not None:
            found["old_kl_after"] = self.old_kl_after(rollout)
            if math.isfinite(found["old_kl_after"]):
                self.old_kl_coef = doubled_or_halved_kl_coef(self.old_kl_coef, found["old_kl_after"], kl_target=c.old_kl_target)
        if self.moving_reference is not None:
            self.moving_reference.follow(without_prefix("policy", self.updater.weights()))
        return found

    def sample_rollout(self, index: int) -> Rollout:
        """New episodes for step ``index``, with the values of their states, and whole distributions where a setting asks for them."""
        rollout = self.rollouts.sample(index, reference_distributions=needs_reference_distributions(self.config))
        if self.actor_critic.value_network is not None:
            own = rollout.rows(my_rows(self.accelerator, len(rollout.prompts)))
            rollout = replace(rollout, values=gather_rows(self.accelerator, self.values(own)))
        if needs_distributions(self.config):
            rollout = replace(rollout, distributions=self.rollouts.distributions(self.policy, rollout))
        return rollout

    @torch.no_grad()
    def values(self, rollout: Rollout) -> Float[Tensor, "B R"]:
        """Of the value network; a value head's come from the sampler."""
        network = self.actor_critic.value_network
        assert network is not None
        r, values = rollout, torch.zeros(rollout.responses.shape, device=rollout.responses.device)
        with evaluating(network):
            for rows in self.rollouts.micro_batches(r.prompt_mask, r.response_mask):
                values[rows] = network(r.prompts[rows], r.prompt_mask[rows], r.responses[rows], r.response_mask[rows])
        return values

    def score(self, rollout: Rollout, reward: Reward) -> Scores:
        """r(x, y) of the truncated responses."""
        return self.rollouts.score(rollout, reward)

    def kl_penalty(self, rollout: Rollout, kl: Float[Tensor, "B R"]) -> Float[Tensor, "B R"]:
        """What the reward pays of the KL on every token, nats, by the settings' estimator; 0 where the loss pays it."""
        if self.config.kl_in == "loss":
            return torch.zeros_like(kl)
        if self.config.kl_estimator == "full":
            return self.rollouts.full_kl(self.policy, rollout)
        return kl_estimate(kl, torch.zeros_like(kl), self.config.kl_estimator)

    def minibatches(self, index: int, rollout: Rollout, rewards: Float[Tensor, "B R"]) -> Iterator[tuple[int, Minibatch]]:
        """(pass, episodes) of each update of a step, with whitened rewards and advantages of their own, or those of the whole batch."""
        whole = self.advantages(rollout, rewards) if self.config.whiten_over == "batch" else None
        for epoch in range(self.config.ppo_epochs):
            for rows in self.minibatch_rows(index, epoch):
                yield epoch, self.advantages(rollout.rows(rows), rewards[rows]) if whole is None else whole.rows(rows)

    def minibatch_rows(self, index: int, epoch: int) -> Iterator[Tensor]:
        order = epoch_order(derive_seed(self.seed, "ppo minibatches", index), epoch, self.config.batch_size)
        return iter(torch.tensor(order, device=self.accelerator.device).split(self.config.batch_size // self.config.minibatches))

    def advantages(self, rollout: Rollout, rewards: Float[Tensor, "B R"]) -> Minibatch:
        """Whitening and GAE, as the 2019 code does inside each minibatch, again in every epoch."""
        c, mask = self.config, rollout.response_mask
        if c.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, rollout.values, mask, gamma=c.gamma, gae_lambda=c.gae_lambda)
        if c.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Minibatch(rollout, advantages, returns)

    def update(self, minibatch: Minibatch, *, first_pass: bool = True) -> dict[str, float]:
        """One update on a minibatch of the global batch; left out where the policy has gone further than ``stop_kl``."""
        c, rows = self.config, len(minibatch.advantages)
        own = minibatch.rows(my_rows(self.accelerator, rows))
        tokens = minibatch.rollout.response_mask.sum()
        seen: defaultdict[type, list[dict[str, Tensor]]] = defaultdict(list)
        measured: dict[str, float] = {}
        torch.manual_seed(derive_seed(self.seed, "ppo dropout", self.updater.updates, self.accelerator.process_index))
        self.updater.module.train()

        def loss(module: nn.Module, part: Minibatch | list[Demonstration]) -> Tensor:
            if isinstance(part, list):
                assert self.ptx is not None
                likelihood = self.ptx.loss(module, part)
                seen[list].append({"ptx_loss": likelihood.detach()})
                return self.ptx.config.coef * likelihood
            share = part.rollout.response_mask.sum() / tokens
            if isinstance(part, ValuePart):
                mean, metrics = self.network_loss(module, part, share)
            else:
                # The entropy of the policy that sampled is logged; that of the later passes is not worth its cost where the loss has none.
                mean, metrics = self.loss(module, part, share, want_entropy=first_pass or c.entropy_coef > 0)
            seen[type(part)].append(metrics)
            return share * mean

        def near_enough() -> bool:
            measured.update(self._logged(seen.values()))
            return c.stop_kl is None or measured["old_kl"] <= c.stop_kl

        texts = [] if self.ptx is None else self.ptx.parts(self.updater.updates, rows, c.micro_batch_tokens)
        micro = [own.rows(rows) for rows in self.rollouts.micro_batches(own.rollout.prompt_mask, own.rollout.response_mask)]
        values = [] if self.actor_critic.value_network is None else [ValuePart(**vars(part)) for part in micro]
        step = self.updater.update([*texts, *micro, *values], loss, what="PPO", batch=own.tensors, accept=near_enough)
        return step | (measured or self._logged(seen.values()))

    def _logged(self, parts: Iterable[list[dict[str, Tensor]]]) -> dict[str, float]:
        """The metrics of an update, from those of its forwards, like with like."""
        return {name: value for alike in parts for name, value in combined(alike, self.accelerator).items()}

    def loss(self, module: nn.Module, part: Minibatch, share: Tensor, *, want_entropy: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the tokens of some episodes, and what is logged of them, weighted by their ``share`` of the minibatch.

        The value loss is in it where the values are the policy's own head's.
        """
        c, r, mask = self.config, part.rollout, part.rollout.response_mask
        outputs = module(
            r.prompts, r.prompt_mask, r.responses, mask, temperature=self.rollouts.sampling.temperature,
            suppressed=self.rollouts.suppressed, want_entropy=want_entropy, kl_from=r.distributions,
            kl_to=r.reference_distributions if c.kl_in == "loss" else None,
        )  # fmt: skip
        terms = {"policy_loss": policy_loss(outputs, r, part.advantages, c)}
        total = terms["policy_loss"]
        if outputs.values is not None:
            terms["value_loss"] = self.value_loss(outputs.values, part)
            total = total + c.value_coef * terms["value_loss"]
        if want_entropy:
            terms["entropy"] = outputs.entropy
        if c.entropy_coef > 0:
            total = total - c.entropy_coef * outputs.entropy
        if c.old_kl_coef > 0:
            total = total + self.old_kl_coef * old_kl(outputs, r)
        if c.kl_in == "loss":
            total = total + self.kl_coef * reference_kl(outputs, r, c)
        metrics = {name: share * masked_mean(term.detach(), mask) for name, term in terms.items()} | ratio_metrics(
            outputs.logprobs, r.logprobs, part.advantages, mask, clip_range=c.clip_range, share=share, old_kl=outputs.kl_from
        )
        return masked_mean(total, mask), metrics

    def network_loss(self, module: nn.Module, part: Minibatch, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a value network adds to the loss, which has no weight in common with the rest; and what is logged of it."""
        r, mask = part.rollout, part.rollout.response_mask
        values = module(r.prompts, r.prompt_mask, r.responses, mask, network=True)
        mean = masked_mean(self.value_loss(values, part), mask)
        return self.config.value_coef * mean, {"value_loss": share * mean.detach()}

    def value_loss(self, values: Float[Tensor, "B R"], part: Minibatch) -> Float[Tensor, "B R"]:
        """Of each token, against the returns."""
        return clipped_value_loss(values, part.rollout.values, part.returns, value_clip_range=self.config.value_clip_range)

    def old_kl_after(self, rollout: Rollout) -> float:
        """KL(the policy that sampled || the policy after its updates), nats per token."""
        own = rollout.rows(my_rows(self.accelerator, len(rollout.prompts)))
        said = self.rollouts.ask(self.policy, own.prompts, own.prompt_mask, own.responses, own.response_mask)
        kl = kl_estimate(rollout.logprobs, gather_rows(self.accelerator, said.logprobs), "k3")
        return float(masked_mean(kl, rollout.response_mask))

    @property
    def reference(self) -> Policy:
        return self.rollouts.reference

    @property
    def kl_limit(self) -> float:
        """Four times the target, or what is too far without one."""
        c = self.config
        per_token = None if c.kl_target_per_token is None else c.kl_target_per_token * self.task.config.response_length
        target = c.kl_target if c.kl_target is not None else per_token
        return KL_LIMIT if target is None else 4 * target

    @property
    def ratio_limit(self) -> float | None:
        """None where dropout makes every ratio random."""
        return None if self.config.dropout > 0 else self.rollouts.ratio_limit

    def tensors(self) -> dict[str, Tensor]:
        moved = {} if self.moving_reference is None else with_prefix("reference", self.moving_reference.tensors())
        return self.updater.weights() | with_prefix("optimizer", self.updater.state_dict()) | moved

    def state(self) -> dict[str, Any]:
        return {**self.updater.state(), "kl_coef": self.kl_coef, "old_kl_coef": self.old_kl_coef}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        apart = ("optimizer.", "reference.")
        self.updater.load_weights({name: tensor for name, tensor in tensors.items() if not name.startswith(apart)})
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)
        if self.moving_reference is not None:
            self.moving_reference.load(without_prefix("reference", tensors))
        self.kl_coef, self.old_kl_coef = float(state["kl_coef"]), float(state["old_kl_coef"])
