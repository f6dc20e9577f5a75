"""Before a run: does everything push in the right direction? A few seconds on a problem so small that the answer is known.

Ziegler et al. 2019, section 4.4: a refactoring flipped the sign of the reward and of the KL term at once, and the night's run optimised
fluently for the worst. These checks use the very trainers of the run, so a wrong sign anywhere in them is caught before it costs a night.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig
from humanward.errors import RunError
from humanward.models import Policy, RewardModel
from humanward.records import Comparison, Prompt, Response
from humanward.trainers.ppo import PPOTrainer
from humanward.trainers.ppo_config import PPOConfig
from humanward.trainers.reward import RewardConfig, RewardTrainer, choices
from humanward.trainers.scoring import Episodes

WORDS = ("good", "bad", "w2", "w3", "w4", "w5")
END, PAD, GOOD = 0, 1, 2
TINY_PPO: dict[str, Any] = {"episodes": 64 * 12, "batch_size": 64, "lr": 3e-3, "lr_schedule": "constant", "kl_target": None}

TERMS = ("surrogate", "dual_clip", "kl_in", "kl_estimator", "whiten_over")
"""Settings that choose a term of the objective."""


def tiny_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word, behind an end and a pad token: words[i] is token i + 2."""
    vocabulary = {"<end>": END, "<pad>": PAD} | {word: i + 2 for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def tiny_policy(*, seed: int = 0, value_head: bool = False, words: Sequence[str] = WORDS, width: int = 16, layers: int = 1) -> Policy:
    """A random language model over a handful of words."""
    tokenizer = tiny_tokenizer(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
                max_position_embeddings=32, tie_word_embeddings=False, initializer_range=0.3, bos_token_id=None,
                eos_token_id=END, pad_token_id=PAD,
            )
        )  # fmt: skip
    return Policy(model, tokenizer, value_head=value_head)


def tiny_task(policy: Policy, *, response_length: int = 2, temperature: float = 1.0) -> Task:
    """A task without marks: every response has its full length and is scored whole."""
    config = TaskConfig(
        prompt_start=None, prompt_end=None, truncate_token=None, prompt_length=2, response_length=response_length, temperature=temperature
    )
    return Task(config, policy.tokenizer)


class GoodCounter:
    """Scores a response by its number of "good", and keeps each mean: what was asked for, whatever a trainer makes of it."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        counts = [float(response.split().count("good")) for response in responses]
        self.means.append(sum(counts) / len(counts))
        return counts


def tiny_ppo(like: PPOConfig | None, **settings: Any) -> PPOConfig:
    """A short training with the terms that the run's own settings choose, not with their sizes."""
    terms = {} if like is None else {name: getattr(like, name) for name in TERMS}
    if terms.get("kl_in") != "loss":
        terms.pop("kl_estimator", None)  # in the reward, k1 alone brings a policy back: maths.kl_estimate
    if terms.get("surrogate") == "ratio":
        terms["old_kl_coef"] = 0.1
    return PPOConfig(**{**TINY_PPO, **terms, **settings})


def self_test(like: PPOConfig | None = None) -> None:
    """Run all checks, those of PPO with the terms of ``like``; None: with the default ones.

    Raises:
        RunError: something pushes the wrong way; training with it would optimise for the worst.
    """
    reward_model = check_label_sign()
    check_reward_sign(like)
    check_preferred_rises(reward_model, like)
    check_kl_sign(like)
    check_temperature()


def check_label_sign() -> RewardModel:
    """A reward model fitted to a labeler who always prefers "good" must score "good" higher. Returns it."""
    policy = tiny_policy()
    prompt = Prompt("p", "w2", (4,))
    answers = [Response(WORDS[token - 2], (token,)) for token in range(2, len(WORDS) + 2)]
    others = [a for a in answers if a.tokens != (GOOD,)]
    rows = [Comparison(prompt, (a, answers[0]), "best_of_k", 1) for a in others] * 8
    episodes = Episodes(*_blocks([(4,)] * 6), *_blocks([a.tokens for a in answers]))
    config = RewardConfig(lr=1e-2, batch_size=len(others), normalize_samples=6)
    trainer = RewardTrainer(
        RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0)), rows, config, reference_episodes=episodes
    )
    trainer.start()
    for index in range(trainer.total_steps):
        trainer.step(index)
    trainer.finish()
    if choices(trainer.reward_model, rows) != [1] * len(rows):
        _fail(
            "a reward model fitted to a labeler who prefers one word does not score it highest",
            "a sign of the labels or of the reward loss",
        )
    return trainer.reward_model


