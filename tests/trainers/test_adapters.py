"""Trainings of adapters: only they move, checkpoints hold only them, and the reference is the same policy with its adapter off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from humanward.errors import UserError
from humanward.models import LoraConfig, Policy, RewardModel, ValueNetwork
from humanward.models.adapters import adapter_tensors, is_quantized, plain_state, train_only
from humanward.models.loading import missing_for_quantization
from humanward.storage import Checkpoints, derive_seed
from humanward.trainers import (
    DPOConfig,
    DPOTrainer,
    GroupConfig,
    GroupTrainer,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    Surroundings,
    implicit_rewards,
    train,
)
from humanward.trainers.objective import Said
from humanward.trainers.questions import collate
from humanward.trainers.reference import fingerprint, precompute
from humanward.trainers.selftest import tiny_task

LORA = LoraConfig(rank=2, alpha=8)
DROPPING = LoraConfig(rank=2, alpha=8, dropout=0.3)
SETTINGS: dict[str, Any] = {"lr": 1e-2, "batch_size": 8, "epochs": 2, "adam_eps": 1e-5}


def adapted(problems: ModuleType, dtype: torch.dtype = torch.float32, lora: LoraConfig = LORA, **settings: Any) -> Policy:
    return problems.policy_of(dtype, seed=1, **settings).adapt(lora, seed=4)


def sft(problems: ModuleType, dtype: torch.dtype = torch.float32, lora: LoraConfig = LORA, **settings: Any) -> SFTTrainer:
    return SFTTrainer(adapted(problems, dtype, lora), problems.demonstrations(), SFTConfig(**SETTINGS, **settings), seed=5)


def reward_on(policy: Policy, name: str = "reward") -> RewardModel:
    return RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(2)).adapt(LORA, seed=6, name=name)


def reward(problems: ModuleType, dtype: torch.dtype = torch.float32, lora: LoraConfig = LORA, **settings: Any) -> RewardTrainer:
    model = RewardModel(problems.policy_of(dtype, seed=1).model, problems.policy_of(dtype, seed=1).tokenizer).adapt(lora, seed=6)
    torch.nn.init.normal_(model.score_head.weight, std=0.2, generator=torch.Generator().manual_seed(2))
    config = RewardConfig(normalize_samples=12, **SETTINGS, **settings)
    return RewardTrainer(model, problems.comparisons(), config, reference_episodes=problems.episodes(), seed=5)


def dpo(problems: ModuleType, dtype: torch.dtype = torch.float32, lora: LoraConfig = LORA, **settings: Any) -> DPOTrainer:
    config = DPOConfig(**{**SETTINGS, "reference": "adapter_off", **settings})
    return DPOTrainer(adapted(problems, dtype, lora), None, problems.comparisons(), config, seed=5)


def ppo(problems: ModuleType, dtype: torch.dtype = torch.float32, lora: LoraConfig = LORA, **settings: Any) -> PPOTrainer:
    """Policy, values, reward and reference on one trunk."""
    policy = adapted(problems, dtype, lora, value_head=True)
    return ppo_of(problems, policy, policy.reference(), reward_on(policy), **settings)


def ppo_of(problems: ModuleType, policy: Policy, reference: Policy, reward_model: RewardModel, **settings: Any) -> PPOTrainer:
    train_only(policy.model, "policy")
    config = PPOConfig(**{"lr": 1e-2, "episodes": 48, "batch_size": 16, "minibatches": 2, "ppo_epochs": 2, "kl_target": None, **settings})
    task = tiny_task(policy, response_length=3)
    return PPOTrainer(policy, reference, reward_model, problems.PROMPTS, config, task=task, seed=5)


MAKERS = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}
trainers = pytest.mark.parametrize("name", MAKERS)


def module_of(trainer: Any) -> torch.nn.Module:
    return trainer.updater.bare


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) / max(1.0, float(one[name].abs().max())) for name in one)


@trainers
def test_the_trunk_stays_and_checkpoints_do_not_hold_it(problems: ModuleType, name: str) -> None:
    trainer = MAKERS[name](problems)
    frozen = {n: p.detach().clone() for n, p in module_of(trainer).named_parameters() if "lora_" not in n and "_head." not in n}
    before = {n: t.clone() for n, t in trainer.tensors().items()}
    found = problems.trained(trainer)
    assert all(torch.equal(p, frozen[n]) for n, p in module_of(trainer).named_parameters() if n in frozen)
    kept = [n.rpartition(".")[2] if "lora_" not in n and "_head." not in n else "" for n in found]
    assert {n for n in kept if n} <= {"gain", "bias", "choice_scale"}
    assert not any(f".{other}." in n for n in found for other in (["reward"] if name == "ppo" else []))
    moved = [n for n in before if "lora_" in n and n in found and (found[n] - before[n]).abs().max() > 1e-3]
    assert len(moved) >= 14  # both halves of an adapter on each of seven maps of one layer


@trainers
def test_a_stopped_training_ends_as_an_undisturbed_one(problems: ModuleType, name: str, tmp_path: Path) -> None:
    whole = MAKERS[name](problems)
    train(whole)
    around = Surroundings(Checkpoints(tmp_path / "checkpoints"))
    train(MAKERS[name](problems), around, until=2)
    resumed = MAKERS[name](problems)
    train(resumed, around)
    expected, found = whole.tensors(), resumed.tensors()
    assert expected.keys() == found.keys()
    assert [n for n in expected if not torch.equal(expected[n], found[n])] == []


@trainers
def test_micro_batches_do_not_change_the_update(problems: ModuleType, name: str) -> None:
    assert difference(problems.trained(MAKERS[name](problems)), problems.trained(MAKERS[name](problems, micro_batch_tokens=13))) < 1e-5


@trainers
def test_16_bit_adapters_are_trained_through_copies(problems: ModuleType, name: str) -> None:
    trainer = MAKERS[name](problems, torch.bfloat16)
    adapters = [n for n in trainer.updater.trained if "lora_" in n]
    assert set(adapters) == set(trainer.updater.copied)
    found = problems.trained(trainer)
    assert all(found[n].dtype == torch.float32 for n in found if "lora_" in n)
    for n in adapters:
        assert torch.equal(trainer.updater.trained[n], trainer.updater.named[n].bfloat16())
    losses = [trainer.updater.named[n] for n in adapters]
    assert all(bool(x.isfinite().all()) for x in losses)


@pytest.mark.skipif(missing_for_quantization() is not None, reason=str(missing_for_quantization()))
@trainers
def test_adapters_on_4_bit_weights_learn_alone(problems: ModuleType, name: str, tmp_path: Path) -> None:
    """The quantised trunk stays as it is, and the reference is that trunk, before and after."""
    plain = problems.policy_of(torch.float32, seed=1)
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    torch.manual_seed(1)
    Policy(AutoModelForCausalLM.from_config(LlamaConfig(**plain.model.config.to_dict() | wide)), plain.tokenizer).save(tmp_path)

    def policy_of(dtype: torch.dtype, *, seed: int, value_head: bool = False) -> Policy:
        return Policy.load(tmp_path, quantize="4bit", dtype=dtype, value_head=value_head)

    trainer = MAKERS[name](SimpleNamespace(**{**vars(problems), "policy_of": policy_of}))  # type: ignore[arg-type]
    module = getattr(module_of(trainer), "policy", module_of(trainer))
    assert is_quantized(module.model)
    before = {n: t.clone() for n, t in plain_state(module.trunk, None).items()}
    own = {n: p.detach().clone() for n, p in trainer.updater.trained.items()}
    reference = said_of(policy_of(torch.float32, seed=1), problems)
    losses = [row[key] for row in trainer.run() for key in ("loss", "policy_loss") if key in row]
    assert losses
    assert torch.tensor(losses).isfinite().all()
    assert all("lora_" in n or "_head." in n for n in own)
    assert all((p - own[n]).abs().max() > 1e-4 for n, p in trainer.updater.trained.items() if "lora_" in n)
    assert all(torch.equal(t, before[n]) for n, t in plain_state(module.trunk, None).items())
    if name != "reward":
        assert torch.equal(said_of(module.reference(), problems), reference)
        assert (said_of(module, problems) - reference).abs().max() > 1e-3


@torch.no_grad()
def said_of(policy: Policy, problems: ModuleType) -> Tensor:
    e = problems.episodes()
    return policy.eval()(e.prompts, e.prompt_mask, e.responses, e.response_mask, temperature=1.0).logprobs


def test_dropout_of_adapters_is_that_of_the_step(problems: ModuleType) -> None:
    """Resumed in the middle, the same; and another loss than without."""
    for name in ("sft", "reward", "dpo"):
        one, other = (MAKERS[name](problems, lora=DROPPING) for _ in range(2))
        assert difference(problems.trained(one), problems.trained(other)) == 0
        assert difference(problems.trained(MAKERS[name](problems)), problems.trained(MAKERS[name](problems, lora=DROPPING))) > 1e-3


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_a_loss_of_the_whole_batch_has_its_gradient_under_one_dropout(problems: ModuleType, loss: str) -> None:
    """Both forwards drop the same: the gradient is the one of a single forward of all micro-batches with its graph."""
    trainer = dpo(problems, lora=DROPPING, loss=loss, micro_batch_tokens=30, max_grad_norm=None)
    trainer.step(0)  # at first an adapter adds nothing, whatever it is given
    own = trainer.rows(1)
    micro = trainer.micro_batches(trainer.comparisons, own)
    assert len(micro) > 1
    trainer.policy.train()
    torch.manual_seed(derive_seed(trainer.seed, "dpo", 1, 0))
    order = [place for places in micro for place in places]
    assert trainer.known is not None
    known = trainer.known.ahead(own)
    asked = [trainer.ask(trainer.policy, trainer.comparisons, [own[place] for place in places], known)[1] for places in micro]
    sums = [torch.cat([x.sum(-1) for x in parts])[..., None] for parts in zip(*((a.logprobs, a.reference) for a in asked), strict=True)]
    questions = collate([trainer.comparisons[own[place]] for place in order], 0, torch.device("cpu"))
    value = trainer.objective.of_the_batch(Said(*sums), replace(questions, response_mask=torch.ones_like(sums[0], dtype=torch.bool)))
    trained = trainer.updater.named
    expected = dict(zip(trained, torch.autograd.grad(value, list(trained.values())), strict=True))
    assert trainer.step(1)["loss"] == pytest.approx(value.item(), rel=1e-5)
    for name, p in trained.items():
        assert p.grad is not None
        assert torch.allclose(p.grad, expected[name], rtol=1e-4, atol=1e-6), name


def test_the_reference_point_is_that_of_the_policy_without_dropout(problems: ModuleType) -> None:
    trainer = dpo(problems, lora=DROPPING, loss="kto")
    for index in range(3):
        trainer.step(index)
    rows = trainer.rows(3)
    assert trainer.known_crossed is not None
    with torch.no_grad():
        said = trainer.ask(trainer.policy.eval(), trainer.crossed, rows, trainer.known_crossed.ahead(rows))[1]
    assert trainer.step(3)["reference_point"] == pytest.approx(max(0.0, float(said.logratio.sum(-1).mean())), rel=1e-5, abs=1e-7)


def test_a_policy_learns_from_its_own_samples_without_the_dropout_of_its_adapter(problems: ModuleType) -> None:
    for make in (ppo, ppo_with_value_network, grpo):
        one, other = (make(problems, lora=lora) for lora in (LORA, DROPPING))
        assert difference(problems.trained(one), problems.trained(other)) == 0


def grpo(problems: ModuleType, lora: LoraConfig) -> GroupTrainer:
    policy = adapted(problems, lora=lora)
    config = GroupConfig(episodes=48, batch_size=16, minibatches=2, lr=1e-2)
    return GroupTrainer(
        policy, policy.reference(), problems.score, problems.PROMPTS, config, "grpo", task=tiny_task(policy, response_length=3), seed=5
    )


def ppo_with_value_network(problems: ModuleType, lora: LoraConfig) -> PPOTrainer:
    policy = adapted(problems)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(2)).adapt(lora, seed=6, name="reward")
    network = ValueNetwork.from_reward_model(model)
    train_only(policy.model, "policy", "value")
    config = PPOConfig(lr=1e-2, episodes=32, batch_size=16, kl_target=None)
    task = tiny_task(policy, response_length=3)
    return PPOTrainer(policy, policy.reference(), model, problems.PROMPTS, config, task=task, seed=5, value_network=network)


def test_what_direct_training_has_learned_is_measured_without_dropout(problems: ModuleType) -> None:
    """Twice the same, as after ``eval``; the policy goes on training."""
    trainer = dpo(problems, lora=DROPPING)
    trainer.run()
    policy = trainer.policy
    assert policy.training
    measured = [implicit_rewards(policy, policy.reference(), trainer.comparisons, trainer.objective) for _ in range(2)]
    assert policy.training
    assert measured == [implicit_rewards(policy.eval(), policy.reference(), trainer.comparisons, trainer.objective)] * 2


@pytest.mark.parametrize("settings", [{}, {"gradient": True}, {"reference": "precomputed"}])
def test_adapter_off_is_a_given_copy_of_the_base(problems: ModuleType, settings: dict[str, Any]) -> None:
    """DPO held to the policy without its adapter = DPO held to the model that it was made on."""
    from humanward.models import with_options

    one = dpo(problems, **({"reference": settings["reference"]} if "reference" in settings else {}))
    if "gradient" in settings:
        with_options(one.policy, gradient_checkpointing=True)
    base = problems.policy_of(torch.float32, seed=1).requires_grad_(False).eval()
    other = DPOTrainer(adapted(problems), base, problems.comparisons(), DPOConfig(**SETTINGS), seed=5)
    rows = [(one.step(index), other.step(index)) for index in range(3)]
    for mine, theirs in rows:
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert abs(rows[-1][0]["loss"] - rows[0][0]["loss"]) > 1e-3


def test_ppo_on_one_trunk_is_ppo_on_four(problems: ModuleType) -> None:
    together = ppo(problems)
    policy = adapted(problems, value_head=True)
    base = problems.policy_of(torch.float32, seed=1).requires_grad_(False).eval()
    apart = ppo_of(problems, policy, base, reward_on(problems.policy_of(torch.float32, seed=1)))
    for index in range(3):
        assert together.step(index) == pytest.approx(apart.step(index), rel=1e-4, abs=1e-5)


def test_a_value_network_learns_on_the_shared_trunk(problems: ModuleType) -> None:
    policy = adapted(problems)
    model = reward_on(policy)
    network = ValueNetwork.from_reward_model(model)
    before = {n: p.detach().clone() for n, p in adapter_tensors(policy.model, "value").items()}
    config = PPOConfig(lr=1e-2, episodes=32, batch_size=16, kl_target=None)
    train_only(policy.model, "policy", "value")
    task = tiny_task(policy, response_length=3)
    scores = reward_scores(model, problems)
    trainer = PPOTrainer(policy, policy.reference(), model, problems.PROMPTS, config, task=task, seed=5, value_network=network)
    first, *_, last = trainer.run()
    assert first["first_ratio_error"] < 1e-5
    assert last["skipped"] == 0
    assert any((p - before[n]).abs().max() > 1e-3 for n, p in adapter_tensors(policy.model, "value").items())
    assert torch.equal(reward_scores(model, problems), scores)


def test_a_value_networks_adapter_has_the_learning_rate_of_the_values(problems: ModuleType) -> None:
    """By hand: Adam's first update is the gradient's sign, so that a weight moves by its rate; B alone has a gradient yet."""
    policy = adapted(problems)
    model = reward_on(policy)
    network = ValueNetwork.from_reward_model(model)
    train_only(policy.model, "policy", "value")
    config = PPOConfig(lr=1e-3, value_lr=1e-4, adam_eps=1e-12, episodes=16, batch_size=16, ppo_epochs=1, kl_target=None)
    task = tiny_task(policy, response_length=3)
    trainer = PPOTrainer(policy, policy.reference(), model, problems.PROMPTS, config, task=task, seed=5, value_network=network)
    before = {name: p.detach().clone() for name, p in trainer.updater.trained.items()}
    trainer.step(0)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in trainer.updater.trained.items()}
    for part, rate in ((".lora_B.policy.", 1e-3), (".lora_B.value.", 1e-4), ("value_network.head.", 1e-4)):
        found = [distance for name, distance in moved.items() if part in name]
        assert found
        assert max(found) == pytest.approx(rate, rel=1e-2)


def test_the_reward_models_adapter_is_not_trained_beside_the_value_networks(problems: ModuleType, tmp_path: Path) -> None:
    """Neither by PPO, whose checkpoints hold only what it trains, nor is a policy's adapter on the same trunk frozen."""

    def trainer() -> PPOTrainer:
        policy = problems.policy_of(torch.float32, seed=1)
        model = reward_on(problems.policy_of(torch.float32, seed=1))
        config = PPOConfig(lr=1e-2, episodes=48, batch_size=16, kl_target=None)
        task = tiny_task(policy, response_length=3)
        network = ValueNetwork.from_reward_model(model)
        return PPOTrainer(policy, policy.frozen_copy(), model, problems.PROMPTS, config, task=task, value_network=network)

    whole, around = trainer(), Surroundings(Checkpoints(tmp_path / "checkpoints"))
    train(whole)
    train(trainer(), around, until=2)
    resumed = trainer()
    train(resumed, around)
    expected, found = whole.tensors(), resumed.tensors()
    assert not any(".reward." in name for name in found)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    policy = adapted(problems)
    ValueNetwork.from_reward_model(reward_on(policy))
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert {part for name in trained for part in ("policy", "reward", "value") if f".{part}." in name} == {"policy", "value"}


