from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from humanward.maths import WinRateSequence, betting_capital, confidence_sequence, fixed_sample_size, mixture_capital, stopping_reason
from humanward.maths.sequential import CANDIDATES

both = pytest.mark.parametrize("method", ["betting", "mixture"])
capitals = pytest.mark.parametrize("capital", [betting_capital, mixture_capital])


def outcomes(rate: float, ties: float, paths: int, n: int, seed: int = 0):
    u = np.random.default_rng(seed).random((paths, n))
    wins = rate - ties / 2
    return np.where(u < wins, 1.0, np.where(u < wins + ties, 0.5, 0.0))


def sequence_of(values: Iterable[Any], method: str = "betting") -> WinRateSequence:
    sequence = WinRateSequence(method=method)
    for value in values:
        sequence = sequence.add(value)
    return sequence


def test_mixture_capital_by_hand():
    # n wins against 1/2: B(1 + n, 1) = 1 / (n + 1), over 2^-n. One win and one loss: B(2, 2) = 1/6, over 1/4.
    assert mixture_capital([1, 1, 1], 0.5) == pytest.approx([1, 4 / 3, 2])
    assert mixture_capital([1, 0], 0.5) == pytest.approx([1, 2 / 3])
    assert mixture_capital([1], 0.0) == [math.inf]


def test_betting_capital_by_hand():
    # Against 1/2 the bet is truncated to 0.5 / 0.5 = 1: a win multiplies up by 1.5 and down by 0.5. max / 2: 0.75, then up = down = 0.75.
    assert betting_capital([1, 0], 0.5) == pytest.approx([0.75, 0.375])
    # Against 0.02, bet 1 = sqrt(2 log 40 / (0.25 * 1 * log 2)) = sqrt(7.377759 / 0.173287) = 6.524985 is below 0.5 / 0.02 = 25.
    assert betting_capital([1], 0.02) == pytest.approx([(1 + 6.524985 * 0.98) / 2], rel=1e-6)
    # Bet 2 against 0.02 after a win: mean_1 = 1.5 / 2, variance_1 = (0.25 + 0.25^2) / 2 = 0.15625;
    # sqrt(7.377759 / (0.15625 * 2 * log 3)) = sqrt(7.377759 / 0.343316) = 4.635701
    assert betting_capital([1, 1], 0.02)[1] == pytest.approx((1 + 6.524985 * 0.98) * (1 + 4.635701 * 0.98) / 2, rel=1e-6)


@both
def test_the_sequence_excludes_what_the_capital_excludes(method: str):
    """The incremental class against the whole-path formula, at every 25th candidate."""
    level = 0.94  # at 0.95 a first loss gives exactly 0.5 / (1 - 0.975) = 20, where rounding decides
    for path in outcomes(0.6, 0.2, paths=2, n=80):
        ever = np.full(len(CANDIDATES), False)
        for t, (low, high) in enumerate(confidence_sequence(path, level, method)):
            now = [
                (betting_capital(path[: t + 1], m, level=level) if method == "betting" else mixture_capital(path[: t + 1], m))[-1]
                for m in CANDIDATES[::25]
            ]
            ever[::25] |= np.array(now) >= 1 / (1 - level)
            # 0 and 1 are ends, never inside; elsewhere inside and not yet excluded are the same.
            assert [low < m < high for m in CANDIDATES[25:-25:25]] == (~ever[25:-25:25]).tolist()


@capitals
@pytest.mark.parametrize(("rate", "ties"), [(0.5, 0.0), (0.5, 0.4), (0.65, 0.2), (0.2, 0.1), (0.95, 0.05)])
def test_coverage_at_all_times(capital: Callable[..., Any], rate: float, ties: float):
    paths = 4000
    missed = (capital(outcomes(rate, ties, paths, 500), rate) >= 20).any(axis=-1).mean()
    assert missed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / paths)  # three standard errors: 0.0103