def check_reward_sign(like: PPOConfig | None) -> None:
    """PPO on a score of 1 for "good" and 0 otherwise must make "good" likelier."""
    policy, counter = tiny_policy(value_head=True), GoodCounter()
    config = tiny_ppo(like, kl_coef=0.01)
    metrics = PPOTrainer(policy, policy.frozen_copy(), counter, [(4,)], config, task=tiny_task(policy)).run()
    if metrics[0]["first_ratio_error"] > 1e-3:
        _fail("log-probabilities while sampling differ from those of a forward pass", "the temperature, the positions or the masks")
    if not counter.means[-1] > counter.means[0] + 0.2:
        _fail("the score that PPO optimises does not rise", "a sign of the reward or of the advantages")


def check_preferred_rises(reward_model: RewardModel, like: PPOConfig | None) -> None:
    """The whole way from labels to the policy: PPO against the reward model fitted to them must make "good" likelier."""
    policy, counter = tiny_policy(value_head=True), GoodCounter()
    config = tiny_ppo(like, kl_coef=0.01)
    PPOTrainer(policy, policy.frozen_copy(), reward_model, [(4,)], config, task=tiny_task(policy), true_score=counter).run()
    if not counter.means[-1] > counter.means[0] + 0.2:
        _fail("what the labeler prefers does not become likelier under the reward model", "a sign of the reward model's scores")


def check_kl_sign(like: PPOConfig | None) -> None:
    """With no score at all, the KL penalty must bring a policy back to its reference."""
    policy, reference = tiny_policy(seed=1, value_head=True), tiny_policy(seed=2)
    config = tiny_ppo(like, kl_coef=1.0)
    trainer = PPOTrainer(policy, reference, lambda prompts, responses: [0.0] * len(responses), [(4,)], config, task=tiny_task(policy))
    metrics = trainer.run()
    if not metrics[0]["kl"] > 0:
        _fail("the KL between two different policies is not positive", "a sign of the KL term or the reference's log-probabilities")
    if not metrics[-1]["kl"] < 0.8 * metrics[0]["kl"]:
        _fail("the KL penalty does not bring the policy back to its reference", "a sign of the KL term or of the advantages")


@torch.no_grad()
def check_temperature() -> None:
    """At temperature 0.5, sampling and reference must give the log-probabilities of the logits divided by it, and not the others."""
    policy = tiny_policy(seed=3, value_head=True)
    task, config = tiny_task(policy, response_length=3, temperature=0.5), PPOConfig(**TINY_PPO)
    trainer = PPOTrainer(policy, policy.frozen_copy(), GoodCounter(), [(4,)], config, task=task)
    rollout = trainer.sample_rollout(0)
    logits = policy.model(input_ids=torch.cat([rollout.prompts, rollout.responses], dim=1)).logits[:, :-1]
    logits[..., [END, PAD]] = -math.inf  # never sampled
    at_half, at_one = (torch.log_softmax(logits / t, -1).gather(-1, rollout.responses[..., None])[..., 0] for t in (0.5, 1.0))
    if not (at_half - at_one).abs().mean() > 0.1:
        _fail("a lower temperature does not sharpen the distribution", "the tiny model")
    for found, whose in ((rollout.logprobs, "while sampling"), (rollout.reference_logprobs, "of the reference")):
        if not (found - at_half).abs().max() < 1e-3:
            _fail(f"log-probabilities {whose} are not those at the task's temperature", "where logits are divided by it")


def _blocks(rows: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor(rows)
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def _fail(what: str, suspects: str) -> None:
    raise RunError(f"self-test: {what}; the fault is in {suspects}. Nothing was trained; mend it before you run again")
