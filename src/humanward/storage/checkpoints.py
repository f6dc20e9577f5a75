"""Checkpoints of a run: the newest that is whole is always there, whatever happens while the next one is written."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import encode_json, read_json
from .folders import atomic_folder, discard_leftovers, remove_folder, verify_folder
from .tensors import StoredTensors, tensor_bytes, write_tensors

if TYPE_CHECKING:
    import torch

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_SLACK = 64 << 10
"""Bytes for the manifest and for what the file system itself needs."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has been verified."""

    step: int
    folder: Path
    tensors: Mapping[str, torch.Tensor]
    """Read one by one when asked for; two names of one tied tensor give equal tensors."""
    state: Any


class Checkpoints:
    """The checkpoints of a folder, ``step-N`` each.

    Args:
        folder: created on the first save.
        keep: how many to keep, at least 1; with 2 a damaged newest one costs only the steps since the one before.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._damaged: set[int] = set()
        """Steps whose checkpoint ``latest`` passed over."""

    def save(self, step: int, tensors: Mapping[str, Any], state: Any) -> Path:
        """Write checkpoint ``step``; when it is safe on the disk, remove old and damaged ones and any of a later step, which it replaces.

        Args:
            step: position of the whole run, >= 0; grows from save to save.
            tensors: named tensors; they may be tied, not contiguous, on any device.
            state: JSON value without NaN; numbers come back exactly.

        Raises:
            RunError: the disk is full or refused a write, or ``state`` is not JSON; the earlier checkpoints are intact.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        path = self.folder / f"step-{step}"
        text = encode_json(state, str(path / _STATE))
        discard_leftovers(self.folder)
        with atomic_folder(path, bytes_needed=tensor_bytes(tensors) + len(text) + _SLACK) as temporary:
            write_tensors(temporary / _TENSORS, tensors)
            (temporary / _STATE).write_bytes(text)
        steps = self.steps()
        self._damaged.discard(step)
        kept = [earlier for earlier in steps if earlier <= step and earlier not in self._damaged][-self.keep :]
        for other in steps:
            if other not in kept:
                remove_folder(self.folder / f"step-{other}")
        return path

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, damaged ones too, in rising order."""
        if not self.folder.is_dir():
            return []
        found = [re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def latest(self, before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies; None without any. Says on stderr which damaged ones it passed over.

        Args:
            before: only checkpoints of earlier steps, to go back one.
        """
        discard_leftovers(self.folder)
        steps = [step for step in self.steps() if before is None or step < before]
        for step in reversed(steps):
            path = self.folder / f"step-{step}"
            fault = verify_folder(path)
            if fault is None:
                return Checkpoint(step, path, StoredTensors(path / _TENSORS), read_json(path / _STATE))
            self._damaged.add(step)
            earlier = [other for other in steps if other < step]
            instead = f"trying the one of step {earlier[-1]}" if earlier else "there is no earlier one"
            print(f"{path}: damaged checkpoint: {fault}; {instead}", file=sys.stderr)
        return None
