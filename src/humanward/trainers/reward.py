"""Fit a reward model to labels: which of K responses is best (Ziegler et al. 2019, section 2.2), or their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from humanward.config import Config
from humanward.data.batches import epoch_order
from humanward.errors import RunError, UserError
from humanward.maths.normalization import gain_and_bias
from humanward.models import EnsembleConfig, RewardEnsemble, RewardModel
from humanward.models.policy import disable_dropout
from humanward.records import Comparison
from humanward.storage import derive_seed
from humanward.trainers.label_losses import GRADED, LOSSES_OF_KIND, LossName, loss_for, without_labeler_noise
from humanward.trainers.questions import Questions, agreement_marks, check_questions, collate, tokens_of
from humanward.trainers.run import Trainer
from humanward.trainers.scoring import Episodes, model_scores
from humanward.trainers.updates import Updater, micro_batches, my_rows, sum_over_processes, with_prefix, without_prefix


class RewardConfig(Config):
    """A reward model fitted to labels."""

    loss: LossName = "auto"
    """``choice``: cross-entropy of which response is the best one, for best_of_k, pair and soft labels, and for the sign of differences.
    ``all_pairs``, ``plackett_luce``: for rankings. ``regression``: for ratings and differences. ``binary``: for responses that were liked
    or not, each judged alone. ``auto``: the first that fits."""
    margin: NonNegativeFloat = 0.0
    """By how much a preferred response should lead, score units; for labels of kind difference, per point of the difference (Llama 2)."""
    label_noise: Annotated[float, Field(ge=0, lt=1)] | Literal["estimated"] = 0.0
    """Share of answers thought to be given blindly; 0.1 in Christiano et al. 2017. ``estimated``: how often each labeler is right is
    estimated from questions that several answered, and every question is trained on once, with the probabilities that follow."""
    lr: PositiveFloat = 5e-5
    """Learning rate at the start."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """``linear``: to 0 over the training, as the 2019 code."""
    batch_size: PositiveInt = 32
    """Questions per update, over all processes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole questions, like lengths together. Changes memory and speed, never the result.
    null: 384 to 1536 on a CPU, fewer for wider models; 16384 on a GPU."""
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
    normalize_on: Literal["reference", "demonstrations"] = "reference"
    """What is normalised after fitting. ``reference``: mean and deviation of the scores of responses that the reference wrote.
    ``demonstrations``: only the mean, of responses that people wrote (Stiennon et al. 2020); ``target_mean`` is theirs."""
    normalize_samples: PositiveInt = 256
    """Responses of the reference that the mean and the deviation are measured on."""
    target_mean: float = 0.0
    """Mean score of reference responses after normalisation."""
    target_std: PositiveFloat = 1.0
    """Standard deviation of the scores of reference responses after normalisation."""
    rollout_batch_size: PositiveInt = 512
    """Most responses scored together while normalising; memory only. Their tokens are bounded by ``micro_batch_tokens`` too."""
    validation_batch_size: NonNegativeInt = 64
    """Most questions scored together when accuracy is measured; memory only."""
    ensemble: EnsembleConfig | None = None
    """Several reward models in place of one; null: one."""


class RewardTrainer(Trainer):
    """One epoch over labels, each question one element of the batch; normalised before and after on responses of the reference.

    Args:
        reward_model: trunk initialised from the reference, head random.
        comparisons: labels of one kind and one K, with token ids.
        config: settings.
        reference_episodes: at least ``normalize_samples`` responses that the reference gave to the task's prompts; needed to normalise.
        demonstrations: responses that people wrote; needed to normalise on them.
        seed: of the order of the labels.
        check: called while scores are normalised; may raise to stop.
    """

    def __init__(
        self, reward_model: RewardModel, comparisons: Sequence[Comparison], config: RewardConfig, *,
        reference_episodes: Episodes | None = None, demonstrations: Episodes | None = None, seed: int = 0,
        accelerator: Accelerator | None = None, check: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        if not comparisons:
            raise UserError("no labels to fit a reward model to; ask for labels first")
        check_questions(comparisons, reward_model.model, tuple(LOSSES_OF_KIND))
        on_demonstrations = config.normalize_after and config.normalize_on == "demonstrations"
        if reference_episodes is None and (config.normalize_before or (config.normalize_after and not on_demonstrations)):
            raise UserError("reward.normalize_before/after: normalising needs responses of the reference; give them or set both to false")
        if on_demonstrations and demonstrations is None:
            raise UserError("reward.normalize_on: demonstrations: needs responses that people wrote; give them, or normalize_on=reference")
        self.accelerator = accelerator or Accelerator()
        estimated = config.label_noise == "estimated"
        self.config, self.seed, self.check = config, seed, check
        self.comparisons = without_labeler_noise(comparisons) if estimated else list(comparisons)
        noise = 0.0 if config.label_noise == "estimated" else config.label_noise
        self.label_loss = loss_for(self.comparisons, config.loss, margin=config.margin, noise=noise)
        self.reference_episodes, self.demonstrations = reference_episodes, demonstrations
        self.reward_model = reward_model.to(self.accelerator.device)
        eos = reward_model.tokenizer.eos_token_id
        self.reward_model.stops_at_eos = eos is not None and any(eos in r.tokens[-1:] for c in comparisons for r in c.responses)
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
            self.normalize(*label_moments(self.comparisons) or (self.config.target_mean, self.config.target_std))

    def finish(self) -> None:
        """Bring the fitted scores to the target's scale; dropout off again."""
        disable_dropout(self.reward_model)
        fitted = float(self.reward_model.gain)
        if self.config.normalize_after and self.config.normalize_on == "demonstrations":
            self.shift()
        elif self.config.normalize_after:
            self.normalize(self.config.target_mean, self.config.target_std)
        self.reward_model.choice_scale.fill_(fitted / float(self.reward_model.gain))

    def step(self, index: int) -> dict[str, float]:
        """One update on ``batch_size`` questions: the mean of their losses, each as often as its weight says."""
        c = self.config
        batch = self.batch(index)
        torch.manual_seed(derive_seed(self.seed, "reward dropout", index, self.accelerator.process_index))
        disable_dropout(self.reward_model, c.dropout)
        self.updater.module.train()
        # The last batch may be uneven: it is filled up with questions of weight 0 so that every process has the same share.
        padded = batch + [batch[0]] * (-len(batch) % self.accelerator.num_processes)
        mine = my_rows(self.accelerator, len(padded))
        own = [(comparison, number < len(batch)) for number, comparison in enumerate(padded)][mine]
        total_weight = sum(comparison.weight for comparison in batch)
        correct: list[Tensor] = []

        def loss(module: nn.Module, rows: list[tuple[Comparison, bool]]) -> Tensor:
            questions = collate([comparison for comparison, _ in rows], self.reward_model.pad_id, self.accelerator.device)
            real = torch.tensor([is_real for _, is_real in rows], device=self.accelerator.device)
            scores = module(questions.prompts, questions.prompt_mask, questions.responses, questions.response_mask)
            weight = torch.tensor([comparison.weight * is_real for comparison, is_real in rows], device=self.accelerator.device)
            correct.append((right_choices(scores, questions) & real).sum())
            return (self.label_loss(scores, questions.target) * weight).sum() / total_weight

        micro = micro_batches([tokens_of(comparison) for comparison, _ in own], c.micro_batch_tokens, self.reward_model)
        metrics = self.updater.update(
            [[own[i] for i in rows] for rows in micro], loss, what="reward model",
            batch=lambda: collate([comparison for comparison, _ in own], self.reward_model.pad_id, self.accelerator.device).tensors(),
        )  # fmt: skip
        right = sum_over_processes(self.accelerator, torch.stack(correct).sum())
        # One response alone is always the best of its question.
        return metrics if len(batch[0].responses) == 1 else {**metrics, "accuracy": float(right) / len(batch)}

    def batch(self, index: int) -> list[Comparison]:
        """The questions of a step: a pure function of the seed and the step."""
        epoch, number = divmod(index, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.comparisons))
        return [self.comparisons[i] for i in order[number * self.config.batch_size : (number + 1) * self.config.batch_size]]

    @torch.no_grad()
    def normalize(self, target_mean: float, target_std: float) -> None:
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
        self.reward_model.set_normalization(*gain_and_bias(float(scores.mean()), std, target_mean=target_mean, target_std=target_std))

    @torch.no_grad()
    def shift(self) -> None:
        """Move all scores so that the demonstrations' mean is ``target_mean``; differences stay as they were fitted.

        Stiennon et al. 2020 (arXiv:2009.01325), section 3.4; Huang et al. 2024, detail 15.
        """
        assert self.demonstrations is not None
        self.reward_model.eval()
        mean = float(self.scores(self.demonstrations).double().mean())
        model = self.reward_model
        model.set_normalization(float(model.gain), float(model.bias) + self.config.target_mean - mean)

    @torch.no_grad()
    def scores(self, episodes: Episodes) -> Float[Tensor, " B"]:
        c, device = self.config, self.accelerator.device
        moved = Episodes(*(x.to(device) for x in (episodes.prompts, episodes.prompt_mask, episodes.responses, episodes.response_mask)))
        return model_scores(
            self.reward_model, moved, rows_at_once=c.rollout_batch_size, tokens_at_once=c.micro_batch_tokens, check=self.check
        )

    def tensors(self) -> dict[str, Tensor]:
        return with_prefix("reward_model", self.updater.weights()) | with_prefix("optimizer", self.updater.state_dict())

    def state(self) -> dict[str, Any]:
        return self.updater.state()

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.updater.load_weights(without_prefix("reward_model", tensors))
        self.updater.load_state_dict(without_prefix("optimizer", tensors), state)


