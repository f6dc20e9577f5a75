"""``humanward loop``: the whole loop with one's own parts."""

from __future__ import annotations

import typer

from humanward.cli.options import AsJson, Asked, ConfigFile, Labeler, Model, Overrides, Preset, Prompts, Run, Seed, example
from humanward.cli.running import run_loop


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("loop", epilog=example("humanward loop runs/mine --preset demo_quick --labeler score:length:6"))(loop)


def loop(
    run: Run, overrides: Overrides = None, model: Model = None, prompts: Prompts = None, labeler: Labeler = None, config: ConfigFile = None,
    preset: Preset = None, seed: Seed = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run the whole loop: sample, label, fit the reward model, tune the policy, evaluate, report.

    Without settings it goes on with the run in the folder.
    """
    asked = Asked(preset, config, model, prompts, labeler, seed, tuple(overrides or ()))
    run_loop(run, asked.config() if asked.anything else None, as_json=as_json)