@torch.no_grad()
def reward_scores(model: RewardModel, problems: ModuleType) -> Tensor:
    e = problems.episodes()
    return model(e.prompts, e.prompt_mask, e.responses[:, None], e.response_mask[:, None])


def test_what_is_asked_once_is_remembered_of_the_reference(problems: ModuleType, tmp_path: Path) -> None:
    """The fingerprint of a reference is of its own weights: a policy's adapter on the same trunk is none of them."""
    trainer = dpo(problems)
    reference = trainer.policy.reference()
    settings: dict[str, Any] = {"accelerator": trainer.accelerator, "micro_batch_tokens": None, "cache": tmp_path}
    precompute(reference, trainer.comparisons, **settings)
    trainer.run()
    precompute(reference, trainer.comparisons, **settings)
    assert len(list(tmp_path.iterdir())) == 1
    precompute(trainer.policy, trainer.comparisons, **settings)
    assert len(list(tmp_path.iterdir())) == 2


def test_numbers_that_are_in_no_weight_are_in_the_fingerprint(problems: ModuleType) -> None:
    labels = problems.comparisons()

    def found(change: Callable[[Any], Any] = lambda config: None, **lora: Any) -> str:
        policy = problems.policy_of(torch.float32, seed=1)
        change(policy.model.config)
        return fingerprint(policy.adapt(LORA.model_copy(update=lora), seed=4) if lora else policy, labels)

    same = [found(lambda config: setattr(config, "_name_or_path", "elsewhere")), found(lambda config: setattr(config, "use_cache", False))]
    assert same == [found()] * 2
    others = [
        found(lambda config: config.rope_parameters.update(rope_theta=500.0)),
        found(lambda config: setattr(config, "final_logit_softcapping", 30.0)),
        found(lambda config: setattr(config, "rms_norm_eps", 1e-5)),
        *(found(**lora) for lora in ({"alpha": 8}, {"alpha": 4}, {"alpha": 8, "rslora": True})),
    ]
    assert len({*same, *others}) == 7


