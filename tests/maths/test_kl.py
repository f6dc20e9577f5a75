from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import adapted_kl_coef, kl_estimate

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
