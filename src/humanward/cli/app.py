"""The command ``humanward``: its commands, and how a fault becomes one line and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from humanward import __version__
from humanward.cli import (
    compare,
    data,
    demo,
    doctor,
    export,
    init,
    label,
    listings,
    loop,
    report,
    reward_curve,
    reward_export,
    stages,
    status,
    study,
)
from humanward.cli.terminal import is_main_process, keep_others_quiet
from humanward.errors import RunError, UserError
from humanward.storage import Stopped

# careful: typer brings its own copy of click since 0.20 and used click itself before; its faults are found from typer's own names.
UsageError: Any = typer.BadParameter.__bases__[0]
ClickException: Any = UsageError.__bases__[0]

app = typer.Typer(
    name="humanward", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    epilog="\b\nExample:\n  humanward demo --quick",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Fine-tune a language model toward what people prefer, and show that people prefer the result.

    A run is a folder. A command that is stopped or killed goes on where it was when it is given again. Settings are dotted names:
    ppo.kl_coef=0.1; `humanward settings` lists them.
    """
    if version:
        print(f"humanward {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


COMMANDS = (
    demo,
    loop,
    compare,
    init,
    stages,
    label,
    report,
    reward_curve,
    reward_export,
    study,
    status,
    data,
    export,
    listings,
    doctor,
)
for commands in COMMANDS:
    commands.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 2 for wrong input or settings, 3 for a fault during a run, 128 + n when stopped by signal n.
    """
    with warnings.catch_warnings():
        keep_others_quiet()
        try:
            result = app(args=None if arguments is None else list(arguments), prog_name="humanward", standalone_mode=False)
        except (UserError, RunError) as error:
            return _tell(str(error), error.exit_code)
        except Stopped as stopped:
            return _tell(f"{stopped}; what was done is saved: give the command again to go on", stopped.exit_code)
        except UsageError as error:
            return _tell(f"{error.format_message()} ({_usage(error)} --help)", 2)
        except ClickException as error:
            return _tell(error.format_message(), 2)
        except (KeyboardInterrupt, typer.Abort):
            return _tell("stopped by SIGINT", 130)
        except BrokenPipeError:
            sys.stderr.close()
            return 141
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> str:
    return error.ctx.command_path if getattr(error, "ctx", None) is not None else "humanward"


def _tell(message: str, code: int) -> int:
    if is_main_process():
        for line in message.splitlines():
            print(f"error: {line}", file=sys.stderr)
    return code
