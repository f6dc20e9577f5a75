"""Each setting of PPO does what it says, in the direction that it says, and nothing where it is off."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from humanward.data import Task, TaskConfig
from humanward.errors import UserError
from humanward.maths import adapted_kl_coef, add_at_last_token, gae, kl_estimate, masked_mean, whiten
from humanward.models import Policy
from humanward.storage import Checkpoints
from humanward.trainers import PPOConfig, PPOTrainer, Surroundings, train
from humanward.trainers import ppo as ppo_room
from humanward.trainers.moving_reference import MovingReference
from humanward.trainers.ppo_objective import policy_loss
from humanward.trainers.scoring import Episodes, score_episodes
from humanward.trainers.selftest import END, tiny_policy, tiny_task


def nothing(prompts: Any, responses: Any) -> list[float]:
    return [0.0] * len(responses)


def good(prompts: Any, responses: Any) -> list[float]:
    return [float(response.split().count("good")) for response in responses]


def trainer(*, score: Any = good, same: bool = False, temperature: float = 1.0, **settings: Any) -> PPOTrainer:
    """A policy apart from its reference, or beside a copy of it; one step of 64 episodes in two passes by default."""
    policy = tiny_policy(value_head=True)
    reference = policy.frozen_copy() if same else tiny_policy(seed=1)
    plain = {
        "lr": 3e-3, "episodes": 64, "batch_size": 64, "ppo_epochs": 2, "kl_target": None, "kl_coef": 0.1, "lr_schedule": "constant",
    }  # fmt: skip
    task = tiny_task(policy, response_length=3, temperature=temperature)
    return PPOTrainer(policy, reference, score, [(4,), (5, 6)], PPOConfig(**{**plain, **settings}), task=task, seed=3)


def after_a_step(**settings: Any) -> dict[str, Tensor]:
    one = trainer(**settings)
    one.step(0)
    return {name: tensor.clone() for name, tensor in one.actor_critic.state_dict().items()}


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rollback": ({"clip_range": 0.005}, {"surrogate": "rollback"}),
    "trust region": ({}, {"surrogate": "trust_region", "trust_region_kl": 1e-4}),
    "trust region, rollback": ({"trust_region_kl": 1e-4, "surrogate": "trust_region"}, {"surrogate": "trust_region_rollback"}),
    "ratio": ({"clip_range": 0.001, "old_kl_coef": 1e-9}, {"surrogate": "ratio"}),
    "dual clip": ({}, {"dual_clip": 1.001}),
    "old KL": ({}, {"old_kl_coef": 1.0}),
    "stop": ({}, {"stop_kl": 1e-6}),
    "entropy": ({}, {"entropy_coef": 0.1}),
    "value clip": ({"value_clip_range": 0.001}, {"value_clip_range": None}),
    "KL in the loss": ({"kl_estimator": "k2"}, {"kl_in": "loss"}),
    "k2": ({}, {"kl_estimator": "k2"}),
    "k3": ({}, {"kl_estimator": "k3"}),
    "full": ({}, {"kl_estimator": "full"}),
    "score clip": ({}, {"score_clip": 0.5}),
    "whitening over the batch": ({"minibatches": 2}, {"whiten_over": "batch"}),
}
"""What both steps have in common, and what the second has besides."""


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_the_update(name: str) -> None:
    """No dead options."""
    beside, change = CHANGES[name]
    plain, changed = after_a_step(**beside), after_a_step(**{**beside, **change})
    assert max(float((plain[key] - changed[key]).abs().max()) for key in plain) > 1e-7


# ---- the reward


def naive_logprobs(policy: Policy, trainer: PPOTrainer, rollout: Any) -> Tensor:
    """[B, R, V], row by row from the model's own logits."""
    rows = []
    for prompt, mask, response in zip(rollout.prompts, rollout.prompt_mask, rollout.responses, strict=True):
        logits = policy.model(torch.cat([prompt[mask], response])[None]).logits[0, int(mask.sum()) - 1 : -1].double()
        logits = (logits / trainer.task.config.temperature).masked_fill(policy.suppressed_tokens(keep_eos=False), -1e30)
        rows.append(torch.log_softmax(logits, -1))
    return torch.stack(rows)


