"""Put the report together and write it: one HTML file that needs nothing else, runs no script and asks no server for anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from humanward.report import sections
from humanward.report.page import page
from humanward.report.reading import Run, number, read_run, rows, section
from humanward.report.svg import house_settings
from humanward.report.text import decimal, interval, percent
from humanward.storage.files import write_bytes

if TYPE_CHECKING:
    from pathlib import Path


def build_report(run_folder: Path) -> Path:
    """Write ``report.html`` into the run folder, from the files of that folder alone.

    Missing and damaged files never stop it: the report names them at its top. The same folder gives the same bytes.

    Raises:
        UserError: ``run_folder`` is not a folder.
        RunError: the file cannot be written.
    """
    run = read_run(run_folder)
    with house_settings():
        context = _context(run)
    path = run_folder / "report.html"
    write_bytes(path, page("report.html.jinja", context))
    return path


def summary(run_folder: Path) -> dict[str, Any]:
    """The numbers of the report for a program or a terminal; what is not recorded is None, and ``missing`` says why.

    Raises:
        UserError: ``run_folder`` is not a folder.
    """
    run = read_run(run_folder)
    rates = sections.win_rates(run)
    head = sections.headline(rates)
    total, _ = sections.labels_table(run)
    seconds = [s for row in run.timings if (s := number(row.get("seconds"))) is not None]
    peaks = [p for row in run.timings if (p := number(row.get("peak_memory_bytes"))) is not None]
    sections.score_table(run)
    sections.quality_table(run)
    return {
        "run": run.name,
        "stage": run.state.get("stage"),
        "labeler": run.results.get("labeler"),
        "seed": run.results.get("seed", run.config.get("seed")),
        "prompts": number(run.results.get("prompts")),
        "headline": _rate(head, run) if head else None,
        "win_rates": [_rate(item, run) for item in rates],
        "scores": _numbers(run, "scores"),
        "kl": _numbers(run, "kl"),
        "reward_model": [
            {key: number(row.get(key)) for key in ("round", "accuracy", "low", "high", "questions", "chance")}
            for row in rows(run.results, "reward_model")
        ],
        "reward_ece": {key: number(_calibration(run).get(key)) for key in ("ece", "low", "high", "questions")},
        "reward_probes": _numbers(run, "reward_probes"),
        "text_quality": _numbers(run, "text_quality"),
        "labels": total,
        "agreement": _agreement(run),
        "comparisons": [
            {key: row.get(key) for key in ("name", "a", "b", "labeler", "rate", "low", "high", "decided", "labels", "fixed_size")}
            for row in run.comparisons
        ],
        "seconds": sum(seconds) if seconds else None,
        "peak_memory_bytes": max(peaks, default=None),
        "missing": list(run.missing),
    }


def _calibration(run: Run) -> dict[str, Any]:
    return section(section(run.results, "reward_validation"), "calibration")


def _agreement(run: Run) -> dict[str, float | None] | None:
    kinds = section(section(run.results, "agreement"), "kinds")
    found = [row for kind in kinds.values() for row in rows(kind, "measures") if row.get("name") == "Same answer"]
    return {key: number(found[0].get(key)) for key in ("value", "low", "high", "chance")} if found else None


def _rate(item: sections.WinRate, run: Run) -> dict[str, Any]:
    names = ("policy", "against", "rate", "low", "high", "wins", "losses", "ties")
    return {name: getattr(item, name) for name in names} | {"verdict": sections.verdict(item, sections.scored_by(run))}


def _numbers(run: Run, key: str) -> dict[str, dict[str, float | None]]:
    """A table policy -> name -> number of the results, with whatever is not a finite number as None."""
    return {name: {k: number(v) for k, v in section(section(run.results, key), name).items()} for name in section(run.results, key)}


def _context(run: Run) -> dict[str, Any]:
    """Everything that the template shows. ``missing`` last: the other entries add to it."""
    rates = sections.win_rates(run)
    head = sections.headline(rates)
    important, everything = sections.settings_tables(run)
    labels_total, labels = sections.labels_table(run)
    labeler, known_score = sections.labeler_words(run)
    return {
        "name": run.name,
        "asked": sections.asked(run),
        "important": important,
        "everything": everything,
        "head": head,
        "verdict": sections.verdict(head, sections.scored_by(run)) if head else None,
        "tiles": _tiles(run, head),
        "progress": _progress(run),
        "win_rate_chart": sections.win_rate_chart(rates, sections.scored_by(run)),
        "frontier_chart": sections.frontier_chart(run),
        "alarms": sections.alarms(run),
        "curves": sections.learning_curves(run),
        "more_curves": sections.more_curves(run),
        "direct": sections.tuned_by(run) in sections.DIRECT,
        "reward_chart": sections.reward_model(run),
        "reward_groups": sections.reward_groups(run),
        "calibration_chart": sections.calibration_chart(run),
        "probes_chart": sections.probes_chart(run),
        "members": sections.members_table(run),
        "score_table": sections.score_table(run),
        "quality_table": sections.quality_table(run),
        "more_labels": sections.more_labels(run),
        "comparisons": sections.comparisons(run),
        "asked_people": sections.asked_people(run),
        "agreement": sections.agreement_chart(run),
        "flagged": sections.flagged(run),
        "pairs_table": sections.pairs_table(run),
        "people_table": sections.people_table(run),
        "stops": sections.stops(run),
        "scored_by": sections.scored_by(run),
        "samples": sections.samples(run),
        "labels_total": labels_total,
        "labels": labels,
        "time_table": sections.time_table(run),
        "environment_table": sections.environment_table(run),
        "labeler": labeler,
        "known_score": known_score,
        "prompts": number(run.results.get("prompts")),
        "seed": run.results.get("seed", run.config.get("seed")),
        "decimal": decimal,
        "percent": percent,
        "interval": interval,
        "missing": run.missing,
    }


def _tiles(run: Run, head: sections.WinRate | None) -> list[dict[str, str]]:
    """The few numbers at the top: what was won, what it cost, whether the text is still language."""
    tuned = head.policy if head else sections.tuned_by(run)
    tiles = []
    if head:
        tiles.append({
            "label": f"win rate against the {sections.policy_name(head.against)}"
            + (", by the reward model" if sections.scored_by(run) == "reward model" else ""),
            "value": percent(head.rate),
            "note": f"95 % interval {interval(head.low, head.high, 'percent') or 'not recorded'}",
        })  # fmt: skip
    kl = section(section(run.results, "kl"), tuned)
    if number(kl.get("mean")) is not None:
        ends = interval(number(kl.get("low")), number(kl.get("high")))
        tiles.append({
            "label": "KL from the reference",
            "value": f"{decimal(number(kl['mean']))} nats",
            "note": f"per response; 95 % interval {ends or 'not recorded'}",
        })  # fmt: skip
    quality = section(run.results, "text_quality")
    measures = (
        ("bits_per_byte", "bits per byte", decimal),
        ("distinct_2", "distinct 2-grams", percent),
        ("repeated_4grams", "repeated 4-grams", percent),
    )
    for key, label, show in measures:
        value, before = number(section(quality, tuned).get(key)), number(section(quality, "reference").get(key))
        if value is not None:
            tiles.append({"label": label, "value": show(value), "note": f"reference: {show(before)}"})
    return tiles


def _progress(run: Run) -> str:
    """How far an unfinished run has come; empty when it is finished or when nothing is recorded."""
    stage = run.state.get("stage")
    if not isinstance(stage, str) or stage in ("done", "finished", "complete"):
        return ""
    place = [f"stage {stage}"]
    place += [f"{key} {decimal(value, 9)}" for key in ("round", "step") if (value := number(run.state.get(key))) is not None]
    return ", ".join(place)
