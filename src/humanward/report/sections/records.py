"""Samples, labels, time and memory, environment: what the run folder recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

from humanward.report.reading import Run, flat, number, section
from humanward.report.sections.parts import Table, policy_name, tuned_by
from humanward.report.text import clipped, decimal, duration, memory, without_secrets


@dataclass(frozen=True)
class Sample:
    """One prompt with a response per policy: (policy, text, score)."""

    prompt: str
    responses: list[tuple[str, str, str]] = field(default_factory=list)


def samples(run: Run) -> list[Sample]:
    """The rows of samples.jsonl that have a prompt and at least one response."""
    found = []
    for i, row in enumerate(run.samples[:24], start=1):
        prompt = row.get("prompt")
        if isinstance(prompt, dict):
            prompt = prompt.get("text")
        scores = section(row, "scores")
        responses = [
            (policy_name(key), clipped(text.removeprefix(" ")), decimal(number(scores.get(key))) if key in scores else "")
            for key in ("reference", tuned_by(run), "sft")
            if isinstance(text := row.get(key), str)
        ]
        if not isinstance(prompt, str) or not responses:
            run.note(f"evaluation/samples.jsonl: row {i} has no prompt or no response and is left out.")
            continue
        found.append(Sample(clipped(prompt), responses))
    return found


def labels_table(run: Run) -> tuple[float | None, Table | None]:
    """Labels in all, and those of each round."""
    source = section(run.results, "labels") or section(run.state, "labels")
    total = number(source.get("total"))
    if not source and (run.results or run.state):
        run.note("Neither evaluation/results.json nor state.json records how many labels were given.")
    listed = source.get("rounds")
    body = []
    for i, item in enumerate(listed if isinstance(listed, list) else [], start=1):
        if isinstance(item, dict):
            counts = [number(item[key]) for key in ("labels", "total", "count") if key in item]
            body.append([decimal(number(item.get("round", i)), 9), decimal(counts[0] if counts else None, 9)])
        else:
            body.append([str(i), decimal(number(item), 9)])
    return total, Table(["round", "labels"], body[:200]) if body else None


def time_table(run: Run) -> Table | None:
    """Seconds and peak memory by stage, summed over rounds."""
    stages: dict[str, tuple[int, float, float | None]] = {}
    for i, row in enumerate(run.timings, start=1):
        stage, seconds, peak = str(row.get("stage", "?")), number(row.get("seconds")), number(row.get("peak_memory_bytes"))
        if seconds is None:
            run.note(f"timings.jsonl: row {i} has no seconds and is left out.")
            continue
        count, total, high = stages.get(stage, (0, 0.0, None))
        stages[stage] = (count + 1, total + seconds, max((x for x in (high, peak) if x is not None), default=None))
    if not stages:
        return None
    body = [[clipped(stage, 60), str(count), duration(total), memory(high)] for stage, (count, total, high) in list(stages.items())[:40]]
    body.append(["all", "", duration(sum(total for _, total, _ in stages.values())), ""])
    return Table(["stage", "times", "time", "peak memory"], body)


def environment_table(run: Run) -> Table | None:
    """Versions and hardware as recorded."""
    settings = flat(run.environment, limit=200)
    body = [[clipped(key, 100), without_secrets(key, clipped(value, 300))] for key, value in settings.items()]
    return Table(["", "value"], body) if body else None
