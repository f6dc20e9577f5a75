"""Fused activations are the model's own, and so are their gradients."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation

from humanward.models import Policy, fusing, recomputing
from humanward.models.fusing import TanhGELU, fuse_activations
from humanward.trainers.selftest import tiny_tokenizer


def gpt2(activation: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=20, n_positions=16, activation_function=activation, bos_token_id=0)
    ).eval()


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is much to do, the last part shorter than the others."""
    monkeypatch.setattr(fusing, "WORTH_IT", 0)
    monkeypatch.setattr(fusing, "EACH", 100)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_same_logits_and_gradients(activation: str) -> None:
    plain = gpt2(activation).double()
    fused = copy.deepcopy(plain)
    fuse_activations(fused)
    assert not any(isinstance(part, (NewGELUActivation, FastGELUActivation, GELUTanh)) for part in fused.modules())
    ids = torch.arange(12).view(2, 6)
    for model in (plain, fused):
        model(input_ids=ids).logits.square().mean().backward()
    torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-9)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-9)


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(model: GPT2LMHeadModel) -> int:
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            model(input_ids=torch.arange(12).view(2, 6))
        return sum(numbers)

    plain = gpt2("gelu_new")
    policy = Policy(gpt2("gelu_new"), tiny_tokenizer())
    assert kept(policy.model) < 0.8 * kept(plain)  # pyright: ignore[reportArgumentType]


def with_gradient(way: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = way(x)
    return value.detach(), torch.autograd.grad(value, x, grad.to(value.dtype))[0]


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("made_again", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_as_exact_as_its_type(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, made_again: bool) -> None:
    """Everywhere, also where 1 + tanh has lost all its digits: beside PyTorch's own in float64."""
    if made_again:
        monkeypatch.setattr(recomputing, "_WIDE", 0)
    x = torch.cat([torch.linspace(-12, 12, 977), torch.tensor([-60.0, 0.0, 60.0])]).to(dtype).view(2, -1)
    grad = torch.linspace(-2, 2, x.numel()).view_as(x).to(dtype)
    with recomputing.recomputing(nn.Identity()):
        value, slope = with_gradient(TanhGELU(), x, grad)
    expected, slope_expected = with_gradient(nn.GELU(approximate="tanh"), x.double(), grad)
    assert value.dtype == slope.dtype == dtype
    eps = torch.finfo(dtype).eps
    if dtype.itemsize == 2:  # rounded once, the gradient twice: the slope and its product
        torch.testing.assert_close(value.double(), expected, rtol=0.51 * eps, atol=1e-7)
        torch.testing.assert_close(slope.double(), slope_expected, rtol=1.1 * eps, atol=1e-6)
    else:
        torch.testing.assert_close(value.double(), expected, rtol=8 * eps, atol=8 * eps)
        torch.testing.assert_close(slope.double(), slope_expected, rtol=32 * eps, atol=32 * eps)


@pytest.mark.usefixtures("in_parts")
def test_any_layout() -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(7, 30).t(), torch.randn(30, 7)
    assert not x.is_contiguous()
    for one, other in zip(with_gradient(TanhGELU(), x, grad), with_gradient(nn.GELU(approximate="tanh"), x, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("behind_is_trained", [True, False])
def test_value_and_slope_are_made_again_at_once(monkeypatch: pytest.MonkeyPatch, behind_is_trained: bool) -> None:
    """The slope alone where the layer behind does not ask for the value. Afterwards nothing is held, though the graph is."""
    computed: list[str] = []
    compute = fusing._compute

    def listed(x: Tensor, value: Tensor | None, slope: Tensor | None) -> None:
        computed.append("value" * (value is not None) + "slope" * (slope is not None))
        compute(x, value, slope)

    monkeypatch.setattr(fusing, "_compute", listed)
    torch.manual_seed(0)
    x, behind = torch.randn(7, 31, requires_grad=True), nn.Linear(31, 3).requires_grad_(behind_is_trained)
    wanted = [x, *(behind.parameters() if behind_is_trained else ())]
    found = []
    for width in (0, 1 << 20):
        monkeypatch.setattr(recomputing, "_WIDE", width)
        with recomputing.recomputing(nn.Identity()):
            loss = behind(TanhGELU()(x * 2)).square().sum()
        found += [torch.autograd.grad(loss, wanted, retain_graph=True), torch.autograd.grad(loss, wanted)]
        for other in found:
            assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))
        own = {id(x), *(id(tensors[0]) for tensors in found)}
        assert not [t for t in gc.get_objects() if type(t) is Tensor and t.shape == x.shape and id(t) not in own]
        del loss
    again = ["valueslope"] if behind_is_trained else ["slope"]
    assert computed == ["value", *again * 2, "valueslope"]


@pytest.mark.usefixtures("in_parts")
def test_keeps_as_much_as_pytorch() -> None:
    """A number for each it is given: the slope, or what that is made of where the result is not kept either."""

    def kept(way: nn.Module) -> int:
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            way(torch.ones(300, requires_grad=True))
        return sum(numbers)

    assert kept(TanhGELU()) == kept(nn.GELU(approximate="tanh")) == 300
