"""``humanward sft | sample | reward | ppo | dpo | evaluate``: the next stage of a run, alone."""

from __future__ import annotations

from collections.abc import Callable

import typer

from humanward.cli import label
from humanward.cli.options import AsJson, Run, example
from humanward.cli.running import run_loop

WHAT = {
    "sft": "Fine-tune the model on texts before anything else.",
    "sample": "Let the policy write the responses of a round's questions.",
    "reward": "Fit a round's reward model to all labels so far.",
    "ppo": "Tune the policy against a round's reward model, where method is ppo.",
    "dpo": "Tune the policy on the labels themselves, where method is dpo.",
    "evaluate": "Compare the policies on fresh prompts, and write the report.",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, what in WHAT.items():
        if name == "reward":  # the stages are listed in their order
            label.register_label(app)
        text = f"{what}\n\nDoes the next stage of a run only, which must be this one: `humanward status` says which it is."
        app.command(name, help=text, epilog=example(f"humanward {name} runs/own"))(_command(name))


def _command(name: str) -> Callable[..., None]:
    def command(run: Run, as_json: AsJson = False) -> None:
        run_loop(run, None, only=name, as_json=as_json)

    return command
