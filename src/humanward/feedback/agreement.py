"""The agreement report of a run: how far people agree with each other, with a researcher, with themselves and with known answers, as JSON.

Every number comes with an interval and with the level that chance alone would reach. numpy and scipy only, imported on use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from humanward.feedback.kinds import KINDS
from humanward.feedback.quality import Quality, choice, quality_table
from humanward.feedback.reading import LabelerRow
from humanward.feedback.snapshot import Snapshot

if TYPE_CHECKING:
    from humanward.maths.agreement import Agreement, LabelTable
    from humanward.maths.labeler_quality import Proportion

MEASURES = {
    "raw": ("observed", "Same answer"),
    "bennett": ("observed", "Bennett’s S"),
    "fleiss": ("fleiss", "Fleiss’ kappa"),
    "krippendorff": ("alpha_nominal", "Krippendorff’s alpha"),
}
"""Key in the report: (the measure that is resampled, its name)."""
LEAST_SHARED = 10
"""Questions that two people must share before their kappa is shown."""
MOST_PAIRS = 10
SCALES = ("rating", "difference")
"""Kinds whose answers are numbers on a scale."""


def agreement_report(rows: Iterable[LabelerRow], researchers: Collection[str] = (), *, seed: int = 0) -> dict[str, Any]:
    """Everything about the labels of a run; empty where no question has two labels and there is no gold question and no repeat.

    Args:
        rows: ``Store.labeler_rows()``, or ``rows_of`` a snapshot.
        researchers: those whose answers the others' are compared with.
        seed: of the bootstrap.
    """
    given = list(rows)
    common = [row for row in given if row.gold is None and row.repeat_of is None]
    found = {kind: made for kind in KINDS if (made := _of_kind(kind, [row for row in common if row.kind == kind], seed))}
    table = quality_table(given, researchers)
    shares = {
        name: pooled
        for name in ("researcher", "repeats", "gold")
        if (pooled := _pooled([getattr(one, name) for one in table.labelers]))["trials"]
    }
    if not found and not shares:
        return {}
    return {
        "labels": len(common), "labelers": len(table.labelers), "kinds": found, "shares": shares,
        "people": [_person(one) for one in table.labelers],
    }  # fmt: skip


def rows_of(snapshot: Snapshot) -> list[LabelerRow]:
    """The same rows from frozen labels: without gold questions and repeats, which no snapshot has.

    A file of labels may say several times what one name answered to a question; the newest answer is kept.
    """
    words = {q.id: tuple(len(text.split()) for text in (q.prompt.text, *(r.text for r in q.responses))) for q in snapshot.questions}
    sizes = {q.id: len(q.responses) for q in snapshot.questions}
    labels = sorted((label for label in snapshot.labels if not label.adjudication), key=lambda label: (label.time, label.id))
    newest = {(label.question_id, label.labeler): label for label in labels}
    return [
        LabelerRow(
            label.question_id, label.labeler, label.kind, label.answer, label.permutation or tuple(range(sizes[label.question_id])),
            label.seconds, words[label.question_id], label.time, None, None, number,
        )
        for number, label in enumerate(newest.values())
    ]  # fmt: skip


def _of_kind(kind: str, rows: Sequence[LabelerRow], seed: int) -> dict[str, Any] | None:
    """All measures of one kind of question, over questions with two labels or more."""
    from humanward.maths.agreement import fleiss_kappa, krippendorff_alpha, label_table, observed_agreement

    answers = [(row, row.answer if kind in SCALES else choice(row, row.answer)) for row in rows]
    times: dict[str, int] = defaultdict(int)
    for row, answer in answers:
        times[row.question_id] += answer is not None
    shared = [(row, answer) for row, answer in answers if answer is not None and times[row.question_id] > 1]
    if not shared:
        return None
    table = label_table((row.question_id, row.labeler, answer if kind in SCALES else str(answer)) for row, answer in shared)
    options = {row.question_id: _options(kind, row) for row, _ in shared}
    K = [options[item] for item in table.items]
    raw = observed_agreement(table.values, K)
    values: dict[str, Agreement] = {"bennett": raw, "fleiss": fleiss_kappa(table.values), "krippendorff": krippendorff_alpha(table.values)}
    measures = [_measure("raw", raw.observed, raw.chance, table, seed)]
    measures += [_measure(name, made.coefficient, 0.0, table, seed, chance=raw.chance) for name, made in values.items()]
    if kind in SCALES:
        for metric in ("ordinal", "interval"):
            made = krippendorff_alpha(table.values, metric=metric)
            measures.append(_interval(f"alpha_{metric}", f"Krippendorff’s alpha, {metric}", made.coefficient, 0.0, table, seed))
    return {
        "questions": raw.items, "pairs_of_labels": raw.pairs, "chance": raw.chance,
        "measures": [row for row in measures if row["value"] is not None], "pairs": _cohen(table, seed),
    }  # fmt: skip


def _options(kind: str, row: LabelerRow) -> int:
    """Answers that could be given: with the tie, where one may be."""
    scale = {"rating": 9, "difference": 9}
    return scale.get(kind, len(row.permutation) + (kind in ("pair", "ranking", "soft")))


def _measure(
    name: str, value: float | None, level: float | None, table: LabelTable, seed: int, chance: float | None = None
) -> dict[str, Any]:
    measure, title = MEASURES[name]
    row = _interval(measure, title, value, level, table, seed)
    if name == "bennett" and row["low"] is not None and chance is not None and chance < 1:  # an affine map of the raw agreement
        row["low"], row["high"] = ((end - chance) / (1 - chance) for end in (row["low"], row["high"]))
    return row


def _interval(measure: Any, title: str, value: float | None, level: float | None, table: LabelTable, seed: int) -> dict[str, Any]:
    from humanward.maths.agreement import agreement_interval

    ends = agreement_interval(table.values, measure, seed) if value is not None else None
    low, high = ends if ends is not None else (None, None)
    return {"name": title, "value": value, "low": low, "high": high, "chance": level}


def _cohen(table: LabelTable, seed: int) -> list[dict[str, Any]]:
    """Cohen's kappa of the pairs that share most questions."""
    import numpy as np

    from humanward.maths.agreement import agreement_interval, cohen_kappa

    told = np.isfinite(table.values)
    pairs = []
    for a in range(len(table.labelers)):
        for b in range(a):
            both = told[:, a] & told[:, b]
            if int(both.sum()) >= LEAST_SHARED:
                made = cohen_kappa(table.values[:, a], table.values[:, b])
                ends = agreement_interval(table.values[both][:, [a, b]], "cohen", seed)
                low, high = ends if ends is not None else (None, None)
                names = sorted((str(table.labelers[a]), str(table.labelers[b])))
                pairs.append({
                    "a": names[0], "b": names[1], "questions": made.items, "observed": made.observed, "chance": made.chance,
                    "kappa": made.coefficient, "low": low, "high": high,
                })  # fmt: skip
    return sorted(pairs, key=lambda pair: (-pair["questions"], pair["a"], pair["b"]))[:MOST_PAIRS]


def _pooled(parts: Sequence[Proportion]) -> dict[str, Any]:
    from humanward.maths.statistics import clopper_pearson

    right, trials = sum(part.successes for part in parts), sum(part.trials for part in parts)
    low, high = clopper_pearson(right, trials) if trials else (0.0, 1.0)
    return {"successes": right, "trials": trials, "rate": right / trials if trials else None, "low": low, "high": high}


def _person(one: Quality) -> dict[str, Any]:
    shares = {name: getattr(one, name)._asdict() for name in ("others", "researcher", "repeats", "gold", "fast")}
    return {
        "labeler": one.labeler, "labels": one.labels, "median_seconds": one.median_seconds, **shares,
        "places": list(one.bias.counts), "places_p": one.bias.p_value, "flags": list(one.flags),
    }  # fmt: skip
