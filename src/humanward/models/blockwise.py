"""Exact attention by plain matrix products, a block of queries at a time. For CPUs, where PyTorch's fused kernel is slow.

The fused kernel runs there at a third of the rate of a large product, and its gradient in 16 bits far below that: ``bench/attention.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from humanward.models.products import has_wide_vectors

BLOCK = 160
"""Queries whose scores are held at once; in 16 bits twice as many, which take as much memory and are faster there."""
KEPT = 1024
"""Keys up to which weights are kept for the gradient: to compute them again is a quarter of its time. They grow with the keys, and at so
many are about as large as all else that a layer keeps."""
EVEN = 16
"""In 16 bits, numbers of queries and keys are rounded up to multiples of this. oneDNN makes a program for each new shape of a product and
never forgets all of it: for a ragged batch that would be half a second and 50 MB in every step."""


def by_products(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], v: Float[Tensor, "B H S D"], mask: Tensor | None, causal: bool,
    scaling: float | None = None,
) -> Float[Tensor, "B H Q D"]:  # fmt: skip
    """softmax(q k^T * scaling) v; a gradient may compute the weights again. ``scaling``: None is one by the root of D.

    ``mask``: True = seen, or added to the scores. ``causal``: as many keys as queries, each sees those before it and itself. With both, the
    mask may be smaller than [..., Q, S] and then speaks of the last queries and the last keys. It must hide what is behind its queries.
    """
    return pieces_by_products(q, k, v, [Piece(0, q.shape[2], k.shape[2], mask, causal, q.dtype)], scaling)


def pieces_by_products(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], v: Float[Tensor, "B H S D"], pieces: Sequence[Piece],
    scaling: float | None = None,
) -> Float[Tensor, "B H Q D"]:  # fmt: skip
    """The same for several pieces, one behind the other, each alone; 0 behind the last."""
    return _ByProducts.apply(q, k, v, pieces, q.shape[-1] ** -0.5 if scaling is None else scaling)


class Piece:
    """Queries and the keys that they may see, both from ``first`` on; the queries are cut into blocks.

    In 16 bits, where each query sees those before it, queries and keys are filled up to an even number with what lies behind them: none of
    the piece's queries sees it, and what it finds itself is dropped.
    """

    def __init__(self, first: int, queries: int, keys: int, mask: Tensor | None, causal: bool, dtype: torch.dtype) -> None:
        self.first, self.count, self.seen, self.mask, self.causal = first, queries, keys, mask, causal
        of = EVEN if causal and dtype.itemsize == 2 else 1
        self.filled_up = -(-queries // of) * of
        self.masked = queries if mask is None else queries - mask.shape[-2]
        """The first query of which the mask speaks."""
        self.width = width = max(2 * BLOCK if dtype.itemsize == 2 else BLOCK, of)
        edge = self.filled_up if mask is None else self.masked // of * of
        self.rows = _even(0, edge, width, of) + _even(edge, self.filled_up, width, of)
        """Of each block, counted from the piece's first."""

    def queries(self, x: Float[Tensor, "G Q D"], rows: slice) -> Float[Tensor, "G rows D"]:
        """Those of a block."""
        return _close(x.narrow(1, self.first + rows.start, rows.stop - rows.start))

    def keys(self, x: Float[Tensor, "G S D"], rows: slice) -> Float[Tensor, "G seen D"]:
        """That a block may see."""
        return _close(x.narrow(1, self.first, rows.stop if self.causal else self.seen))

    def put(self, x: Float[Tensor, "G rows D"], into: Float[Tensor, "B H L D"], start: int, count: int) -> None:
        """Rows ``start`` to ``count`` of the piece, without what they were filled up with."""
        own = min(x.shape[1], count - start)
        into.narrow(2, self.first + start, own).copy_(x.narrow(1, 0, own).view(*into.shape[:2], own, -1))

    def weights(
        self, queries: Float[Tensor, "G rows D"], keys: Float[Tensor, "G seen D"], rows: slice, heads: torch.Size, scaling: float
    ) -> Float[Tensor, "G rows seen"]:
        """0 in rows that fill up the piece. ``heads``: B and H, of which G are made."""
        scores = _product(queries, keys.transpose(1, 2), scaling)
        own = rows.stop - rows.start
        first = own if self.mask is None else min(max(self.masked - rows.start, 0), own)  # of which the mask speaks
        if self.causal and first:
            ceiling = _ceiling(self.width, scores.dtype, scores.device).narrow(0, 0, first).narrow(1, 0, own)
            scores.narrow(1, 0, first).narrow(2, rows.start, own).add_(ceiling)
        if self.mask is not None and first < own:
            begin, stop = self.seen - self.mask.shape[-1], min(rows.stop, self.count)
            part = self.mask[..., rows.start + first - self.masked : stop - self.masked, : keys.shape[1] - begin]
            hidden = scores.unflatten(0, heads)[:, :, first : stop - rows.start, begin : self.seen]
            hidden.masked_fill_(~part, float("-inf")) if part.dtype == torch.bool else hidden.add_(part)
            scores[:, :, self.seen :] = float("-inf")
        weights = torch.softmax(scores, dim=-1, out=scores)  # row by row: in place
        if rows.stop > self.count:
            weights[:, self.count - rows.start :] = 0
        return weights


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], scaling: float) -> Tensor:
        heads = q.shape[:2]
        queries, keys, values = (_filled_up(x, pieces) for x in (q, k, v))
        out = _by_token(q, (*q.shape[:3], v.shape[3]))
        kept: list[Tensor] = []
        for piece in pieces:
            keeps = piece.seen <= KEPT and any(ctx.needs_input_grad)
            for rows in piece.rows:
                weights = piece.weights(piece.queries(queries, rows), piece.keys(keys, rows), rows, heads, scaling)
                piece.put(_product(weights, piece.keys(values, rows)), out, rows.start, piece.count)
                if keeps:
                    kept.append(weights)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.shapes, ctx.pieces, ctx.scaling = (q.shape, k.shape, v.shape), pieces, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, keys, values, *kept = ctx.saved_tensors
        heads, pieces, scaling = ctx.shapes[0][:2], ctx.pieces, ctx.scaling
        grads = _filled_up(out_grad, pieces)
        q_grad, k_grad, v_grad = (_by_token(out_grad, shape) for shape in ctx.shapes)
        for piece in reversed(pieces):
            k_sum, v_sum = _Sum(), _Sum()
            for rows in reversed(piece.rows):  # the last block sees all keys
                own_queries, own_keys, own_grads = piece.queries(queries, rows), piece.keys(keys, rows), piece.queries(grads, rows)
                weights = kept.pop() if piece.seen <= KEPT else piece.weights(own_queries, own_keys, rows, heads, scaling)
                v_sum.add(weights.transpose(1, 2), own_grads)
                scores_grad = _product(own_grads, piece.keys(values, rows).transpose(1, 2))
                scores_grad = torch.ops.aten._softmax_backward_data(scores_grad, weights, -1, weights.dtype)
                piece.put(_product(scores_grad, own_keys, scaling), q_grad, rows.start, piece.count)
                k_sum.add(scores_grad.transpose(1, 2), own_queries, scaling)
            if piece.rows:
                piece.put(k_sum.total, k_grad, 0, piece.seen)
                piece.put(v_sum.total, v_grad, 0, piece.seen)
        return q_grad, k_grad, v_grad, None, None


