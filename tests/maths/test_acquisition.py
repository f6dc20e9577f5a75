"""Disagreement, and questions drawn with known probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import bald, choice_variance, draw_with_propensities, propensities, reweighted_mean

AGREED, TOSS, SPLIT = [[0.9, 0.1], [0.9, 0.1]], [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
MEMBERS = np.array([AGREED, TOSS, SPLIT]).transpose(1, 0, 2)  # [M, N, K]


def test_disagreement_by_hand() -> None:
    # Both members at once sure and opposed: variance 1/4 of either response; one bit tells which member is right.
    assert choice_variance(MEMBERS).tolist() == pytest.approx([0.0, 0.0, 0.5])
    assert bald(MEMBERS).tolist() == pytest.approx([0.0, 0.0, math.log(2)])


def test_bald_leaves_alone_what_is_known_to_be_a_toss() -> None:
    # Members 0.4 and 0.6 differ less than 0 and 0.2 do in information, though their variance is the same.
    members = np.array([[[0.4, 0.6], [0.0, 1.0]], [[0.6, 0.4], [0.2, 0.8]]])
    assert choice_variance(members)[0] == pytest.approx(choice_variance(members)[1])
    assert bald(members)[1] > 3 * bald(members)[0]


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.data())
def test_propensities_sum_to_the_count_and_follow_disagreement(disagreement: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(disagreement)))
    p = propensities(disagreement, count, uniform_share=0.3)
    assert p.sum() == pytest.approx(count)
    assert ((p >= 0) & (p <= 1)).all()
    order = np.argsort(disagreement, kind="stable")
    assert (np.diff(p[order]) >= -1e-12).all()


def test_propensities_by_hand() -> None:
    # Two of four: half of it evenly, 1/4 each, half by disagreement 0, 1, 1, 2, 0 1/4 1/4 1/2.
    assert propensities([0, 1, 1, 2], 2, uniform_share=0.5).tolist() == pytest.approx([0.25, 0.5, 0.5, 0.75])
    # One that would be asked more than once is asked for certain; the others share the rest.
    assert propensities([0, 0, 0, 9], 2, uniform_share=0.5).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert propensities([3, 1, 2], 1, uniform_share=1.0).tolist() == pytest.approx([1 / 3] * 3)
    assert propensities([0, 0], 1).tolist() == [0.5, 0.5]


def test_each_candidate_is_drawn_with_its_propensity() -> None:
    p = propensities([0, 1, 1, 2, 0.3, 0.1], 3, uniform_share=0.2)
    grid = np.linspace(0, 1, 4000, endpoint=False) + 1 / 8000
    drawn = np.zeros(6)
    for uniform in grid:
        chosen = draw_with_propensities(p, uniform, order=[3, 0, 5, 1, 4, 2])
        assert len(set(chosen)) == 3
        drawn[chosen] += 1
    assert drawn / len(grid) == pytest.approx(p, abs=1e-3)


def test_the_mean_over_all_is_estimated_from_those_asked() -> None:
    # Values that go with disagreement: the plain mean of those asked is too high, the reweighted one is not.
    rng = np.random.default_rng(0)
    values = rng.random(400)
    p = propensities(values**2, 100, uniform_share=0.2)
    plain, reweighted = [], []
    for _ in range(200):
        chosen = draw_with_propensities(p, rng.random(), rng.permutation(400).tolist())
        plain.append(values[chosen].mean())
        reweighted.append(reweighted_mean(values[chosen], p[chosen]))
    assert np.mean(plain) > values.mean() + 0.1
    # The mean of 200 estimates, each with a deviation of about 0.04.
    assert np.mean(reweighted) == pytest.approx(values.mean(), abs=0.012)


def test_what_cannot_be_drawn_is_refused() -> None:
    for bad in (lambda: propensities([1.0], 2), lambda: propensities([-1.0], 1), lambda: propensities([1.0], 1, uniform_share=2)):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(ValueError, match="whole sum"):
        draw_with_propensities([0.5, 0.2], 0.5)
    with pytest.raises(ValueError, match="one value"):
        reweighted_mean([1.0], [0.0])
    with pytest.raises(ValueError, match="members, questions, responses"):
        bald(np.zeros((2, 3)))
