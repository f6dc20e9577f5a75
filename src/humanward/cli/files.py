"""What the commands that read and write files share: a bar, and a file that appears whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from humanward.cli.terminal import is_main_process, talk
from humanward.errors import UserError

SUFFIXES = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def suffix_of(out: Path | None) -> str:
    """What the name of a file says that it is made of; empty where it says nothing."""
    return "" if out is None else SUFFIXES.get(Path(out.name.removesuffix(".gz")).suffix, "")


def container_for(format: str, containers: tuple[str, ...], out: Path | None) -> str:
    """What a file of a format is made of; UserError where its name says something that the format is not written as."""
    suffix = suffix_of(out)
    if suffix and suffix not in containers:
        raise UserError(f"{format} is written as {' or '.join(containers)}; name the file so, or choose another format")
    return suffix or containers[0]


@contextmanager
def destination(out: Path | None) -> Iterator[IO[bytes]]:
    """stdout, or a file that appears whole or not at all."""
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from humanward.records.files import whole_file
    from humanward.storage.files import disk_faults

    check_place(out)
    with disk_faults(out), whole_file(out) as file:
        yield file


def check_place(out: Path) -> None:
    """UserError where no file can be at ``out``."""
    if out.is_dir():
        raise UserError(f"{out}: this is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it or choose another place")


class Bar:
    """Progress on a terminal, nothing elsewhere: the last line says what was done."""

    def __init__(self, title: str, total: int | None) -> None:
        self.total, self._bars = total, None
        console = talk()
        if console.is_terminal and is_main_process():
            from rich.progress import Progress

            self._bars = Progress(console=console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task(title, total=total)

    def to(self, done: int) -> None:
        """So many are done."""
        if self._bars is not None and done % 500 == 0:
            self._bars.update(self._task, completed=done, total=self.total)

    def through(self, records: Iterator[Any]) -> Iterator[Any]:
        """The records, counted."""
        for number, record in enumerate(records, start=1):
            self.to(number)
            yield record

    def stop(self) -> None:
        """Take it away."""
        if self._bars is not None:
            self._bars.stop()


@contextmanager
def bar(title: str, total: int | None = None) -> Iterator[Bar]:
    """A bar that goes away with the block."""
    made = Bar(title, total)
    try:
        yield made
    finally:
        made.stop()
