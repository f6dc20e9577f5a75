from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.maths import chunked_head, entropy, gather_logprobs, linear_log_collision, linear_logprobs
from humanward.maths.chunked_head import add_product

N, D, V = 7, 5, 11
SETTINGS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "scale": {"scale": 0.25, "temperature": 1.3},
    "softcap": {"softcap": 2.0, "scale": 3.0, "temperature": 0.7},
    "suppressed": {"suppressed": [9, 10], "temperature": 0.7},
    "everything": {"suppressed": [0, 9], "softcap": 1.5, "scale": 2.0, "temperature": 0.5},
}


def inputs(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((N, D), (V, D), (V,)))
    tokens = torch.randint(1, 9, (N,), generator=g)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), tokens


def options(name: str) -> dict:
    kw = dict(SETTINGS[name])
    if "suppressed" in kw:
        kw["suppressed"] = torch.isin(torch.arange(V), torch.tensor(kw["suppressed"]))
    return kw


def naive(hidden, weight, tokens, *, bias=None, temperature=1.0, softcap=None, scale=1.0, suppressed=None):
    logits = hidden @ weight.t()
    logits = scale * (logits if bias is None else logits + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    if suppressed is not None:
        logits = logits.masked_fill(suppressed, -torch.inf)
    log_p = torch.log_softmax(logits, dim=-1)
    finite = log_p if suppressed is None else log_p.masked_fill(suppressed, 0)
    return log_p[torch.arange(len(tokens)), tokens], -(finite.exp() * finite).sum(-1) if suppressed is None else -(
        log_p.exp() * finite
    ).sum(-1)


def test_gather_by_hand():
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8. At temperature 0.5 they are squared: 1/30, 4/30, 25/30.
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().expand(2, 3)
    assert gather_logprobs(logits, torch.tensor([1, 2]), temperature=1.0).tolist() == pytest.approx([math.log(2 / 8), math.log(5 / 8)])
    assert gather_logprobs(logits, torch.tensor([1, 2]), temperature=0.5).tolist() == pytest.approx([math.log(4 / 30), math.log(25 / 30)])


def test_entropy_by_hand():
    # 1/4, 1/4, 1/2: 0.25 * log 4 * 2 + 0.5 * log 2 = 1.5 log 2. A token of probability 0 adds nothing.
    logits = torch.tensor([[1.0, 1.0, 2.0, 0.0]]).log().requires_grad_()
    h = entropy(logits, temperature=1.0)
    assert h.item() == pytest.approx(1.5 * math.log(2))
    h.sum().backward()
    assert logits.grad.isfinite().all()
    assert entropy(torch.zeros(1, 8), temperature=0.3).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([[0.0, 1.0]]), temperature=0.5) < entropy(torch.tensor([[0.0, 1.0]]), temperature=1.0)


def test_logits_and_trl_agree():
    utils = pytest.importorskip("trl.trainer.utils")
    g = torch.Generator().manual_seed(0)
    logits, tokens = 3 * torch.randn(2, 5, V, generator=g), torch.randint(0, V, (2, 5), generator=g)
    assert torch.allclose(gather_logprobs(logits, tokens, temperature=0.7), utils.selective_log_softmax(logits / 0.7, tokens), atol=1e-6)
    assert torch.allclose(entropy(logits, temperature=0.7), utils.entropy_from_logits(logits / 0.7), atol=1e-6)


def test_sixteen_bit_logits_are_normalised_in_float32():
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    assert gather_logprobs(logits, torch.tensor([0]), temperature=1.0).item() == pytest.approx(-math.log(1000), abs=1e-5)
    assert entropy(logits, temperature=1.0).item() == pytest.approx(math.log(1000), abs=1e-5)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 512])
