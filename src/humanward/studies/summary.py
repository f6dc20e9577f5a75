"""What a study says so far: final numbers with intervals, paired differences, curves, verdicts. From the folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from humanward.report.text import estimate
from humanward.storage.files import write_bytes, write_json
from humanward.studies.claims import Cells, Difference
from humanward.studies.folder import TABLE, StudyFolder
from humanward.studies.measures import CurveSource, Measure, Measured
from humanward.studies.spec import Study

POINTS = 120
"""Of a drawn curve, at most."""


def summarize(place: StudyFolder, study: Study) -> dict[str, Any]:
    """Write results.json and results.md, and return the former. The same cells give the same bytes, whenever they were made."""
    cells = study.cells()
    states = {cell: place.state(cell) for cell in cells}
    measured: dict[str, dict[int, Measured]] = {arm: {} for arm in study.arms}
    for cell, state in states.items():
        if state == "done":
            measured[cell.arm][cell.seed] = place.measured(cell)
    results = {
        "name": study.name,
        "title": study.config.title,
        "about": " ".join(study.config.about.split()),
        "remark": " ".join(study.config.remark.split()),
        "baseline": study.baseline,
        "seeds": study.config.seeds,
        "arms": _arm_settings(study),
        "common": _flat(study.layer.values.get("settings") or {}) | dict(override.split("=", 1) for override in study.overrides),
        "preset": study.config.preset,
        "cells": [
            {"arm": cell.arm, "seed": cell.seed, "state": state} | ({"error": place.error(cell)} if state == "failed" else {})
            for cell, state in states.items()
        ],
        "claims": [
            {"says": said.says, "check": said.check, "source": said.source, **claim.judge(measured)._asdict()}
            for said, claim in zip(study.config.claims, study.claims, strict=True)
        ],
        "table": [row for measure in study.measures for row in _rows(measure, measured)],
        "differences": [row for measure in study.measures for row in _differences(measure, measured, study.baseline)],
        "curves": [_curve(source, measured) for source in study.curves],
    }
    write_json(place.results, results)
    write_bytes(place.path / TABLE, markdown(results).encode())
    return results


def _rows(measure: Measure, measured: Cells) -> list[dict[str, Any]]:
    """A measure of every arm that has it."""
    rows = []
    for arm, seeds in measured.items():
        values = _values(measure, seeds)
        if values:
            mean = Difference.of(list(values.values()))
            rows.append(
                {"measure": measure.text, "arm": arm, "mean": mean.mean, "low": mean.low, "high": mean.high, "values": _by_seed(values)}
            )
    return rows


def _differences(measure: Measure, measured: Cells, baseline: str) -> list[dict[str, Any]]:
    """Every other arm less the baseline, seed by seed."""
    base = _values(measure, measured[baseline])
    rows = []
    for arm, seeds in measured.items():
        values = _values(measure, seeds)
        common = sorted(values.keys() & base.keys())
        if arm != baseline and common:
            mean = Difference.of([values[seed] - base[seed] for seed in common])
            rows.append({"measure": measure.text, "arm": arm, "mean": mean.mean, "low": mean.low, "high": mean.high, "seeds": mean.seeds})
    return rows


def _values(measure: Measure, seeds: Mapping[int, Measured]) -> dict[int, float]:
    """Of the seeds that have it, in their order."""
    return {seed: value for seed, cell in sorted(seeds.items()) if (value := measure.of(cell)) is not None}


def _curve(source: CurveSource, measured: Cells) -> dict[str, Any]:
    """Mean and interval over seeds at every step; a curve over another number runs through the means of both at each step."""
    x_name, series = source.x or "step", []
    for arm, seeds in measured.items():
        found = [source.points(cell) for _, cell in sorted(seeds.items())]
        found = [one for one in found if one[1]]
        if not found:
            continue
        x_name = found[0][0]
        shortest = min(len(xs) for _, xs, _ in found)
        xs = np.array([xs[:shortest] for _, xs, _ in found], dtype=float)
        ys = np.array([ys[:shortest] for _, _, ys in found], dtype=float)
        parts = np.array_split(np.arange(shortest), min(POINTS, shortest))
        points = [_point(xs[:, part].mean(axis=1), ys[:, part].mean(axis=1)) for part in parts]
        series.append({"arm": arm, "seeds": len(found), "points": points})
    beside = {name: _mean_line(name, measured) for name in source.beside}
    return {"curve": source.text, "y": source.y, "x": x_name, "series": series, "beside": {n: line for n, line in beside.items() if line}}


def _point(xs: np.ndarray, ys: np.ndarray) -> list[float | None]:
    """(x, mean, low, high) over seeds."""
    mean = Difference.of(ys.tolist())
    return [float(xs.mean()), mean.mean, mean.low, mean.high]


def _mean_line(name: str, measured: Cells) -> list[list[float]]:
    """A line of the evaluation, meaned over all cells that have it."""
    found = [cell.lines[name] for seeds in measured.values() for cell in seeds.values() if name in cell.lines]
    shortest = min(map(len, found), default=0)
    return np.mean([line[:shortest] for line in found], axis=0).tolist() if shortest else []


def _arm_settings(study: Study) -> dict[str, dict[str, Any]]:
    """What each arm sets, by dotted name."""
    return {arm: {k: v for layer in layers for k, v in _flat(layer.values).items()} for arm, layers in study.arm_layers().items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}


def markdown(results: Mapping[str, Any]) -> str:
    """The study as a section of a page."""
    arms = [arm for arm in results["arms"] if any(row["arm"] == arm for row in results["table"])]
    measures = list(dict.fromkeys(row["measure"] for row in results["table"]))
    cells = {(row["arm"], row["measure"]): estimate(row["mean"], row["low"], row["high"]) for row in results["table"]}
    lines = [f"## {results['title']}", ""]
    if results["about"]:
        lines += [results["about"], ""]
    if results["claims"]:
        lines += ["| Shape | Seen? | Numbers |", "|---|---|---|"]
        for claim in results["claims"]:
            source = f" ({claim['source']})" if claim["source"] else ""
            lines.append(f"| {_cell(claim['says'] + source)} | {claim['word']} | {_cell(claim['because'])} |")
        lines.append("")
    lines += ["| | " + " | ".join(f"`{measure}`" for measure in measures) + " |", "|---" * (len(measures) + 1) + "|"]
    lines += [f"| {_cell(arm)} | " + " | ".join(cells.get((arm, measure), "") for measure in measures) + " |" for arm in arms]
    done = sum(cell["state"] == "done" for cell in results["cells"])
    if results["remark"]:
        lines += ["", results["remark"]]
    lines += ["", f"Means of {len(results['seeds'])} seeds with Student's 95 % intervals; differences are taken seed by seed."]
    if done < len(results["cells"]):
        lines[-1] += f" {done} of {len(results['cells'])} cells are done."
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
