"""What ends a training and what is said of one that looks ill."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from humanward.errors import RunError
from humanward.storage import Checkpoints, MetricsLog
from humanward.storage.tensors import StoredTensors
from humanward.trainers import Surroundings, train
from humanward.trainers import label_losses as reward_room
from humanward.trainers import ppo_objective as ppo_room
from humanward.trainers import sft as sft_room
from humanward.trainers.diagnostics import repetition
from humanward.trainers.guards import Watch

WELL = {
    "grad_norm": 1.0, "value_loss": 0.1, "kl": 3.0, "response_length": 12.0, "entropy": 2.0, "missing_truncation": 0.1, "repetition": 0.1,
}  # fmt: skip


def said(rows: list[dict[str, float]], **settings: Any) -> list[str]:
    watch = Watch(**settings)
    return [kind for row in rows for kind, _ in watch(row)]


@pytest.mark.parametrize(
    ("ill", "kind"),
    [
        ({"grad_norm": 10.5}, "gradient"), ({"value_loss": 10.1}, "values"),
        ({"kl": 24.5}, "kl"), ({"kl": -1.5}, "negative kl"), ({"response_length": 25.0}, "length"),
        ({"response_length": 5.0}, "length"), ({"entropy": 0.4}, "entropy"), ({"missing_truncation": 0.6}, "truncation"),
        ({"repetition": 0.35}, "repetition"), ({"skipped": 1.0}, "numbers"),
        ({"first_ratio_error": 0.6}, "first ratio"), ({"out_of_range": 0.55}, "range"),
    ],
)  # fmt: skip
def test_each_sign_is_said_once(ill: dict[str, float], kind: str) -> None:
    assert said([WELL] * 10 + [WELL | ill] * 3 + [WELL], kl_limit=24.0, ratio_limit=0.5) == [kind]


@pytest.mark.parametrize("ill", [{"kl": -3.0}, {"first_ratio_error": 1.0}, {"kl": 99.0}])
def test_a_mismatch_names_its_causes_in_the_order_in_which_they_were_met(ill: dict[str, float]) -> None:
    (_, text), *others = Watch(kl_limit=24.0, ratio_limit=0.5)(WELL | ill)
    assert not others
    places = [text.index(cause) for cause in ("task.top_k", "temperature", "padding", "adapters", "dropout")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("ill", "causes"),
    [
        ({"skipped": 1.0}, ["learning rate", "scores", "dtype"]),
        ({"grad_norm": 99.0}, ["learning rate", "scores", "long texts", "adapter"]),
        ({"value_loss": 99.0}, ["scores", "value_lr", "the KL", "reward model"]),
        ({"response_length": 99.0}, ["generation settings", "padding", "reward model", "price", "kl_coef"]),
        ({"entropy": 0.1}, ["temperature", "kl_coef", "learning rate", "reward model"]),
        ({"missing_truncation": 0.9}, ["generation settings", "padding", "price", "reward model"]),
        ({"repetition": 0.9}, ["generation settings", "behind their end", "reward model", "kl_coef"]),
    ],
)
def test_what_looks_ill_names_its_likely_causes_in_their_order(ill: dict[str, float], causes: list[str]) -> None:
    watch = Watch()
    watch.look_back([WELL] * 10)
    ((_, text),) = watch(WELL | ill)
    _, named = text.split("; look ", 1)
    places = [named.index(cause) for cause in causes]
    assert places == sorted(places)


def test_first_ratios_are_judged_by_the_number_type(problems: ModuleType) -> None:
    """Of what 32 bits allow, rounding is a small part; of a temperature that one side forgot, less than what 16 bits allow."""
    for name in ("ppo", "value network", "grpo"):
        exact, coarse = (problems.MAKERS[name](dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
        assert (exact.ratio_limit, coarse.ratio_limit) == (0.05, 0.5)
        for trainer in (exact, coarse):
            assert trainer.step(0)["first_ratio_error"] < trainer.ratio_limit / 5
    assert problems.ppo(dropout=0.1).ratio_limit is None
    assert problems.sft().ratio_limit is None
    wrong = problems.ppo()
    wrong.rollouts.sampling = replace(wrong.rollouts.sampling, temperature=0.9)
    rollout = wrong.sample_rollout(0)
    wrong.rollouts.sampling = replace(wrong.rollouts.sampling, temperature=1.0)
    error = wrong.update(wrong.advantages(rollout, torch.zeros_like(rollout.logprobs)))["ratio_error"]
    assert 0.05 < error < 0.5


def test_values_that_stay_worse_than_none_are_said_so() -> None:
    """Not at the beginning, where a value network knows little."""
    assert said([WELL | {"explained_variance": -5.0}] * 20) == []
    assert said([WELL | {"explained_variance": -5.0}] * 25) == ["explained variance"]
    assert said([WELL | {"explained_variance": 0.3}] * 25) == []


def test_what_is_well_is_not_mentioned() -> None:
    rows = [{name: value * (1 + 0.4 * math.sin(n + len(name))) for name, value in WELL.items()} for n in range(100)]
    assert said(rows, kl_limit=24.0) == []


def test_nothing_is_unusual_before_a_watch_knows_what_is_usual() -> None:
    ill = {"grad_norm": 1e6, "value_loss": 1e6, "response_length": 99.0, "entropy": 0.0, "missing_truncation": 1.0, "repetition": 0.9}
    assert said([ill], kl_limit=24.0) == []


def test_a_watch_that_looked_back_does_not_say_it_again() -> None:
    watch = Watch(kl_limit=24.0)
    watch.look_back([WELL] * 8 + [WELL | {"kl": 30.0}])
    assert watch(WELL | {"kl": 31.0}) == []
    assert [kind for kind, _ in watch(WELL | {"entropy": 0.1})] == ["entropy"]


def test_repetition_counts_tokens_that_stand_before() -> None:
    """By hand: 3 4 3 3 has 2 of 4; 5 5 | 5 has 1 of 2, the pad counts for nothing; an empty one 0."""
    responses = torch.tensor([[3, 4, 3, 3], [5, 5, 5, 5], [1, 1, 1, 1]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    assert repetition(responses, mask).tolist() == [0.5, 0.5, 0.0]


def test_repetition_needs_no_more_memory_than_the_responses() -> None:
    """A few copies of [B, R], not [B, R, R], which were 512 times as much; the same numbers as by looking back from each token."""
    g = torch.Generator().manual_seed(0)
    responses, mask = torch.randint(0, 300, (16, 512), generator=g), torch.rand(16, 512, generator=g) < 0.8
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        found = repetition(responses, mask)
    assert max(event.self_cpu_memory_usage for event in seen.key_averages()) < 10 * responses.nbytes
    for row, real, share in zip(responses.tolist(), mask.tolist(), found.tolist(), strict=True):
        kept = [token for token, is_real in zip(row, real, strict=True) if is_real]
        assert share == pytest.approx(1 - len({*kept}) / len(kept))


def test_a_fault_keeps_the_batch_and_goes_back(problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    around = Surroundings(checkpoints=checkpoints, log=MetricsLog(tmp_path / "metrics.jsonl"), faults=tmp_path / "faults")
    trainer = problems.reward(epochs=4)
    train(trainer, around, until=2)
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    right = reward_room.choice_loss
    monkeypatch.setattr(reward_room, "choice_loss", lambda *args, **settings: right(*args, **settings) * math.nan)
    told: list[str] = []
    around.tell = told.append
    with pytest.raises(RunError, match=r"for the third time in a row.* The weights are those of step 2; the batch is in .*reward-1-step-4"):
        train(trainer, around, stage="reward", round=1)
    assert len(told) == 1
    assert "left out" in told[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.tensors().items())
    assert checkpoints.steps() == [2]
    kept = StoredTensors(tmp_path / "faults/reward-1-step-4/batch.safetensors")
    assert kept["responses"].shape[:2] == (8, 3)
    assert json.loads((tmp_path / "faults/reward-1-step-4/fault.json").read_text())["step"] == 4


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "dr_grpo", "reinforce", "online_dpo", "expert_iteration"])
def test_every_method_that_samples_has_a_limit_of_its_kl(
    problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """50 nats per response without a target; the policy is said to be a hundred nats per token away from its reference."""
    trainer = problems.MAKERS[name](**({"kl_target": None} if name == "ppo" else {}))
    sample = trainer.rollouts.sample

    def far(index: int, **settings: Any) -> Any:
        rollout = sample(index, **settings)
        return replace(rollout, reference_logprobs=rollout.logprobs - 100 * rollout.response_mask)

    monkeypatch.setattr(trainer.rollouts, "sample", far)
    alarms = MetricsLog(tmp_path / "alarms.jsonl")
    train(trainer, Surroundings(alarms=alarms, tell=lambda _: None), until=1)
    (said,) = [row["text"] for row in alarms.read() if row["kind"] == "kl"]
    assert said.startswith("the KL is 300.0 nats per response, beyond 50.0; raise kl_coef")


@pytest.mark.parametrize("name", ["reward", "ppo", "grpo"])
def test_the_first_alarm_of_a_kind_keeps_its_batch(
    problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One update without a finite loss; the training goes on, and a later one of its stage keeps no more."""
    around = Surroundings(faults=tmp_path / "faults", tell=lambda _: None)
    for part in (1, 2):
        trainer = problems.MAKERS[name](minibatches=2) if name != "reward" else problems.reward()
        update = trainer.updater.update
        seen: list[Any] = []

        def spoilt(micro: Any, loss: Any, *, seen: list[Any] = seen, update: Any = update, **settings: Any) -> dict[str, float]:
            seen.append(settings["batch"]())
            return update(micro, lambda *args: loss(*args) * (math.nan if len(seen) == 2 else 1), **settings)

        monkeypatch.setattr(trainer.updater, "update", spoilt)
        train(trainer, around, stage=name, round=part)
        if part == 1:
            first = seen[1]
    folder = tmp_path / "faults" / f"{name}-numbers"
    assert json.loads((folder / "fault.json").read_text())["round"] == 1
    kept = StoredTensors(folder / "batch.safetensors")
    assert kept.keys() == first.keys()
    assert all(torch.equal(kept[key], first[key]) for key in first)