@pytest.mark.parametrize("name", SETTINGS)
def test_linear_logprobs_and_gradients_are_the_naive_formula(name, chunk_rows, with_bias):
    hidden, weight, bias, tokens = inputs()
    g = torch.Generator().manual_seed(1)
    towards = torch.randn(2, N, generator=g, dtype=torch.float64)
    kw = options(name) | {"bias": bias if with_bias else None}
    parameters = (hidden, weight, bias) if with_bias else (hidden, weight)
    fast = linear_logprobs(hidden, weight, tokens, chunk_rows=chunk_rows, **kw)
    slow = naive(hidden, weight, tokens, **kw)
    fast_grads = torch.autograd.grad((torch.stack(fast) * towards).sum(), parameters)
    slow_grads = torch.autograd.grad((torch.stack(slow) * towards).sum(), parameters)
    for a, b in zip((*fast, *fast_grads), (*slow, *slow_grads), strict=True):
        assert a.dtype == torch.float64
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradcheck(name):
    hidden, weight, bias, tokens = inputs()
    kw = options(name)
    assert torch.autograd.gradcheck(lambda h, w, b: linear_logprobs(h, w, tokens, bias=b, chunk_rows=3, **kw), (hidden, weight, bias))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_for_one_operand_alone(wanted):
    hidden, weight, bias, tokens = inputs()
    both = linear_logprobs(hidden, weight, tokens, bias=bias)
    whole = torch.autograd.grad(sum(x.sum() for x in both), (hidden, weight, bias))
    operands = [x.detach().requires_grad_(w) for x, w in zip((hidden, weight, bias), wanted, strict=True)]
    logprobs, entropies = linear_logprobs(operands[0], operands[1], tokens, bias=operands[2])
    (logprobs.sum() + entropies.sum()).backward()
    for operand, gradient, want in zip(operands, whole, wanted, strict=True):
        assert (operand.grad is not None) == want
        assert not want or torch.equal(operand.grad, gradient)


def test_the_entropy_alone_has_a_gradient_and_can_be_left_out():
    hidden, weight, bias, tokens = inputs()
    (fast,) = torch.autograd.grad(linear_logprobs(hidden, weight, tokens, bias=bias, chunk_rows=3)[1].sum(), hidden)
    (slow,) = torch.autograd.grad(naive(hidden, weight, tokens, bias=bias)[1].sum(), hidden)
    assert torch.allclose(fast, slow, atol=1e-12)
    logprobs, nothing = linear_logprobs(hidden, weight, tokens, bias=bias, chunk_rows=3, want_entropy=False)
    assert nothing is None
    (without,) = torch.autograd.grad(logprobs.sum(), hidden)
    (alone,) = torch.autograd.grad(linear_logprobs(hidden, weight, tokens, bias=bias)[0].sum(), hidden)
    assert torch.allclose(without, alone, atol=1e-12)


def test_gradients_accumulate_in_a_weight_that_is_used_twice():
    hidden, weight, _, tokens = inputs()
    for rows in (slice(0, 3), slice(3, N)):
        linear_logprobs(hidden[rows], weight, tokens[rows])[0].sum().backward()
    (slow,) = torch.autograd.grad(naive(hidden, weight, tokens)[0].sum(), weight)
    assert torch.allclose(weight.grad, slow, atol=1e-12)


def test_the_direction_of_a_step():
    hidden, weight, _, tokens = inputs()
    hidden.grad = None
    before, spread = linear_logprobs(hidden, weight, tokens)
    up = hidden + 1e-3 * torch.autograd.grad(before.sum(), hidden, retain_graph=True)[0]
    assert (linear_logprobs(up, weight, tokens)[0] > before).all()
    wider = hidden + 1e-3 * torch.autograd.grad(spread.sum(), hidden)[0]
    assert (linear_logprobs(wider, weight, tokens)[1] > spread).all()


def test_a_suppressed_token_has_no_probability_and_no_nan():
    hidden, weight, bias, tokens = inputs()
    suppressed = torch.zeros(V, dtype=torch.bool)
    suppressed[tokens[0]] = True
    logprobs, entropies = linear_logprobs(hidden, weight, tokens, bias=bias, suppressed=suppressed, softcap=5.0)
    assert logprobs[0].item() == -math.inf
    kept = tokens != tokens[0]
    assert logprobs[kept].isfinite().all()
    assert entropies.isfinite().all()
    gradients = torch.autograd.grad(logprobs[kept].sum() + entropies.sum(), (hidden, weight, bias))
    assert all(x.isfinite().all() for x in gradients)
    assert (gradients[1][tokens[0]] == 0).all()
    # With the suppressed token chosen: as log_softmax over a masked_fill, whose constant logit has no gradient.
    fast = torch.autograd.grad(
        linear_logprobs(hidden, weight, tokens, suppressed=suppressed)[0], weight, torch.ones(N, dtype=torch.float64)
    )
    slow = torch.autograd.grad(naive(hidden, weight, tokens, suppressed=suppressed)[0], weight, torch.ones(N, dtype=torch.float64))
    assert torch.allclose(fast[0], slow[0], atol=1e-12)


