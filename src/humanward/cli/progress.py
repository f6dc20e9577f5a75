"""One live bar per stage on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from humanward.cli.terminal import is_main_process, note, talk

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

TELLING = {"score": "score", "true_score": "true", "kl": "kl", "loss": "loss", "accuracy": "accuracy"}
"""Metrics worth watching and how they are called beside a bar, in the order in which they are shown."""


class Bars:
    """Told about every step of a run; draws while it is entered.

    Args:
        stage: the stage that runs now, with its ``round``; None before the first.
    """

    def __init__(self, stage: Callable[[], Any]) -> None:
        self._stage = stage
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        self._title = ""
        self._line = ""
        self._began = 0.0
        """When the stage before was over."""

    def __enter__(self) -> Bars:
        self._began = time.monotonic()
        console = talk()
        if console.is_terminal and is_main_process():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.table import Column

            def fixed(width: int) -> Column:
                return Column(min_width=width, max_width=width, no_wrap=True)

            wide = console.width >= 100
            columns = [
                TextColumn("{task.description}", table_column=fixed(17)),
                BarColumn(bar_width=None, table_column=fixed(24 if wide else 10)),
                MofNCompleteColumn(table_column=fixed(9)),
                *([TimeElapsedColumn(table_column=fixed(7))] if wide else []),
                TimeRemainingColumn(table_column=fixed(7)),
                TextColumn("{task.fields[metrics]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            ]
            bars = self._bars = Progress(*columns, console=console, refresh_per_second=4)
            bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """A step of ``stage`` is done."""
        now = self._stage()
        title = f"{stage}, round {now.round}" if now is not None and now.round else stage
        if title != self._title:
            self._end()
            self._title = title
            if self._bars is not None:
                self._bar = self._bars.add_task(title, total=total, completed=done, metrics="")
        shown = shown_metrics(metrics)
        self._line = f"{title}: {done} of {total}" + (f", {shown}" if shown else "")
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, total=total, completed=done, metrics=shown)

    def tell(self, text: str) -> None:
        """A sentence, above the bars."""
        if self._bars is not None:
            self._bars.console.print(text, soft_wrap=True)
        else:
            note(text)

    def _end(self) -> None:
        """The stage is over, or is left."""
        if self._title and self._bars is None:
            note(f"{self._line}, {time.monotonic() - self._began:.0f} s")
        self._title, self._bar, self._began = "", None, time.monotonic()


def shown_metrics(metrics: Mapping[str, float]) -> str:
    """The few numbers that tell how it goes."""
    return ", ".join(
        f"{word} {metrics[name]:.{1 if abs(metrics[name]) >= 10 else 2}f}" for name, word in TELLING.items() if name in metrics
    )
