"""How the labelers do, from the rows of the store: pace, agreement, gold, repeats, places, reading time and flags."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from humanward.feedback.reading import LabelerRow

if TYPE_CHECKING:
    from humanward.maths.agreement import Agreement
    from humanward.maths.labeler_quality import LabelerFlags, PositionBias, Proportion

RESAMPLES = 300
SURE = 0.01
"""A place is called a bias below this p-value, if the choices lean to it by more than LEAN."""
LEAN = 0.15


@dataclass(frozen=True)
class Quality:
    """One labeler."""

    labeler: str
    labels: int
    """With gold questions and repeats."""
    median_seconds: float | None
    last: str
    """Time of the newest label."""
    others: Proportion
    """Agreement with the most frequent answer of the others."""
    researcher: Proportion
    gold: Proportion
    repeats: Proportion
    fast: Proportion
    bias: PositionBias
    tests: LabelerFlags
    flags: tuple[str, ...]
    """What a researcher should look at, a sentence each."""


class KindAgreement(NamedTuple):
    """Agreement of all labelers on one kind of question."""

    kind: str
    raw: Agreement
    """Its coefficient is Bennett's S: chance is 1 / K."""
    interval: tuple[float, float] | None
    alpha: float | None
    """Krippendorff's, of the chosen responses."""
    alpha_interval: tuple[float, float] | None


class QualityTable(NamedTuple):
    """All labelers, and how far they agree."""

    labelers: list[Quality]
    kinds: list[KindAgreement]
    seconds: float = 0.0
    """What it took."""


def quality_table(rows: Iterable[LabelerRow], researchers: Collection[str]) -> QualityTable:
    """Everything about the labelers of these rows, busiest first."""
    ordered = sorted(rows, key=lambda row: row.seq)
    by_labeler: dict[str, list[LabelerRow]] = defaultdict(list)
    for row in ordered:
        by_labeler[row.labeler].append(row)
    common = [row for row in ordered if row.gold is None and row.repeat_of is None]
    consensus, judged = _consensus(common), _majority(row for row in common if row.labeler in researchers)
    labelers = [_quality(labeler, mine, consensus, {} if labeler in researchers else judged) for labeler, mine in by_labeler.items()]
    labelers.sort(key=lambda one: -one.labels)
    kinds = [_agreement(kind, [row for row in common if row.kind == kind]) for kind in sorted({row.kind for row in common})]
    return QualityTable(labelers, kinds)


def choice(row: LabelerRow, answer: Any) -> int | str | None:
    """The response that an answer puts first, "tie" where it puts several first, None where the kind has no first one."""
    K = len(row.permutation)
    if isinstance(answer, str):
        return answer
    if row.kind in ("best_of_k", "pair") and isinstance(answer, int):
        return answer
    if row.kind == "difference":
        return "tie" if answer == 0 else int(answer < 0)
    if row.kind in ("ranking", "soft") and isinstance(answer, list) and len(answer) == K:
        best = min(answer) if row.kind == "ranking" else max(answer)
        return answer.index(best) if answer.count(best) == 1 else "tie"
    return None


def _quality(labeler: str, rows: list[LabelerRow], consensus: Mapping[Any, Any], judged: Mapping[str, Any]) -> Quality:
    from humanward.maths.labeler_quality import fast_answers, flag_labeler, position_bias

    answered = {row.question_id: choice(row, row.answer) for row in rows}
    gold = [(answered[row.question_id], choice(row, row.gold)) for row in rows if row.gold is not None]
    repeats = [(answered[row.repeat_of], answered[row.question_id]) for row in rows if row.repeat_of in answered]
    common = [row for row in rows if row.gold is None and row.repeat_of is None]
    others = [(answered[row.question_id], consensus.get((row.question_id, labeler))) for row in common]
    researcher = [(answered[row.question_id], judged.get(row.question_id)) for row in common]
    timed = [row for row in rows if row.seconds is not None]
    placed = [(row, row.permutation.index(first)) for row in rows if isinstance(first := answered[row.question_id], int)]
    places, options = [place for _, place in placed], [len(row.permutation) for row, _ in placed]
    agrees = [_agrees(row, answered[row.question_id], consensus, labeler) for row, _ in placed]
    made = {
        "others": _share(others), "researcher": _share(researcher), "gold": _share(gold, exact=True), "repeats": _share(repeats),
        "fast": fast_answers([row.seconds for row in timed], [sum(row.lengths) for row in timed]),
        "bias": position_bias(places, options), "tests": flag_labeler(places, agrees, options),
    }  # fmt: skip
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Quality(
        labeler, len(rows), statistics.median(seconds) if seconds else None, rows[-1].time, **made, flags=tuple(_flags(made, options))
    )