def exact_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1).float()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
@torch.no_grad()
def test_the_reward_pays_the_kl_of_the_chosen_estimator(estimator: str) -> None:
    one = trainer(kl_estimator=estimator, temperature=0.7)
    rollout = one.sample_rollout(0)
    found = one.kl_penalty(rollout, rollout.logprobs - rollout.reference_logprobs)
    if estimator == "full":
        expected = exact_kl(naive_logprobs(one.policy, one, rollout), naive_logprobs(one.reference, one, rollout))
    else:
        expected = kl_estimate(rollout.logprobs, rollout.reference_logprobs, estimator)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert float(found.abs().max()) > 0.1


def test_a_full_kl_asks_the_reference_once_and_passes_no_head_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities and states of the reference in one forward, and its head is not copied; of the policy no log-probabilities."""
    one = trainer(kl_estimator="full")
    assert one.policy.packs()  # the first forward would try it out
    assert one.reference.packs()
    bodies, heads = list[str](), list[str]()
    for name, policy in (("policy", one.policy), ("reference", one.reference)):
        policy.trunk.layers[0].register_forward_hook(lambda *_, name=name: bodies.append(name))
        right = policy.logprobs_of
        monkeypatch.setattr(policy, "logprobs_of", lambda *a, name=name, right=right, **s: (heads.append(name), right(*a, **s))[1])
    rollout = one.sample_rollout(0)
    one.kl_penalty(rollout, rollout.logprobs - rollout.reference_logprobs)
    assert bodies == ["policy"] * 3 + ["reference", "policy"]  # three tokens are sampled
    assert heads == ["reference"]
    assert rollout.reference_distributions is not None
    assert rollout.reference_distributions.weight.data_ptr() == one.reference.head.weight.data_ptr()
    assert one.rollouts.distributions(one.policy, rollout).weight.data_ptr() != one.policy.head.weight.data_ptr()


def test_a_kl_in_the_loss_is_not_in_the_reward() -> None:
    one = trainer(kl_in="loss", kl_estimator="k3")
    rollout = one.sample_rollout(0)
    assert not one.kl_penalty(rollout, rollout.logprobs - rollout.reference_logprobs).any()


@pytest.mark.parametrize(
    "settings",
    [{"kl_estimator": "k1"}, *({"kl_in": "loss", "kl_estimator": k} for k in ("k2", "k3", "full"))],
    ids=lambda s: "-".join(s.values()),
)
def test_wherever_it_is_paid_a_kl_brings_the_policy_back(settings: dict[str, str]) -> None:
    """No score: all that moves is the KL. A flipped sign would make it grow. In the reward, only k1 pulls as the KL does: test_kl.py."""
    one = trainer(score=nothing, episodes=64 * 10, lr=5e-3, kl_coef=1.0, whiten_rewards=False, **settings)
    metrics = one.run()
    assert metrics[-1]["kl"] < 0.7 * metrics[0]["kl"]


def test_scores_are_clipped_before_they_are_rewards_and_logged_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def watched(x: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        given.append(scores)
        return add_at_last_token(x, scores, mask)

    monkeypatch.setattr(ppo_room, "add_at_last_token", watched)
    metrics = trainer(score=lambda p, r: [(-1.0) ** n * 7.0 for n in range(len(r))], score_clip=2.0).step(0)
    assert set(given[0].tolist()) == {-2.0, 2.0}
    assert metrics["score"] == pytest.approx(0.0)
    metrics = trainer(score=lambda p, r: [7.0] * len(r), score_clip=2.0).step(0)
    assert metrics["score"] == pytest.approx(7.0)


def test_whitening_over_the_batch_is_once_for_all_minibatches() -> None:
    one = trainer(whiten_over="batch", minibatches=4)
    rollout = one.sample_rollout(0)
    rewards = torch.linspace(0, 3, 192).view(64, 3).cos()
    parts = [part for _, part in one.minibatches(0, rollout, rewards)]
    assert [len(part.advantages) for part in parts] == [16] * 8
    mask = rollout.response_mask
    advantages, returns = gae(whiten(rewards, mask, shift_mean=False), rollout.values, mask, gamma=1.0, gae_lambda=0.95)
    order = torch.cat(list(one.minibatch_rows(0, 1)))
    torch.testing.assert_close(torch.cat([part.advantages for part in parts[4:]]), whiten(advantages, mask)[order])
    torch.testing.assert_close(torch.cat([part.returns for part in parts[4:]]), returns[order])


@pytest.mark.parametrize("whiten_rewards", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_values_are_compared_with_the_returns_that_they_are_fitted_to(
    whiten_rewards: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that are a share of the returns explain 1 - (1 - share)^2 of them, on whatever scale those are; GAE at 1 has only rewards."""
    one = trainer(
        score=lambda p, r: [0.01 * s for s in good(p, r)], kl_coef=0.0, gae_lambda=1.0, ppo_epochs=1, whiten_rewards=whiten_rewards
    )
    rollout = one.sample_rollout(0)
    rewards = add_at_last_token(torch.zeros(64, 3), one.score(rollout, one.reward).scores, rollout.response_mask)
    values = share * one.advantages(rollout, rewards).returns
    monkeypatch.setattr(one, "sample_rollout", lambda index: dataclasses.replace(rollout, values=values))
    assert one.step(0)["explained_variance"] == pytest.approx(1 - (1 - share) ** 2, abs=1e-5)


