from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import adapted_kl_coef, doubled_or_halved_kl_coef, kl_estimate, linear_kl

logprob = st.floats(-20, 0)


def test_estimators_by_hand():
    # pi = 0.5, rho = 0.25: logratio = log 2 = 0.693147; squared / 2 = 0.240227; 1/2 - 1 + 0.693147 = 0.193147
    pi, rho = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert kl_estimate(pi, rho, "k1").item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_estimate(pi, rho, "k2").item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_estimate(pi, rho, "k3").item() == pytest.approx(0.193147, abs=1e-6)
    # The other way round: -0.693147, 0.240227 again, 2 - 1 - 0.693147 = 0.306853
    assert kl_estimate(rho, pi, "k1").item() == pytest.approx(-0.693147, abs=1e-6)
    assert kl_estimate(rho, pi, "k2").item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_estimate(rho, pi, "k3").item() == pytest.approx(0.306853, abs=1e-6)


def test_k1_and_k3_are_unbiased_and_k2_is_close():
    g = torch.Generator().manual_seed(0)
    log_pi = torch.log_softmax(torch.randn(50, generator=g, dtype=torch.float64), 0)
    log_rho = torch.log_softmax(log_pi + 0.1 * torch.randn(50, generator=g, dtype=torch.float64), 0)
    exact = (log_pi.exp() * (log_pi - log_rho)).sum().item()
    mean = {k: (log_pi.exp() * kl_estimate(log_pi, log_rho, k)).sum().item() for k in ("k1", "k2", "k3")}
    assert exact > 0
    assert mean["k1"] == pytest.approx(exact, rel=1e-9)
    assert mean["k3"] == pytest.approx(exact, rel=1e-9)
    assert mean["k2"] == pytest.approx(exact, rel=0.05)  # a second-order approximation
    assert mean["k2"] != pytest.approx(exact, rel=1e-4)


@given(st.lists(st.tuples(logprob, logprob), min_size=1, max_size=5))
def test_k2_and_k3_are_never_negative(pairs):
    a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    assert (kl_estimate(a, b, "k2") >= 0).all()
    assert (kl_estimate(a, b, "k3") >= 0).all()
    assert (kl_estimate(a, a, "k3") == 0).all()


def test_k3_keeps_its_digits_near_zero():
    # x^2 / 2 - x^3 / 6 for x = 1e-4: 5e-9 to four digits; exp(-x) - 1 + x in float32 would give 0 or 6e-8.
    assert kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), "k3").item() == pytest.approx(5e-9, abs=4e-12)


def test_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="k4"):
        kl_estimate.__wrapped__(torch.zeros(1), torch.zeros(1), "k4")


def test_controller_by_hand():
    # 12 / 6 - 1 = 1, clipped to 0.2; 0.15 * (1 + 0.2 * 512 / 10000) = 0.151536
    assert adapted_kl_coef(0.15, 12.0, kl_target=6.0, batch_size=512) == pytest.approx(0.151536, abs=1e-12)
    # 0 / 6 - 1 = -1, clipped to -0.2; 0.15 * (1 - 0.01024) = 0.148464
    assert adapted_kl_coef(0.15, 0.0, kl_target=6.0, batch_size=512) == pytest.approx(0.148464, abs=1e-12)
    # 6.6 / 6 - 1 = 0.1, unclipped; 1 + 0.1 * 64 / 1000 = 1.0064
    assert adapted_kl_coef(1.0, 6.6, kl_target=6.0, batch_size=64, horizon=1000) == pytest.approx(1.0064, abs=1e-12)
    assert adapted_kl_coef(1.0, 12.0, kl_target=6.0, batch_size=100, horizon=1000, clip=0.5) == pytest.approx(1.05, abs=1e-12)


@given(st.floats(1e-3, 10), st.floats(-5, 50), st.floats(0.1, 20), st.integers(1, 2048))
def test_controller_pushes_towards_the_target(kl_coef, kl, kl_target, batch_size):
    new = adapted_kl_coef(kl_coef, kl, kl_target=kl_target, batch_size=batch_size)
    assert (new - kl_coef) * (kl - kl_target) >= 0
    assert abs(new / kl_coef - 1) <= 0.2 * batch_size / 10_000 + 1e-12
    assert adapted_kl_coef(kl_coef, kl_target, kl_target=kl_target, batch_size=batch_size) == kl_coef


def test_a_kl_that_is_not_a_number_is_not_hidden():
    assert math.isnan(adapted_kl_coef(0.1, math.nan, kl_target=6.0, batch_size=8))


@pytest.mark.parametrize("wrong", [{"kl_target": 0.0}, {"kl_target": -6.0}, {"kl_target": 6.0, "horizon": 0}])
def test_controller_without_a_target_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        adapted_kl_coef(0.1, 1.0, batch_size=8, **wrong)


def gradient_of(z, loss):
    logits = z.clone().requires_grad_()
    loss(torch.log_softmax(logits, 0)).backward()
    return logits.grad


def two_policies():
    """Logits of pi, log rho, and the gradients of KL(pi || rho) and KL(rho || pi) with respect to the logits."""
    g = torch.Generator().manual_seed(1)
    z, log_rho = torch.randn(6, generator=g, dtype=torch.float64), torch.log_softmax(torch.randn(6, generator=g, dtype=torch.float64), 0)
    reverse = gradient_of(z, lambda log_pi: (log_pi.exp() * (log_pi - log_rho)).sum())
    forward = gradient_of(z, lambda log_pi: (log_rho.exp() * (log_rho - log_pi)).sum())
    return z, log_rho, reverse, forward


