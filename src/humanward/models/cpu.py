"""What PyTorch's defaults leave unused of a CPU: memory that was freed, and AVX-512 where the CPU is not Intel's."""

from __future__ import annotations

from .allocator import keep_freed_memory
from .products import multiply_by_openblas


def prepare_cpu() -> None:
    """Keep freed memory and multiply by what is fastest here. Call once in a process, before the first large tensor."""
    keep_freed_memory()
    multiply_by_openblas()
