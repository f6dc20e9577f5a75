from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.maths import whiten

values = st.lists(st.floats(-50, 50), min_size=2, max_size=12)


def shards(x: torch.Tensor, mask: torch.Tensor, at: int, **options) -> torch.Tensor:
    """Whiten rows [:at] and [at:] in two threads whose `reduce` is a sum over both."""
    barrier, sums, results = threading.Barrier(2, timeout=20), [None, None], [None, None]

    def run(rank: int, part: slice) -> None:
        def reduce(sent: torch.Tensor) -> torch.Tensor:
            barrier.wait()
            sums[rank] = sent
            barrier.wait()
            return sums[0] + sums[1]

        results[rank] = whiten(x[part], mask[part], reduce=reduce, **options)

    threads = [threading.Thread(target=run, args=(0, slice(None, at))), threading.Thread(target=run, args=(1, slice(at, None)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat(results)


def test_whitening_by_hand():
    # Mean 2.5; population variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25 (over n - 1 it would be 1.667); 1.5 / sqrt(1.25) = 1.341641
    x, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2, dtype=torch.bool)
    expected = torch.tensor([[-1.341641, -0.447214], [0.447214, 1.341641]])
    assert torch.allclose(whiten(x, mask), expected, atol=1e-6)
    assert torch.allclose(whiten(x, mask, shift_mean=False), expected + 2.5, atol=1e-6)


def test_epsilon_is_inside_the_root_and_1e_8():
    # Values +-1e-4: variance 1e-8, so the factor is 1 / sqrt(2e-8) and the result 1e-4 / 1.41421e-4 = 0.707107 (outside the root: 0.9999).
    x, mask = torch.tensor([[1e-4, -1e-4]]), torch.ones(1, 2, dtype=torch.bool)
    assert whiten(x, mask)[0, 0].item() == pytest.approx(0.707107, abs=1e-6)
    assert whiten(x, mask, epsilon=3e-8)[0, 0].item() == pytest.approx(0.5, abs=1e-6)


def test_equal_values_stay_finite():
    x, mask = torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(whiten(x, mask), torch.zeros(2, 3))
    assert torch.equal(whiten(x, mask, shift_mean=False), x)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_pads_neither_count_nor_come_out(shift_mean):
    x = torch.tensor([[1.0, 2.0, float("nan")], [3.0, 4.0, float("inf")]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    plain = whiten(x[:, :2], mask[:, :2], shift_mean=shift_mean)
    whitened = whiten(x, mask, shift_mean=shift_mean)
    assert torch.equal(whitened[:, :2], plain)
    assert (whitened[:, 2] == 0).all()


def test_no_real_token_gives_zeros():
    assert torch.equal(whiten(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool), shift_mean=False), torch.zeros(1, 2))


@settings(max_examples=50)
@given(values, st.booleans())
def test_whitening_is_the_slow_loop(numbers, shift_mean):
    mean = sum(numbers) / len(numbers)
    variance = sum((v - mean) ** 2 for v in numbers) / len(numbers)
    slow = [(v - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean) for v in numbers]
    whitened = whiten(torch.tensor([numbers], dtype=torch.float64), torch.ones(1, len(numbers), dtype=torch.bool), shift_mean=shift_mean)
    assert whitened[0].tolist() == pytest.approx(slow, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_two_processes_whiten_as_one(shift_mean, at):
    g = torch.Generator().manual_seed(at)
    x, mask = 3 + torch.randn(6, 4, generator=g), torch.rand(6, 4, generator=g) < 0.7
    whole = whiten(x, mask, shift_mean=shift_mean)
    assert torch.allclose(shards(x, mask, at, shift_mean=shift_mean), whole, atol=1e-6)


def test_a_process_without_real_tokens_does_no_harm():
    x, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), torch.tensor([[True, True], [True, True], [False, False]])
    assert torch.allclose(shards(x, mask, 2), whiten(x, mask), atol=1e-6)


def test_a_large_mean_costs_no_digits():
    x, mask = torch.tensor([[10_000.0, 10_001.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert whiten(x, mask)[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-6)


def test_sixteen_bit_values_are_summed_in_float32():
    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    x[0, ::2] = 3.0
    whitened = whiten(x, torch.ones(1, 4096, dtype=torch.bool))
    assert whitened.dtype == torch.bfloat16
    assert whitened[0, :2].tolist() == [1.0, -1.0]