def right_choices(scores: Float[Tensor, "B K"], questions: Questions) -> Bool[Tensor, " B"]:
    """Whether the response with the highest score is one that the label puts first; of tied ones, any is right."""
    given = -questions.target if questions.ranked else questions.target
    return given.gather(1, scores.argmax(1, keepdim=True)).squeeze(1) == given.amax(1)


def label_moments(comparisons: Sequence[Comparison]) -> tuple[float, float] | None:
    """Mean and deviation of scores that would give these ratings or differences; None where the labels have no scale, or all are equal.

    lm-human-preferences, ``label_types.py``: half a difference varies as much as a score.
    """
    if comparisons[0].kind not in GRADED:
        return None
    values = torch.tensor([float(c.target) for c in comparisons], dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    std = float(values.std(correction=0))
    if not std > 0:
        return None
    return (float(values.mean()), std) if comparisons[0].kind == "rating" else (0.0, std / 2)


def question_batches(
    model: RewardModel | RewardEnsemble, comparisons: Sequence[Comparison], batch_size: int, check: Callable[[], None] | None
) -> Iterator[list[int]]:
    """Questions that share a forward: of like length, ``batch_size`` at most, and as many tokens as are fast there."""
    for batch in micro_batches([tokens_of(c) for c in comparisons], None, model):
        for start in range(0, len(batch), batch_size):
            if check is not None:
                check()
            yield batch[start : start + batch_size]


@torch.no_grad()
def scores_of(
    model: RewardModel | RewardEnsemble, comparisons: Sequence[Comparison], *, batch_size: int = 64, check: Callable[[], None] | None = None
) -> list[list[float]]:
    """The scores of each question's responses; ``check`` is called before each forward and may raise to stop."""
    model.eval()
    scores: list[list[float]] = [[] for _ in comparisons]
    for rows in question_batches(model, comparisons, batch_size, check):
        q = collate([comparisons[i] for i in rows], model.pad_id, model.device)
        found = model(q.prompts, q.prompt_mask, q.responses, q.response_mask).tolist()
        for row, values in zip(rows, found, strict=True):
            scores[row] = values
    return scores


def choices(
    model: RewardModel | RewardEnsemble, comparisons: Sequence[Comparison], *, batch_size: int = 64, check: Callable[[], None] | None = None
) -> list[int]:
    """Which response of each question the reward model scores highest."""
    return [values.index(max(values)) for values in scores_of(model, comparisons, batch_size=batch_size, check=check)]


def agreements(
    model: RewardModel | RewardEnsemble, comparisons: Sequence[Comparison], *, batch_size: int = 64, check: Callable[[], None] | None = None
) -> list[bool]:
    """Whether the reward model prefers what the labels prefer: ``agreement_marks`` of its scores."""
    return agreement_marks(comparisons, scores_of(model, comparisons, batch_size=batch_size, check=check))
