"""A round's reward model or ensemble: how it begins, what it is fitted to, on what it is normalised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from humanward.data import iter_texts
from humanward.data.batches import epoch_order, index_order, left_pad, right_pad
from humanward.data.demonstrations import demonstrations
from humanward.errors import UserError
from humanward.models import RewardEnsemble, RewardModel, load_causal_lm, new_ensemble
from humanward.models.loading import resolve
from humanward.records import Comparison, write_jsonl
from humanward.rounds.context import Context
from humanward.rounds.frozen import chosen_responses, comparisons, write_accuracy
from humanward.rounds.reward_checks import MEASURED, PREDICTIONS, measured, predictions
from humanward.storage import generator, write_json
from humanward.trainers import EnsembleTrainer, Episodes, RewardTrainer, train
from humanward.trainers.questions import agreement_marks


def fit_reward(context: Context, round: int, output: Path) -> None:
    """Fit a new reward model to all labels so far and measure it on the round's validation questions."""
    training, validation = comparisons(context, round)
    trainer = reward_trainer(context, training, round)
    train(trainer, context.surroundings(f"reward-{round}"), stage="reward", round=round)
    if context.accelerator.is_main_process:
        several = isinstance(trainer, EnsembleTrainer)
        model = trainer.ensemble if several else trainer.reward_model
        if isinstance(model, RewardEnsemble):
            model.save(output)
        else:
            model.save(output, merged=False)
        rows = predictions(context, model, validation, round)
        write_jsonl(output / PREDICTIONS, rows)
        right = agreement_marks(validation, [row["scores"] for row in rows])
        write_json(output / MEASURED, measured(context, model, rows, right, round))
        held_out = (
            [{"correct": right, "questions": count} for right, count in trainer.held_out_accuracy(check=context.stop.check)]
            if several
            else []
        )
        write_accuracy(output, round, right, validation, len(training), **({"held_out": held_out} if several else {}))


def new_reward_model(context: Context, round: int) -> RewardModel | RewardEnsemble:
    """The reference's trunk with a random head, or several such: each round begins anew (2019)."""
    settings, tokenizer = context.config.reward, context.task.tokenizer
    head = generator(context.config.seed, "reward head", round)
    if settings.ensemble is not None:  # it has trunks of its own, or one, whatever else is trained as adapters
        trunk = load_causal_lm(resolve(context.reference_folder), dtype=context.dtype)
        return context.optimized(new_ensemble(trunk, tokenizer, settings.ensemble, head_scale=settings.head_scale, generator=head))
    reward_model = RewardModel(context.base_model(), tokenizer, head_scale=settings.head_scale, generator=head)
    if context.config.lora is not None:
        reward_model.adapt(context.config.lora, seed=context.seed("adapter of reward", round))
    return context.optimized(reward_model)


def reward_trainer(context: Context, training: Sequence[Comparison], round: int) -> RewardTrainer | EnsembleTrainer:
    """The training of a round's new reward model."""
    settings = context.config.reward
    model = new_reward_model(context, round)
    given: dict[str, Any] = {
        "reference_episodes": reference_responses(context, round),
        "demonstrations": written_responses(context, training, round) if settings.normalize_on == "demonstrations" else None,
        "seed": context.seed("reward", round), "accelerator": context.accelerator,
        "check": context.stop.check,
    }  # fmt: skip
    if isinstance(model, RewardEnsemble):
        return EnsembleTrainer(model, training, settings, **given)
    return RewardTrainer(model, training, settings, **given)


def reference_responses(context: Context, round: int) -> Episodes:
    """Responses of the reference to prompts of the training, on which scores are normalised."""
    prompts = context.prompts("training")
    order = index_order(context.seed("normalization prompts", round), 0, context.config.reward.normalize_samples, len(prompts))
    return context.episodes(context.policy(context.reference_folder), [prompts[i] for i in order], "normalization", round)


def written_responses(context: Context, training: Sequence[Comparison], round: int) -> Episodes:
    """What ``reward.normalize_on: demonstrations`` is measured on, ``normalize_samples`` at most, by lot.

    The responses of ``sft.texts``, where they have some; else those among the labels that people wrote; else those that labelers chose.
    """
    written = list(_supervised(context))
    if not written:
        rows = [(c.prompt.tokens, r) for c in training for r in c.responses]
        written = [(prompt, r.tokens) for prompt, r in rows if r.source == "human" and r.tokens]
    if not written:
        written = [(prompt.tokens, response.tokens) for prompt, response in chosen_responses(training) if response.tokens]
    if not written:
        raise UserError(
            "reward.normalize_on: demonstrations: sft.texts has no responses, and no label prefers one; choose normalize_on=reference"
        )
    order = epoch_order(context.seed("normalization demonstrations", round), 0, len(written))
    some = [written[i] for i in order[: context.config.reward.normalize_samples]]
    pad = context.task.tokenizer.pad_token_id
    pad_id = pad if isinstance(pad, int) else 0
    return Episodes(*left_pad([prompt for prompt, _ in some], pad_id), *right_pad([response for _, response in some], pad_id))


def _supervised(context: Context) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The demonstrations that the policy was fine-tuned on; none where it was fine-tuned on plain texts."""
    settings = context.config.sft
    texts = list(iter_texts(settings.texts)) if settings is not None and settings.texts is not None else []
    if any(text.response is not None for text in texts):
        yield from ((d.prompt, d.response) for d in demonstrations(context.task, texts))