def test_a_fixed_interval_looked_at_always_would_not_cover():
    """Why this module is there: the same paths, Wilson's interval looked at after each outcome."""
    x = outcomes(0.5, 0.0, 1000, 500)
    n = np.arange(1, 501)
    z = (x.cumsum(-1) - n / 2) / np.sqrt(n / 4)
    assert (np.abs(z[:, 19:]) > stats.norm.ppf(0.975)).any(axis=-1).mean() > 0.25


@both
def test_the_interval_only_shrinks_and_holds_the_running_mean(method: str):
    for path in outcomes(0.65, 0.2, paths=5, n=300, seed=1):
        intervals = confidence_sequence(path, method=method)
        assert (np.diff(intervals[:, 0]) >= 0).all()
        assert (np.diff(intervals[:, 1]) <= 0).all()
        means = path.cumsum() / np.arange(1, 301)
        assert (intervals[:, 0] <= means).all()
        assert (means <= intervals[:, 1]).all()
        assert intervals[-1, 1] - intervals[-1, 0] < 0.25


@both
def test_swapping_sides_mirrors(method: str):
    path = outcomes(0.7, 0.2, paths=1, n=150)[0]
    assert confidence_sequence(path, method=method) == pytest.approx(1 - confidence_sequence(1 - path, method=method)[:, ::-1], abs=1e-12)
    assert (sequence_of(path, method).decided, sequence_of(1 - path, method).decided) == ("a", "b")


@pytest.mark.parametrize(("method", "wins"), [("betting", 10), ("mixture", 8)])
def test_all_wins_decide(method: str, wins: int):
    # Betting: 1.5^9 / 2 = 19.2 < 20 <= 1.5^10 / 2 = 28.8. Mixture: 2^7 / 8 = 16 < 20 <= 2^8 / 9 = 28.4.
    assert sequence_of([1] * (wins - 1), method).decided is None
    assert sequence_of([1] * wins, method).decided == "a"
    assert sequence_of([0] * wins, method).decided == "b"


@both
def test_ties_alone_never_decide(method: str):
    sequence = sequence_of([0.5] * 200, method)
    assert sequence.decided is None
    assert sequence.rate == 0.5
    assert sequence.low < 0.5 < sequence.high


@both
def test_a_drifting_rate_keeps_the_last_interval(method: str):
    """All wins, then all losses: no rate is left, and an interval must not turn inside out."""
    intervals = confidence_sequence([1] * 60 + [0] * 400, method=method)
    assert (intervals[:, 0] < intervals[:, 1]).all()


@pytest.mark.parametrize("rate", [0.65, 0.8])
def test_stopping_time_beside_the_fixed_test(rate: float):
    """Without knowing the rate, labels until decided are those of a fixed test that knows it, within a factor of 1.6; ties help betting."""
    fixed = fixed_sample_size(rate)

    def average(capital: Callable[..., Any], ties: float) -> float:
        decided = capital(outcomes(rate, ties, 1000, 1000), 0.5) >= 20
        assert decided.any(axis=-1).mean() > 0.99
        return float(np.where(decided.any(axis=-1), decided.argmax(axis=-1) + 1, 1000).mean())

    assert 0.9 * fixed < average(mixture_capital, 0.0) < 1.3 * fixed
    assert 0.9 * fixed < average(betting_capital, 0.0) < 1.6 * fixed
    assert average(betting_capital, 0.3) < 0.9 * fixed
    assert average(betting_capital, 0.3) < 0.8 * average(mixture_capital, 0.3)