def test_alarms_are_on_the_disk_before_the_checkpoint_behind_them(
    problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
    around = Surroundings(
        checkpoints=Checkpoints(tmp_path / "checkpoints"), alarms=MetricsLog(tmp_path / "alarms.jsonl"), tell=lambda _: None
    )
    train(problems.ppo(kl_target=0.001), around, stage="ppo", until=2)
    assert synced.index("alarms.jsonl") < synced.index("tensors.safetensors")


def test_alarms_are_written_and_cut_with_the_run(problems: ModuleType, tmp_path: Path) -> None:
    """The KL limit of a target of 0.001 nats is passed at once; the second part does not say it twice."""
    told: list[str] = []
    around = Surroundings(
        checkpoints=Checkpoints(tmp_path / "checkpoints"), log=MetricsLog(tmp_path / "metrics.jsonl"),
        alarms=MetricsLog(tmp_path / "alarms.jsonl"), tell=told.append,
    )  # fmt: skip
    train(problems.ppo(kl_target=0.001, lr=1e-3), around, stage="ppo", until=2)
    train(problems.ppo(kl_target=0.001, lr=1e-3), around, stage="ppo")
    assert [row["kind"] for row in MetricsLog(tmp_path / "alarms.jsonl").read()] == ["kl"]
    assert len(told) == 1
    assert told[0].startswith("ppo, step 1: the KL is ")


BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "spike": 1e6, "-spike": -1e6}
LATE = 9
"""A step at which a watch knows what is usual."""


