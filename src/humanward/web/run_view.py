"""What the pages say about the run that the labels are for. A file that is missing or being written is no fault here."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humanward.config.yaml_text import read_layer
from humanward.errors import RunError, UserError
from humanward.storage import RunFolder, read_json

POINTS = 200
"""Of one curve; longer ones are averaged."""
TUNING = "tuning"
"""Stands for the stage that tunes the policy, which is called after the run's method."""
CHARTS: list[tuple[str, str, str, dict[str, str], str]] = [  # id, title, stage, metrics with their names, what stands below
    ("score", "Score of the policy", TUNING, {"score": "reward model", "true_score": "known score"}, "update"),
    ("kl", "KL from the reference, nats per response", TUNING, {"kl": "KL"}, "update"),
    ("length", "Length of responses, tokens", TUNING, {"response_length": "length"}, "update"),
    ("entropy", "Entropy, nats per token", TUNING, {"entropy": "entropy"}, "update"),
    ("implicit", "Accuracy of the implicit reward", TUNING, {"accuracy": "round {round}"}, "update of the round"),
    (
        "displacement", "Judged responses against the reference, nats", TUNING,
        {"chosen_moved": "chosen, round {round}", "rejected_moved": "rejected, round {round}"}, "update of the round",
    ),
    ("off-both", "Probability moved off both", TUNING, {"mass_off_both": "round {round}"}, "update of the round"),
    ("accuracy", "Accuracy of the reward model", "reward", {"accuracy": "round {round}"}, "step of the round"),
    ("reward-loss", "Loss of the reward model", "reward", {"loss": "round {round}"}, "step of the round"),
    ("sft-loss", "Loss of fine-tuning on texts", "sft", {"loss": "loss"}, "step"),
]  # fmt: skip
STAGES = {
    "prompts": "prepares the prompts", "sft": "fine-tunes the model on texts", "sample": "writes the responses of round {round}",
    "label": "waits for the labels of round {round}", "reward": "fits the reward model of round {round}",
    TUNING: "tunes the policy in round {round}", "chosen_sft": "fine-tunes on chosen responses", "baseline_sft": "fine-tunes the baseline",
    "export": "writes the policy",
    "evaluate": "compares the policies", "done": "is finished",
}  # fmt: skip
FIRST_COMPARISON = 1_000_000
"""Round numbers from here on stand for comparisons (rounds.head_to_head)."""
FOR_LABELERS = {
    "prompts": "The prompts are being prepared.", "sft": "The model is learning from texts.", "sample": "New responses are being written.",
    "label": "What is left to answer is with others now.", "reward": "A model of what was preferred is being fitted to the answers.",
    TUNING: "The policy is being trained on what was preferred.",
    "chosen_sft": "The model is learning from chosen answers.", "baseline_sft": "A baseline is being trained for comparison.",
    "export": "The policy is being written.", "evaluate": "The policies are being compared.", "done": "All is done: thank you.",
}  # fmt: skip
Points = list[tuple[float, float]]


@dataclass
class _Rows:
    """The rows of a log that only grows, except when a resumed run cuts it back."""

    offset: int = 0
    inode: int = 0
    head: bytes = b""
    rows: list[dict[str, Any]] = field(default_factory=list)


