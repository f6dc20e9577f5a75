"""``humanward sft | sample | reward | ppo | rloo | … | evaluate``: the next stage of a run, alone."""

from __future__ import annotations

from collections.abc import Callable

import typer

from humanward.cli import dpo, label, reward
from humanward.cli.options import AsJson, Run, example
from humanward.cli.running import run_loop

WHAT = {
    "sft": "Fine-tune the model on texts before anything else.",
    "sample": "Let the policy write the responses of a round's questions.",
    "ppo": "Tune the policy against a round's reward model, where method is ppo.",
    "rloo": "Tune the policy with REINFORCE against the other responses to a prompt, where method is rloo.",
    "grpo": "Tune the policy on advantages within groups of responses, where method is grpo.",
    "dr_grpo": "Tune the policy with GRPO without its two biases, where method is dr_grpo.",
    "reinforce": "Tune the policy with REINFORCE against a mean reward, where method is reinforce.",
    "online_dpo": "Tune the policy with DPO on its own responses, where method is online_dpo.",
    "expert_iteration": "Fine-tune the policy on the best of its own responses, where method is expert_iteration.",
    "evaluate": "Compare the policies on fresh prompts, and write the report.",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, what in WHAT.items():
        if name == "ppo":  # the stages are listed in their order
            label.register_label(app)
            reward.register(app)
        if name == "evaluate":
            dpo.register(app)
        text = f"{what}\n\nDoes the next stage of a run only, which must be this one: `humanward status` says which it is."
        app.command(name, help=text, epilog=example(f"humanward {name} runs/own"))(_command(name))


def _command(name: str) -> Callable[..., None]:
    def command(run: Run, as_json: AsJson = False) -> None:
        run_loop(run, None, only=name, as_json=as_json)

    return command
