from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from humanward.maths import (
    agreement_interval,
    chance_agreement_test,
    clopper_pearson,
    cohen_kappa,
    consensus_of_others,
    fast_answers,
    flag_labeler,
    fleiss_kappa,
    gold_accuracy,
    krippendorff_alpha,
    label_table,
    observed_agreement,
    one_place_test,
    position_bias,
    repeat_consistency,
    researcher_agreement,
    wilson_interval,
)

NAN = math.nan
MEASURES = ("observed", "cohen", "cohen_linear", "cohen_quadratic", "fleiss", "alpha_nominal", "alpha_ordinal", "alpha_interval")
METRICS = ("nominal", "ordinal", "interval")

# Krippendorff 2011, section C: 4 observers, 12 units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T

# The table of 10 subjects by 5 categories, 14 raters, worked out on Wikipedia's page of Fleiss' kappa.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def random_table(seed: int, N: int = 30, L: int = 5, C: int = 4, missing: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = rng.integers(C, size=(N, 1))
    table = np.where(rng.random((N, L)) < 0.5, truth, rng.integers(C, size=(N, L))).astype(float)
    table[rng.random((N, L)) < missing] = NAN
    return table


def every_coefficient(table):
    yield observed_agreement(table, 4)
    yield fleiss_kappa(table)
    for metric in METRICS:
        yield krippendorff_alpha(table, metric=metric)


# Published examples


def test_cohens_example():
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed 35/50 = 0.7, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa 0.2 / 0.5 = 0.4
    a, b = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(a, b) == (pytest.approx(0.7), pytest.approx(0.5), pytest.approx(0.4), 50, 50)


def test_weighted_kappa_by_hand():
    # a 0 1 2, b 0 1 1. Linear: observed 1/3; margins (1 1 1)/3 and (1 2 0)/3 give |i-j| sums (0*1+1*2 + 1*1+0*2 + 2*1+1*2)/9 = 7/9.
    assert cohen_kappa([0, 1, 2], [0, 1, 1], weights="linear").coefficient == pytest.approx(1 - (1 / 3) / (7 / 9))
    # Quadratic: the sum is (2 + 1 + 4 + 2)/9 = 1.
    assert cohen_kappa([0, 1, 2], [0, 1, 1], weights="quadratic").coefficient == pytest.approx(1 - 1 / 3)


def test_fleiss_example():
    table = np.array([np.repeat(np.arange(5), row) for row in FLEISS])
    result = fleiss_kappa(table)
    assert (result.observed, result.chance, result.coefficient) == (
        pytest.approx(0.378, abs=5e-4),
        pytest.approx(0.213, abs=5e-4),
        pytest.approx(0.210, abs=5e-4),
    )
    assert (result.items, result.pairs) == (10, 10 * 91)


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_example(metric, alpha):
    result = krippendorff_alpha(KRIPPENDORFF, metric=metric)
    assert result.coefficient == pytest.approx(alpha, abs=5e-4)
    assert result.items == 11  # unit 12 has one label


def test_observed_agreement_by_hand():
    # Items: 2 of 2 equal -> 1; a a b -> 1 of 3 pairs; one label -> left out. Mean 2/3. Chance (1/4 + 1/2) / 2 = 3/8.
    result = observed_agreement([[0, 0, NAN], [1, 1, 0], [2, NAN, NAN]], [4, 2, 3])
    assert result == (pytest.approx(2 / 3), pytest.approx(3 / 8), pytest.approx((2 / 3 - 3 / 8) / (5 / 8)), 2, 4)
    assert observed_agreement([[0, 0], [0, 1]]) == (0.5, None, None, 2, 2)


# Slow loops


@pytest.mark.parametrize("seed", range(5))
def test_observed_and_fleiss_are_their_loops(seed):
    table = random_table(seed)
    rows = [[v for v in row if not math.isnan(v)] for row in table]
    shares = [np.mean([a == b for a, b in itertools.combinations(row, 2)]) for row in rows if len(row) > 1]
    p = [np.mean([row.count(c) / len(row) for row in rows if row]) for c in range(4)]
    P, P_e = np.mean(shares), sum(x * x for x in p)
    assert observed_agreement(table).observed == pytest.approx(P)
    assert fleiss_kappa(table).coefficient == pytest.approx((P - P_e) / (1 - P_e))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", METRICS)