def test_float32_stays_close_to_float64():
    kw = options("everything")
    exact = linear_logprobs(*(x.detach() for x in inputs()[:2]), inputs()[3], **kw)
    hidden, weight, _, tokens = inputs(torch.float32)
    rounded = linear_logprobs(hidden, weight, tokens, **kw)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.allclose(a.double(), b, atol=1e-5)


def test_sixteen_bit_operands_give_float32_logits():
    hidden, weight, bias, tokens = inputs(torch.bfloat16)
    logprobs, entropies = linear_logprobs(hidden, weight, tokens, bias=bias)
    slow = naive(*(x.detach().double() for x in (hidden, weight)), tokens, bias=bias.detach().double())
    for fast, exact in zip((logprobs, entropies), slow, strict=True):
        assert fast.dtype == torch.float32
        assert torch.allclose(fast.double(), exact, atol=1e-5)  # bfloat16 logits would be off by 1e-2
    (logprobs.sum() + entropies.sum()).backward()
    assert hidden.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.bfloat16


def test_autocast_does_not_lower_the_logits():
    hidden, weight, _, tokens = inputs(torch.float32)
    plain = linear_logprobs(hidden, weight, tokens)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = linear_logprobs(hidden, weight, tokens)[0]
    assert torch.equal(plain, inside)


def test_large_logits_neither_overflow_nor_lose_the_token():
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0], [0.999]])
    logprobs, entropies = linear_logprobs(hidden, weight, torch.tensor([2]))
    # z = 1000, -1000, 999: log(e^-1 / (1 + e^-1)) = -1.313262
    assert logprobs.item() == pytest.approx(-1.313262, abs=1e-4)
    assert entropies.item() == pytest.approx(0.582203, abs=1e-4)


def test_nothing_larger_than_a_chunk_is_made_or_kept(tensors_made: Callable[[], AbstractContextManager[list[int]]]):
    rows, vocabulary, chunk = 64, 300, 8
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    tokens = torch.zeros(rows, dtype=torch.long)
    kept = []
    with tensors_made() as made, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        logprobs, entropies = linear_logprobs(hidden, weight, tokens, chunk_rows=chunk, softcap=30.0)
        (logprobs.sum() + entropies.sum()).backward()
    assert max(made) == chunk * vocabulary
    assert max(kept) == weight.numel()


def test_arguments_are_not_written_to():
    operands = inputs()
    before = [x.detach().clone() for x in operands]
    hidden, weight, bias, tokens = operands
    logprobs, entropies = linear_logprobs(hidden, weight, tokens, bias=bias, **options("everything"))
    (logprobs.sum() + entropies.sum()).backward()
    assert all(torch.equal(x, y) for x, y in zip(operands, before, strict=True))


def test_no_rows_give_no_rows():
    hidden, weight = torch.zeros(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    logprobs, entropies = linear_logprobs(hidden, weight, torch.zeros(0, dtype=torch.long))
    assert logprobs.shape == entropies.shape == (0,)
    (logprobs.sum() + entropies.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros(V, D))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 5))
def test_probabilities_sum_to_one_and_entropy_is_their_mean_surprise(seed, temperature):
    hidden, weight, _, _ = inputs(seed=seed)
    everything = torch.arange(V).repeat(N)
    logprobs, entropies = linear_logprobs(hidden.repeat_interleave(V, 0), weight, everything, temperature=temperature)
    logprobs, entropies = logprobs.reshape(N, V), entropies.reshape(N, V)
    assert torch.allclose(logprobs.exp().sum(1), torch.ones(N, dtype=torch.float64))
    assert torch.allclose(-(logprobs.exp() * logprobs).sum(1), entropies[:, 0])


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"softcap": 0.0}, {"chunk_rows": 0}])
def test_settings_that_are_not_positive_are_refused(wrong):
    hidden, weight, _, tokens = inputs()
    with pytest.raises(ValueError, match="must be positive"):
        linear_logprobs(hidden, weight, tokens, **wrong)


