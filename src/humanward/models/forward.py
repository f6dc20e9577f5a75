"""The one forward that everything uses: hidden states at response positions, the prompt computed once for its K responses.

The batch runs as one stream of tokens without padding, prompt 1, its responses, prompt 2, ...; `attention` keeps apart what does not belong
together. Positions of a response continue the prompt's. A model for which that is not exact (state spaces, attention of its own) is found
by `packs_exactly` and served one padded row per response, with the same result.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from humanward.maths.masks import position_ids
from humanward.models import attention
from humanward.models.attention import Packing, Pieces
from humanward.models.recomputing import recomputing

EVEN = 32
"""In 16 bits a CPU is given a multiple of so many tokens, up to 31 of which nobody reads, lest every batch have products of new shapes:
``blockwise.EVEN``."""


@dataclass(frozen=True)
class ResponseStates:
    """Last hidden states of one forward, and which of them belong to the responses."""

    states: Float[Tensor, "N D"]
    prompt_last: Int[Tensor, " B"]
    """Row of ``states`` of the last prompt token, from which the first response token is predicted; -1 for an empty prompt."""
    responses: Int[Tensor, "B K R"]
    """Rows of the response tokens; -1 on pads."""

    def before_each_token(self) -> Int[Tensor, "B K R+1"]:
        """Rows from which the tokens are predicted: the prompt's last one, then those of the response."""
        first = self.prompt_last[:, None, None].expand(-1, self.responses.shape[1], 1)
        return torch.cat([first, self.responses], dim=2)

    def take(self, rows: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """States of these rows; 0 for row -1."""
        taken = self.states.index_select(0, rows.flatten().clamp(min=0)).view(*rows.shape, -1)
        return taken if bool((rows >= 0).all()) else taken * (rows >= 0)[..., None]


def response_states(
    trunk: nn.Module,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    responses: Int[Tensor, "B K R"],
    response_mask: Bool[Tensor, "B K R"],
    *,
    packed: bool = True,
) -> ResponseStates:
    """Run ``trunk`` (a model without its LM head) over padded prompts and responses.

    Args:
        trunk: ids -> last hidden states, for example ``trunk_of(model)``.
        prompts: padded on either side.
        prompt_mask: True = real token.
        responses: padded on either side.
        response_mask: True = real token.
        packed: one stream in which each prompt stands once, if ``packs_exactly(trunk)``; otherwise a padded row for each response.
    """
    P, K = prompts.shape[1], responses.shape[1]
    if not packed:
        prompts, prompt_mask = prompts.repeat_interleave(K, 0), prompt_mask.repeat_interleave(K, 0)
        ids = torch.cat([prompts, responses.flatten(0, 1)], dim=1)
        mask = torch.cat([prompt_mask, response_mask.flatten(0, 1)], dim=1)
        states, places = _padded(trunk, ids, mask)
        prompt_rows, response_rows = places[::K, :P], places[:, P:].unflatten(0, (-1, K))
    else:
        packing = Packing(prompt_mask, response_mask)
        ids = torch.cat([prompts, responses.flatten(1)], dim=1)
        states = _stream(trunk, ids.flatten()[packing.real], packing)
        places = torch.full_like(ids.flatten(), -1).index_copy(0, packing.real, torch.arange(len(packing.real), device=ids.device))
        prompt_rows, response_rows = places.view(ids.shape)[:, :P], places.view(ids.shape)[:, P:].unflatten(1, (K, -1))
    # Rows grow from left to right: the largest is the last token's.
    last = prompt_rows.amax(1) if P else prompt_rows.new_full((len(prompt_rows),), -1)
    return ResponseStates(states, last, response_rows)


def predicting_states(
    trunk: nn.Module,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    responses: Int[Tensor, "B *K R"],
    response_mask: Bool[Tensor, "B *K R"],
    *,
    packed: bool = True,
) -> Float[Tensor, "N D"]:
    """The states from which the real tokens of one response to each prompt, [B, R], or of K, [B, K, R], are predicted, in their order."""
    ids, mask = (x if x.dim() == 3 else x[:, None] for x in (responses, response_mask))
    # The last token of a response predicts nothing: it need not be run.
    predicts = (mask.flip(2).cumsum(2).flip(2) > 1) & mask
    states = response_states(trunk, prompts, prompt_mask, ids[..., :-1], predicts[..., :-1], packed=packed)
    return states.take(states.before_each_token()[mask])


def _stream(trunk: nn.Module, ids: Int[Tensor, " N"], packing: Packing) -> Float[Tensor, "N D"]:
    if len(ids) == 0:
        raise ValueError("a batch without a single token")
    # A mask of four dimensions is passed on as it is, so that the library makes none of its own.
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    count, positions = len(ids), packing.positions
    if isinstance(packing.layout, Pieces) and next(trunk.parameters()).element_size() == 2:
        left = -count % EVEN
        ids, positions = torch.cat([ids, ids[-1:].expand(left)]), torch.cat([positions, positions.new_zeros(left)])
    with recomputing(trunk):
        return trunk(
            input_ids=ids[None], position_ids=positions[None], attention_mask=nothing, use_cache=False, packing=packing
        ).last_hidden_state[0, :count]


def _padded(trunk: nn.Module, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> tuple[Float[Tensor, "N D"], Int[Tensor, "B T"]]:
    """States of rows closed up to the longest one's real tokens, and the row of each place among them."""
    B, T = ids.shape
    length = max(1, int(mask.sum(1).max()))
    # Real tokens first, in their order; rows that are shorter than the longest end with some of their own padding.
    columns = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :length]
    real = mask.gather(1, columns)
    arguments: dict[str, Any] = {"input_ids": ids.gather(1, columns), "attention_mask": real.long(), "use_cache": False}
    if takes_positions(type(trunk)):
        arguments["position_ids"] = position_ids(real)
    with recomputing(trunk):
        states = trunk(**arguments).last_hidden_state.flatten(0, 1)
    rows = torch.arange(B * length, device=ids.device).view(B, length).where(real, -1)
    return states, rows.new_full((B, T), -1).scatter(1, columns, rows)


@lru_cache
def takes_positions(kind: type) -> bool:
    """Whether a trunk of this class can be told the position of each token."""
    return "position_ids" in inspect.signature(kind.forward).parameters


@torch.no_grad()
def packs_exactly(trunk: nn.Module, *, length: int = 12) -> bool:
    """Whether this model's stream equals one forward per response, tried on a few tokens. Its attention is ours from here on if it does."""
    parameter = next(trunk.parameters())
    vocabulary = int(trunk.config.vocab_size)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocabulary, (2, length), generator=generator).to(parameter.device)
    responses = torch.randint(0, vocabulary, (2, 3, length), generator=generator).to(parameter.device)
    prompt_mask, response_mask = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
    prompt_mask[1, :3] = response_mask[0, 1, 5:] = False
    before: Any = trunk.config._attn_implementation  # pyright: ignore[reportAttributeAccessIssue]
    training = trunk.training
    trunk.eval()
    exact = False
    try:
        # careful: wider than the longest padding, or a pad sees nothing at all, which is NaN in some attentions.
        with narrow_windows(trunk, length - 4):
            plain = response_states(trunk, prompts, prompt_mask, responses, response_mask, packed=False)
            trunk.set_attn_implementation(attention.NAME)  # pyright: ignore[reportCallIssue]
            packed = response_states(trunk, prompts, prompt_mask, responses, response_mask, packed=True)
        one, other = (x.take(x.before_each_token()).float() for x in (plain, packed))
        tolerance = 1e-4 if torch.finfo(parameter.dtype).bits >= 32 else 5e-2
        exact = bool((one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1.0))
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        pass
    finally:
        if not exact and trunk.config._attn_implementation != before:  # pyright: ignore[reportAttributeAccessIssue]
            trunk.set_attn_implementation(before)  # pyright: ignore[reportCallIssue]
        trunk.train(training)
    if not exact:
        _say_once(type(trunk).__name__)
    return exact


_LIMITS = ("sliding_window", "keep_window_size", "attention_chunk_size", "window_size", "index_topk")
"""What models call the most tokens that a token of theirs sees."""


@contextmanager
def narrow_windows(trunk: nn.Module, width: int) -> Iterator[None]:
    """Inside, whatever limits how far a layer sees is this many tokens at most, so that a few tokens reach out of it.

    careful: some models (Qwen2-MoE, PhiMoE, Llama 4) limit it in the library's mask alone and tell our attention of nothing.
    """
    owners: list[Any] = [trunk.config, *trunk.modules()]
    limits = [(owner, name, getattr(owner, name, None)) for owner in owners for name in _LIMITS]
    wide = [(owner, name, limit) for owner, name, limit in limits if isinstance(limit, int) and limit > width]
    try:
        for owner, name, _ in wide:
            setattr(owner, name, width)
        yield
    finally:
        for owner, name, limit in wide:
            setattr(owner, name, limit)


@lru_cache
def _say_once(name: str) -> None:
    logging.getLogger("humanward").warning(
        "%s cannot be run as one stream: each response has a row of its own, padded, with the same result in more time", name
    )