def test_the_gradient_of_an_estimator_as_a_loss_is_not_that_of_its_value():
    """Expected over every token of pi: k1 pulls nowhere, k2 as KL(pi || rho) does, k3 as KL(rho || pi) does."""
    z, log_rho, reverse, forward = two_policies()

    def expected(estimator):
        # The tokens are drawn, not differentiated through.
        return gradient_of(z, lambda log_pi: (log_pi.detach().exp() * kl_estimate(log_pi, log_rho, estimator)).sum())

    assert expected("k1").abs().max() < 1e-12
    torch.testing.assert_close(expected("k2"), reverse)
    torch.testing.assert_close(expected("k3"), forward)


def test_as_a_reward_only_k1_pulls_as_the_kl_does():
    """Expected policy gradient of the penalty of the token itself: k1 as KL(pi || rho); k3 less KL(rho || pi); the full KL nowhere."""
    z, log_rho, reverse, forward = two_policies()

    def expected(penalty):
        return gradient_of(z, lambda log_pi: (log_pi.detach().exp() * penalty(log_pi.detach()) * log_pi).sum())

    torch.testing.assert_close(expected(lambda log_pi: kl_estimate(log_pi, log_rho, "k1")), reverse)
    torch.testing.assert_close(expected(lambda log_pi: kl_estimate(log_pi, log_rho, "k3")), reverse - forward)
    assert expected(lambda log_pi: (log_pi.exp() * (log_pi - log_rho)).sum().expand(6)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kl", "after"), [(0.02, 0.4), (0.006, 0.1), (0.0151, 0.4), (0.0149, 0.2), (0.0067, 0.2), (0.0066, 0.1), (-0.1, 0.1)]
)
def test_doubling_and_halving_by_hand(kl, after):
    # Target 0.01: above 0.015 twice 0.2, below 0.00667 half of it.
    assert doubled_or_halved_kl_coef(0.2, kl, kl_target=0.01) == pytest.approx(after)


def test_doubling_needs_a_target():
    with pytest.raises(ValueError, match="must be positive"):
        doubled_or_halved_kl_coef(0.2, 0.1, kl_target=0.0)


# ---- the whole vocabulary


def head(seed, *, rows=7, width=5, vocabulary=11, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=dtype).requires_grad_() for shape in ((rows, width), (vocabulary, width), (vocabulary,))]


def plain_kl(one, other, *, temperature=1.0, softcap=None, scale=1.0, suppressed=None):
    """The same from whole logits, by autograd."""

    def log_p(hidden, weight, bias):
        z = scale * (hidden @ weight.T + bias)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        return torch.log_softmax((z / temperature).masked_fill(suppressed, -1e30) if suppressed is not None else z / temperature, -1)

    p, q = log_p(*one), log_p(*other)
    return (p.exp() * (p - q)).sum(-1)


FORMS = {
    "plain": {},
    "temperature": {"temperature": 0.5},
    "soft cap and scale": {"softcap": 2.0, "scale": 0.3, "temperature": 0.7},
    "suppressed": {"suppressed": torch.arange(11) > 8},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("chunk_rows", [3, 512])
def test_full_kl_is_the_plain_one_with_its_gradients(form, chunk_rows):
    one, other = head(0), head(1)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    expected = plain_kl(one, other, **form)
    wanted = torch.autograd.grad((expected * weights).sum(), [*one, *other])
    found = linear_kl(one[0], one[1], other[0], other[1], bias=one[2], other_bias=other[2], chunk_rows=chunk_rows, **form)
    torch.testing.assert_close(found, expected)
    for gradient, right in zip(torch.autograd.grad((found * weights).sum(), [*one, *other]), wanted, strict=True):
        torch.testing.assert_close(gradient, right)


def test_full_kl_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), logits by a head that hands its state on: 1/2 log 2 - 1/4 log 2 = 0.1733
    p, q, identity = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log(), torch.eye(3)
    assert linear_kl(p, identity, q, identity).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert linear_kl(p, identity, p, identity).item() == pytest.approx(0, abs=1e-7)


def test_the_estimators_agree_with_the_full_kl():
    """k1 and k3, averaged over every token, are it."""
    one, other = head(2, rows=1), head(3, rows=1)
    exact = linear_kl(one[0], one[1], other[0], other[1]).item()
    log_p, log_q = (torch.log_softmax(side[0] @ side[1].T, -1)[0] for side in (one, other))
    for estimator in ("k1", "k3"):
        assert (log_p.exp() * kl_estimate(log_p, log_q, estimator)).sum().item() == pytest.approx(exact, rel=1e-9)


def test_a_side_without_gradient_gets_none():
    one, other = head(0), [x.detach() for x in head(1)]
    linear_kl(one[0], one[1], other[0], other[1]).sum().backward()
    assert one[0].grad is not None
    assert other[0].grad is None


def test_two_vocabularies_have_no_kl():
    with pytest.raises(ValueError, match="heads over 11 and 9 tokens; a KL needs one vocabulary"):
        linear_kl.__wrapped__(*head(0)[:2], *head(0, vocabulary=9)[:2])
