"""Methods on groups: what each makes of scores, what all share with PPO, exact resume, the prompt computed once."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from humanward.data import Task, TaskConfig
from humanward.errors import RunError, UserError
from humanward.feedback import ScoreLabeler
from humanward.maths import group_advantage, kl_estimate, leave_one_out_advantage, ppo_clip_loss
from humanward.models import RewardModel
from humanward.storage import Checkpoints, MetricsLog, StopFlag, Stopped
from humanward.trainers import GroupConfig, GroupTrainer, LabelerChoice, OnlineDPOConfig, Surroundings, best_of_n, train
from humanward.trainers.group import Groups
from humanward.trainers.scoring import score_episodes
from humanward.trainers.selftest import WORDS, tiny_policy, tiny_task

METHODS = ["rloo", "grpo", "dr_grpo", "reinforce", "online_dpo", "expert_iteration"]


def first_groups(trainer: GroupTrainer) -> tuple[Groups, Any]:
    """The first step's groups and scores."""
    rollout = trainer.rollouts.sample(0)
    scores = trainer.rollouts.score(rollout, trainer.reward)
    return trainer.groups(rollout, scores), scores


def loss_of(trainer: GroupTrainer, groups: Groups, logprobs: Tensor) -> Tensor:
    return trainer.objective.loss(logprobs, groups, groups)


# ---- what a response is worth


def test_rloo_subtracts_the_kl_before_the_baseline(problems: ModuleType) -> None:
    """Ahmadian et al. 2024: R(x, y) = r - beta log(pi / rho) of the whole response, then the mean of the others is taken off."""
    groups, scores = first_groups(problems.groups("rloo", kl_coef=0.5))
    r = groups.rollout
    rewards = scores.scores - 0.5 * (r.logprobs - r.reference_logprobs).sum(-1)
    torch.testing.assert_close(groups.worth, leave_one_out_advantage(rewards))
    assert (groups.worth - leave_one_out_advantage(scores.scores)).abs().max() > 0.1


def test_grpo_and_dr_grpo_leave_the_kl_to_the_loss(problems: ModuleType) -> None:
    for method, scale in (("grpo", True), ("dr_grpo", False)):
        groups, scores = first_groups(problems.groups(method, kl_coef=0.5))
        torch.testing.assert_close(groups.worth, group_advantage(scores.scores, scale=scale))


def test_reinforce_compares_with_all_rewards_so_far(problems: ModuleType) -> None:
    """Ahmadian et al. 2024, eq. 6: the mean over the steps so far; a later step has another baseline than its own mean."""
    trainer = problems.groups("reinforce", kl_coef=0.0)
    means = []
    for step in (0, 1):
        rollout = trainer.rollouts.sample(step)
        scores = trainer.rollouts.score(rollout, lambda p, r, step=step: [float(step)] * len(r))
        means.append(float((scores.scores - trainer.objective.worth(rollout, scores)).mean()))
    assert means == [0.0, 0.5]
    batch, scores = first_groups(problems.groups("reinforce", kl_coef=0.0, baseline="batch"))
    torch.testing.assert_close(batch.worth, scores.scores - scores.scores.mean())


def test_the_best_are_kept(problems: ModuleType) -> None:
    for keep in (1, 2):
        groups, scores = first_groups(problems.groups("expert_iteration", keep=keep))
        assert (groups.worth.sum(1) == keep).all()
        kept, others = (scores.scores.where(groups.worth == side, worst) for side, worst in ((1, math.inf), (0, -math.inf)))
        assert (kept.amin(1) >= others.amax(1)).all()


