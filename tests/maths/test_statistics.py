from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from humanward.maths import bootstrap_interval, clopper_pearson, sign_test, t_interval, wilson_interval, win_rate

counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_wilson_by_hand():
    # z^2 = 3.841459. Centre (0.5 + 0.192073) / 1.384146 = 0.5; half width sqrt(3.841459 * (0.025 + 0.00960365)) / 1.384146 = 0.263407
    low, high = wilson_interval(5, 10)
    assert (low, high) == (pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6))


def test_clopper_pearson_by_hand():
    # 0 of 10: (1 - high)^10 = 0.025, so high = 1 - 0.025^0.1 = 0.308497
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025**0.1), 1.0)


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_intervals_are_scipys(count, confidence):
    test = stats.binomtest(*count)
    for ours, method in ((wilson_interval, "wilson"), (clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence, method=method)
        assert ours(*count, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(counts)
def test_intervals_hold_the_rate_and_mirror(count):
    successes, trials = count
    for interval in (wilson_interval, clopper_pearson):
        low, high = interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1
        assert interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)
        wide_low, wide_high = interval(successes, trials, 0.99)
        assert wide_low <= low
        assert wide_high >= high


def test_clopper_pearson_covers_at_least_what_it_promises():
    for p in (0.05, 0.3, 0.5, 0.9):
        inside = sum(stats.binom.pmf(k, 25, p) for k in range(26) if clopper_pearson(k, 25)[0] <= p <= clopper_pearson(k, 25)[1])
        assert inside >= 0.95


def test_no_trials_tell_nothing():
    assert wilson_interval(0, 0) == clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0), (1, 5, 95.0)])
def test_impossible_counts_are_refused(successes, trials, confidence):
    for interval in (wilson_interval, clopper_pearson):
        with pytest.raises(ValueError, match="must be between"):
            interval(successes, trials, confidence)


def test_half_a_success_has_no_exact_interval():
    with pytest.raises(ValueError, match="whole number"):
        clopper_pearson.__wrapped__(2.5, 5)


def test_sign_test_by_hand():
    # 8 of 10: 2 * (45 + 10 + 1) / 1024 = 0.109375
    assert sign_test(8, 2) == sign_test(2, 8) == pytest.approx(0.109375)
    assert sign_test(0, 0) == 1.0
    assert sign_test(3, 3) == 1.0
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    with pytest.raises(ValueError, match="negative"):
        sign_test(-1, 2)


def test_win_rate_by_hand():
    result = win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 2.0, 2.0, 4.0])
    assert (result.wins, result.losses, result.ties, result.rate) == (2, 1, 1, 0.625)
    assert (result.low, result.high) == wilson_interval(2.5, 4)
    same = win_rate([1.0, 2.0], [1.0, 2.0])
    assert (same.ties, same.rate) == (2, 0.5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_what_one_side_wins_the_other_loses(pairs):
    a, b = zip(*pairs, strict=True)
    ours, theirs = win_rate(a, b), win_rate(b, a)
    assert (ours.wins, ours.losses, ours.ties) == (theirs.losses, theirs.wins, theirs.ties)
    assert ours.rate == pytest.approx(1 - theirs.rate)
    assert ours.low <= ours.rate <= ours.high


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[2.0]]), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_scores_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError):
        win_rate(a, b)


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = bootstrap_interval(values, np.mean, 1)
    half = 1.959964 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)  # 2000 resamples: the ends themselves vary by about 0.01
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    narrow_low, narrow_high = bootstrap_interval(values, np.mean, 1, confidence=0.5)
    assert low < narrow_low < values.mean() < narrow_high < high


def test_bootstrap_is_a_function_of_its_seed():
    values = np.arange(20.0)
    assert bootstrap_interval(values, np.median, 3) == bootstrap_interval(values, np.median, 3)
    assert bootstrap_interval(values, np.mean, 3) != bootstrap_interval(values, np.mean, 4)
    state = np.random.get_state()[1].tolist()
    bootstrap_interval(values, np.mean, 3)
    assert np.random.get_state()[1].tolist() == state


def test_bootstrap_draws_whole_clusters():
    values, clusters = np.array([1.0, 10.0, 2.0, 10.0, 3.0]), ["a", "b", "a", "b", "c"]
    seen = []
    bootstrap_interval(values, lambda rows: seen.append(Counter(rows.tolist())) or 0.0, 0, clusters, resamples=200)
    for rows in seen:
        assert rows[1.0] == rows[2.0]  # cluster a
        assert rows[10.0] % 2 == 0  # cluster b
        assert rows[1.0] + rows[10.0] // 2 + rows[3.0] == 3  # three clusters drawn
    assert len({tuple(sorted(rows.items())) for rows in seen}) == 10  # multisets of 3 out of 3 clusters


def test_repeated_observations_do_not_look_like_more_evidence():
    once = np.random.default_rng(0).normal(size=50)
    repeated, clusters = np.repeat(once, 8), np.repeat(np.arange(50), 8)
    width = {
        name: np.subtract(*bootstrap_interval(*arguments)[::-1])
        for name, arguments in {
            "once": (once, np.mean, 0),
            "naive": (repeated, np.mean, 0),
            "clustered": (repeated, np.mean, 0, clusters),
        }.items()
    }
    assert width["clustered"] == pytest.approx(width["once"], rel=1e-9)
    assert width["naive"] < 0.5 * width["once"]  # about 1 / sqrt(8)


@settings(max_examples=20)
@given(st.floats(-9, 9), st.integers(1, 9))
def test_bootstrap_of_equal_values_is_that_value(value, size):
    assert bootstrap_interval([value] * size, np.mean, 0, resamples=20) == pytest.approx((value, value))


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], np.mean, 0)
    with pytest.raises(ValueError, match="2 cluster keys for 3 values"):
        bootstrap_interval([1.0, 2.0, 3.0], np.mean, 0, ["a", "b"])


def test_statistics_and_schedules_need_no_torch():
    code = (
        "import sys; from humanward.maths.statistics import wilson_interval; from humanward.maths import labels_required, win_rate; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_t_interval_by_hand():
    """1, 2, 3: mean 2, s 1, t(2) at 97.5 % is 4.30265: 2 -+ 4.30265 / sqrt(3)."""
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    ends = [t_interval(rng.normal(3.0, 2.0, size=3)) for _ in range(4000)]
    # four standard errors of a share of 4000
    assert np.mean([low <= 3.0 <= high for low, high in ends]) == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 4000) ** 0.5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_t_interval_refuses_what_says_nothing_of_spread(values):
    with pytest.raises(ValueError, match="two finite values"):
        t_interval(values)