def test_a_reference_that_is_not_there_is_one_line(problems: ModuleType) -> None:
    plain = problems.policy_of(torch.float32, seed=1)
    config = DPOConfig(reference="adapter_off")
    with pytest.raises(
        UserError, match=r"^dpo\.reference is adapter_off, but the policy has no adapter; adapt it \(lora\), or set it to init"
    ):
        DPOTrainer(plain, None, problems.comparisons(), config)
    with pytest.raises(UserError, match=r"^dpo\.reference is adapter_off, but another reference was given"):
        DPOTrainer(adapted(problems), plain, problems.comparisons(), config)
    with pytest.raises(
        UserError, match=r"^dpo\.reference synchronised begins as a policy with an adapter is and follows it; give no other"
    ):
        DPOTrainer(adapted(problems), plain, problems.comparisons(), DPOConfig(reference="synchronised"))


def test_a_reference_that_would_move_along_is_refused(problems: ModuleType) -> None:
    """The policy itself, or another one on weights that it trains; what shares a frozen trunk passes, as the trainings above show."""
    task = tiny_task(problems.policy_of(torch.float32, seed=1), response_length=3)
    message = r"^the reference computes with weights that the policy trains, .*; take policy\.frozen_copy\(\), or policy\.reference\(\)"
    for policy in (problems.policy_of(torch.float32, seed=1), adapted(problems)):
        others = [policy] if policy.adapter is not None else [policy, policy.beside()]
        for reference in others:
            with pytest.raises(UserError, match=message):
                GroupTrainer(policy, reference, problems.score, problems.PROMPTS, GroupConfig(), "grpo", task=task)
            with pytest.raises(UserError, match=message):
                DPOTrainer(policy, reference, problems.comparisons(), DPOConfig())
    policy = problems.policy_of(torch.float32, seed=1, value_head=True)
    with pytest.raises(UserError, match=message):
        PPOTrainer(policy, policy, problems.score, problems.PROMPTS, PPOConfig(), task=task)


def test_a_synchronised_reference_follows_the_adapter(problems: ModuleType) -> None:
    trainer = dpo(problems, reference="synchronised", reference_sync_every=2, reference_sync_rate=1.0)
    trainer.run()
    assert trainer.reference is not None
    assert trainer.reference.model is not trainer.policy.model
    own, others = (adapter_tensors(p.model, "policy") for p in (trainer.policy, trainer.reference))
    assert all(torch.equal(own[n], others[n]) for n in own)
    assert not any("embed" in n for n in trainer.tensors())
