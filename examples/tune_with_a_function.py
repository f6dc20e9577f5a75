"""Tune any causal language model with a Python function as its reward: PPO alone, without labels or a run folder.

    python examples/tune_with_a_function.py --model MODEL_FOLDER --word she

The reward is how often a word occurs in a response. The end prints score and KL before and after, and two samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from humanward.data import Task
from humanward.models import Policy, context_length
from humanward.trainers import PPOConfig, PPOTrainer, respond

PROMPTS = ["Once upon a time", "One day, a little", "The old man", "In the morning", "There was a", "The dog"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="asset:storyteller", help="a Hugging Face name or folder")
    parser.add_argument("--word", default="she")
    parser.add_argument("--prompts", type=Path, help="a text file with a prompt in each line")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--kl-coef", type=float, default=0.02, help="score units per nat")
    parser.add_argument("--out", type=Path, help="save the tuned model here, as an ordinary Hugging Face folder")
    args = parser.parse_args()

    def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float(response.lower().split().count(args.word)) for response in responses]

    prompts = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else PROMPTS
    policy = Policy.load(args.model, value_head=True)
    reference = policy.frozen_copy()
    task = Task.plain(policy.tokenizer, response_length=24, temperature=0.7, context_length=context_length(policy.model))
    config = PPOConfig(episodes=args.steps * args.batch_size, batch_size=args.batch_size, lr=args.lr, kl_coef=args.kl_coef, kl_target=None)
    trainer = PPOTrainer(policy, reference, reward, prompts, config, task=task)
    metrics = trainer.run()
    for when, row in (("before", metrics[0]), ("after", metrics[-1])):
        print(f"{when:6}  score {row['score']:.3f}  KL {row['kl']:z.3f} nats per response")
    for prompt, (response,) in zip(prompts[:2], respond(policy, prompts[:2], task=task), strict=True):
        print(f"{prompt!r} -> {response!r}")
    if args.out:
        policy.save(args.out)


if __name__ == "__main__":
    main()
