"""Small trainings that many tests share: ragged prompts and responses over a handful of words, a few updates each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from humanward.data import Demonstration, left_pad, right_pad
from humanward.models import Policy, RewardModel, ValueNetwork
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import (
    DPOConfig,
    DPOTrainer,
    Episodes,
    ExpertIterationConfig,
    GroupConfig,
    GroupTrainer,
    OnlineDPOConfig,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from humanward.trainers.selftest import tiny_policy, tiny_task

PROMPTS = [(4,), (5, 6), (7, 2), (3,)]
TEXTS = str(Path(__file__).parent / "plain_texts.txt")
EVERYTHING: dict[str, Any] = {
    "surrogate": "trust_region_rollback", "rollback_slope": 0.05, "trust_region_kl": 0.003, "dual_clip": 3.0, "old_kl_coef": 0.2,
    "old_kl_target": 0.002, "stop_kl": 0.05, "entropy_coef": 0.01, "value_clip_range": None, "kl_in": "loss", "kl_estimator": "full",
    "kl_target": None, "kl_target_per_token": 0.1, "reference_ema": 0.9, "score_clip": 1.0, "whiten_over": "batch",
    "ptx": {"texts": TEXTS, "coef": 0.1, "texts_per_episode": 2, "length": 5},
}  # fmt: skip
"""Every setting of PPO that is off by default, at once: they are to be combined."""


def tokens(number: int, length: int) -> tuple[int, ...]:
    """Some of the words, which are tokens 2 to 7."""
    return tuple(2 + (5 * number + 3 * place * place + number // 3) % 6 for place in range(length))


def demonstrations(count: int = 16) -> list[Demonstration]:
    return [Demonstration(tokens(n, n % 3), tokens(n + 1, 1 + n % 4), str(n)) for n in range(count)]


def comparisons(count: int = 16, K: int = 3) -> list[Comparison]:
    rows = []
    for n in range(count):
        responses = tuple(Response("", tokens(3 * n + k, 1 + (n + k) % 4)) for k in range(K))
        rows.append(Comparison(Prompt(str(n), "", tokens(n, 1 + n % 3)), responses, "best_of_k", n % K, question_id=str(n)))
    return rows


def episodes(count: int = 12) -> Episodes:
    return Episodes(
        *left_pad([tokens(n, 1 + n % 3) for n in range(count)], 1), *right_pad([tokens(n + 7, 1 + n % 4) for n in range(count)], 1)
    )


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [response.split().count("good") - 0.5 * response.split().count("w3") for response in responses]


def policy_of(dtype: torch.dtype, *, seed: int, value_head: bool = False) -> Policy:
    """Body and LM head in ``dtype``; a value head stays float32."""
    policy = tiny_policy(seed=seed, value_head=value_head)
    policy.model.to(dtype)
    return policy


def sft(
    *, policy_seed: int = 0, accelerator: Accelerator | None = None, count: int = 16, dtype: torch.dtype = torch.float32,
    value_head: bool = False, **settings: Any,
) -> SFTTrainer:  # fmt: skip
    config = SFTConfig(**{"lr": 3e-3, "batch_size": 8, "epochs": 2, **settings})
    policy = policy_of(dtype, seed=policy_seed, value_head=value_head)
    return SFTTrainer(policy, demonstrations(count), config, seed=5, accelerator=accelerator)


def reward(
    *, policy_seed: int = 0, accelerator: Accelerator | None = None, count: int = 16, dtype: torch.dtype = torch.float32,
    weights: tuple[float, ...] = (1.0,), **settings: Any,
) -> RewardTrainer:  # fmt: skip
    policy = policy_of(dtype, seed=policy_seed)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(policy_seed))
    config = RewardConfig(**{"lr": 3e-3, "batch_size": 8, "epochs": 2, "normalize_samples": 12, **settings})
    labels = [replace(c, weight=weights[n % len(weights)]) for n, c in enumerate(comparisons(count))]
    return RewardTrainer(model, labels, config, reference_episodes=episodes(), seed=5, accelerator=accelerator)


def ppo(
    *, policy_seed: int = 0, accelerator: Accelerator | None = None, task: Any = None, check: Any = None, true_score: Any = None,
    dtype: torch.dtype = torch.float32, **settings: Any,
) -> PPOTrainer:  # fmt: skip
    policy = policy_of(dtype, seed=policy_seed, value_head=True)
    config = PPOConfig(**{"lr": 3e-3, "episodes": 64, "batch_size": 16, "minibatches": 2, "kl_target": 1.0, "kl_horizon": 100, **settings})
    task = task or tiny_task(policy, response_length=3)
    return PPOTrainer(
        policy, policy_of(dtype, seed=1), score, PROMPTS, config, task=task, seed=5, accelerator=accelerator, true_score=true_score,
        check=check,
    )  # fmt: skip


def ppo_with_value_network(
    *, policy_seed: int = 0, accelerator: Accelerator | None = None, dtype: torch.dtype = torch.float32, **settings: Any
) -> PPOTrainer:
    policy, beside = policy_of(dtype, seed=policy_seed), policy_of(dtype, seed=policy_seed + 3)
    network = ValueNetwork.from_reward_model(RewardModel(beside.model, beside.tokenizer, generator=torch.Generator().manual_seed(0)))
    config = PPOConfig(**{"lr": 1e-3, "episodes": 64, "batch_size": 16, "minibatches": 2, "kl_target": None, **settings})
    task = tiny_task(policy, response_length=3)
    reference = policy_of(dtype, seed=1)
    return PPOTrainer(policy, reference, score, PROMPTS, config, task=task, seed=5, accelerator=accelerator, value_network=network)


def ppo_with_everything(**settings: Any) -> PPOTrainer:
    return ppo(**{**EVERYTHING, **settings})


def dpo(
    *, policy_seed: int = 0, accelerator: Accelerator | None = None, count: int = 16, dtype: torch.dtype = torch.float32, **settings: Any
) -> DPOTrainer:
    config = DPOConfig(**{"lr": 3e-3, "batch_size": 8, "epochs": 2, "adam_eps": 1e-5, **settings})
    policy, reference = policy_of(dtype, seed=policy_seed), policy_of(dtype, seed=1)
    return DPOTrainer(policy, reference, comparisons(count), config, seed=5, accelerator=accelerator)


GROUP_METHODS = {
    **dict.fromkeys(("rloo", "grpo", "dr_grpo", "reinforce"), GroupConfig), "online_dpo": OnlineDPOConfig,
    "expert_iteration": ExpertIterationConfig,
}  # fmt: skip


def groups(
    method: str, *, policy_seed: int = 0, accelerator: Accelerator | None = None, task: Any = None, check: Any = None,
    true_score: Any = None, reward: Any = score, dtype: torch.dtype = torch.float32, **settings: Any,
) -> GroupTrainer:  # fmt: skip
    """Four prompts with four responses each in a step, two updates on two prompts each, twice."""
    policy = policy_of(dtype, seed=policy_seed)
    own = {"episodes": 64, "batch_size": 16, "responses_per_prompt": 4, "minibatches": 2, "epochs": 2, "lr": 3e-3}
    config = GROUP_METHODS[method](**{**own, **settings})
    task = task or tiny_task(policy, response_length=3)
    return GroupTrainer(
        policy, policy_of(dtype, seed=1), reward, PROMPTS, config, method, task=task, seed=5, accelerator=accelerator,
        true_score=true_score, check=check,
    )  # fmt: skip


MAKERS = {
    "sft": sft, "reward": reward, "ppo": ppo, "dpo": dpo, "value network": ppo_with_value_network,
    "everything": ppo_with_everything,
    **{method: partial(groups, method) for method in GROUP_METHODS},
}  # fmt: skip


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    """Weights and optimiser state at the end of a training without checkpoints."""
    trainer.start()
    for index in range(trainer.total_steps):
        trainer.step(index)
    trainer.finish()
    found = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    if isinstance(trainer, RewardTrainer):
        # A choice among K does not depend on the bias of the head: its gradient is pure rounding, which Adam enlarges. The normalisation
        # takes it out again, so that only the sum of both biases is a number to compare.
        found["reward_model.bias"] += found["reward_model.gain"] * found.pop("reward_model.score_head.bias")[0]
    return found
