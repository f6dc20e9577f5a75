"""Attention over a ragged batch that is one stream of tokens, registered with transformers so that every model which asks it is served.

Everything else in a transformer works on each token alone. So the tokens of all prompts and responses can stand one behind the other,
without padding, and only the attention has to know which of them belong together: a ``Packing`` tells it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "humanward"


class Packing:
    """A stream of tokens: prompt 1, its responses 1 to K, prompt 2, ...; and the rows that attention works on.

    A row is [prompt | response 1 | ... | response K], each part as wide as the widest of its kind and filled from the left. With K = 1 the
    response follows its prompt at once, so that the row is an ordinary causal one.

    Args:
        prompt_mask: True = real token.
        response_mask: True = real token.
    """

    def __init__(self, prompt_mask: Bool[Tensor, "B P"], response_mask: Bool[Tensor, "B K R"]) -> None:
        B, K, _ = response_mask.shape
        device = prompt_mask.device
        mask = torch.cat([prompt_mask, response_mask.flatten(1)], dim=1)
        self.prompt_lengths: Int[Tensor, " B"] = prompt_mask.sum(1)
        response_lengths = response_mask.sum(2)
        in_prompt, in_response = prompt_mask.cumsum(1) - 1, response_mask.cumsum(2) - 1
        behind = self.prompt_lengths[:, None, None] + in_response
        if K == 1:
            self.K, self.prompt_width, self.response_width = 0, int(mask.sum(1).max()), 0
            seats = behind
        else:
            self.K, self.prompt_width, self.response_width = K, int(self.prompt_lengths.max()), int(response_lengths.max())
            seats = self.prompt_width + self.response_width * torch.arange(K, device=device)[:, None] + in_response
        self.widths = [self.prompt_width] + [self.response_width] * self.K
        self.width = sum(self.widths)
        rows = torch.arange(B, device=device)[:, None] * self.width
        self.real: Int[Tensor, " N"] = mask.flatten().nonzero().squeeze(1)
        """The places of the padded [B, P + K * R] that the stream is made of."""
        self.positions: Int[Tensor, " N"] = torch.cat([in_prompt, behind.flatten(1)], dim=1).flatten()[self.real]
        self.seats: Int[Tensor, " N"] = (rows + torch.cat([in_prompt, seats.flatten(1)], dim=1)).flatten()[self.real]
        """Where each token of the stream sits in the flat rows, [B * width]."""
        self.rows = B
        self.full = len(self.seats) == B * self.width
        self._masks: dict[tuple[str, int | None], Tensor | None] = {}

    def to_rows(self, x: Float[Tensor, "N H D"]) -> Float[Tensor, "B H L D"]:
        """Zeros where a row has padding."""
        flat = x if self.full else x.new_zeros(self.rows * self.width, *x.shape[1:]).index_copy(0, self.seats, x)
        return flat.unflatten(0, (self.rows, self.width)).transpose(1, 2)

    def to_stream(self, rows: Float[Tensor, "B H L D"]) -> Float[Tensor, "N H D"]:
        flat = rows.transpose(1, 2).flatten(0, 1)
        return flat if self.full else flat.index_select(0, self.seats)

    def prompt_sees(self, window: int | None) -> Bool[Tensor, "P P"] | None:
        """Which columns of the first part each of its columns attends to; None: all before it and itself."""
        if window is None or window >= self.prompt_width:
            return None
        columns = torch.arange(self.prompt_width, device=self.seats.device)
        behind = columns[:, None] - columns
        return (behind >= 0) & (behind < window)

    def response_sees(self, window: int | None) -> Bool[Tensor, "B 1 R P+R"]:
        """Which columns of [prompt | own response] each token of a response attends to."""
        columns = torch.arange(self.prompt_width, device=self.seats.device)
        own = torch.arange(self.response_width, device=self.seats.device)
        lengths = self.prompt_lengths[:, None, None]
        prompt = (columns < lengths).expand(-1, self.response_width, -1)
        earlier = (own <= own[:, None]).expand(self.rows, -1, -1)
        if window is not None:
            prompt = prompt & (lengths + own[:, None] - columns < window)
            earlier = earlier & (own[:, None] - own < window)
        return torch.cat([prompt, earlier], dim=2)[:, None]

    def mask(self, part: str, window: int | None) -> Tensor | None:
        """``prompt_sees`` or ``response_sees``, made once for all layers."""
        if (part, window) not in self._masks:
            self._masks[part, window] = (self.prompt_sees if part == "prompt" else self.response_sees)(window)
        return self._masks[part, window]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float | None = None,
    dropout: float = 0.0, softcap: float | None = None, sliding_window: int | None = None, packing: Packing | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in every layer. Without ``packing``: the library's own, with soft caps served too.

    query is [1, H, N, D] over the stream; key and value may have fewer heads.

    Raises:
        NotImplementedError: the model asks for something that is not served here, such as attention sinks.
    """
    if any(kwargs.get(name) is not None for name in ("s_aux", "position_bias")):
        raise NotImplementedError(f"{type(module).__name__} adds to its attention scores")
    if packing is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    if packing is None:
        causal = attention_mask is None and query.shape[2] > 1
        out = attend(query, _heads(key, groups), _heads(value, groups), attention_mask, causal, scaling, dropout, softcap)
        return out.transpose(1, 2).contiguous(), None
    q, k, v = (packing.to_rows(x[0].transpose(0, 1)) for x in (query, key, value))
    k, v = _heads(k, groups), _heads(v, groups)
    if packing.K == 0:
        mask = packing.mask("prompt", sliding_window)
        return packing.to_stream(attend(q, k, v, mask, mask is None, scaling, dropout, softcap))[None], None
    # careful: not slices, whose gradients would each fill a whole row.
    (prompt_q, *own_q), (prompt_k, *own_k), (prompt_v, *own_v) = (x.split(packing.widths, dim=2) for x in (q, k, v))
    mask = packing.mask("prompt", sliding_window)
    parts = [attend(prompt_q, prompt_k, prompt_v, mask, mask is None, scaling, dropout, softcap)] if packing.prompt_width else [prompt_q]
    mask = packing.mask("response", sliding_window)
    for one_q, one_k, one_v in zip(own_q, own_k, own_v, strict=True):
        keys, values = torch.cat([prompt_k, one_k], dim=2), torch.cat([prompt_v, one_v], dim=2)
        parts.append(attend(one_q, keys, values, mask, False, scaling, dropout, softcap))
    return packing.to_stream(torch.cat(parts, dim=2))[None], None