# ---- the update


def moved(one: PPOTrainer, amount: float = 0.3) -> Any:
    """A minibatch that was sampled by a policy a little apart from the one that is updated now."""
    rollout = one.sample_rollout(0)
    with torch.no_grad():
        one.policy.head.weight.add_(amount * torch.randn(one.policy.head.weight.shape, generator=torch.Generator().manual_seed(5)))
    return one.advantages(rollout, torch.linspace(0, 3, 192).view(64, 3).cos())


@torch.no_grad()
def test_the_kl_of_the_trust_region_is_that_of_whole_distributions() -> None:
    one = trainer(surrogate="trust_region", temperature=0.7)
    before = naive_logprobs(one.policy, one, one.sample_rollout(0))
    batch = moved(one)
    r = batch.rollout
    outputs = one.policy(
        r.prompts, r.prompt_mask, r.responses, r.response_mask, temperature=0.7, suppressed=one.rollouts.suppressed,
        kl_from=r.distributions,
    )  # fmt: skip
    exact = exact_kl(before, naive_logprobs(one.policy, one, r))
    torch.testing.assert_close(outputs.kl_from, exact, atol=1e-5, rtol=1e-4)
    assert float(exact.mean()) > 0.01


def test_the_logged_kl_to_the_sampling_policy_is_k3_or_exact() -> None:
    sampled, exact = trainer(), trainer(surrogate="trust_region")
    found = [one.update(moved(one)) for one in (sampled, exact)]
    # 192 tokens: k3 is unbiased, and its deviation about as large as the KL itself.
    assert found[0]["old_kl"] == pytest.approx(found[1]["old_kl"], rel=0.5)
    assert found[0]["old_kl"] != found[1]["old_kl"]
    assert all(f["old_kl_max"] > f["old_kl"] > 0 for f in found)


