"""How far labelers agree, beyond chance. numpy only: imports no torch.

Labels of several labelers are one table [N, L], items by labelers: numbers, NaN where a labeler gave no label (``label_table`` makes it).
A tie, where labelers may give one, is a category like any other. N items, L labelers, C categories, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = Sequence[Any] | NDArray[Any]
Options = int | Values
Measure = Literal["observed", "cohen", "cohen_linear", "cohen_quadratic", "fleiss", "alpha_nominal", "alpha_ordinal", "alpha_interval"]


class Agreement(NamedTuple):
    """Agreement, the level that chance alone would reach, and the share of the way from there to 1."""

    observed: float | None
    """0 to 1, or None: no item has two labels."""
    chance: float | None
    """0 to 1, or None: not known."""
    coefficient: float | None
    """(observed - chance) / (1 - chance): 1 perfect, 0 chance, negative below it. None: chance is 1 or not known."""
    items: int
    """Items with at least two labels."""
    pairs: int
    """Pairs of labels on the same item."""


class LabelTable(NamedTuple):
    """Labels of many labelers, ready for the measures below."""

    values: Floats
    """[N, L], NaN where the labeler gave the item no label."""
    items: list[Any]
    labelers: list[Any]
    categories: list[Any]
    """What the codes 0, 1, ... stand for; the numbers themselves, sorted, where all labels are numbers."""


class _Terms(NamedTuple):
    """A measure as a function of how often each item counts: weights [R, N] to (observed, chance) disagreement, each [R]."""

    rows: int
    items: int
    pairs: int
    disagreement: Callable[[Floats], tuple[Floats, Floats]]


def label_table(labels: Iterable[tuple[Hashable, Hashable, Any]]) -> LabelTable:
    """The table [N, L] of (item, labeler, label) rows; items and labelers in order of first appearance.

    Labels that are all numbers stay as they are (scales); otherwise they become codes 0, 1, ... in the order of their text, which only the
    nominal measures may read. Rows whose label is None or NaN are left out.

    Raises:
        ValueError: a labeler labelled an item twice (that is for ``repeat_consistency``).
    """
    rows = [row for row in labels if row[2] is not None and row[2] == row[2]]
    items, labelers = ({key: i for i, key in enumerate(dict.fromkeys(row[j] for row in rows))} for j in (0, 1))
    numeric = all(isinstance(label, int | float | np.number) and not isinstance(label, bool) for _, _, label in rows)
    categories = sorted({label for _, _, label in rows}, key=None if numeric else str)
    codes = {category: float(category) if numeric else float(i) for i, category in enumerate(categories)}
    values = np.full((len(items), len(labelers)), np.nan)
    for item, labeler, label in rows:
        cell = items[item], labelers[labeler]
        if not np.isnan(values[cell]):
            raise ValueError(f"labeler {labeler!r} labelled item {item!r} twice; keep one label, and give both to repeat_consistency")
        values[cell] = codes[label]
    return LabelTable(values, list(items), list(labelers), categories)


def observed_agreement(labels: Values, options: Options | None = None) -> Agreement:
    """Raw agreement: the share of equal pairs of labels on an item, averaged over items with at least two labels.

        observed = mean over i of sum_c n_ic (n_ic - 1) / (n_i (n_i - 1))        chance = mean over i of 1 / K_i

    Fleiss 1971, eq. 2, for the observed part. The coefficient is Bennett's S (Bennett, Alpert and Goldstein 1954): the one for best-of-K
    choices, where "the second response" means something else in every question and margins say nothing.

    Args:
        labels: [N, L], NaN where there is none.
        options: K, how many answers could be given (with the tie, where it is offered), a number or [N]. None: chance is not known.

    Returns:
        Agreement; labels 1 1 | 1 2 with K = 4 give observed 0.5, chance 0.25, coefficient 1/3.

    Raises:
        ValueError: ``labels`` is no table of finite numbers, or an item has more different labels than options.
    """
    table = _table(labels)
    terms = _observed_terms(table)
    if options is None or terms.items == 0:
        return _agreement(terms)._replace(chance=None, coefficient=None)
    counts = _counts(table)
    K = checked_options(options, len(table))
    if ((counts > 0).sum(1) > K).any():
        item = int(np.flatnonzero((counts > 0).sum(1) > K)[0])
        raise ValueError(f"item {item} has more different labels than its {K[item]} options; count the tie among the options")
    chance = float(np.mean(1 / K[counts.sum(1) >= 2]))
    result = _agreement(terms)
    assert result.observed is not None
    return result._replace(chance=chance, coefficient=(result.observed - chance) / (1 - chance) if chance < 1 else None)


def cohen_kappa(a: Values, b: Values, *, weights: Literal["linear", "quadratic"] | None = None) -> Agreement:
    """Cohen's kappa of two labelers, over the items that both labelled.

        kappa = 1 - sum_ij w_ij o_ij / sum_ij w_ij a_i b_j,    w_ij = [i != j], |i - j| or (i - j)^2

    o: share of items with labels i and j; a, b: the labelers' margins. Cohen 1960; weights: Cohen 1968. The observed and chance agreement
    are one minus the two sums, with w divided by its largest value.

    Args:
        a: [N] labels of the one, NaN where there is none.
        b: [N] of the other.
        weights: None: nominal. Otherwise distances between the labels' own numbers, so scale points that nobody used still count.

    Returns:
        Agreement, the coefficient being kappa; None where both used one and the same category only. Tables 20 5 | 10 15 give 0.4.

    Raises:
        ValueError: lengths differ, a label is infinite, or ``weights`` is none of the three.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"labels of shapes {a.shape} and {b.shape}; give two lists of the same length, NaN where there is no label")
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"weights must be None, 'linear' or 'quadratic', not {weights!r}")
    return _agreement(_cohen_terms(_table(np.stack([a, b], axis=1)), weights))


