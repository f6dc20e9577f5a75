"""How carefully a labeler works: agreement with a researcher, gold and repeated questions, time, place, and flags.

numpy and scipy only: imports no torch. N questions of one labeler, in the order of answering; K responses shown with each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from humanward.maths.agreement import Floats, Options, Values, checked_options
from humanward.maths.statistics import clopper_pearson, wilson_interval


class Proportion(NamedTuple):
    """A share of trials, and how sure it is."""

    successes: int
    trials: int
    rate: float | None
    """successes / trials, or None without trials."""
    low: float
    high: float


class PositionBias(NamedTuple):
    """Where on the screen a labeler's choices lay, and how well chance explains it."""

    counts: tuple[int, ...]
    shares: tuple[float, ...] | None
    """Of all answers, per place; None without answers."""
    p_value: float
    """Of "every shown place is equally likely"; 1 without answers."""
    method: Literal["exact", "chi_square"]


class SequentialTest(NamedTuple):
    """Evidence against a hypothesis, looked at after every label."""

    flagged_at: int | None
    """Number of labels after which the evidence first sufficed; None: never."""
    log_evidence: float
    """Largest log e-value so far, nats; 0 is none, flagged at log(1 / alpha)."""


class LabelerFlags(NamedTuple):
    """Whether a labeler answers without reading."""

    one_place: SequentialTest
    """Always the left, or always another place."""
    random: SequentialTest
    """Agreement with others no better than chance."""

    @property
    def flagged(self) -> bool:
        """Whether either test accuses."""
        return self.one_place.flagged_at is not None or self.random.flagged_at is not None


def researcher_agreement(labels: Values, researcher: Values, *, confidence: float = 0.95) -> Proportion:
    """Share of items on which a labeler (or a consensus) says what the researcher says, with Wilson's interval.

    Args:
        labels: [N], NaN where there is none.
        researcher: [N], the same items.
        confidence: of the interval, 0 to 1.

    Returns:
        Proportion over the items that both labelled; without any, rate None and interval (0, 1).

    Raises:
        ValueError: lengths differ.
    """
    return _wilson(*_matches(labels, researcher), confidence)


def position_bias(places: Values, options: Options) -> PositionBias:
    """Share of a labeler's choices at each shown place, tested against "all places are equally likely".

        X^2 = (O - E)' V^+ (O - E),    E_j = sum_i [j < K_i] / K_i,    V = sum_i diag(p_i) - p_i p_i'

    With one K for all this is Pearson's chi-square with K - 1 degrees of freedom. Fewer than 5 answers per place, one K of at most 10: the
    exact multinomial test, the probability of all outcomes no likelier than this one. Looked at once: for a watch, ``one_place_test``.

    Args:
        places: [N] shown place of each chosen response, 0 = left. Leave ties out. Responses must have been shown in random order.
        options: K, how many places there were, a number or [N].

    Returns:
        Counts, shares and p-value. 5 of 5 at one of 2 places gives the exact p = 2 / 2^5 = 0.0625.

    Raises:
        ValueError: a place is not among its options.
    """
    where, K = _places(places, options)
    widest = int(K.max()) if len(K) else 0
    counts = np.bincount(where, minlength=widest)
    as_tuple = tuple(int(count) for count in counts)
    if len(where) == 0:
        return PositionBias(as_tuple, None, 1.0, "exact")
    shares = tuple(float(count) / len(where) for count in counts)
    if len(where) < 5 * widest and widest <= 10 and K.min() == widest:
        return PositionBias(as_tuple, shares, _exact_multinomial(as_tuple), "exact")
    p = (np.arange(widest) < K[:, None]) / K[:, None]
    off = counts - p.sum(axis=0)
    spread = np.diag(p.sum(axis=0)) - p.T @ p
    statistic = float(off @ np.linalg.pinv(spread, hermitian=True) @ off)
    return PositionBias(as_tuple, shares, float(stats.chi2.sf(statistic, widest - 1)) if widest > 1 else 1.0, "chi_square")


def repeat_consistency(first: Values, second: Values, *, confidence: float = 0.95) -> Proportion:
    """Share of questions that a labeler, shown them twice, answered the same way (as responses, not places), with Wilson's interval.

    Raises:
        ValueError: lengths differ.
    """
    return _wilson(*_matches(first, second), confidence)


def gold_accuracy(labels: Values, gold: Values, *, confidence: float = 0.95) -> Proportion:
    """Share of questions with a known answer that a labeler got right, with the exact interval: there are few, and pay may hang on it.

    Args:
        labels: [N], NaN where there is none.
        gold: [N] known answers, NaN where there is none.
        confidence: of the Clopper-Pearson interval, 0 to 1.

    Returns:
        Proportion; without any gold question, rate None and interval (0, 1).

    Raises:
        ValueError: lengths differ.
    """
    right, trials = _matches(labels, gold)
    return Proportion(right, trials, right / trials if trials else None, *clopper_pearson(right, trials, confidence))


