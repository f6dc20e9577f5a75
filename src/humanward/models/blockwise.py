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
EVEN = 16
"""In 16 bits, numbers of queries and keys are rounded up to multiples of this. oneDNN makes a program for each new shape of a product and
never forgets all of it: for a ragged batch that would be half a second and 50 MB in every step."""
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
        blocks = _Blocks(q, k, mask, causal, scaling)
        values = blocks.filled_up(v)
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # as models have it: a token's heads together
        keeps = k.shape[2] <= KEPT and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for rows in blocks.rows:
            weights = blocks.weights(rows)
            found = _product(weights, values[:, : weights.shape[2]]).unflatten(0, q.shape[:2])
            out[:, :, rows] = found[:, :, : q.shape[2] - rows.start]
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
        queries, keys, values, grads = blocks.queries, blocks.keys, blocks.filled_up(v), blocks.filled_up(out_grad)
        summed = q.dtype if len(blocks.rows) <= FEW else torch.promote_types(q.dtype, torch.float32)
        q_grad, k_grad, v_grad = queries.new_empty(queries.shape), _Sum(summed), _Sum(summed)
        for number in reversed(range(len(blocks.rows))):  # the last block sees all keys
            rows = blocks.rows[number]
            weights, grad = kept[number] if kept else blocks.weights(rows), grads[:, rows]
            seen = slice(weights.shape[2])
            v_grad.add(weights.transpose(1, 2), grad)
            scores_grad = _product(grad, values[:, seen].transpose(1, 2))
            scores_grad = torch.ops.aten._softmax_backward_data(scores_grad, weights, -1, weights.dtype)
            q_grad[:, rows] = _product(scores_grad, keys[:, seen], scaling)
            k_grad.add(scores_grad.transpose(1, 2), queries[:, rows], scaling)
        found = zip((q_grad, k_grad.total, v_grad.total), (q, k, v), strict=True)
        return *(x[:, : given.shape[2]].to(q.dtype).unflatten(0, q.shape[:2]) for x, given in found), None, None, None


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


class _Blocks:
    """Queries in blocks, and the weights of each over the keys that it may see. G are the heads of all batch rows.

    In 16 bits queries and keys lie close, without what was between them, since a product would copy them turned, which takes four times as
    long. Where each query sees those before it, both are filled up to an even number: none of the given queries sees what is added, and
    what an added one finds is dropped.
    """

    def __init__(self, q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], mask: Tensor | None, causal: bool, scaling: float) -> None:
        self.heads, self.mask, self.causal, self.scaling = q.shape[:2], mask, causal, scaling
        self.count, self.seen = q.shape[2], k.shape[2]
        self.of = EVEN if causal and q.element_size() == 2 else 1
        self.queries, self.keys = self.filled_up(q), self.filled_up(k)
        self.masked = self.count if mask is None else self.count - mask.shape[-2]
        """The first query of which the mask speaks."""
        width = max(2 * BLOCK if q.element_size() == 2 else BLOCK, self.of)
        edge = self.queries.shape[1] if mask is None else self.masked // self.of * self.of
        self.rows = _even(0, edge, width, self.of) + _even(edge, self.queries.shape[1], width, self.of)
        self.ceiling = _ceiling(width, q.dtype, q.device)

    def filled_up(self, x: Float[Tensor, "B H L D"]) -> Float[Tensor, "G L2 D"]:
        """With zeros."""
        flat = x.flatten(0, 1)
        if x.element_size() > 2:
            return flat
        given, even = x.shape[2], -(-x.shape[2] // self.of) * self.of
        full = x.new_empty(len(flat), even, x.shape[3])
        full[:, :given], full[:, given:] = flat, 0
        return full

    def weights(self, rows: slice) -> Float[Tensor, "G rows seen"]:
        end = rows.stop if self.causal else self.keys.shape[1]
        scores = _product(self.queries[:, rows], self.keys[:, :end].transpose(1, 2), self.scaling)
        own = rows.stop - rows.start
        first = own if self.mask is None else min(max(self.masked - rows.start, 0), own)  # of which the mask speaks
        if self.causal and first:
            scores[:, :first, rows] += self.ceiling[:first, :own]
        if self.mask is not None and first < own:
            begin, stop = self.seen - self.mask.shape[-1], min(rows.stop, self.count)
            part = self.mask[..., rows.start + first - self.masked : stop - self.masked, : end - begin]
            hidden = scores.unflatten(0, self.heads)[:, :, first : stop - rows.start, begin : self.seen]
            hidden.masked_fill_(~part, float("-inf")) if part.dtype == torch.bool else hidden.add_(part)
            scores[:, :, self.seen :] = float("-inf")
        return torch.softmax(scores, dim=-1)


@functools.cache
def _ceiling(width: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "width width"]:
    """What hides from each query the keys behind it."""
    return torch.full((width, width), float("-inf"), dtype=dtype, device=device).triu_(1)


def _even(start: int, stop: int, width: int, of: int) -> list[slice]:
    """Blocks of even size, multiples of ``of`` as ``stop - start`` is, none above ``width`` if that is one too."""
    count, units = -(-(stop - start) // width), (stop - start) // of
    return [slice(start + units * i // count * of, start + units * (i + 1) // count * of) for i in range(count)]
