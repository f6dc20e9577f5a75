from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.maths import gae, group_advantage, leave_one_out_advantage

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


def test_leave_one_out_by_hand():
    # 1 - (2 + 6) / 2 = -3; 2 - (1 + 6) / 2 = -1.5; 6 - (1 + 2) / 2 = 4.5. Two responses: the difference, each way.
    assert leave_one_out_advantage(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]
    assert leave_one_out_advantage(torch.tensor([[1.0, 4.0], [2.0, 2.0]])).tolist() == [[-3.0, 3.0], [0.0, 0.0]]


def test_group_advantages_by_hand():
    # Mean 3, deviation over K - 1: sqrt((4 + 1 + 9) / 2) = sqrt(7).
    scores = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    assert group_advantage(scores, scale=False).tolist() == [[-2.0, -1.0, 3.0]]
    found = group_advantage(scores, scale=True, epsilon=0.0)[0].tolist()
    assert found == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    assert group_advantage(torch.full((1, 3), 0.7), scale=True).tolist() == [[0.0, 0.0, 0.0]]


groups = st.integers(2, 6).flatmap(lambda k: st.lists(st.lists(st.floats(-10, 10), min_size=k, max_size=k), min_size=1, max_size=4))


@given(groups)
def test_leave_one_out_is_the_slow_loop(rows):
    slow = [[r - sum(row[:i] + row[i + 1 :]) / (len(row) - 1) for i, r in enumerate(row)] for row in rows]
    assert torch.allclose(
        leave_one_out_advantage(torch.tensor(rows, dtype=torch.float64)), torch.tensor(slow, dtype=torch.float64), atol=1e-9
    )


@given(groups, st.floats(-5, 5), st.floats(0.1, 10))
def test_what_group_advantages_do_not_see(rows, shift, factor):
    """No advantage depends on the level of the scores; only the scaled one not on their unit either."""
    scores = torch.tensor(rows, dtype=torch.float64)
    for advantage in (leave_one_out_advantage, lambda x: group_advantage(x, scale=False), lambda x: group_advantage(x, scale=True)):
        assert torch.allclose(advantage(scores + shift), advantage(scores), atol=1e-6)
        assert torch.allclose(advantage(scores).sum(1), torch.zeros(len(rows), dtype=torch.float64), atol=1e-6)
    assert torch.allclose(leave_one_out_advantage(factor * scores), factor * leave_one_out_advantage(scores), atol=1e-6)
    scaled = group_advantage(scores, scale=True, epsilon=0.0)
    if scores.std(1).min() > 0.1:
        assert torch.allclose(group_advantage(factor * scores, scale=True, epsilon=0.0), scaled, atol=1e-6)


def test_leave_one_out_is_unbiased_and_the_group_mean_is_not():
    """The mean of A * grad log pi over all groups that can be drawn, against the exact gradient: three responses, K = 2."""
    policy, scores = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    exact = policy * (scores - policy @ scores)  # of E[r] to the logits

    def mean_gradient(advantage):
        total = torch.zeros(3, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                a = advantage(torch.stack([scores[i], scores[j]])[None])[0]
                for k, worth in ((i, a[0]), (j, a[1])):
                    total += policy[i] * policy[j] * worth * (torch.eye(3, dtype=torch.float64)[k] - policy) / 2
        return total

    assert torch.allclose(mean_gradient(leave_one_out_advantage), exact)
    assert torch.allclose(mean_gradient(lambda x: group_advantage(x, scale=False)), exact / 2)  # (K - 1) / K of it
    scaled = mean_gradient(lambda x: group_advantage(x, scale=True))
    assert torch.nn.functional.cosine_similarity(scaled, exact, dim=0) < 0.999  # another direction, not only another length


@pytest.mark.parametrize("advantage", [leave_one_out_advantage, lambda x: group_advantage(x, scale=True)])
def test_a_group_of_one_is_refused(advantage):
    with pytest.raises(ValueError, match="a group needs 2 responses or more to one prompt, not 1"):
        advantage(torch.zeros(3, 1))
