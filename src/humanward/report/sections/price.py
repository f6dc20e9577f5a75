"""Score against KL beside what is possible."""

from __future__ import annotations

from humanward.report import charts
from humanward.report.reading import Run, points, section
from humanward.report.sections.parts import RESULTS, Chart, Table, has_judge, spread, two_widths
from humanward.report.text import decimal


def frontier_chart(run: Run) -> Chart | None:
    """Score against KL beside what is possible."""
    data = section(run.results, "frontier")
    single = {key: points({key: [data.get(key)]}, key, 2) for key in ("policy", "reference")}
    drawn = charts.Frontier(
        optimum=points(data, "optimum", 2),
        best_of_n=points(data, "best_of_n", 3),
        path=points(data, "path", 2),
        policy=single["policy"][0] if single["policy"] else None,
        reference=single["reference"][0] if single["reference"] else None,
    )
    for key in ("optimum", "best_of_n", "policy", "reference"):
        if run.results and not getattr(drawn, key) and run.results.get("scored_by") != "reward model" and has_judge(run):
            run.note(f"{RESULTS}: frontier.{key} is not recorded.")
    if not (drawn.optimum or drawn.best_of_n or drawn.path or drawn.policy):
        return None
    said = [
        f"{who} at {decimal(p[0])} nats, score {decimal(p[1])}"
        for who, p in (("policy", drawn.policy), ("reference", drawn.reference))
        if p
    ]
    title = "Reward against KL"
    pictures = two_widths("frontier", title, "; ".join(said) + ".", lambda width: charts.frontier(drawn, width=width))
    table_rows = [["reference", *map(decimal, drawn.reference)]] if drawn.reference else []
    table_rows += [["tuned policy", *map(decimal, drawn.policy)]] if drawn.policy else []
    table_rows += [[f"best of {n:.0f}", decimal(kl), decimal(score)] for n, kl, score in sorted(drawn.best_of_n)]
    table_rows += [["optimum", decimal(kl), decimal(score)] for kl, score in spread(sorted(drawn.optimum), 20)]
    table_rows += [["training", decimal(kl), decimal(score)] for kl, score in spread(drawn.path, 20)]
    caption = (
        "The labeler’s mean score against the KL divergence paid for it. But for sampling error, no policy lies above the dashed optimum; "
        "best of n is what choosing among n responses of the reference would give. "
        "A path that bends down has learned the reward model’s faults instead of the labeler’s taste."
    )
    return Chart("frontier", title, caption, pictures, Table(["policy", "KL, nats per response", "mean score"], table_rows))