def test_alpha_is_its_coincidence_matrix(seed, metric):
    values = np.array([0.0, 1.0, 3.0, 7.0])
    codes = random_table(seed)
    o = np.zeros((4, 4))
    for row in codes:
        told = [int(c) for c in row if not math.isnan(c)]
        for a, b in itertools.permutations(told, 2):
            o[a, b] += 1 / (len(told) - 1)
    n_c, n = o.sum(1), o.sum()
    d = np.zeros((4, 4))
    for c, k in itertools.product(range(4), repeat=2):
        between = n_c[min(c, k) : max(c, k) + 1].sum() - (n_c[c] + n_c[k]) / 2
        d[c, k] = {"nominal": c != k, "ordinal": between**2 if c != k else 0, "interval": (values[c] - values[k]) ** 2}[metric]
    expected = 1 - (n - 1) * (o * d).sum() / (np.outer(n_c, n_c) * d).sum()
    table = np.where(np.isnan(codes), NAN, values[np.nan_to_num(codes).astype(int)])
    result = krippendorff_alpha(table, metric=metric)
    assert result.coefficient == pytest.approx(expected)
    assert result.coefficient == pytest.approx((result.observed - result.chance) / (1 - result.chance))
    assert 0 <= result.chance <= 1


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_cohen_is_its_loop(weights):
    table = random_table(1, N=60, L=2, missing=0.2) * 2
    both = [(a, b) for a, b in table if not math.isnan(a + b)]
    w = {None: lambda a, b: a != b, "linear": lambda a, b: abs(a - b), "quadratic": lambda a, b: (a - b) ** 2}[weights]
    expected = 1 - np.mean([w(a, b) for a, b in both]) / np.mean([w(a, b) for a, _ in both for _, b in both])
    result = cohen_kappa(*table.T, weights=weights)
    assert result.coefficient == pytest.approx(expected)
    assert result.items == len(both)


# Invariances and directions


def test_order_and_names_do_not_matter():
    rng, table = np.random.default_rng(0), random_table(3)
    shuffled = table[rng.permutation(len(table))]
    by_item = np.array([row[rng.permutation(len(row))] for row in table])  # the measures know no labelers
    for other in (shuffled, table[:, ::-1], by_item):
        assert [tuple(r) for r in every_coefficient(other)] == [pytest.approx(tuple(r)) for r in every_coefficient(table)]
    names = np.array([30.0, -2.0, 7.0, 5.0])
    renamed = np.where(np.isnan(table), NAN, names[np.nan_to_num(table).astype(int)])
    for nominal in (fleiss_kappa, observed_agreement, krippendorff_alpha, lambda t: cohen_kappa(t[:, 0], t[:, 1])):
        assert tuple(nominal(renamed)) == pytest.approx(tuple(nominal(table)))
    assert krippendorff_alpha(np.exp(table), metric="ordinal") == pytest.approx(tuple(krippendorff_alpha(table, metric="ordinal")))
    assert krippendorff_alpha(5 * table - 1e6, metric="interval").coefficient == pytest.approx(
        krippendorff_alpha(table, metric="interval").coefficient, abs=1e-9
    )
    a, b = table[:, 0], table[:, 1]
    assert cohen_kappa(a, b, weights="linear") == pytest.approx(tuple(cohen_kappa(b, a, weights="linear")))


def test_perfect_agreement_is_one_and_noise_is_zero():
    perfect = np.repeat(np.arange(12)[:, None] % 4, 3, axis=1)
    noise = np.random.default_rng(5).integers(4, size=(4000, 3))
    for good, bad in zip(every_coefficient(perfect), every_coefficient(noise), strict=True):
        assert (good.observed, good.coefficient) == (pytest.approx(1), pytest.approx(1))
        assert bad.coefficient == pytest.approx(0, abs=0.03)  # standard error about 0.01
        assert bad.observed == pytest.approx(bad.chance, abs=0.03)
    # Two labelers who always differ are below chance.
    assert [r.coefficient < 0 for r in every_coefficient([[0, 1], [1, 0], [0, 1], [1, 0]])] == [True] * 5


def test_two_labelers_with_quadratic_weights_near_alpha():
    # Interval alpha and quadratic kappa differ only by pooled margins and 1/n: Krippendorff 2011.
    table = random_table(2, N=2000, L=2, missing=0)
    assert cohen_kappa(*table.T, weights="quadratic").coefficient == pytest.approx(
        krippendorff_alpha(table, metric="interval").coefficient, abs=0.01
    )