def fleiss_kappa(labels: Values) -> Agreement:
    """Fleiss' kappa: nominal labels of any labelers, who need not be the same from item to item.

        kappa = (P - P_e) / (1 - P_e),    P = raw agreement,    P_e = sum_c p_c^2,    p_c = mean over i of n_ic / n_i

    Fleiss 1971. Where items differ in their number of labels: Gwet 2014 (Handbook of Inter-Rater Reliability, 4th ed., chapter 2), that
    is, every item weighs the same, and items with one label count in p_c only.

    Args:
        labels: [N, L], NaN where there is none.

    Returns:
        Agreement, the coefficient being kappa; None where only one category occurs. Fleiss' kappa of random labels is below 0 by about
        1 / (number of labels): alpha corrects that.

    Raises:
        ValueError: ``labels`` is no table of finite numbers.
    """
    return _agreement(_fleiss_terms(_table(labels)))


def krippendorff_alpha(labels: Values, *, metric: Literal["nominal", "ordinal", "interval"] = "nominal") -> Agreement:
    """Krippendorff's alpha: any number of labelers, missing labels, corrected for small samples.

        alpha = 1 - D_o / D_e,    D_o = sum_i sum_ck n_ic n_ik d_ck / (n_i - 1) / n,    D_e = sum_ck n_c n_k d_ck / (n (n - 1))
        d_ck = [c != k]    (c - k)^2    (r_c - r_k)^2, r the mid-rank: labels below c plus half of those at c

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability"; Hayes and Krippendorff 2007. n counts the labels of items with at
    least two. The mid-ranks are his ordinal metric, (sum_{g=c..k} n_g - (n_c + n_k) / 2)^2, written as a difference.

    Args:
        labels: [N, L], NaN where there is none.
        metric: of the difference between labels; "interval" reads the numbers, "ordinal" their order only.

    Returns:
        Agreement, the coefficient being alpha; None where only one category occurs. Observed and chance are 1 - D / (largest d_ck).

    Raises:
        ValueError: ``labels`` is no table of finite numbers, or ``metric`` is none of the three.
    """
    if metric not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"metric must be 'nominal', 'ordinal' or 'interval', not {metric!r}")
    return _agreement(_alpha_terms(_table(labels), metric))


