"""How many labels are enough: intervals of a win rate that hold however often one looks. numpy and scipy only: imports no torch.

A 95 % interval of ``statistics`` covers 95 % of the time at ONE number of labels fixed beforehand. Whoever looks after every label and
stops when 1/2 lies outside is wrong far more often. A confidence sequence covers at all times at once, so stopping at any of them is sound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

CANDIDATES: NDArray[np.float64] = np.arange(1001) / 1000
"""Candidate means. 1/2 is one of them, so rounding to the grid never delays a decision; it widens the interval by at most 0.002."""

TRUNCATION = 0.5
"""c of the betting method: the largest part of the capital that one outcome may lose. The paper advises 1/2 or 3/4; at a rate of 0.65
without ties 3/4 needs 180 labels on average to decide, 1/2 needs 126."""


def betting_capital(
    outcomes: Sequence[Any] | NDArray[Any], mean: float | int | Sequence[Any] | NDArray[Any], *, level: float | int = 0.95
) -> NDArray[np.float64]:
    """The hedged capital of a player who bets against "the outcomes have this mean", after every outcome.

        capital_t = max(up_t, down_t) / 2
        up_t   = prod_i (1 + min(bet_i, c / m)       * (x_i - m))
        down_t = prod_i (1 - min(bet_i, c / (1 - m)) * (x_i - m))
        bet_i  = sqrt(2 log(2 / alpha) / (variance_{i-1} * i * log(i + 1)))
        variance_i = (1/4 + sum_{j<=i} (x_j - mean_j)^2) / (i + 1),   mean_i = (1/2 + sum_{j<=i} x_j) / (i + 1)

    Waudby-Smith and Ramdas 2024 (arXiv:2010.09686), section 4: theorem 3 with theta = 1/2. Where m is the true mean, the chance that the
    capital ever reaches 1 / alpha is at most alpha (Ville 1939), whatever the distribution on [0, 1].

    Args:
        outcomes: [..., n], each 0 to 1.
        mean: m, 0 to 1; one number, or one per row of ``outcomes``.
        level: 1 - alpha, 0 to 1. It only sets the size of the bets; the guarantee holds at every alpha.

    Returns:
        [..., n] capital, > 0, from a start of 1. One win against m = 1/2: the bet is truncated to 1, (1 + 1 * 0.5) / 2 = 0.75.

    Raises:
        ValueError: an outcome or ``mean`` is not 0 to 1, or ``level`` not between 0 and 1.
    """
    x, m = _checked(outcomes, mean)
    _check_level(level)
    i = np.arange(1, x.shape[-1] + 1)
    deviations = np.cumsum((x - (0.5 + np.cumsum(x, axis=-1)) / (i + 1)) ** 2, axis=-1)
    before = np.concatenate([np.zeros_like(x[..., :1]), deviations[..., :-1]], axis=-1)  # a bet is placed before its outcome is seen
    up, down = _log_factors(x, m, _bet(before, i, level))
    return np.exp(np.maximum(np.cumsum(up, axis=-1), np.cumsum(down, axis=-1)) - math.log(2))


def mixture_capital(outcomes: Sequence[Any] | NDArray[Any], mean: float | int | Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
    """The beta-binomial mixture against "the outcomes have this mean", after every outcome: exact for wins and losses.

        capital_t = B(1 + s, 1 + t - s) / (m^s * (1 - m)^(t - s)),   s = x_1 + ... + x_t

    the likelihood ratio of all means, weighted alike, to m (Ville 1939; Robbins 1970). Outcomes between 0 and 1 are allowed: the ratio
    (q/m)^x ((1-q)/(1-m))^(1-x) is convex in x, thus at most its chord, whose expectation is 1 (Hoeffding 1963). Ties therefore only make it
    cautious. Where m is the true mean, the chance that the capital ever reaches 1 / alpha is at most alpha.

    Args:
        outcomes: [..., n], each 0 to 1.
        mean: m, 0 to 1; one number, or one per row of ``outcomes``.

    Returns:
        [..., n] capital, > 0, from a start of 1; infinite where m is impossible. n wins against m = 1/2 give 2^n / (n + 1).

    Raises:
        ValueError: an outcome or ``mean`` is not 0 to 1.
    """
    x, m = _checked(outcomes, mean)
    return np.exp(_log_mixture(np.cumsum(x, axis=-1), np.arange(1, x.shape[-1] + 1), m))


@dataclass(frozen=True, slots=True, eq=False)
class WinRateSequence:
    """A confidence sequence of the win rate of a over b, one outcome at a time, in O(candidates) each.

        interval_t = {m : max_{i<=t} capital_i(m) < 1 / alpha}

    rounded outward to the grid of ``CANDIDATES``. Its chance of ever missing the true rate, at any of all the times one looks, is at most
    1 - level, provided that each outcome has that rate as its mean given those before. Waudby-Smith and Ramdas 2024 (arXiv:2010.09686),
    section 4, with the running intersection.

    ``betting`` (``betting_capital``) adapts to the variance, ``mixture`` (``mixture_capital``) is exact without ties. Labels until decided,
    on average at a rate of 0.65: no ties 126 and 103, 30 % ties 72 and 106. So take ``mixture`` where labelers cannot answer "tie".
    Choose before the first outcome: picking the shorter interval afterwards voids the level.
    """

    level: float | int = 0.95
    method: str = "betting"
    count: int = 0
    """Outcomes so far."""
    total: float | int = 0.0
    """Sum of the outcomes: wins + ties / 2."""
    low: float = 0.0
    high: float = 1.0
    _deviations: float | int = field(default=0.0, repr=False)
    _log_up: NDArray[np.float64] = field(default_factory=lambda: np.zeros_like(CANDIDATES), repr=False)
    _log_down: NDArray[np.float64] = field(default_factory=lambda: np.zeros_like(CANDIDATES), repr=False)

    def __post_init__(self) -> None:
        _check_level(self.level)
        if self.method not in ("mixture", "betting"):
            raise ValueError(f"method must be 'mixture' or 'betting', not {self.method!r}")

    @property
    def rate(self) -> float:
        """(wins + ties / 2) / all, 0 to 1; 1/2 before the first outcome."""
        return self.total / self.count if self.count else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high): never wider than before. The ends are themselves excluded, but for 0 and 1."""
        return self.low, self.high

    @property
    def half_width(self) -> float:
        """(high - low) / 2: 1/2 before the first outcome."""
        return (self.high - self.low) / 2

    @property
    def decided(self) -> Literal["a", "b"] | None:
        """Which side is better, once 1/2 is excluded; wrong with a chance of at most 1 - level over the whole sequence."""
        # The ends are excluded candidates, so an end at 1/2 excludes 1/2.
        return "a" if self.low >= 0.5 else "b" if self.high <= 0.5 else None

    def add(self, outcome: float | int) -> WinRateSequence:
        """The sequence after one more outcome; this one stays as it is.

        Args:
            outcome: 1 a win of a, 1/2 a tie, 0 a loss; anything between is allowed.

        Returns:
            The new sequence. Where no candidate is left (the rate drifted, or the one case in 20), the interval stays the last one.

        Raises:
            ValueError: ``outcome`` is not 0 to 1.
        """
        if not 0 <= outcome <= 1:
            raise ValueError(f"an outcome must be 0 (loss) to 1 (win), 1/2 for a tie, not {outcome}")
        count, total = self.count + 1, self.total + outcome
        if self.method == "mixture":
            log_capital = _log_mixture(total, count, CANDIDATES)
            log_up = np.where(total / count > CANDIDATES, log_capital, -np.inf)
            log_down = np.where(total / count < CANDIDATES, log_capital, -np.inf)
            threshold = -math.log(1 - self.level)
        else:
            up, down = _log_factors(outcome, CANDIDATES, _bet(self._deviations, count, self.level))
            log_up, log_down = self._log_up + up, self._log_down + down
            threshold = math.log(2) - math.log(1 - self.level)
        # log_up falls with m and log_down rises (theorem 3): what each excludes lies at one side.
        low = max(self.low, float(np.max(CANDIDATES, where=log_up >= threshold, initial=0.0)))
        high = min(self.high, float(np.min(CANDIDATES, where=log_down >= threshold, initial=1.0)))
        low, high = (low, high) if low < high else self.interval
        deviations = self._deviations + (outcome - (0.5 + total) / (count + 1)) ** 2
        new = replace(self, count=count, total=total, low=low, high=high, _deviations=deviations)
        return replace(new, _log_up=log_up, _log_down=log_down) if self.method == "betting" else new