def spoil_loss(trainer: Any, bad: float, monkeypatch: pytest.MonkeyPatch, room: ModuleType, name: str) -> None:
    right = getattr(room, name)
    monkeypatch.setattr(room, name, lambda *args, **settings: right(*args, **settings) * bad)


def spoil_label_weight(trainer: Any, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first question of the batch."""
    right = reward_room.choice_loss
    weights = torch.tensor([bad] + [1.0] * (trainer.config.batch_size - 1))
    monkeypatch.setattr(reward_room, "choice_loss", lambda *args, **settings: right(*args, **settings) * weights)


def spoil_score(trainer: Any, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = trainer.score
    bad_scores = torch.tensor([bad] + [0.0] * (trainer.config.batch_size - 1))

    def score(*args: Any, **settings: Any) -> Any:
        scores = right(*args, **settings)
        return replace(scores, scores=scores.scores + bad_scores)

    monkeypatch.setattr(trainer, "score", score)


def spoil_rollout(trainer: Any, bad: float, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first token of the first response."""
    right = trainer.sample_rollout

    def sample_rollout(index: int) -> Any:
        rollout = right(index)
        spoilt = getattr(rollout, name).clone()
        spoilt[0, 0] = bad
        return replace(rollout, **{name: spoilt})

    monkeypatch.setattr(trainer, "sample_rollout", sample_rollout)


def spoil_group_reward(trainer: Any, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first response of the batch."""
    right = trainer.objective.worth

    def worth(rollout: Any, scores: Any) -> Any:
        spoilt = scores.scores.clone()
        spoilt[0, 0] = bad
        return right(rollout, replace(scores, scores=spoilt))

    monkeypatch.setattr(trainer.objective, "worth", worth)


def spoil_worth(trainer: Any, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first response is worth, where rewards are normalised or only compared."""
    right = trainer.objective.worth

    def worth(rollout: Any, scores: Any) -> Any:
        spoilt = right(rollout, scores).clone()
        spoilt[0, 0] = bad
        return spoilt

    monkeypatch.setattr(trainer.objective, "worth", worth)


SPOILERS: dict[str, tuple[str, Any]] = {
    "sft-loss": ("sft", partial(spoil_loss, room=sft_room, name="demonstration_loss")),
    "reward-loss": ("reward", partial(spoil_loss, room=reward_room, name="choice_loss")),
    "label-weight": ("reward", spoil_label_weight),
    "ppo-loss": ("ppo", partial(spoil_loss, room=ppo_room, name="ppo_clip_loss")),
    "score": ("ppo", spoil_score),
    "kl": ("ppo", partial(spoil_rollout, name="reference_logprobs")),
    "logprob": ("ppo", partial(spoil_rollout, name="logprobs")),
    "value": ("ppo", partial(spoil_rollout, name="values")),
    **{f"{method}-reward": (method, spoil_group_reward) for method in ("rloo", "dr_grpo", "reinforce")},
    **{f"{method}-worth": (method, spoil_worth) for method in ("grpo", "online_dpo")},
}  # fmt: skip


TWELVE_STEPS: dict[str, dict[str, Any]] = {
    "sft": {"epochs": 6}, "reward": {"epochs": 6}, "ppo": {"episodes": 16 * 12, "ppo_epochs": 1, "minibatches": 1, "kl_target": 6.0},
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize(("name", "spoil"), SPOILERS.values(), ids=SPOILERS.keys())
def test_a_bad_number_is_caught_in_its_step(
    problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Any, bad: float
) -> None:
    """In one step and no other: the watch says something of just that step, what is not finite moves nothing, and no weight is spoilt."""
    trainer = problems.MAKERS[name](**TWELVE_STEPS.get(name, {"episodes": 16 * 12, "epochs": 1, "minibatches": 1, "lr": 3e-4}))
    around = Surroundings(
        checkpoints=Checkpoints(tmp_path / "checkpoints"), log=MetricsLog(tmp_path / "metrics.jsonl"),
        alarms=MetricsLog(tmp_path / "alarms.jsonl"), tell=lambda _: None,
    )  # fmt: skip
    train(trainer, around, until=LATE)
    before = {key: tensor.clone() for key, tensor in trainer.tensors().items()}
    with monkeypatch.context() as spoilt:
        spoil(trainer, bad, spoilt)
        train(trainer, around, until=LATE + 1)
    alarms = MetricsLog(tmp_path / "alarms.jsonl").read()
    assert {row["step"] for row in alarms} == {LATE}
    left_out = "numbers" in [row["kind"] for row in alarms]
    assert left_out or math.isfinite(bad)
    assert left_out == all(torch.equal(tensor, before[key]) for key, tensor in trainer.tensors().items())
    train(trainer, around)
    assert all(torch.isfinite(tensor).all() for tensor in trainer.tensors().values())
    assert all(math.isfinite(value) for value in trainer.state().values())


@pytest.mark.parametrize(("name", "spoil"), SPOILERS.values(), ids=SPOILERS.keys())
def test_bad_numbers_that_last_end_the_training_with_its_batch(
    problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Any
) -> None:
    trainer = problems.MAKERS[name](**{"epochs": 4} if name in ("sft", "reward") else {"minibatches": 1})
    around = Surroundings(checkpoints=Checkpoints(tmp_path / "checkpoints"), faults=tmp_path / "faults", tell=lambda _: None)
    train(trainer, around, until=2)
    before = {key: tensor.clone() for key, tensor in trainer.tensors().items()}
    spoil(trainer, math.nan, monkeypatch)
    with pytest.raises(RunError, match=r"third time in a row.* The weights are those of step 2; the batch is in (\S+)$") as fault:
        train(trainer, around, stage=name)
    assert StoredTensors(Path(str(fault.value).rpartition(" ")[2]) / "batch.safetensors").keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in trainer.tensors().items())
