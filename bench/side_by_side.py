"""Two steps in turn in one process: the only fair comparison on a machine whose speed wanders."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from humanward.models.precision import matmul_rate
from humanward.rounds.loop import reset_peak_memory

SHAPES = {
    "S": {"n_layer": 10, "n_embd": 256, "n_head": 4, "vocab_size": 8192, "n_positions": 1024},
    "M": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
}


def shape(name: str) -> GPT2Config:
    """A GPT-2 without dropout: S has 10 million weights, M is GPT-2 small."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**SHAPES[name], **off, bos_token_id=0, eos_token_id=0, pad_token_id=1)


def status(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compare(
    row: dict[str, Any], ours: Callable[[], Any], theirs: Callable[[], Any], *, steps: int, flop: float, tokens: int
) -> dict[str, Any]:
    """Run both ``steps`` times in turn, after one step each that is not counted.

    Args:
        row: what the row is about.
        ours: one step.
        theirs: the same step of the peer.
        steps: counted ones, of each.
        flop: operations that the step needs at least, each prompt computed once.
        tokens: that the step sees, each prompt counted once.

    Returns:
        ``row`` with medians and minima, seconds; the ratio of the medians; the memory that each step took above what was there before it;
        our tokens per second and our share of the measured matmul peak.
    """
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    memory: dict[str, list[int]] = {"ours": [], "theirs": []}
    for number in range(steps + 1):
        for name, step in (("ours", ours), ("theirs", theirs)) if number % 2 else (("theirs", theirs), ("ours", ours)):
            gc.collect()
            reset_peak_memory()
            before, start = status("VmRSS"), time.perf_counter()
            step()
            seconds = time.perf_counter() - start
            if number:
                times[name].append(seconds)
                memory[name].append(status("VmHWM") - before)
    peak = matmul_rate(torch.float32, torch.device("cpu"))
    median = {name: statistics.median(values) for name, values in times.items()}
    return row | {
        "steps": steps,
        "threads": torch.get_num_threads(),
        "seconds_median": {name: round(value, 4) for name, value in median.items()},
        "seconds_min": {name: round(min(values), 4) for name, values in times.items()},
        "times_as_fast": round(median["theirs"] / median["ours"], 2),
        "step_memory_mb": {name: round(max(values) / 1e6) for name, values in memory.items()},
        "memory_ratio": round(max(memory["ours"]) / max(1, *memory["theirs"]), 2),
        "tokens_per_second": round(tokens / median["ours"]),
        "share_of_matmul_peak": round(flop / median["ours"] / peak, 3),
    }


def weights_of_body(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "wte" not in name and "wpe" not in name)