def fast_answers(seconds: Values, words: Values, *, words_per_minute: float = 500.0, confidence: float = 0.95) -> Proportion:
    """Share of answers given faster than the texts can be read, with Wilson's interval.

        too fast: seconds < 60 * words / words_per_minute

    Args:
        seconds: [N] from the question's appearance to the answer, s.
        words: [N] that had to be read, prompt and all responses.
        words_per_minute: faster than anyone reads; lower accuses more. Adults read 238 on average (Brysbaert 2019); the default is about
            twice that, since a prompt may have been seen before.
        confidence: of the interval, 0 to 1.

    Returns:
        Proportion, successes being the answers that were too fast. 100 words have a floor of 12 s.

    Raises:
        ValueError: lengths differ, a number is negative or NaN, or ``words_per_minute`` is not positive.
    """
    seconds, words = np.asarray(seconds, dtype=float), np.asarray(words, dtype=float)
    if seconds.ndim != 1 or seconds.shape != words.shape:
        raise ValueError(f"seconds and words of shapes {seconds.shape} and {words.shape}; give one of each per answer")
    if not (seconds >= 0).all() or not (words >= 0).all() or not words_per_minute > 0:
        raise ValueError("seconds and words must not be negative or NaN, words_per_minute must be positive; drop answers without a time")
    return _wilson(int((seconds < 60 * words / words_per_minute).sum()), len(seconds), confidence)


def one_place_test(places: Values, options: Options, *, alpha: float = 0.005, share: float = 0.9, liking: float = 0.2) -> SequentialTest:
    """Does the labeler always choose one place? Valid at every look, however often one looks.

        E_n = mean over j of prod_{i <= n} share / t_i if j was chosen, else (1 - share) / (1 - t_i)
        t_i = 1 / K_i + liking (1 - 1 / K_i)

    A likelihood ratio of "place j with probability ``share``" to "place j with at most t_i", mixed over j: for who never chooses a place
    with more than t_i its mean is at most 1, so E_n >= 1 / alpha ever happens with probability <= alpha (Ville 1939; mixtures: Robbins
    1970). A mild liking for a place is thus no evidence: with K = 4, t = 0.4, and the evidence grows only above 69 % at one place.

    Args:
        places: [N] shown place of each chosen response in the order of answering, 0 = left. Leave ties out.
        options: K, a number or [N].
        alpha: chance of ever flagging a labeler who chooses no place with more than t_i, 0 to 1.
        share: of answers at one place that the test looks for, above t_i, below 1.
        liking: how much of the way from 1 / K to 1 a careful labeler may lean to a place, 0 to 1; higher spares more and takes more labels.

    Returns:
        Where it was flagged, and the evidence. Always left is flagged at label 9 with K = 4, at label 15 with K = 2.

    Raises:
        ValueError: a place is not among its options, or ``alpha``, ``share`` or ``liking`` is out of range.
    """
    where, K = _places(places, options)
    _check_alpha(alpha)
    several = K > 1  # with one place there is no choice
    most = np.where(several, 1 / K + liking * (1 - 1 / K), 0.5)
    if not 0 <= liking < 1 or not 0 < share < 1 or not (share > most[several]).all():
        raise ValueError(f"share must be above 1 / K + liking (1 - 1 / K) and below 1, and liking 0 to 1, not {share} and {liking}")
    if len(where) == 0:
        return SequentialTest(None, 0.0)
    columns = np.arange(K.max())
    hit, miss = np.log(share / most)[:, None], np.log((1 - share) / (1 - most))[:, None]
    steps = np.where(columns == where[:, None], hit, miss) * (several[:, None] & (columns < K[:, None]))
    return _first_crossing(np.logaddexp.reduce(np.cumsum(steps, axis=0), axis=1) - math.log(len(columns)), alpha)


