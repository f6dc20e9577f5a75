"""Supervised fine-tuning on demonstrations: the loss is on the response tokens only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from humanward.config import Config
from humanward.data.batches import epoch_order, left_pad, right_pad
from humanward.data.demonstrations import Demonstration
from humanward.errors import UserError
from humanward.models import Policy, ResponseOutputs, check_context
from humanward.models.policy import disable_dropout
from humanward.storage import derive_seed
from humanward.trainers.run import Trainer
from humanward.trainers.updates import Updater, micro_batches, my_rows, with_prefix, without_prefix


class SFTConfig(Config):
    """Supervised fine-tuning."""

    texts: str | None = None
    """Demonstrations: a file, folder or data set with ``prompt`` and ``response``, or plain texts. Of the stage ``sft`` alone: the others
    train on the chosen responses of the labels."""
    epochs: PositiveInt = 1
    """Passes over the demonstrations."""
    batch_size: PositiveInt = 32
    """Demonstrations per update, over all processes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole demonstrations, like lengths together. Changes memory and speed, never the result.
    null: 384 to 1536 on a CPU, fewer for wider models; 16384 on a GPU."""
    lr: PositiveFloat = 1e-4
    """Highest learning rate."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Falls to 0 over the training, or stays."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the updates over which the rate rises from 0 first."""
    adam_eps: PositiveFloat = 1e-5
    """Adam's epsilon."""
    adam_eps_hat: bool = False
    """Epsilon outside the bias correction, as in TensorFlow's Adam."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm; null: do not."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout while training. The summary baselines of Ziegler et al. 2019 used 0.1."""
    max_length: PositiveInt = 256
    """Longest piece of a plain text, tokens. Of the stage ``sft`` alone."""


class SFTTrainer(Trainer):
    """Maximum likelihood of responses given their prompts, averaged over the response tokens of the global batch."""

    def __init__(
        self,
        policy: Policy,
        demonstrations: Sequence[Demonstration],
        config: SFTConfig,
        *,
        seed: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:
        if not demonstrations:
            raise UserError("no demonstrations to fine-tune on; give texts with at least one response")
        longest = max(demonstrations, key=lambda d: len(d.prompt) + len(d.response))
        check_context(policy.model, len(longest.prompt), len(longest.response), what=f"demonstration {longest.id}")
        self.accelerator = accelerator or Accelerator()
        self.policy = policy.to(self.accelerator.device)
        self.demonstrations, self.config, self.seed = list(demonstrations), config, seed
        self.steps_per_epoch = -(-len(self.demonstrations) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.updater = Updater(
            policy, self.accelerator, lr=config.lr, total_updates=self.total_steps, lr_schedule=config.lr_schedule,
            adam_eps=config.adam_eps, adam_eps_hat=config.adam_eps_hat, weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm, warmup_updates=int(config.warmup_share * self.total_steps),
        )  # fmt: skip

    def finish(self) -> None:
        """Dropout off again: whoever uses the policy next wants one distribution."""
        disable_dropout(self.policy)

    def step(self, index: int) -> dict[str, float]:
        """One update on ``batch_size`` demonstrations."""
        batch = self.batch(index)
        torch.manual_seed(derive_seed(self.seed, "sft dropout", index, self.accelerator.process_index))
        disable_dropout(self.policy, self.config.dropout)
        self.updater.module.train()
        tokens = sum(len(d.response) for d in batch)
        filler = Demonstration(batch[0].prompt, (), "")  # counts for nothing; so that every process has the same share
        padded = [*batch, *(filler for _ in range(-len(batch) % self.accelerator.num_processes))]
        own = padded[my_rows(self.accelerator, len(padded))]
        micro = micro_batches([len(d.prompt) + len(d.response) for d in own], self.config.micro_batch_tokens, self.policy)

        def loss(module: nn.Module, rows: list[Demonstration]) -> Tensor:
            return demonstration_loss(module, rows, self.policy, self.accelerator.device) / tokens

        metrics = self.updater.update(
            [[own[i] for i in rows] for rows in micro], loss, what="supervised fine-tuning",
            batch=lambda: {"tokens": right_pad([(*d.prompt, *d.response) for d in own], self.policy.pad_id)[0]},
        )  # fmt: skip
        return {**metrics, "tokens": float(tokens)}

    def batch(self, index: int) -> list[Demonstration]:
        """The demonstrations of a step: a pure function of the seed and the step."""
        epoch, number = divmod(index, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.demonstrations))
        return [self.demonstrations[i] for i in order[number * self.config.batch_size : (number + 1) * self.config.batch_size]]

    def tensors(self) -> dict[str, Tensor]:
        return with_prefix("policy", self.updater.weights()) | with_prefix("optimizer", self.updater.state_dict())

    def state(self) -> dict[str, Any]:
        return self.updater.state()

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights(without_prefix("policy", tensors))
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)


def demonstration_loss(
    module: Callable[..., ResponseOutputs], rows: Sequence[Demonstration], policy: Policy, device: torch.device
) -> Tensor:
    """Negative log-likelihood of the responses, nats, summed over tokens. A text without a prompt begins at the end-of-text token."""
    start = policy.tokenizer.bos_token_id if policy.tokenizer.bos_token_id is not None else policy.tokenizer.eos_token_id
    first = start if isinstance(start, int) else 0
    prompts, prompt_mask = left_pad([d.prompt or (first,) for d in rows], policy.pad_id)
    responses, response_mask = right_pad([d.response or (policy.pad_id,) for d in rows], policy.pad_id)
    real = response_mask & torch.tensor([len(d.response) > 0 for d in rows])[:, None]
    outputs = module(prompts.to(device), prompt_mask.to(device), responses.to(device), response_mask.to(device), temperature=1.0)
    return -(outputs.logprobs * real.to(device)).sum()
