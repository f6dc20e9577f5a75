"""Losses of methods with one advantage per response, by hand and beside TRL's own trainers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from humanward.maths import (
    group_advantage,
    kl_estimate,
    leave_one_out_advantage,
    length_divisor,
    over_tokens,
    ppo_clip_loss,
    sequence_clip_loss,
)

B, K, R = 3, 4, 5


@pytest.fixture(scope="module")
def trl():
    """TRL's trainers as oracles; loaded by path, since tests are not a package."""
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("trl_oracle_for_groups", Path(__file__).parent / "trl_oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def batch():
    """Ragged responses under a policy, the one that sampled and a reference, with scores."""
    g = torch.Generator().manual_seed(0)
    length = torch.randint(1, R + 1, (B * K,), generator=g)
    length[0] = R
    mask = torch.arange(R) < length[:, None]
    old = -3 * torch.rand(B * K, R, generator=g)
    new = (old + 0.3 * torch.randn(B * K, R, generator=g)).requires_grad_()
    reference = old + 0.3 * torch.randn(B * K, R, generator=g)
    return new, old * mask, reference * mask, mask, torch.randn(B, K, generator=g)


def test_a_response_is_one_action_by_hand():
    # Ratio of the first response exp(0.1 + 0.3) = e^0.4 = 1.4918, clipped to 1.2: A 2 gives -2.4 and no gradient. Of the second,
    # exp(-0.4) = 0.6703: A -1 gives max(0.6703, 0.8) = 0.8, no gradient. Of the third, whose second token is a pad, exp(0.1) = 1.1052.
    new = torch.tensor([[0.1, 0.3], [-0.4, 0.0], [0.1, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    advantages = torch.tensor([2.0, -1.0, 1.0], dtype=torch.float64)
    loss = sequence_clip_loss(new, torch.zeros_like(new), advantages, mask, clip_range=0.2)
    assert loss.tolist() == pytest.approx([-2.4, 0.8, -1.1051709])
    loss.sum().backward()
    assert new.grad.tolist() == [[0.0, 0.0], [0.0, 0.0], [pytest.approx(-1.1051709), 0.0]]


def test_on_its_own_samples_the_gradient_is_that_of_reinforce(batch):
    """-A grad log pi(y|x), section 3.1: every token of a response has the response's advantage, with one factor for all."""
    _, old, _, mask, scores = batch
    new = old.clone().requires_grad_()
    advantages = leave_one_out_advantage(scores).flatten()
    sequence_clip_loss(new, old, advantages, mask, clip_range=0.2).sum().backward()
    assert torch.allclose(new.grad, -advantages[:, None] * mask)


def test_divisors_by_hand():
    lengths = torch.tensor([2.0, 4.0, 0.0])
    assert length_divisor(lengths, "sum", mean_length=3.0, response_length=8).tolist() == [1.0, 1.0, 1.0]
    assert length_divisor(lengths, "response", mean_length=3.0, response_length=8).tolist() == [2.0, 4.0, 1.0]
    assert length_divisor(lengths, "batch", mean_length=3.0, response_length=8).tolist() == [3.0, 3.0, 3.0]
    assert length_divisor(lengths, "fixed", mean_length=3.0, response_length=8).tolist() == [8.0, 8.0, 8.0]


def test_what_pads_hold_does_not_matter():
    x, mask = torch.tensor([[1.0, 2.0, torch.nan]]), torch.tensor([[True, True, False]])
    assert over_tokens(x, mask, torch.tensor([4.0])).tolist() == [0.75]


def ours(batch, *, average, kl_coef, level="token", length=7):
    new, old, reference, mask, scores = batch
    advantages = group_advantage(scores, scale=True).flatten()
    lengths = mask.sum(1).float()
    divisor = length_divisor(lengths, average, mean_length=float(lengths.mean()), response_length=length)
    losses = over_tokens(ppo_clip_loss(new, old, advantages[:, None].expand_as(new), clip_range=0.2), mask, divisor)
    return (losses + kl_coef * over_tokens(kl_estimate(new, reference, "k3"), mask, divisor)).mean()


@pytest.mark.parametrize(("average", "theirs"), [("response", "grpo"), ("batch", "bnpo"), ("batch", "dapo"), ("fixed", "dr_grpo")])
@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
def test_token_losses_are_trls(trl, batch, average, theirs, kl_coef):
    """Values and gradients of GRPO, DAPO and Dr. GRPO, several updates behind the policy that sampled."""
    new, old, reference, mask, scores = batch
    mine = ours(batch, average=average, kl_coef=kl_coef)
    (gradient,) = torch.autograd.grad(mine, new)
    advantages = group_advantage(scores, scale=True).flatten()
    other = trl.grpo(theirs, new, old, reference, mask, advantages, kl_coef=kl_coef, clip_range=0.2, response_length=7)
    assert mine.item() == pytest.approx(other.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(other, new)[0], atol=1e-6, rtol=1e-5)


def test_the_sequence_loss_is_trls_rloo(trl, batch):
    new, old, _, mask, scores = batch
    advantages = leave_one_out_advantage(scores).flatten()
    mine = sequence_clip_loss(new, old, advantages, mask, clip_range=0.2).mean()
    other = trl.rloo(new, old, mask, advantages, clip_range=0.2)
    assert mine.item() == pytest.approx(other.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(mine, new)[0], torch.autograd.grad(other, new)[0], atol=1e-6, rtol=1e-5)


def test_advantages_are_trls(trl, batch):
    _, old, reference, mask, scores = batch
    for scale in (True, False):
        torch.testing.assert_close(
            group_advantage(scores, scale=scale), trl.grpo_advantages(scores, mask, scale=scale), atol=1e-5, rtol=1e-5
        )
    kl = ((old - reference) * mask).sum(1).view(B, K)
    mine = leave_one_out_advantage(scores - 0.3 * kl)
    torch.testing.assert_close(mine, trl.rloo_advantages(scores, old, reference, mask, kl_coef=0.3), atol=1e-5, rtol=1e-5)
