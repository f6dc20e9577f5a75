"""Read a run folder that may be unfinished or damaged: what is there is returned, what is not there is named, nothing is guessed.

The files and the keys that the report reads:

    config.yaml               the resolved settings
    environment.json          versions, hardware, threads, seed
    state.json                stage, round, step; may hold ``labels``
    metrics.jsonl             one row per step: stage ("sft", "reward", the method's, …), round, step and that stage's numbers
    timings.jsonl             stage, round, seconds, peak_memory_bytes
    alarms.jsonl              stage, round, step, text: what the watch over the metrics said; there only if it said something
    rounds/*/reward/measured.json   of a run without an evaluation yet: reward_model, reward_validation, reward_probes
    evaluation/results.json   labeler, seed, prompts, win_rates, scores, kl, reward_model, frontier, text_quality, labels
    evaluation/samples.jsonl  prompt, one response per policy, scores
    comparisons/*/results.json, reward_curve/results.json   only where somebody asked for them
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from humanward.errors import UserError

# What the reader of the report loses without the file; said beside the file's name when it is missing.
ALARMS = "alarms.jsonl"
REWARD_CURVE = "reward_curve/results.json"
MEASURED = "rounds/*/reward/measured.json"
CARRIES = {
    "config.yaml": "the settings of the run",
    "environment.json": "versions and hardware",
    "state.json": "how far the run has come",
    "metrics.jsonl": "the learning curves",
    "timings.jsonl": "time and memory",
    "evaluation/results.json": "win rates, scores, KL, reward-model accuracy and text quality",
    "evaluation/samples.jsonl": "the samples",
}


def _carries(name: str) -> str:
    others = {"comparisons": "a comparison", "reward_curve": "what more labels would bring", "rounds": "what the reward model knew"}
    return CARRIES.get(name) or others[name.partition("/")[0]]


@dataclass(frozen=True)
class Run:
    """Everything the report reads from one run folder; empty containers stand for files that could not be read."""

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    state: dict[str, Any]
    results: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    alarms: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    """Head-to-heads, by name."""
    reward_curve: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """One line per file, line or key that is absent or unreadable. Filled here and by the sections as they look for their keys."""

    def note(self, line: str) -> None:
        """Add a line to ``missing`` once."""
        if line not in self.missing:
            self.missing.append(line)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: ``folder`` is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give the folder that holds config.yaml and metrics.jsonl")
    missing: list[str] = []
    return Run(
        name=folder.resolve().name,
        config=_read_object(folder, "config.yaml", missing),
        environment=_read_object(folder, "environment.json", missing),
        state=_read_object(folder, "state.json", missing),
        results=_read_object(folder, "evaluation/results.json", missing) or _measured_so_far(folder, missing),
        metrics=_read_rows(folder, "metrics.jsonl", missing),
        timings=_read_rows(folder, "timings.jsonl", missing),
        samples=_read_rows(folder, "evaluation/samples.jsonl", missing),
        alarms=_read_rows(folder, ALARMS, missing) if (folder / ALARMS).exists() else [],
        comparisons=[_read_object(folder, name, missing) for name in _results_of(folder / "comparisons")],
        reward_curve=_read_object(folder, REWARD_CURVE, missing) if (folder / REWARD_CURVE).exists() else {},
        missing=missing,
    )


def _measured_so_far(folder: Path, missing: list[str]) -> dict[str, Any]:
    """What the newest round that has fitted a reward model measured of it: the part of the results that is known before the evaluation."""
    newest = sorted(folder.glob(MEASURED), key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0)[-1:]
    return _read_object(folder, str(newest[0].relative_to(folder)), missing) if newest else {}


def _results_of(folder: Path) -> list[str]:
    try:
        return sorted(f"comparisons/{path.name}/results.json" for path in folder.iterdir() if (path / "results.json").is_file())
    except OSError:
        return []


def number(value: object) -> float | None:
    """The value as a finite float, or None: for text, booleans, NaN, infinities and numbers that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def section(parent: object, key: str) -> dict[str, Any]:
    """The object under ``key``, or an empty one."""
    value = parent.get(key) if isinstance(parent, dict) else None
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def rows(parent: object, key: str) -> list[dict[str, Any]]:
    """The objects in the list under ``key``, or none."""
    value = parent.get(key) if isinstance(parent, dict) else None
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def points(parent: object, key: str, width: int) -> list[tuple[float, ...]]:
    """The lists of exactly ``width`` finite numbers in the list under ``key``; others are left out."""
    value = parent.get(key) if isinstance(parent, dict) else None
    found = []
    for row in value if isinstance(value, list) else []:
        numbers = [number(x) for x in row] if isinstance(row, list) else []
        if len(numbers) == width and None not in numbers:
            found.append(tuple(x for x in numbers if x is not None))
    return found


def flat(settings: dict[str, Any], *, limit: int = 2_000) -> dict[str, str]:
    """Nested settings as ``dotted.key`` to text, at most ``limit`` of them (YAML aliases can multiply without end)."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, object, int]] = [("", settings, 0)]
    while waiting and len(found) < limit:
        key, value, depth = waiting.pop()
        if isinstance(value, dict) and value and depth < 8:
            waiting.extend((f"{key}.{k}" if key else str(k), v, depth + 1) for k, v in reversed(list(value.items())))
        elif key:
            found[key] = _setting_text(value)
    return found


def _setting_text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return ", ".join(str(x) for x in value[:50] if not isinstance(x, dict | list)) + (", …" if len(value) > 50 else "")
    return str(value)


def _read_text(folder: Path, name: str, missing: list[str]) -> bytes | None:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        missing.append(f"{name} is missing: {_carries(name)} cannot be shown.")
    except OSError as error:
        missing.append(f"{name} cannot be read ({error.strerror or type(error).__name__}): {_carries(name)} cannot be shown.")
    return None


def _read_object(folder: Path, name: str, missing: list[str]) -> dict[str, Any]:
    """One JSON or YAML file that holds an object."""
    data = _read_text(folder, name, missing)
    if data is None:
        return {}
    try:
        text = data.decode("utf-8-sig")
        value = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        missing.append(f"{name} is damaged ({_reason(error)}): {_carries(name)} cannot be shown.")
        return {}
    if not isinstance(value, dict) or not value:
        missing.append(f"{name} holds no settings or results: {_carries(name)} cannot be shown.")
        return {}
    return {str(key): item for key, item in value.items()}


def _read_rows(folder: Path, name: str, missing: list[str]) -> list[dict[str, Any]]:
    """One JSON object per line; lines that are not are left out and counted."""
    data = _read_text(folder, name, missing)
    if data is None:
        return []
    found: list[dict[str, Any]] = []
    bad: list[int] = []
    for line_number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            bad.append(line_number)
    if bad:
        some = ", ".join(str(n) for n in bad[:5]) + (", …" if len(bad) > 5 else "")
        missing.append(f"{name}: {len(bad)} of {len(bad) + len(found)} lines cannot be read and are left out (line {some}).")
    elif not found and name != ALARMS:  # a run that went on may have cut the only one away
        missing.append(f"{name} is empty: {_carries(name)} cannot be shown.")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return "nested too deeply" if isinstance(error, RecursionError) else "unreadable value"
