"""``humanward report``: write the report of a run, finished or not."""

from __future__ import annotations

import json

import typer

from humanward.cli.options import AsJson, Run, example


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", epilog=example("humanward report runs/demo"))(report)


def report(run: Run, as_json: AsJson = False) -> None:
    """Write report.html from the run folder, and print its path. An unfinished run gives what there is."""
    from humanward.report import build_report, summary

    path = build_report(run)
    print(json.dumps({"run": str(run), "report": str(path), "summary": summary(run)}) if as_json else path)
