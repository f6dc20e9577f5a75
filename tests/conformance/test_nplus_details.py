"""The details of Huang et al. 2024 (arXiv:2403.17031) that are no value of its preset: one test per detail, by its number.

The values are held by tests/presets; what Ziegler et al. 2019 did already, by test_training_details.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from humanward.config import preset_names
from humanward.data import Task, TaskConfig, Text, left_pad
from humanward.data.batches import index_order
from humanward.data.given_labels import read_given
from humanward.maths import add_at_last_token, response_mask_until_eos, whiten
from humanward.models import SamplingSettings, sample_responses
from humanward.rounds import LoopConfig
from humanward.trainers import PPOConfig, PPOTrainer
from humanward.trainers.selftest import END, tiny_policy

POST = "SUBREDDIT: r/cats\n\nTITLE: Mine\n\nPOST: One line.\nAnother line.\nA third one"


def tldr(length: int, tokenizer: PreTrainedTokenizerFast) -> Task:
    """The task of the preset on a tokenizer of bytes: a token is a letter."""
    config = LoopConfig.load(preset="huang2024_nplus_tldr").task
    settings = config.model_copy(update={"prompt_length": length, "prompt_suffix": "\n\nTL;DR:"})
    return Task(settings, tokenizer)


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (200, POST), (len(POST), POST), (len(POST) - 1, POST.rpartition("\n")[0]),
        (len(POST.rpartition("\n")[0]) - 1, POST.rpartition("\nAnother")[0]), (20, "SUBREDDIT: r/cats\n"), (17, "SUBREDDIT: r/cats"),
        (10, "SUBREDDIT:"),
    ],
)  # fmt: skip
def test_a_long_post_loses_its_last_line_until_it_fits(room: int, left: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Detail 2.2: cut at the last newline, again and again; where there is none left, one character at a time. Not in mid-word."""
    (prompt,) = tldr(room, byte_tokenizer).prompts([Text(POST, "1")])
    assert prompt.text == left + "\n\nTL;DR:"


