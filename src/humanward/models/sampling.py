"""Draw responses: each prompt read once for its K responses, one seed per response, log-probabilities and values as it goes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from humanward.maths.masks import position_ids
from humanward.models.forward import takes_positions
from humanward.models.loading import check_context
from humanward.models.policy import Policy, evaluating


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn. The task has the values."""

    response_length: int
    temperature: float = 1.0
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that hold this much probability together; 1: all."""
    stop_at_eos: bool = False
    """The first end-of-text token ends a response; otherwise every response has the full length (2019)."""
    suppress_special_tokens: bool = True
    stop_token: int | None = None
    """This token ends a response too, from index ``stop_after`` on: for responses of which nobody reads more."""
    stop_after: int = 0
    engine: Literal["humanward", "transformers"] = "humanward"
    """Who runs the model: the loop of this module, or the library's own ``generate``, which is slower and gives the same."""


@dataclass(frozen=True)
class Samples:
    """B prompts with K responses each."""

    responses: Int[Tensor, "B K R"]
    response_mask: Bool[Tensor, "B K R"]
    logprobs: Float[Tensor, "B K R"]
    """log pi at the sampling temperature over the whole vocabulary (top-k and top-p only limit the draw), nats; 0 on pads."""
    values: Float[Tensor, "B K R"] | None
    """Of the state before each token; None without a value head."""