class RunView:
    """Reads state.json and metrics.jsonl of one run, only what is new."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = RunFolder(folder) if folder is not None else None
        self._read = _Rows()
        self._lock = threading.Lock()
        self._comparisons: dict[int, str] = {}

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.path.resolve().name if self.folder is not None else ""

    def stage(self) -> tuple[str, int] | None:
        """The stage that the trainer is at, and its round; None where it has not begun or nobody can tell."""
        state = self._state()
        stage, number = state.get("stage"), state.get("round", 0)
        return (stage, number) if isinstance(stage, str) and isinstance(number, int) else None

    def _state(self) -> dict[str, Any]:
        try:
            state = read_json(self.folder.state) if self.folder is not None else {}
        except RunError:
            return {}
        return state if isinstance(state, dict) else {}

    def waiting(self) -> dict[str, Any]:
        """What the trainer waits for, as it says itself in state.json; empty where it does not."""
        waiting = self._state().get("waiting")
        return waiting if isinstance(waiting, dict) else {}

    def waits_for_labels(self) -> bool:
        """Whether the trainer can do nothing before labels come."""
        stage = self.stage()
        return self.waiting().get("for") == "labels" or bool(stage and stage[0] == "label")

    def round_name(self, number: int) -> str:
        """ "round 3", or the name of the comparison whose questions have this number."""
        if number < FIRST_COMPARISON or self.folder is None:
            return f"round {number}"
        if number not in self._comparisons:
            folders = [path for path in self.folder.path.glob("comparisons/*") if path.is_dir()]
            self._comparisons |= {_round_of(path): path.name for path in folders}
        return f"the comparison {self._comparisons.get(number, number)}"

    def doing(self) -> str:
        """The same as words, to stand behind "the trainer"."""
        stage = self.stage()
        if self.waiting().get("for") == "cord":
            return "has saved and waits until the cord is released"
        return STAGES.get(self._known(stage[0]), "is at {0}").format(stage[0], round=stage[1]) if stage else "has not begun"

    def why_nothing(self) -> str:
        """For a labeler who has nothing to do: a sentence on what goes on meanwhile; empty where nobody can tell."""
        stage = self.stage()
        if self.waiting().get("for") == "cord":
            return "The training was stopped by a researcher for now."
        return FOR_LABELERS.get(self._known(stage[0]), "") if stage else ""

    def _known(self, stage: str) -> str:
        """A stage as the tables here name it."""
        return TUNING if stage == self.settings().get("method", "ppo") else stage

    def settings(self) -> dict[str, Any]:
        """config.yaml as plain values; empty where it cannot be read."""
        try:
            return read_layer(self.folder.config).values if self.folder is not None else {}
        except UserError:
            return {}

    def charts(self) -> list[dict[str, Any]]:
        """The curves that there are, as JSON: id, title, below, series of {name, points}."""
        rows, method = self.rows(), self.settings().get("method", "ppo")
        charts = []
        for name, title, stage, metrics, below in CHARTS:
            wanted = method if stage == TUNING else stage
            series = [one for metric, label in metrics.items() for one in _series(rows, wanted, metric, label)]
            if series:
                charts.append({"id": name, "title": title, "below": below, "series": series})
        return charts

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl so far."""
        if self.folder is None:
            return []
        with self._lock:
            try:
                self._catch_up(self.folder.metrics)
            except OSError:
                return []
            return list(self._read.rows)

    def _catch_up(self, path: Path) -> None:
        with open(path, "rb") as file:
            stat = path.stat()
            head = file.read(min(200, self._read.offset))
            if stat.st_ino != self._read.inode or stat.st_size < self._read.offset or head != self._read.head[: len(head)]:
                self._read = _Rows(inode=stat.st_ino)  # a resumed run has cut the log back
            file.seek(self._read.offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        if self._read.offset < 200:
            self._read.head += whole[: 200 - self._read.offset]
        self._read.offset += len(whole)
        self._read.rows += filter(None, map(_row, whole.splitlines()))


def _round_of(comparison: Path) -> int:
    """The number under which the questions of a comparison are kept; 0 where it has none yet."""
    for path in sorted(comparison.glob("pairs-*.jsonl"))[:1]:
        try:
            with open(path, encoding="utf-8") as file:
                return int(json.loads(file.readline())["round"])
        except (OSError, ValueError, KeyError, TypeError):
            break
    return 0


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int) else None


def _series(rows: Iterable[dict[str, Any]], stage: str, metric: str, name: str) -> list[dict[str, Any]]:
    """One series, or one per round where the name says so."""
    found: dict[str, Points] = {}
    for row in rows:
        value = row.get(metric)
        if row["stage"] == stage and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found.setdefault(name.format(round=row.get("round", 0)), []).append((row["step"], float(value)))
    return [{"name": label, "points": averaged(points)} for label, points in found.items()]


def averaged(points: Points, most: int = POINTS) -> Points:
    """Means of neighbouring points, at most ``most`` of them."""
    size = -(-len(points) // most)
    chunks = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in chunk) / len(chunk), _rounded(sum(y for _, y in chunk) / len(chunk))) for chunk in chunks]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
