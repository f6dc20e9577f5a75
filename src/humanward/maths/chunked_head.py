"""An LM head over many rows, a chunk at a time: the [rows, V] logits of a chunk are the largest tensor that ever exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Stands for -inf in the logits of suppressed tokens: its exponential is 0 as well, but 0 times it is 0 and not NaN.
_SUPPRESSED = -1e30
_CONVERTED = 8192
"""Rows of a 16-bit head that a CPU has in float32 at once."""


@dataclass(frozen=True)
class HeadRule:
    """What happens to the logits after the matrix product, and how the work is cut.

    Raises:
        ValueError: ``temperature``, ``softcap`` or ``chunk_rows`` is not positive.
    """

    temperature: float
    softcap: float | None
    scale: float
    suppressed: Tensor | None  # [V]
    chunk_rows: int

    def __post_init__(self) -> None:
        temperature, softcap, chunk_rows = self.temperature, self.softcap, self.chunk_rows
        if temperature <= 0 or chunk_rows <= 0 or (softcap is not None and softcap <= 0):
            raise ValueError(f"temperature, softcap and chunk_rows must be positive, not {temperature}, {softcap} and {chunk_rows}")


class Operands(NamedTuple):
    """The tensors of the matrix products, in the type in which they are multiplied, but for a weight that ``blocks`` converts."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    dtype: torch.dtype  # of the logits
    from_bfloat16: bool  # float32 that hold no more digits than bfloat16 has

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight, some rows at a time where it is converted: whole it would be the largest tensor of a step."""
        whole = self.weight.dtype == self.hidden.dtype
        for rows in chunks(len(self.weight), len(self.weight) if whole else _CONVERTED):
            yield rows, self.weight[rows].to(self.hidden.dtype)


def chunk_logits(operands: Operands, rows: slice, head: HeadRule) -> tuple[Tensor, Tensor | None]:
    """Final logits z of some rows and, with a soft cap, d z / d (logits / temperature): 1 - tanh^2."""
    hidden = operands.hidden[rows]
    factor = head.scale / (head.softcap or head.temperature)
    z = hidden.new_empty(len(hidden), len(operands.weight), dtype=operands.dtype)
    with bfloat16_factors(operands.from_bfloat16):
        for tokens, weight in operands.blocks():
            add_product(z[:, tokens], hidden, weight.t(), beta=0.0, alpha=factor)
    if operands.bias is not None:
        z.add_(operands.bias, alpha=factor)
    slope = None
    if head.softcap is not None:
        z.tanh_()
        slope = 1.0 - z.square()
        z *= head.softcap / head.temperature
    if head.suppressed is not None:
        z.masked_fill_(head.suppressed, _SUPPRESSED)
    return z, slope


class Gradients:
    """The gradients of hidden states, weight and bias, summed up chunk by chunk from those of the final logits.

    Args:
        operands: of the matrix product; no gradient is kept of what is not ``needed``: (hidden, weight, bias).
        parameter: the weight as the head has it. Inside ``head_gradients_added_to`` its gradient goes where that says.
    """

    def __init__(self, operands: Operands, head: HeadRule, needed: tuple[bool, bool, bool], parameter: Tensor) -> None:
        hidden, weight, _, dtype, _ = operands
        self.operands, self.factor = operands, head.scale / head.temperature
        self.hidden = hidden.new_empty(hidden.shape, dtype=dtype) if needed[0] else None
        total = _sums[parameter.data_ptr()]() if needed[1] and parameter.data_ptr() in _sums else None
        self.is_added = total is not None and total.shape == weight.shape
        self.weight = total if self.is_added else weight.new_zeros(weight.shape, dtype=dtype) if needed[1] else None
        self.bias = weight.new_zeros(len(weight), dtype=dtype) if needed[2] else None

    def add(self, rows: slice, z_grad: Tensor, slope: Tensor | None) -> None:
        """Of a chunk; ``z_grad`` is overwritten, ``slope`` is what ``chunk_logits`` gave."""
        if slope is not None:
            z_grad *= slope
        factors_grad = z_grad.to(self.operands.hidden.dtype)
        with bfloat16_factors(self.operands.from_bfloat16):
            if self.hidden is not None:
                for tokens, weight in self.operands.blocks():
                    add_product(self.hidden[rows], factors_grad[:, tokens], weight, beta=float(tokens.start > 0), alpha=self.factor)
            if self.weight is not None:
                add_product(self.weight, factors_grad.t(), self.operands.hidden[rows], beta=1.0, alpha=self.factor)
        if self.bias is not None:
            self.bias.add_(z_grad.sum(dim=0), alpha=self.factor)

    def like(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the types of the parameters; None for what has gone elsewhere."""
        return _like(self.hidden, hidden), None if self.is_added else _like(self.weight, weight), _like(self.bias, bias)


_sums: dict[int, Callable[[], Tensor]] = {}


@contextmanager
def head_gradients_added_to(sums: Mapping[int, Callable[[], Tensor]]) -> Iterator[None]:
    """Inside, backward passes add the gradient of a head's weight to a tensor of its shape and give autograd none.

    A head that is the embedding too would otherwise hold its own share, [V, D], until the pass has come down to the embedding.

    Args:
        sums: by the address of the weight (``data_ptr``).
    """
    _sums.update(sums)
    try:
        yield
    finally:
        for address in sums:
            del _sums[address]


def operands_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Operands:
    """Hidden states and head as they are multiplied in ``dtype``; 16-bit ones give float32 logits."""
    logits_dtype = torch.promote_types(hidden.dtype, torch.float32)
    from_bfloat16 = dtype == torch.float32 and hidden.dtype == weight.dtype == torch.bfloat16
    if weight.device.type != "cpu":  # once for all chunks
        weight = weight.to(dtype)
    return Operands(hidden.to(dtype), weight, None if bias is None else bias.to(logits_dtype), logits_dtype, from_bfloat16)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type of the factors: 16-bit ones stay so only where they can be multiplied into float32 without rounding the result."""
    device = hidden.device.type
    if device != "cuda":
        return torch.promote_types(hidden.dtype, torch.float32)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


@contextmanager
def bfloat16_factors(wanted: bool) -> Iterator[None]:
    """Inside, a CPU that has instructions for bfloat16 multiplies float32 matrices by them and sums in float32, in less than half the time.

    Exact where the factors hold no more digits; others (gradients) are rounded, as they are on a GPU. careful: torch keeps this choice for
    the whole process.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # from torch 2.9 on
    if not wanted or matmul is None:
        yield
        return
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def chunks(rows: int, size: int) -> list[slice]:
    """``rows`` in pieces of ``size``."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)


def add_product(out: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> None:
    """Add a product in place, in the type of ``out``: beta * out + alpha * a @ b. beta = 0 ignores what was there."""
    if a.dtype == out.dtype:
        out.addmm_(a, b, beta=beta, alpha=alpha)
        return
    product = torch.mm(a, b, out_dtype=out.dtype).mul_(alpha)
    if beta == 0.0:
        out.copy_(product)
    else:
        out.mul_(beta).add_(product)
