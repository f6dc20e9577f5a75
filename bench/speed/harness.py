"""Two steps in turn in one process: the only fair comparison on a machine whose speed wanders. Memory is measured in processes apart."""

from __future__ import annotations

import gc
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from humanward.models import give_back_freed_memory
from humanward.models.precision import matmul_rate
from humanward.models.products import multiplied_by_pytorch, openblas
from humanward.rounds.loop import reset_peak_memory
from humanward.trainers.updates import Updater

Step = Callable[[], float]
"""Does one step and returns a number that both sides must agree on where they can, such as its loss."""


@dataclass(frozen=True)
class Row:
    """One row of the table: how to build either side, and what a step is worth."""

    ours: Callable[[], Step]
    theirs: Callable[[int], Step]
    """With a micro-batch of so many of the peer's own rows."""
    peer: str
    micro_batches: Sequence[int]
    """What the peer is tried with; the fastest is compared."""
    flop: float
    """Of one step, each prompt computed once, the head at response tokens only."""
    tokens: int
    """Of one step, each prompt counted once."""
    work: str
    """What a step is, for the page."""
    agree: float | None = 1e-3
    """How near the first two numbers of both sides must be; None: they sample."""
    update_flop: float | None = None
    """Of the updates of a step that also samples: forward, backward and optimiser."""
    peer_imports: Callable[[], object] = lambda: None
    """Imports what the peer is made of, before its memory is counted."""


def import_trl(*names: str, module: str = "trl") -> list[Any]:
    """What rows of TRL are made of; trl itself imports a trainer only when it is asked for."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets

    trl = import_module(module)
    return [datasets.Dataset, *(getattr(trl, name) for name in names)]


def compare(row: Row, *, steps: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Run both ``steps`` times in turn, after one step each that is not counted.

    Raises:
        SystemExit: the first steps differ: this would compare different things.
    """
    ours = row.ours()
    candidates = {size: multiplied_by_pytorch()(row.theirs(size)) for size in row.micro_batches}
    first = {size: step() for size, step in candidates.items()}
    tried = {size: min(_seconds(step, device) for _ in range(2)) for size, step in candidates.items()} if len(candidates) > 1 else {}
    size = min(tried, key=lambda s: tried[s]) if tried else row.micro_batches[0]
    theirs = candidates[size]
    candidates.clear()
    mine = ours()
    if row.agree is not None and abs(mine - first[size]) > row.agree * abs(first[size]):
        raise SystemExit(f"the first steps differ, {mine} and {first[size]}: this would compare different things")
    by_openblas = dtype == torch.float32 and device == "cpu" and openblas() is not None
    updates = seconds_of_updates(device)
    in_updates: list[float] = []
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    peaks, openblas_peaks = [], []
    for number in range(steps):
        for name, step in (("ours", ours), ("theirs", theirs)) if number % 2 else (("theirs", theirs), ("ours", ours)):
            updates.clear()
            times[name].append(_seconds(step, device))
            if name == "ours":
                in_updates.append(sum(updates))
        peaks.append(multiplied_by_pytorch()(matmul_rate)(dtype, torch.device(device), seconds=0.4))
        if by_openblas:
            openblas_peaks.append(matmul_rate(dtype, torch.device(device), seconds=0.2))
    peak = statistics.median(peaks)
    median = {name: statistics.median(values) for name, values in times.items()}
    found = {
        "work": row.work,
        "peer": row.peer,
        "peer_micro_batch": size,
        "steps": steps,
        "first": {"ours": mine, "theirs": first[size]},
        "seconds_median": {name: round(value, 4) for name, value in median.items()},
        "seconds_min": {name: round(min(values), 4) for name, values in times.items()},
        "times_as_fast": round(median["theirs"] / median["ours"], 2),
        "tokens_per_second": round(row.tokens / median["ours"]),
        "matmul_peak_gflops": round(peak / 1e9),
        "share_of_matmul_peak": round(row.flop / median["ours"] / peak, 3),
    }
    if row.update_flop is not None:
        seconds = statistics.median(in_updates)
        found |= {"update_seconds_median": round(seconds, 4), "update_share_of_matmul_peak": round(row.update_flop / seconds / peak, 3)}
    if by_openblas:
        found |= beside_openblas(row, size, median["ours"], statistics.median(openblas_peaks))
    return found


def seconds_of_updates(device: str) -> list[float]:
    """Where every update of ours, forward, backward and optimiser, writes how long it took from now on."""
    seconds: list[float] = []
    update = Updater.update

    def timed(updater: Updater, *args: Any, **kwargs: Any) -> dict[str, float]:
        start = _now(device)
        metrics = update(updater, *args, **kwargs)
        seconds.append(_now(device) - start)
        return metrics

    Updater.update = timed
    return seconds


def beside_openblas(row: Row, micro_batch: int, seconds: float, peak: float) -> dict[str, Any]:
    """Our step beside the rate of OpenBLAS, and beside the peer if that multiplied by it too."""
    theirs = row.theirs(micro_batch)
    again = min(_seconds(theirs, "cpu") for _ in range(3))
    return {
        "openblas_peak_gflops": round(peak / 1e9),
        "share_of_openblas_peak": round(row.flop / seconds / peak, 3),
        "times_as_fast_as_the_peer_by_openblas": round(again / seconds, 2),
    }


KINDS = {
    "attention": r"scaled_dot_product|flash|flex|bmm|^_softmax|_ByProducts",
    "matrix products": r"mm_?$|matmul|linear",
    "optimiser": r"_foreach|_fused_adam",
    "softmax, normalisation and activations": r"softmax|logsumexp|exp|layer_norm|rms_norm|gelu|silu|tanh|sigmoid|pow|rsqrt",
    "copies and lookups": r"copy|cat|index|gather|scatter|clone|contiguous|embedding|fill|zero|_to|pad|select|slice|where",
}
"""Kinds of work by the names of torch's operators, the first that fits."""


def profile(row: Row, device: str) -> dict[str, float]:
    """Share of our third step that each kind of work takes, by torch's profiler; ``outside torch``: what no operator accounts for."""
    step = row.ours()
    step()
    step()
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        whole = _seconds(step, device) * 1e6
    spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key.removeprefix("aten::"))), "other operators")
        spent[kind] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    spent["outside torch"] = max(whole - sum(spent.values()), 0.0)
    return {kind: round(time / whole, 3) for kind, time in spent.items()}


def memory(row: Row, side: str, micro_batch: int, device: str) -> int:
    """Bytes that one side needs above what stands before its model is built: weights, optimiser and the highest of three steps.

    What was imported is there before, and nothing that was freed: it would be used again and not be counted.
    """
    row.peer_imports()
    gc.collect()
    give_back_freed_memory()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        reset_peak_memory()
        before = status("VmRSS")
    step = row.ours() if side == "ours" else row.theirs(micro_batch)
    for _ in range(3):
        step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")) - before


def status(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _seconds(step: Step, device: str) -> float:
    gc.collect()
    start = _now(device)
    step()
    return _now(device) - start


def _now(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
