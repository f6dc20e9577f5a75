"""Scores: what a user's callable may do wrong, and how a reward model is asked."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from humanward.data import Task, left_pad, right_pad
from humanward.errors import RunError, UserError
from humanward.models import Policy, RewardModel
from humanward.storage import StopFlag, Stopped
from humanward.trainers import (
    DPOConfig,
    Episodes,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    TextReward,
    choices,
    implicit_rewards,
    score_episodes,
)
from humanward.trainers.reward_ensemble import choice_probabilities
from humanward.trainers.scoring import call_score, model_scores
from humanward.trainers.selftest import tiny_policy, tiny_task


def raising(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    raise ValueError("the service is down")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (raising, "reward raising: raised ValueError: the service is down; it must map"),
        (lambda prompts, responses: [1.0], "1 scores for 2 responses; it must return one number per response"),
        (lambda prompts, responses: [1.0, math.nan], "the score of 'b' is nan; scores must be finite numbers"),
        (lambda prompts, responses: [math.inf, 1.0], "the score of 'a' is inf; scores must be finite numbers"),
        (lambda prompts, responses: [1.0, None], "the score of 'b' is None; scores must be finite numbers"),
        (lambda prompts, responses: ["good", "bad"], "raised ValueError"),
        (lambda prompts, responses: None, "returned None"),
        (lambda prompts: [1.0], "raised TypeError"),
    ],
)
def test_a_wrong_reward_is_a_line_that_says_what_is_wrong(score: Any, message: str) -> None:
    with pytest.raises(RunError) as error:
        call_score(score, ["p", "q"], ["a", "b"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("reward ")


def test_an_error_of_many_lines_becomes_one() -> None:
    def wordy(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        raise ValueError("first\nsecond\nthird")

    with pytest.raises(RunError) as error:
        call_score(wordy, ["p"], ["a"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [[1, 2], (1.0, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), [True, 2]])
def test_any_sequence_of_numbers_will_do(values: Any) -> None:
    assert call_score(lambda prompts, responses: values, ["p", "q"], ["a", "b"]).tolist() == [1.0, 2.0]


def test_a_wrong_reward_leaves_the_policy_as_it_was(problems: ModuleType) -> None:
    trainer = problems.ppo()
    trainer.reward = raising
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    with pytest.raises(RunError, match="the service is down"):
        trainer.step(0)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.tensors().items())


def reward_model() -> RewardModel:
    policy = tiny_policy()
    return RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0)).eval()


def test_a_reward_model_scores_in_parts_of_any_size(problems: ModuleType) -> None:
    task, episodes = tiny_task(tiny_policy()), problems.episodes()
    model = reward_model()
    whole = score_episodes(task, model, episodes).scores
    torch.testing.assert_close(score_episodes(task, model, episodes, rows_at_once=5).scores, whole, rtol=0, atol=1e-6)
    assert len(set(whole.tolist())) > 6


def test_a_reward_model_scores_texts_as_it_scores_tokens(problems: ModuleType) -> None:
    model = reward_model()
    task = tiny_task(tiny_policy())
    tokens, real = torch.tensor([[4, 5], [2, 6]]), torch.ones(2, 2, dtype=torch.bool)
    expected = model(tokens, real, tokens[:, None], real[:, None])[:, 0].tolist()
    assert TextReward(model, task)(["w2 w3", "good w4"], ["w2 w3", "good w4"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stops", [True, False])
def test_the_end_of_a_response_is_read_in_its_text_as_in_its_tokens(stops: bool) -> None:
    """What was sampled has the end token as letters in its text; what somebody wrote has none, and ends where responses stop at one."""
    policy = Policy.load("asset:storyteller")
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0)).eval()
    model.stops_at_eos = stops
    task = Task.plain(policy.tokenizer, stop_at_eos=stops)
    prompt, words = task.encode_prompt("A very good"), task.encode_continuation(" film, really.")

    def of_tokens(*response: int) -> float:
        p, r = torch.tensor([prompt]), torch.tensor([response])
        return float(score_episodes(task, model, Episodes(p, p >= 0, r, r >= 0), fixed_score=False).scores)

    ended, unended = of_tokens(*words, policy.eos_id), of_tokens(*words)
    assert abs(ended - unended) > 1e-2
    for reward in (TextReward(model), TextReward(model, task)):
        found = reward(["A very good"] * 2, [task.decode((*words, policy.eos_id)), " film, really."])
        assert found == pytest.approx([ended, ended if stops else unended], abs=1e-5)


def test_an_empty_response_is_read_at_its_end_token(problems: ModuleType) -> None:
    model = problems.reward().reward_model
    task = tiny_task(model)
    end = (task.tokenizer.eos_token_id,)
    with torch.no_grad():
        expected = float(model(*(torch.tensor([x]) for x in ([3, 4], [True, True], [end], [[True]])))[0, 0])
    words = task.tokenizer.decode([3, 4])
    assert TextReward(model, task)([words], [""]) == pytest.approx([expected], abs=1e-6)
    assert TextReward(model, task)([words, words], ["", words])[0] == pytest.approx(expected, abs=1e-6)


def widths_of(model: RewardModel) -> list[int]:
    """Responses of each forward from here on."""
    found: list[int] = []
    model.register_forward_hook(lambda module, args, output: found.append(output.numel()))
    return found


def test_a_forward_that_scores_is_bounded_by_its_tokens(problems: ModuleType) -> None:
    """Long and short rows go together; the scores stay in their order."""
    model = problems.reward().reward_model.eval()
    tokens: list[int] = []
    episodes = Episodes(
        *left_pad([(3,) * (1 + n % 9) for n in range(40)], model.pad_id),
        *right_pad([(4, 5) * (1 + n % 3) for n in range(40)], model.pad_id),
    )
    whole = model_scores(model, episodes, rows_at_once=40, tokens_at_once=10**6)
    widths = widths_of(model)
    model.register_forward_pre_hook(lambda _, given: tokens.append(int(given[1].sum() + given[3].sum())))
    parts = model_scores(model, episodes, rows_at_once=8, tokens_at_once=30)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert 25 < max(tokens) <= 30
    assert max(widths) <= 8
    assert sum(widths) == 40


@pytest.mark.parametrize("work", ["score", "normalize", "scores of questions", "probabilities", "implicit rewards"])
def test_a_slow_reward_model_hears_the_wish_to_stop_between_forwards(problems: ModuleType, work: str) -> None:
    """It comes during the first of several."""
    stop = StopFlag()
    trainer = problems.reward(rollout_batch_size=3)
    trainer.check = stop.check
    model = trainer.reward_model.eval()
    calls: list[int] = []

    def slow(*_: Any) -> None:
        calls.append(1)
        stop.request()

    policy = tiny_policy()
    for one in (model, policy):
        one.register_forward_hook(slow)
    rows = problems.comparisons(12)
    works: dict[str, Callable[[], Any]] = {
        "score": lambda: score_episodes(tiny_task(tiny_policy()), model, problems.episodes(), rows_at_once=3, check=stop.check),
        "normalize": trainer.start,
        "scores of questions": lambda: choices(model, rows, batch_size=3, check=stop.check),
        "probabilities": lambda: choice_probabilities(model, rows, batch_size=3, check=stop.check),
        "implicit rewards": lambda: implicit_rewards(policy, tiny_policy(), rows, DPOConfig().objective, tokens=1, check=stop.check),
    }
    with pytest.raises(Stopped):
        works[work]()
    assert len(calls) == 1


def test_a_request_to_stop_passes_through_a_reward() -> None:
    def stopping(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        call_score(stopping, ["a"], ["b"])


def test_minibatches_that_processes_cannot_share_are_refused_at_once() -> None:
    policy = tiny_policy(value_head=True)
    two: Any = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"))
    config = PPOConfig(episodes=27, batch_size=27, minibatches=3)
    with pytest.raises(UserError, match="a batch of 9 cannot be divided among 2 processes; choose a multiple of it"):
        PPOTrainer(policy, policy.frozen_copy(), lambda p, r: [0.0] * len(r), ["w2"], config, accelerator=two)


def test_choices_are_the_highest_scores_in_the_order_of_the_questions(problems: ModuleType) -> None:
    model, rows = reward_model(), problems.comparisons()
    assert choices(model, rows, batch_size=3) == [choices(model, [row])[0] for row in rows]


def test_nothing_to_train_on_is_said_so(problems: ModuleType) -> None:
    policy = tiny_policy(value_head=True)
    with pytest.raises(UserError, match="no demonstrations"):
        SFTTrainer(policy, [], SFTConfig())
    with pytest.raises(UserError, match="no labels to fit"):
        RewardTrainer(reward_model(), [], RewardConfig())
    with pytest.raises(UserError, match="needs responses of the reference"):
        RewardTrainer(reward_model(), problems.comparisons(), RewardConfig())
    with pytest.raises(UserError, match="no prompts to tune on"):
        PPOTrainer(policy, policy.frozen_copy(), problems.score, [], PPOConfig(), task=tiny_task(policy))
    with pytest.raises(UserError, match="PPO needs a value head"):
        PPOTrainer(tiny_policy(), policy.frozen_copy(), problems.score, [(4,)], PPOConfig(), task=tiny_task(policy))


def test_questions_of_different_k_are_refused(problems: ModuleType) -> None:
    rows = [*problems.comparisons(2, K=3), *problems.comparisons(1, K=2)]
    with pytest.raises(UserError, match="question 0: best_of_k of 2 responses among best_of_k of 3; train on labels of one kind and one K"):
        RewardTrainer(reward_model(), rows, RewardConfig(normalize_before=False, normalize_after=False))


def test_a_reward_model_that_says_one_thing_cannot_be_normalised(problems: ModuleType) -> None:
    trainer = problems.reward()
    with torch.no_grad():
        trainer.reward_model.score_head.weight.zero_()
    with pytest.raises(RunError, match="all reference responses have the same score"):
        trainer.start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10, "minibatches": 3}, "choose a divisor"),
        ({"episodes": 8, "batch_size": 16}, "less than one batch"),
        ({"kl_coef": 0.0, "kl_target": 1.0}, "kl_target needs a kl_coef above 0"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_sft_raises_the_likelihood_of_what_was_demonstrated(problems: ModuleType) -> None:
    trainer = problems.sft(epochs=4)
    losses = [trainer.step(index)["loss"] for index in range(trainer.total_steps)]
    assert losses[-1] < losses[0] - 0.1


def test_dropout_is_on_while_fine_tuning_and_off_behind_it(problems: ModuleType) -> None:
    """The policy goes on to PPO, where it must be one distribution."""
    trainer = problems.sft(dropout=0.3)
    trainer.step(0)
    attention = trainer.policy.model.model.layers[0].self_attn
    assert attention.attention_dropout == 0.3
    trainer.finish()
    assert attention.attention_dropout == 0.0


def test_the_dropout_of_ppo_is_the_setting(problems: ModuleType) -> None:
    """Not 0 only where the settings say so; the first ratio shows it."""
    assert problems.ppo().step(0)["first_ratio_error"] < 1e-4
    assert problems.ppo(dropout=0.5).step(0)["first_ratio_error"] > 1e-3
