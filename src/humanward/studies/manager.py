"""Run a study: worker processes side by side, until every cell is done or has failed; then the results and the report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from humanward.errors import RunError, UserError
from humanward.storage import StopFlag, Stopped
from humanward.storage.files import make_folder, write_bytes
from humanward.studies.folder import StudyFolder, lock_name
from humanward.studies.spec import Cell, Study, study_text
from humanward.studies.summary import summarize

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 60.0
"""Time that workers have to save what they are at, when they are stopped."""

Progress = Callable[[int, int, float | None, Cell | None], None]
"""Called as (cells done, cells in all, seconds left if known, the cell that was just done if any)."""


def start(study: Study, file: str | Path, folder: Path) -> StudyFolder:
    """Make the folder of a study, or find that it can go on there.

    Raises:
        UserError: settings of a cell are wrong, or a cell has begun with others.
    """
    from humanward.rounds import LoopConfig

    configs = study.configs()
    place = StudyFolder(folder)
    for cell, config in configs.items():
        kept = place.settings(cell)
        names = [name for name in LoopConfig.model_fields if kept is not None and getattr(kept, name) != getattr(config, name)]
        if names:
            raise UserError(
                f"{place.cell(cell)}: this cell has begun with other settings ({', '.join(names)}); choose another folder, or remove it"
            )
    make_folder(folder)
    write_bytes(place.study, study_text(file))
    for cell in configs:
        place.retry(cell)
    return place


def run_study(study: Study, file: str | Path, folder: Path, *, workers: int, stop: StopFlag, progress: Progress) -> dict[str, Any]:
    """Do what is pending of a study.

    Args:
        study: the study.
        file: where it was read from; the folder keeps a copy.
        folder: where it is or will be.
        workers: processes side by side.
        stop: asked while they work.
        progress: told whenever a cell is done.

    Returns:
        results.json.

    Raises:
        UserError: nothing was begun: settings are wrong, or not those of the folder.
        Stopped: a signal came; the workers have saved.
    """
    place = start(study, file, folder)
    cells = study.cells()
    with place.hold("study") as ours:
        if not ours:
            raise UserError(f"{folder}: this study is at work already; wait for it, or choose another folder")
        left = [cell for cell in cells if place.state(cell) == "pending"]
        progress(len(cells) - len(left), len(cells), None, None)
        if left:
            _run_workers(place, study, cells, min(workers, len(left)), stop, progress)
        results = summarize(place, study)
    return results


def _run_workers(place: StudyFolder, study: Study, cells: Sequence[Cell], workers: int, stop: StopFlag, progress: Progress) -> None:
    began = time.monotonic()
    known = {cell for cell in cells if place.state(cell) != "pending"}
    before = len(known)
    with ExitStack() as crew:
        running = [crew.enter_context(_Worker(place, study, number)) for number in range(1, workers + 1)]
        try:
            while len(known) < len(cells):
                stop.wait(POLL_SECONDS)
                for worker in running:
                    worker.look_after(cells)
                for cell in cells:
                    if cell not in known and place.state(cell) != "pending":
                        known.add(cell)
                        each = (time.monotonic() - began) / (len(known) - before)
                        progress(len(known), len(cells), each * (len(cells) - len(known)), cell)
        except Stopped:
            for worker in running:
                worker.stop()
            raise


class _Worker:
    """A worker process, replaced when it dies of a cell."""

    def __init__(self, place: StudyFolder, study: Study, number: int) -> None:
        self.place, self.number = place, number
        self.command = [sys.executable, "-m", "humanward.studies.worker", str(place.path), *study.overrides]
        self.log = place.work / f"worker-{number}.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # A core each: cells side by side are faster than threads in one.
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        with open(self.log, "ab") as log:
            # Its standard input is never written to: it ends when we do, and then the worker stops.
            return subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Ask for it; ``__exit__`` waits."""
        if self.process.poll() is None:
            self.process.terminate()

    def look_after(self, cells: Sequence[Cell]) -> None:
        """Where the process has died, its cell has failed, and another process takes its place."""
        code = self.process.poll()
        if code in (None, 0):
            return
        if code > 128:  # somebody has stopped it alone, and it has saved
            self.process = self._start()
            return
        died = [c for c in cells if self.place.state(c) == "pending" and self.place.held_by(lock_name(c), self.process.pid)]
        if not died:
            raise RunError(f"{self.log}: a worker process could not work: {self._last_words()}")
        how = (
            f"was killed by signal {-code}; out of memory? try --workers 1" if code < 0 else f"ended with code {code}: {self._last_words()}"
        )
        for cell in died:
            self.place.fail(cell, f"its process {how}")
        self.process = self._start()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
