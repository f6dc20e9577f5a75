"""Rewards: any function, sync or async, in time or not; sums; and what a training does when one fails."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from humanward.errors import RunError, UserError
from humanward.models import RewardModel, TextClassifier, ValueNetwork, save_classifier
from humanward.storage import Checkpoints
from humanward.trainers import (
    GuardedScore,
    PPOConfig,
    PPOTrainer,
    ScoringConfig,
    Surroundings,
    TextReward,
    WeightedReward,
    score_episodes,
    train,
)
from humanward.trainers.calls import Exited, Late, call, call_again
from humanward.trainers.rewards import call_score
from humanward.trainers.selftest import WORDS, tiny_policy, tiny_task


def good(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(response.count("good")) for response in responses]


async def later(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    await asyncio.sleep(0.001)
    return good(prompts, responses)


# ---- calls


def test_a_call_gives_what_the_function_gives() -> None:
    assert call(lambda a, b: a + b, 1, 2) == 3
    assert call(later, ["p"], ["good"]) == [1.0]
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0)


def test_a_call_that_hangs_is_left_behind() -> None:
    over = threading.Event()
    started = time.monotonic()
    with pytest.raises(Late):
        call(over.wait, 10.0, timeout=0.05)
    assert time.monotonic() - started < 2
    over.set()


def test_coroutines_share_a_loop() -> None:
    """A client belongs to the loop in which it was first used."""

    async def loop() -> Any:
        return asyncio.get_running_loop()

    async def exiting() -> None:
        sys.exit(1)

    first = call(loop)
    with pytest.raises(Exited, match=r"sys\.exit\(1\)"):
        call(exiting)
    assert call(loop) is first


def test_a_coroutine_that_is_late_is_cancelled() -> None:
    cancelled = threading.Event()

    async def hanging() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(Late):
        call(hanging, timeout=0.05)
    assert cancelled.wait(5)


def test_a_stop_is_heard_while_a_call_works() -> None:
    over = threading.Event()

    def check() -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        call(over.wait, 10.0, check=check)
    over.set()


def test_a_call_is_repeated_where_it_may_help() -> None:
    left = [ValueError(), ValueError()]

    def sometimes() -> int:
        if left:
            raise left.pop()
        return 1

    settings: dict[str, Any] = {"timeout": None, "check": None, "backoff": 0.0}
    assert call_again(sometimes, retries=2, **settings) == 1
    left[:] = [ValueError(), ValueError()]
    with pytest.raises(ValueError):
        call_again(sometimes, retries=0, **settings)
    left[:] = [ValueError(), ValueError()]
    with pytest.raises(ValueError):
        call_again(sometimes, retries=5, give_up=(ValueError,), **settings)


# ---- scores


def test_a_coroutine_function_is_a_score() -> None:
    assert call_score(later, ["p", "p"], ["good good", "bad"]).tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "returned None; it must return one number per response"),
        (np.zeros((2, 1)), r"returned an array of shape (2, 1)"),
        (torch.zeros(()), r"returned an array of shape ()"),
        ([[1.0], [2.0]], r"returned rows of shape (2, 1)"),
        (1.0, "returned a float"),
        ("ab", "returned a str"),
        ({"a": 1.0}, "returned a dict"),
    ],
)
def test_what_is_no_list_of_numbers(given: Any, message: str) -> None:
    def strange(prompts: Sequence[str], responses: Sequence[str]) -> Any:
        return given

    with pytest.raises(RunError) as error:
        call_score(strange, ["p", "q"], ["a", "b"])
    assert str(error.value).startswith(f"reward strange: {message}")


def test_a_guard_has_limits_and_a_name() -> None:
    over = threading.Event()

    def hanging(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        over.wait(10)
        return []

    with pytest.raises(RunError) as error:
        call_score(GuardedScore(hanging, timeout=0.05, name="mine"), ["p"], ["a"])
    assert str(error.value) == (
        "reward mine: no answer within 0.05 s for 1 responses; see why it hangs, or give it longer "
        "(scoring.timeout, or GuardedScore(…, timeout=…))"
    )
    over.set()


def test_a_sum_is_the_sum_of_its_terms(problems: ModuleType) -> None:
    policy = tiny_policy(seed=3)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0)).eval()
    task, episodes = tiny_task(policy), problems.episodes()
    parts = [score_episodes(task, one, episodes).scores for one in (model, good, later)]
    reward = WeightedReward({"model": (2.0, model), "good": (0.5, good), "later": (-1.0, GuardedScore(later))})
    found = score_episodes(task, reward, episodes)
    torch.testing.assert_close(found.scores, 2 * parts[0] + 0.5 * parts[1] - parts[2])
    assert found.terms.keys() == {"model", "good", "later"}
    torch.testing.assert_close(found.terms["model"], parts[0])


def test_each_term_is_logged(problems: ModuleType) -> None:
    reward = WeightedReward({"good": (2.0, good), "words": (-0.1, lambda p, r: [float(len(x.split())) for x in r])})
    metrics = problems.groups("rloo", reward=reward).step(0)
    assert metrics["score"] == pytest.approx(2 * metrics["score/good"] - 0.1 * metrics["score/words"], abs=1e-6)
    assert metrics["score/words"] == 3.0


# ---- settings


def test_settings_make_the_reward(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    terms = {"model": 1.0, f"{tmp_path / 'mine.py'}:score": 0.5, "repetition:2": 2.0, "words": 0.0, "http://127.0.0.1:9/": 0.1}
    config = ScoringConfig(terms=terms, timeout=3.0, retries=1)
    others = config.others()
    assert list(others) == [name for name in terms if terms[name] and name != "model"]
    mine, server = (others[name] for name in (f"{tmp_path / 'mine.py'}:score", "http://127.0.0.1:9/"))
    assert (mine.timeout, mine.retries) == (3.0, 1)
    assert (server.timeout, server.score.timeout, server.score.retries) == (None, 3.0, 1)  # type: ignore[union-attr]
    policy = tiny_policy()
    model = RewardModel(policy.model, policy.tokenizer)
    reward = config.reward(model, others)
    assert isinstance(reward, WeightedReward)
    assert {name: weight for name, (weight, _) in reward.terms.items()} == {name: weight for name, weight in terms.items() if weight}
    assert ScoringConfig().reward(model, ScoringConfig().others()) is model
    assert not ScoringConfig(terms={"words": 1.0}).needs_model


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing has a weight"):
        ScoringConfig(terms={"model": 0.0})


# ---- models that read texts


def test_models_that_read_texts_are_where_the_training_is(problems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(seed=3)
    models = [RewardModel(tiny_policy(seed=4).model, policy.tokenizer) for _ in range(3)]
    texts, classifier = TextReward(models[1]), TextClassifier(models[2].model, policy.tokenizer)
    went: list[tuple[torch.nn.Module, torch.device]] = []
    for model in (models[0], models[1], models[2].model):
        monkeypatch.setattr(model, "to", lambda device, model=model: went.append((model, device)))
    terms = {"tokens": models[0], "texts": texts, "guarded": GuardedScore(classifier), "plain": good}
    reward = WeightedReward({name: (1.0, term) for name, term in terms.items()})
    device = problems.groups("rloo", reward=reward, true_score=texts).accelerator.device
    assert went == [(model, device) for model in (models[0], models[1], models[2].model, models[1])]
    went.clear()
    problems.ppo(true_score=texts)
    assert went == [(models[1], device)]


def test_models_that_read_texts_are_loaded_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    policy = tiny_policy()
    RewardModel(policy.model, policy.tokenizer).save(tmp_path / "own")
    save_classifier(RewardModel(policy.model, policy.tokenizer), tmp_path / "other")
    terms = {f"hf:{tmp_path}/own": 1.0, f"hf-response:{tmp_path}/other": 1.0, "words": 1.0}
    for dtype in (torch.float32, torch.bfloat16):
        own, other, _ = (part.score for part in ScoringConfig(terms=terms).others(dtype=dtype).values())
        assert isinstance(own, TextReward)
        assert isinstance(other, TextClassifier)
        assert {own.model.model.dtype, other.model.dtype} == {dtype}


# ---- a training whose reward fails


def raising(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    raise ValueError("the service\nis down")


def hanging(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    time.sleep(0.5)
    return []


def exiting(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    sys.exit(3)


async def exiting_later(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    sys.exit(3)


def rows_of_two(prompts: Sequence[str], responses: Sequence[str]) -> Any:
    return torch.zeros(len(responses), 2)


FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (raising, "reward raising: raised ValueError: the service is down; it must map (prompts, responses) to one number each"),
    "hangs": (GuardedScore(hanging, timeout=0.02), "reward hanging: no answer within 0.02 s for 16 responses; see why it hangs"),  # type: ignore[dict-item]
    "wrong shape": (rows_of_two, "reward rows_of_two: returned an array of shape (16, 2); it must return one number per response"),
    "too few": (lambda p, r: [1.0], "reward <lambda>: 1 scores for 16 responses; it must return one number per response"),
    "beyond 32 bits": (lambda p, r: [1e300] * len(r), "is 1e+300; scores must be finite numbers of 32 bits"),
    "exits": (exiting, "reward exiting: raised Exited: it called sys.exit(3); it must map"),
    "exits in a coroutine": (exiting_later, "reward exiting_later: raised Exited: it called sys.exit(3); it must map"),
    "nan": (lambda p, r: [math.nan] * len(r), "is nan; scores must be finite numbers"),
    "none": (lambda p, r: None, "reward <lambda>: returned None; it must return one number per response"),
    "one none": (lambda p, r: [None] * len(r), "is None; scores must be finite numbers"),
}


@pytest.mark.parametrize("method", ["ppo", "grpo"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_reward_that_fails_ends_a_training_in_one_line_with_its_checkpoint_whole(
    problems: ModuleType, tmp_path: Path, method: str, fault: str
) -> None:
    around = Surroundings(Checkpoints(tmp_path / "checkpoints"))
    trainer = problems.MAKERS[method]()
    train(trainer, around, until=2)
    trainer.reward, message = FAULTS[fault]
    with pytest.raises(RunError) as error:
        train(trainer, around)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    again = problems.MAKERS[method](policy_seed=9)
    assert len(train(again, around)) == 2  # from step 2, whose checkpoint is whole
    assert again.total_steps == 4


# ---- tokens that do not fit


def longer_policy() -> Any:
    """A policy with one word more than the others."""
    return tiny_policy(words=(*WORDS, "w6"))


def test_a_reward_model_with_another_tokenizer_is_refused(problems: ModuleType) -> None:
    policy = longer_policy()
    other = tiny_policy()
    model = RewardModel(other.model, other.tokenizer)
    trainer = problems.groups("rloo")
    with pytest.raises(UserError, match="the reward model has another tokenizer than the policy: 1 tokens differ, such as 'w6'; give one"):
        type(trainer)(policy, policy.frozen_copy(), model, [(4,)], trainer.config, "rloo", task=tiny_task(policy))


def test_a_value_network_without_room_for_a_response_is_refused() -> None:
    policy, config = tiny_policy(), GPT2Config(vocab_size=8, n_positions=3, n_embd=8, n_layer=1, n_head=2)
    network = ValueNetwork(GPT2LMHeadModel(config))
    with pytest.raises(UserError, match=r"PPO: 1 tokens of a prompt and 3 of a response are 4, but the context of .* is 3; shorten them"):
        PPOTrainer(
            policy, policy.frozen_copy(), good, [(4,)], PPOConfig(episodes=16, batch_size=16), task=tiny_task(policy, response_length=3),
            value_network=network,
        )  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_a_value_network_that_does_not_fit_the_tokenizer_is_refused(known: bool) -> None:
    policy, other = longer_policy(), tiny_policy()
    network = ValueNetwork.from_reward_model(RewardModel(other.model, other.tokenizer)) if known else ValueNetwork(other.model)
    message = (
        "the value network has another tokenizer" if known else "the value network has embeddings for 8 tokens, but the policy's tokeni"
    )
    with pytest.raises(UserError, match=message) as error:
        PPOTrainer(
            policy, policy.frozen_copy(), good, [(4,)], PPOConfig(episodes=16, batch_size=16), task=tiny_task(policy), value_network=network
        )
    assert "\n" not in str(error.value)
