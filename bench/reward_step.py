"""A step of a reward model on pairs, ours and TRL's, from the same weights on the same batch.

    python bench/reward_step.py [--shapes S M] [--steps 7] [--pairs 8] [--prompt 512] [--response 64]

One JSON line per shape on stdout. Before anything is measured, both must give the same loss.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from typing import Any

import torch
from datasets import Dataset
from side_by_side import compare, shape, weights_of_body
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
from trl import RewardConfig as TheirConfig
from trl import RewardTrainer as TheirTrainer

from humanward.models import RewardModel, keep_freed_memory
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import RewardConfig, RewardTrainer
from humanward.trainers.selftest import tiny_tokenizer


def pairs(count: int, prompt: int, response: int, vocabulary: int) -> list[Comparison]:
    tokens = torch.randint(2, vocabulary, (count, prompt + 2 * response), generator=torch.Generator().manual_seed(0)).tolist()
    cut = [(row[:prompt], row[prompt : prompt + response], row[prompt + response :]) for row in tokens]
    return [
        Comparison(Prompt(str(n), "", tuple(p)), (Response("", tuple(a)), Response("", tuple(b))), "best_of_k", 0)
        for n, (p, a, b) in enumerate(cut)
    ]


def measure(name: str, count: int, prompt: int, response: int, steps: int, folder: str) -> dict[str, Any]:
    config = shape(name)
    config.num_labels = 1
    torch.manual_seed(0)
    theirs = GPT2ForSequenceClassification(config)
    rows = pairs(count, prompt, response, config.vocab_size)
    tokenizer = tiny_tokenizer()

    language_model = GPT2LMHeadModel(config)
    language_model.transformer.load_state_dict(theirs.transformer.state_dict())
    our_model = RewardModel(language_model, tokenizer)
    our_model.score_head.weight.data.copy_(theirs.score.weight.data)
    settings = RewardConfig(
        lr=1e-5, lr_schedule="constant", batch_size=count, epochs=2 * steps + 8, normalize_before=False, normalize_after=False,
        micro_batch_tokens=2048,
    )  # fmt: skip
    trainer = RewardTrainer(our_model, rows, settings)

    examples = [
        {"chosen_ids": [*c.prompt.tokens, *c.responses[0].tokens], "rejected_ids": [*c.prompt.tokens, *c.responses[1].tokens]} for c in rows
    ]
    arguments = TheirConfig(
        output_dir=folder, per_device_train_batch_size=count, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        learning_rate=1e-5, disable_dropout=True, max_length=None, logging_strategy="no", save_strategy="no",
    )  # fmt: skip
    their_trainer = TheirTrainer(
        model=copy.deepcopy(theirs), args=arguments, train_dataset=Dataset.from_list(examples), processing_class=tokenizer
    )
    their_trainer.create_optimizer()
    their_trainer.current_gradient_accumulation_steps = 1
    batch = their_trainer.data_collator(examples)
    their_losses: list[float] = []

    def their_step() -> None:
        loss = their_trainer.training_step(their_trainer.model, dict(batch))
        torch.nn.utils.clip_grad_norm_(their_trainer.model.parameters(), float("inf"))
        their_trainer.optimizer.step()
        their_trainer.optimizer.zero_grad()
        their_losses.append(float(loss))

    our_losses: list[float] = []

    def our_step() -> None:
        our_losses.append(trainer.step(len(our_losses))["loss"])

    tokens = count * (prompt + 2 * response)
    row = compare(
        {"bench": "reward_step", "shape": name, "pairs": count, "prompt": prompt, "response": response, "peer": "TRL RewardTrainer"},
        our_step, their_step, steps=steps, flop=6.0 * weights_of_body(theirs) * tokens, tokens=tokens,
    )  # fmt: skip
    if abs(our_losses[0] - their_losses[0]) > 1e-4 * abs(their_losses[0]):
        raise SystemExit(f"the first losses differ, {our_losses[0]} and {their_losses[0]}: this would compare different things")
    return row | {"first_loss": {"ours": our_losses[0], "theirs": their_losses[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["S"], choices=["S", "M"])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--response", type=int, default=64)
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.shapes:
            print(json.dumps(measure(name, args.pairs, args.prompt, args.response, args.steps, folder)), flush=True)


if __name__ == "__main__":
    main()
