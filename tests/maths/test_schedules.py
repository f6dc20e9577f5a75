from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import cosine, labels_required, linear_to_zero


def test_linear_by_hand():
    assert [linear_to_zero(step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_cosine_by_hand():
    # Three steps up: 1/4, 2/4, 3/4; then (1 + cos(pi * k / 4)) / 2 for k = 0 to 4.
    expected = [0.25, 0.5, 0.75, 1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0]
    assert [cosine(step, 7, 3) for step in range(9)] == pytest.approx(expected, abs=1e-6)
    assert cosine(0, 10, 0) == 1.0
    assert cosine(5, 5, 5) == 0.0


@given(st.integers(1, 500), st.integers(0, 500))
def test_cosine_rises_then_falls_and_is_never_zero_in_the_run(total, warmup):
    warmup = min(warmup, total)
    rates = [cosine(step, total, warmup) for step in range(total)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)


def test_labels_required_by_hand():
    # 500 + 4500 * (1 - (1 - 0.1)^2) = 500 + 4500 * 0.19 = 1355
    assert labels_required(100_000, 1_000_000, 500, 5000) == 1355
    assert labels_required(0, 1_000_000, 500, 5000) == 500
    assert labels_required(1_000_000, 1_000_000, 500, 5000) == 5000
    assert labels_required(2_000_000, 1_000_000, 500, 5000) == 5000
    # 10 * (1 - (2/3)^2) = 5.56, rounded up
    assert labels_required(1, 3, 0, 10) == 6


@given(st.integers(1, 10**7), st.integers(0, 10**5), st.integers(0, 10**5), st.data())
def test_labels_required_is_the_formula_rounded_up(episodes, initial, more, data):
    episode = data.draw(st.integers(0, episodes))
    exact = initial + more * (1 - (1 - Fraction(episode, episodes)) ** 2)
    assert labels_required(episode, episodes, initial, initial + more) == math.ceil(exact)