def test_a_score_that_is_no_number_is_not_the_best(problems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = problems.groups("expert_iteration", keep=1)
    _, scores = first_groups(trainer)
    spoilt = torch.tensor([math.nan, -5.0, -3.0, -math.inf])
    worth = trainer.objective.worth(trainer.rollouts.sample(0), replace(scores, scores=spoilt.expand_as(scores.scores)))
    assert worth.tolist() == [[0, 0, 1, 0]] * len(worth)

    def spoiling(*given: Any, **settings: Any) -> Any:
        found = score_episodes(*given, **settings)
        return replace(found, scores=spoilt.expand_as(found.scores))

    monkeypatch.setattr(sys.modules["humanward.trainers.best_of_n"], "score_episodes", spoiling)  # the package has a function of this name
    policy = tiny_policy()
    (best,) = best_of_n(policy, problems.score, [(4,)], 4, task=tiny_task(policy, response_length=3))
    assert best.score == -3


def test_preferences_of_online_dpo(problems: ModuleType) -> None:
    """The best response with certainty, equals half each; or as Bradley and Terry would have it."""
    trainer = problems.groups("online_dpo", responses_per_prompt=2)
    rollout = trainer.rollouts.sample(0)
    scores = trainer.rollouts.score(rollout, lambda p, r: [float(n // 2 % 2 * (n % 2)) for n in range(len(r))])
    assert trainer.objective.worth(rollout, scores)[:2].tolist() == [[0.5, 0.5], [0.0, 1.0]]
    soft = problems.groups("online_dpo", responses_per_prompt=2, preference="bradley_terry").objective.worth(rollout, scores)
    assert soft[1].tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


def test_the_learning_rate_falls_by_the_step(problems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, 4 steps of 2 passes in 2 minibatches."""
    trainer, rates = problems.groups("grpo", lr=1e-3, lr_schedule="linear"), list[float]()
    update = trainer.updater.update

    def watched(*args: Any, **settings: Any) -> dict[str, float]:
        found = update(*args, **settings)
        rates.append(found["lr"])
        return found

    monkeypatch.setattr(trainer.updater, "update", watched)
    trainer.run()
    assert rates == pytest.approx([1e-3 * (1 - step / 4) for step in range(4) for _ in range(4)])


# ---- losses


def test_the_loss_of_grpo_is_equation_3(problems: ModuleType) -> None:
    """The slow loop: mean over responses of the mean over their tokens of the clipped surrogate less beta times k3."""
    trainer = problems.groups("grpo", kl_coef=0.3, task=ending_task())
    groups, _ = first_groups(trainer)
    r = groups.rollout
    logprobs = r.logprobs + 0.3 * torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(0)) * r.response_mask
    total = 0.0
    for b, k in ((b, k) for b in range(4) for k in range(4)):
        tokens = []
        for t in range(int(r.response_mask[b, k].sum())):
            A, ratio = float(groups.worth[b, k]), float((logprobs - r.logprobs)[b, k, t].exp())
            log = float((r.reference_logprobs - logprobs)[b, k, t])
            tokens.append(min(ratio * A, min(max(ratio, 0.8), 1.2) * A) - 0.3 * (math.exp(log) - log - 1))
        total -= sum(tokens) / len(tokens) / 16
    assert loss_of(trainer, groups, logprobs).item() == pytest.approx(total, rel=1e-5)


def test_lengths_count_as_each_paper_has_it(problems: ModuleType) -> None:
    """The gradient of a token's log-probability on the first pass: -A over 16 responses, over the response's length, the longest, or 1."""
    for method, divisor in (("grpo", lambda n: n), ("dr_grpo", lambda n: 4.0 + 0 * n), ("rloo", lambda n: 1.0 + 0 * n)):
        trainer = problems.groups(method, kl_coef=0.0, task=ending_task())
        groups, _ = first_groups(trainer)
        lengths = groups.rollout.response_mask.sum(-1, keepdim=True).float()
        assert lengths.min() < lengths.max()
        logprobs = groups.rollout.logprobs.clone().requires_grad_()
        loss_of(trainer, groups, logprobs).backward()
        expected = -groups.worth[..., None] * groups.rollout.response_mask / divisor(lengths) / 16
        torch.testing.assert_close(logprobs.grad, expected, atol=1e-6, rtol=1e-5)


def test_in_the_loss_k2_pulls_to_the_reference_and_k3_by_the_other_divergence(problems: ModuleType) -> None:
    """Over all tokens exactly: the mean gradient of k2 is that of KL(pi || rho), of k3 that of KL(rho || pi), of k1 nothing."""
    g = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(6, generator=g, dtype=torch.float64), torch.randn(6, generator=g, dtype=torch.float64).log_softmax(0)

    def gradient(loss: Any) -> Tensor:
        x = logits.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(x.log_softmax(0)), x)
        return found

    policy = logits.softmax(0)
    found = {name: gradient(lambda p, name=name: (policy * kl_estimate(p, reference, name)).sum()) for name in ("k1", "k2", "k3")}
    torch.testing.assert_close(found["k2"], gradient(lambda p: (p.exp() * (p - reference)).sum()))
    torch.testing.assert_close(found["k3"], gradient(lambda p: (reference.exp() * (reference - p)).sum()))
    torch.testing.assert_close(found["k1"], torch.zeros(6, dtype=torch.float64))


def test_online_dpo_on_a_pair_is_dpo(problems: ModuleType) -> None:
    """-log sigmoid(beta * lead of the better one), and half of that each way where both score the same."""
    trainer = problems.groups("online_dpo", responses_per_prompt=2, beta=0.5)
    groups, scores = first_groups(trainer)
    ratio = (groups.rollout.logprobs - groups.rollout.reference_logprobs).sum(-1)
    expected = []
    for (r1, r2), (s1, s2) in zip(ratio.tolist(), scores.scores.tolist(), strict=True):
        first, second = (math.log1p(math.exp(-0.5 * lead)) for lead in (r1 - r2, r2 - r1))
        expected.append(first if s1 > s2 else second if s2 > s1 else (first + second) / 2)
    assert {s1 == s2 for s1, s2 in scores.scores.tolist()} == {True, False}
    assert loss_of(trainer, groups, groups.rollout.logprobs).item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_the_loss_of_online_dpo_is_the_chosen_one(problems: ModuleType) -> None:
    """At the reference every lead is 0: DPO's loss is log 2, IPO's (0 - 1 / (2 beta))^2, the hinge's 1."""
    for loss, expected in (("sigmoid", math.log(2)), ("ipo", 1.0), ("hinge", 1.0)):
        trainer = problems.groups("online_dpo", responses_per_prompt=2, beta=0.5, loss=loss)
        groups, _ = first_groups(trainer)
        assert loss_of(trainer, groups, groups.rollout.reference_logprobs).item() == pytest.approx(expected, rel=1e-5), loss


def test_expert_iteration_is_the_likelihood_of_what_is_kept(problems: ModuleType) -> None:
    trainer = problems.groups("expert_iteration", task=ending_task())
    groups, _ = first_groups(trainer)
    kept = groups.rollout.response_mask & (groups.worth == 1)[..., None]
    assert loss_of(trainer, groups, groups.rollout.logprobs).item() == pytest.approx(float(-groups.rollout.logprobs[kept].mean()), rel=1e-5)


def test_leaving_out_what_expert_iteration_rejects_changes_nothing(problems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the weights of an update that runs every response and reads the kept ones; the episodes are logged whole."""
    one, other = (problems.groups("expert_iteration", task=ending_task(), minibatches=1, epochs=1) for _ in range(2))

    def loss(logprobs: Tensor, part: Groups, whole: Groups) -> Tensor:
        tokens = (whole.rollout.response_mask * whole.worth[..., None]).sum()
        return -(logprobs * part.rollout.response_mask * part.worth[..., None]).sum() / tokens

    monkeypatch.setattr(other, "groups", lambda rollout, scores: Groups(rollout, other.objective.worth(rollout, scores)))
    monkeypatch.setattr(other.objective, "loss", loss)
    found, expected = one.step(0), other.step(0)
    for name, tensor in other.tensors().items():
        torch.testing.assert_close(one.tensors()[name], tensor, atol=1e-6, rtol=0, msg=name)
    names = ("score", "kl", "kl_per_token", "response_length", "repetition", "missing_truncation", "policy_loss", "grad_norm")
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-5)


def ending_task() -> Task:
    """Responses of 1 to 4 tokens that end at end-of-text."""
    config = TaskConfig(
        prompt_start=None, prompt_end=None, truncate_token=None, prompt_length=3, response_length=4, temperature=1.0, stop_at_eos=True,
        missing_truncation_score=None,
    )  # fmt: skip
    return Task(config, tiny_policy().tokenizer)


# ---- the trainer


@pytest.mark.parametrize("method", METHODS)
def test_every_method_raises_the_score(problems: ModuleType, method: str) -> None:
    """Direction: the sign of scores, advantages and losses, and that of the KL; DPO against "best" needs more steps than the others."""
    trainer = problems.groups(method, episodes=64 * 12, batch_size=64, lr=1e-2, epochs=1, minibatches=1)
    metrics = trainer.run()
    assert metrics[-1]["score"] > metrics[0]["score"] + 0.3
    assert metrics[0]["first_ratio_error"] < 1e-4


@pytest.mark.parametrize("method", ["rloo", "online_dpo", "expert_iteration"])
def test_episodes_passes_and_minibatches_make_the_updates(problems: ModuleType, method: str) -> None:
    """48 episodes in steps of 24 are 2 steps, each of 3 passes over 2 minibatches."""
    metrics = problems.groups(method, episodes=48, batch_size=24, responses_per_prompt=4, minibatches=2, epochs=3).run()
    assert [row["updates"] for row in metrics] == [6, 6]


@pytest.mark.parametrize("settings", [{}, {"kl_in": "loss", "kl_estimator": "k2"}, {"kl_in": "loss"}])
def test_the_kl_alone_brings_a_policy_back(problems: ModuleType, settings: dict[str, Any]) -> None:
    trainer = problems.groups(
        "rloo", reward=lambda p, r: [0.0] * len(r), kl_coef=1.0, episodes=64 * 12, batch_size=64, lr=1e-2, minibatches=1, **settings
    )
    metrics = trainer.run()
    assert metrics[-1]["kl"] < 0.6 * metrics[0]["kl"]


def test_the_same_numbers_are_logged_as_by_ppo(problems: ModuleType) -> None:
    ppo = problems.ppo(ppo_epochs=2).step(0).keys()
    for method in METHODS:
        found = problems.groups(method).step(0).keys()
        assert ppo - found == {"value_loss", "explained_variance"}
        assert found - ppo == {"equal_scores"}


def test_clipped_responses_are_counted_where_responses_are_clipped(problems: ModuleType) -> None:
    """Three tokens of ratio 1.1 are a response of ratio 1.33: no token is out of range, every response is."""
    shares = {}
    for method in ("rloo", "dr_grpo"):
        trainer = problems.groups(method)
        groups, _ = first_groups(trainer)
        moved = groups.rollout.logprobs + math.log(1.1) * groups.worth.sign()[..., None]
        shares[method] = float(trainer.ratios(moved, groups, groups)["clip_fraction"])
        assert method == "dr_grpo" or (groups.worth != 0).all()
    assert shares == {"rloo": 1.0, "dr_grpo": 0.0}


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_change_nothing(problems: ModuleType, method: str) -> None:
    whole, parts = (problems.groups(method, task=ending_task(), micro_batch_tokens=n) for n in (10_000, 1))
    for trainer in (whole, parts):
        trainer.step(0)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(tensor, parts.tensors()[name], atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_is_computed_once_for_its_group(problems: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows through the body: sampling prefills 4 prompts, then decodes 16 responses; reference, update and reward model pack them.

    Expert iteration updates on one response of four and leaves the others out.
    """
    policy = tiny_policy(seed=3)
    reward = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    trainer = problems.groups(method, reward=reward, minibatches=1, epochs=1)
    trainer.step(0)  # the first one tries out whether packed rows are exact with this model
    seen: dict[str, int] = {}
    for name, trunk in (("policy", trainer.policy.trunk), ("reference", trainer.reference.trunk), ("reward", reward.trunk)):
        trunk.layers[0].mlp.register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, seen.get(name, 0) + args[0].numel() // args[0].shape[-1])
        )
    trainer.step(1)
    prompts = sum(map(len, problems.PROMPTS))
    # A response's last token is read by nobody in a language model; the first is predicted by the prompt.
    packed = prompts + 16 * 2
    assert seen["reference"] == packed
    assert seen["reward"] == prompts + 16 * 3
    updated = prompts + 4 * 2 if method == "expert_iteration" else packed
    assert seen["policy"] == 4 * 2 + 16 * 2 + updated  # the sampler pads prompts to the longest


def test_a_groups_seed_does_not_depend_on_the_method_alone(problems: ModuleType) -> None:
    """Same prompts in every method of one seed, other responses."""
    one, other = (problems.groups(method).rollouts.sample(0) for method in ("rloo", "grpo"))
    assert torch.equal(one.prompts, other.prompts)
    assert not torch.equal(one.responses, other.responses)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_two_parts_is_the_run_in_one(problems: ModuleType, tmp_path: Path, method: str) -> None:
    """The second part begins with other weights, so that whatever it does not load shows."""

    def around(name: str) -> Surroundings:
        return Surroundings(Checkpoints(tmp_path / name / "checkpoints"), MetricsLog(tmp_path / name / "metrics.jsonl"))

    whole = problems.groups(method)
    train(whole, around("whole"))
    train(problems.groups(method), around("parts"), until=2)
    again = problems.groups(method, policy_seed=9)
    assert len(train(again, around("parts"))) == 2
    assert [name for name, tensor in whole.tensors().items() if not torch.equal(tensor, again.tensors()[name])] == []
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def test_a_stop_while_scoring(problems: ModuleType, tmp_path: Path) -> None:
    """A reward that takes long hears the wish to stop; what was done is saved."""
    stop, calls, over = StopFlag(), list[int](), threading.Event()

    def slow(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if len(calls) == 1:
            stop.request()
            over.wait(5)
        calls.append(len(responses))
        return problems.score(prompts, responses)

    around = Surroundings(Checkpoints(tmp_path / "checkpoints"), stop=stop)
    with pytest.raises(Stopped):
        train(problems.groups("rloo", reward=slow, check=stop.check), around)
    over.set()
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("rloo", {"batch_size": 10}, "batch_size 10 cannot be divided into 2 minibatches of whole groups of responses_per_prompt 4"),
        ("rloo", {"episodes": 8}, "episodes 8 is less than one batch of 16"),
        ("rloo", {"responses_per_prompt": 1}, "rloo: baseline leave_one_out needs responses_per_prompt of 2 or more"),
        ("rloo", {"scale_advantages": True}, "rloo: scale_advantages is the deviation of a group; it needs baseline group"),
        ("rloo", {"average": "fixed"}, "rloo: average fixed is over tokens, but ratio sequence"),
        ("grpo", {"kl_estimator": "k1"}, "grpo: the gradient of k1 in a loss is 0 in the mean; set kl_estimator k2 or k3"),
        ("online_dpo", {"responses_per_prompt": 1}, "a response alone is preferred to nothing"),
        ("expert_iteration", {"keep": 4}, "keep 4 of responses_per_prompt 4 rejects nothing"),
    ],
)
def test_settings_that_do_not_go_together(problems: ModuleType, method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        problems.groups(method, **settings)


def test_a_method_that_there_is_not(problems: ModuleType) -> None:
    policy = tiny_policy()
    with pytest.raises(UserError, match="roo: no policy gradient of that name; expected rloo, grpo, dr_grpo, reinforce"):
        GroupTrainer(policy, policy.frozen_copy(), problems.score, [(4,)], GroupConfig(), "roo", task=tiny_task(policy))


def test_numbers_that_are_not_finite_end_a_training_with_its_batch(problems: ModuleType, tmp_path: Path) -> None:
    trainer = problems.groups("grpo", lr=1.0)
    train(trainer, Surroundings(Checkpoints(tmp_path / "checkpoints")), until=1)
    with torch.no_grad():
        trainer.policy.head.weight[2] = math.nan
    with pytest.raises(RunError, match=r"grpo: update \d+: the (loss|gradient) is not a finite number, for the third time in a row"):
        train(trainer, Surroundings(faults=tmp_path / "faults"))


# ---- judged by a labeler; the best of n


def test_a_labeler_judges_in_place_of_a_score(problems: ModuleType) -> None:
    """Online DPO learns from choices alone: the labeler's score is never seen."""
    choice = LabelerChoice(ScoreLabeler("mock", problems.score), 2)
    assert choice(["a", "a", "b", "b"], ["good", "bad", "w3", "good good"]) == [1.0, 0.0, 0.0, 1.0]
    policy = tiny_policy()
    config = OnlineDPOConfig(episodes=64 * 12, batch_size=64, lr=1e-2)
    trainer = GroupTrainer(
        policy, policy.frozen_copy(), choice, problems.PROMPTS, config, "online_dpo", task=tiny_task(policy), true_score=problems.score
    )
    metrics = trainer.run()
    assert metrics[-1]["true_score"] > metrics[0]["true_score"] + 0.2


def test_the_best_of_n_is_the_best(problems: ModuleType) -> None:
    policy = tiny_policy()
    task = tiny_task(policy, response_length=3)
    found = best_of_n(policy, problems.score, problems.PROMPTS, 8, task=task, seed=3)
    assert [best.prompt for best in found] == problems.PROMPTS
    for best in found:
        assert best.score == max(best.scores) == problems.score([""], [best.text])[0]
        assert len(best.scores) == 8
        assert best.demonstration("x").response == best.response
    alone = best_of_n(policy, problems.score, problems.PROMPTS[2:], 8, task=task, seed=3)
    assert alone == found[2:]
    (one,) = best_of_n(policy, problems.score, [(4,)], 1, task=task)
    assert one.scores == (one.score,)
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n(policy, problems.score, [(4,)], 0, task=task)


def test_a_reward_model_of_the_best_of_n_is_where_the_policy_is_and_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a training: on the policy's device, in evaluation, and refused where it has other tokens or no room."""
    policy, short = tiny_policy(), tiny_policy(seed=1)
    task, model = tiny_task(policy, response_length=3), RewardModel(short.model, policy.tokenizer).train()
    devices: list[torch.device] = []
    monkeypatch.setattr(model, "to", devices.append)
    best_of_n(policy, model, [(4,)], 2, task=task)
    assert devices == [policy.device]
    assert not model.training
    short.model.config.max_position_embeddings = 3
    with pytest.raises(UserError, match=r"best of n: 1 tokens of a prompt and 3 of a response are 4, but the context of .* is 3"):
        best_of_n(policy, model, [(4,)], 2, task=task)
    longer, other = tiny_policy(words=(*WORDS, "w6")), tiny_policy()
    with pytest.raises(UserError, match="the reward model has another tokenizer than the policy"):
        best_of_n(longer, RewardModel(other.model, other.tokenizer), [(4,)], 2, task=tiny_task(longer))


def test_the_first_loss_of_grpo_is_ppos_with_the_same_advantages(problems: ModuleType) -> None:
    """On responses of one length both average the same clipped surrogate over the same tokens."""
    trainer = problems.groups("grpo", kl_coef=0.0)
    groups, _ = first_groups(trainer)
    logprobs, advantages = groups.rollout.logprobs.flatten(0, 1), groups.worth.flatten()[:, None].expand(16, 3)
    expected = ppo_clip_loss(logprobs, logprobs, advantages, clip_range=0.2).mean()
    assert loss_of(trainer, groups, groups.rollout.logprobs).item() == pytest.approx(float(expected), abs=1e-6)
