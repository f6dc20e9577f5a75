"""What is made again for the backward pass is what was there: same gradients to the last bit, less kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, PreTrainedConfig

from humanward.models import packs_exactly, recomputing, response_states
from humanward.models.loading import trunk_of
from humanward.models.recomputing import can_be_made_again

LAYERS = 2
FAMILIES: dict[str, tuple[Callable[[], PreTrainedConfig], int]] = {
    # Of a layer: what attention gave, both norms' results and that of the activation.
    "gpt2": (lambda: GPT2Config(vocab_size=20, n_positions=64, n_embd=16, n_layer=LAYERS, n_head=2, activation_function="gelu"), 4),
    # The first norm's result is asked for three times, by the projections to queries, keys and values, the second's twice.
    "llama": (
        lambda: LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2, max_position_embeddings=64
        ), 7,
    ),
    # ReLU keeps its result for itself: to make it again would save nothing.
    "opt": (
        lambda: OPTConfig(
            vocab_size=20, hidden_size=16, ffn_dim=24, num_hidden_layers=LAYERS, num_attention_heads=2, max_position_embeddings=64,
            word_embed_proj_dim=16,
        ), 5,
    ),
}  # fmt: skip


def trunk(family: str) -> nn.Module:
    torch.manual_seed(0)
    return trunk_of(AutoModelForCausalLM.from_config(FAMILIES[family][0]()).eval())


def gradients(model: nn.Module, *, packed: bool) -> tuple[list[Tensor], int]:
    """Of a ragged batch; and how many tensors were kept as what makes them."""
    kept: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recomputing, "_Kept", lambda *given: kept.append(given) or _Kept(*given))
        prompts, responses = torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(1)), torch.arange(18).view(3, 2, 3)
        prompt_mask, response_mask = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
        prompt_mask[1, :4] = response_mask[0, 1, 2:] = False
        states = response_states(model, prompts, prompt_mask, responses, response_mask, packed=packed)
        weights = [p for p in model.parameters() if p.requires_grad]
        loss = states.take(states.before_each_token()[response_mask.any(2)]).square().sum()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [g for g in found if g is not None], len(kept)


_Kept = recomputing._Kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_gradients_are_the_same_to_the_last_bit(monkeypatch: pytest.MonkeyPatch, family: str, packed: bool) -> None:
    model = trunk(family)
    assert packs_exactly(model)
    monkeypatch.setattr(recomputing, "_WIDE", 0)
    less, kept = gradients(model, packed=packed)
    # The library's attention over padded rows is not ours to make again.
    assert kept == LAYERS * (FAMILIES[family][1] - (not packed))
    with monkeypatch.context() as patch:
        patch.setattr(recomputing, "_is_cheap", lambda module: False)
        patch.setattr("humanward.models.attention.can_be_made_again", lambda made, make: None)
        whole, kept = gradients(model, packed=packed)
    assert kept == 0
    assert len(less) == len(whole) > 10
    assert all(torch.equal(one, other) for one, other in zip(less, whole, strict=True))


def test_keys_and_values_of_a_prompt_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each response has a row's columns of its own: of either response keys and values, besides what the other way has."""
    monkeypatch.setattr("humanward.models.attention.in_rows", lambda prompts, responses: True)
    model = trunk("gpt2")
    assert packs_exactly(model)
    less, kept = gradients(model, packed=True)
    assert kept == LAYERS * (2 + 2 * 2)
    monkeypatch.setattr("humanward.models.attention.can_be_made_again", lambda made, make: None)
    whole, kept = gradients(model, packed=True)
    assert kept == LAYERS * 2
    assert all(torch.equal(one, other) for one, other in zip(less, whole, strict=True))


def test_activations_of_a_narrow_model_are_kept() -> None:
    model = trunk("gpt2")
    assert packs_exactly(model)
    assert gradients(model, packed=True)[1] == LAYERS * 3


def test_a_compiled_model_is_left_alone() -> None:
    model = trunk("gpt2")
    assert packs_exactly(model)
    expected, _ = gradients(model, packed=True)
    layer = model.get_submodule("h.0.mlp")
    layer._compiled_call_impl = layer._call_impl  # as compile() leaves it, but for the time that takes
    found, kept = gradients(model, packed=True)
    assert kept == 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_nothing_is_left_on_the_model() -> None:
    model = trunk("gpt2")
    packs_exactly(model)
    gradients(model, packed=True)
    assert not any(part._forward_hooks for part in model.modules())
    with pytest.raises(RuntimeError, match="broken"), recomputing.recomputing(model):
        raise RuntimeError("broken")
    assert not any(part._forward_hooks for part in model.modules())


class Square(nn.Module):
    """x^2 by a norm that is none, so that it may be made again."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil, self.weight = spoil, nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        made = x * x
        can_be_made_again(made, lambda: x.detach() * x.detach())
        return (self.spoil(made) * self.weight).sum()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda made: made, [1.0, 4.0]),
        (lambda made: made.mul_(10), [10.0, 40.0]),  # no longer what was made
        (lambda made: made[:1], [1.0 + 1.0]),  # another number of them
        (lambda made: made.flip(0), [4.0, 1.0]),
    ],
)
def test_only_what_was_made_is_made_again(spoil: Callable[[Tensor], Tensor], expected: list[float]) -> None:
    """The gradient of the weight is what it was multiplied with."""
    square, x = Square(spoil), torch.tensor([1.0, 2.0], requires_grad=True)
    with recomputing.recomputing(square):
        loss = square(x)
    loss.backward()
    assert square.weight.grad is not None
    found = square.weight.grad if len(expected) == 2 else square.weight.grad.sum()[None]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_address_is_forgotten_with_its_tensor() -> None:
    x = torch.ones(1000, requires_grad=True)
    with recomputing.recomputing(nn.Identity()):
        recipes = recomputing._recipes.get()
        assert recipes == {}
        made = x * 2
        can_be_made_again(made, lambda: x.detach() * 2)
        assert len(recipes) == 1
        del made
        assert recipes == {}
