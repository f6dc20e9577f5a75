"""Fit a reward model to labels: which of K responses is best (Ziegler et al. 2019, section 2.2), or their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from humanward.config import Config
from humanward.data.batches import epoch_order, length_sorted_batches
from humanward.errors import RunError, UserError
from humanward.maths.normalization import gain_and_bias
from humanward.models import RewardModel
from humanward.models.policy import disable_dropout
from humanward.records import Comparison
from humanward.storage import derive_seed
from humanward.trainers.questions import check_questions, collate, preference_loss, tokens_of
from humanward.trainers.scoring import Episodes
from humanward.trainers.updates import Updater, micro_batches, my_rows, sum_over_processes, with_prefix, without_prefix


class RewardConfig(Config):
    """A reward model fitted to labels."""

    lr: PositiveFloat = 5e-5
    """Learning rate at the start."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """``linear``: to 0 over the training, as the 2019 code."""
    batch_size: PositiveInt = 32
    """Questions per update, over all processes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole questions, like lengths together. Changes memory and speed, never the result.
    null: 1536 on a CPU, 16384 on a GPU."""
    epochs: PositiveInt = 1
    """Passes over the labels. One, against overfitting (2019)."""
    adam_eps: PositiveFloat = 1e-5
    """Adam's epsilon."""
    adam_eps_hat: bool = False
    """Epsilon outside the bias correction, as in TensorFlow's Adam."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient's norm; null: do not (2019)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout while fitting. Off (2019)."""
    head_scale: PositiveFloat = 1.0
    """Deviation of the random head, in units of 1 / sqrt(d + 1) (2019). Below 1, with ``normalize_before: false``, fitting begins at
    scores near 0 and has no noise to unlearn first."""
    normalize_before: bool = True
    """Before fitting, give the scores of reference responses the target mean and deviation."""
    normalize_after: bool = True
    """The same after fitting, so that ``kl_coef`` keeps its meaning."""
    normalize_samples: PositiveInt = 256
    """Responses of the reference that the mean and the deviation are measured on."""
    target_mean: float = 0.0
    """Mean score of reference responses after normalisation."""
    target_std: PositiveFloat = 1.0
    """Standard deviation of the scores of reference responses after normalisation."""
    rollout_batch_size: PositiveInt = 512
    """Responses sampled or scored together while normalising; memory only."""
    validation_batch_size: NonNegativeInt = 64
    """Questions scored together when accuracy is measured; memory only."""


