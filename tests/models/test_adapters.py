"""Adapters: off they are not there, on they are the same in every forward, and saved they are what other libraries read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from humanward.data import left_pad, right_pad
from humanward.errors import UserError
from humanward.models import (
    LoraConfig,
    Policy,
    RewardModel,
    SamplingSettings,
    ValueNetwork,
    load_causal_lm,
    loading,
    missing_for_compile,
    sample_responses,
    with_options,
)
from humanward.models.adapters import adapter_tensors, at_work, check_lora, is_quantized, weights_at_work
from humanward.models.policy import disable_dropout
from humanward.trainers.selftest import END, PAD, tiny_tokenizer

FAMILIES: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=8, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, bos_token_id=None, eos_token_id=END
    ),
    "llama": LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        max_position_embeddings=64, initializer_range=0.4, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    ),
}  # fmt: skip
LORA = LoraConfig(rank=4, alpha=8)
PROMPTS = left_pad([(4,), (5, 6, 2), (3, 3, 4, 5, 7)], PAD)
RESPONSES = right_pad([tuple(2 + (3 * n + t) % 6 for t in range(1 + n % 4)) for n in range(9)], PAD)
families = pytest.mark.parametrize("family", FAMILIES)


def language_model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family])


def moved(model: PreTrainedModel, name: str, seed: int = 1) -> None:
    """As if the adapter had been trained: B is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_tensors(model, name).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def policy_of(family: str, lora: LoraConfig = LORA, **settings: Any) -> Policy:
    policy = Policy(language_model(family), tiny_tokenizer(), **settings).adapt(lora, seed=3)
    moved(policy.model, "policy")
    return policy


def saved_base(family: str, folder: Path) -> Path:
    Policy(language_model(family), tiny_tokenizer()).save(folder)
    return folder


def said(model: Policy | RewardModel | ValueNetwork) -> Tensor:
    """What a forward says of three responses to each prompt, as one row of numbers."""
    responses, mask = (x.view(3, 3, -1) for x in RESPONSES)
    outputs = model(*PROMPTS, responses, mask, **({"temperature": 1.0} if isinstance(model, Policy) else {}))
    return (outputs.logprobs if isinstance(model, Policy) else outputs).flatten()


def gradient(model: Policy | RewardModel) -> Tensor:
    model.train()
    model.zero_grad()
    said(model).sin().sum().backward()
    return trained_gradient(model)


def trained_gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@families
@torch.no_grad()
def test_switched_off_it_is_the_base_number_for_number(family: str) -> None:
    base = said(Policy(language_model(family), tiny_tokenizer()))
    policy = Policy(language_model(family), tiny_tokenizer()).adapt(LORA)
    assert torch.equal(said(policy), base)  # B is zero at first
    moved(policy.model, "policy")
    reference = policy.reference()
    assert (said(policy) - base).abs().max() > 0.01
    assert torch.equal(said(reference), base)
    assert reference.model is policy.model
    assert (said(policy) - base).abs().max() > 0.01
    with policy.at_work():  # whoever asks the reference meanwhile gets the reference
        assert torch.equal(said(reference), base)
        at_work_now = policy.model(input_ids=PROMPTS[0]).logits
    assert not torch.equal(policy.model(input_ids=PROMPTS[0]).logits, at_work_now)


@families
def test_only_adapters_and_heads_are_trained(family: str) -> None:
    policy = policy_of(family, value_head=True)
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    linear = 4 if family == "gpt2" else 7  # attention in and out, two of the MLP; q k v o, gate up down
    assert len(names) == 2 * 2 * linear + 2
    assert all("lora_" in name or name.startswith("value_head.") for name in names)
    reward = RewardModel(language_model(family), tiny_tokenizer()).adapt(LORA)
    assert sum(p.requires_grad for p in reward.parameters()) == 2 * 2 * linear + 2


def test_targets_by_name() -> None:
    policy = policy_of("llama", LoraConfig(rank=2, targets=["q_proj", "self_attn.v_proj"]))
    names = adapter_tensors(policy.model, "policy")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    message = (
        r"^lora\.targets: LlamaForCausalLM has no linear map c_attn; there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_"
    )
    with pytest.raises(UserError, match=message):
        policy_of("llama", LoraConfig(targets=["q_proj", "c_attn"]))


