"""``humanward dpo``: the stage of a run, or a whole offline run on a file of preferences."""

from __future__ import annotations

import typer

from humanward.cli.offline import Data, settings_on_file
from humanward.cli.options import AsJson, Asked, ConfigFile, Model, Overrides, Preset, Run, Seed, example
from humanward.cli.running import run_loop

PRESET = "dpo_offline"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dpo", epilog=example("humanward dpo runs/offline --data pairs.jsonl --model gpt2 dpo.beta=0.05"))(dpo)


def dpo(
    run: Run, overrides: Overrides = None, data: Data = None, model: Model = None, config: ConfigFile = None, preset: Preset = None,
    seed: Seed = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Tune the policy on labels, without a reward model: DPO, or whichever relative of it `dpo.loss` names.

    With --data, a whole run on labels that were given before: some are held out, DPO on the rest, how often the policy's implicit reward
    agrees with the held-out ones, responses before and after, the report. Given again, it goes on. Settings that nobody gives are those
    of --preset, dpo_offline; the task gets room for the longest label, as far as the model's context goes.

    Without --data, the next stage of a run whose method is dpo, which must be this one: `humanward status` says which it is.
    """
    asked = Asked(preset, config, model, seed=seed, overrides=tuple(overrides or ()))
    settings = settings_on_file("dpo", data, asked, preset=PRESET)
    run_loop(run, settings, only="dpo" if settings is None else None, as_json=as_json)
