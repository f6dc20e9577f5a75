"""The pretraining mix of PPO-ptx: plain texts whose likelihood is held up beside what PPO does."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator
from torch import Tensor, nn

from humanward.data import Task, iter_texts, text_windows
from humanward.data.batches import index_order
from humanward.data.demonstrations import Demonstration
from humanward.errors import UserError
from humanward.models import Policy
from humanward.storage import derive_seed
from humanward.trainers.ppo_config import PTXConfig
from humanward.trainers.sft import demonstration_loss
from humanward.trainers.updates import micro_batches, my_rows


def pretraining_texts(config: PTXConfig, task: Task) -> list[Demonstration]:
    """The pieces of the texts.

    Raises:
        UserError: no such file, none that has two tokens, or pieces longer than the model's context.
    """
    rows = list(text_windows(task, iter_texts(config.texts), config.length, setting="ppo.ptx.length"))
    if not rows:
        raise UserError(f"ppo.ptx.texts: {config.texts} has no text of two tokens or more; give texts like those the model was trained on")
    return rows


class PretrainingMix:
    """Gamma times the mean negative log-likelihood per token, in every update (Ouyang et al. 2022, arXiv:2203.02155, eq. 2 and C.4).

    The texts of an update are a pure function of (seed, update), so that a resumed run reads on where it was.
    """

    def __init__(self, config: PTXConfig, rows: Sequence[Demonstration], policy: Policy, accelerator: Accelerator, seed: int) -> None:
        self.config, self.rows, self.policy, self.accelerator, self.seed = config, rows, policy, accelerator, seed
        self.tokens = 1
        """Of the texts of the update that is being made, over all processes."""

    def parts(self, update: int, episodes: int, micro_batch_tokens: int | None) -> list[list[Demonstration]]:
        """This process's share of an update's texts, cut into forwards."""
        count = self.config.texts_per_episode * episodes
        order = index_order(derive_seed(self.seed, "ptx"), update * count, count, len(self.rows))
        self.tokens = sum(len(self.rows[i].response) for i in order)
        own = [self.rows[i] for i in order[my_rows(self.accelerator, count)]]
        forwards = micro_batches([len(row.response) for row in own], micro_batch_tokens, self.policy)
        return [[own[i] for i in forward] for forward in forwards]

    def loss(self, module: nn.Module, part: list[Demonstration]) -> Tensor:
        """The part's share of the mean over the update's tokens, before gamma; at temperature 1."""
        return demonstration_loss(module, part, self.policy, self.accelerator.device) / self.tokens
