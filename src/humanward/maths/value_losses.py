"""Losses that fit the value head to returns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_value_loss(
    values: Float[Tensor, "B R"],
    old_values: Float[Tensor, "B R"],
    returns: Float[Tensor, "B R"],
    *,
    value_clip_range: float | None,
) -> Float[Tensor, "B R"]:
    """Half the larger of two square errors: of the value, and of the value held near its old self.

        clipped = clip(values, old_values - value_clip_range, old_values + value_clip_range)
        loss    = 1/2 * max((values - returns)^2, (clipped - returns)^2)

    lm-human-preferences, ``train_policy.py`` (loss).

    Args:
        values: of the value head being trained, score units.
        old_values: at the time of sampling.
        returns: targets, score units.
        value_clip_range: how far a value may move before its gradient stops, > 0. Usually 0.2. None: half the plain square error.

    Returns:
        Loss per token, 0 where values, old values and returns agree. Not reduced: only the caller knows the mask and the global batch.
    """
    if value_clip_range is None:
        return 0.5 * (values - returns).square()
    clipped = torch.clamp(values, old_values - value_clip_range, old_values + value_clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
