"""What the reward models knew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from humanward.report import charts
from humanward.report.reading import Run, number, rows
from humanward.report.sections.parts import DIRECT, RESULTS, Chart, Table, tuned_by, two_widths
from humanward.report.sections.people import ceiling
from humanward.report.text import decimal, interval, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reward_model(run: Run) -> Chart | None:
    """Accuracy on held-out questions beside chance, by round."""
    found: list[tuple[float, charts.Estimate, dict[str, Any]]] = []
    for i, row in enumerate(rows(run.results, "reward_model")):
        accuracy = number(row.get("accuracy"))
        if accuracy is None or not 0 <= accuracy <= 1:
            run.note(f"{RESULTS}: reward_model[{i}] has no accuracy between 0 and 1 and is left out.")
            continue
        n = number(row.get("round"))
        label = f"round {decimal(n, 9)}" if n is not None else f"fit {i + 1}"
        estimate = charts.Estimate(label, accuracy, number(row.get("low")), number(row.get("high")))
        found.append((n if n is not None else float(i + 1), estimate, row))
    direct = tuned_by(run) in DIRECT
    if not found:
        if run.results:
            run.note(f"{RESULTS}: no {'accuracy of the implicit reward' if direct else 'reward-model accuracy'} is recorded.")
        return None
    chances = [c for _, _, row in found if (c := number(row.get("chance"))) is not None]
    chance = chances[-1] if chances else None
    if chance is None:
        run.note(f"{RESULTS}: the chance level of the reward model's accuracy is not recorded.")
    last = found[-1][1]
    title = "Accuracy of the implicit reward" if direct else "Reward-model accuracy"
    ends = interval(last.low, last.high, "percent") or "not recorded"
    description = f"{last.label}: {percent(last.value)}, interval {ends}, chance {percent(chance)}."

    highest = ceiling(run)

    def draw(width: str) -> Figure:
        if len(found) > 6:
            return charts.accuracy_by_round([(n, estimate) for n, estimate, _ in found], chance=chance, width=width, ceiling=highest)
        return charts.estimates([estimate for _, estimate, _ in found], line=chance, line_label="chance", width=width, ceiling=highest)

    body = [
        [
            e.label,
            percent(e.value),
            interval(e.low, e.high, "percent"),
            percent(number(row.get("chance"))),
            decimal(number(row.get("questions")), 9),
        ]
        for _, e, row in found
    ]
    caption = "Share of held-out questions on which the reward model gives its highest score to the response that the labeler chose."
    if direct:
        caption = (
            "Share of held-out questions on which the response that the labeler chose is the one whose probability the tuned policy has "
            "raised most over the reference: the policy read as a reward model."
        )
    if highest is not None:
        caption += (
            f" Two labelers give the same answer to {percent(highest.value)} of the questions that both were asked: the green line and its "
            "95 % interval. One more labeler would reach it; a reward model that has learned from many may lie above it."
        )
    table = Table(["fit", "accuracy", "95 % interval", "chance", "questions"], body)
    return Chart("reward-model", title, caption, two_widths("reward-model", title, description, draw), table)
