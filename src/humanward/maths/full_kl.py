"""KL divergence over the whole vocabulary, from the hidden states under two LM heads."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from humanward.maths.chunked_head import Gradients, HeadRule, Operands, chunk_logits, chunks, operands_of, product_dtype


def linear_kl(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    other_hidden: Float[Tensor, "N E"],
    other_weight: Float[Tensor, "V E"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    other_bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    suppressed: Bool[Tensor, " V"] | None = None,
    chunk_rows: int = 512,
) -> Float[Tensor, " N"]:
    """KL of next-token distributions, exactly, without ever holding [N, V] logits.

        KL(p || q) = sum over v of p[v] * (log p[v] - log q[v])        p of hidden and weight, q of the other two

    What the estimators k1, k2 and k3 of ``kl_estimate`` guess from the one token that was sampled. With z the final logits,

        d KL / d z_p[v] = p[v] * (log p[v] - log q[v] - KL)            d KL / d z_q[v] = q[v] - p[v]

    Args:
        hidden: last hidden states of one model, as for ``linear_logprobs``.
        weight: its LM head.
        other_hidden: of another model, or of the same one at another time; at the same positions.
        other_weight: its LM head, over the same vocabulary.
        bias: of the first head.
        other_bias: of the other head.
        temperature: > 0, of both.
        softcap: of both, as in ``linear_logprobs``.
        scale: of both.
        suppressed: True = neither can sample this token.
        chunk_rows: rows per chunk, > 0: memory against the number of kernel launches.

    Returns:
        Nats per position, >= 0 up to rounding, 0 where the distributions agree; differentiable with respect to both models. Types as
        ``linear_logprobs``.

    Raises:
        ValueError: vocabularies of different size, or ``temperature``, ``softcap`` or ``chunk_rows`` is not positive.
    """
    if len(weight) != len(other_weight):
        raise ValueError(f"heads over {len(weight)} and {len(other_weight)} tokens; a KL needs one vocabulary")
    head = HeadRule(temperature, softcap, scale, suppressed, chunk_rows)
    return _LinearKL.apply(hidden, weight, bias, other_hidden, other_weight, other_bias, head)


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        other_hidden, other_weight, other_bias, head = rest
        dtype = product_dtype(hidden)
        sides = operands_of(hidden, weight, bias, dtype), operands_of(other_hidden, other_weight, other_bias, dtype)
        kl = hidden.new_empty(len(hidden), dtype=sides[0].dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks(len(hidden), head.chunk_rows):
                (log_p, _), (log_q, _) = (_log_softmax(side, rows, head) for side in sides)
                kl[rows] = log_q.neg_().add_(log_p).mul_(log_p.exp_()).sum(dim=1)
        ctx.save_for_backward(hidden, weight, bias, other_hidden, other_weight, other_bias, kl)
        ctx.head, ctx.product_dtype = head, dtype
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, other_hidden, other_weight, other_bias, kl = ctx.saved_tensors
        head, needed = ctx.head, ctx.needs_input_grad
        first = operands_of(hidden, weight, bias, ctx.product_dtype)
        second = operands_of(other_hidden, other_weight, other_bias, ctx.product_dtype)
        of_p, of_q = Gradients(first, head, needed[:3], weight), Gradients(second, head, needed[3:6], other_weight)
        with torch.autocast(kl.device.type, enabled=False):
            for rows in chunks(len(kl), head.chunk_rows):
                (log_p, p_slope), (log_q, q_slope) = (_log_softmax(side, rows, head) for side in (first, second))
                p, g = log_p.exp(), grads[rows, None]
                if any(needed[3:6]):
                    of_q.add(rows, (log_q.exp() - p).mul_(g), q_slope)
                if any(needed[:3]):
                    of_p.add(rows, log_p.sub_(log_q).sub_(kl[rows, None]).mul_(p).mul_(g), p_slope)
        return *of_p.like(hidden, weight, bias), *of_q.like(other_hidden, other_weight, other_bias), None


def _log_softmax(operands: Operands, rows: slice, head: HeadRule) -> tuple[Tensor, Tensor | None]:
    z, slope = chunk_logits(operands, rows, head)
    return z.sub_(z.logsumexp(dim=1, keepdim=True)), slope
