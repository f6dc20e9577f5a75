"""Seconds, memory and share of the machine's peak of one PPO step: the embedded model, and a GPT-2-small shape with random weights.

    python bench/ppo_step.py [--steps 3] [--models storyteller gpt2-small]

One JSON line per model on stdout. A step is what the 2019 code calls one: sample the batch, score it, four passes of updates. Useful work
is counted as 2 floating-point operations per weight and token forward and 4 backward, for the tokens that an exact implementation must
compute: the share of the peak says how far from the machine's limit the whole step is, bookkeeping included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from humanward.data import Task, TaskConfig
from humanward.models import Policy, keep_freed_memory
from humanward.models.precision import matmul_rate
from humanward.rounds.loop import peak_memory, reset_peak_memory
from humanward.trainers import PPOConfig, PPOTrainer

PROMPT, RESPONSE = 64, 24


def policy_of(name: str) -> Policy:
    policy = Policy.load("asset:storyteller", value_head=True)
    if name == "storyteller":
        return policy
    # Random weights of GPT-2 small behind the embedded tokenizer: only the shape matters to the time.
    config = GPT2Config(eos_token_id=policy.tokenizer.eos_token_id, bos_token_id=policy.tokenizer.eos_token_id)
    return Policy(GPT2LMHeadModel(config).eval(), policy.tokenizer, value_head=True)


def measure(name: str, batch_size: int, steps: int, peak: float) -> dict[str, object]:
    policy = policy_of(name)
    task = Task(
        TaskConfig(prompt_length=PROMPT, response_length=RESPONSE, prompt_start=None, prompt_end=None, truncate_token=None),
        policy.tokenizer,
    )
    prompts = torch.randint(2, 4000, (4 * batch_size, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    config = PPOConfig(episodes=batch_size * (steps + 1), batch_size=batch_size, lr=1e-5)
    trainer = PPOTrainer(policy, policy.frozen_copy(), lambda p, r: [float(len(x) % 7) for x in r], prompts, config, task=task)
    trainer.step(0)
    reset_peak_memory()
    times: list[float] = []
    for index in range(1, steps + 1):
        start = time.perf_counter()
        trainer.step(index)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    body = sum(p.numel() for n, p in policy.model.named_parameters() if "embed" not in n and "wte" not in n and "wpe" not in n)
    head = policy.head.weight.numel()
    tokens, responses = batch_size * (PROMPT + RESPONSE), batch_size * RESPONSE
    one_forward = 2 * (body * tokens + head * responses)
    useful = one_forward * (2 + 3 * config.ppo_epochs)  # sampling, reference; each epoch forward and backward
    return {
        "bench": "ppo_step",
        "model": name,
        "weights": sum(p.numel() for p in policy.model.parameters()),
        "episodes": batch_size,
        "prompt": PROMPT,
        "response": RESPONSE,
        "threads": torch.get_num_threads(),
        "seconds_median": round(median, 3),
        "seconds_min": round(min(times), 3),
        "tokens_per_second": round(tokens * config.ppo_epochs / median),
        "peak_memory_mb": round(peak_memory() / 1e6),
        "gflop_per_second": round(useful / median / 1e9, 1),
        "matmul_peak_gflop_per_second": round(peak / 1e9, 1),
        "share_of_matmul_peak": round(useful / median / peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["storyteller", "gpt2-small"], choices=["storyteller", "gpt2-small"])
    args = parser.parse_args()
    keep_freed_memory()
    peak = matmul_rate(torch.float32, torch.device("cpu"), seconds=2.0)
    for name in args.models:
        print(json.dumps(measure(name, 64 if name == "storyteller" else 16, args.steps, peak)), flush=True)


if __name__ == "__main__":
    main()