@torch.no_grad()
def sample_responses(
    policy: Policy,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int],
    num_responses: int = 1,
    rows_at_once: int = 256,
    cache_bytes: int | None = None,
    check: Callable[[], None] | None = None,
) -> Samples:
    """Sample ``num_responses`` responses to each left-padded prompt.

    Args:
        policy: what is sampled from, in eval mode while it lasts.
        prompts: left-padded.
        prompt_mask: True = real token.
        settings: of the task.
        num_responses: K.
        seeds: one per response, B * num_responses, those of a prompt together. A response depends on its seed and prompt alone, not on the
            batch around it (up to rounding of the model's own arithmetic).
        rows_at_once: most responses decoded together; prompts of similar length share a chunk, so that little is padding.
        cache_bytes: most bytes of their keys and values, though the responses to one prompt stay together; None: 4 GiB on a CPU, a quarter
            of a GPU's memory. Never changes a result.
        check: called between tokens; may raise to stop.

    Raises:
        ValueError: wrong number of seeds.
        UserError: the longest prompt and its response are more than the model's context.
    """
    B, K, R = len(prompts), num_responses, settings.response_length
    if len(seeds) != B * K:
        raise ValueError(f"{B} prompts x {K} responses need {B * K} seeds, not {len(seeds)}")
    check_context(policy.model, int(prompt_mask.sum(1).max()), R, what="sampling")
    device = prompts.device
    uniform = torch.stack([torch.rand(R, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(device)
    responses = torch.full((B * K, R), policy.pad_id, dtype=torch.long, device=device)
    mask = torch.zeros(B * K, R, dtype=torch.bool, device=device)
    logprobs, values = torch.zeros(B * K, R, device=device), torch.zeros(B * K, R, device=device)
    row_bytes = (int(prompt_mask.sum(1).max()) + R) * token_bytes(policy)
    room = (_cache_room(device) if cache_bytes is None else cache_bytes) // max(1, row_bytes)
    decode = _generate if settings.engine == "transformers" or not _can_decode(type(policy.trunk)) else _decode
    # A cache that grows by a token at a time would be compiled anew for each.
    with evaluating(policy), torch.compiler.set_stance("force_eager"), policy.at_work():
        for chunk in _chunks(prompt_mask, max(1, min(rows_at_once, room) // K)):
            width = int(prompt_mask[chunk].sum(1).max())
            rows = (chunk[:, None] * K + torch.arange(K, device=device)).flatten()
            one_by_one = decode(policy, prompts[chunk][:, -width:], prompt_mask[chunk][:, -width:], K, settings, uniform[rows])
            for t, (live, tokens, token_logprobs, token_values) in enumerate(one_by_one):
                at = rows[live]
                responses[at, t], mask[at, t], logprobs[at, t] = tokens, True, token_logprobs
                if token_values is not None:
                    values[at, t] = token_values
                if check is not None:
                    check()
    shape = (B, K, R)
    with_values = policy.value_head is not None
    return Samples(responses.view(shape), mask.view(shape), logprobs.view(shape), values.view(shape) if with_values else None)


def token_bytes(policy: Policy) -> int:
    """Bytes that one token of one row takes in a cache of keys and values."""
    config: Any = policy.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    kept_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * kept_heads * head_size * next(policy.model.parameters()).element_size()


def _cache_room(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else 4 << 30


def _chunks(prompt_mask: Tensor, prompts_at_once: int) -> Iterator[Tensor]:
    order = torch.argsort(prompt_mask.sum(1), descending=True, stable=True)
    return iter(order.split(prompts_at_once))


Drawn = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Rows that are still being written, and of each: its token, the token's log-probability, the value before it."""


def ends(tokens: Int[Tensor, " N"], t: int, settings: SamplingSettings, eos_id: int) -> Bool[Tensor, " N"]:
    """Which responses end with the token at index ``t``."""
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    if settings.stop_at_eos:
        ended |= tokens == eos_id
    if settings.stop_token is not None and t >= settings.stop_after:
        ended |= tokens == settings.stop_token
    return ended


def _decode(
    policy: Policy, prompts: Tensor, prompt_mask: Tensor, K: int, settings: SamplingSettings, uniform: Float[Tensor, "N R"]
) -> Iterator[Drawn]:
    """One chunk: prefill the prompts, repeat their cache for the K responses, then a token at a time; rows that have ended leave."""
    steps = uniform.shape[1]
    suppressed = policy.suppressed_tokens(keep_eos=settings.stop_at_eos) if settings.suppress_special_tokens else None
    cache = make_cache(policy, len(prompts), prompts.shape[1], steps)
    hidden = _prefilled(policy, prompts, prompt_mask, cache)
    if K > 1:
        cache.reorder_cache(torch.arange(len(prompts), device=prompts.device).repeat_interleave(K))  # pyright: ignore[reportArgumentType]
    hidden, mask = hidden.repeat_interleave(K, 0), prompt_mask.repeat_interleave(K, 0)
    positions = prompt_mask.sum(1).repeat_interleave(K, 0)[:, None]
    rows = torch.arange(len(uniform), device=uniform.device)  # those in the cache, and
    live = torch.ones_like(rows, dtype=torch.bool)  # which of them are still being written
    for t in range(steps):
        value = None if policy.value_head is None else policy.values_of(hidden)
        tokens, logprobs = draw(policy.logits_of(hidden), uniform[rows, t], settings, suppressed)
        yield rows[live], tokens[live], logprobs[live], None if value is None else value[live]
        live &= ~ends(tokens, t, settings, policy.eos_id)
        left = int(live.sum())
        if left == 0 or t + 1 == steps:
            return
        if left <= 0.75 * len(rows):  # a smaller cache pays for the copy
            staying = live.nonzero().squeeze(1)
            cache.reorder_cache(staying)  # pyright: ignore[reportArgumentType]
            rows, live, tokens, mask, positions = (x[staying] for x in (rows, live, tokens, mask, positions))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        hidden = _cached(policy, tokens[:, None], mask, positions + t, cache)


def _prefilled(policy: Policy, prompts: Tensor, mask: Tensor, cache: Cache) -> Float[Tensor, "B D"]:
    """The last state of each prompt, the longest first: some at a time where the cache takes them so, without longer ones' padding."""
    found: list[Tensor] = []
    parts: Iterable[tuple[slice, int]] = [(slice(None), prompts.shape[1])]
    if cache.layers and all(isinstance(layer, _RoomyLayer) for layer in cache.layers):
        parts = _parts(mask.sum(1).tolist(), _prefill_tokens(prompts.device))
    for rows, width in parts:
        ids, own = prompts[rows, -width:], mask[rows, -width:]
        found.append(_cached(policy, ids, own, position_ids(own), cache).clone())  # careful: a view would keep every state of its part
    return torch.cat(found)


def _prefill_tokens(device: torch.device) -> int:
    """In one forward: more are hardly faster, and a model's temporaries grow with them."""
    return 16384 if device.type == "cuda" else 1024


def _parts(lengths: Sequence[int], tokens: int) -> Iterator[tuple[slice, int]]:
    """(rows, longest) of falling lengths, of at most so many tokens with their padding, or one row."""
    begin = 0
    while begin < len(lengths):
        width = max(1, lengths[begin])
        end = begin + max(1, tokens // width)
        yield slice(begin, end), width
        begin = end


def _cached(policy: Policy, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Float[Tensor, "N D"]:
    """The last state of each row, behind what is in the cache already."""
    name = cache_argument(type(policy.trunk))
    assert name is not None
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), name: cache, "use_cache": True}
    if name == "cache_params" and mask.shape != ids.shape:
        arguments["attention_mask"] = None  # a state holds no columns that could be padding
    if takes_positions(type(policy.trunk)):
        arguments["position_ids"] = positions
    return policy.trunk(**arguments).last_hidden_state[:, -1]


@lru_cache
def cache_argument(kind: type) -> str | None:
    """What a trunk of this class calls its cache; None where it takes none that we can make."""
    names = inspect.signature(kind.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in names), None)


@lru_cache
def _can_decode(kind: type) -> bool:
    if cache_argument(kind) is not None:
        return True
    logging.getLogger("humanward").warning(
        "%s has a cache of its own: it is sampled by the library's generate, in more time", kind.__name__
    )
    return False


def _generate(
    policy: Policy, prompts: Tensor, prompt_mask: Tensor, K: int, settings: SamplingSettings, uniform: Float[Tensor, "N R"]
) -> Iterator[Drawn]:
    """The same by the library's ``generate``: at each token, all but the one that our draw chooses are forbidden."""
    suppressed = policy.suppressed_tokens(keep_eos=settings.stop_at_eos) if settings.suppress_special_tokens else None
    drawn: list[tuple[Tensor, Tensor]] = []
    ids, mask = prompts.repeat_interleave(K, 0), prompt_mask.repeat_interleave(K, 0)

    def choose(_: Tensor, logits: Tensor) -> Tensor:
        drawn.append(draw(logits.float(), uniform[:, len(drawn)], settings, suppressed))
        return torch.full_like(logits, float("-inf")).scatter(1, drawn[-1][0][:, None], 0.0)

    steps = uniform.shape[1]
    policy.model.generate(  # pyright: ignore[reportCallIssue]
        ids, attention_mask=mask.long(), logits_processor=[choose], do_sample=False, num_beams=1, use_cache=True, max_new_tokens=steps,
        min_new_tokens=steps, eos_token_id=None, pad_token_id=policy.pad_id,
    )  # fmt: skip
    responses = torch.stack([tokens for tokens, _ in drawn], dim=1)
    live = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    values = None
    if policy.value_head is not None:
        values = policy(ids, mask, responses, torch.ones_like(responses, dtype=torch.bool), temperature=settings.temperature).values
    for t, (tokens, logprobs) in enumerate(drawn):
        rows = live.nonzero().squeeze(1)
        yield rows, tokens[rows], logprobs[rows], None if values is None else values[rows, t]
        live &= ~ends(tokens, t, settings, policy.eos_id)


def draw(
    logits: Float[Tensor, "N V"], uniform: Float[Tensor, " N"], settings: SamplingSettings, suppressed: Bool[Tensor, " V"] | None
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """One token per row by the inverse of the cumulative distribution: one uniform number decides one token.

    Returns:
        Tokens and their log-probabilities at the temperature, before top-k and top-p.
    """
    logits = logits / settings.temperature
    if suppressed is not None:
        logits = logits.masked_fill(suppressed, float("-inf"))
    all_logprobs = torch.log_softmax(logits, dim=-1)
    probabilities = restricted(all_logprobs.exp(), settings.top_k, settings.top_p)
    cumulative = probabilities.cumsum(-1)
    # careful: rounding may leave the total just below 1; stay strictly inside it, or a token of probability 0 could be drawn.
    target = uniform.clamp(max=1 - 1e-6)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, all_logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def restricted(probabilities: Float[Tensor, "N V"], top_k: int, top_p: float) -> Float[Tensor, "N V"]:
    """Zero where top-k or top-p forbids a token; not renormalised. top-p keeps the smallest set of likeliest tokens that reaches it."""
    if top_k > 0:
        least = probabilities.topk(min(top_k, probabilities.shape[-1]), dim=-1).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        keep = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, order, before < top_p * ordered.sum(-1, keepdim=True))
        probabilities = probabilities.where(keep, 0)
    return probabilities


class _RoomyLayer(DynamicLayer):
    """A cache layer that is allocated once for prompts and responses and filled in place, instead of growing by concatenation.

    The prompts may come some rows at a time, each part as wide as its own longest.

    Args:
        rows: prompts.
        width: of the longest.
        steps: tokens that may follow.
    """

    def __init__(self, rows: int, width: int, steps: int) -> None:
        super().__init__()
        self.rows, self.width, self.capacity = rows, width, width + steps
        self.begun = self.filled = 0
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
            shapes = ((self.rows, x.shape[1], self.capacity, x.shape[3]) for x in (key_states, value_states))
            key_buffer, value_buffer = (key_states.new_empty(shape) for shape in shapes)
            self.buffers = key_buffer, value_buffer
        if self.begun < self.rows:
            self._begin(key_states, value_states)
            return key_states, value_states
        end = self.filled + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.filled : end] = new
        return self._fill(end)

    def _begin(self, *states: Tensor) -> None:
        """Take the next prompts. Until they are all here the cache looks empty."""
        assert self.buffers is not None
        for buffer, new in zip(self.buffers, states, strict=True):
            own = buffer[self.begun : self.begun + len(new), :, : self.width]
            padding = self.width - new.shape[2]
            own[:, :, :padding] = 0  # careful: masked, but 0 times NaN would be NaN
            own[:, :, padding:] = new
        self.begun += len(states[0])
        if self.begun == self.rows:
            self._fill(self.width)

    def _fill(self, end: int) -> tuple[Tensor, Tensor]:
        assert self.buffers is not None
        self.filled = end
        self.keys, self.values = keys, values = self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]
        return keys, values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        assert self.buffers is not None
        keys, values = (buffer.index_select(0, beam_idx) for buffer in self.buffers)
        self.buffers = keys, values
        self._fill(self.filled)


def make_cache(policy: Policy, rows: int, width: int, steps: int) -> Cache:
    """A key-value cache with room for prompts and responses; the library's own growing one where layers are not plain full attention."""
    cache = DynamicCache(config=policy.model.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers[:] = [_RoomyLayer(rows, width, steps) for _ in cache.layers]
    return cache
