"""Where prompts come from: sources of text, the task that cuts them into prompts, demonstrations, preference data, padded batches.

Names are loaded on first use, so that ``data.formats`` serves programs that never import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from humanward.data.batches import (
        epoch_order,
        index_order,
        left_pad,
        length_sorted_batches,
        packed_batches,
        right_pad,
        shard,
        token_batches,
    )
    from humanward.data.demonstrations import Demonstration, text_windows
    from humanward.data.preferences import PreferenceData
    from humanward.data.sources import Text, iter_texts, read_texts
    from humanward.data.task import Task, TaskConfig

__all__ = [
    "Demonstration", "PreferenceData", "Task", "TaskConfig", "Text", "epoch_order", "index_order", "iter_texts", "left_pad",
    "length_sorted_batches", "packed_batches", "read_texts", "right_pad", "shard", "text_windows", "token_batches",
]  # fmt: skip

_NAMES = {
    "batches": ("epoch_order", "index_order", "left_pad", "length_sorted_batches", "packed_batches", "right_pad", "shard", "token_batches"),
    "demonstrations": ("Demonstration", "text_windows"),
    "preferences": ("PreferenceData",),
    "sources": ("Text", "iter_texts", "read_texts"),
    "task": ("Task", "TaskConfig"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
