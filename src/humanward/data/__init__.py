"""Where prompts come from: sources of text, the task that cuts them into prompts, demonstrations, and batches of padded tokens."""

from __future__ import annotations

from humanward.data.batches import epoch_order, index_order, left_pad, length_sorted_batches, right_pad, shard, token_batches
from humanward.data.demonstrations import Demonstration, demonstrations, text_windows
from humanward.data.sources import Text, iter_texts, read_texts
from humanward.data.task import Task, TaskConfig

__all__ = [
    "Demonstration", "Task", "TaskConfig", "Text", "demonstrations", "epoch_order", "index_order", "iter_texts", "left_pad",
    "length_sorted_batches", "read_texts", "right_pad", "shard", "text_windows", "token_batches",
]  # fmt: skip
