from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.maths import gae

ones = torch.ones(1, 3, dtype=torch.bool)


def slow_gae(rewards, values, length, gamma, lam):
    """Eq. 16 as it is written: advantage[t] = sum over l of (gamma * lam)^l * delta[t + l]."""
    v = [*values[:length], 0.0]
    deltas = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(length)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length)) for t in range(length)]


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5, so advantages fade by 0.25.
    # delta[2] = 4 - 2 = 2; delta[1] = 0 + 0.5 * 2 - 3 = -2; delta[0] = 1 + 0.5 * 3 - 1 = 1.5
    # advantage[2] = 2; [1] = -2 + 0.25 * 2 = -1.5; [0] = 1.5 - 0.25 * 1.5 = 1.125; returns = advantages + (1, 3, 2)
    advantages, returns = gae(torch.tensor([[1.0, 0.0, 4.0]]), torch.tensor([[1.0, 3.0, 2.0]]), ones, gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [[1.125, -1.5, 2.0]]
    assert returns.tolist() == [[2.125, 1.5, 4.0]]


def test_published_settings_by_hand():
    # gamma 1, lambda 0.95, rewards (0, 0, 1), values 0.5: deltas (0, 0, 0.5); advantages 0.5 * (0.9025, 0.95, 1)
    advantages, returns = gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5), ones, gamma=1.0, gae_lambda=0.95)
    assert advantages[0].tolist() == pytest.approx([0.45125, 0.475, 0.5])
    assert returns[0].tolist() == pytest.approx([0.95125, 0.975, 1.0])


def test_with_lambda_one_returns_are_rewards_to_go_whatever_the_values():
    values = torch.tensor([[7.0, -3.0, 11.0]])
    _, returns = gae(torch.tensor([[1.0, 2.0, 4.0]]), values, ones, gamma=1.0, gae_lambda=1.0)
    assert returns[0].tolist() == pytest.approx([7.0, 6.0, 4.0])


def test_with_lambda_zero_advantages_are_the_one_step_errors():
    advantages, _ = gae(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 5.0, 2.0]]), ones, gamma=1.0, gae_lambda=0.0)
    assert advantages.tolist() == [[5.0, -1.0, 2.0]]  # 1 + 5 - 1, 2 + 2 - 5, 4 + 0 - 2


def test_a_higher_score_raises_every_advantage_and_a_higher_value_lowers_its_own():
    rewards, values = torch.zeros(1, 3), torch.zeros(1, 3)
    base, _ = gae(rewards, values, ones, gamma=1.0, gae_lambda=0.95)
    better, _ = gae(rewards + torch.tensor([0.0, 0.0, 1.0]), values, ones, gamma=1.0, gae_lambda=0.95)
    assert (better > base).all()
    expected, _ = gae(rewards, values + torch.tensor([0.0, 0.0, 1.0]), ones, gamma=1.0, gae_lambda=0.95)
    assert expected[0, 2] < base[0, 2]


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_gae_is_the_slow_sum_on_ragged_rows_under_any_padding(seed, gamma, lam, left, right):
    g = torch.Generator().manual_seed(seed)
    lengths = [5, 1, 3, 0]
    rewards, values = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    padded = [torch.nn.functional.pad(x, (left, right), value=float("nan")) for x in (rewards, values)]
    padded_mask = torch.nn.functional.pad(mask, (left, right), value=False)
    advantages, returns = gae(*padded, padded_mask, gamma=gamma, gae_lambda=lam)
    for row, length in enumerate(lengths):
        slow = slow_gae(rewards[row].tolist(), values[row].tolist(), length, gamma, lam)
        assert advantages[row, left : left + length].tolist() == pytest.approx(slow, abs=1e-12)
        slow_returns = [a + v for a, v in zip(slow, values[row].tolist(), strict=False)]
        assert returns[row, left : left + length].tolist() == pytest.approx(slow_returns, abs=1e-12)
    assert (advantages[~padded_mask] == 0).all()
    assert (returns[~padded_mask] == 0).all()
