"""In which number type a model computes."""

from __future__ import annotations

from typing import Literal

import torch

from humanward.errors import UserError

DType = Literal["auto", "float32", "bfloat16"]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine multiplies bfloat16 faster than float32: instructions for it, not an imitation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # The names have a leading underscore in every release so far; where they are gone, float32 is right everywhere.
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(bool(known()) for known in asked if known is not None)


def settled_dtype(dtype: DType, device: torch.device) -> Literal["float32", "bfloat16"]:
    """``auto`` is bfloat16 where the machine has it, else float32.

    Raises:
        UserError: bfloat16 was asked for by name and the machine has none.
    """
    if dtype == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if dtype == "bfloat16" and not has_bfloat16(device):
        raise UserError(f"dtype: bfloat16: this {device.type} has no instructions for it and would be slower; set dtype to float32 or auto")
    return dtype
