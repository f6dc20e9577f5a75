"""Where the real tokens of a padded batch are. Every mask is boolean, True = real token; the first EOS is real."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def position_ids(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Position of each real token among the real tokens of its row, counted from 0; 0 on pads.

        position[t] = mask[0] + ... + mask[t - 1]

    The exclusive cumulative sum of the mask (lm-human-preferences, ``language/model.py``): the same positions however a row is padded.

    Args:
        mask: True = real token. Left padding, right padding and holes are all served.

    Returns:
        Positions (int64): [pad, pad, a, b, c] gives [0, 0, 0, 1, 2].
    """
    real = mask.long()
    return (real.cumsum(dim=-1) - real) * real


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of ``x`` over the real tokens of the whole batch.

        mean = sum(x * mask) / sum(mask)

    Args:
        x: one value per token. What the padded slots hold does not matter, NaN included.
        mask: True = real token.

    Returns:
        A scalar; 0 where no token is real, so that micro-batches can be averaged with their token counts as weights.
    """
    return x.where(mask, 0).sum() / mask.sum().clamp(min=1)


def last_index(mask: Bool[Tensor, "B R"]) -> Int[Tensor, " B"]:
    """Index of the last real token of each row (int64); 0 where a row has none."""
    return (torch.arange(mask.shape[-1], device=mask.device) * mask).amax(dim=-1)


def add_at_last_token(x: Float[Tensor, "B R"], scores: Float[Tensor, " B"], response_mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """``x`` with the score of each response added on its last real token: R(x, y) of Ziegler et al. 2019 (arXiv:1909.08593), eq. 2.

    Args:
        x: one value per token, usually the KL penalty.
        scores: r(x, y), one per response.
        response_mask: True = real token.

    Returns:
        A new tensor whose row sums have grown by the scores. A row without a real token stays as it was.
    """
    columns = torch.arange(x.shape[-1], device=x.device)
    is_last = (columns == last_index(response_mask)[:, None]) & response_mask
    return torch.where(is_last, x + scores[:, None], x)


def response_mask_until_eos(responses: Int[Tensor, "B R"], eos_id: int) -> Bool[Tensor, "B R"]:
    """True up to and including the first ``eos_id`` of each row; all True where there is none."""
    is_eos = (responses == eos_id).long()
    return is_eos.cumsum(dim=-1) - is_eos == 0


def truncate_at(responses: Int[Tensor, "B R"], token_id: int, after: int) -> tuple[Bool[Tensor, "B R"], Bool[Tensor, " B"]]:
    """Cut each response behind its first ``token_id`` at 0-based index >= ``after``.

    The truncation before scoring of lm-human-preferences (``train_policy.py``, make_score_fn): the token itself is kept.

    Args:
        responses: token ids.
        token_id: the token that ends a response, for example a full stop.
        after: first index at which it counts, >= 0. The published sentiment task: 16 of 24 tokens.

    Returns:
        The response mask (all True where the token is not found) and, per response, whether it was found.
    """
    columns = torch.arange(responses.shape[-1], device=responses.device)
    is_end = ((responses == token_id) & (columns >= after)).long()
    return is_end.cumsum(dim=-1) - is_end == 0, is_end.any(dim=-1)
