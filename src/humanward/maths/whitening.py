"""Bring rewards or advantages to unit variance over the real tokens of the global batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "*shape"]:
    """Whiten ``x`` with the mean and population variance of its real tokens.

        whitened = (x - mean) / sqrt(variance + epsilon)   [+ mean, where shift_mean is False]

    lm-human-preferences, ``utils/core.py`` (whiten): variance over n, not n - 1; rewards keep their mean, advantages lose it.

    Args:
        x: one value per token. What the padded slots hold does not matter, NaN included.
        mask: True = real token.
        shift_mean: True removes the mean; False adds it back after scaling.
        epsilon: added to the variance.
        reduce: sums a small tensor over all processes; every process must call. None: one process.

    Returns:
        Whitened values, 0 on pads. [1, 2, 3, 4] gives [-1.3416, -0.4472, 0.4472, 1.3416]; shift_mean=False adds 2.5 to each.
    """
    real = x.where(mask, 0).to(torch.promote_types(x.dtype, torch.float32))
    total, count = _over_processes(torch.stack([real.sum(), mask.sum().to(real)]), reduce)
    mean = total / count.clamp(min=1)
    centred = (real - mean).where(mask, 0)
    # careful: squares of centred values, not E[x^2] - E[x]^2, which loses all digits where the mean is large.
    (squares,) = _over_processes(centred.square().sum()[None], reduce)
    whitened = centred * torch.rsqrt(squares / count.clamp(min=1) + epsilon)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.where(mask, 0).to(x.dtype)


def _over_processes(sums: Tensor, reduce: Callable[[Tensor], Tensor] | None) -> Tensor:
    return sums if reduce is None else reduce(sums)
