"""``humanward dpo``: the stage of a run, or a whole offline run on a file of preferences."""

from __future__ import annotations

from typing import Annotated

import typer

from humanward.cli.options import AsJson, Asked, ConfigFile, Model, Overrides, Preset, Run, Seed, example
from humanward.cli.running import run_loop
from humanward.errors import UserError

PRESET = "dpo_offline"
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Preferences, or FILE?faulty=skip, in any format of docs/data.md: a run on them.", show_default=False
    ),
]


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
    if data is None:
        if asked.anything:
            raise UserError("dpo: settings are for a new run on a file: give --data FILE, or begin a run with `humanward loop`")
        run_loop(run, None, only="dpo", as_json=as_json)
        return
    from humanward.data.formats import LabelFile

    next(LabelFile(data).rows(), None)  # before a model is loaded: is anything there?
    from humanward.rounds.offline import with_lengths

    given = Asked(preset or PRESET, config, model, "labels", f"labels:{data}", seed, tuple(overrides or ()))
    run_loop(run, with_lengths(given.config()), as_json=as_json)
