"""Draw responses: each prompt read once for its K responses, one seed per response, log-probabilities and values as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from humanward.maths.masks import position_ids, response_mask_until_eos
from humanward.models.forward import takes_positions
from humanward.models.policy import Policy


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
        rows_at_once: responses decoded together; prompts of similar length share a chunk, so that little is padding.
        check: called between tokens; may raise to stop.

    Raises:
        ValueError: wrong number of seeds.
    """
    B, K, R = len(prompts), num_responses, settings.response_length
    if len(seeds) != B * K:
        raise ValueError(f"{B} prompts x {K} responses need {B * K} seeds, not {len(seeds)}")
    device = prompts.device
    uniform = torch.stack([torch.rand(R, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).view(B, K, R).to(device)
    responses = torch.full((B, K, R), policy.pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros(B, K, R, device=device)
    values = torch.zeros(B, K, R, device=device) if policy.value_head is not None else None
    training = policy.training
    policy.eval()
    for rows in _chunks(prompt_mask, max(1, rows_at_once // K)):
        width = int(prompt_mask[rows].sum(1).max())
        chunk = _Decoder(policy, prompts[rows][:, -width:], prompt_mask[rows][:, -width:], K, settings)
        for t, (tokens, logprob, value) in enumerate(chunk.decode(uniform[rows].flatten(0, 1))):
            responses[rows, :, t] = tokens.view(-1, K)
            logprobs[rows, :, t] = logprob.view(-1, K)
            if values is not None and value is not None:
                values[rows, :, t] = value.view(-1, K)
            if check is not None:
                check()
    policy.train(training)
    mask = torch.ones_like(responses, dtype=torch.bool)
    if settings.stop_at_eos:
        mask = response_mask_until_eos(responses.flatten(0, 1), policy.eos_id).view(B, K, R)
    responses, logprobs = responses.masked_fill(~mask, policy.pad_id), logprobs.masked_fill(~mask, 0)
    return Samples(responses, mask, logprobs, None if values is None else values.masked_fill(~mask, 0))


def _chunks(prompt_mask: Tensor, prompts_at_once: int) -> Iterator[Tensor]:
    order = torch.argsort(prompt_mask.sum(1), descending=True, stable=True)
    return iter(order.split(prompts_at_once))


class _Decoder:
    """One chunk: prefill the prompts, repeat their cache for the K responses, then a token at a time."""

    def __init__(self, policy: Policy, prompts: Tensor, prompt_mask: Tensor, K: int, settings: SamplingSettings) -> None:
        self.policy, self.settings = policy, settings
        self.suppressed = policy.suppressed_tokens(keep_eos=settings.stop_at_eos) if settings.suppress_special_tokens else None
        self.cache = make_cache(policy, prompts.shape[1] + settings.response_length)
        hidden = self._run(prompts, prompt_mask, position_ids(prompt_mask))[:, -1]
        if K > 1:
            self.cache.batch_repeat_interleave(K)
        self.hidden = hidden.repeat_interleave(K, 0)
        self.mask = prompt_mask.repeat_interleave(K, 0)
        self.positions = prompt_mask.sum(1).repeat_interleave(K, 0)[:, None]

    def decode(self, uniform: Float[Tensor, "N R"]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        steps = uniform.shape[1]
        ended = torch.zeros(len(uniform), dtype=torch.bool, device=uniform.device)
        for t in range(steps):
            value = None if self.policy.value_head is None else self.policy.values_of(self.hidden)
            tokens, logprobs = draw(self.policy.logits_of(self.hidden), uniform[:, t], self.settings, self.suppressed)
            yield tokens, logprobs, value
            if self.settings.stop_at_eos:
                ended |= tokens == self.policy.eos_id
                if bool(ended.all()):
                    return
            if t + 1 < steps:
                self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
                self.hidden = self._run(tokens[:, None], self.mask, self.positions + t)[:, -1]

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "past_key_values": self.cache, "use_cache": True}
        if takes_positions(type(self.policy.trunk)):
            arguments["position_ids"] = positions
        return self.policy.trunk(**arguments).last_hidden_state


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
    """A cache layer that is allocated once for the whole response and filled in place, instead of growing by concatenation."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
            shapes = ((*x.shape[:2], self.capacity, x.shape[3]) for x in (key_states, value_states))
            key_buffer, value_buffer = (key_states.new_empty(shape) for shape in shapes)
            self.buffers = key_buffer, value_buffer
        end = self.filled + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.filled : end] = new
        self.filled = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        assert self.buffers is not None
        keys, values = (buffer.repeat_interleave(repeats, 0) for buffer in self.buffers)
        self.buffers = keys, values
        self.keys, self.values = (buffer[:, :, : self.filled] for buffer in self.buffers)


def make_cache(policy: Policy, capacity: int) -> Cache:
    """A key-value cache with room for ``capacity`` tokens; the library's own growing one where layers are not plain full attention."""
    cache = DynamicCache(config=policy.model.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers[:] = [_RoomyLayer(capacity) for _ in cache.layers]
    return cache