class _Sum:
    """Of products a @ b * scaling: the first has all rows of the sum, another only so many of the first rows as ``a``."""

    def __init__(self) -> None:
        self.total, self.begun = torch.empty(0), False

    def add(self, a: Float[Tensor, "G seen rows"], b: Float[Tensor, "G rows D"], scaling: float = 1.0) -> None:
        """In 16 bits, a second one makes it a sum of float32."""
        found = _product(a, b, scaling)
        if self.begun:
            self.total = self.total.to(torch.promote_types(found.dtype, torch.float32))
            self.total.narrow(1, 0, a.shape[1]).add_(found)
        else:
            self.total, self.begun = found, True


def _product(a: Float[Tensor, "G m k"], b: Float[Tensor, "G k n"], scaling: float = 1.0) -> Float[Tensor, "G m n"]:
    """Of each pair, times ``scaling``."""
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    if a.dtype == torch.float32 and has_wide_vectors():
        return torch.baddbmm(out, a, b, beta=0, alpha=scaling)
    # By PyTorch itself: what `products` takes over makes a detour of 10 us. beta = 0: the first matrix is not read.
    return torch.baddbmm(out, a, b, beta=0, alpha=scaling, out=out)


def _filled_up(x: Float[Tensor, "B H L D"], pieces: Sequence[Piece]) -> Float[Tensor, "G L2 D"]:
    """In 16 bits the rows of each matrix one behind the other, and zeros behind them as far as a piece is filled up."""
    flat, length = x.flatten(0, 1), x.shape[2]
    if x.element_size() > 2:
        return flat
    filled_up = max((piece.first + piece.filled_up for piece in pieces if piece.causal), default=0)
    if filled_up <= length:
        return flat.contiguous()
    full = x.new_empty(len(flat), filled_up, x.shape[3])
    full[:, :length], full[:, length:] = flat, 0
    return full


def _by_token(like: Tensor, shape: Sequence[int]) -> Float[Tensor, "B H L D"]:
    """Zeros; the heads of a token lie side by side, as models have them."""
    B, H, L, D = shape
    return like.new_zeros(B, L, H, D).transpose(1, 2)


def _close(x: Float[Tensor, "G L D"]) -> Float[Tensor, "G L D"]:
    """In 16 bits, without what lies between the matrices: a product would copy them turned, which takes four times as long."""
    return x.contiguous() if x.element_size() == 2 else x


@functools.cache
def _ceiling(width: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "width width"]:
    """What hides from each query the keys behind it."""
    return torch.full((width, width), float("-inf"), dtype=dtype, device=device).triu_(1)


def _even(start: int, stop: int, width: int, of: int) -> list[slice]:
    """Blocks of even size, multiples of ``of`` as ``stop - start`` is, none above ``width`` if that is one too."""
    count, units = -(-(stop - start) // width), (stop - start) // of
    return [slice(start + units * i // count * of, start + units * (i + 1) // count * of) for i in range(count)]