def test_diagnostics_by_hand() -> None:
    """Old log-probabilities changed by -log 2 on a third of the tokens: ratio 2 there, 1 elsewhere; k3 = 1 - log 2."""
    one = trainer()
    rollout = one.sample_rollout(0)
    change = torch.tensor([-math.log(2), 0.0, 0.0]).expand(64, 3)
    batch = one.advantages(dataclasses.replace(rollout, logprobs=rollout.logprobs + change), torch.ones(64, 3))
    found = one.update(batch)
    k3 = 1 - math.log(2)
    expected = {"ratio_mean": 4 / 3, "ratio_max": 2.0, "out_of_range": 1 / 3, "old_kl": k3 / 3, "old_kl_max": k3, "ratio_error": 1.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_every_step_logs_the_same_names_whatever_is_set(problems: ModuleType) -> None:
    plain, everything = problems.ppo().step(0), problems.ppo_with_everything().step(0)
    passes = {f"old_kl_epoch_{n}" for n in range(1, 5)}  # those that stop_kl does not leave out
    assert plain.keys() - passes <= everything.keys()
    assert everything.keys() - plain.keys() == {"ptx_loss", "old_kl_coef", "old_kl_after"}
    wanted = {"ratio_mean", "ratio_max", "out_of_range", "old_kl", "old_kl_max", "kl", "kl_per_token", "kl_token_max", "explained_variance"}
    assert wanted | passes | {"entropy", "response_length", "repetition"} <= plain.keys()
    assert plain["old_kl_epoch_1"] < plain["old_kl_epoch_4"]


def test_entropies_are_only_computed_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**settings: Any) -> list[bool]:
        one = trainer(**settings)
        found: list[bool] = []
        logprobs_of = one.policy.logprobs_of

        def watched(*args: Any, want_entropy: bool, **rest: Any) -> Any:
            found.append(want_entropy)
            return logprobs_of(*args, want_entropy=want_entropy, **rest)

        monkeypatch.setattr(one.policy, "logprobs_of", watched)
        batch = one.advantages(one.sample_rollout(0), torch.ones(64, 3))
        found.clear()
        one.update(batch)
        one.update(batch, first_pass=False)
        return found

    assert asked() == [True, False]
    assert asked(entropy_coef=0.01) == [True, True]


def test_an_entropy_bonus_keeps_the_policy_open() -> None:
    kept, lost = (trainer(episodes=64 * 8, lr=5e-3, kl_coef=0.0, entropy_coef=e).run()[-1]["entropy"] for e in (0.3, 0.0))
    assert kept > lost + 0.1


def after_first_updates(**settings: Any) -> float:
    """KL from the policy that sampled, in the last of four passes."""
    return trainer(same=True, ppo_epochs=4, lr=2e-2, **settings).step(0)["old_kl_epoch_4"]


