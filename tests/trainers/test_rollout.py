"""Episodes of groups are those of single responses: the same forwards, scores and order, each prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from humanward.data import Task, TaskConfig
from humanward.models import RewardModel
from humanward.storage import StopFlag, Stopped
from humanward.trainers.diagnostics import rollout_metrics
from humanward.trainers.rollout import Rollout, RolloutSampler
from humanward.trainers.scoring import Episodes, score_episodes
from humanward.trainers.selftest import tiny_policy, tiny_task

PROMPTS = [(4,), (5, 6), (7, 2, 3)]


def sampler(*, task: Task | None = None, **settings: Any) -> RolloutSampler:
    policy = tiny_policy(value_head=True)
    task = task or tiny_task(policy, response_length=4)
    return RolloutSampler(
        policy, tiny_policy(seed=1), PROMPTS, task, Accelerator(), **{"prompts_per_step": 3, "stream": "test", "seed": 2, **settings}
    )


def ending_task() -> Task:
    """Responses of 1 to 4 tokens that end at end-of-text; -1 where it does not come."""
    config = TaskConfig(
        prompt_start=None, prompt_end=None, truncate_token=None, prompt_length=3, response_length=4, temperature=1.0, stop_at_eos=True
    )
    return Task(config, tiny_policy().tokenizer)


def flat(rollout: Rollout, K: int) -> Rollout:
    """The same episodes with one response to each prompt."""
    prompts = (x.repeat_interleave(K, 0) for x in (rollout.prompts, rollout.prompt_mask))
    rest = (rollout.responses, rollout.response_mask, rollout.logprobs, rollout.values, rollout.reference_logprobs)
    return Rollout(*prompts, *(x.flatten(0, 1) for x in rest))


@pytest.mark.parametrize("micro_batch_tokens", [None, 7])
def test_the_logprobs_of_a_group_are_those_of_its_responses_alone(micro_batch_tokens: int | None) -> None:
    together = sampler(num_responses=4, task=ending_task(), micro_batch_tokens=micro_batch_tokens)
    rollout = together.sample(0)
    assert rollout.responses.shape == (3, 4, 4)
    lengths = rollout.response_mask.sum(-1)
    assert lengths.min() < lengths.max()
    alone = flat(rollout, 4)
    episode = (alone.prompts, alone.prompt_mask, alone.responses, alone.response_mask)
    for policy, found in ((together.policy, alone.logprobs), (together.reference, alone.reference_logprobs)):
        torch.testing.assert_close(found, together.ask(policy, *episode).logprobs, atol=1e-5, rtol=0)


def test_responses_of_a_group_are_drawn_apart_and_again_the_same() -> None:
    rollout = sampler(num_responses=4).sample(0)
    assert all(len({tuple(response) for response in group}) > 1 for group in rollout.responses.tolist())
    assert torch.equal(rollout.responses, sampler(num_responses=4).sample(0).responses)
    for other in (sampler(num_responses=4).sample(1), sampler(num_responses=4, stream="other").sample(0)):
        assert not torch.equal(rollout.responses, other.responses)


def test_a_wish_to_stop_is_heard_between_the_forwards_of_the_reference() -> None:
    """It comes during the first of three."""
    stop, calls = StopFlag(), list[int]()
    one = sampler(micro_batch_tokens=1, check=stop.check)

    def slow(*_: Any) -> None:
        calls.append(1)
        stop.request()

    one.reference.register_forward_hook(slow)
    with pytest.raises(Stopped):
        one.sample(0)
    assert len(calls) == 1


def counted(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [10.0 * len(p.split()) + r.split().count("good") for p, r in zip(prompts, responses, strict=True)]


@pytest.mark.parametrize("kind", ["callable", "reward model"])
def test_the_scores_of_a_group_are_those_of_its_responses_alone(kind: str) -> None:
    beside = tiny_policy(seed=3)
    reward = counted if kind == "callable" else RewardModel(beside.model, beside.tokenizer, generator=torch.Generator().manual_seed(0))
    groups = sampler(num_responses=4, task=ending_task())
    rollout = groups.sample(0)
    scores = groups.score(rollout, reward)
    assert scores.scores.shape == scores.found.shape == (3, 4)
    alone = flat(rollout, 4)
    expected = score_episodes(groups.task, reward, Episodes(alone.prompts, alone.prompt_mask, alone.responses, alone.response_mask))
    torch.testing.assert_close(scores.scores.flatten(), expected.scores, atol=1e-5, rtol=0)
    assert (scores.scores[~scores.found] == -1).all()
    assert 0 < scores.found.sum() < 12
    kl = (rollout.logprobs - rollout.reference_logprobs) * rollout.response_mask
    assert rollout_metrics(rollout, scores, kl, 0.1) == pytest.approx(rollout_metrics(alone, expected, kl.flatten(0, 1), 0.1), abs=1e-5)


def test_rows_are_prompts_with_all_their_responses() -> None:
    rollout = sampler(num_responses=2).sample(0)
    part = rollout.rows(torch.tensor([2, 0]))
    assert torch.equal(part.responses, rollout.responses[[2, 0]])
    assert torch.equal(part.prompts, rollout.prompts[[2, 0]])
