"""The report of a study: one HTML file from its results.json alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from humanward.errors import UserError
from humanward.report import charts
from humanward.report.page import page
from humanward.report.sections.parts import Chart, Table, spread
from humanward.report.svg import house_settings, inline_svg
from humanward.report.text import decimal, estimate
from humanward.storage import read_json
from humanward.storage.files import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

MARKS = {"holds": "✓", "open": "?", "does not hold": "✗", "cannot be judged": "–"}
TABLE_ROWS = 12
BESIDE = {"optimum": "optimum", "best_of_n": "best of n"}


def build_study_report(folder: Path) -> Path:
    """Write ``report.html`` into a study's folder. The same results give the same bytes.

    Raises:
        UserError: there are no results in the folder.
    """
    if not (folder / "results.json").is_file():
        raise UserError(f"{folder}: no results of a study here; give the folder that `humanward study` wrote into")
    results = read_json(folder / "results.json")
    arms = list(results["arms"])
    with house_settings():
        curves = [_curve(number, curve, arms) for number, curve in enumerate(results["curves"]) if curve["series"]]
    context = {
        "title": results["title"],
        "about": results["about"],
        "remark": results["remark"],
        "claims": [claim | {"mark": MARKS[claim["word"]]} for claim in results["claims"]],
        "seen": sum(claim["word"] == "holds" for claim in results["claims"]),
        "legend": [{"arm": arm, "colour": look[0], "style": look[1]} for i, arm in enumerate(arms) if (look := charts.arm_look(i))],
        "curves": curves,
        "final": _final(results, arms),
        "differences": _differences(results, arms),
        "baseline": results["baseline"],
        "settings": _settings(results),
        "common": Table(["setting", "value"], [[name, _value(value)] for name, value in results["common"].items()]),
        "preset": results["preset"],
        "seeds": results["seeds"],
        "done": sum(cell["state"] == "done" for cell in results["cells"]),
        "cells": len(results["cells"]),
        "failed": [cell for cell in results["cells"] if cell["state"] == "failed"],
    }
    path = folder / "report.html"
    write_bytes(path, page("study.html.jinja", context))
    return path


def _curve(number: int, curve: dict[str, Any], arms: list[str]) -> Chart:
    """A curve of all arms, and its numbers."""
    over_time = " over " not in curve["curve"]  # a band over a number that goes back and forth would say nothing
    series = [charts.ArmCurve(arms.index(one["arm"]), [_point(p, over_time) for p in one["points"]]) for one in curve["series"]]
    beside = [(BESIDE[name], [(x, y) for x, y in line]) for name, line in curve["beside"].items()]
    x, y = curve["x"].replace("_", " "), curve["y"].replace("_", " ")
    title = y if over_time else f"{y} over {x}"
    last = "; ".join(f"{one['arm']} {decimal(one['points'][-1][1])}" for one in curve["series"])
    description = f"{title}, at the end: {last}."
    name = f"curve-{number}"
    picture = inline_svg(
        charts.comparison(series, x_label=x, beside=beside), name=name, title=title, description=description, width="small"
    )
    rows = [[one["arm"], decimal(p[0]), estimate(p[1], p[2], p[3])] for one in curve["series"] for p in spread(one["points"], TABLE_ROWS)]
    return Chart(name, title, "", [picture], Table(["arm", x, "mean and 95 % interval"], rows))


def _point(row: list[float], band: bool) -> tuple[float, float, float | None, float | None]:
    return row[0], row[1], row[2] if band else None, row[3] if band else None


def _final(results: dict[str, Any], arms: list[str]) -> Table:
    """A row per arm, a column per measure."""
    measures = list(dict.fromkeys(row["measure"] for row in results["table"]))
    cells = {(row["arm"], row["measure"]): estimate(row["mean"], row["low"], row["high"]) for row in results["table"]}
    return Table(["arm", *measures], [[arm, *(cells.get((arm, m), "not measured") for m in measures)] for arm in arms])


def _differences(results: dict[str, Any], arms: list[str]) -> Table:
    """Every arm less the baseline."""
    measures = list(dict.fromkeys(row["measure"] for row in results["differences"]))
    cells = {(row["arm"], row["measure"]): estimate(row["mean"], row["low"], row["high"], sign=True) for row in results["differences"]}
    others = [arm for arm in arms if arm != results["baseline"]]
    return Table(
        ["arm", *measures], [[arm, *(cells.get((arm, m), "not measured") for m in measures)] for arm in others] if measures else []
    )


def _settings(results: dict[str, Any]) -> Table:
    """What the arms differ in."""
    names = list(dict.fromkeys(name for values in results["arms"].values() for name in values))
    rows = [[arm, *(_value(values[name]) if name in values else "" for name in names)] for arm, values in results["arms"].items()]
    return Table(["arm", *names], rows)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
