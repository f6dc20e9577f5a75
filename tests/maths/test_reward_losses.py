"""Reward losses beyond a plain choice: margins, noise, ratings, differences; TRL's trainer as a second opinion on pairs."""

from __future__ import annotations

import importlib.util
import math
from itertools import permutations
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import (
    all_pairs_loss,
    best_of_k_loss,
    binary_loss,
    choice_loss,
    difference_loss,
    pair_loss,
    plackett_luce_loss,
    rating_loss,
)

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def trl_oracle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trl_oracle", Path(__file__).parent / "trl_oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("with_margin", [False, True])
def test_pairs_cost_and_push_what_trls_trainer_says(trl_oracle: ModuleType, with_margin: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = (torch.randn(32, generator=generator, dtype=DOUBLE) * 3 for _ in range(2))
    margin = torch.rand(32, generator=generator, dtype=DOUBLE) if with_margin else None
    results = []
    for ours in (True, False):
        a, b = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
        loss = pair_loss(a, b, margin=0.0 if margin is None else margin).mean() if ours else trl_oracle.reward(a, b, margin)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_one_margin_for_each_pair_by_hand() -> None:
    # A lead of log 3 with margins 0 and log 3: log(4/3) and log 2.
    lead = torch.full((2,), math.log(3), dtype=DOUBLE)
    loss = pair_loss(lead, torch.zeros_like(lead), margin=torch.tensor([0.0, math.log(3)], dtype=DOUBLE))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_a_noisy_choice_by_hand() -> None:
    # Probabilities 1/4 and 3/4, a tenth of all answers blind: 0.9 / 4 + 0.05 = 0.275 and 0.9 * 3 / 4 + 0.05 = 0.725.
    scores = torch.tensor([[1.0, 3.0]], dtype=DOUBLE).log()
    assert choice_loss(scores, torch.tensor([[1.0, 0.0]], dtype=DOUBLE), noise=0.1).item() == pytest.approx(-math.log(0.275))
    assert choice_loss(scores, torch.tensor([[0.5, 0.5]], dtype=DOUBLE), noise=0.1).item() == pytest.approx(
        -(math.log(0.275) + math.log(0.725)) / 2
    )


def test_noise_bounds_the_cost_and_the_pull_of_one_label() -> None:
    scores = torch.tensor([[0.0, 60.0]], dtype=DOUBLE, requires_grad=True)
    loss = choice_loss(scores, torch.tensor([[1.0, 0.0]], dtype=DOUBLE), noise=0.1)
    loss.sum().backward()
    # log(K / noise) = log 20, and no pull: the label is taken to be blind. Without noise the loss is 60 and the pull 1.
    assert loss.item() == pytest.approx(math.log(20))
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-12


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=5), st.floats(0.01, 0.9))
def test_a_noisy_choice_is_the_mixture_of_a_choice_and_a_blind_one(values: list[float], noise: float) -> None:
    scores = torch.tensor([values], dtype=DOUBLE)
    for k in range(len(values)):
        target = torch.nn.functional.one_hot(torch.tensor([k]), len(values)).to(DOUBLE)
        slow = -torch.log((1 - noise) * scores.softmax(-1)[:, k] + noise / len(values))
        assert torch.allclose(choice_loss(scores, target, noise=noise), slow, atol=1e-12)


def test_a_step_down_noisy_losses_still_raises_what_the_labeler_picked() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    choice_loss(scores, torch.tensor([[0.0, 1.0, 0.0]]), noise=0.2).sum().backward()
    assert scores.grad is not None
    assert (-scores.grad)[0].argmax() == 1
    ranked = torch.zeros(1, 3, requires_grad=True)
    all_pairs_loss(ranked, torch.tensor([[2, 0, 1]]), noise=0.2, margin=0.5).sum().backward()
    assert ranked.grad is not None
    assert (-ranked.grad)[0].argsort(descending=True).tolist() == [1, 2, 0]


@pytest.mark.parametrize("noise", [-0.1, 1.0])
def test_noise_is_a_share(noise: float) -> None:
    with pytest.raises(ValueError, match="noise must be"):
        choice_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), noise=noise)
    with pytest.raises(ValueError, match="noise must be"):
        all_pairs_loss(torch.zeros(1, 2), torch.tensor([[1, 0]]), noise=noise)


def test_all_pairs_with_margin_and_noise_is_the_loop_over_pairs() -> None:
    scores = torch.tensor([[0.4, -1.1, 2.0, 0.3]], dtype=DOUBLE)
    ranks = torch.tensor([[0, 2, 1, 1]])
    slow = []
    for i in range(4):
        for j in range(i + 1, 4):
            sign = float((ranks[0, j] - ranks[0, i]).sign())
            lead = scores[0, i] - scores[0, j] - 0.7 * sign
            win, lose = (0.9 * torch.sigmoid(x) + 0.05 for x in (lead, -lead))
            p = 0.5 + 0.5 * sign
            slow.append(-(p * win.log() + (1 - p) * lose.log()))
    assert all_pairs_loss(scores, ranks, margin=0.7, noise=0.1).item() == pytest.approx(torch.stack(slow).mean().item())