@families
def test_the_random_half_is_that_of_the_seed(family: str) -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed + 100)  # the global generator has no part in it
        policy = Policy(language_model(family), tiny_tokenizer()).adapt(LORA, seed=seed)
        return torch.cat([p.flatten() for p in adapter_tensors(policy.model, "policy").values()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@families
@torch.no_grad()
def test_packed_is_padded(family: str) -> None:
    packed, padded = policy_of(family), policy_of(family)
    padded._packs = False
    assert packed.packs()
    assert near(said(packed), said(padded), 1e-5)


@families
@pytest.mark.parametrize("engine", ["humanward", "transformers"])
def test_the_sampler_draws_from_the_adapted_policy(family: str, engine: Any) -> None:
    policy = policy_of(family, value_head=True).train()
    settings = SamplingSettings(5, temperature=0.8, engine=engine, suppress_special_tokens=False)
    samples = sample_responses(policy, *PROMPTS, settings, seeds=range(6), num_responses=2)
    with torch.no_grad():
        again = policy(*PROMPTS, samples.responses, samples.response_mask, temperature=0.8)
        reference = policy.reference()(*PROMPTS, samples.responses, samples.response_mask, temperature=0.8)
    assert near(samples.logprobs, again.logprobs)
    assert not near(samples.logprobs, reference.logprobs, 1e-3)
    assert policy.training


@families
def test_checkpointed_layers_are_computed_again_with_their_adapter(family: str) -> None:
    """Though others were asked on the same trunk between the forward and the backward."""
    plain, checkpointed = policy_of(family), with_options(policy_of(family), gradient_checkpointing=True)
    for policy in (plain, checkpointed):
        policy.train().zero_grad()
        loss = said(policy).sin().sum()
        with torch.no_grad():
            said(policy.reference())
        loss.backward()
    assert trained_gradient(plain).norm() > 0.1
    assert near(trained_gradient(checkpointed), trained_gradient(plain), 1e-6)


@families
@pytest.mark.parametrize("checkpointed", [False, True])
def test_two_adapters_learn_in_one_backward(family: str, checkpointed: bool) -> None:
    """Policy and value network on one trunk, as PPO has them: each gets the gradient that it has alone."""

    def pair(*, together: bool) -> Tensor:
        policy = policy_of(family)
        reward = RewardModel(policy.model, tiny_tokenizer(), generator=torch.Generator().manual_seed(0)).adapt(LORA, seed=5)
        value = ValueNetwork.from_reward_model(reward)
        if checkpointed:
            with_options(policy, gradient_checkpointing=True)
        for model in (policy, value):
            model.train()
        if together:
            (said(policy).sin().sum() + said(value).cos().sum()).backward()
        else:
            said(policy).sin().sum().backward()
            said(value).cos().sum().backward()
        assert all(p.grad is None for p in adapter_tensors(policy.model, "reward").values())
        own = [*adapter_tensors(policy.model, "policy").values(), *adapter_tensors(policy.model, "value").values()]
        return torch.cat([p.grad.flatten() for p in own if p.grad is not None])

    assert near(pair(together=True), pair(together=False), 1e-6)


@families
@torch.no_grad()
def test_policy_value_reward_and_reference_on_one_trunk(family: str) -> None:
    apart_policy, apart_reward = policy_of(family), RewardModel(language_model(family), tiny_tokenizer()).adapt(LORA, seed=5)
    moved(apart_reward.model, "reward", seed=2)
    base = Policy(language_model(family), tiny_tokenizer())
    policy = policy_of(family, value_head=True)
    weights_before = sum(p.numel() for p in policy.model.parameters())
    reward = RewardModel(policy.model, tiny_tokenizer()).adapt(LORA, seed=5)
    moved(reward.model, "reward", seed=2)
    reward.score_head.load_state_dict(apart_reward.score_head.state_dict())
    value = ValueNetwork.from_reward_model(reward)
    for _ in range(2):  # in any order, again and again
        assert torch.equal(said(reward), said(apart_reward))
        assert torch.equal(said(policy), said(apart_policy))
        assert torch.equal(said(policy.reference()), said(base))
        assert value(*PROMPTS, *RESPONSES_OF_PROMPTS).abs().max() > 0
    size = sum(p.numel() for p in adapter_tensors(policy.model, "reward").values())
    assert sum(p.numel() for p in policy.model.parameters()) == weights_before + 2 * size
    assert weights_at_work(policy.model, None).keys() == weights_at_work(base.model, None).keys()


RESPONSES_OF_PROMPTS = tuple(x[:3] for x in RESPONSES)


@families
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # of peft about its use of transformers
@pytest.mark.parametrize("lora", [LORA, LoraConfig(rank=4, alpha=6, rslora=True, targets=None)], ids=["plain", "rslora"])
@torch.no_grad()
def test_a_saved_adapter_is_one_of_pefts(family: str, lora: LoraConfig, tmp_path: Path) -> None:
    base = saved_base(family, tmp_path / "base")
    policy = Policy.load(base).adapt(lora)
    moved(policy.model, "policy")
    expected = said(policy)
    policy.save(tmp_path / "adapter", merged=False)
    assert not (tmp_path / "adapter/model.safetensors").exists()
    facts = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == str(base)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    theirs = [PeftModel.from_pretrained(plain, str(tmp_path / "adapter")), AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")]
    for model in theirs:
        assert near(logprobs_of(model), expected)
    assert near(said(Policy.load(tmp_path / "adapter")), expected)  # merged as it is loaded
    again = Policy.load(base).take_adapter(tmp_path / "adapter")
    assert torch.equal(said(again), expected)
    assert all(p.requires_grad for p in adapter_tensors(again.model, "policy").values())


@families
@torch.no_grad()
def test_a_merged_policy_is_an_ordinary_folder(family: str, tmp_path: Path) -> None:
    policy = policy_of(family)
    policy.save(tmp_path / "merged")
    assert not (tmp_path / "merged/adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.state_dict().keys() == language_model(family).state_dict().keys()
    assert near(logprobs_of(plain), said(policy))
    assert near(said(Policy.load(tmp_path / "merged")), said(policy))
    policy.reference().save(tmp_path / "reference")
    assert torch.equal(said(Policy.load(tmp_path / "reference")), said(policy.reference()))


def logprobs_of(model: Any) -> Tensor:
    """By the library's own forward, one response at a time; 0 on pads."""
    model.eval()
    found = torch.zeros(RESPONSES[0].shape)
    for row, (response, mask) in enumerate(zip(*RESPONSES, strict=True)):
        prompt = PROMPTS[0][row // 3][PROMPTS[1][row // 3]]
        ids = torch.cat([prompt, response[mask]])[None]
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(int(mask.sum())):
            found[row, t] = logprobs[len(prompt) + t - 1, response[t]]
    return found.flatten()


@families
@torch.no_grad()
def test_a_saved_reward_model_finds_its_trunk(family: str, tmp_path: Path) -> None:
    base = saved_base(family, tmp_path / "base")
    reward = RewardModel(load_causal_lm(base), tiny_tokenizer(), generator=torch.Generator().manual_seed(3)).adapt(LORA)
    moved(reward.model, "reward")
    reward.set_normalization(1.7, -0.3)
    expected = said(reward)
    reward.save(tmp_path / "reward", merged=False)
    reward.save(tmp_path / "merged")
    assert near(said(RewardModel.load(tmp_path / "reward")), expected)
    assert near(said(RewardModel.load(tmp_path / "merged")), expected)
    policy = Policy.load(base).adapt(LORA)
    shared = RewardModel.load(tmp_path / "reward", on=policy.model, name="reward-1")
    assert torch.equal(said(shared), expected)
    assert not any(p.requires_grad for p in adapter_tensors(policy.model, "reward-1").values())
    assert all(p.requires_grad for p in adapter_tensors(policy.model, "policy").values())


@families
def test_dropout_is_the_adapters_own(family: str) -> None:
    policy = policy_of(family, LoraConfig(rank=4, dropout=0.5))
    disable_dropout(policy)
    policy.train()
    assert not torch.equal(said(policy), said(policy))
    assert torch.equal(said(policy.reference()), said(policy.reference()))
    policy.eval()
    assert torch.equal(said(policy), said(policy))


def test_the_reference_has_no_dropout_while_the_policy_trains() -> None:
    policy = policy_of("gpt2")
    disable_dropout(policy, 0.5)
    policy.train()
    reference = policy.reference()
    disable_dropout(policy, 0.5)
    assert not torch.equal(said(policy), said(policy))
    assert torch.equal(said(reference), said(reference))
    assert policy.trunk.training


@families
def test_a_frozen_copy_keeps_what_the_policy_was(family: str) -> None:
    policy = policy_of(family)
    copy = policy.frozen_copy()
    before = said(copy)
    assert torch.equal(before, said(policy))
    moved(policy.model, "policy", seed=9)
    assert torch.equal(said(copy), before)
    assert not torch.equal(said(policy), before)


@families
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns itself
@pytest.mark.skipif(missing_for_compile(torch.device("cpu")) is not None, reason="nothing to compile with")
def test_compiled_layers_say_the_same_with_and_without_the_adapter(family: str) -> None:
    plain, compiled = policy_of(family), with_options(policy_of(family), compiled=True)
    for one, other in ((plain, compiled), (plain.reference(), compiled.reference())):
        assert near(said(other).detach(), said(one).detach())
    assert near(gradient(compiled), gradient(plain))


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_installed", lambda name: False)
    with pytest.raises(UserError, match=r"^lora: peft is not installed; pip install peft, or train all weights \(lora=null\)$"):
        policy_of("gpt2")
    with pytest.raises(UserError, match=r"^lora: peft is not installed"):
        check_lora(LORA)


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "_installed", lambda name: name == "peft")
    expected = r"^lora\.quantize: 4bit: bitsandbytes is not installed; pip install bitsandbytes, or set lora\.quantize=null$"
    with pytest.raises(UserError, match=expected):
        check_lora(LoraConfig(quantize="4bit"))
    with pytest.raises(UserError, match=expected):
        Policy.load(saved_base("gpt2", tmp_path / "base"), quantize="4bit")


@pytest.mark.parametrize(("bits", "quantized"), [("4bit", "load_in_4bit"), ("8bit", "load_in_8bit")])
def test_what_the_library_is_told_of_quantised_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bits: Any, quantized: str) -> None:
    base = saved_base("llama", tmp_path / "base")
    load, told = AutoModelForCausalLM.from_pretrained, []

    def watched(name: str, **settings: Any) -> Any:
        told.append(settings.pop("quantization_config"))
        return load(name, **settings)

    monkeypatch.setattr(loading, "_installed", lambda name: True)
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", watched)
    Policy.load(base, quantize=bits, dtype=torch.bfloat16)
    assert getattr(told[0], quantized)
    if bits == "4bit":
        assert (told[0].bnb_4bit_quant_type, told[0].bnb_4bit_use_double_quant) == ("nf4", True)
        assert told[0].bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.skipif(loading.missing_for_quantization() is not None, reason=str(loading.missing_for_quantization()))
@pytest.mark.filterwarnings("ignore")  # 8 bits: of casts to 16 in between
@pytest.mark.parametrize(("bits", "tolerance"), [("4bit", 1e-4), ("8bit", 5e-2)])
def test_adapters_on_quantised_weights(bits: Any, tolerance: float, tmp_path: Path) -> None:
    """LLM.int8 rounds activations to 8 bits too, which a merged folder does not, hence its tolerance."""
    wide = LlamaConfig(
        **{**FAMILIES["llama"].to_dict(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "initializer_range": 0.2}
    )
    Policy(AutoModelForCausalLM.from_config(wide), tiny_tokenizer()).save(tmp_path / "base")
    policy = Policy.load(tmp_path / "base", quantize=bits).adapt(LORA)
    assert is_quantized(policy.model)
    assert torch.equal(said(policy), said(policy.reference()))
    moved(policy.model, "policy")
    before = gradient(policy)
    assert before.norm() > 0.1
    policy.eval()
    with torch.no_grad():
        expected = said(policy)
    # asked without gradient in between, it has the same gradient
    assert torch.equal(gradient(policy.train()), before)
    policy.eval()
    with torch.no_grad():
        policy.save(tmp_path / "merged")
        merged = Policy.load(tmp_path / "merged")
        assert not is_quantized(merged.model)
        assert near(said(merged), expected, tolerance)
        assert (expected - said(policy.reference())).abs().max() > 0.3
        policy.save(tmp_path / "adapter", merged=False)
        again = Policy.load(tmp_path / "base", quantize=bits).take_adapter(tmp_path / "adapter")
        assert near(said(again), expected, tolerance)


def test_an_adapter_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    base = saved_base("gpt2", tmp_path / "base")
    policy = Policy.load(base).adapt(LORA)
    policy.save(tmp_path / "adapter", merged=False)
    other = Policy(AutoModelForCausalLM.from_config(GPT2Config(**{**FAMILIES["gpt2"].to_dict(), "n_embd": 32})), tiny_tokenizer())
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: \S+ does not fit this GPT2LMHeadModel; give an adapter"):
        other.take_adapter(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"^lora\.quantize: \S+ is an adapter; merge it into its model first"):
        load_causal_lm(tmp_path / "adapter", quantize="4bit")
    with pytest.raises(UserError, match=r"^a policy without an adapter has no reference of its own"):
        Policy.load(base).reference()
    policy_of("gpt2").save(tmp_path / "nameless", merged=False)
    with pytest.raises(UserError, match=r"nameless/adapter_config\.json: does not name the model that the adapter was made on"):
        load_causal_lm(tmp_path / "nameless")
    facts = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    for wrong, expected in (
        (str(tmp_path / "gone"), "gone: no such folder"),
        (None, "does not name the model that the adapter was made on"),
    ):
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(facts | {"base_model_name_or_path": wrong}))
        with pytest.raises(UserError, match=expected) as error:
            Policy.load(tmp_path / "adapter")
        assert "\n" not in str(error.value)
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(facts))
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"cannot load this as an adapter of"):
        Policy.load(tmp_path / "adapter")


def test_a_trunk_without_adapters_is_left_alone() -> None:
    policy = Policy(language_model("gpt2"), tiny_tokenizer())
    with at_work(policy.trunk, None, training=False):
        assert policy.trunk.training
