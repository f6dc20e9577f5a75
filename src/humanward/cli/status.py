"""``humanward status``: which stages of a run are done, and what is next."""

from __future__ import annotations

import json

import typer

from humanward.cli.options import AsJson, Run, example
from humanward.cli.running import stage_json, title
from humanward.errors import UserError
from humanward.storage import read_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status", epilog=example("humanward status runs/demo"))(status)


def status(run: Run, as_json: AsJson = False) -> None:
    """Say which stages of a run are done and whole, and what is next."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    from humanward.rounds import Loop

    loop = Loop(run)
    pending = loop.pending()
    done = [stage for stage in loop.stages if stage not in pending]
    following = next((stage for stage in pending if stage.has_command), None)
    if as_json:
        shown = {"done": [stage_json(s) for s in done], "pending": [stage_json(s) for s in pending]}
        print(json.dumps({"run": str(run), **shown, "next": stage_json(following) if following else None, "finished": not pending}))
        return
    waiting = read_json(loop.folder.state).get("waiting") if loop.folder.state.exists() else None
    for stage in loop.stages:
        print(f"{'done' if stage in done else '    '}  {title(stage)}")
    if waiting and waiting["for"] == "labels":
        print(f"waiting for labels: {waiting['labels']} of {waiting['wanted']}; the page: humanward label {run}")
    elif waiting:
        print(f"{waiting['person']} has pulled the cord: {waiting['reason']}")
    print(f"next: {loop.command_of(following)}, or humanward loop {run}" if following else f"finished: {loop.folder.report}")
