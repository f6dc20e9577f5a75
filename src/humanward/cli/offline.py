"""What commands share that are a stage of a run, or with ``--data`` a whole run on labels that were given before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from humanward.cli.options import Asked
from humanward.errors import UserError

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Preferences, or FILE?faulty=skip, in any format of docs/data.md: a run on them.", show_default=False
    ),
]


def settings_on_file(command: str, data: str | None, asked: Asked, *, preset: str) -> LoopConfig | None:
    """The settings of a run on a file of labels; None without a file, where the next stage of a run is meant.

    Args:
        command: its name, for messages.
        data: the file, as typed.
        asked: settings, as typed; none without a file.
        preset: unless another one was asked for.

    Raises:
        UserError: settings without a file, a file that cannot be read, or settings that are wrong.
    """
    if data is None:
        if asked.anything:
            raise UserError(f"{command}: settings are for a new run on a file: give --data FILE, or begin a run with `humanward loop`")
        return None
    from humanward.data.formats import LabelFile

    next(LabelFile(data).rows(), None)  # before a model is loaded: is anything there?
    from humanward.rounds.offline import with_lengths

    return with_lengths(replace(asked, preset=asked.preset or preset, prompts="labels", labeler=f"labels:{data}").config())
