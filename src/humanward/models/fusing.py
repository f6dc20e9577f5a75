"""The same arithmetic in fewer passes over memory, and at less cost in each."""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation

from humanward.models.recomputing import can_be_made_again, made_again_from

LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = LINEAR * 0.044715
WORTH_IT = 1 << 17
"""Fewer numbers than this PyTorch's one kernel serves as fast."""
EACH = 1 << 17
"""Numbers that a thread works on at once: few enough to stay near it, with what is made of them, and many enough for a dozen operators."""


def fuse_activations(model: nn.Module) -> None:
    """Replace GELUs by tanh, which transformers may write out in eight operations (GPT-2's ``gelu_new``), by ``TanhGELU``.

    The results differ by rounding alone. Each of the eight would read and write the widest tensor of a layer and keep it for the backward
    pass: together a tenth of a training step on a CPU.
    """
    for module in list(model.modules()):
        for name, part in module.named_children():
            if type(part) in (NewGELUActivation, FastGELUActivation, GELUTanh):
                setattr(module, name, TanhGELU())


class TanhGELU(nn.GELU):
    """gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), equation 2 of section 2 of Hendrycks & Gimpel, arXiv:1606.08415.

    On a CPU, PyTorch's kernel spends its time on tanh, and again for its gradient. There this is x sigmoid(z), with z twice what tanh is
    asked for: the same function in six tenths of the time, with the slope made of the same sigmoid (``bench/activations.py``). Numbers of
    16 bits are converted, a part at a time, and the results are rounded once.
    """

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.numel() < WORTH_IT or torch.compiler.is_compiling():
            return super().forward(input)
        if not input.requires_grad or not made_again_from(input):
            return _BySigmoid.apply(input, None)
        x, left = input.detach(), _Left()
        value = _BySigmoid.apply(input, left)
        can_be_made_again(value, lambda: _both(x, left))
        return value


class _Left:
    """The slope, between the gradients of the layer behind and of GELU itself."""

    slope: Tensor | None = None


def _both(x: Tensor, left: _Left) -> Tensor:
    """The value once more; the slope, made of the same sigmoid, is left for the gradient that follows."""
    value, left.slope = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    _compute(x, value, left.slope)
    return value


class _BySigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, left: _Left | None) -> Tensor:
        """``left``: where the slope will be, if the value is made again; None: it is kept from here on."""
        value = torch.empty_like(x, memory_format=torch.contiguous_format)
        slope = torch.empty_like(value) if ctx.needs_input_grad[0] and left is None else None
        _compute(x, value, slope)
        ctx.left = left
        ctx.save_for_backward(x if slope is None else slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (kept,) = ctx.saved_tensors
        if ctx.left is None:
            return grad * kept, None
        slope, ctx.left.slope = ctx.left.slope, None
        if slope is None:  # nobody has asked for the value
            slope = torch.empty_like(kept, memory_format=torch.contiguous_format)
            _compute(kept, None, slope)
        return grad * slope, None


def _compute(x: Tensor, value: Tensor | None, slope: Tensor | None) -> None:
    """Fill ``value`` with gelu(x) and ``slope`` with its derivative, both contiguous, a part at a time."""
    exact = torch.promote_types(x.dtype, torch.float32)
    size = min(EACH * torch.get_num_threads(), x.numel())
    linear, rooms = x.new_tensor(LINEAR, dtype=exact), [x.new_empty(size, dtype=exact) for _ in range(3)]
    parts = (repeat(None) if given is None else given.view(-1).split(size) for given in (x.contiguous(), value, slope))
    for own, own_value, own_slope in zip(*parts, strict=False):
        wide, gate, steep = rooms if len(own) == size else (room[: len(own)] for room in rooms)
        own = own if x.dtype == exact else wide.copy_(own)
        torch.addcmul(linear, own, own, value=CUBIC, out=gate).mul_(own).sigmoid_()
        if own_slope is not None:
            torch.addcmul(linear, own, own, value=3 * CUBIC, out=steep)  # dz/dx
        made = torch.mul(gate, own, out=_room(own_value, wide))
        if own_value is not None and own_value is not made:
            own_value.copy_(made)
        if own_slope is not None:
            torch.addcmul(made, made, gate, value=-1, out=wide)
            found = torch.addcmul(gate, wide, steep, out=_room(own_slope, gate))  # s + x s (1 - s) dz/dx
            if found is not own_slope:
                own_slope.copy_(found)


def _room(wanted: Tensor | None, other: Tensor) -> Tensor:
    return wanted if wanted is not None and wanted.dtype == other.dtype else other
