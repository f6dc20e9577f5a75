from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import gain_and_bias


def test_by_hand():
    assert gain_and_bias(3.0, 2.0) == (0.5, -1.5)
    # 1.5 / 2 = 0.75; -1 - 0.75 * 3 = -3.25
    assert gain_and_bias(3.0, 2.0, target_mean=-1.0, target_std=1.5) == (0.75, -3.25)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-5, 5), st.floats(0.1, 5))
def test_scores_get_the_target_moments_and_keep_their_order(scores, target_mean, target_std):
    mean, std = statistics.fmean(scores), statistics.pstdev(scores)
    if std < 1e-6:
        return
    gain, bias = gain_and_bias(mean, std, target_mean=target_mean, target_std=target_std)
    normal = [gain * s + bias for s in scores]
    assert statistics.fmean(normal) == pytest.approx(target_mean, abs=1e-3)  # up to 100 / 1e-6 of cancellation
    assert statistics.pstdev(normal) == pytest.approx(target_std, rel=1e-3)
    assert gain > 0


@pytest.mark.parametrize(("std", "target_std"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0)])
def test_equal_scores_cannot_be_spread(std, target_std):
    with pytest.raises(ValueError, match="must be positive"):
        gain_and_bias(1.0, std, target_std=target_std)
