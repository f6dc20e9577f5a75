"""Exact attention by plain matrix products, a block of queries at a time. For CPUs, where PyTorch's fused kernel is slow.

The fused kernel runs there at a third of the rate of a large product, and its gradient in 16 bits far below that: ``bench/attention.py``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from humanward.models.products import has_wide_vectors

BLOCK = 128
"""Queries whose scores are held at once; in 16 bits twice as many, which take as much memory and are faster there."""
KEPT = 1024
"""Keys up to which weights are kept for the gradient: to compute them again is a quarter of its time. They grow with the keys, and at so
many are about as large as all else that a layer keeps."""
FEW = 4
"""Blocks whose sum may be one of 16 bits, rounded after each."""


def by_products(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], v: Float[Tensor, "B H S D"], mask: Tensor | None, causal: bool,
    scaling: float | None = None,
) -> Float[Tensor, "B H Q D"]:  # fmt: skip
    """softmax(q k^T * scaling) v; a gradient may compute the weights again. ``scaling``: None is one by the root of D.

    ``mask``: True = seen, or added to the scores. ``causal``: as many keys as queries, each sees those before it and itself. With both, the
    mask may be smaller than [..., Q, S] and then speaks of the last queries and the last keys. It must hide what is behind its queries.
    """
    return _ByProducts.apply(q, k, v, mask, causal, q.shape[-1] ** -0.5 if scaling is None else scaling)


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scaling: float) -> Tensor:
        blocks, values = _Blocks(q, k, mask, causal, scaling), v.flatten(0, 1)
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # as models have it: a token's heads together
        keeps = k.shape[2] <= KEPT and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for rows in blocks.rows:
            weights = blocks.weights(rows)
            out[:, :, rows] = _product(weights, values[:, : weights.shape[2]]).unflatten(0, q.shape[:2])
            if keeps:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, mask, *kept)
        ctx.causal, ctx.scaling = causal, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, mask, *kept = ctx.saved_tensors
        blocks, scaling = _Blocks(q, k, mask, ctx.causal, ctx.scaling), ctx.scaling
        if not blocks.rows:
            return *(torch.zeros_like(x) for x in (q, k, v)), None, None, None
        queries, keys, values, grads = (x.flatten(0, 1) for x in (q, k, v, out_grad))
        summed = q.dtype if len(blocks.rows) <= FEW else torch.promote_types(q.dtype, torch.float32)
        q_grad, k_grad, v_grad = queries.new_empty(queries.shape), _Sum(summed), _Sum(summed)
        for number in reversed(range(len(blocks.rows))):  # the last block sees all keys
            rows = blocks.rows[number]
            weights, grad = kept[number] if kept else blocks.weights(rows), grads[:, rows]
            seen = slice(weights.shape[2])
            v_grad.add(weights.transpose(1, 2), grad)
            scores_grad = _product(grad, _close(values[:, seen]).transpose(1, 2))
            scores_grad = torch.ops.aten._softmax_backward_data(scores_grad, weights, -1, weights.dtype)
            q_grad[:, rows] = _product(scores_grad, keys[:, seen], scaling)
            k_grad.add(scores_grad.transpose(1, 2), queries[:, rows], scaling)
        found = q_grad, k_grad.total, v_grad.total
        return *(x.to(q.dtype).unflatten(0, q.shape[:2]) for x in found), None, None, None


class _Sum:
    """Of products a @ b * scaling: the first has all rows of the sum, another only so many of the first rows as ``a``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.total, self.begun = dtype, torch.empty(0), False

    def add(self, a: Float[Tensor, "G seen rows"], b: Float[Tensor, "G rows D"], scaling: float = 1.0) -> None:
        if not self.begun:
            self.total, self.begun = _product(a, b, scaling).to(self.dtype), True
        elif self.dtype.itemsize == 2:
            self.total[:, : a.shape[1]].baddbmm_(a, b, alpha=scaling)
        else:  # careful: the form above would go matrix by matrix, since these rows have others between them
            self.total[:, : a.shape[1]].add_(_product(a, b), alpha=scaling)


def _product(a: Float[Tensor, "G m k"], b: Float[Tensor, "G k n"], scaling: float = 1.0) -> Float[Tensor, "G m n"]:
    """Of each pair, times ``scaling``."""
    out = a.new_empty(len(a), a.shape[1], b.shape[2])
    if a.dtype == torch.float32 and has_wide_vectors():
        return torch.baddbmm(out, a, b, beta=0, alpha=scaling)
    # By PyTorch itself: what `products` takes over makes a detour of 10 us. beta = 0: the first matrix is not read.
    return torch.baddbmm(out, a, b, beta=0, alpha=scaling, out=out)


def _close(x: Float[Tensor, "G S D"]) -> Float[Tensor, "G S D"]:
    """Without what lies between: products of 16 bits would copy them transposed, which takes four times as long."""
    return x.contiguous() if x.element_size() == 2 else x


class _Blocks:
    """Queries in blocks, and the weights of each over the keys that it may see. G are the heads of all batch rows."""

    def __init__(self, q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], mask: Tensor | None, causal: bool, scaling: float) -> None:
        self.queries, self.keys = q.flatten(0, 1), k.flatten(0, 1)
        self.heads, self.mask, self.causal, self.scaling = q.shape[:2], mask, causal, scaling
        count = q.shape[2]
        self.masked = count if mask is None else count - mask.shape[-2]
        """The first query of which the mask speaks."""
        width = 2 * BLOCK if q.element_size() == 2 else BLOCK
        self.rows = _even(0, self.masked, width) + _even(self.masked, count, width)
        self.ceiling = _ceiling(width, q.dtype, q.device)

    def weights(self, rows: slice) -> Float[Tensor, "G rows seen"]:
        end = rows.stop if self.causal else self.keys.shape[1]
        scores = _product(self.queries[:, rows], _close(self.keys[:, :end]).transpose(1, 2), self.scaling)
        if self.mask is not None and rows.start >= self.masked:
            begin = self.keys.shape[1] - self.mask.shape[-1]
            part = self.mask[..., rows.start - self.masked : rows.stop - self.masked, : end - begin]
            hidden = scores.unflatten(0, self.heads)[..., begin:]
            hidden.masked_fill_(~part, float("-inf")) if part.dtype == torch.bool else hidden.add_(part)
        elif self.causal:
            own = rows.stop - rows.start
            scores[:, :, rows] += self.ceiling[:own, :own]
        return torch.softmax(scores, dim=-1)


@functools.cache
def _ceiling(width: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "width width"]:
    """What hides from each query the keys behind it."""
    return torch.full((width, width), float("-inf"), dtype=dtype, device=device).triu_(1)


def _even(start: int, stop: int, width: int) -> list[slice]:
    """Blocks of even size, none above ``width``."""
    count = -(-(stop - start) // width)
    return [slice(start + (stop - start) * i // count, start + (stop - start) * (i + 1) // count) for i in range(count)]
