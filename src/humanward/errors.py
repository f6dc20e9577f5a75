"""The two ways in which a command fails on purpose. Anything else that is raised is a bug of ours and shows its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input or settings. The message is the one line (or one line per fault) that the user sees: what, where, what to do."""

    exit_code = 2


class RunError(Exception):
    """A fault during a run: a full disk, a loss that is not a number, a damaged checkpoint. Earlier checkpoints are intact."""

    exit_code = 3
