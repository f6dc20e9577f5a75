"""Attention over a ragged batch that is one stream of tokens, registered with transformers so that every model which asks it is served.

Everything else in a transformer works on each token alone. So the tokens of all prompts and responses can stand one behind the other,
without padding, and only the attention has to know which of them belong together: a ``Packing`` tells it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from humanward.models.blockwise import BLOCK, Piece, by_products, pieces_by_products
from humanward.models.recomputing import can_be_made_again

NAME = "humanward"
SHORT = 256
"""Tokens of a question below which, on a CPU, one kernel call for many even rows is faster than a call for each question."""
BY_PRODUCTS = range(160, 1025)
"""Queries for which, on a CPU in 32 bits, plain products are faster than the fused kernel, which works in larger blocks from 768 on."""


class Scoring(NamedTuple):
    """How a layer makes weights of queries and keys."""

    scaling: float | None
    dropout: float
    softcap: float | None
    window: int | None
    """A token sees so many, itself included; None: all before it."""

    @property
    def plain(self) -> bool:
        """Nothing but a softmax."""
        return self.softcap is None and self.dropout == 0


class Packing:
    """A stream of tokens, prompt 1, its responses 1 to K, prompt 2, ...; and how attention works on it.

    Args:
        prompt_mask: True = real token.
        response_mask: True = real token.
    """

    def __init__(self, prompt_mask: Bool[Tensor, "B P"], response_mask: Bool[Tensor, "B K R"]) -> None:
        mask = torch.cat([prompt_mask, response_mask.flatten(1)], dim=1)
        prompt_lengths, response_lengths = prompt_mask.sum(1), response_mask.sum(2)
        in_prompt, in_response = prompt_mask.cumsum(1) - 1, response_mask.cumsum(2) - 1
        behind = prompt_lengths[:, None, None] + in_response
        self.real: Int[Tensor, " N"] = mask.flatten().nonzero().squeeze(1)
        """The places of the padded [B, P + K * R] that the stream is made of."""
        self.positions: Int[Tensor, " N"] = torch.cat([in_prompt, behind.flatten(1)], dim=1).flatten()[self.real]
        """Of each token behind the others of its question that it sees."""
        if in_rows(prompt_lengths, response_lengths):
            self.layout: Rows | Pieces = Rows(self.real, in_prompt, in_response, prompt_lengths, response_lengths)
        else:
            self.layout = Pieces(self.positions, prompt_lengths.tolist(), response_lengths.tolist())


def in_rows(prompt_lengths: Int[Tensor, " B"], response_lengths: Int[Tensor, "B K"]) -> bool:
    """Whether ``Rows`` are faster than ``Pieces``; the result is the same."""
    if prompt_lengths.device.type != "cpu":
        return True
    even = bool((prompt_lengths == prompt_lengths[0]).all() and (response_lengths == response_lengths[0, 0]).all())
    return even and int(prompt_lengths[0] + response_lengths[0].sum()) < SHORT


class Rows:
    """Attention over rows, one kernel call for the same part of all of them: for a GPU, and for short rows without padding.

    A row is [prompt | response 1 | ... | response K], each part as wide as the widest of its kind and filled from the left. With K = 1 the
    response follows its prompt at once, so that the row is an ordinary causal one.
    """

    def __init__(
        self, real: Int[Tensor, " N"], in_prompt: Int[Tensor, "B P"], in_response: Int[Tensor, "B K R"],
        prompt_lengths: Int[Tensor, " B"], response_lengths: Int[Tensor, "B K"],
    ) -> None:  # fmt: skip
        B, K = response_lengths.shape
        self.count, self.prompt_lengths = B, prompt_lengths
        if K == 1:
            self.K, self.prompt_width, self.response_width = 0, int((prompt_lengths + response_lengths[:, 0]).max()), 0
            seats = prompt_lengths[:, None, None] + in_response
        else:
            self.K, self.prompt_width, self.response_width = K, int(prompt_lengths.max()), int(response_lengths.max())
            seats = self.prompt_width + self.response_width * torch.arange(K, device=real.device)[:, None] + in_response
        self.widths = [self.prompt_width] + [self.response_width] * self.K
        self.width = sum(self.widths)
        rows = torch.arange(B, device=real.device)[:, None] * self.width
        self.seats: Int[Tensor, " N"] = (rows + torch.cat([in_prompt, seats.flatten(1)], dim=1)).flatten()[real]
        """Where each token of the stream sits in the flat rows, [B * width]."""
        self.full = len(self.seats) == B * self.width
        self._masks: dict[tuple[str, int | None], Tensor | None] = {}

    def attend(
        self, query: Float[Tensor, "1 H N D"], key: Float[Tensor, "1 H N D"], value: Float[Tensor, "1 H N D"], scoring: Scoring
    ) -> Float[Tensor, "1 N H D"]:
        q, k, v = (self.to_rows(x[0].transpose(0, 1)) for x in (query, key, value))
        mask = self.mask("prompt", scoring.window)
        if self.K == 0:
            return self.to_stream(attend(q, k, v, mask, mask is None, scoring))[None]
        # careful: not slices, whose gradients would each fill a whole row.
        (prompt_q, *own_q), (prompt_k, *own_k), (prompt_v, *own_v) = (x.split(self.widths, dim=2) for x in (q, k, v))
        parts = [attend(prompt_q, prompt_k, prompt_v, mask, mask is None, scoring)] if self.prompt_width else [prompt_q]
        mask = self.mask("response", scoring.window)
        for one_q, one_k, one_v in zip(own_q, own_k, own_v, strict=True):
            keys, values = _together(prompt_k, one_k), _together(prompt_v, one_v)
            parts.append(attend(one_q, keys, values, mask, False, scoring))
        return self.to_stream(torch.cat(parts, dim=2))[None]

    def to_rows(self, x: Float[Tensor, "N H D"]) -> Float[Tensor, "B H L D"]:
        """Zeros where a row has padding."""
        flat = x if self.full else x.new_zeros(self.count * self.width, *x.shape[1:]).index_copy(0, self.seats, x)
        return flat.unflatten(0, (self.count, self.width)).transpose(1, 2)

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
        earlier = (own <= own[:, None]).expand(self.count, -1, -1)
        if window is not None:
            prompt = prompt & (lengths + own[:, None] - columns < window)
            earlier = earlier & (own[:, None] - own < window)
        return torch.cat([prompt, earlier], dim=2)[:, None]

    def mask(self, part: str, window: int | None) -> Tensor | None:
        """``prompt_sees`` or ``response_sees``, made once for all layers."""
        if (part, window) not in self._masks:
            self._masks[part, window] = (self.prompt_sees if part == "prompt" else self.response_sees)(window)
        return self._masks[part, window]


class Pieces:
    """Attention question by question: kernel calls for each, but nothing is padded or moved. For a CPU.

    Of each question its prompt attends causally; then all its responses together attend to the prompt and, each, to itself. One response
    alone is one causal piece with its prompt. Tokens behind the last question are there to make the stream even: they see nothing.
    """

    def __init__(self, positions: Int[Tensor, " N"], prompts: list[int], responses: list[list[int]]) -> None:
        self.positions, self.responses = positions, responses
        self.totals = [prompt + sum(each) for prompt, each in zip(prompts, responses, strict=True)]
        self.causal = self.totals if len(responses[0]) == 1 else prompts
        """Tokens that lead each question and attend to all before them."""
        self.typical = sum(total**2 for total in self.totals) // max(sum(self.totals), 1)
        """Tokens of the question in which a token is, on average."""
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor | None]] = {}
        self._pieces: dict[tuple[int | None, torch.dtype], list[Piece]] = {}

    def attend(
        self, query: Float[Tensor, "1 H N D"], key: Float[Tensor, "1 H N D"], value: Float[Tensor, "1 H N D"], scoring: Scoring
    ) -> Float[Tensor, "1 N H D"]:
        if scoring.plain and products_are_faster(query, self.typical):
            return pieces_by_products(query, key, value, self.pieces(scoring.window, query.dtype), scoring.scaling).transpose(1, 2)
        left = query.shape[2] - sum(self.totals)
        *of_questions, _ = zip(*(x.split([*self.totals, left], dim=2) for x in (query, key, value)), strict=True)
        parts: list[Tensor] = []
        for (q, k, v), lead, mask in zip(of_questions, self.causal, self.masks(scoring.window, query.dtype), strict=True):
            parts += self._question(q, k, v, lead, mask, scoring)
        if left:
            parts.append(value.new_zeros(1, query.shape[1], left, value.shape[3]))
        together = torch.cat([part.transpose(1, 2) for part in parts], dim=1)
        kept = [part.detach().transpose(1, 2) for part in parts]
        can_be_made_again(together, lambda: torch.cat(kept, dim=1))
        return together

    @staticmethod
    def _question(q: Tensor, k: Tensor, v: Tensor, lead: int, mask: Tensor | None, scoring: Scoring) -> list[Float[Tensor, "1 H Q D"]]:
        total = q.shape[2]
        whole = mask is not None and mask.shape[0] == total
        first, rest = q.split([lead, total - lead], dim=2)
        parts: list[Tensor] = []
        if lead:
            own = mask[:lead, :lead] if mask is not None and whole else None
            parts.append(attend(first, k[:, :, :lead], v[:, :, :lead], own, own is None, scoring))
        if lead < total and mask is not None:
            parts.append(attend(rest, k, v, mask[lead - total :], False, scoring))
        return parts

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """What the tokens of each question see, made once for all layers; None: all before them and themselves.

        Where a window hides some, [T, T] of bools; otherwise, of the tokens behind the leading ones, [T - lead, T] to add to their scores.
        """
        if (window, dtype) not in self._masks:
            begins = [0, *itertools.accumulate(self.totals)]
            self._masks[window, dtype] = [self._mask(number, begin, window, dtype) for number, begin in enumerate(begins[:-1])]
        return self._masks[window, dtype]

    def pieces(self, window: int | None, dtype: torch.dtype) -> list[Piece]:
        """The questions, for products; made once for all layers."""
        if (window, dtype) not in self._pieces:
            found, begin = [], 0
            for total, lead, mask in zip(self.totals, self.causal, self.masks(window, dtype), strict=True):
                own = mask if mask is None or mask.shape[0] == total else mask[:, lead:]
                found.append(Piece(begin, total, total, own, causal=True, dtype=dtype))
                begin += total
            self._pieces[window, dtype] = found
        return self._pieces[window, dtype]

    def _mask(self, number: int, begin: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        total, lead = self.totals[number], self.causal[number]
        reach = total if window is None else window
        if lead == total and reach >= total:
            return None
        positions = self.positions[begin : begin + total]
        behind = positions[:, None] - positions
        seen = (behind >= 0) & (behind < reach)
        sizes = [lead, *([] if lead == total else self.responses[number])]
        owner = torch.arange(len(sizes), device=positions.device).repeat_interleave(torch.tensor(sizes, device=positions.device))
        seen = seen & ((owner == 0) | (owner == owner[:, None]))
        if reach < total:
            return seen
        return torch.zeros(total - lead, total, dtype=dtype, device=positions.device).masked_fill_(~seen[lead:], float("-inf"))


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float | None = None,
    dropout: float = 0.0, softcap: float | None = None, sliding_window: int | None = None, packing: Packing | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in every layer. Without ``packing``: the library's own, with soft caps served too.

    query is [1, H, N, D] over the stream; key and value may have fewer heads.

    Raises:
        NotImplementedError: the model asks for something that is not served here, such as attention sinks or a mask of the layer's own.
    """
    if any(kwargs.get(name) is not None for name in ("s_aux", "position_bias")):
        raise NotImplementedError(f"{type(module).__name__} adds to its attention scores")
    if packing is not None and attention_mask is not None and attention_mask.numel() > 1:
        raise NotImplementedError(f"{type(module).__name__} makes a mask of its own")
    if packing is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value, scoring = _heads(key, groups), _heads(value, groups), Scoring(scaling, dropout, softcap, sliding_window)
    if packing is not None:
        return packing.layout.attend(query, key, value, scoring), None
    causal = attention_mask is None and query.shape[2] > 1
    return attend(query, key, value, attention_mask, causal, scoring).transpose(1, 2).contiguous(), None


