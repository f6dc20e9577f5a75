"""``humanward demo``: the whole loop with what ships inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from humanward.cli.options import AsJson, Asked, Seed, example
from humanward.cli.running import run_loop

FOLDER = Path("runs/demo")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", epilog=example("humanward demo runs/demo --quick"))(demo)


def demo(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER] [NAME=VALUE]...", help=f"The run's folder ({FOLDER}), and settings.", show_default=False),
    ] = None,
    seed: Seed = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest run: does it work here? It learns nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop with the embedded model, prompts and mock labeler, and write a report.

    The same command again goes on with an unfinished run.
    """
    given = list(words or [])
    folder = Path(given.pop(0)) if given and "=" not in given[0] else FOLDER
    config = Asked(preset="demo_quick" if quick else "demo", seed=seed, overrides=given).config()
    run_loop(folder, config, as_json=as_json)
