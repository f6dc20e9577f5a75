"""Run the loop, or a stage of it, in front of a terminal: space, progress, stop signals, report, summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humanward.cli.progress import Bars
from humanward.cli.terminal import data, is_main_process, note
from humanward.storage import RunFolder, StopFlag

if TYPE_CHECKING:
    from humanward.rounds import Loop, LoopConfig, Stage


def run_loop(folder: Path, config: LoopConfig | None, *, only: str | None = None, as_json: bool = False) -> None:
    """Do what is pending in a run folder, or only the next stage; then say how it went.

    Args:
        folder: the run's; made where it is not there.
        config: settings of a new run, or the same settings again; None: those of the folder.
        only: the name that the next stage must have.
        as_json: the result as one JSON object.
    """
    with opened(folder, config) as (loop, bars):
        pending = loop.pending()
        if pending or only is not None:
            done = _do(loop, bars, pending, only=only)
        else:
            note(f"{folder}: finished already")
            done = []
        pending = loop.pending()
        if not loop.accelerator.is_main_process:
            return
        if pending:
            _say_next(loop, done, pending, as_json)
        else:
            _say_result(folder, done, as_json)


def run_before(folder: Path, config: LoopConfig, name: str) -> bool:
    """Do what is pending of a run before its first stage ``name``; returns whether it is for this process to speak."""
    with opened(folder, config) as (loop, bars):
        pending = loop.pending()
        if not pending or pending[0].name == name:
            note(f"{folder}: done already")
        else:
            _do(loop, bars, pending, before=name)
        return loop.accelerator.is_main_process


@contextmanager
def opened(folder: Path, config: LoopConfig | None) -> Iterator[tuple[Loop, Bars]]:
    """A run and the bars of its progress, while stop signals are heard."""
    with StopFlag() as stop:
        note("starting …")
        from humanward.models import prepare_cpu
        from humanward.rounds import Loop

        prepare_cpu()
        bars = Bars(lambda: loop.now)
        loop = Loop(folder, config, progress=bars, stop=stop, tell=bars.tell)
        yield loop, bars


def _do(loop: Loop, bars: Bars, pending: list[Stage], *, only: str | None = None, before: str | None = None) -> list[Stage]:
    from humanward.cli.space import check_space_for

    _say_where(loop, pending)
    check_space_for(loop.config, loop.folder.path)
    with bars:
        return loop.run(only, before=before)


def _say_where(loop: Loop, pending: list[Stage]) -> None:
    folder = loop.folder.path
    first = pending[0] if pending else None
    if first is not None and pending != loop.stages:
        note(f"{folder}: goes on with {title(first)}")
    elif loop.folder.checkpoints.exists():
        note(f"{folder}: goes on")
    else:
        note(f"{folder}: a new run")


def title(stage: Stage) -> str:
    """A stage as people read it."""
    return f"{stage.name}, round {stage.round}" if stage.round else stage.name


def stage_json(stage: Stage) -> dict[str, Any]:
    """A stage as programs read it."""
    return {"stage": stage.name, "round": stage.round}


def _say_next(loop: Loop, done: list[Stage], pending: list[Stage], as_json: bool) -> None:
    folder = loop.folder.path
    following = next(stage for stage in pending if stage.has_command)
    if as_json:
        print(json.dumps({"run": str(folder), "done": [stage_json(s) for s in done], "next": stage_json(following), "finished": False}))
        return
    note(f"done: {'; '.join(map(title, done))}")
    note(f"next: {title(following)}: {loop.command_of(following)}")


def _say_result(folder: Path, done: list[Stage], as_json: bool) -> None:
    from humanward.cli.summary import print_summary
    from humanward.report import build_report, summary

    run = RunFolder(folder)
    if done or not run.report.exists():
        build_report(folder)
    numbers = summary(folder)
    stages = stage_costs(run)
    if as_json:
        result = {"run": str(folder), "done": [stage_json(s) for s in done], "next": None, "finished": True}
        print(json.dumps(result | {"report": str(run.report), "policy": str(run.policy), "summary": numbers, "stages": stages}))
    elif is_main_process():
        print_summary(data(), run, numbers, stages)


def stage_costs(run: RunFolder) -> list[dict[str, Any]]:
    """Seconds and peak memory of every stage; a stage that was interrupted counts all its attempts that ended well."""
    from humanward.storage import MetricsLog

    return [
        {"stage": row["stage"], "round": row.get("round", 0), "seconds": row["seconds"], "peak_memory_bytes": row["peak_memory_bytes"]}
        for row in MetricsLog(run.timings).read()
        if "seconds" in row and "peak_memory_bytes" in row
    ]
