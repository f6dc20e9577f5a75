"""DPO and reward models on labelled questions, beside TRL's DPOTrainer and RewardTrainer."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from harness import Row, Step, import_trl
from workloads import SHAPES, forward_flop, language_model, lengths, random_questions, real_questions, scorer, words

from humanward.models import Policy, RewardModel
from humanward.records import Comparison
from humanward.trainers import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

STEPS = 64
"""More than are ever run; the trainers must not come to their end."""


def dpo(
    shape: str, dtype: torch.dtype, device: str, *, count: int = 8, prompt: int = 512, response: int = 64, K: int = 2, real: bool = False
) -> Row:
    """A step of DPO with the reference computed on the fly, both trainers from the same weights on the same batch."""
    vocabulary = SHAPES[shape]["vocab_size"]
    questions = real_questions(count) if real else random_questions(count, prompt, response, K, vocabulary)

    def ours() -> Step:
        policy, reference = (Policy(language_model(shape, seed=seed, device=device).to(dtype), words()) for seed in (0, 1))
        config = DPOConfig(lr=1e-6, lr_schedule="constant", batch_size=count, epochs=STEPS, max_grad_norm=None)
        trainer = DPOTrainer(policy, reference.requires_grad_(False).eval(), questions, config)
        numbers = itertools.count()
        return lambda: trainer.step(next(numbers))["loss"]

    def theirs(micro_batch: int) -> Step:
        from datasets import Dataset
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer

        examples = [
            {"prompt_ids": [*q.prompt.tokens], "chosen_ids": [*a.tokens], "rejected_ids": [*b.tokens]} for q, a, b in all_pairs(questions)
        ]
        trainer = Trainer(
            model=language_model(shape, seed=0, device=device), ref_model=language_model(shape, seed=1, device=device),
            args=Config(**arguments(micro_batch, dtype, device), beta=0.1),
            # It takes texts only; the steps are given the token ids.
            train_dataset=Dataset.from_list([{"prompt": "good", "chosen": " good", "rejected": " bad"}]), processing_class=words(),
        )  # fmt: skip
        return steps_of(trainer, examples, micro_batch)

    rows = lengths(questions)
    flop = 4 * forward_flop(shape, rows, head=True)  # forward and twice as much backward, and the reference's forward
    return Row(
        ours, theirs, "TRL DPOTrainer", sizes(len(all_pairs(questions))), flop, sum(p + sum(r) for p, r in rows),
        work_of("DPO", rows, len(all_pairs(questions))), agree=1e-3 if dtype == torch.float32 else 0.1,
        peer_imports=partial(import_trl, "DPOTrainer"),
    )  # fmt: skip


def reward(
    shape: str, dtype: torch.dtype, device: str, *, count: int = 8, prompt: int = 512, response: int = 64, K: int = 2, real: bool = False
) -> Row:
    """A step of a reward model, both trainers from the same weights on the same batch."""
    vocabulary = SHAPES[shape]["vocab_size"]
    questions = real_questions(count) if real else random_questions(count, prompt, response, K, vocabulary)

    def ours() -> Step:
        score = scorer(shape, seed=0, device=device).score.weight.data.clone()
        model = RewardModel(language_model(shape, seed=0, device=device).to(dtype), words())  # the trunk that the scorer had
        model.score_head.weight.data.copy_(score)
        config = RewardConfig(
            lr=1e-6, lr_schedule="constant", batch_size=count, epochs=STEPS, normalize_before=False, normalize_after=False
        )  # fmt: skip
        trainer = RewardTrainer(model, questions, config)
        numbers = itertools.count()
        return lambda: trainer.step(next(numbers))["loss"]

    def theirs(micro_batch: int) -> Step:
        from datasets import Dataset
        from trl import RewardConfig as Config
        from trl import RewardTrainer as Trainer

        examples = [
            {"chosen_ids": [*q.prompt.tokens, *a.tokens], "rejected_ids": [*q.prompt.tokens, *b.tokens]} for q, a, b in all_pairs(questions)
        ]
        trainer = Trainer(
            model=scorer(shape, seed=0, device=device), args=Config(**arguments(micro_batch, dtype, device)),
            train_dataset=Dataset.from_list(examples), processing_class=words(),
        )  # fmt: skip
        return steps_of(trainer, examples, micro_batch)

    rows = lengths(questions)
    return Row(
        ours, theirs, "TRL RewardTrainer", sizes(len(all_pairs(questions))), 3 * forward_flop(shape, rows, head=False),
        sum(p + sum(r) for p, r in rows), work_of("reward model", rows, len(all_pairs(questions))),
        agree=1e-3 if dtype == torch.float32 else 0.1, peer_imports=partial(import_trl, "RewardTrainer"),
    )  # fmt: skip


def all_pairs(questions: Sequence[Comparison]) -> list[tuple[Comparison, Any, Any]]:
    """What a trainer of pairs needs for the same loss: every response of an order against every later one."""
    return [(q, a, b) for q in questions for a, b in itertools.combinations(q.responses, 2)]


def sizes(pairs: int) -> list[int]:
    """Micro-batches that divide the batch."""
    return [n for n in (1, 2, 4, 8, 16) if pairs % n == 0 and n <= pairs]


def arguments(micro_batch: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """TRL at its fastest fair settings: weights in float32 under autocast, no dropout, no checkpointing, no logging."""
    return {
        "output_dir": tempfile.gettempdir() + "/humanward-bench", "per_device_train_batch_size": micro_batch, "use_cpu": device == "cpu",
        "bf16": dtype == torch.bfloat16, "report_to": "none", "gradient_checkpointing": False, "learning_rate": 1e-6,
        "disable_dropout": True, "max_length": None, "logging_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "constant",
    }  # fmt: skip


def steps_of(trainer: Any, examples: list[dict[str, Any]], micro_batch: int) -> Step:
    """One optimiser step of a Hugging Face trainer: its own training step on each micro-batch, then its optimiser."""
    trainer.create_optimizer()
    count = len(examples) // micro_batch
    # Like lengths together, as its users would group them.
    ordered = sorted(examples, key=lambda e: sum(len(ids) for ids in e.values()))
    batches = [trainer.data_collator(ordered[n * micro_batch : (n + 1) * micro_batch]) for n in range(count)]
    trainer.current_gradient_accumulation_steps = count

    def step() -> float:
        loss = sum(float(trainer.training_step(trainer.model, dict(batch))) for batch in batches)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss

    return step


def work_of(what: str, rows: Sequence[tuple[int, Sequence[int]]], pairs: int) -> str:
    prompts, responses = [p for p, _ in rows], [r for _, many in rows for r in many]

    def span(values: Sequence[int]) -> str:
        return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"

    K = len(rows[0][1])
    told = f", the peer {pairs} pairs" if pairs != len(rows) else ""
    return f"{what}, {len(rows)} questions of {K} responses{told}, {span(prompts)} + {span(responses)} tokens"
