"""``humanward reward``: the stage of a run, or a reward model fitted to a file of preferences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import typer

from humanward.cli.offline import Data, settings_on_file
from humanward.cli.options import AsJson, Asked, ConfigFile, Model, Overrides, Preset, Run, Seed, example
from humanward.cli.reward_export import reward_folder
from humanward.cli.running import run_before, run_loop

PRESET = "reward_offline"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reward", epilog=example("humanward reward runs/own"))(reward)


def reward(
    run: Run, overrides: Overrides = None, data: Data = None, model: Model = None, config: ConfigFile = None, preset: Preset = None,
    seed: Seed = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fit a reward model, or an ensemble (`reward.ensemble.members=3`), to labels.

    With --data, a run on labels that were given before, up to its reward model: some are held out, the model is fitted to the rest and
    normalised on responses of --model; then its accuracy on the held-out ones, calibration, probes and the report. Given again, it goes on.
    Settings that nobody gives are those of --preset, reward_offline; the task gets room for the longest label, as far as the model's
    context goes. `humanward ppo RUN` would tune the model against it, `humanward reward-export RUN OUT` makes a classifier of it.

    Without --data, the next stage of a run, which must be this one: `humanward status` says which it is.
    """
    asked = Asked(preset, config, model, seed=seed, overrides=tuple(overrides or ()))
    settings = settings_on_file("reward", data, asked, preset=PRESET)
    if settings is None:
        run_loop(run, None, only="reward", as_json=as_json)
        return
    if not run_before(run, settings, settings.method):
        return  # another process speaks
    from humanward.report import build_report
    from humanward.storage import read_json

    folder, report = reward_folder(run, None), build_report(run)
    measured = read_json(folder / "measured.json")
    if as_json:
        print(json.dumps({"run": str(run), "folder": str(folder), "report": str(report), **measured}))
    else:
        print("\n".join([*in_words(measured), f"reward model  {folder}", f"report  {report}"]))


def in_words(measured: dict[str, Any]) -> Iterator[str]:
    """What the held-out labels say, a line each."""
    for row in measured.get("reward_model", []):
        yield f"{_share(row, 'accuracy')} of {row['questions']} held-out labels right; chance {100 * row['chance']:.0f} %"
    validation = measured.get("reward_validation", {})
    if (alone := validation.get("concordance", {})).get("rate") is not None:
        yield f"{_share(alone, 'rate')} of held-out pairs that were judged differently scored in the right order"
    if calibration := validation.get("calibration"):
        yield f"{_share(calibration, 'ece')} expected calibration error"
    for name, row in measured.get("reward_probes", {}).items():
        if row.get("rate") is not None:
            yield f"{_share(row, 'rate')} of {row['responses']} liked responses above themselves after {name.replace('_', ' ')}"
        elif "correlation" in row:
            yield f"{row['correlation']:.2f} [{row['low']:.2f}, {row['high']:.2f}] rank correlation of score and length"


def _share(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