def confidence_sequence(outcomes: Iterable[Any], level: float | int = 0.95, method: str = "betting") -> NDArray[np.float64]:
    """The interval after every outcome; see ``WinRateSequence``.

    Args:
        outcomes: in the order in which they came; 1 a win, 1/2 a tie, 0 a loss.
        level: 0 to 1; higher is wider.
        method: ``mixture`` or ``betting``.

    Returns:
        [n, 2] (low, high). 10 wins alone are the first to give low >= 0.5: 1.5^10 / 2 = 28.8 reaches 20, 1.5^9 / 2 = 19.2 does not.
        By ``mixture`` 8 are: 2^8 / 9 = 28.4, 2^7 / 8 = 16.

    Raises:
        ValueError: an outcome is not 0 to 1, ``level`` not between 0 and 1, or ``method`` unknown.
    """
    sequence, rows = WinRateSequence(level, method), []
    for outcome in outcomes:
        sequence = sequence.add(float(outcome))
        rows.append(sequence.interval)
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def stopping_reason(
    sequence: WinRateSequence, *, half_width: float | int = 0.0, maximum: int | None = None
) -> Literal["decided", "precise", "maximum"] | None:
    """Why to ask for no more labels, or None: go on.

    Args:
        sequence: of all outcomes so far.
        half_width: precise enough, in units of the rate, 0 to 1/2: the two sides are then that close to even. 0: never by width.
        maximum: outcomes to collect at most, >= 1. None: no end.

    Returns:
        "decided" where 1/2 is excluded, else "precise" where the interval is narrow enough, else "maximum", else None.

    Raises:
        ValueError: ``half_width`` is not 0 to 1/2, or ``maximum`` below 1.
    """
    if not 0 <= half_width <= 0.5:
        raise ValueError(f"half_width must be 0 to 0.5, not {half_width}")
    if maximum is not None and maximum < 1:
        raise ValueError(f"maximum must be at least 1, not {maximum}; None for no end")
    if sequence.decided:
        return "decided"
    if sequence.count and sequence.half_width <= half_width:
        return "precise"
    return "maximum" if maximum is not None and sequence.count >= maximum else None


