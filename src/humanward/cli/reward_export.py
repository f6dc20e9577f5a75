"""``humanward reward-export``: a run's reward model as a Hugging Face sequence classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from humanward.cli.options import AsJson, Run, example
from humanward.cli.terminal import note
from humanward.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reward-export", epilog=example("humanward reward-export runs/demo classifier"))(reward_export)


def reward_export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not be there yet.", show_default=False)],
    round: Annotated[int | None, typer.Option(min=1, help="Whose reward model; the last by default.", show_default=False)] = None,
    member: Annotated[int | None, typer.Option(min=1, help="Of an ensemble: which one, from 1.", show_default=False)] = None,
    note_shift: Annotated[
        bool, typer.Option("--note-shift", help="Have hf:OUT add what the logits lack; plain transformers does not.", show_default=False)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's reward model as a folder that AutoModelForSequenceClassification loads, with the same scores as logits[:, 0].

    Where the architecture has no place for a constant (Llama, Qwen, Mistral, Gemma), the scores of the folder are lower by the same number
    everywhere, which is printed: `hf:OUT`, as a labeler's score or a reward, says what plain transformers says. With `--note-shift` the
    number is in config.json, and `hf:OUT` adds it.
    """
    folder = reward_folder(run, round)
    if out.exists():
        raise UserError(f"{out}: is there already; name a new folder, or remove it")
    note("starting …")
    from humanward.models import RewardEnsemble, load_reward_model, members_of, save_classifier
    from humanward.storage import atomic_folder

    model = load_reward_model(folder)
    members = members_of(model)
    if isinstance(model, RewardEnsemble) and member is None:
        raise UserError(f"{folder}: an ensemble of {len(members)} has no one classifier; choose --member 1 to {len(members)}")
    if member is not None and member > len(members):
        raise UserError(f"--member {member}: {folder} holds {len(members)}")
    with atomic_folder(out) as temporary:
        shift = save_classifier(members[(member or 1) - 1], temporary, note_shift=note_shift)
    if as_json:
        print(json.dumps({"run": str(run), "reward_model": str(folder), "out": str(out), "score_shift": shift}))
        return
    if shift:
        kept = "score_shift in config.json" if note_shift else "left out, which changes no comparison"
        note(f"logits lack {shift:.4g} everywhere, which this architecture has no place for: {kept}")
    print(out)


def reward_folder(run: Path, round: int | None) -> Path:
    """Where a round's reward model is; the last one that is whole by default."""
    from humanward.storage import verify_folder

    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    numbers = sorted(int(path.parent.name) for path in run.glob("rounds/*/reward") if path.parent.name.isdigit())
    whole = [number for number in numbers if verify_folder(run / f"rounds/{number}/reward") is None]
    if round is not None and round not in whole:
        raise UserError(f"{run}: no whole reward model of round {round}" + (f"; there is one of round {whole[-1]}" if whole else ""))
    if not whole:
        raise UserError(f"{run}: no reward model yet; `humanward status {run}` says what comes next")
    return run / f"rounds/{round or whole[-1]}/reward"
