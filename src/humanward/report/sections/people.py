"""How far the labelers agree, how each of them works, and who stopped the run."""

from __future__ import annotations

from typing import Any

from humanward.report import charts
from humanward.report.reading import Run, number, rows, section
from humanward.report.sections.parts import RESULTS, Chart, Table, two_widths
from humanward.report.text import NO_BREAK, NOT_RECORDED, clipped, decimal, duration, interval, percent

KINDS = {
    "best_of_k": "best of several", "pair": "pairs", "ranking": "rankings", "soft": "probabilities", "rating": "ratings",
    "difference": "differences",
}  # fmt: skip
SHARES = {
    "researcher": "with a researcher",
    "repeats": "with themselves, again",
    "gold": "with known answers",
}


def ceiling(run: Run) -> charts.Band | None:
    """Agreement of two labelers on the same question: what a reward model cannot be expected to exceed by much."""
    for kind in section(section(run.results, "agreement"), "kinds").values():
        for row in rows(kind, "measures"):
            value, low, high = (number(row.get(key)) for key in ("value", "low", "high"))
            if value is not None and row.get("name") == "Same answer":
                return charts.Band("two labelers agree", value, low, high)
    return None


def agreement_chart(run: Run) -> Chart | None:
    """Shares of equal answers beside chance: among labelers, with a researcher, with themselves, with known answers."""
    found = section(run.results, "agreement")
    drawn: list[charts.Estimate] = []
    body: list[list[str]] = []
    chance: float | None = None
    kinds = section(found, "kinds")
    for kind, parts in kinds.items():
        name = KINDS.get(kind, clipped(kind, 30))
        for row in rows(parts, "measures"):
            value, low, high, level = (number(row.get(key)) for key in ("value", "low", "high", "chance"))
            raw = row.get("name") == "Same answer"
            if value is None:
                run.note(f"{RESULTS}: agreement.kinds.{kind} has a measure without a value.")
                continue
            show, style = (percent, "percent") if raw else (decimal, "decimal")
            body.append([f"{name}: {row.get('name')}", show(value), interval(low, high, style), show(level)])
            if raw:
                drawn.append(charts.Estimate("two labelers" + (f", {name}" if len(kinds) > 1 else ""), value, low, high))
                chance = level if chance is None else chance
    for key, title in SHARES.items():
        share = section(section(found, "shares"), key)
        rate, low, high = (number(share.get(name)) for name in ("rate", "low", "high"))
        if rate is not None:
            drawn.append(charts.Estimate(title, rate, low, high))
            of = f"{decimal(number(share.get('successes')), 9)} of {decimal(number(share.get('trials')), 9)}"
            body.append(
                [f"labelers {title} ({of})", percent(rate), interval(low, high, "percent"), percent(chance) if chance is not None else ""]
            )
    if not drawn:
        return None
    first = drawn[0]
    title = "Agreement"
    said = f"{first.label}: {percent(first.value)}, interval {interval(first.low, first.high, 'percent') or NOT_RECORDED}."
    pictures = two_widths("agreement", title, said, lambda width: charts.estimates(drawn, line=chance, line_label="chance", width=width))
    caption = (
        "How often two answers to the same question are the same: those of two labelers, of a labeler and a researcher, of a labeler who "
        "was asked again, and a labeler’s beside a known one. The dashed line is what answering at random would give. "
        "Coefficients in the table are 1 for perfect agreement and 0 for chance."
    )
    return Chart("agreement", title, caption, pictures, Table(["agreement", "value", "95 % interval", "chance"], body))


def pairs_table(run: Run) -> Table | None:
    """Cohen's kappa of the labelers who share most questions."""
    body: list[list[str]] = []
    for parts in section(section(run.results, "agreement"), "kinds").values():
        for row in rows(parts, "pairs"):
            kappa, low, high = (number(row.get(key)) for key in ("kappa", "low", "high"))
            names = " and ".join(clipped(str(row.get(key)), 40) for key in ("a", "b"))
            shared = decimal(number(row.get("questions")), 9)
            body.append([names, shared, percent(number(row.get("observed"))), decimal(kappa), interval(low, high)])
    columns = ["labelers", "questions in common", "same answer", "Cohen’s kappa", "95 % interval"]
    return Table(columns, body) if body else None


def people_table(run: Run) -> Table | None:
    """One row for each labeler; flags ask for a look and take no label away."""
    body: list[list[str]] = []
    for row in rows(section(run.results, "agreement"), "people")[:100]:
        shares = [_share(section(row, key)) for key in ("others", "researcher", "repeats", "gold", "fast")]
        told = str(len(_flags(row)) or "none")
        pace = number(row.get("median_seconds"))
        name = clipped(str(row.get("labeler")), 60)
        body.append([name, decimal(number(row.get("labels")), 9), duration(pace) if pace is not None else "", *shares, told])
    columns = ["labeler", "labels", "median time", "as the others", "as a researcher", "as before", "gold right", "too fast", "flags"]
    note = (
        "As the others: the same as their most frequent answer. As before: the same answer to a question that came again. "
        "Too fast: sooner than the texts can be read, at 500 words a minute. "
        "Flags are tests that allow a look after every label, at one false alarm in a hundred labelers; they ask for a look, no more."
    )
    return Table(columns, body, note) if body else None


def flagged(run: Run) -> list[str]:
    """Who should be looked at and why, a sentence each."""
    people = rows(section(run.results, "agreement"), "people")[:100]
    return [f"{clipped(str(row.get('labeler')), 60)}: {'; '.join(_flags(row))}" for row in people if _flags(row)]


def _flags(row: dict[str, Any]) -> list[str]:
    flags = row.get("flags")
    return [clipped(str(flag), 200) for flag in flags] if isinstance(flags, list) else []


def _share(share: dict[str, Any]) -> str:
    trials, rate = number(share.get("trials")), number(share.get("rate"))
    return f"{percent(rate)} of {decimal(trials, 9)}".replace(" ", NO_BREAK) if trials and rate is not None else ""


def stops(run: Run) -> list[str]:
    """Who pulled the cord, why, and when the run went on; a sentence each."""
    return [clipped(str(row.get("text")), 500) for row in run.alarms if row.get("stage") == "cord"]