def attend(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H S D"], v: Float[Tensor, "B H S D"], mask: Tensor | None, causal: bool,
    scoring: Scoring,
) -> Float[Tensor, "B H Q D"]:  # fmt: skip
    """softmax(cap(q k^T * scaling)) v, where cap(s) = softcap * tanh(s / softcap). ``mask``: True = seen, or added to the scores."""
    if scoring.plain and products_are_faster(q, q.shape[2]):
        return by_products(q, k, v, mask, causal, scoring.scaling)
    if scoring.softcap is None:
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=scoring.dropout, is_causal=causal, scale=scoring.scaling
        )
    if not causal:
        return _attend_step_by_step(q, k, v, mask, scoring)
    parts: list[Tensor] = []
    for rows in q.split(BLOCK, dim=2):  # what lies above the diagonal is not computed
        seen = min(sum(part.shape[2] for part in parts) + rows.shape[2], k.shape[2])
        own = torch.ones(rows.shape[2], seen, dtype=torch.bool, device=q.device).tril(seen - rows.shape[2])
        parts.append(_attend_step_by_step(rows, k[:, :, :seen], v[:, :, :seen], own, scoring))
    return torch.cat(parts, dim=2)


def products_are_faster(q: Float[Tensor, "B H Q D"], length: int) -> bool:
    """For pieces of this length, than PyTorch's fused attention on CPUs and above all its gradient in 16 bits: ``bench/attention.py``."""
    if q.device.type != "cpu":
        return False
    return torch.is_grad_enabled() and q.requires_grad if q.element_size() == 2 else length in BY_PRODUCTS


def _attend_step_by_step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring) -> Float[Tensor, "B H Q D"]:
    scaling, dropout, softcap, _ = scoring
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    # Summed in float32 inside the kernel, whatever the type of the scores.
    return nn.functional.dropout(torch.softmax(scores, dim=-1), dropout) @ v


def _together(prompt: Float[Tensor, "B H P D"], own: Float[Tensor, "B H R D"]) -> Float[Tensor, "B H P+R D"]:
    """For each of K responses: together they are K times as large as what they are made of."""
    parts = [prompt.detach(), own.detach()]
    together = torch.cat([prompt, own], dim=2)
    can_be_made_again(together, lambda: torch.cat(parts, dim=2))
    return together


def _heads(x: Float[Tensor, "B H L D"], groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
