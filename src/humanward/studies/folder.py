"""A study on disk: a folder of run folders, and who works on which of them."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from humanward.storage import MetricsLog, read_json
from humanward.storage.files import make_folder, write_json
from humanward.studies.measures import Measured, finite
from humanward.studies.spec import Cell

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

State = Literal["done", "failed", "pending"]
STUDY, RESULTS, TABLE, REPORT = "study.yaml", "results.json", "results.md", "report.html"
_DONE, _FAILED = "cell.json", "failed.json"


class StudyFolder:
    """The places of one study.

    study.yaml is the file that it follows; cells/ARM/seed-N are run folders with a cell.json when they are done, or a failed.json;
    shared/KEY are the runs up to the tuning that cells have in common; work/ holds the locks and the words of the worker processes.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.study = self.path / STUDY
        self.results = self.path / RESULTS
        self.work = self.path / "work"

    def cell(self, cell: Cell) -> Path:
        """Its run folder."""
        return self.path / cell.place

    def shared(self, key: str) -> Path:
        """The run that cells of this key have in common."""
        return self.path / "shared" / key

    def state(self, cell: Cell) -> State:
        """Whether a cell is done."""
        folder = self.cell(cell)
        return "done" if (folder / _DONE).exists() else "failed" if (folder / _FAILED).exists() else "pending"

    def finish(self, cell: Cell, final: dict[str, Any]) -> None:
        """Write down that a cell is done, and its final numbers."""
        write_json(self.cell(cell) / _DONE, {"arm": cell.arm, "seed": cell.seed, **final})

    def fail(self, cell: Cell, error: str) -> None:
        """Write down that a cell has failed, in one line."""
        make_folder(self.cell(cell))
        write_json(self.cell(cell) / _FAILED, {"arm": cell.arm, "seed": cell.seed, "error": " ".join(error.split())})

    def retry(self, cell: Cell) -> None:
        """Let a failed cell be tried again; it goes on where it was."""
        (self.cell(cell) / _FAILED).unlink(missing_ok=True)

    def error(self, cell: Cell) -> str:
        """Why a cell has failed."""
        return str(read_json(self.cell(cell) / _FAILED)["error"])

    def measured(self, cell: Cell) -> Measured:
        """What a finished cell left."""
        kept = read_json(self.cell(cell) / _DONE)
        rows = MetricsLog(self.cell(cell) / "metrics.jsonl").read()
        lines = {name: [(float(x), float(y)) for x, y in points] for name, points in kept.get("lines", {}).items()}
        return Measured(kept["final"], [row for row in rows if row["stage"] == kept["stage"]], lines)

    def settings(self, cell: Cell) -> LoopConfig | None:
        """Those that a cell has begun with."""
        from humanward.rounds import LoopConfig

        file = self.cell(cell) / "config.yaml"
        return LoopConfig.load(file) if file.exists() else None

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Whether nobody else holds this name; it is ours while the block runs. A dead process holds nothing."""
        make_folder(self.work)
        descriptor = os.open(self.work / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield True
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def held_by(self, name: str, process: int) -> bool:
        """Whether a process that is dead now held this name when it died."""
        file = self.work / f"{name}.lock"
        return file.exists() and file.read_text() == str(process)


def lock_name(cell: Cell) -> str:
    """Under which a cell is held."""
    return cell.place.replace("/", "-")


def final_numbers(results: dict[str, Any], tuned: str) -> tuple[dict[str, float], dict[str, list[list[float]]]]:
    """(numbers, lines) of an evaluation/results.json, flat.

    Args:
        results: of the run.
        tuned: the name of its tuned policy.
    """
    scores, kl = results.get("scores", {}), results.get("kl", {})
    quality = results.get("text_quality", {})
    rates = [row for row in results.get("win_rates", []) if (row["policy"], row["against"]) == (tuned, "reference")]
    found = {
        "true_score": scores.get(tuned, {}).get("mean"),
        "reference_score": scores.get("reference", {}).get("mean"),
        "kl": kl.get(tuned, {}).get("mean"),
        "win_rate": rates[0]["rate"] if rates else None,
        "reward_accuracy": (results.get("reward_model") or [{}])[-1].get("accuracy"),
        **quality.get(tuned, {}),
        **{f"reference_{name}": value for name, value in quality.get("reference", {}).items()},
    }
    final = {name: number for name, value in found.items() if (number := finite(value)) is not None}
    frontier = results.get("frontier", {})
    lines = {
        "optimum": sorted([float(x), float(y)] for x, y in frontier.get("optimum", [])),
        "best_of_n": sorted([float(x), float(y)] for _, x, y in frontier.get("best_of_n_by_model") or frontier.get("best_of_n", [])),
    }
    if lines["optimum"] and {"true_score", "reference_score", "kl"} <= final.keys():
        best = interpolated(lines["optimum"], final["kl"])
        final["optimum_at_kl"] = best
        if best > final["reference_score"]:
            final["share_of_optimum"] = (final["true_score"] - final["reference_score"]) / (best - final["reference_score"])
    return final, {name: points for name, points in lines.items() if points}


def interpolated(points: list[list[float]], x: float) -> float:
    """The y of a line through points that are sorted by x, at x; that of the end beyond the ends."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y0
    return points[0][1] if x < points[0][0] else points[-1][1]
