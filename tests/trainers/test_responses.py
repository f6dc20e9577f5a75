"""Prompts and responses as texts: what a trainer takes without a run folder around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig
from humanward.errors import UserError
from humanward.models import Policy, RewardModel
from humanward.trainers import Episodes, PPOConfig, PPOTrainer, TextReward, respond, score_episodes
from humanward.trainers.responses import prompt_ids
from humanward.trainers.selftest import tiny_policy


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Policy:
    """A Llama: its tokenizer puts <s> before a text, and a space before its first word."""
    return Policy.load(shared_data / "models/stories260K", value_head=True)


def test_a_plain_task_leaves_prompts_and_responses_whole(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    config = Task.plain(byte_tokenizer, response_length=5, context_length=40, stop_at_eos=True).config
    assert (config.prompt_start, config.prompt_end, config.truncate_token) == (None, None, None)
    assert (config.response_length, config.temperature, config.stop_at_eos) == (5, 1.0, True)
    assert config.prompt_length == 34  # 40 - 5, and room for a beginning-of-text token


def test_a_text_prompt_is_used_whole_and_token_ids_stay(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(TaskConfig(prompt_prefix="<", prompt_suffix=">"), byte_tokenizer)
    assert prompt_ids(task, ["a. b. c", (1, 2), "d"]) == [tuple(b"<a. b. c>"), (1, 2), tuple(b"<d>")]


def test_prompts_that_cannot_be_used_are_named(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(TaskConfig(prompt_length=3), byte_tokenizer)
    with pytest.raises(UserError, match=r"^prompt 1: the prompt has 4 tokens and task.prompt_length is 3"):
        prompt_ids(task, ["abc", "abcd"])
    for empty in ("", ()):
        with pytest.raises(UserError, match=r"^prompt 0: empty"):
            prompt_ids(task, [empty])


def test_the_trainer_takes_texts_and_needs_no_task(stories: Policy) -> None:
    asked: list[str] = []

    def score(prompts: Any, responses: Any) -> list[float]:
        asked.extend(prompts)
        return [float(len(response)) for response in responses]

    config = PPOConfig(episodes=8, batch_size=8, ppo_epochs=1)
    trainer = PPOTrainer(stories, stories.frozen_copy(), score, ["Once upon a time", "The cat"], config)
    assert [stories.tokenizer.decode(row) for row in trainer.rollouts.prompts] == ["<s> Once upon a time", "<s> The cat"]
    trainer.step(0)
    # What a labeler reads has no beginning-of-text token.
    assert set(asked) == {" Once upon a time", " The cat"}


def test_responses_depend_on_prompt_and_seed_alone(stories: Policy) -> None:
    task = Task.plain(stories.tokenizer, response_length=6, context_length=512)
    alone = respond(stories, ["The cat"], task=task, num_responses=2)
    together = respond(stories, ["Once upon a time", "The cat"], task=task, num_responses=2)
    assert together[1] == alone[0]
    assert alone[0][0] != alone[0][1]
    assert respond(stories, ["The cat"], task=task, num_responses=2, seed=1) != alone


def test_responses_are_cut_by_the_task(stories: Policy) -> None:
    task = Task(TaskConfig(response_length=40, truncate_after=2), stories.tokenizer)
    found = [text for row in respond(stories, ["The cat was big."], task=task, num_responses=8) for text in row]
    assert any(text.endswith(".") for text in found)


@pytest.mark.parametrize("prompt", ["The cat", " was big. It"])
def test_a_reward_model_scores_texts_as_it_scores_tokens(stories: Policy, prompt: str) -> None:
    model = RewardModel(stories.model, stories.tokenizer, generator=torch.Generator().manual_seed(0))
    task = Task.plain(stories.tokenizer, context_length=512)
    first, second = task.encode_prompt(prompt), task.encode_continuation(" sat.")
    assert first[0] == stories.tokenizer.bos_token_id
    assert task.prompt_text(first).strip() == prompt.strip()
    ids, response = torch.tensor([first]), torch.tensor([second])
    tokens = score_episodes(task, model, Episodes(ids, torch.ones_like(ids).bool(), response, torch.ones_like(response).bool()))
    assert TextReward(model)([prompt], [" sat."]) == pytest.approx(tokens.scores.tolist(), abs=1e-6)


def test_a_prompt_of_a_tokenizer_without_beginning_is_its_text(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task.plain(byte_tokenizer)
    for text in ("ab", " ab", "<|end|>"):
        assert task.prompt_text(task.encode_prompt(text)) == text
    assert task.encode_prompt("<|end|>") == (256,)


def test_the_tiny_policy_needs_no_task() -> None:
    assert len(respond(tiny_policy(), [(4,)], num_responses=3)[0]) == 3
