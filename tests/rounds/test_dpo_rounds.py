"""Iterative DPO: where each round begins, what it is held to, and which labels it is trained on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from humanward.models import Policy
from humanward.rounds import Loop, LoopConfig, methods
from humanward.rounds.config import SECTIONS
from humanward.trainers import DPOTrainer
from humanward.trainers.selftest import tiny_policy

from .conftest import LABELERS, Counter, settings


def dpo_settings(folder: Path, **dpo: Any) -> LoopConfig:
    """40 and 12 questions for two rounds of DPO."""
    values = settings(folder).model_dump(mode="json", exclude_unset=True, exclude={"reward", "ppo"})
    return LoopConfig.model_validate(values | {"method": "dpo", "dpo": {"lr": 3e-3, "batch_size": 8, "epochs": 2, **dpo}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A finished run with labelers of its own."""
    folder = tmp_path_factory.mktemp("dpo-rounds")
    tiny_policy().save(folder / "model")
    words = itertools.product(("bad", "w2", "w3", "w4"), repeat=4)
    (folder / "prompts.txt").write_text("".join(" ".join(row) + "\n" for row in words))
    made = Loop(folder / "run", dpo_settings(folder), labelers=[Counter(f"labeler-{n}") for n in range(LABELERS)])
    made.run()
    return made


class Noted(DPOTrainer):
    """Keeps what it was given."""

    given: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None, set[str]]

    def __init__(self, policy: Policy, reference: Policy | None, comparisons: Any, *arguments: Any, **more: Any) -> None:
        Noted.given = weights(policy), None if reference is None else weights(reference), {c.question_id for c in comparisons}
        super().__init__(policy, reference, comparisons, *arguments, **more)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def same(one: dict[str, torch.Tensor] | None, folder: Path | str) -> bool:
    assert one is not None
    other = weights(Policy.load(folder))
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("round_reference", "held_to"), [("first", "model"), ("before", "rounds/1/policy")])
def test_each_round_goes_on_from_the_policy_that_sampled(
    run: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_reference: str, held_to: str
) -> None:
    config = run.config.model_copy(update={"dpo": run.config.dpo.model_copy(update={"round_reference": round_reference})})
    monkeypatch.setattr(run.context, "config", config)
    monkeypatch.setattr(methods, "DPOTrainer", Noted)
    monkeypatch.setattr(methods, "train", lambda *_, **__: None)
    methods.dpo(run.context, 2, tmp_path)
    began, reference, _ = Noted.given
    assert same(began, run.folder.path / "rounds/1/policy")
    assert same(reference, run.config.model if held_to == "model" else run.folder.path / held_to)
    assert not same(began, run.config.model)


@pytest.mark.parametrize(("round_labels", "questions"), [("all", 49), ("new", 9)])
def test_a_round_trains_on_all_labels_or_on_its_own(
    run: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_labels: str, questions: int
) -> None:
    """52 questions, 3 of the 12 new ones held out."""
    config = run.config.model_copy(update={"dpo": run.config.dpo.model_copy(update={"round_labels": round_labels})})
    monkeypatch.setattr(run.context, "config", config)
    monkeypatch.setattr(methods, "DPOTrainer", Noted)
    monkeypatch.setattr(methods, "train", lambda *_, **__: None)
    methods.dpo(run.context, 2, tmp_path)
    assert len(Noted.given[2]) == questions


def test_the_rounds_ask_as_many_questions_as_ppos(run: Loop) -> None:
    """56 - (56 - 40) * (1 - 1/2)^2 = 52 labels are due half-way."""
    asked = [len((run.folder.path / f"rounds/{n}/questions/questions.jsonl").read_text().splitlines()) for n in (1, 2)]
    assert asked == [40, 12]


def test_where_nobody_can_tell_no_policy_is_said_to_be_preferred(run: Loop) -> None:
    from humanward.storage import read_json

    results = read_json(run.folder.path / "evaluation/results.json")
    assert "win_rates" not in results
    assert "scores" not in results
    assert [(row["round"], row["questions"]) for row in results["reward_model"]] == [(1, 10), (2, 3)]
    assert set(results["kl"]) == {"dpo"}


def test_every_method_has_its_function_and_its_sections() -> None:
    names = LoopConfig.model_fields["method"].annotation.__args__  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert set(methods.METHODS) == set(SECTIONS) == set(names)
    assert {name for sections in SECTIONS.values() for name in sections} <= set(LoopConfig.model_fields)