def test_a_post_without_newlines_loses_characters_until_it_fits(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Detail 2.2: many of them too, in a moment."""
    (prompt,) = tldr(100, byte_tokenizer).prompts([Text("x" * 50_000, "1")])
    assert prompt.text == "x" * 100 + "\n\nTL;DR:"


def test_the_prompt_ends_without_a_space() -> None:
    """Detail 2.3: behind `TL;DR:` stands nothing, since the space belongs to the next word's token."""
    config = LoopConfig.load(preset="huang2024_nplus_tldr").task
    assert not config.prompt_suffix[-1:].isspace()


def test_the_three_lengths_fit_into_their_contexts() -> None:
    """Detail 4: prompt 512 and response 53 are 565 of the 2048 tokens of Pythia; responses that people compared have up to 169."""
    config = LoopConfig.load(preset="huang2024_nplus_tldr")
    assert (config.task.prompt_length, config.task.response_length, config.labels.response_length) == (512, 53, 169)


@pytest.mark.parametrize("name", ["huang2024_nplus_tldr", "stiennon2020_tldr", "ahmadian2024_tldr", "rafailov2023_tldr"])
def test_the_longest_compared_response_is_learned_from(name: str, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Detail 4: a response of 169 tokens, its end counted, is a label, though the policy writes 53."""
    config = LoopConfig.load(preset=name)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"prompt": "{n} TL;DR:", "chosen": "{"a" * n}", "rejected": " b"}}\n' for n in (168, 169)))
    task = Task(config.task, byte_tokenizer, context_length=2048)
    given = read_given(path, task, response_length=config.labels.response_length, leave_out_long=config.labels.leave_out_long)
    assert [max(len(r.tokens) for r in question.responses) for question in given.questions] == [169]
    assert given.too_long == 1


@pytest.mark.parametrize("name", ["stiennon2020_tldr", "huang2024_nplus_tldr", "xu2024_hh", "xu2024_saferlhf", "bai2022_hh"])
def test_pad_is_not_end_of_text(name: str) -> None:
    """Detail 3: a padding token of its own, or the model would never learn to end."""
    assert name in preset_names()
    assert LoopConfig.load(preset=name).pad_token not in (None, "<|endoftext|>", "</s>")


def test_the_prompts_are_seen_pass_after_pass_each_in_a_new_order() -> None:
    """Detail 21: the demonstrations' prompts are used again, and shuffled when all have been used."""
    passes = [index_order(1, number * 50, 50, 50) for number in range(3)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


@torch.no_grad()
def test_an_ended_response_is_the_full_length_one_with_pads_behind_its_end() -> None:
    """Details 23.1 and 23.2: sampling all 53 tokens and padding behind the first end-of-text gives what stopping there gives."""
    policy = tiny_policy(seed=2)
    policy.head.weight[END] = policy.head.weight[4]  # ends a response now and then
    prompts, mask = left_pad([(4,)] * 40, 1)
    stopped = sample_responses(policy, prompts, mask, SamplingSettings(8, stop_at_eos=True), seeds=range(40))
    suppressed = policy.suppressed_tokens(keep_eos=True)
    policy.suppressed_tokens = lambda *, keep_eos: suppressed  # pyright: ignore[reportAttributeAccessIssue]
    whole = sample_responses(policy, prompts, mask, SamplingSettings(8), seeds=range(40))
    until = response_mask_until_eos(whole.responses[:, 0], END)
    assert torch.equal(stopped.response_mask[:, 0], until)
    assert torch.equal(stopped.responses[:, 0][until], whole.responses[:, 0][until])
    torch.testing.assert_close(stopped.logprobs[:, 0][until], whole.logprobs[:, 0][until], atol=1e-5, rtol=0)
    assert not until.all()


def ending_trainer(score: float = 5.0, **settings: object) -> PPOTrainer:
    policy = tiny_policy(value_head=True)
    config = TaskConfig(
        prompt_start=None, prompt_end=None, truncate_token=None, prompt_length=2, response_length=4, temperature=1.0, stop_at_eos=True
    )

    def fixed(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [score] * len(responses)

    ppo = PPOConfig(**{"episodes": 64, "batch_size": 64, "kl_target": None, "kl_coef": 0.05, "whiten_rewards": False, **settings})
    return PPOTrainer(policy, policy.frozen_copy(), fixed, [(4,)], ppo, task=Task(config, policy.tokenizer))


def test_the_score_is_paid_at_the_end_token_or_minus_one_at_the_last() -> None:
    """Details 12 and 23.3: at the end-of-text token itself. The code pays in the slot behind it; trl issue 3750."""
    trainer = ending_trainer()
    rollout = trainer.sample_rollout(0)
    scores = trainer.score(rollout, trainer.reward)
    rewards = add_at_last_token(torch.zeros(64, 4), scores.scores, rollout.response_mask)
    ended = ((rollout.responses == END) & rollout.response_mask).any(1)
    assert 0 < ended.sum() < 64
    assert (rewards[(rollout.responses == END) & rollout.response_mask] == 5.0).all()
    assert (rewards[~ended, -1] == -1.0).all()
    assert int((rewards != 0).sum()) == 64


def test_nothing_behind_the_end_is_trained() -> None:
    """Detail 23.2: what a pad's log-probability, value or reward might be changes no weight."""
    weights = []
    for junk in (0.0, 9.0):
        trainer = ending_trainer()
        rollout = trainer.sample_rollout(0)
        pads = ~rollout.response_mask
        assert pads.any()
        for tensor in (rollout.logprobs, rollout.values, rollout.reference_logprobs):
            tensor[pads] = junk
        rewards = torch.linspace(-1, 1, 256).view(64, 4)
        trainer.update(trainer.advantages(rollout, rewards.masked_fill(pads, junk)))
        weights.append(trainer.policy.head.weight.detach().clone())
    assert torch.equal(*weights)


def test_advantages_are_whitened_over_real_tokens() -> None:
    """Detail 25: mean 0 and deviation 1 of those; pads count for nothing."""
    trainer = ending_trainer()
    rollout = trainer.sample_rollout(0)
    advantages = trainer.advantages(rollout, torch.linspace(-1, 1, 256).view(64, 4).sin()).advantages
    real = advantages[rollout.response_mask]
    assert float(real.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(real.std(correction=0)) == pytest.approx(1.0, rel=1e-5)
    assert not advantages[~rollout.response_mask].any()


def test_rewards_are_whitened_only_where_asked_and_keep_their_mean() -> None:
    """Detail 24: optional, and off."""
    assert not LoopConfig.load(preset="huang2024_nplus_tldr").ppo.whiten_rewards
    mask = torch.tensor([[True, True, False]])
    whitened = whiten(torch.tensor([[1.0, 3.0, 99.0]]), mask, shift_mean=False)
    torch.testing.assert_close(whitened, torch.tensor([[1.0, 3.0, 0.0]]))