def test_the_mixed_product_is_one_that_torch_offers():
    # Shapes and types only: 16-bit factors into float32 exist on accelerators, and on the meta device.
    out = torch.empty(2, 3, device="meta")
    a, b = torch.empty(2, 4, device="meta", dtype=torch.bfloat16), torch.empty(4, 3, device="meta", dtype=torch.bfloat16)
    for beta in (0.0, 1.0):
        add_product(out, a, b, beta=beta, alpha=2.0)
    assert out.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_sixteen_bit_operands_on_an_accelerator(name):
    hidden, weight, bias, tokens = (x.detach().cuda() for x in inputs(torch.bfloat16))
    kw = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options(name).items()}
    operands = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    exact = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    fast = linear_logprobs(operands[0], operands[1], tokens, bias=operands[2], chunk_rows=3, **kw)
    slow = naive(exact[0], exact[1], tokens, bias=exact[2], **kw)
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)
    sum(x.sum() for x in fast).backward()
    sum(x.sum() for x in slow).backward()
    for a, b in zip(operands, exact, strict=True):
        assert torch.allclose(a.grad.double(), b.grad, atol=0.05, rtol=0.02)  # gradients are rounded to bfloat16


@pytest.mark.parametrize("converted", [64, 8192])
@pytest.mark.parametrize("chunk_rows", [32, 1000])
def test_sixteen_bit_operands_on_a_cpu(chunk_rows: int, converted: int, monkeypatch: pytest.MonkeyPatch):
    """Forwards as exact as in float32, of matrices that are large enough for bfloat16 instructions; no other product is changed by it."""
    monkeypatch.setattr(chunked_head, "_CONVERTED", converted)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((96, 64), (300, 64)))
    tokens = torch.randint(0, 300, (96,), generator=generator)
    operands, exact = ([x.clone().to(dtype).requires_grad_() for x in (hidden, weight)] for dtype in (torch.bfloat16, torch.float64))
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    before = matmul and matmul.fp32_precision
    fast = linear_logprobs(*operands, tokens, chunk_rows=chunk_rows, temperature=0.7)
    slow = naive(*exact, tokens, temperature=0.7)
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-4, rtol=1e-5)
    sum(x.sum() for x in fast).backward()
    sum(x.sum() for x in slow).backward()
    for a, b in zip(operands, exact, strict=True):
        assert torch.allclose(a.grad.double(), b.grad, atol=0.01 * b.grad.abs().max().item(), rtol=0.01)
    assert (matmul and matmul.fp32_precision) == before


def test_a_sixteen_bit_head_is_never_whole_in_float32(
    tensors_made: Callable[[], AbstractContextManager[list[int]]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chunked_head, "_CONVERTED", 64)
    hidden, weight = torch.randn(8, 64).bfloat16().requires_grad_(), torch.randn(300, 64).bfloat16()
    with tensors_made() as made:
        linear_logprobs(hidden, weight, torch.arange(8))[0].sum().backward()
    assert hidden.grad is not None
    assert max(made) == 64 * 64


def test_log_collision_is_that_of_the_logits():
    """How likely two draws are the same token: by hand 1/4 + 1/16 + 1/16 for one half and two quarters, and the slow sum otherwise."""
    one = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log()
    assert linear_log_collision(one, torch.eye(3, dtype=torch.float64)).exp().item() == pytest.approx(3 / 8)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7, 4), (9, 4), (9,)))
    logits = 3 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 3) / 0.7
    slow = torch.softmax(logits, -1).square().sum(-1).log()
    for rows in (2, 100):
        found = linear_log_collision(hidden, weight, bias=bias, temperature=0.7, softcap=3.0, scale=0.5, chunk_rows=rows)
        assert torch.allclose(found, slow)
