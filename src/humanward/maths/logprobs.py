"""Log-probabilities and entropies of sampled tokens, from logits or straight from the hidden states under the LM head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from humanward.maths.chunked_head import Gradients, HeadRule, chunk_logits, chunks, operands_of, product_dtype

_FEW_ROWS = 64
"""Of a chunk whose exponentials are kept beside its logits."""


def gather_logprobs(logits: Float[Tensor, "*batch V"], tokens: Int[Tensor, "*batch"], *, temperature: float) -> Float[Tensor, "*batch"]:
    """Log-probability of each token under softmax(logits / temperature).

        logprob = logits[token] / T - log( sum over v of exp(logits[v] / T) )

    The temperature of sampling belongs in the loss too (lm-human-preferences, ``language/sample.py``): without it the KL is that of
    another policy.

    Args:
        logits: of the LM head; 16-bit logits are raised to float32.
        tokens: the token sampled from each distribution.
        temperature: > 0; below 1 sharpens.

    Returns:
        Nats, <= 0; -log V for equal logits. float32, or float64 for float64 logits.
    """
    scaled = _at_least_float32(logits) / temperature
    return scaled.gather(-1, tokens[..., None]).squeeze(-1) - scaled.logsumexp(dim=-1)


def entropy(logits: Float[Tensor, "*batch V"], *, temperature: float) -> Float[Tensor, "*batch"]:
    """Entropy of softmax(logits / temperature).

        H = -sum over v of p[v] * log p[v]

    Args:
        logits: of the LM head; 16-bit logits are raised to float32. -inf (a token that cannot be sampled) adds nothing.
        temperature: > 0; lower gives less entropy.

    Returns:
        Nats, 0 to log V; log V for equal logits.
    """
    log_p = torch.log_softmax(_at_least_float32(logits) / temperature, dim=-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(dim=-1)


def linear_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    suppressed: Bool[Tensor, " V"] | None = None,
    chunk_rows: int = 512,
    want_entropy: bool = True,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Log-probabilities and entropies of tokens from hidden states, without ever holding the [N, V] logits.

        logits  = scale * (hidden @ weight.T + bias)
        logits  = softcap * tanh(logits / softcap)          where softcap is given
        logits  = -inf where suppressed, logits / temperature elsewhere
        logprob = log_softmax(logits)[token]                entropy = -sum over v of p[v] * log p[v]

    The rows go through the LM head ``chunk_rows`` at a time, and again in the backward pass, which recomputes each chunk from the saved
    log-normaliser: the largest temporary is [chunk_rows, V]. With z the final logits, the backward pass is

        d logprob / d z[v] = (v == token) - p[v]            d entropy / d z[v] = -p[v] * (log p[v] + entropy)

    Args:
        hidden: last hidden states of the positions that predict ``tokens``.
        weight: of the LM head (or the tied embedding).
        tokens: the token sampled at each position.
        bias: of the LM head.
        temperature: > 0, as in ``gather_logprobs``.
        softcap: bound of the logits, > 0 (Gemma 2, arXiv:2408.00118, section 2).
        scale: factor on the logits (Cohere, Granite).
        suppressed: True = this token cannot be sampled.
        chunk_rows: rows per chunk, > 0: memory against the number of kernel launches.
        want_entropy: False saves the work for the entropies and returns None in their place.

    Returns:
        (logprobs, entropies), both differentiable with respect to hidden, weight and bias. float32, from float32 logits,
        for 16-bit operands too; float64 where hidden is float64. Equal logits give -log V and log V; a suppressed token has
        log-probability -inf.

    Raises:
        ValueError: ``temperature``, ``softcap`` or ``chunk_rows`` is not positive.
    """
    head = HeadRule(temperature, softcap, scale, suppressed, chunk_rows)
    logprobs, entropies = _LinearLogprobs.apply(hidden, weight, bias, tokens, head, want_entropy)
    return logprobs, entropies


@torch.no_grad()
def linear_log_collision(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    suppressed: Bool[Tensor, " V"] | None = None,
    chunk_rows: int = 512,
) -> Float[Tensor, " N"]:
    """How likely two draws at a position are the same token, from hidden states, without gradient.

        log_collision = log( sum over v of p[v]^2 )

    The normaliser of WPO's weights (Zhou et al. 2024, arXiv:2406.11827, eq. 2). Arguments as ``linear_logprobs``.

    Returns:
        Nats, -log V to 0; -log V for equal logits.
    """
    operands = operands_of(hidden, weight, bias, product_dtype(hidden))
    head = HeadRule(temperature, softcap, scale, suppressed, chunk_rows)
    found = hidden.new_empty(len(hidden), dtype=operands.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in chunks(len(hidden), chunk_rows):
            z, _ = chunk_logits(operands, rows, head)
            found[rows] = (2 * z).logsumexp(dim=1) - 2 * z.logsumexp(dim=1)
    return found


def _sums_of_exponentials(z: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of e^z, sum of z e^z) over the last dimension."""
    exponentials = z.exp()
    return exponentials.sum(dim=-1), exponentials.mul_(z).sum(dim=-1)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, head: HeadRule, want_entropy: bool):
        operands = operands_of(hidden, weight, bias, product_dtype(hidden))
        logprobs = hidden.new_empty(len(hidden), dtype=operands.dtype)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if want_entropy else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks(len(hidden), head.chunk_rows):
                z, _ = chunk_logits(operands, rows, head)
                chosen = z.gather(1, tokens[rows, None]).squeeze(1)
                largest = z.amax(dim=1)
                z -= largest[:, None]
                if entropies is not None:
                    # H = log(sum of e^z) - E[z], with z measured from the largest logit.
                    total, weighted = map(torch.cat, zip(*map(_sums_of_exponentials, z.split(_FEW_ROWS)), strict=True))
                    entropies[rows] = total.log() - weighted / total
                else:
                    total = z.exp_().sum(dim=1)
                normalisers[rows] = largest + total.log()
                logprobs[rows] = chosen - largest - total.log()
        if head.suppressed is not None:
            logprobs.masked_fill_(head.suppressed[tokens], -torch.inf)
        ctx.save_for_backward(hidden, weight, bias, tokens, normalisers, entropies)
        ctx.head, ctx.product_dtype = head, operands.hidden.dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprob_grads: Tensor | None, entropy_grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, tokens, normalisers, entropies = ctx.saved_tensors
        head, (needs_hidden, needs_weight, needs_bias, *_) = ctx.head, ctx.needs_input_grad
        operands = operands_of(hidden, weight, bias, ctx.product_dtype)
        gradients = Gradients(operands, head, (needs_hidden, needs_weight, needs_bias), weight)
        if logprob_grads is None:
            logprob_grads = torch.zeros_like(normalisers)
        # A suppressed token's logit is constant.
        chosen_grads = logprob_grads if head.suppressed is None else logprob_grads.masked_fill(head.suppressed[tokens], 0)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks(len(hidden), head.chunk_rows):
                z, slope = chunk_logits(operands, rows, head)
                log_p, g = z.sub_(normalisers[rows, None]), logprob_grads[rows, None]
                if entropy_grads is None:
                    z_grad = log_p.exp_().mul_(-g)
                else:
                    p, h = log_p.exp(), entropy_grads[rows, None]
                    z_grad = log_p.mul_(-h).sub_(h * entropies[rows, None] + g).mul_(p)
                    del p
                z_grad.scatter_add_(1, tokens[rows, None], chosen_grads[rows, None])
                gradients.add(rows, z_grad, slope)
        return *gradients.like(hidden, weight, bias), None, None, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
