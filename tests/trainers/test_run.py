"""Stop anywhere, go on, and nothing shows: the same weights, the same optimiser, the same numbers logged, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from humanward.errors import RunError, UserError
from humanward.models import Policy, RewardModel
from humanward.storage import Checkpoints, MetricsLog, StopFlag, Stopped
from humanward.trainers import PPOConfig, PPOTrainer, Surroundings, train
from humanward.trainers.guards import TrainingError
from humanward.trainers.selftest import tiny_policy, tiny_task

TRAINERS = ["sft", "reward", "ppo", "dpo", "value network", "everything"]


def surroundings(folder: Path, **settings: Any) -> Surroundings:
    return Surroundings(checkpoints=Checkpoints(folder / "checkpoints"), log=MetricsLog(folder / "metrics.jsonl"), **settings)


def whole_run(problems: ModuleType, name: str, folder: Path, **settings: Any) -> tuple[dict[str, Tensor], bytes]:
    trainer = problems.MAKERS[name](**settings)
    train(trainer, surroundings(folder))
    return tensors(trainer), (folder / "metrics.jsonl").read_bytes()


def tensors(trainer: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}


def assert_same(trainer: Any, folder: Path, expected: tuple[dict[str, Tensor], bytes]) -> None:
    found = tensors(trainer)
    assert found.keys() == expected[0].keys()
    assert [name for name in found if not torch.equal(found[name], expected[0][name])] == []
    assert (folder / "metrics.jsonl").read_bytes() == expected[1]


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(("until", "dtype"), [(1, torch.float32), (3, torch.float32), (3, torch.bfloat16)])
def test_a_run_in_two_parts_is_the_run_in_one(problems: ModuleType, tmp_path: Path, name: str, until: int, dtype: torch.dtype) -> None:
    """The second part begins with other weights, so that whatever it does not load shows."""
    expected = whole_run(problems, name, tmp_path / "whole", dtype=dtype)
    train(problems.MAKERS[name](dtype=dtype), surroundings(tmp_path / "parts"), until=until)
    assert Checkpoints(tmp_path / "parts" / "checkpoints").steps() == [until]
    second = problems.MAKERS[name](policy_seed=9, dtype=dtype)
    assert len(train(second, surroundings(tmp_path / "parts"))) == second.total_steps - until
    assert_same(second, tmp_path / "parts", expected)


def test_a_run_with_dropout_in_two_parts_is_the_run_in_one(problems: ModuleType, tmp_path: Path) -> None:
    """Whatever the random numbers of the process were used for before."""
    expected = whole_run(problems, "value network", tmp_path / "whole", dropout=0.1)
    train(problems.ppo_with_value_network(dropout=0.1), surroundings(tmp_path / "parts"), until=2)
    torch.manual_seed(123)
    second = problems.ppo_with_value_network(dropout=0.1, policy_seed=9)
    train(second, surroundings(tmp_path / "parts"))
    assert_same(second, tmp_path / "parts", expected)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_stop_between_steps(problems: ModuleType, tmp_path: Path, name: str) -> None:
    expected = whole_run(problems, name, tmp_path / "whole")
    stop = StopFlag()
    with pytest.raises(Stopped):
        train(
            problems.MAKERS[name](),
            surroundings(tmp_path, stop=stop, progress=lambda stage, done, *_: stop.request() if done == 2 else None),
        )
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]
    again = problems.MAKERS[name](policy_seed=9)
    train(again, surroundings(tmp_path))
    assert_same(again, tmp_path, expected)


def test_a_stop_while_sampling(problems: ModuleType, tmp_path: Path) -> None:
    """Three tokens a step: the fifth check is in the middle of the second step's responses."""
    expected = whole_run(problems, "ppo", tmp_path / "whole")
    stop, calls = StopFlag(), iter(range(100))

    def check() -> None:
        if next(calls) == 4:
            stop.request()
        stop.check()

    with pytest.raises(Stopped):
        train(problems.ppo(check=check), surroundings(tmp_path, stop=stop))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]
    again = problems.ppo(policy_seed=9)
    train(again, surroundings(tmp_path))
    assert_same(again, tmp_path, expected)


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "dr_grpo", "reinforce", "online_dpo", "expert_iteration"])
@pytest.mark.parametrize("place", ["true score", "update"])
def test_a_stop_within_a_step(problems: ModuleType, tmp_path: Path, name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second step: before its updates it is not done yet, and once they have begun it is done to its end."""
    expected = whole_run(problems, name, tmp_path / "whole", true_score=problems.score)
    stop, calls = StopFlag(), list[str]()

    def reached(where: str, number: int) -> None:
        calls.append(where)
        if where == place and calls.count(where) == number:
            stop.request()

    def true_score(prompts: Any, responses: Any) -> list[float]:
        reached("true score", 2)
        stop.check()
        return problems.score(prompts, responses)

    trainer = problems.MAKERS[name](true_score=true_score, check=stop.check)
    per_step, update = trainer.updater.total_updates // trainer.total_steps, trainer.updater.update

    def watched(*args: Any, **settings: Any) -> dict[str, float]:
        reached("update", per_step + 1)
        return update(*args, **settings)

    monkeypatch.setattr(trainer.updater, "update", watched)
    with pytest.raises(Stopped):
        train(trainer, surroundings(tmp_path, stop=stop))
    checkpoint = Checkpoints(tmp_path / "checkpoints").latest()
    assert checkpoint is not None
    assert checkpoint.step == (1 if place == "true score" else 2)
    assert checkpoint.state["updates"] == checkpoint.step * per_step
    again = problems.MAKERS[name](policy_seed=9, true_score=problems.score)
    train(again, surroundings(tmp_path))
    assert_same(again, tmp_path, expected)


def test_a_stop_before_the_first_step_leaves_nothing(problems: ModuleType, tmp_path: Path) -> None:
    stop = StopFlag()
    stop.request()
    with pytest.raises(Stopped):
        train(problems.sft(), surroundings(tmp_path, stop=stop))
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_checkpoints_at_every_step_change_nothing(problems: ModuleType, tmp_path: Path) -> None:
    expected = whole_run(problems, "reward", tmp_path / "whole")
    trainer = problems.reward()
    train(trainer, surroundings(tmp_path, checkpoint_seconds=0.0))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3, 4]
    assert_same(trainer, tmp_path, expected)


def test_a_value_head_that_nothing_trains_stops_no_resume(problems: ModuleType, tmp_path: Path) -> None:
    expected = whole_run(problems, "sft", tmp_path / "whole", value_head=True)
    for until in (2, None):
        trainer = problems.sft(value_head=True)
        train(trainer, surroundings(tmp_path), until=until)
    assert_same(trainer, tmp_path, expected)


def test_a_finished_run_does_nothing_more(problems: ModuleType, tmp_path: Path) -> None:
    expected = whole_run(problems, "reward", tmp_path)
    again = problems.reward(policy_seed=9)
    assert train(again, surroundings(tmp_path)) == []
    assert_same(again, tmp_path, expected)


def test_a_reward_model_is_normalised_once_at_each_end(problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the run is cut: before the first step and behind the last one."""
    calls: list[int] = []
    for until in (1, 2, None, None):
        trainer = problems.reward()
        monkeypatch.setattr(trainer, "normalize", lambda *target, trainer=trainer: calls.append(trainer.updater.updates))
        train(trainer, surroundings(tmp_path), until=until)
    assert calls == [0, 4]


def test_a_fault_leaves_the_last_checkpoint(problems: ModuleType, tmp_path: Path) -> None:
    trainer = problems.ppo()

    def broken(prompts: list[str], responses: list[str]) -> list[float]:
        raise ValueError("no answer")

    train(trainer, surroundings(tmp_path), until=2)
    trainer.reward = broken
    with pytest.raises(RunError):
        train(trainer, surroundings(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]


def test_a_fault_while_an_earlier_round_is_done_again_goes_back_within_it(problems: ModuleType, tmp_path: Path) -> None:
    """There is a checkpoint of a later round, step 4; the fault comes before step 2."""
    train(problems.ppo(), surroundings(tmp_path, checkpoint_seconds=0.0))
    assert 4 in Checkpoints(tmp_path / "checkpoints").steps()
    trainer = problems.ppo()

    def bad(index: int) -> dict[str, float]:
        raise TrainingError("ill", {})

    trainer.step = bad
    with pytest.raises(RunError, match=r"^ill. Nothing was saved before$"):
        train(trainer, surroundings(tmp_path), until=2)


def test_checkpoints_that_take_long_are_further_apart(problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a step takes one second and a save two. Saved after step 1; over 40 seconds later, after step 42; at the end."""
    clock = [0.0]
    monkeypatch.setattr("humanward.trainers.run.time.monotonic", lambda: clock[0])
    around, saved = surroundings(tmp_path, checkpoint_seconds=0.5), list[int]()
    assert around.checkpoints is not None

    def save(step: int, *_: Any) -> None:
        clock[0] += 2.0
        saved.append(step)

    def step(index: int) -> dict[str, float]:
        clock[0] += 1.0
        return {}

    trainer = problems.sft(epochs=30)
    monkeypatch.setattr(around.checkpoints, "save", save)
    monkeypatch.setattr(trainer, "step", step)
    train(trainer, around)
    assert saved == [1, 42, 60]


def test_only_the_main_process_writes(problems: ModuleType, tmp_path: Path) -> None:
    train(problems.sft(), surroundings(tmp_path, is_main=False))
    assert list(tmp_path.rglob("*step-*")) == []
    assert not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_trainer_needs_no_surroundings(problems: ModuleType) -> None:
    assert len(train(problems.sft())) == 4


@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_of_another_model_is_refused(problems: ModuleType, tmp_path: Path, name: str) -> None:
    """By its name, before a weight is changed: one layer more would fit by shape."""
    train(problems.MAKERS[name](), surroundings(tmp_path), until=1)
    trainer = problems.MAKERS[name]()
    trained = trainer.updater.bare
    del getattr(trained, "policy", trained).trunk.layers[0]
    with pytest.raises(
        RunError, match=rf"^{tmp_path}/checkpoints/step-1: the checkpoint has (policy\.)?model\..* and the model none: it belongs to"
    ):
        train(trainer, surroundings(tmp_path))


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("lost", ["tensor", "state"])
def test_a_checkpoint_of_another_version_is_refused(problems: ModuleType, tmp_path: Path, name: str, lost: str) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    train(problems.MAKERS[name](), surroundings(tmp_path), until=1)
    checkpoint = store.latest()
    assert checkpoint is not None
    kept = {key: tensor for key, tensor in checkpoint.tensors.items() if lost == "state" or "exp_avg_sq." not in key}
    state = {key: value for key, value in checkpoint.state.items() if lost == "tensor" or key != "updates"}
    store.save(1, kept, state)
    missing = "updates" if lost == "state" else r"exp_avg_sq\..*"
    with pytest.raises(RunError, match=rf"step-1: the checkpoint has no {missing}: another model or another version .*; go on with"):
        train(problems.MAKERS[name](), surroundings(tmp_path))


@pytest.mark.parametrize("name", TRAINERS)
def test_a_context_that_is_too_short_is_said_before_the_start(problems: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = problems.policy_of

    def short(*args: Any, **settings: Any) -> Policy:
        policy = make(*args, **settings)
        policy.model.config.max_position_embeddings = 4
        return policy

    monkeypatch.setattr(problems, "policy_of", short)
    what = {"sft": "demonstration 11: 2 tokens", "reward": "question 1: 2 tokens", "dpo": "question 1: 2 tokens"}.get(name, "PPO: 2 tokens")
    with pytest.raises(UserError, match=rf"^{what} of a prompt and \d of a response are \d, but the context of LlamaForCausalLM is 4; "):
        problems.MAKERS[name]()


def test_a_reward_model_with_a_shorter_context_than_the_policy(problems: ModuleType) -> None:
    policy = tiny_policy(value_head=True)
    reward_model = RewardModel(tiny_policy().model, policy.tokenizer)
    reward_model.model.config.max_position_embeddings = 4
    config = PPOConfig(episodes=16, batch_size=16)
    with pytest.raises(UserError, match=r"^PPO: 2 tokens of a prompt and 3 of a response are 5, but the context of LlamaFor.* is 4; "):
        PPOTrainer(policy, policy.frozen_copy(), reward_model, problems.PROMPTS, config, task=tiny_task(policy, response_length=3))