def test_a_ranking_of_two_is_a_pair_and_its_weight_is_one_over_its_pairs() -> None:
    scores = torch.tensor([[0.3, 1.5]], dtype=DOUBLE)
    assert all_pairs_loss(scores, torch.tensor([[1, 0]]), margin=0.4).item() == pytest.approx(
        pair_loss(scores[:, 1], scores[:, 0], margin=0.4).item()
    )
    # Equal scores: each of the C(4, 2) = 6 pairs pulls its better response up by 1/2 / 6; the best of four is in three of them.
    equal = torch.zeros(1, 4, requires_grad=True)
    all_pairs_loss(equal, torch.tensor([[0, 1, 2, 3]])).sum().backward()
    assert equal.grad is not None
    assert torch.allclose(-equal.grad, torch.tensor([[3.0, 1.0, -1.0, -3.0]]) / 12)


def test_plackett_luce_is_a_probability_over_orders_and_two_is_a_pair() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0]], dtype=DOUBLE)
    orders = [torch.tensor([ranks]) for ranks in permutations(range(3))]
    assert sum(math.exp(-plackett_luce_loss(scores, ranks).item()) for ranks in orders) == pytest.approx(1.0)
    two = scores[:, :2]
    assert plackett_luce_loss(two, torch.tensor([[1, 0]])).item() == pytest.approx(pair_loss(two[:, 1], two[:, 0]).item())
    best = best_of_k_loss(scores, torch.tensor([2])).item()
    rest = pair_loss(scores[:, 0], scores[:, 1]).item()
    assert plackett_luce_loss(scores, torch.tensor([[1, 2, 0]])).item() == pytest.approx(best + rest)


def test_regression_by_hand_and_its_direction() -> None:
    scores = torch.tensor([1.5, -2.0], requires_grad=True)
    loss = rating_loss(scores, torch.tensor([2.0, -3.0]))
    assert loss.tolist() == [0.25, 1.0]
    loss.sum().backward()
    assert scores.grad is not None
    assert (-scores.grad).tolist() == [1.0, -2.0]  # toward 2, and toward -3
    pairs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    # The first leads by 1, said to lead by 3: (1 - 3)^2 = 4. It trails by 1 as was said: 0.
    loss = difference_loss(pairs, torch.tensor([3.0, -1.0]))
    assert loss.tolist() == [4.0, 0.0]
    loss.sum().backward()
    assert pairs.grad is not None
    assert (-pairs.grad).tolist() == [[4.0, -4.0], [0.0, 0.0]]


@given(st.floats(-20, 20))
def test_what_people_compare_has_no_zero_point(shift: float) -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.7]], dtype=DOUBLE)
    ranks, soft = torch.tensor([[1, 2, 0, 2]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=DOUBLE)
    for loss in (
        lambda s: choice_loss(s, soft, noise=0.1),
        lambda s: all_pairs_loss(s, ranks, margin=0.3, noise=0.1),
        lambda s: plackett_luce_loss(s, torch.tensor([[1, 2, 0, 3]])),
        lambda s: difference_loss(s[:, :2], torch.tensor([1.0], dtype=DOUBLE)),
    ):
        assert loss(scores + shift).item() == pytest.approx(loss(scores).item(), abs=1e-9)


@given(st.permutations(range(4)))
def test_the_order_in_which_responses_stand_does_not_matter(order: list[int]) -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.7]], dtype=DOUBLE)
    ranks, soft = torch.tensor([[1, 3, 0, 2]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=DOUBLE)
    assert choice_loss(scores[:, order], soft[:, order], noise=0.1).item() == pytest.approx(choice_loss(scores, soft, noise=0.1).item())
    for loss in (lambda s, r: all_pairs_loss(s, r, margin=0.3, noise=0.1), plackett_luce_loss):
        assert loss(scores[:, order], ranks[:, order]).item() == pytest.approx(loss(scores, ranks).item())


def test_what_was_liked_is_scored_up_and_what_was_not_down() -> None:
    scores = torch.tensor([0.0, math.log(3), math.log(3)], dtype=DOUBLE, requires_grad=True)
    liked = torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE)
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4: log 2, -log 3/4, -log 1/4.
    loss = binary_loss(scores, liked)
    assert loss.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.5, -0.25, 0.75])
    # With a fifth of the answers given blindly: 0.8 * 3/4 + 0.1 = 0.7, and 0.8 * 1/4 + 0.1 = 0.3.
    assert binary_loss(scores, liked, noise=0.2)[1:].tolist() == pytest.approx([-math.log(0.7), -math.log(0.3)])
    # A pair of K = 2, one score held at 0, is the same question.
    pairs = torch.stack([scores, torch.zeros_like(scores)], dim=1)
    both = choice_loss(pairs, torch.stack([liked, 1 - liked], dim=1), noise=0.2)
    assert binary_loss(scores, liked, noise=0.2).tolist() == pytest.approx(both.tolist())
    with pytest.raises(ValueError, match="noise"):
        binary_loss(scores, liked, noise=1.0)
