"""``humanward study``: settings compared over seeds, with intervals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from humanward.cli.options import AsJson, example
from humanward.cli.terminal import note, talk
from humanward.errors import RunError, UserError
from humanward.storage import StopFlag

if TYPE_CHECKING:
    from rich.progress import Progress

    from humanward.studies import Cell, Study

FOLDER = Path("runs/studies")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("study", epilog=example("humanward study kl_controller runs/kl"))(study)


def study(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE [FOLDER] [NAME=VALUE]...", show_default=False,
            help=f"A YAML file or the name of a study that ships, where its runs go ({FOLDER}/NAME), and settings for all of them.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes side by side; as many as cores where it is left out.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the cells, and run nothing.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the studies that ship.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run a grid of settings and seeds side by side, and write one report with intervals and a verdict on every claimed shape.

    Each cell is a run folder. The same command again goes on where it was; cells that failed are tried again. docs/studies.md says how to
    write a study of your own.
    """
    if listed:
        list_studies(as_json)
        return
    given = list(words or [])
    if not given or "=" in given[0]:
        raise UserError("name a study: a YAML file, or one of `humanward study --list`")
    file = given.pop(0)
    from humanward.studies import Study

    name = Path(file).stem
    folder = Path(given.pop(0)) if given and "=" not in given[0] else FOLDER / name
    with StopFlag() as stop:
        note("starting …")
        asked = Study.load(file, given)
        if dry_run:
            list_cells(asked, folder, as_json)
            return
        results = run(asked, file, folder, workers or _cores(), stop)
    from humanward.report import build_study_report

    report = build_study_report(folder)
    say(results, report, as_json)
    failed = [cell for cell in results["cells"] if cell["state"] == "failed"]
    if failed:
        raise RunError(f"{len(failed)} of {len(results['cells'])} cells failed; give the command again to try them again")


def list_studies(as_json: bool) -> None:
    """Names and first lines."""
    from humanward.studies import shipped_studies

    found = shipped_studies()
    if as_json:
        print(json.dumps({"studies": found}, ensure_ascii=False))
        return
    width = max(map(len, found), default=0)
    for name, what in found.items():
        print(f"{name:<{width}}  {what}")


def list_cells(asked: Study, folder: Path, as_json: bool) -> None:
    """What would be run, and what is done."""
    from humanward.studies.folder import StudyFolder

    place = StudyFolder(folder)
    rows = [{"arm": cell.arm, "seed": cell.seed, "folder": str(place.cell(cell)), "state": place.state(cell)} for cell in asked.configs()]
    if as_json:
        print(json.dumps({"study": asked.name, "cells": rows}, ensure_ascii=False))
        return
    width = max(len(row["folder"]) for row in rows)
    for row in rows:
        print(f"{row['folder']:<{width}}  {row['state']}")


def run(asked: Study, file: str, folder: Path, workers: int, stop: StopFlag) -> dict[str, Any]:
    """With a bar on a terminal, a line per cell elsewhere."""
    from humanward.studies.manager import run_study

    console = talk()
    if not console.is_terminal:
        return run_study(asked, file, folder, workers=workers, stop=stop, progress=_lines(folder))
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("cells"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bars:
        return run_study(asked, file, folder, workers=workers, stop=stop, progress=_bar(bars, folder))


def _bar(bars: Progress, folder: Path) -> Any:
    task = bars.add_task("")

    def progress(done: int, total: int, left: float | None, cell: Cell | None) -> None:
        bars.update(task, completed=done, total=total, description=_left(left))
        if cell is not None and (error := _error(folder, cell)):
            bars.console.print(f"{cell.name}: failed: {error}", soft_wrap=True)

    return progress


def _lines(folder: Path) -> Any:
    def progress(done: int, total: int, left: float | None, cell: Cell | None) -> None:
        if cell is None:
            note(f"{folder}: {done} of {total} cells are done")
        else:
            error = _error(folder, cell)
            note(f"cell {done} of {total}: {cell.name}: {'failed: ' + error if error else 'done'}; {_left(left)}")

    return progress


def _error(folder: Path, cell: Cell) -> str:
    from humanward.studies.folder import StudyFolder

    place = StudyFolder(folder)
    return place.error(cell) if place.state(cell) == "failed" else ""


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def say(results: dict[str, Any], report: Path, as_json: bool) -> None:
    """The verdicts and the table."""
    if as_json:
        print(json.dumps({"report": str(report), **results}, ensure_ascii=False))
        return
    from humanward.studies.summary import markdown

    print(markdown(results))
    note(f"report: {report}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
