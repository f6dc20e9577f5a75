"""Ensembles: how members' scores become one, resamples, one trunk or many, saved, resumed, and as PPO's reward."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from humanward.errors import UserError
from humanward.maths import bald, choice_variance
from humanward.models import RewardEnsemble, RewardModel, save_classifier
from humanward.models.reward_ensemble import full_members, lora_members
from humanward.storage import Checkpoints
from humanward.trainers import EnsembleTrainer, PPOConfig, PPOTrainer, RewardConfig, Surroundings, TextReward, load_reward, train
from humanward.trainers.label_losses import without_labeler_noise
from humanward.trainers.reward_ensemble import bootstrap, choice_probabilities, hold_out
from humanward.trainers.scoring import score_episodes
from humanward.trainers.selftest import tiny_policy, tiny_task

KINDS = ["full", "lora"]


def ensemble(kind: str, count: int = 3, **settings: Any) -> RewardEnsemble:
    policy = tiny_policy(seed=2)
    generator = torch.Generator().manual_seed(0)
    if kind == "lora":
        members = lora_members(policy.model, policy.tokenizer, count, rank=2, generator=generator)
    else:
        members = full_members(policy.model, policy.tokenizer, count, generator=generator)
    return RewardEnsemble(members, **settings)


def trainer(problems: ModuleType, kind: str, **settings: Any) -> EnsembleTrainer:
    config = RewardConfig(lr=3e-3, batch_size=8, normalize_samples=12, **settings)
    return EnsembleTrainer(ensemble(kind), problems.comparisons(24), config, reference_episodes=problems.episodes(), seed=5)


def batch(problems: ModuleType) -> tuple[torch.Tensor, ...]:
    e = problems.episodes()
    return e.prompts, e.prompt_mask, e.responses[:, None], e.response_mask[:, None]


@torch.no_grad()
def test_one_score_from_many_by_hand(problems: ModuleType) -> None:
    made = ensemble("full")
    for member, (gain, bias) in zip(made.members, [(0.0, 1.0), (0.0, 2.0), (0.0, 6.0)], strict=True):
        assert isinstance(member, RewardModel)
        member.set_normalization(gain, bias)
    # 1, 2, 6: mean 3, lowest 1, deviation sqrt((4 + 1 + 9) / 3) = 2.1602.
    for combine, penalty, expected in (("mean", 1.0, 3.0), ("min", 1.0, 1.0), ("penalized", 0.5, 3 - 0.5 * 2.16025)):
        made.combine, made.penalty = combine, penalty  # type: ignore[assignment]
        assert made(*batch(problems)).flatten().tolist() == pytest.approx([expected] * 12, abs=1e-4)


def test_a_resample_is_as_large_as_the_data_and_leaves_out_one_in_e() -> None:
    drawn, left = bootstrap(1, 0, 4000)
    assert len(drawn) == 4000
    assert not set(drawn) & set(left)
    assert len(set(drawn)) + len(left) == 4000
    assert len(left) / 4000 == pytest.approx(0.3679, abs=0.02)  # four deviations
    assert bootstrap(1, 0, 50) == bootstrap(1, 0, 50) != bootstrap(1, 1, 50)


def test_what_is_held_out_is_one_in_e_by_lot_and_each_question_is_on_one_side() -> None:
    kept, left = hold_out(1, 0, 100)
    assert len(left) == 37  # 100 / 2.71828
    assert sorted(kept + left) == list(range(100))
    assert hold_out(1, 0, 100) == (kept, left) != hold_out(1, 1, 100)


def test_choices_are_believed_on_the_scale_of_the_fit(problems: ModuleType) -> None:
    """Normalising divides scores by their deviation; what the labels were explained by must not change."""
    one = problems.reward()
    one.start()
    for index in range(one.total_steps):
        one.step(index)
    before = choice_probabilities(one.reward_model, one.comparisons)
    one.finish()
    assert float(one.reward_model.choice_scale) != pytest.approx(1.0, abs=1e-3)
    after = choice_probabilities(one.reward_model, one.comparisons)
    assert after.shape == (1, 16, 3)
    assert abs(after - before).max() < 1e-5


def test_a_member_on_a_shared_trunk_is_a_classifier_of_its_own(problems: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    made = trainer(problems, "lora")
    train(made)
    e = problems.episodes()
    rows = torch.cat([e.prompts, e.responses], dim=1)
    mask = torch.cat([e.prompt_mask, e.response_mask], dim=1)
    with torch.no_grad():
        expected = made.ensemble.member_scores(*batch(problems))[:, :, 0]
    for number, member in enumerate(made.ensemble.members):
        assert isinstance(member, RewardModel)
        shift = save_classifier(member, tmp_path / str(number))
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(number))
        for n in range(len(rows)):
            logit = float(classifier(input_ids=rows[n : n + 1, mask[n]]).logits[0, 0].detach())
            assert logit + shift == pytest.approx(float(expected[number, n]), abs=1e-4)


def test_questions_that_are_drawn_several_times_are_no_more_certain(problems: ModuleType) -> None:
    """Labelers' noise is estimated before the draw; in it each question keeps its copies."""
    labels = [replace(c, labeler=name) for c in problems.comparisons(24) for name in ("ann", "ben")]
    labels[1::10] = [replace(c, target=(int(c.target) + 1) % 3) for c in labels[1::10]]  # type: ignore[arg-type]
    probabilities = {c.question_id: c.target for c in without_labeler_noise(labels)}
    made = EnsembleTrainer(ensemble("full"), labels, RewardConfig(label_noise="estimated", normalize_before=False, normalize_after=False))
    for number, member in enumerate(made.trainers):
        drawn, left = bootstrap(0, number, 24)
        assert [c.question_id for c in member.comparisons] == [made.questions[i][0].question_id for i in drawn]
        assert len(drawn) > len(set(drawn))
        assert all(c.target == probabilities[c.question_id] for c in member.comparisons)
        assert made.held_out[number] == [c for i in left for c in made.questions[i]]


