from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.maths import best_of_n_frontier, optimal_policy, optimal_value, reweighted_frontier

score_rows = st.integers(1, 6).flatmap(lambda s: st.lists(st.lists(st.integers(-3, 3), min_size=s, max_size=s), min_size=1, max_size=3))


def objective(log_policy, log_reference, rewards, beta):
    policy = log_policy.exp()
    return (policy * rewards).sum(-1) - beta * (policy * (log_policy - log_reference)).sum(-1)


def test_optimum_by_hand():
    # Two responses of probability 1/2, rewards 0 and log 3, beta 1: Z = (1 + 3) / 2 = 2; value log 2; policy 1/4 and 3/4.
    log_reference, rewards = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 3.0]).log()
    assert optimal_value(log_reference, rewards, 1.0).item() == pytest.approx(math.log(2))
    assert optimal_policy(log_reference, rewards, 1.0).exp().tolist() == pytest.approx([0.25, 0.75])
    # beta 2: Z = (1 + sqrt 3) / 2, value 2 * log Z
    assert optimal_value(log_reference, rewards, 2.0).item() == pytest.approx(2 * math.log((1 + math.sqrt(3)) / 2))


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.floats(0.05, 20))
def test_no_policy_beats_the_optimal_one_and_it_attains_the_value(seed, beta):
    g = torch.Generator().manual_seed(seed)
    log_reference, other = torch.log_softmax(torch.randn(2, 3, 6, generator=g, dtype=torch.float64), -1)
    rewards = torch.randn(3, 6, generator=g, dtype=torch.float64)
    best = optimal_policy(log_reference, rewards, beta)
    value = optimal_value(log_reference, rewards, beta)
    assert torch.allclose(best.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(objective(best, log_reference, rewards, beta), value)
    assert (objective(other, log_reference, rewards, beta) <= value + 1e-12).all()
    nearby = torch.log_softmax(best + 0.01 * other, -1)
    assert (objective(nearby, log_reference, rewards, beta) <= value + 1e-12).all()
    assert (value >= (log_reference.exp() * rewards).sum(-1) - 1e-12).all()
    assert (value <= rewards.max(-1).values + 1e-12).all()


def test_frontier_is_the_enumerated_optimum():
    # A reference of probabilities 1/4, 1/4, 1/2 as the samples a, b, c, c; the second prompt has another order and other scores.
    rewards = torch.tensor([[1.0, -1.0, 0.5], [2.0, 0.0, -3.0]], dtype=torch.float64)
    log_reference = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log().expand(2, 3)
    samples = torch.stack([rewards[0][[0, 1, 2, 2]], rewards[1][[2, 0, 2, 1]]])
    for beta, (kl, score) in zip([0.1, 1.0, 5.0], reweighted_frontier(samples, [0.1, 1.0, 5.0]), strict=True):
        log_policy = optimal_policy(log_reference, rewards, beta)
        exact_kl = (log_policy.exp() * (log_policy - log_reference)).sum(-1).mean().item()
        exact_score = (log_policy.exp() * rewards).sum(-1).mean().item()
        assert (kl, score) == (pytest.approx(exact_kl), pytest.approx(exact_score))
        value = optimal_value(log_reference, rewards, beta).mean().item()
        assert score - beta * kl == pytest.approx(value)


def test_frontier_by_hand_and_at_its_ends():
    # Scores 0 and log 3, beta 1: weights 1/4, 3/4. KL = 1/4 log(1/2) + 3/4 log(3/2) = 0.130812; score = 3/4 log 3 = 0.823959
    scores = torch.tensor([[0.0, math.log(3)]])
    ((kl, score),) = reweighted_frontier(scores, [1.0])
    assert (kl, score) == (pytest.approx(0.130812, abs=1e-6), pytest.approx(0.823959, abs=1e-6))
    (near, far) = reweighted_frontier(scores, [1e6, 1e-4])
    assert near == (pytest.approx(0.0, abs=1e-9), pytest.approx(math.log(3) / 2, abs=1e-5))
    assert far == (pytest.approx(math.log(2)), pytest.approx(math.log(3)))


@given(score_rows)
def test_a_smaller_beta_goes_further_and_scores_higher(rows):
    frontier = reweighted_frontier(torch.tensor(rows, dtype=torch.float32), [10.0, 1.0, 0.3, 0.1])
    for (kl, score), (next_kl, next_score) in pairwise(frontier):
        assert next_kl >= kl - 1e-9
        assert next_score >= score - 1e-9
    assert frontier[-1][0] <= math.log(len(rows[0])) + 1e-9


def test_best_of_n_by_hand():
    # Samples 1, 2, 4. Best of 2 over {1,2}, {1,4}, {2,4}: (2 + 4 + 4) / 3 = 10/3; KL log 2 - 1/2
    frontier = best_of_n_frontier(torch.tensor([[4.0, 1.0, 2.0]]), [1, 2, 3])
    assert frontier[0] == (0.0, pytest.approx(7 / 3))
    assert frontier[1] == (pytest.approx(0.193147, abs=1e-6), pytest.approx(10 / 3))
    assert frontier[2] == (pytest.approx(math.log(3) - 2 / 3), pytest.approx(4.0))


def test_best_of_n_by_another_score_is_what_it_would_choose():
    # Chosen by 4, 1, 2, worth 0, 5, 1. Best of 2: {1, 2} -> 1, {1, 4} -> 0, {2, 4} -> 0: 1/3; of 3: 0; of 1: the mean, 2
    chosen, worth = torch.tensor([[4.0, 1.0, 2.0]]), torch.tensor([[0.0, 5.0, 1.0]])
    assert [score for _, score in best_of_n_frontier(chosen, [1, 2, 3], worth)] == pytest.approx([2.0, 1 / 3, 0.0])


@given(score_rows)
def test_best_of_n_is_the_mean_over_all_subsets(rows):
    samples = len(rows[0])
    for n, (_, score) in zip(
        range(1, samples + 1), best_of_n_frontier(torch.tensor(rows, dtype=torch.float32), range(1, samples + 1)), strict=True
    ):
        brute = [sum(max(chosen) for chosen in combinations(row, n)) / math.comb(samples, n) for row in rows]
        assert score == pytest.approx(sum(brute) / len(brute), abs=1e-9)


def test_best_of_many_neither_overflows_nor_loses_weight():
    # Every weight sums to 1: equal scores give that score; ranks 1 to S give n (S + 1) / (n + 1), the mean largest rank.
    samples, n = 5000, 500
    ((_, constant),) = best_of_n_frontier(torch.ones(1, samples), [n])
    ((_, rank),) = best_of_n_frontier(torch.arange(1.0, samples + 1)[None], [n])
    assert constant == pytest.approx(1.0, abs=1e-9)
    assert rank == pytest.approx(n * (samples + 1) / (n + 1), rel=1e-9)


def test_best_of_n_kl_is_exact_without_repeats():
    # The best of n of N equally likely, different scores: p_i = (i^n - (i-1)^n) / N^n. For N large its KL to the reference is the formula.
    N, n = 20_000, 4
    i = torch.arange(1, N + 1, dtype=torch.float64)
    p = ((i / N) ** n - ((i - 1) / N) ** n).clamp(min=1e-300)
    ((kl, _),) = best_of_n_frontier(torch.randn(1, 8), [n])
    assert kl == pytest.approx((p * (p * N).log()).sum().item(), abs=1e-3)


@pytest.mark.parametrize("n", [0, 4, -1])
def test_more_draws_than_samples_are_refused(n):
    with pytest.raises(ValueError, match="must be 1 to 3"):
        best_of_n_frontier(torch.zeros(1, 3), [n])


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    zeros = torch.zeros(1, 2)
    for call in (
        lambda: optimal_value(zeros, zeros, beta),
        lambda: optimal_policy(zeros, zeros, beta),
        lambda: reweighted_frontier(zeros, [beta]),
    ):
        with pytest.raises(ValueError, match="beta must be positive"):
            call()
