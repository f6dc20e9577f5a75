"""Direct preference optimisation: a policy fitted to labels without a reward model (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from humanward.config import Config
from humanward.data.batches import epoch_order
from humanward.errors import UserError
from humanward.models import Policy
from humanward.models.policy import disable_dropout
from humanward.records import Comparison
from humanward.storage import derive_seed
from humanward.trainers.questions import Questions, check_questions, collate, preference_loss, tokens_of
from humanward.trainers.updates import Updater, micro_batches, my_rows, sum_over_processes, with_prefix, without_prefix


class DPOConfig(Config):
    """A policy fitted to labels."""

    beta: PositiveFloat = 0.1
    """Score units per nat that the policy moves away from the reference: large holds it near."""
    lr: PositiveFloat = 1e-6
    """Highest learning rate."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """``linear``: to 0 over the training."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the updates over which a cosine schedule rises from 0."""
    batch_size: PositiveInt = 32
    """Questions per update, over all processes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole questions, like lengths together. Changes memory and speed, never the result.
    null: 1536 on a CPU, 16384 on a GPU."""
    epochs: PositiveInt = 1
    """Passes over the labels."""
    adam_eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm; null: do not."""


class DPOTrainer:
    """A reward model whose score is beta * log(pi(y|x) / rho(y|x)), eq. 5 and 7: the same losses on the same labels.

    Two responses give the paper's loss, -log sigmoid(score[chosen] - score[rejected]); a choice among K its Plackett-Luce form (appendix
    A.3, the first place of the ranking), an order of K the mean over its pairs. The K responses share one forward of their prompt.

    Args:
        policy: what is tuned.
        reference: rho, where it begins and must stay near; frozen.
        comparisons: labels of one kind and one K, with token ids.
        config: settings.
        seed: of the order of the labels.
    """

    def __init__(
        self, policy: Policy, reference: Policy, comparisons: Sequence[Comparison], config: DPOConfig, *, seed: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:  # fmt: skip
        if not comparisons:
            raise UserError("no labels to tune on; ask for labels first")
        check_questions(comparisons, policy.model)
        self.accelerator = accelerator or Accelerator()
        self.policy, self.reference = policy.to(self.accelerator.device), reference.to(self.accelerator.device)
        self.comparisons, self.config, self.seed = list(comparisons), config, seed
        self.steps_per_epoch = -(-len(self.comparisons) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        disable_dropout(policy)
        self.updater = Updater(
            policy, self.accelerator, lr=config.lr, total_updates=self.total_steps, lr_schedule=config.lr_schedule,
            adam_eps=config.adam_eps, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
            warmup_updates=int(config.warmup_share * self.total_steps),
        )  # fmt: skip

    def run(self) -> list[dict[str, float]]:
        """All steps, without checkpoints; ``trainers.run.train`` has the rest."""
        return [self.step(index) for index in range(self.total_steps)]

    def start(self) -> None:
        """Nothing to prepare."""

    def finish(self) -> None:
        """Nothing to complete."""

    def step(self, index: int) -> dict[str, float]:
        """One update on ``batch_size`` questions."""
        batch = self.batch(index)
        torch.manual_seed(derive_seed(self.seed, "dpo", index, self.accelerator.process_index))
        self.updater.module.train()
        # The last batch may be uneven: it is filled up with questions of weight 0 so that every process has the same share.
        padded = batch + [batch[0]] * (-len(batch) % self.accelerator.num_processes)
        own = [(comparison, number < len(batch)) for number, comparison in enumerate(padded)]
        own = own[my_rows(self.accelerator, len(padded))]
        seen: list[Float[Tensor, " M"]] = []

        def loss(module: nn.Module, rows: list[tuple[Comparison, bool]]) -> Tensor:
            questions = collate([comparison for comparison, _ in rows], self.policy.pad_id, self.accelerator.device)
            weight = torch.tensor([float(real) for _, real in rows], device=self.accelerator.device) / len(batch)
            with torch.no_grad():
                reference = sequence_logprobs(self.reference, questions)
            moved = sequence_logprobs(module, questions) - reference  # log(pi / rho), [B, K]
            rewards = self.config.beta * moved
            seen.append((weight[:, None] * question_metrics(rewards.detach(), moved.detach(), questions)).sum(0))
            return (weight * preference_loss(rewards, questions)).sum()

        micro = micro_batches([tokens_of(comparison) for comparison, _ in own], self.config.micro_batch_tokens, self.accelerator.device)
        metrics = self.updater.update(
            [[own[i] for i in rows] for rows in micro], loss, what="DPO",
            batch=lambda: collate([comparison for comparison, _ in own], self.policy.pad_id, self.accelerator.device).tensors(),
        )  # fmt: skip
        means = sum_over_processes(self.accelerator, torch.stack(seen).sum(0)).tolist()
        return metrics | dict(zip(METRICS, means, strict=True))

    def batch(self, index: int) -> list[Comparison]:
        """The questions of a step: a pure function of the seed and the step."""
        epoch, number = divmod(index, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.comparisons))
        return [self.comparisons[i] for i in order[number * self.config.batch_size : (number + 1) * self.config.batch_size]]

    def tensors(self) -> dict[str, Tensor]:
        return with_prefix("policy", self.updater.weights()) | with_prefix("optimizer", self.updater.state_dict())

    def state(self) -> dict[str, Any]:
        return self.updater.state()

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights(without_prefix("policy", tensors))
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)


def sequence_logprobs(policy: nn.Module, questions: Questions) -> Float[Tensor, "B K"]:
    """Of every response: log pi(y | x), nats, the sum over its tokens."""
    q = questions
    return policy(q.prompts, q.prompt_mask, q.responses, q.response_mask, temperature=1.0).logprobs.sum(-1)


METRICS = ("accuracy", "margin", "chosen_moved", "rejected_moved")
"""Share of questions whose preferred response has the highest reward; its lead over the mean of the others, score units; log(pi / rho) of
the preferred one and of the mean of the others, nats: where both fall, probability leaves them both for something that nobody judged."""


def question_metrics(rewards: Float[Tensor, "B K"], moved: Float[Tensor, "B K"], questions: Questions) -> Float[Tensor, "B M"]:
    """``METRICS`` of each question."""
    best = questions.best[:, None]

    def chosen_and_others(x: Tensor) -> tuple[Tensor, Tensor]:
        chosen = x.gather(1, best).squeeze(1)
        return chosen, (x.sum(1) - chosen) / (x.shape[1] - 1)

    chosen_reward, other_rewards = chosen_and_others(rewards)
    right = (rewards.argmax(1) == questions.best).to(rewards.dtype)
    return torch.stack([right, chosen_reward - other_rewards, *chosen_and_others(moved)], dim=1)