@pytest.mark.parametrize("kind", KINDS)
def test_members_learn_each_for_itself_and_differ(problems: ModuleType, kind: str) -> None:
    made = trainer(problems, kind)
    trunk_before = made.ensemble.model.base_model.state_dict()["embed_tokens.weight"].clone()
    heads = [m.score_head.weight.clone() for m in made.ensemble.members]  # type: ignore[union-attr, operator]
    assert not torch.equal(heads[0], heads[1])
    train(made)
    with torch.no_grad():
        scores = made.ensemble.member_scores(*batch(problems))
    assert float((scores[0] - scores[1]).abs().max()) > 0.05
    # Each is normalised by itself, so that none outweighs another.
    assert scores[:, :, 0].mean(1).tolist() == pytest.approx([0.0] * 3, abs=1e-4)
    assert scores[:, :, 0].std(1, correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    if kind == "lora":
        assert torch.equal(made.ensemble.model.base_model.state_dict()["embed_tokens.weight"], trunk_before)
    assert [counted for _, counted in made.held_out_accuracy()] == [len(left) for left in made.held_out]
    p = choice_probabilities(made.ensemble, made.comparisons[:5], batch_size=2)
    assert p.shape == (3, 5, 3)
    assert (bald(p) > 0).all()
    assert (choice_variance(p) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_ends_as_an_undisturbed_one(problems: ModuleType, kind: str, tmp_path: Path) -> None:
    whole = trainer(problems, kind)
    train(whole)
    around = Surroundings(Checkpoints(tmp_path / "checkpoints"))
    train(trainer(problems, kind), around, until=4)  # in the middle of the second member
    resumed = trainer(problems, kind)
    train(resumed, around)
    expected, found = whole.tensors(), resumed.tensors()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    if kind == "lora":
        assert not any("embed_tokens" in name for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_is_one_folder_and_rewards_ppo(problems: ModuleType, kind: str, tmp_path: Path) -> None:
    made = trainer(problems, kind)
    train(made)
    made.ensemble.combine, made.ensemble.penalty = "penalized", 0.7
    made.ensemble.save(tmp_path / "ensemble")
    loaded = RewardEnsemble.load(tmp_path / "ensemble")
    with torch.no_grad():
        assert torch.allclose(loaded(*batch(problems)), made.ensemble(*batch(problems)), atol=1e-6)
    texts = (["w2 ", "bad "], ["good w3", "w4"])
    assert load_reward(tmp_path / "ensemble")(*texts) == pytest.approx(TextReward(made.ensemble)(*texts), abs=1e-6)
    policy = tiny_policy(value_head=True)
    task = tiny_task(policy, response_length=3)
    assert score_episodes(task, loaded, problems.episodes()).scores.shape == (12,)
    config = PPOConfig(episodes=16, batch_size=16, minibatches=2, kl_target=None)
    ppo = PPOTrainer(policy, tiny_policy(seed=1), loaded, problems.PROMPTS, config, task=task)
    assert ppo.run()[0]["skipped"] == 0


def test_what_is_no_ensemble_is_one_line(problems: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not an ensemble of reward models \(no readable reward_ensemble.json\)"):
        RewardEnsemble.load(tmp_path)
    made = ensemble("lora", 2)
    made.save(tmp_path)
    shutil.rmtree(tmp_path / "member-1")
    with pytest.raises(UserError, match=r"member-1: not a reward model \(no score_head\.safetensors\)"):
        RewardEnsemble.load(tmp_path)
    with pytest.raises(UserError, match="no labels to fit"):
        EnsembleTrainer(made, [], RewardConfig())
