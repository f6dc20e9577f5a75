"""Policy, value and reward losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanward.maths import (
    all_pairs_loss,
    approx_kl,
    best_of_k_loss,
    choice_loss,
    clip_fraction,
    clipped_value_loss,
    dual_clipped,
    pair_loss,
    ppo_clip_loss,
    ratio_loss,
    rollback_loss,
    trust_region_loss,
)

ratios = torch.tensor([[0.5, 0.5, 1.0, 1.5, 1.5]], dtype=torch.float64)
advantages = torch.tensor([[2.0, -2.0, 3.0, 2.0, -2.0]], dtype=torch.float64)


def test_ppo_loss_and_gradient_by_hand():
    # clip 0.2. Ratio 0.5, A 2: max(-1, -1.6) = -1. Ratio 0.5, A -2: max(1, 1.6) = 1.6 (clipped). Ratio 1, A 3: -3.
    # Ratio 1.5, A 2: max(-3, -2.4) = -2.4 (clipped). Ratio 1.5, A -2: max(3, 2.4) = 3.
    logprobs = ratios.log().requires_grad_()
    loss = ppo_clip_loss(logprobs, torch.zeros_like(ratios), advantages, clip_range=0.2)
    assert loss[0].tolist() == pytest.approx([-1.0, 1.6, -3.0, -2.4, 3.0])
    loss.sum().backward()
    # -A * ratio where the unclipped loss counts, else 0.
    assert logprobs.grad[0].tolist() == pytest.approx([-1.0, 0.0, -3.0, 0.0, 3.0])


def test_a_step_down_the_policy_loss_raises_good_tokens_and_lowers_bad_ones():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    ppo_clip_loss(logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), clip_range=0.2).sum().backward()
    good, bad = (-logprobs.grad)[0]
    assert good > 0 > bad


def test_clip_fraction_by_hand():
    everything = torch.ones(1, 5, dtype=torch.bool)
    # Of the five above, two are clipped: out of range on the side that the advantage pushes to.
    assert clip_fraction(ratios.log(), torch.zeros_like(ratios), advantages, everything, clip_range=0.2).item() == pytest.approx(0.4)
    some = torch.tensor([[True, True, True, False, True]])
    assert clip_fraction(ratios.log(), torch.zeros_like(ratios), advantages, some, clip_range=0.2).item() == pytest.approx(0.25)
    assert clip_fraction(ratios.log(), torch.zeros_like(ratios), advantages, everything, clip_range=0.6).item() == 0.0
    assert clip_fraction(ratios, ratios, advantages, everything, clip_range=0.2).item() == 0.0


def test_approx_kl_by_hand_without_pads():
    # Half the mean of 0.1^2 and 0.3^2: 0.5 * 0.05 = 0.025
    new, old = torch.tensor([[-1.0, -2.0, 50.0]]), torch.tensor([[-1.1, -1.7, 0.0]])
    assert approx_kl(new, old, torch.tensor([[True, True, False]])).item() == pytest.approx(0.025, abs=1e-6)


def test_value_loss_and_gradient_by_hand():
    # Old value 1, range 0.2. Value 2, return 3: clipped 1.2, max(1, 3.24) / 2 = 1.62, no gradient: the value already moved far enough.
    # Value 2, return 0: max(4, 1.44) / 2 = 2, gradient 2. Value 1.1, return 1: 0.005, gradient 0.1.
    # Value 0, return -1: clipped 0.8, max(1, 3.24) / 2 = 1.62, gradient 0.
    values = torch.tensor([[2.0, 2.0, 1.1, 0.0]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[3.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    loss = clipped_value_loss(values, torch.ones_like(values), returns, value_clip_range=0.2)
    assert loss[0].tolist() == pytest.approx([1.62, 2.0, 0.005, 1.62])
    loss.sum().backward()
    # At 1.1 both errors are the same number and share the gradient: still 0.1 in all.
    assert values.grad[0].tolist() == pytest.approx([0.0, 2.0, 0.1, 0.0])


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=6), st.floats(0.01, 2))
def test_value_loss_is_the_slow_loop(rows, clip):
    values, old, returns = torch.tensor([rows], dtype=torch.float64).unbind(-1)
    loss = clipped_value_loss(values, old, returns, value_clip_range=clip)
    slow = [0.5 * max((v - r) ** 2, (min(max(v, o - clip), o + clip) - r) ** 2) for v, o, r in rows]
    assert loss[0].tolist() == pytest.approx(slow, abs=1e-12)


def test_best_of_k_by_hand():
    # exp of log 1, log 2, log 5: picked with probability 1/8, 2/8, 5/8.
    scores = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log().expand(3, 3)
    assert best_of_k_loss(scores, torch.tensor([0, 1, 2])).tolist() == pytest.approx([math.log(8), math.log(4), math.log(1.6)])
    assert best_of_k_loss(torch.full((1, 4), 3.7), torch.tensor([2])).item() == pytest.approx(math.log(4))


def test_best_of_k_is_torch_cross_entropy_and_survives_large_scores():
    scores = 300 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    best = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(best_of_k_loss(scores, best), torch.nn.functional.cross_entropy(scores, best, reduction="none"))


def test_a_step_down_the_reward_losses_raises_what_the_labeler_picked():
    scores = torch.zeros(1, 4, requires_grad=True)
    best_of_k_loss(scores, torch.tensor([2])).sum().backward()
    assert torch.allclose(-scores.grad, torch.tensor([[-0.25, -0.25, 0.75, -0.25]]))
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    pair_loss(chosen, rejected).sum().backward()
    assert (-chosen.grad).item() == 0.5
    assert (-rejected.grad).item() == -0.5


def test_pair_loss_by_hand():
    # Equal: log 2. A lead of log 3: -log(3/4). The same with a margin of log 3: log 2 again.
    lead = torch.tensor([math.log(3)], dtype=torch.float64)
    zero = torch.zeros_like(lead)
    assert pair_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert pair_loss(lead, zero).item() == pytest.approx(math.log(4 / 3))
    assert pair_loss(zero, lead).item() == pytest.approx(math.log(4))
    assert pair_loss(lead, zero, margin=math.log(3)).item() == pytest.approx(math.log(2))


@given(st.lists(st.tuples(st.floats(-200, 200), st.floats(-200, 200)), min_size=1, max_size=5))
def test_pair_loss_is_best_of_two_and_trls_formula(pairs):
    scores = torch.tensor(pairs, dtype=torch.float64)
    loss = pair_loss(scores[:, 0], scores[:, 1])
    assert torch.allclose(loss, best_of_k_loss(scores, torch.zeros(len(pairs), dtype=torch.long)), atol=1e-12)
    # trl.RewardTrainer.compute_loss
    assert torch.allclose(loss, -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]), atol=1e-12)


@given(st.permutations(range(4)))
def test_best_of_k_does_not_depend_on_the_order_shown(order):
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.7]], dtype=torch.float64)
    shuffled = best_of_k_loss(scores[:, order], torch.tensor([order.index(2)]))
    assert shuffled.item() == pytest.approx(best_of_k_loss(scores, torch.tensor([2])).item())


def test_choice_loss_by_hand():
    # exp of log 1, log 3: probabilities 1/4 and 3/4. A tie costs the mean of log 4 and log(4/3).
    scores = torch.tensor([[1.0, 3.0]], dtype=torch.float64).log()
    assert choice_loss(scores, torch.tensor([[0.5, 0.5]])).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    assert choice_loss(scores, torch.tensor([[1.0, 0.0]])).item() == best_of_k_loss(scores, torch.tensor([0])).item()
    assert choice_loss(scores, torch.tensor([[0.0, 1.0]])).item() == best_of_k_loss(scores, torch.tensor([1])).item()


def test_a_step_down_the_choice_loss_moves_towards_what_the_labeler_said():
    scores = torch.zeros(1, 3, requires_grad=True)
    choice_loss(scores, torch.tensor([[0.6, 0.3, 0.1]])).sum().backward()
    assert torch.allclose(-scores.grad, torch.tensor([[0.6 - 1 / 3, 0.3 - 1 / 3, 0.1 - 1 / 3]]))


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 3)), min_size=2, max_size=5))
def test_all_pairs_is_the_mean_of_pair_losses(responses):
    scores = torch.tensor([[score for score, _ in responses]], dtype=torch.float64)
    ranks = torch.tensor([[rank for _, rank in responses]])
    slow = []
    for j in range(len(responses)):
        for i in range(j):
            better, worse = (i, j) if ranks[0, i] <= ranks[0, j] else (j, i)
            loss = pair_loss(scores[:, better], scores[:, worse])
            if ranks[0, i] == ranks[0, j]:
                loss = (loss + pair_loss(scores[:, worse], scores[:, better])) / 2
            slow.append(loss)
    assert torch.allclose(all_pairs_loss(scores, ranks), torch.stack(slow).mean(0), atol=1e-12)


def test_a_step_down_the_all_pairs_loss_orders_the_scores():
    scores = torch.zeros(1, 4, requires_grad=True)
    all_pairs_loss(scores, torch.tensor([[2, 0, 3, 1]])).sum().backward()
    assert (-scores.grad)[0].argsort(descending=True).tolist() == [1, 3, 0, 2]


# ---- the other surrogates


def test_rollback_by_hand():
    # clip .2, slope .3; F(.5) = -.15 + 1.3 * .8 = .89, F(1.5) = -.45 + 1.3 * 1.2 = 1.11.
    # Ratio .5, A 2: max(-1, -1.78) = -1. Ratio .5, A -2: max(1, 1.78) = 1.78, gradient .3 * .5 * -2 = -.3: up again.
    # Ratio 1, A 3: -3. Ratio 1.5, A 2: max(-3, -2.22) = -2.22, gradient .3 * 1.5 * 2 = .9: down again. Ratio 1.5, A -2: max(3, 2.22) = 3.
    logprobs = ratios.log().requires_grad_()
    loss = rollback_loss(logprobs, torch.zeros_like(ratios), advantages, clip_range=0.2, slope=0.3)
    assert loss[0].tolist() == pytest.approx([-1.0, 1.78, -3.0, -2.22, 3.0])
    loss.sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-1.0, -0.3, -3.0, 0.9, 3.0])


def test_trust_region_by_hand():
    # Where the KL is in bounds: -A * ratio. Where it is not: -A with gradient 0, if the ratio has moved where the advantage wants it
    # (.5 with -2, 1.5 with 2), and -A * ratio still, so that a state can come back (.5 with 2, 1.5 with -2).
    logprobs = ratios.log().requires_grad_()
    kl = torch.full_like(ratios, 0.03)
    loss = trust_region_loss(logprobs, torch.zeros_like(ratios), advantages, kl, kl_limit=0.025)
    assert loss[0].tolist() == pytest.approx([-1.0, 2.0, -3.0, -2.0, 3.0])
    loss.sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-1.0, 0.0, -3.0, 0.0, 3.0])
    near = trust_region_loss(ratios.log(), torch.zeros_like(ratios), advantages, 0.5 * kl, kl_limit=0.025)
    assert near[0].tolist() == pytest.approx([-1.0, 1.0, -3.0, -3.0, 3.0])


def test_trust_region_with_rollback_by_hand():
    # As above, but what was stopped is pulled back with slope .05: .05 * -2 * .5 = -.05 and .05 * 2 * 1.5 = .15.
    logprobs = ratios.log().requires_grad_()
    loss = trust_region_loss(logprobs, torch.zeros_like(ratios), advantages, torch.full_like(ratios, 0.03), kl_limit=0.025, slope=0.05)
    assert loss[0].tolist() == pytest.approx([-1.0, -0.05, -3.0, 0.15, 3.0])
    loss.sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-1.0, -0.05, -3.0, 0.15, 3.0])


def test_dual_clip_by_hand():
    # Ratio 5, A -2: the clipped surrogate is 10, three advantages are 6. Ratio 5, A 2: clipped at 1.2, and left so.
    far, signs = torch.tensor([[5.0, 5.0, 1.5]], dtype=torch.float64), torch.tensor([[-2.0, 2.0, -2.0]], dtype=torch.float64)
    losses = ppo_clip_loss(far.log(), torch.zeros_like(far), signs, clip_range=0.2)
    assert losses[0].tolist() == pytest.approx([10.0, -2.4, 3.0])
    assert dual_clipped(losses, signs, limit=3.0)[0].tolist() == pytest.approx([6.0, -2.4, 3.0])


SURROGATES = {
    "ratio": ratio_loss,
    "clip": lambda new, old, a: ppo_clip_loss(new, old, a, clip_range=0.2),
    "rollback": lambda new, old, a: rollback_loss(new, old, a, clip_range=0.2, slope=0.3),
    "trust region": lambda new, old, a: trust_region_loss(new, old, a, torch.full_like(new, 0.03), kl_limit=0.025),
    "trust region, rollback": lambda new, old, a: trust_region_loss(new, old, a, torch.full_like(new, 0.03), kl_limit=0.025, slope=0.05),
    "dual clip": lambda new, old, a: dual_clipped(ppo_clip_loss(new, old, a, clip_range=0.2), a, limit=3.0),
}


@pytest.mark.parametrize("loss", SURROGATES.values(), ids=SURROGATES.keys())
def test_where_the_policies_agree_every_surrogate_has_the_same_loss_and_gradient(loss):
    """The policy gradient: -A, downhill toward higher advantage."""
    logprobs = torch.full_like(advantages, -1.0).requires_grad_()
    losses = loss(logprobs, logprobs.detach().clone(), advantages)
    losses.sum().backward()
    assert torch.equal(losses, -advantages)
    assert torch.equal(logprobs.grad, -advantages)


@pytest.mark.parametrize("loss", SURROGATES.values(), ids=SURROGATES.keys())
@settings(max_examples=25)
@given(st.floats(-2, 2), st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3))
def test_no_surrogate_pushes_on_what_has_gone_far_enough(loss, move, advantage):
    """Beyond every limit and moved where the advantage wants it: the gradient is 0 or points back. All but the bare ratio."""
    new = torch.tensor([[move]], dtype=torch.float64, requires_grad=True)
    loss(new, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[advantage]], dtype=torch.float64)).sum().backward()
    moved_on = abs(math.expm1(move)) > 0.2 and move * advantage > 0
    if moved_on and loss is not ratio_loss:
        assert float(new.grad) * advantage >= 0
    if move * advantage < 0 and move * advantage > -3:  # it has moved the wrong way: it must come back
        assert float(new.grad) * advantage < 0 or loss is SURROGATES["dual clip"]


def test_a_value_loss_without_clipping_is_half_the_square_error():
    values, returns = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 2.0]])
    assert clipped_value_loss(values, torch.ones_like(values), returns, value_clip_range=None)[0].tolist() == [0.5, 2.0]