def agreement_interval(
    labels: Values, measure: Measure, seed: int, *, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a measure, resampling items with all their labels.

    Efron 1979; items, not labels, because labels of one item hang together. It says how much other items would move the number, not how
    much other labelers would. Resamples in which the measure has no value (one category) are left out.

    Args:
        labels: [N, L], NaN where there is none; [N, 2] for Cohen's kappa.
        measure: which; "observed" is raw agreement, the others their coefficient.
        seed: the same seed gives the same interval.
        confidence: 0 to 1; higher is wider.
        resamples: more is smoother.

    Returns:
        (low, high), or None where the measure has no value.

    Raises:
        ValueError: ``labels`` does not fit, or ``measure``, ``confidence`` or ``resamples`` is out of range.
    """
    if measure not in _MEASURES:
        raise ValueError(f"measure must be one of {', '.join(_MEASURES)}, not {measure!r}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must be between 0 and 1 and resamples at least 1, not {confidence} and {resamples}")
    terms = _MEASURES[measure](_table(labels))
    if _agreement(terms).coefficient is None:
        return None
    rng, N = np.random.default_rng(seed), terms.rows
    chunk = max(1, 4_000_000 // N)  # weights of at most 32 MB at a time
    parts = []
    for start in range(0, resamples, chunk):
        R = min(chunk, resamples - start)
        drawn = rng.integers(N, size=(R, N)) + N * np.arange(R)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=R * N).reshape(R, N).astype(float)
        observed, chance = terms.disagreement(weights)
        parts.append(1 - _ratio(observed, chance))
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def consensus_of_others(labels: Values) -> Floats:
    """[N, L]: the most frequent label that the other labelers gave the item; NaN where there is none or two are equally frequent."""
    table = _table(labels)
    counts, categories = _counts(table), np.unique(table[np.isfinite(table)])
    consensus = np.full(table.shape, np.nan)
    if len(categories) == 0:
        return consensus
    for l in range(table.shape[1]):
        others = counts - (table[:, l, None] == categories)
        top = others.max(axis=1)
        clear = (top > 0) & ((others == top[:, None]).sum(axis=1) == 1)
        consensus[clear, l] = categories[others[clear].argmax(axis=1)]
    return consensus


def _table(labels: Values) -> Floats:
    table = np.asarray(labels, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"labels of shape {table.shape}; give a table, items by labelers")
    if np.isinf(table).any():
        raise ValueError("a label is infinite; write NaN where there is no label")
    return table


def _counts(table: Floats) -> Floats:
    """[N, C]: how often each item got each category."""
    told = np.isfinite(table)
    categories, codes = np.unique(table[told], return_inverse=True)
    counts = np.zeros((len(table), len(categories)))
    np.add.at(counts, (np.nonzero(told)[0], codes), 1)
    return counts


def _pairs(counts: Floats) -> int:
    n = counts.sum(axis=1)
    return int((n * (n - 1)).sum()) // 2


def _unequal_share(counts: Floats) -> Floats:
    """[N]: share of unequal pairs of an item's labels; 0 where there is no pair."""
    n = counts.sum(axis=1)
    return _ratio(n * n - (counts**2).sum(axis=1), n * (n - 1), otherwise=0.0)


def _observed_terms(table: Floats) -> _Terms:
    counts = _counts(table)
    counts = counts[counts.sum(axis=1) >= 2]
    unequal = _unequal_share(counts)

    def disagreement(weights: Floats) -> tuple[Floats, Floats]:
        return weights @ unequal / weights.sum(axis=1), np.ones(len(weights))

    return _Terms(len(counts), len(counts), _pairs(counts), disagreement)


def _cohen_terms(table: Floats, weighting: str | None) -> _Terms:
    if table.shape[1] != 2:
        raise ValueError(f"Cohen's kappa is of two labelers, not {table.shape[1]}; use Fleiss' kappa or Krippendorff's alpha")
    table = table[np.isfinite(table).all(axis=1)]
    categories, codes = np.unique(table, return_inverse=True)
    codes = codes.reshape(table.shape)
    gaps = np.abs(categories[:, None] - categories)
    distance = (gaps > 0) * 1.0 if weighting is None else gaps ** (1 if weighting == "linear" else 2)
    distance = distance / max(distance.max(initial=0.0), np.finfo(float).tiny)
    one, other = np.eye(len(categories))[codes[:, 0]], np.eye(len(categories))[codes[:, 1]]
    apart = distance[codes[:, 0], codes[:, 1]]

    def disagreement(weights: Floats) -> tuple[Floats, Floats]:
        n = weights.sum(axis=1)
        return weights @ apart / n, ((weights @ one @ distance) * (weights @ other)).sum(axis=1) / n**2

    return _Terms(len(table), len(table), len(table), disagreement)


def _fleiss_terms(table: Floats) -> _Terms:
    counts = _counts(table)
    counts = counts[counts.sum(axis=1) >= 1]
    n = counts.sum(axis=1)
    paired, unequal, shares = (n >= 2) * 1.0, _unequal_share(counts), counts / n[:, None]

    def disagreement(weights: Floats) -> tuple[Floats, Floats]:
        p = weights @ shares / weights.sum(axis=1, keepdims=True)
        # 1 - sum p^2, written so that it is exactly 0 with one category
        return _ratio(weights @ unequal, weights @ paired), (p * (p.sum(axis=1, keepdims=True) - p)).sum(axis=1)

    return _Terms(len(counts), int(paired.sum()), _pairs(counts), disagreement)


def _alpha_terms(table: Floats, metric: str) -> _Terms:
    table = table[np.isfinite(table).sum(axis=1) >= 2]
    counts, categories = _counts(table), np.unique(table[np.isfinite(table)])
    n = counts.sum(axis=1)
    unequal = _unequal_share(counts)

    def disagreement(weights: Floats) -> tuple[Floats, Floats]:
        margins = weights @ counts
        total = margins.sum(axis=1)
        if metric == "nominal":
            expected = (margins * (total[:, None] - margins)).sum(axis=1) / (total * (total - 1))
            return weights @ (unequal * n) / total, expected
        values = np.cumsum(margins, axis=1) - margins / 2 if metric == "ordinal" else np.broadcast_to(categories, margins.shape)
        values = values - ((margins * values).sum(axis=1) / total)[:, None]  # near 0, or squares would drown differences
        largest = (values.max(axis=1) - values.min(axis=1)) ** 2
        # sum over pairs of (u - v)^2 = 2 (n sum v^2 - (sum v)^2), per item
        apart = np.maximum(n * (values**2 @ counts.T) - (values @ counts.T) ** 2, 0) / (n - 1)
        expected = 2 * (margins * values**2).sum(axis=1) / (total - 1)
        expected[(margins > 0).sum(axis=1) < 2] = 0
        return _ratio(2 * (weights * apart).sum(axis=1), total * largest, otherwise=0.0), _ratio(expected, largest, otherwise=0.0)

    return _Terms(len(table), len(table), _pairs(counts), disagreement)


_MEASURES: dict[str, Callable[[Floats], _Terms]] = {
    "observed": _observed_terms,
    "cohen": lambda table: _cohen_terms(table, None),
    "cohen_linear": lambda table: _cohen_terms(table, "linear"),
    "cohen_quadratic": lambda table: _cohen_terms(table, "quadratic"),
    "fleiss": _fleiss_terms,
    "alpha_nominal": lambda table: _alpha_terms(table, "nominal"),
    "alpha_ordinal": lambda table: _alpha_terms(table, "ordinal"),
    "alpha_interval": lambda table: _alpha_terms(table, "interval"),
}


def _agreement(terms: _Terms) -> Agreement:
    if terms.items == 0:
        return Agreement(None, None, None, 0, 0)
    observed, chance = (float(part[0]) for part in terms.disagreement(np.ones((1, terms.rows))))
    return Agreement(1 - observed, 1 - chance, 1 - observed / chance if chance > 0 else None, terms.items, terms.pairs)


def _ratio(over: Floats, under: Floats, otherwise: float = math.nan) -> Floats:
    return np.divide(over, under, out=np.full(np.shape(over), otherwise), where=under > 0)


def checked_options(options: Options, length: int) -> NDArray[np.int64]:
    """[length] whole numbers of at least 1, or an error that says what came."""
    K = np.asarray(options)
    if K.ndim > 1 or (K.ndim == 1 and len(K) != length):
        raise ValueError(f"options of shape {K.shape} for {length} labels or items; give one number or one each")
    if not (np.floor(K) == K).all() or not (K >= 1).all():
        raise ValueError("options must be whole numbers of at least 1")
    return np.broadcast_to(K, length).astype(np.int64)