def attend(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], v: Float[Tensor, "B H S D"], mask: Tensor | None, causal: bool,
    scaling: float | None, dropout: float, softcap: float | None,
) -> Float[Tensor, "B H Q D"]:  # fmt: skip
    """softmax(cap(q k^T * scaling)) v, where cap(s) = softcap * tanh(s / softcap). ``mask``: True = seen, or added to the scores."""
    if softcap is None and not _slow_when_fused(q):
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling)
    if not causal:
        return _attend_step_by_step(q, k, v, mask, scaling, dropout, softcap)
    parts: list[Tensor] = []
    for rows in q.split(BLOCK, dim=2):  # what lies above the diagonal is not computed
        seen = min(sum(part.shape[2] for part in parts) + rows.shape[2], k.shape[2])
        own = torch.ones(rows.shape[2], seen, dtype=torch.bool, device=q.device).tril(seen - rows.shape[2])
        parts.append(_attend_step_by_step(rows, k[:, :, :seen], v[:, :, :seen], own, scaling, dropout, softcap))
    return torch.cat(parts, dim=2)


BLOCK = 128
"""Rows of a causal attention whose scores are held at once."""


def _slow_when_fused(q: Tensor) -> bool:
    """PyTorch's fused attention has a backward pass for 16-bit numbers on CPUs that takes twice the time of plain products."""
    return q.device.type == "cpu" and q.element_size() == 2 and torch.is_grad_enabled() and q.requires_grad


def _attend_step_by_step(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float, softcap: float | None
) -> Float[Tensor, "B H Q D"]:
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    # Summed in float32 inside the kernel, whatever the type of the scores.
    return nn.functional.dropout(torch.softmax(scores, dim=-1), dropout) @ v


def _heads(x: Float[Tensor, "B H L D"], groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
