"""In which number type a model computes, and how fast the machine is in each."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Literal

import torch

from humanward.errors import UserError

DType = Literal["auto", "float32", "bfloat16"]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WORTH_IT = 1.3
"""So many times faster must products of bfloat16 be, to make up for what is lost in its conversions and in its digits."""


def matmul_rate(dtype: torch.dtype, device: torch.device, *, size: int = 2048, seconds: float = 1.0) -> float:
    """Best rate of a product of two square matrices, operations per second: 2 * size^3 in the shortest time seen."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)  # the first one may compile
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def copy_rate(device: torch.device, *, size: int = 1 << 28, seconds: float = 0.5) -> float:
    """Best rate at which memory is read and written by a copy, bytes per second, both directions counted."""
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.zeros_like(a)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        b.copy_(a)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16, not an imitation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (cpu_has("avx512_bf16") or cpu_has("amx_tile"))


def cpu_has(instructions: str) -> bool:
    """What PyTorch knows of the CPU. The names have a leading underscore in every release so far; where they are gone, no."""
    known = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return known is not None and bool(known())


@lru_cache
def bfloat16_gain(device: torch.device) -> float:
    """How many times faster products of bfloat16 are than those of float32, measured in a fifth of a second; 0 without instructions."""
    if not has_bfloat16(device):
        return 0.0
    one, other = (matmul_rate(dtype, device, size=1024, seconds=0.1) for dtype in (torch.float32, torch.bfloat16))
    return other / one


def settled_dtype(dtype: DType, device: torch.device) -> Literal["float32", "bfloat16"]:
    """``auto`` is bfloat16 where that is worth it here, else float32.

    Raises:
        UserError: bfloat16 was asked for by name and the machine has no instructions for it.
    """
    if dtype == "auto":
        return "bfloat16" if bfloat16_gain(device) >= WORTH_IT else "float32"
    if dtype == "bfloat16" and not has_bfloat16(device):
        raise UserError(f"dtype: bfloat16: this {device.type} has no instructions for it and would be slower; set dtype to float32 or auto")
    return dtype


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
