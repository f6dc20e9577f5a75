"""Blind head-to-heads that somebody asked for, and what more labels would bring."""

from __future__ import annotations

from typing import Any

from humanward.report import charts
from humanward.report.reading import Run, number, points, rows
from humanward.report.sections.parts import Chart, Table, policy_name, spread, two_widths
from humanward.report.sections.people import ceiling
from humanward.report.text import clipped, decimal, interval, percent

SIDES = {"policy": "tuned policy", "sft": "SFT on chosen responses"}
WHY = {
    "decided": "It stopped because one half was excluded.",
    "precise": "It stopped because the interval was as narrow as was asked for.",
    "maximum": "It stopped because the prompts were used up.",
}


def comparisons(run: Run) -> list[tuple[str, Chart]]:
    """(what can be said, its drawing) of every head-to-head."""
    found = [made for i, row in enumerate(run.comparisons[:20]) if (made := _comparison(run, row, i)) is not None]
    return found


def _comparison(run: Run, row: dict[str, Any], place: int) -> tuple[str, Chart] | None:
    rate, low, high = (number(row.get(key)) for key in ("rate", "low", "high"))
    if not row:
        return None
    if rate is None or low is None or high is None:
        run.note("A comparison has no rate or no interval and is left out.")
        return None
    a, b = (_side(row.get(key)) for key in ("a", "b"))
    path = points(row, "path", 4)
    title = f"{a} against {b}"
    name = f"versus-{place + 1}"
    level = number(row.get("level")) or 0.95
    said = f"{title}: {percent(rate)}, interval {interval(low, high, 'percent')} after {len(path)} outcomes."
    pictures = two_widths(name, title, said, lambda width: charts.sequence([(p[0], p[1], p[2], p[3]) for p in path], width=width))
    by = str(row.get("labeler"))
    who = "People" if by == "people" else f"The score “{clipped(by.removeprefix('score:'), 60)}”"
    words = [f"{who} saw both responses side by side, unnamed and in random order."]
    words.append(f"The band is the {100 * level:g} % interval after every outcome; it holds however often one looks.")
    words.append(WHY.get(str(row.get("reason")), ""))
    labels, fixed = number(row.get("labels")), number(row.get("fixed_size"))
    if labels is not None and fixed is not None:
        words.append(
            f"It took {decimal(labels, 9)} labels; a test of fixed size would have needed {decimal(fixed, 9)} to see such a rate with "
            f"{percent(number(row.get('power')))} probability, had somebody known the rate beforehand."
        )
    body = [[decimal(n, 9), percent(r), interval(l, h, "percent")] for n, r, l, h in spread(path, 30)]
    chart = Chart(name, title, " ".join(filter(None, words)), pictures, Table(["outcomes", "rate", "interval"], body))
    return _verdict(row, a, b, rate, low, high), chart


def _side(name: object) -> str:
    """A side of a comparison in words."""
    kind, _, number_ = str(name).partition(":")
    if kind == "round" and number_.isdigit():
        return f"policy of round {number_}"
    return SIDES.get(str(name), policy_name(name))


def asked_people(run: Run) -> str:
    """What people said of the tuned policy beside the reference, where they were asked."""
    for i, row in enumerate(run.comparisons):
        if row.get("labeler") == "people" and {row.get("a"), row.get("b")} == {"policy", "reference"}:
            made = _comparison(run, row, i)
            if made is not None:
                return f"Asked blind, people said: {made[0][0].lower()}{made[0][1:]}"
    return ""


def _verdict(row: dict[str, Any], a: str, b: str, rate: float, low: float, high: float) -> str:
    counts = ", ".join(f"{decimal(number(row.get(key)), 9)} {key}" for key in ("wins", "losses", "ties"))
    numbers = f"{percent(rate)} for the {a} ({interval(low, high, 'percent')}): {counts}."
    if low >= 0.5:
        return f"The {a} is preferred to the {b}. {numbers}"
    if high <= 0.5:
        return f"The {b} is preferred to the {a}. {numbers}"
    return f"No difference between the {a} and the {b} is shown. {numbers}"


def more_labels(run: Run) -> Chart | None:
    """Accuracy over the number of labels, drawn on as far as is honest, beside the ceiling and chance."""
    data = run.reward_curve
    measured = [
        (n, value, number(row.get("low")), number(row.get("high")))
        for row in rows(data, "points")
        if (n := number(row.get("questions"))) is not None and (value := number(row.get("accuracy"))) is not None
    ]
    if not measured:
        return None
    ahead = [
        tuple(number(row.get(key)) for key in ("labels", "accuracy", "low", "high", "gain", "gain_low", "gain_high"))
        for row in rows(data, "forecasts")
    ]
    known = [tuple(x for x in row if x is not None) for row in ahead if None not in row]
    drawn = [(p[0], p[1]) for p in points(data, "drawn", 2)]
    chance = number(data.get("chance"))
    title = "Would more labels help?"
    last = measured[-1]
    said = f"{percent(last[1])} right with {decimal(last[0], 9)} questions" + (
        f"; {percent(known[0][1])} with {decimal(known[0][0], 9)}, if the curve goes on." if known else "."
    )
    pictures = two_widths(
        "more-labels", title, said,
        lambda width: charts.label_curve(measured, drawn, [row[:4] for row in known], chance=chance, ceiling=ceiling(run), width=width),
    )  # fmt: skip
    body = [[decimal(n, 9), percent(v), interval(l, h, "percent"), "measured"] for n, v, l, h in measured]
    body += [[decimal(row[0], 9), percent(row[1]), interval(row[2], row[3], "percent"), "drawn on"] for row in known]
    return Chart("more-labels", title, _advice(known), pictures, Table(["questions", "accuracy", "interval", ""], body))


def _advice(known: list[tuple[float, ...]]) -> str:
    words = (
        "Models fitted to nested parts of the labels, measured on questions that they had not seen; the points are means over "
        "repetitions. The line is a power law with a floor, fitted to them and drawn on to four times the labels with its 90 % interval."
    )
    if not known:
        return words
    _, _, _, _, gain, least, most = known[0]
    amount = f"{100 * gain:.1f} points of accuracy (90 % interval {100 * least:.1f} to {100 * most:.1f})"
    if most < 0.02:
        return f"{words} Twice the labels would bring {amount}: hardly worth asking for. Better questions or a larger model would do more."
    if least > 0.005:
        return f"{words} Twice the labels would bring {amount}, if the curve goes on: more labels help."
    return f"{words} Twice the labels would bring {amount}: these measurements do not tell whether more labels help."