def _flags(made: Mapping[str, Any], options: Sequence[int]) -> Iterable[str]:
    """careful: a flag asks for a look; it never takes a label away."""
    tests, bias, fast, gold = made["tests"], made["bias"], made["fast"], made["gold"]
    if tests.one_place.flagged_at is not None:
        yield f"always one place, clear after {tests.one_place.flagged_at} labels"
    if tests.random.flagged_at is not None:
        yield f"agrees no better than chance, clear after {tests.random.flagged_at} labels"
    if bias.shares and tests.one_place.flagged_at is None and bias.p_value < SURE:
        lean = max(bias.shares) - 1 / max(options)
        if lean > LEAN:
            yield f"chooses place {bias.shares.index(max(bias.shares)) + 1} in {100 * max(bias.shares):.0f} % of the questions"
    if fast.trials and fast.low > 0.2:
        yield f"{100 * fast.rate:.0f} % of the answers came faster than the texts can be read"
    if gold.trials and gold.high < 0.7:
        yield f"{gold.successes} of {gold.trials} gold questions right"


def _agrees(row: LabelerRow, first: Any, consensus: Mapping[Any, Any], labeler: str) -> float:
    """1 or 0: equals the known answer, or else that of the others; NaN where there is neither."""
    expected = choice(row, row.gold) if row.gold is not None else consensus.get((row.question_id, labeler))
    return math.nan if expected is None else float(first == expected)


def _share(pairs: Sequence[tuple[Any, Any]], *, exact: bool = False) -> Proportion:
    from humanward.maths.labeler_quality import gold_accuracy, repeat_consistency

    told = [(a, b) for a, b in pairs if a is not None and b is not None]
    same = [float(a == b) for a, b in told]
    return (gold_accuracy if exact else repeat_consistency)(same, [1.0] * len(same))


def _consensus(rows: Sequence[LabelerRow]) -> dict[tuple[str, str], Any]:
    """(question, labeler) -> the answer most frequent among the others; left out where there is none or two are equally frequent."""
    answers: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        first = choice(row, row.answer)
        if first is not None:
            answers[row.question_id][row.labeler] = first
    found = {}
    for question, given in answers.items():
        for labeler in given:
            top = _most_frequent([first for other, first in given.items() if other != labeler])
            if top is not None:
                found[question, labeler] = top
    return found


def _majority(rows: Iterable[LabelerRow]) -> dict[str, Any]:
    answers: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        first = choice(row, row.answer)
        if first is not None:
            answers[row.question_id].append(first)
    return {question: top for question, given in answers.items() if (top := _most_frequent(given)) is not None}


def _most_frequent(values: Sequence[Any]) -> Any:
    counts = {value: values.count(value) for value in values}
    best = [value for value, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else None


def _agreement(kind: str, rows: Sequence[LabelerRow]) -> KindAgreement:
    from humanward.maths.agreement import agreement_interval, krippendorff_alpha, label_table, observed_agreement

    times: dict[str, int] = defaultdict(int)
    for row in rows:
        times[row.question_id] += 1
    shared = [row for row in rows if times[row.question_id] > 1]
    K = {row.question_id: len(row.permutation) + (kind in ("pair", "ranking", "difference", "soft")) for row in shared}  # with the tie
    values = [(row.question_id, row.labeler, first) for row in shared if (first := choice(row, row.answer)) is not None]
    table = label_table((question, labeler, str(first)) for question, labeler, first in values)
    if len(table.items) == 0:
        from humanward.maths.agreement import Agreement

        return KindAgreement(kind, Agreement(None, None, None, 0, 0), None, None, None)
    options = [K[item] for item in table.items]
    return KindAgreement(
        kind, observed_agreement(table.values, options), agreement_interval(table.values, "observed", 0, resamples=RESAMPLES),
        krippendorff_alpha(table.values).coefficient, agreement_interval(table.values, "alpha_nominal", 0, resamples=RESAMPLES),
    )  # fmt: skip
