"""Checkpointed and compiled layers: the same numbers, less memory kept, the same names, and sampling that does not notice."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from humanward.data import left_pad, right_pad
from humanward.errors import UserError
from humanward.models import (
    Policy,
    RewardModel,
    Samples,
    SamplingSettings,
    missing_for_compile,
    options,
    recomputing,
    sample_responses,
    with_options,
)
from humanward.models.options import check_compiler
from humanward.trainers.selftest import END, PAD, tiny_tokenizer
from humanward.trainers.updates import load_weights, weights

CPU = torch.device("cpu")
FAMILIES: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=8, n_positions=64, n_embd=16, n_layer=3, n_head=2, initializer_range=0.4, bos_token_id=None, eos_token_id=END
    ),
    "llama": LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        max_position_embeddings=64, initializer_range=0.4, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    ),
}  # fmt: skip
PROMPTS = left_pad([(4,), (5, 6, 2), (3, 3, 4, 5, 7)], PAD)


def compiles(test: Any) -> Any:
    """Marks of a test that waits for a compiler."""
    missing = missing_for_compile(CPU)
    test = pytest.mark.skipif(missing is not None, reason=missing or "")(test)
    # the compiler warns itself and hides it from the screen, which does not hide it from a filter
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore")(test))


def language_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family])


def policy_of(family: str, **chosen: bool) -> Policy:
    policy = Policy(language_model(family), tiny_tokenizer(), value_head=True)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    return with_options(policy, **chosen)


def reward_model_of(family: str, **chosen: bool) -> RewardModel:
    return with_options(RewardModel(language_model(family), tiny_tokenizer(), generator=torch.Generator().manual_seed(0)), **chosen)


def said(model: Policy | RewardModel) -> Tensor:
    """Everything that a forward says, as one row of numbers."""
    K = 1 if isinstance(model, Policy) else 3
    responses, mask = right_pad([tuple(2 + (3 * n + t) % 6 for t in range(1 + n % 4)) for n in range(3 * K)], PAD)
    if isinstance(model, RewardModel):
        return model(*PROMPTS, responses.view(3, K, -1), mask.view(3, K, -1)).flatten()
    outputs = model(*PROMPTS, responses, mask, temperature=0.7, want_entropy=True)
    return torch.cat([outputs.logprobs.flatten(), outputs.entropy.flatten(), outputs.values.flatten()])


def gradient(model: Policy | RewardModel) -> Tensor:
    """Of a loss that gives every number a weight of its own."""
    model.train()
    model.zero_grad()
    said(model).sin().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = found.detach(), expected.detach()
    return found.shape == expected.shape and float((found - expected).norm()) <= tolerance * float(expected.norm())


def bytes_kept(model: Policy | RewardModel) -> int:
    """Of what a forward saves for its backward pass, weights not counted, and what can be made again as if it were saved."""
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[tuple[int, int], int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr(), x.numel()] = x.numel() * x.element_size()
        return x

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.MonkeyPatch.context() as patch:
        patch.setattr(recomputing, "_pack", lambda recipes, x: pack(x))
        said(model)
    return sum(kept.values())


def sampled(policy: Policy) -> Samples:
    return sample_responses(policy, *PROMPTS, SamplingSettings(6, temperature=0.8), seeds=range(6), num_responses=2)


@pytest.mark.parametrize("make", [policy_of, reward_model_of])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_give_the_same_gradients(family: str, make: Any) -> None:
    plain, checkpointed = make(family), make(family, gradient_checkpointing=True)
    assert plain.packs()
    assert checkpointed.packs()
    assert close(said(checkpointed), said(plain), 1e-6)
    assert close(gradient(checkpointed), gradient(plain), 1e-6)


@pytest.mark.parametrize("make", [policy_of, reward_model_of])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_are_told_what_belongs_together(family: str, make: Any) -> None:
    """The backward pass computes a layer again under the same packing: a gradient where nothing is packed is the same."""
    packed, padded = make(family, gradient_checkpointing=True), make(family, gradient_checkpointing=True)
    padded._packs = False
    assert packed.packs()
    assert close(gradient(packed), gradient(padded), 1e-5)


@pytest.mark.parametrize("make", [policy_of, reward_model_of])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_keep_less(family: str, make: Any) -> None:
    """Three layers keep one input each; uncheckpointed, each keeps a dozen of that size."""
    plain, checkpointed = make(family), make(family, gradient_checkpointing=True)
    for model in (plain, checkpointed):
        model.packs()
    assert bytes_kept(checkpointed) < 0.4 * bytes_kept(plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_the_same_when_a_layer_is_computed_again(family: str) -> None:
    from humanward.models.policy import disable_dropout

    gradients = []
    for chosen in (False, True):
        policy = policy_of(family, gradient_checkpointing=chosen)
        policy.packs()
        disable_dropout(policy, 0.3)
        torch.manual_seed(1)
        gradients.append(gradient(policy))
    assert close(gradients[1], gradients[0], 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_sampling_keeps_its_cache(family: str, training: bool) -> None:
    """The library gives up the cache where layers are checkpointed in training: one token after another would see no prompt."""
    plain, checkpointed = policy_of(family), policy_of(family, gradient_checkpointing=True).train(training)
    one, other = sampled(plain), sampled(checkpointed)
    assert torch.equal(one.responses, other.responses)
    assert torch.equal(one.logprobs, other.logprobs)
    assert checkpointed.training is training


def test_a_model_that_cannot_be_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("gpt2")
    monkeypatch.setattr(type(policy.trunk), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"^gradient_checkpointing: GPT2Model cannot do it; set gradient_checkpointing=false$"):
        with_options(policy, gradient_checkpointing=True)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def compiled(request: pytest.FixtureRequest) -> tuple[str, Policy, RewardModel]:
    """A family with its compiled models; one compilation serves all tests."""
    return request.param, policy_of(request.param, compiled=True), reward_model_of(request.param, compiled=True)


@compiles
def test_compiled_layers_say_the_same(compiled: tuple[str, Policy, RewardModel], tmp_path: Path) -> None:
    family, *models = compiled
    for model, make in zip(models, (policy_of, reward_model_of), strict=True):
        plain = make(family)
        assert close(said(model), said(plain), 1e-5)
        assert close(gradient(model), gradient(plain), 1e-5)
        assert any(part._compiled_call_impl is not None for part in model.modules())
        assert weights(model).keys() == weights(plain).keys()
        assert model.state_dict().keys() == plain.state_dict().keys()
        load_weights(plain, {name: 2 * tensor for name, tensor in weights(model).items()})
        load_weights(model, weights(plain))
        assert close(said(model), said(plain), 1e-5)
        model.save(tmp_path / make.__name__)
        loaded = type(model).load(tmp_path / make.__name__, **({"value_head": True} if make is policy_of else {}))
        assert close(said(loaded), said(plain), 1e-6)
        load_weights(model, weights(make(family)))


@compiles
def test_sampling_and_copies_are_not_compiled(compiled: tuple[str, Policy, RewardModel]) -> None:
    family, policy, _ = compiled
    captured = torch._dynamo.utils.counters["stats"]["calls_captured"]
    one, other = sampled(policy_of(family)), sampled(policy)
    assert torch.equal(one.responses, other.responses)
    assert torch.equal(one.logprobs, other.logprobs)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] == captured
    assert all(part._compiled_call_impl is None for part in copy.deepcopy(policy).modules())


@compiles
def test_layers_can_be_checkpointed_and_compiled(compiled: tuple[str, Policy, RewardModel]) -> None:
    """The library's checkpoint is not compiled, its layer's parts are."""
    family, *_ = compiled
    plain, both = reward_model_of(family), reward_model_of(family, gradient_checkpointing=True, compiled=True)
    captured = torch._dynamo.utils.counters["stats"]["calls_captured"]
    assert close(gradient(both), gradient(plain), 1e-5)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > captured
    assert bytes_kept(both) < 0.4 * bytes_kept(plain)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"^compile: no C\+\+ compiler here \(no-such-compiler\); install it, or set compile=false$"):
        policy_of("gpt2", compiled=True)


def test_without_what_makes_code_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^compile: no triton here"):
        check_compiler(torch.device("cuda"))


def test_without_the_headers_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(options.shutil, "which", lambda name: name)
    monkeypatch.setattr(options.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"^compile: no Python\.h here"):
        check_compiler(CPU)