def chance_agreement_test(agrees: Values, options: Options, *, alpha: float = 0.005, least_kappa: float = 0.3) -> SequentialTest:
    """Does the labeler agree with others no better than chance? Valid at every look, however often one looks.

        E_n = prod_{i <= n} (1 / K_i) / h_i if i agrees, else (1 - 1 / K_i) / (1 - h_i),    h_i = 1 / K_i + least_kappa (1 - 1 / K_i)

    Wald's likelihood ratio (1945) of "chance" to "honest", h being the agreement of the least agreeing honest labeler: whoever agrees at
    least so often is ever flagged with probability <= alpha (Ville 1939).

    careful: the promise ends at h. Where honest labelers agree with each other less, because questions are hard or few others answered,
    they will be flagged; measure their agreement with ``consensus_of_others`` first and set ``least_kappa`` below it.

    Args:
        agrees: [N] 1 or 0 in the order of answering: does the label equal ``consensus_of_others``? NaN where there is no consensus.
        options: K, how many answers could be given, a number or [N].
        alpha: chance of ever flagging an honest labeler, 0 to 1.
        least_kappa: chance-corrected agreement with the others that every honest labeler has, 0 to 1. Lower spares more honest labelers
            of hard questions and takes more labels: random answers with K = 4 take 46 labels (median) at 0.3 and 93 at 0.2, with K = 2
            about 100 and 220.

    Returns:
        Where it was flagged (labels without consensus count as labels), and the evidence.

    Raises:
        ValueError: ``agrees`` holds something else than 0, 1 and NaN, or another argument is out of range.
    """
    hits = np.asarray(agrees, dtype=float)
    if hits.ndim != 1 or not (np.isnan(hits) | (hits == 0) | (hits == 1)).all():
        raise ValueError("agrees must be a list of 0, 1 and NaN, one per label")
    _check_alpha(alpha)
    if not 0 < least_kappa < 1:
        raise ValueError(f"least_kappa must be between 0 and 1, not {least_kappa}")
    if len(hits) == 0:
        return SequentialTest(None, 0.0)
    chance = 1 / checked_options(options, len(hits))
    told = ~np.isnan(hits) & (chance < 1)  # with one option everyone agrees
    honest = chance + least_kappa * (1 - chance)
    # (1 - chance) / (1 - honest) = 1 / (1 - least_kappa), whatever K
    steps = np.where(hits == 1, np.log(chance / honest), -math.log(1 - least_kappa)) * told
    return _first_crossing(np.cumsum(steps), alpha)


def flag_labeler(
    places: Values,
    agrees: Values,
    options: Options,
    *,
    false_alarm: float = 0.01,
    share: float = 0.9,
    liking: float = 0.2,
    least_kappa: float = 0.3,
) -> LabelerFlags:
    """Flags labelers who always choose one place or choose at random; both tests at half of ``false_alarm`` each (Bonferroni).

    Args:
        places: [N] shown place of each chosen response in the order of answering, 0 = left.
        agrees: [N] 1 or 0, or NaN without a consensus of others.
        options: K, a number or [N].
        false_alarm: chance that one honest labeler is ever flagged; divide it by the number of labelers to bound it for all of them.
        share: see ``one_place_test``.
        liking: see ``one_place_test``.
        least_kappa: see ``chance_agreement_test``.

    Returns:
        Both tests; whoever always chooses one place also agrees by chance only, so both may be flagged.

    Raises:
        ValueError: as the two tests do, or ``false_alarm`` is not between 0 and 1.
    """
    _check_alpha(false_alarm)
    return LabelerFlags(
        one_place_test(places, options, alpha=false_alarm / 2, share=share, liking=liking),
        chance_agreement_test(agrees, options, alpha=false_alarm / 2, least_kappa=least_kappa),
    )


def _places(places: Values, options: Options) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    where = np.asarray(places, dtype=float)
    if where.ndim != 1:
        raise ValueError(f"places of shape {where.shape}; give one list")
    K = checked_options(options, len(where))
    if not ((where >= 0) & (where < K) & (where == np.floor(where))).all():
        raise ValueError("a place is not among its options 0 to K - 1; leave ties and unanswered questions out")
    return where.astype(np.int64), K


def _matches(a: Values, b: Values) -> tuple[int, int]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"labels of shapes {a.shape} and {b.shape}; give two lists of the same length, NaN where there is no label")
    both = ~np.isnan(a) & ~np.isnan(b)
    return int((a[both] == b[both]).sum()), int(both.sum())


def _wilson(successes: int, trials: int, confidence: float) -> Proportion:
    return Proportion(successes, trials, successes / trials if trials else None, *wilson_interval(successes, trials, confidence))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"the chance of a false alarm must be between 0 and 1, not {alpha}")


def _first_crossing(log_evidence: Floats, alpha: float) -> SequentialTest:
    crossed = np.flatnonzero(log_evidence >= -math.log(alpha))
    return SequentialTest(int(crossed[0]) + 1 if len(crossed) else None, max(0.0, float(log_evidence.max())))


def _exact_multinomial(counts: tuple[int, ...]) -> float:
    """p-value of equal probabilities. Outcomes that differ by order are equally likely: walk the partitions and count their orders."""
    n, K = sum(counts), len(counts)

    def log_probability(outcome: tuple[int, ...]) -> float:
        return math.lgamma(n + 1) - sum(math.lgamma(c + 1) for c in outcome) - n * math.log(K)

    limit = log_probability(counts) + 1e-9
    total = 0.0
    for outcome in _partitions(n, K, n):
        if (log_p := log_probability(outcome)) <= limit:
            orders = math.factorial(K)
            for c in set(outcome):
                orders //= math.factorial(outcome.count(c))
            total += orders * math.exp(log_p)
    return min(1.0, total)


def _partitions(n: int, parts: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Every way to write n as ``parts`` falling numbers, none above ``largest``."""
    if parts == 1:
        if n <= largest:
            yield (n,)
        return
    for first in range(min(n, largest), -(-n // parts) - 1, -1):
        for rest in _partitions(n - first, parts - 1, first):
            yield first, *rest