def fixed_sample_size(rate: float | int, power: float | int = 0.8, level: float | int = 0.95) -> int:
    """How many wins and losses a test of fixed size against 1/2 needs: what a sequence competes with.

        the least n with P(K <= k or K >= n - k) >= power,   K ~ Binomial(n, rate)
        k the largest with P(Binomial(n, 1/2) <= k) <= alpha / 2

    the two-sided exact binomial test (``sign_test``). Its power saws, so a few larger n have slightly less. Above 100 000 by the normal
    approximation, n = ((z_{1-alpha/2} / 2 + z_power * sqrt(rate (1 - rate))) / (rate - 1/2))^2, which is then right to 0.1 %.

    Args:
        rate: the true win rate without ties, 0 to 1 and not 1/2; nearer to 1/2 needs more.
        power: chance to see the difference, 0 to 1; higher needs more.
        level: 1 - alpha, 0 to 1; higher needs more.

    Returns:
        n, >= 1. Rate 1 needs 6: 2 / 2^6 = 0.031 is the first below 0.05.

    Raises:
        ValueError: ``rate`` is 1/2 or not 0 to 1, or ``power`` or ``level`` not between 0 and 1.
    """
    if not 0 <= rate <= 1 or rate == 0.5:
        raise ValueError(f"rate must be 0 to 1 and not 0.5, not {rate}; no number of labels tells 0.5 from 0.5")
    if not 0 < power < 1:
        raise ValueError(f"power must be between 0 and 1, not {power}")
    _check_level(level)
    tail = (1 - level) / 2
    z_level, z_power = -float(stats.norm.ppf(tail)), float(stats.norm.ppf(power))
    normal = ((z_level / 2 + z_power * math.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2
    if normal > 100_000:
        return math.ceil(normal)
    start = 1
    while True:
        n = np.arange(start, start + 1000)
        k = stats.binom.ppf(tail, n, 0.5)
        k = np.where(stats.binom.cdf(k, n, 0.5) <= tail, k, k - 1)
        enough = stats.binom.cdf(k, n, rate) + stats.binom.sf(n - k - 1, n, rate) >= power
        if enough.any():
            return int(n[np.argmax(enough)])
        start += 1000


def _bet(deviations: NDArray[Any] | float | int, i: NDArray[Any] | int, level: float | int) -> Any:
    """The predictable plug-in bet on outcome i, from the summed square deviations of the outcomes before it."""
    variance = (0.25 + deviations) / i
    return np.sqrt(2 * math.log(2 / (1 - level)) / (variance * i * np.log(i + 1)))


def _log_factors(x: NDArray[Any] | float | int, m: NDArray[Any], bet: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By what outcome x multiplies the capitals that bet above and below m. Truncated: never less than 1 - c, so logarithms exist."""
    with np.errstate(divide="ignore"):
        up, down = np.minimum(bet, TRUNCATION / m), np.minimum(bet, TRUNCATION / (1 - m))
    return np.log1p(up * (x - m)), np.log1p(-down * (x - m))


def _log_mixture(total: NDArray[Any] | float | int, count: NDArray[Any] | int, m: NDArray[Any]) -> NDArray[np.float64]:
    losses = count - total
    return special.betaln(1 + total, 1 + losses) - special.xlogy(total, m) - special.xlog1py(losses, -m)


def _checked(
    outcomes: Sequence[Any] | NDArray[Any], mean: float | int | Sequence[Any] | NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outcomes [..., n] and means [..., 1] or []."""
    x, m = np.asarray(outcomes, np.float64), np.asarray(mean, np.float64)
    if x.ndim == 0 or not np.all((x >= 0) & (x <= 1)):
        raise ValueError("outcomes must be a list of numbers from 0 (loss) to 1 (win), 1/2 for a tie")
    if not np.all((m >= 0) & (m <= 1)):
        raise ValueError(f"mean must be 0 to 1, not {mean}")
    return x, m[..., None] if m.ndim else m


def _check_level(level: float | int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
