"""Talk on stderr: consoles, notes, and silence for what other packages say."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "ACCELERATE_LOG_LEVEL": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on a GPU; read when CUDA starts
}
WIDTH = 120
"""Columns where there is no terminal to ask."""


def keep_others_quiet() -> None:
    """Keep warnings and chatter of other packages off the terminal, before they are imported. ``python -W`` brings the warnings back."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def is_main_process() -> bool:
    """Under ``accelerate launch`` only the first of all processes talks."""
    return os.environ.get("RANK", "0") == "0"


def talk() -> Console:
    """stderr: progress and notes."""
    return _console(stderr=True)


def data() -> Console:
    """stdout: results."""
    return _console(stderr=False)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if terminal else WIDTH)


def note(text: str) -> None:
    """One line on stderr, from the main process only."""
    if is_main_process():
        print(text, file=sys.stderr)
