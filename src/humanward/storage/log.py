"""Logs of one JSON object per line that a resumed run cuts back to its checkpoint, so that no step is told twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError
from .files import decode_json, disk_faults, encode_json, fsync_path, make_folder, write_bytes


class MetricsLog:
    """A log of rows ``{"stage": …, "round": …, "step": …, …}``; ``round`` is 0 where it is left out.

    Each row reaches the system before ``append`` returns, so killing the process loses none; ``sync`` before a checkpoint, so that power
    loss takes no row that the checkpoint stands on.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row. Raises RunError for NaN, an infinity or a full disk; the log is then as it was."""
        if not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
            raise ValueError(f"a row needs a stage and a step, got {dict(row)!r}")
        line = encode_json(dict(row), str(self.path))
        with disk_faults(self.path, len(line)):
            descriptor = self._open()
            end = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(descriptor, line[written:])
            except OSError:
                os.ftruncate(descriptor, end)
                raise

    def sync(self) -> None:
        """Bring all rows to the disk."""
        if self._descriptor is not None or self.path.exists():
            with disk_faults(self.path, 0):
                os.fsync(self._open())
                fsync_path(self.path.parent)

    def read(self) -> list[dict[str, Any]]:
        """All rows. A torn last line, and zeros that power loss left with what follows them, are left out; other damage is a RunError."""
        return [row for _, row in self._rows()]

    def truncate(self, stage: str, round: int, step: int) -> None:
        """Drop the rows of this stage and round at ``step`` and later; rows of other stages and rounds stay."""
        self._keep([line for line, row in self._rows() if not _reached(row, stage, round, step)])

    def drop_after(self, stage: str, round: int, step: int) -> None:
        """Drop everything logged at or after a position, also of the stages that came later and are done again.

        The cut is before the first row of this stage and round at ``step`` or later; without one, behind their last earlier row.
        """
        rows = list(self._rows())
        here = [index for index, (_, row) in enumerate(rows) if (row["stage"], row.get("round", 0)) == (stage, round)]
        reached = [index for index in here if rows[index][1]["step"] >= step]
        end = reached[0] if reached else here[-1] + 1 if here else len(rows)
        self._keep([line for line, _ in rows[:end]])

    def close(self) -> None:
        """Close the file; the next ``append`` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            make_folder(self.path.parent)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            content = self.path.read_bytes()
            end = _whole_lines(content)
            if end < len(content):
                os.ftruncate(self._descriptor, end)
        return self._descriptor

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content[: _whole_lines(content)].split(b"\n")[:-1], start=1):
            try:
                row = decode_json(line)
            except (ValueError, RecursionError) as error:
                fault = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise RunError(f"{self.path}:{number}: damaged line: {fault}; remove the line") from None
            if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
                raise RunError(f"{self.path}:{number}: damaged line: not a row with a stage and a step; remove the line")
            yield line, row

    def _keep(self, lines: list[bytes]) -> None:
        content = b"".join(line + b"\n" for line in lines)
        if self.path.exists() and content != self.path.read_bytes():
            self.close()
            write_bytes(self.path, content)


def _whole_lines(content: bytes) -> int:
    """Where the lines end that reached the disk; no row has a zero byte in it, but a file has where power loss took what was not synced."""
    zero = content.find(b"\0")
    return content.rfind(b"\n", 0, zero if zero >= 0 else len(content)) + 1


def _reached(row: dict[str, Any], stage: str, round: int, step: int) -> bool:
    return row["stage"] == stage and row.get("round", 0) == round and row["step"] >= step
