"""Where the reward models were right, how sure they may be, what they are fooled by, and how far the members of an ensemble differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from humanward.report import charts
from humanward.report.reading import Run, number, rows, section
from humanward.report.sections.parts import Chart, Table, ends, policy_name, two_widths
from humanward.report.text import clipped, decimal, interval, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {
    "round": "round",
    "batch": "batch",
    "policies": "pairs of responses by",
    "labeler": "labeler",
    "confidence": "labeler's confidence",
}
PROBES = {
    "sentence_shuffle": "sentences shuffled",
    "role_reversal": "roles reversed",
    "minimal_edit": "a verb negated",
}
MOST_GROUPS = 40


def reward_groups(run: Run) -> Table | None:
    """Accuracy on the validation labels of all rounds by round, batch, policies, labeler and confidence; single groups are left out."""
    by = section(section(run.results, "reward_validation"), "by")
    body: list[list[str]] = []
    for key, word in GROUPS.items():
        groups = rows(by, key)
        if len(groups) < 2 and key != "policies":
            continue
        for row in groups[:MOST_GROUPS]:
            accuracy, labels = number(row.get("accuracy")), number(row.get("labels"))
            if accuracy is not None:
                ends_ = interval(number(row.get("low")), number(row.get("high")), "percent")
                body.append([f"{word} {clipped(str(row.get('group')), 40)}", percent(accuracy), ends_, decimal(labels, 9)])
    return Table(["of", "accuracy", "95 % interval", "labels or pairs"], body) if body else None


def calibration_chart(run: Run) -> Chart | None:
    """What came true of what the reward models believed, on labels that they had not seen."""
    found = section(section(run.results, "reward_validation"), "calibration")
    bins = [
        ((x, y, number(row.get("low")), number(row.get("high"))), number(row.get("responses")))
        for row in rows(found, "curve")
        if (x := number(row.get("predicted"))) is not None and (y := number(row.get("observed"))) is not None
    ]
    points = [point for point, _ in bins]
    ece = number(found.get("ece"))
    if not points or ece is None:
        return None
    title = "Does it know what it knows?"
    around = interval(number(found.get("low")), number(found.get("high")), "percent")
    said = f"Expected calibration error {percent(ece)}, 95 % interval {around}."
    labels = decimal(number(found.get("questions")), 9)
    caption = (
        f"{said} Every response of {labels} validation labels counts with the probability that the reward model gave to its being chosen; "
        "each round's model had not seen them. Above the dashed line the model is too modest, below it too sure."
    )

    def draw(width: str) -> Figure:
        return charts.calibration(points, width=width)

    body = [[percent(x), percent(y), interval(low, high, "percent"), decimal(count, 9)] for (x, y, low, high), count in bins]
    table = Table(["believed", "came true", "95 % interval", "responses"], body)
    return Chart("calibration", title, caption, two_widths("calibration", title, said, draw), table)


def probes_chart(run: Run) -> Chart | None:
    """How often a response that was liked scores above itself made worse."""
    probes = section(run.results, "reward_probes")
    items: list[charts.Estimate] = []
    body: list[list[str]] = []
    for key, word in PROBES.items():
        row = section(probes, key)
        rate, low, high = (number(row.get(name)) for name in ("rate", "low", "high"))
        if rate is not None:
            items.append(charts.Estimate(word, rate, low, high))
            body.append([word, percent(rate), interval(low, high, "percent"), decimal(number(row.get("responses")), 9)])
    length = section(probes, "length")
    correlation = number(length.get("correlation"))
    said = f"Score and number of words correlate by {decimal(correlation)} (Spearman, 95 % interval {ends(length)}). "
    if not items:
        return None
    title = "What it can be fooled by"
    caption = (
        "Share of responses that a labeler chose which the last reward model scores above the same response made worse by a program, ties "
        f"counting half. {said if correlation is not None else ''}The programs know English only and do not always make a text worse."
    )
    description = "; ".join(f"{item.label} {percent(item.value)}" for item in items) + "."

    def draw(width: str) -> Figure:
        return charts.estimates(items, line=0.5, line_label="blind", width=width)

    table = Table(["response with", "scored lower than before", "95 % interval", "responses"], body)
    return Chart("probes", title, caption, two_widths("probes", title, description, draw), table)


def members_table(run: Run) -> tuple[str, Table] | None:
    """(what the members are, how far they differ) where the reward model is an ensemble."""
    found = section(run.results, "reward_members")
    count = number(found.get("members"))
    if count is None:
        return None
    deviation = section(found, "deviation")
    body = [[f"score of the {policy_name(name)}'s responses", *_mean(section(deviation, name))] for name in deviation]
    validation = section(section(run.results, "reward_validation"), "members")
    if disagreement := section(validation, "disagreement"):
        body.append(["choice probabilities on validation labels (variance)", *_mean(disagreement)])
    for key, word in (("accuracy", "validation labels"), ("held_out", "what its own draw left out")):
        for row in rows(validation if key == "accuracy" else found, key):
            name = f"accuracy of member {decimal(number(row.get('group')), 9)} on {word}"
            body.append([name, percent(number(row.get("accuracy"))), interval(number(row.get("low")), number(row.get("high")), "percent")])
    penalty = f", less {decimal(number(found.get('penalty')))} of their deviation" if found.get("combine") == "penalized" else ""
    how = {"mean": "the mean of its members", "min": "the lowest of its members", "penalized": "the mean of its members"}
    words = (
        f"The reward is {how.get(str(found.get('combine')), 'made from its members')}{penalty}: {decimal(count, 9)} reward models, each "
        "fitted to a draw of its own. Where the policy's responses divide them more than the reference's do, the policy has gone where "
        "the labels say little."
    )
    return words, Table(["members differ in", "by", "95 % interval"], body)


def _mean(row: dict[str, Any]) -> list[str]:
    return [decimal(number(row.get("mean"))), ends(row)]