# Degenerate cases


@pytest.mark.parametrize("table", [np.empty((0, 3)), np.full((4, 3), NAN), [[1, NAN], [NAN, 2]], np.empty((3, 0))])
def test_without_two_labels_there_is_nothing_to_say(table):
    assert [tuple(r) for r in every_coefficient(table)] == [(None, None, None, 0, 0)] * 5
    if np.shape(table)[1] == 2:
        assert tuple(cohen_kappa(*np.transpose(table))) == (None, None, None, 0, 0)
    for measure in MEASURES if np.shape(table)[1] == 2 else ("observed", "fleiss", "alpha_ordinal"):
        assert agreement_interval(table, measure, 0) is None


def test_one_category_has_no_coefficient():
    table = np.full((5, 2), 3.1)
    for result in (cohen_kappa(*table.T, weights="linear"), cohen_kappa(*table.T), *list(every_coefficient(table))[1:]):
        assert result == (1.0, 1.0, None, 5, 5)
    assert observed_agreement(table, 1) == (1.0, 1.0, None, 5, 5)
    assert agreement_interval(table, "fleiss", 0) is None
    assert agreement_interval(table, "observed", 0) == (1.0, 1.0)


def test_wrong_input_is_named():
    for call, words in (
        (lambda: observed_agreement([1, 2]), "items by labelers"),
        (lambda: observed_agreement([[0, 1], [0, 0]], [1, 2]), "item 0 has more different labels"),
        (lambda: observed_agreement([[0, 1]], [2, 2]), "one number or one each"),
        (lambda: fleiss_kappa([[math.inf, 1]]), "infinite"),
        (lambda: cohen_kappa([1], [1, 2]), "same length"),
        (lambda: agreement_interval([[1, 1, 1]], "cohen", 0), "two labelers"),
        (lambda: position_bias([4], 4), "not among its options"),
        (lambda: one_place_test([0], 4, share=0.2), "share must be"),
        (lambda: chance_agreement_test([2], 4), "0, 1 and NaN"),
        (lambda: flag_labeler([0], [1], 4, false_alarm=0.0), "false alarm"),
        (lambda: fast_answers([-1], [3]), "negative"),
        (lambda: label_table([("q", "l", 1), ("q", "l", 2)]), "twice"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_unknown_names_are_refused():
    for call in (
        lambda: krippendorff_alpha([[1, 1]], metric="ratio"),  # type: ignore[arg-type]
        lambda: cohen_kappa([1], [1], weights="cubic"),  # type: ignore[arg-type]
        lambda: agreement_interval([[1, 1]], "kappa", 0),  # type: ignore[arg-type]
    ):
        with pytest.raises((ValueError, TypeError)):  # TypeError: the annotations are checked under test
            call()


def test_table_of_rows():
    table = label_table([("q1", "ann", "b"), ("q1", "bob", "tie"), ("q2", "bob", "a")])
    np.testing.assert_array_equal(table.values, [[1, 2], [NAN, 0]])
    assert (table.items, table.labelers, table.categories) == (["q1", "q2"], ["ann", "bob"], ["a", "b", "tie"])
    assert label_table([("q", "ann", 7), ("q", "bob", -1), ("r", "bob", None), ("r", "ann", NAN)]).values.tolist() == [[7, -1]]


# Bootstrap


@pytest.mark.parametrize("measure", MEASURES)
def test_interval_is_a_loop_over_resampled_items(measure):
    table = random_table(4, N=25, L=2, missing=0)
    point = {
        "observed": lambda t: observed_agreement(t).observed,
        "fleiss": lambda t: fleiss_kappa(t).coefficient,
        "cohen": lambda t: cohen_kappa(*t.T).coefficient,
        "cohen_linear": lambda t: cohen_kappa(*t.T, weights="linear").coefficient,
        "cohen_quadratic": lambda t: cohen_kappa(*t.T, weights="quadratic").coefficient,
    }.get(measure, lambda t: krippendorff_alpha(t, metric=measure.removeprefix("alpha_")).coefficient)
    drawn = np.random.default_rng(7).integers(25, size=(40, 25))
    expected = np.quantile([point(table[rows]) for rows in drawn], [0.05, 0.95])
    assert agreement_interval(table, measure, 7, confidence=0.9, resamples=40) == pytest.approx(tuple(expected))


def test_interval_covers():
    # Noise: Fleiss' kappa is 0 but for -1 / labels; 95 % intervals of 60 tables of 100 items miss 3 on average, 10 with p < 0.001.
    missed = 0
    for seed in range(60):
        low, high = agreement_interval(np.random.default_rng(seed).integers(3, size=(100, 3)), "alpha_nominal", seed, resamples=200)
        missed += not low <= 0 <= high
    assert missed <= 10


def test_interval_is_fast():
    table = random_table(0, N=2000, L=8, C=5)
    started = time.process_time()
    for measure in ("fleiss", "alpha_ordinal"):
        assert agreement_interval(table, measure, 0) is not None
    assert time.process_time() - started < 4  # 2 s each


# Quality of a labeler


def test_proportions_by_hand():
    assert researcher_agreement([1, 2, NAN, 0], [1, 0, 1, 0]) == (2, 3, pytest.approx(2 / 3), *wilson_interval(2, 3))
    assert repeat_consistency([1, 2], [1, 2]) == (2, 2, 1.0, *wilson_interval(2, 2))
    assert gold_accuracy([1, 2, 3], [1, NAN, 2], confidence=0.9) == (1, 2, 0.5, *clopper_pearson(1, 2, 0.9))
    # 100 words at 500 a minute take 12 s.
    assert fast_answers([11.9, 12.0, 60.0], [100, 100, 100])[:2] == (1, 3)
    for empty in (researcher_agreement, repeat_consistency, gold_accuracy, fast_answers):
        assert empty([], []) == (0, 0, None, 0.0, 1.0)


def test_consensus_of_others_by_hand():
    table = [[0, 0, 1], [2, 1, NAN], [3, NAN, NAN], [0, 0, 0]]
    expected = [[NAN, NAN, 0], [1, 2, NAN], [NAN, 3, 3], [0, 0, 0]]
    np.testing.assert_array_equal(consensus_of_others(table), expected)
    assert np.isnan(consensus_of_others(np.full((2, 2), NAN))).all()


def test_position_bias_exact_by_hand_and_by_enumeration():
    assert position_bias([0] * 5, 2).p_value == pytest.approx(2 / 2**5)
    places = [0, 0, 0, 0, 1, 2, 0]
    counts = tuple(np.bincount(places, minlength=3))
    every = [tuple(np.bincount(outcome, minlength=3)) for outcome in itertools.product(range(3), repeat=7)]
    pmf = {c: stats.multinomial.pmf(c, 7, [1 / 3] * 3) for c in set(every)}
    expected = np.mean([pmf[c] <= pmf[counts] * (1 + 1e-9) for c in every])
    result = position_bias(places, 3)
    assert (result.counts, result.method, result.p_value) == ((5, 1, 1), "exact", pytest.approx(expected))
    assert position_bias([0, 1, 2], 3).p_value == pytest.approx(1)


def test_position_bias_is_pearsons_chi_square():
    places = np.repeat([0, 1, 2, 3], [40, 20, 22, 18])
    result = position_bias(places, 4)
    assert (result.p_value, result.method) == (pytest.approx(stats.chisquare([40, 20, 22, 18]).pvalue), "chi_square")
    assert result.shares == pytest.approx((0.4, 0.2, 0.22, 0.18))
    assert position_bias([], 4) == ((), None, 1.0, "exact")
    assert position_bias([0] * 9, 1).p_value == 1.0


def test_position_bias_with_mixed_options_is_level():
    rng, K = np.random.default_rng(0), np.repeat([2, 4], 60)
    p = [position_bias(rng.integers(K), K).p_value for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.033)  # three standard errors
    assert position_bias(np.zeros(120), K).p_value < 1e-9


def test_sequential_tests_by_hand():
    # One place, t = 0.25 + 0.2 * 0.75 = 0.4: after n lefts (2.25^n + 3 / 6^n) / 4. 2.25^8 / 4 = 164 < 200 <= 2.25^9 / 4 = 370.
    result = one_place_test([0] * 9, 4)
    assert result == (9, pytest.approx(math.log((2.25**9 + 3 / 6**9) / 4)))
    assert one_place_test([3] * 9, 4).flagged_at == 9
    assert one_place_test([0] * 15, 2).flagged_at == 15
    # Chance: h = 0.25 + 0.3 * 0.75 = 0.475; a miss 0.75 / 0.525 = 1/0.7, a hit 0.25 / 0.475. log 200 / log(1/0.7) = 14.9.
    assert chance_agreement_test([0] * 15, 4) == (15, pytest.approx(15 * math.log(1 / 0.7)))
    assert chance_agreement_test([NAN, 0, 0, 1], 4).log_evidence == pytest.approx(2 * math.log(1 / 0.7))
    assert chance_agreement_test([1, 0], 4).log_evidence == pytest.approx(max(0, math.log(0.25 / 0.475) + math.log(1 / 0.7)))
    for nothing in (one_place_test([], 4), chance_agreement_test([], 4), one_place_test([0] * 50, 1), chance_agreement_test([1] * 50, 1)):
        assert nothing == (None, 0.0)


@pytest.mark.parametrize("K", [2, 4, np.array([2, 3, 4, 9])])
def test_evidence_is_a_martingale_for_whom_it_spares(K):
    # Mean of the e-value over all sequences of four labels under the hypothesis is 1: Ville's condition.
    K = np.broadcast_to(K, 4)
    p_hit = 1 / K + 0.3 * (1 - 1 / K)
    # Only the last e-value counts, so read it from a test that cannot look back: prod of one-label factors.
    mean = 0.0
    for hits in itertools.product([0, 1], repeat=4):
        e = np.prod([(1 / k) / h if hit else (1 - 1 / k) / (1 - h) for k, h, hit in zip(K, p_hit, hits, strict=True)])
        mean += e * np.prod(np.where(hits, p_hit, 1 - p_hit))
        highest = chance_agreement_test(hits, K).log_evidence
        assert highest >= math.log(e) - 1e-9
    assert mean == pytest.approx(1)


def simulated_labelers(rng, kind: str, labelers: int, labels: int = 200, K: int = 4, agreement: float = 0.75):
    """[labelers, labels] places and agreement with a consensus that lies at random places."""
    best = rng.integers(K, size=(labelers, labels))
    if kind == "left":
        places = np.zeros_like(best)
    elif kind == "random":
        places = rng.integers(K, size=best.shape)
    else:
        missed = (best + rng.integers(1, K, size=best.shape)) % K
        places = np.where(rng.random(best.shape) < agreement, best, missed)
    return places, (places == best).astype(float)


@pytest.mark.parametrize(
    ("kind", "agreement", "low", "high"),
    [
        ("honest", 0.75, 0.0, 0.01),
        ("honest", 0.475, 0.0, 0.018),  # least_kappa itself: 1 % is the bound, and 1000 labelers have a standard error of 0.3 %
        ("left", 0.0, 0.95, 1.0),
        ("random", 0.0, 0.95, 1.0),
    ],
)
def test_flags_find_who_does_not_read_and_spare_who_does(kind, agreement, low, high):
    places, agrees = simulated_labelers(np.random.default_rng(11), kind, 1000, agreement=agreement)
    flags = [flag_labeler(p, a, 4) for p, a in zip(places, agrees, strict=True)]
    assert low <= np.mean([f.flagged for f in flags]) <= high
    if kind == "left":
        assert all(f.one_place.flagged_at == 9 for f in flags)


def test_consensus_of_others_finds_the_one_who_guesses():
    # Four honest labelers and a guesser; nobody knows the truth. Questions have 3 to 6 responses.
    rng, K = np.random.default_rng(3), np.random.default_rng(4).integers(3, 7, size=200)[:, None]
    for _ in range(20):
        best = rng.integers(K)
        labels = np.where(rng.random((200, 5)) < 0.75, best, (best + rng.integers(1, K, size=(200, 5))) % K).astype(float)
        labels[:, 0] = rng.integers(K)[:, 0]
        consensus = consensus_of_others(labels)
        agrees = np.where(np.isnan(consensus), NAN, labels == consensus)
        flags = [flag_labeler(labels[:, l], agrees[:, l], K[:, 0]).flagged for l in range(5)]
        assert flags == [True, False, False, False, False]


def test_a_mild_liking_for_a_place_is_seldom_flagged():
    rng = np.random.default_rng(2)
    p = [0.4, 0.2, 0.2, 0.2]  # the most that `liking` spares: the bound is 1 %, with a standard error of 0.44 %
    flagged = [one_place_test(rng.choice(4, size=1000, p=p), 4, alpha=0.01).flagged_at is not None for _ in range(500)]
    assert np.mean(flagged) <= 0.02


def test_agreement_imports_no_torch():
    code = "import sys, humanward.maths.agreement, humanward.maths.labeler_quality; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