class RewardTrainer:
    """One epoch over labels, each question one element of the batch; normalised before and after on responses of the reference.

    Args:
        reward_model: trunk initialised from the reference, head random.
        comparisons: labels of one kind and one K, with token ids.
        config: settings.
        reference_episodes: at least ``normalize_samples`` responses that the reference gave to the task's prompts; needed to normalise.
        seed: of the order of the labels.
    """

    def __init__(
        self, reward_model: RewardModel, comparisons: Sequence[Comparison], config: RewardConfig, *,
        reference_episodes: Episodes | None = None, seed: int = 0, accelerator: Accelerator | None = None,
    ) -> None:  # fmt: skip
        if not comparisons:
            raise UserError("no labels to fit a reward model to; ask for labels first")
        check_questions(comparisons, reward_model.model)
        if reference_episodes is None and (config.normalize_before or config.normalize_after):
            raise UserError("reward.normalize_before/after: normalising needs responses of the reference; give them or set both to false")
        self.accelerator = accelerator or Accelerator()
        self.config, self.comparisons, self.seed = config, list(comparisons), seed
        self.reference_episodes = reference_episodes
        self.reward_model = reward_model.to(self.accelerator.device)
        self.steps_per_epoch = -(-len(self.comparisons) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.updater = Updater(
            reward_model, self.accelerator, lr=config.lr, total_updates=self.total_steps, lr_schedule=config.lr_schedule,
            adam_eps=config.adam_eps, adam_eps_hat=config.adam_eps_hat, weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )  # fmt: skip

    def start(self) -> None:
        """Bring the random head to the scale of the target before fitting."""
        if self.config.normalize_before:
            self.normalize()

    def finish(self) -> None:
        """Bring the fitted scores to the target's scale; dropout off again."""
        disable_dropout(self.reward_model)
        if self.config.normalize_after:
            self.normalize()

    def step(self, index: int) -> dict[str, float]:
        """One update on ``batch_size`` questions."""
        c = self.config
        batch = self.batch(index)
        torch.manual_seed(derive_seed(self.seed, "reward dropout", index, self.accelerator.process_index))
        disable_dropout(self.reward_model, c.dropout)
        self.updater.module.train()
        # The last batch may be uneven: it is filled up with questions of weight 0 so that every process has the same share.
        padded = batch + [batch[0]] * (-len(batch) % self.accelerator.num_processes)
        mine = my_rows(self.accelerator, len(padded))
        own = [(comparison, number < len(batch)) for number, comparison in enumerate(padded)][mine]
        correct: list[Tensor] = []

        def loss(module: nn.Module, rows: list[tuple[Comparison, bool]]) -> Tensor:
            questions = collate([comparison for comparison, _ in rows], self.reward_model.pad_id, self.accelerator.device)
            real = torch.tensor([is_real for _, is_real in rows], device=self.accelerator.device)
            scores = module(questions.prompts, questions.prompt_mask, questions.responses, questions.response_mask)
            correct.append(((scores.argmax(1) == questions.best) & real).sum())
            return (preference_loss(scores, questions) * real).sum() / len(batch)

        micro = micro_batches([tokens_of(comparison) for comparison, _ in own], c.micro_batch_tokens, self.accelerator.device)
        metrics = self.updater.update(
            [[own[i] for i in rows] for rows in micro], loss, what="reward model",
            batch=lambda: collate([comparison for comparison, _ in own], self.reward_model.pad_id, self.accelerator.device).tensors(),
        )  # fmt: skip
        right = sum_over_processes(self.accelerator, torch.stack(correct).sum())
        return {**metrics, "accuracy": float(right) / len(batch)}

    def batch(self, index: int) -> list[Comparison]:
        """The questions of a step: a pure function of the seed and the step."""
        epoch, number = divmod(index, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.comparisons))
        return [self.comparisons[i] for i in order[number * self.config.batch_size : (number + 1) * self.config.batch_size]]

    @torch.no_grad()
    def normalize(self) -> None:
        """Affine map that gives the scores of reference responses the target mean and deviation.

        lm-human-preferences, ``train_reward.py`` and ``rewards.py``: gain = 1 and bias = 0 first, then gain = target_std / std and
        bias = target_mean - gain * mean, with the population deviation.
        """
        assert self.reference_episodes is not None
        c = self.config
        self.reward_model.eval()
        self.reward_model.set_normalization(1.0, 0.0)
        scores = self.scores(self.reference_episodes)[: c.normalize_samples].double()
        std = float(scores.std(correction=0))
        if not std > 0:
            raise RunError(
                "reward model: all reference responses have the same score, so its scale cannot be normalised; look at the samples"
            )
        self.reward_model.set_normalization(*gain_and_bias(float(scores.mean()), std, target_mean=c.target_mean, target_std=c.target_std))

    @torch.no_grad()
    def scores(self, episodes: Episodes) -> Float[Tensor, " B"]:
        e = episodes
        n = self.config.rollout_batch_size
        device = self.accelerator.device
        parts = zip(*(x.to(device).split(n) for x in (e.prompts, e.prompt_mask, e.responses, e.response_mask)), strict=True)
        return torch.cat([self.reward_model(p, pm, r[:, None], m[:, None])[:, 0] for p, pm, r, m in parts])

    def tensors(self) -> dict[str, Tensor]:
        return with_prefix("reward_model", self.updater.weights()) | with_prefix("optimizer", self.updater.state_dict())

    def state(self) -> dict[str, Any]:
        return self.updater.state()

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights(without_prefix("reward_model", tensors))
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)


@torch.no_grad()
def choices(reward_model: RewardModel, comparisons: Sequence[Comparison], *, batch_size: int = 64) -> list[int]:
    """Which response of each question the reward model scores highest."""
    reward_model.eval()
    chosen = [0] * len(comparisons)
    for rows in length_sorted_batches([tokens_of(c) for c in comparisons], batch_size):
        q = collate([comparisons[i] for i in rows], reward_model.pad_id, reward_model.device)
        best = reward_model(q.prompts, q.prompt_mask, q.responses, q.response_mask).argmax(1).tolist()
        for row, choice in zip(rows, best, strict=True):
            chosen[row] = choice
    return chosen
