"""The command line: one file per command; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

from humanward.cli.app import app, main

__all__ = ["app", "main"]
