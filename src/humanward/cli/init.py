"""``humanward init``: write the settings of a run, to be edited."""

from __future__ import annotations

import json

import typer

from humanward.cli.options import AsJson, Asked, ConfigFile, Labeler, Model, Overrides, Preset, Prompts, Run, Seed, example
from humanward.cli.terminal import note
from humanward.errors import UserError
from humanward.storage import RunFolder


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init", epilog=example("humanward init runs/own --preset demo_quick labels.rounds=1 sft.texts=texts.txt"))(init)


def init(
    run: Run, overrides: Overrides = None, model: Model = None, prompts: Prompts = None, labeler: Labeler = None, config: ConfigFile = None,
    preset: Preset = None, seed: Seed = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write config.yaml with an explanation of every setting, and start nothing."""
    from humanward.config import dump_yaml
    from humanward.storage.files import write_bytes

    folder = RunFolder(run)
    if folder.started:
        raise UserError(f"{folder.config}: is there already; edit it, or choose a new run folder")
    settings = Asked(preset, config, model, prompts, labeler, seed, tuple(overrides or ())).config()
    folder.create()
    write_bytes(folder.config, dump_yaml(settings, comments=True).encode())
    if as_json:
        print(json.dumps({"run": str(run), "config": str(folder.config)}))
        return
    print(folder.config)
    note(f"next: edit {folder.config}, then: humanward loop {run}")
    first = "sft" if settings.sft is not None else "sample"
    note(f"or one stage after the other, beginning with: humanward {first} {run}")