def test_fixed_sample_size_by_hand():
    # Rate 1: 2 / 2^5 = 0.0625 is above 0.05, 2 / 2^6 = 0.03125 below. A level of 0.9 is met by 5.
    assert fixed_sample_size(1.0) == fixed_sample_size(0.0) == 6
    assert fixed_sample_size(1.0, level=0.9) == 5
    # 0.65 by the normal approximation: ((0.98 + 0.841621 * 0.476970) / 0.15)^2 = 84.8; the exact test is coarser and needs 90
    assert fixed_sample_size(0.65) == fixed_sample_size(0.35) == 90
    assert fixed_sample_size(0.65) < fixed_sample_size(0.65, power=0.9) < fixed_sample_size(0.6, power=0.9)
    # ((0.98 + 0.841621 * 0.499999) / 0.001)^2 = 1.4008^2 * 1e6, by the approximation
    assert fixed_sample_size(0.501) == pytest.approx(1.9622e6, rel=1e-3)


@pytest.mark.parametrize("rate", [0.6, 0.8])
def test_fixed_sample_size_has_the_power(rate: float):
    n = fixed_sample_size(rate)

    def power(n: int) -> float:
        rejects = [k for k in range(n + 1) if stats.binomtest(k, n).pvalue <= 0.05]
        return float(stats.binom.pmf(rejects, n, rate).sum())

    assert power(n) >= 0.8 > power(n - 1)


def test_stopping_reasons():
    even = sequence_of([1, 0] * 100, "mixture")
    assert stopping_reason(sequence_of([1] * 10), maximum=5) == "decided"
    assert stopping_reason(even) is None
    assert stopping_reason(even, maximum=201) is None
    assert stopping_reason(even, maximum=200) == "maximum"
    assert stopping_reason(even, half_width=even.half_width, maximum=200) == "precise"
    assert stopping_reason(WinRateSequence(), half_width=0.5, maximum=1) is None


def test_adding_leaves_the_old_sequence():
    first = WinRateSequence()
    first.add(1)
    assert (first.count, first.interval, first.rate, first.half_width, first.decided) == (0, (0.0, 1.0), 0.5, 0.5, None)
    assert confidence_sequence([]).shape == (0, 2)


def test_a_higher_level_is_wider():
    path = outcomes(0.6, 0.2, 1, 200)[0]
    narrow, wide = confidence_sequence(path, 0.8)[-1], confidence_sequence(path, 0.99)[-1]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WinRateSequence().add(1.5), "an outcome must be 0"),
        (lambda: WinRateSequence().add(math.nan), "an outcome must be 0"),
        (lambda: WinRateSequence(level=1.0), "level must be between 0 and 1, not 1.0"),
        (lambda: WinRateSequence(method="wald"), "method must be 'mixture' or 'betting', not 'wald'"),
        (lambda: confidence_sequence([1, -1]), "an outcome must be 0"),
        (lambda: betting_capital([2], 0.5), "outcomes must be a list of numbers"),
        (lambda: betting_capital([1], 0.5, level=0), "level must be between 0 and 1"),
        (lambda: mixture_capital(np.array(1), 0.5), "outcomes must be a list of numbers"),
        (lambda: mixture_capital([1], 1.5), "mean must be 0 to 1"),
        (lambda: fixed_sample_size(0.5), r"rate must be 0 to 1 and not 0\.5"),
        (lambda: fixed_sample_size(0.6, power=1), "power must be between 0 and 1"),
        (lambda: stopping_reason(WinRateSequence(), half_width=-0.1), r"half_width must be 0 to 0\.5"),
        (lambda: stopping_reason(WinRateSequence(), maximum=0), "maximum must be at least 1"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("confseq") is None, reason="confseq is not installed (it needs a C++ compiler)")
def test_betting_is_confseqs():
    from confseq.betting import hedged_cs  # pyright: ignore[reportMissingImports]

    # Theirs bets by log(1 / alpha), not log(2 / alpha): bets 10 % smaller, and rounds outward by one more candidate: 0.004 here.
    path = outcomes(0.65, 0.2, 1, 200)[0]
    assert confidence_sequence(path)[-1] == pytest.approx(np.stack(hedged_cs(path), axis=-1)[-1], abs=0.01)


def test_sequential_imports_no_torch():
    code = "import sys, humanward.maths.sequential; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