@pytest.mark.parametrize(
    "settings",
    [
        {"surrogate": "rollback", "clip_range": 0.05}, {"surrogate": "trust_region", "trust_region_kl": 0.002},
        {"surrogate": "trust_region_rollback", "trust_region_kl": 0.002}, {"old_kl_coef": 3.0},
        {"surrogate": "ratio", "old_kl_coef": 3.0},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)  # fmt: skip
def test_what_holds_an_update_near_holds_it_nearer_than_nothing(settings: dict[str, Any]) -> None:
    assert after_first_updates(**settings) < 0.8 * after_first_updates(surrogate="ratio", old_kl_coef=1e-9)


def test_a_dual_clip_bounds_what_a_likelier_bad_token_costs() -> None:
    """Every advantage -1 and ratios far above 3: the loss is 3, not the ratio."""
    losses = []
    for limit in (None, 3.0):
        one = trainer(dual_clip=limit, whiten_advantages=False)
        rollout = one.sample_rollout(0)
        batch = ppo_room.Minibatch(dataclasses.replace(rollout, logprobs=rollout.logprobs - 2.0), -torch.ones(64, 3), torch.zeros(64, 3))
        losses.append(one.update(batch)["policy_loss"])
    assert losses == pytest.approx([math.exp(2.0), 3.0], rel=1e-4)


def test_an_update_beyond_stop_kl_is_left_out_with_all_that_follow() -> None:
    one = trainer(same=True, ppo_epochs=4, lr=2e-2, episodes=128, lr_schedule="linear", stop_kl=0.01)
    found = one.step(0)
    free = trainer(same=True, ppo_epochs=4, lr=2e-2, episodes=128, lr_schedule="linear").step(0)
    assert 1 <= found["updates"] < free["updates"] == 4
    assert found["old_kl_max"] < free["old_kl_max"]
    assert one.updater.applied == found["updates"]
    # The learning rate falls by the step, as if nothing had been left out.
    assert one.updater.updates == 4
    assert one.step(1)["lr"] == pytest.approx(2e-2 * (1 - 1 / 2))


def test_a_stopped_update_changes_nothing() -> None:
    one = trainer(same=True, stop_kl=1e-9, ppo_epochs=1)
    batch = moved(one)
    before = [p.clone() for p in one.policy.parameters()]
    assert one.update(batch)["stopped"] == 1.0
    assert all(torch.equal(p, b) for p, b in zip(one.policy.parameters(), before, strict=True))
    assert one.updater.state_dict() == {}


def test_the_value_network_has_a_learning_rate_of_its_own() -> None:
    """Adam's first step is the gradient's sign: each weight moves by its rate."""
    one = trainer(lr=1e-3, value_lr=1e-4, adam_eps=1e-12, ppo_epochs=1)
    before = {name: p.detach().clone() for name, p in one.actor_critic.named_parameters()}
    one.step(0)
    moved_by = {name: float((p.detach() - before[name]).abs().max()) for name, p in one.actor_critic.named_parameters()}
    assert moved_by["policy.value_head.weight"] == pytest.approx(1e-4, rel=1e-2)
    assert moved_by["policy.model.lm_head.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_policy_and_value_network_are_updated_one_after_the_other(problems: ModuleType) -> None:
    """By the gradient of the sum of their losses, while neither holds a graph of the other's."""
    one = problems.MAKERS["value network"](max_grad_norm=None)
    one.updater._apply = lambda lr: None
    policy, network = one.policy, one.actor_critic.value_network
    order: list[str] = []
    for name, model in (("policy", policy), ("network", network)):
        model.register_forward_hook(lambda *_, name=name: order.append(name))
        weight = next(model.parameters())
        weight.register_post_accumulate_grad_hook(lambda _, name=name: order.append(f"{name}'s gradient"))
    rollout = one.sample_rollout(0)
    batch = one.advantages(rollout, torch.linspace(0, 3, rollout.responses.numel()).view(rollout.responses.shape).cos())
    order.clear()
    metrics = one.update(batch)
    assert order == ["policy", "policy's gradient", "network", "network's gradient"]
    found = [p.grad.clone() for p in one.actor_critic.parameters() if p.grad is not None]
    assert metrics["loss"] == pytest.approx(metrics["policy_loss"] + one.config.value_coef * metrics["value_loss"], abs=1e-7)
    one.actor_critic.zero_grad()
    r, mask = batch.rollout, batch.rollout.response_mask
    outputs = policy(r.prompts, r.prompt_mask, r.responses, mask, temperature=1.0, suppressed=one.rollouts.suppressed)
    values = network(r.prompts, r.prompt_mask, r.responses, mask)
    terms = policy_loss(outputs, r, batch.advantages, one.config) + one.config.value_coef * one.value_loss(values, batch)
    masked_mean(terms, mask).backward()
    expected = [p.grad for p in one.actor_critic.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 8
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found, expected, strict=True))


def test_a_constant_learning_rate_rises_over_its_warmup() -> None:
    one = trainer(episodes=64 * 6, warmup_steps=4, ppo_epochs=2)
    assert [row["lr"] for row in one.run()] == pytest.approx([3e-3 * min(1, n / 5) for n in (1, 2, 3, 4, 5, 6)])


@pytest.mark.parametrize("name", ["ppo", "value network"])
def test_dropout_acts_in_updates_alone(problems: ModuleType, name: str) -> None:
    """Whatever is sampled or asked is as without, also between two updates, where the model is in training mode."""
    settings = {"kl_estimator": "full", "old_kl_coef": 0.1, "old_kl_target": 0.01}
    dropping, plain = (problems.MAKERS[name](**settings, dropout=p) for p in (0.3, 0.0))
    found = []
    for one in (dropping, plain):
        one.actor_critic.train()
        rollout = one.sample_rollout(0)
        kl = rollout.logprobs - rollout.reference_logprobs
        states = one.rollouts.distributions(one.policy, rollout).states
        found.append([*rollout.tensors().values(), one.kl_penalty(rollout, kl), states, torch.tensor(one.old_kl_after(rollout))])
        assert one.actor_critic.training
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert dropping.step(0)["first_ratio_error"] > plain.step(0)["first_ratio_error"] + 0.01


# ---- controllers, and the reference that follows


def test_the_old_kl_coefficient_is_doubled_and_halved_by_what_the_updates_did() -> None:
    far = trainer(same=True, old_kl_coef=0.1, old_kl_target=1e-6, episodes=128)
    near = trainer(same=True, old_kl_coef=0.1, old_kl_target=10.0, episodes=128)
    assert [one.step(0)["old_kl_coef"] for one in (far, near)] == [0.1, 0.1]
    assert (far.old_kl_coef, near.old_kl_coef) == (0.2, 0.05)
    assert [one.step(1)["old_kl_coef"] for one in (far, near)] == [0.2, 0.05]


def test_the_kl_after_the_updates_is_that_of_the_updated_policy() -> None:
    one = trainer(same=True, ppo_epochs=1, minibatches=1, old_kl_coef=0.1, old_kl_target=1e-3)
    found = one.step(0)
    assert found["old_kl_epoch_1"] < 1e-6 < found["old_kl_after"]  # measured before the only update, and after it


def test_a_controller_per_token_follows_the_kl_per_token() -> None:
    one = trainer(kl_coef=0.5, kl_target_per_token=0.05, kl_horizon=1000)
    found = one.step(0)
    assert found["kl_per_token"] == pytest.approx(found["kl"] / 3, rel=1e-4)
    error = max(-0.2, min(0.2, found["kl_per_token"] / 0.05 - 1))
    assert one.kl_coef == pytest.approx(0.5 * (1 + error * 64 / 1000), rel=1e-6)
    assert one.kl_limit == pytest.approx(4 * 0.05 * 3)


def test_a_moving_reference_is_the_average_of_what_the_policy_was() -> None:
    one = trainer(reference_ema=0.9, episodes=192)
    expected = {name: p.detach().clone() for name, p in one.reference.model.named_parameters()}
    for index in range(3):
        one.step(index)
        policy = dict(one.policy.model.named_parameters())
        expected = {name: 0.9 * tensor + 0.1 * policy[name].detach() for name, tensor in expected.items()}
    for name, p in one.reference.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


def test_a_moving_reference_keeps_small_steps_in_16_bits() -> None:
    policy, reference = tiny_policy(seed=1), tiny_policy()
    reference.model.to(torch.bfloat16)
    start = {name: p.float().clone() for name, p in reference.named_parameters()}
    moving = MovingReference(reference, policy, 0.999)
    own = {name: p.detach() for name, p in policy.named_parameters()}
    for _ in range(1000):
        moving.follow(own)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(p.float(), own[name] + 0.999**1000 * (start[name] - own[name]), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_moving_reference_follows_what_is_trained_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    """Frozen embeddings stay, and a float32 reference is moved where it is, without a copy.

    Resumed, it goes on as it was, also from a checkpoint that has all weights of the reference, as those of older versions do.
    """

    def new() -> PPOTrainer:
        policy = tiny_policy(value_head=True)
        policy.model.to(dtype)
        policy.trunk.get_input_embeddings().requires_grad_(False)
        reference = policy.frozen_copy()
        config = PPOConfig(lr=3e-3, episodes=192, batch_size=64, kl_target=None, kl_coef=0.1, reference_ema=0.9)
        return PPOTrainer(policy, reference, good, [(4,), (5, 6)], config, task=tiny_task(policy, response_length=3), seed=3)

    whole = new()
    assert whole.moving_reference is not None
    own, moved = dict(whole.reference.named_parameters()), whole.moving_reference.exact
    assert own.keys() - moved.keys() == {"model.model.embed_tokens.weight"}
    assert all((own[name].data_ptr() == moved[name].data_ptr()) == (dtype == torch.float32) for name in moved)
    embeddings = own["model.model.embed_tokens.weight"].clone()
    train(whole)
    assert torch.equal(own["model.model.embed_tokens.weight"], embeddings)
    for older in (False, True):
        first, second, store = new(), new(), Checkpoints(tmp_path / str(older))
        train(first, Surroundings(store), until=2)
        checkpoint = store.latest()
        assert checkpoint is not None
        everything = {f"reference.{name}": p.detach().float() for name, p in first.reference.named_parameters()} if older else {}
        store.save(2, everything | dict(checkpoint.tensors), checkpoint.state)
        train(second, Surroundings(store))
        assert [name for name, p in second.reference.named_parameters() if not torch.equal(p, own[name])] == []


def test_a_reference_of_the_policys_own_weights_cannot_follow_it() -> None:
    policy = tiny_policy(value_head=True)
    with pytest.raises(UserError, match="policy and reference share their weights, as with adapters; set reference_ema to null"):
        MovingReference(Policy(policy.model, policy.tokenizer), policy, 0.9)


# ---- the pretraining mix


def test_a_pretraining_mix_holds_the_likelihood_of_its_texts(problems: ModuleType) -> None:
    def last(**ptx: Any) -> float:
        mix = {"texts": problems.TEXTS, "length": 6, "texts_per_episode": 1, **ptx}
        return trainer(same=True, episodes=64 * 6, lr=5e-3, ptx=mix).run()[-1]["ptx_loss"]

    assert last(coef=1.0) < last(coef=1e-9) - 0.1


def test_the_texts_of_an_update_are_a_function_of_its_number(problems: ModuleType) -> None:
    mix = trainer(ptx={"texts": problems.TEXTS, "length": 4, "texts_per_episode": 1}).ptx
    assert mix is not None
    assert all(2 <= len(row.response) <= 4 for row in mix.rows)

    def ids(update: int) -> list[str]:
        return sorted(row.id for part in mix.parts(update, 4, None) for row in part)

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)
    seen = [row for update in range(len(mix.rows)) for row in ids(update)]
    assert {seen.count(row) for row in seen} == {4}  # all alike: pass after pass over the texts


def test_the_ptx_loss_is_the_mean_over_tokens_at_temperature_one(problems: ModuleType) -> None:
    one = trainer(temperature=0.5, ptx={"texts": problems.TEXTS, "length": 6, "texts_per_episode": 1, "coef": 2.0})
    assert one.ptx is not None
    rows = [row for part in one.ptx.parts(0, 64, None) for row in part]
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = one.policy.model(torch.tensor([[END, *row.response]])).logits[0, :-1]
            nats -= float(torch.log_softmax(logits, -1)[range(len(row.response)), row.response].sum())
            tokens += len(row.response)
    assert one.update(one.advantages(one.sample_rollout(0), torch.ones(64, 3)))["ptx_loss"] == pytest.approx(nats / tokens, rel=1e-4)


def test_texts_of_single_tokens_are_no_pretraining(tmp_path: Any) -> None:
    (tmp_path / "short.txt").write_text("good\nbad\n")
    with pytest.raises(UserError, match="has no text of two tokens or more"):
        trainer(ptx={"texts": str(tmp_path / "short.txt")})


def test_the_only_update_of_a_step_is_measured_before_it_is_made(problems: ModuleType) -> None:
    """docs/ppo.md: with one update a step ratios are 1 and KLs 0, however far it goes; a second one sees the first."""
    one, two = (problems.ppo(ppo_epochs=passes, minibatches=1).step(0) for passes in (1, 2))
    assert (one["ratio_mean"], one["ratio_max"]) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert max(one[name] for name in ("out_of_range", "clip_fraction", "approx_kl", "old_kl", "old_kl_max")) < 1e-8
    assert two["old_kl"] > 1e-6
    assert two["ratio_max"] > 1.001


# ---- the end of a response


def eos_task(**settings: Any) -> Task:
    config = TaskConfig(
        prompt_start=None, prompt_end=None, truncate_token=None, prompt_length=2, response_length=4, temperature=1.0, stop_at_eos=True,
        **settings,
    )  # fmt: skip
    return Task(config, tiny_policy().tokenizer)


def two_episodes() -> Episodes:
    """One that ends, one that does not."""
    responses = torch.tensor([[2, 3, END, 1], [2, 3, 4, 5]])
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    return Episodes(responses[:, :1], torch.ones(2, 1, dtype=torch.bool), responses, mask)


def test_a_missing_end_costs_its_penalty_or_the_whole_score() -> None:
    def scores(**settings: Any) -> list[float]:
        return score_episodes(eos_task(**settings), lambda p, r: [5.0, 5.0], two_episodes()).scores.tolist()

    assert scores() == [5.0, -1.0]  # the EOS trick
    assert scores(missing_truncation_score=None) == [5.0, 5.0]
    assert scores(missing_truncation_score=None, missing_eos_penalty=2.0) == [5.0, 3.0]
    task = eos_task(missing_truncation_score=None, missing_eos_penalty=2.0)
    assert score_episodes(task, lambda p, r: [5.0, 5.0], two_episodes(), fixed_score=False).scores.tolist() == [5.0, 5.0]


def test_the_score_is_at_the_end_token_and_not_one_slot_later() -> None:
    """The code of Huang et al. 2024 puts it behind the end, where no token is trained (trl issue 3750)."""
    rewards = add_at_last_token(torch.zeros(2, 4), torch.tensor([7.0, 9.0]), two_episodes().response_mask)
    assert rewards.tolist() == [[0, 0, 7, 0], [0, 0, 0, 9]]


# ---- settings that contradict each other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_target_per_token": 0.1}, "kl_target \\(per response\\) and kl_target_per_token are both set; set one of them to null"),
        ({"kl_target": None, "kl_target_per_token": 0.1, "kl_coef": 0}, "kl_target needs a kl_coef above 0"),
        (
            {"batch_size": 1024, "kl_horizon": 204},
            r"0 or below; raise it above kl_clip \* batch_size, 204\.8",
        ),
        (
            {"kl_target": None, "kl_target_per_token": 0.1, "batch_size": 64, "kl_clip": 2.0, "kl_horizon": 128},
            "kl_horizon 128 lets",
        ),
        ({"warmup_steps": 3}, "a linear one falls from the start; set lr_schedule"),
        ({"old_kl_target": 0.01}, "old_kl_target needs an old_kl_coef above 0 to start from"),
        ({"kl_in": "loss"}, "k1 has no gradient in the loss, on average; use k2, k3 or full, or set kl_in to reward"),
        ({"surrogate": "ratio"}, "surrogate ratio has no limit of its own; set old_kl_coef or stop_kl, or use surrogate clip"),
        ({"surrogate": "trust_region", "dropout": 0.1}, "dropout makes the ratio of a token random.*; set dropout to 0"),
        ({"ptx": {"coef": 1.0}}, "texts"),
        ({"dual_clip": 0.5}, "greater than 1"),
        ({"reference_ema": 1.0}, "less than 1"),
    ],
)
def test_contradictions_are_named_with_what_to_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_the_shortest_horizon_keeps_the_coefficient_above_zero() -> None:
    """By hand: clip .2 on 1024 of 205 episodes leaves 1 - 204.8 / 205 of it."""
    c = PPOConfig(batch_size=1024, kl_horizon=205)
    assert PPOConfig(batch_size=1024, kl_horizon=1, kl_target=None).kl_horizon == 1
    lowest = adapted_kl_coef(1.0, 0.0, kl_target=6.0, batch_size=c.batch_size, horizon=c.kl_horizon, clip=c.kl_clip)
    assert lowest == pytest.approx(0.2 / 205)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_at_eos": True}, "two ends of a response; set truncate_token=null or stop_at_eos=false"),
        ({"missing_eos_penalty": 1.0}, "set stop_at_eos to true"),
        (
            {"stop_at_eos": True, "truncate_token": None, "missing_eos_penalty": 1.0},
            "missing_truncation_score -1.0 replaces; set missing_truncation_score to null",
        ),
    ],
)
def test_two_ends_of_a_response_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(**settings)
