"""The one forward that everything uses: hidden states at response positions, the prompt computed once for its K responses.

A row of the packed batch is [prompt | response 1 | ... | response K]. A response sees its prompt and its own past, never its siblings; its
positions continue the prompt's. Padding is left out: each row is closed up to its real tokens, so that a batch costs as much as its longest
row. That is exact for every model whose attention is given by a mask; a model for which it is not (state
spaces) is found by `packs_exactly` and served one response per row, as is a prompt and response longer than a model's sliding window.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from humanward.maths.masks import position_ids


@dataclass(frozen=True)
class ResponseHidden:
    """Last hidden states of one packed forward."""

    prompt_last: Float[Tensor, "B D"]
    """At the last prompt token: where the first response token is predicted."""
    responses: Float[Tensor, "B K R D"]
    """At the response tokens."""

    def before_each_token(self) -> Float[Tensor, "B K R+1 D"]:
        """States from which the tokens are predicted: the prompt's last one, then those of the responses."""
        first = self.prompt_last[:, None, None].expand(-1, self.responses.shape[1], 1, -1)
        return torch.cat([first, self.responses], dim=2)


def response_hidden(
    trunk: nn.Module,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    responses: Int[Tensor, "B K R"],
    response_mask: Bool[Tensor, "B K R"],
    *,
    packed: bool = True,
) -> ResponseHidden:
    """Run ``trunk`` (a model without its LM head) over left-padded prompts and right-padded responses.

    Args:
        trunk: ids -> last hidden states, for example ``trunk_of(model)``.
        prompts: left-padded.
        prompt_mask: True = real token.
        responses: right-padded.
        response_mask: True = real token.
        packed: run [prompt | response 1 | ... | response K] as one row; otherwise repeat the prompt for each response. Same result.
    """
    B, P = prompts.shape
    K, R = responses.shape[1:]
    if K == 1 or not packed or sliding_window(trunk) < P + R:
        rows = _closed_up(
            trunk,
            torch.cat([prompts.repeat_interleave(K, 0), responses.flatten(0, 1)], dim=1),
            torch.cat([prompt_mask.repeat_interleave(K, 0), response_mask.flatten(0, 1)], dim=1),
        )
        return ResponseHidden(rows[::K, P - 1], rows[:, P:].unflatten(0, (B, K)))
    ids = torch.cat([prompts, responses.flatten(1, 2)], dim=1)
    mask = torch.cat([prompt_mask, response_mask.flatten(1, 2)], dim=1)
    behind = prompt_mask.sum(1).repeat_interleave(K)[:, None] + position_ids(response_mask.flatten(0, 1))
    positions = torch.cat([position_ids(prompt_mask), behind.view(B, K * R)], dim=1)
    group = torch.arange(1, K + 1, device=ids.device).repeat_interleave(R)
    group = torch.cat([group.new_zeros(P), group])  # 0: prompt, k: response k
    states = _closed_up(trunk, ids, mask, positions, group)
    return ResponseHidden(states[:, P - 1], states[:, P:].unflatten(1, (K, R)))


def _closed_up(
    trunk: nn.Module, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], positions: Tensor | None = None, group: Tensor | None = None
) -> Float[Tensor, "B T D"]:
    """States at all places, computed on rows from which the padding is taken out; 0 where there is padding."""
    B, T = ids.shape
    length = max(1, int(mask.sum(1).max()))
    # Real tokens first, in their order; rows that are shorter than the longest end with some of their own padding.
    places = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :length]
    ids, real = ids.gather(1, places), mask.gather(1, places)
    if positions is None or group is None:
        states = _run(trunk, ids, real)
    else:
        attention = siblings_apart(real, group[places], next(trunk.parameters()).dtype)
        states = _run(trunk, ids, real, positions.gather(1, places), attention)
    states = states * real[..., None]
    return states.new_zeros(B, T, states.shape[-1]).scatter(1, places[..., None].expand_as(states), states)


def siblings_apart(mask: Bool[Tensor, "B T"], group: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """Additive attention mask of packed rows: causal, over real tokens, and no response sees another. Group 0 is the prompt."""
    seen = (group[:, None, :] == 0) | (group[:, None, :] == group[:, :, None])
    allowed = (torch.tril(seen) & mask[:, None, :])[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def _run(trunk: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long() if attention is None else attention, "use_cache": False}
    if takes_positions(type(trunk)):
        arguments["position_ids"] = position_ids(mask) if positions is None else positions
    elif positions is not None:
        raise ValueError(f"{type(trunk).__name__} takes no position ids and cannot be packed")
    return trunk(**arguments).last_hidden_state


@lru_cache
def takes_positions(kind: type) -> bool:
    """Whether a trunk of this class can be told the position of each token."""
    return "position_ids" in inspect.signature(kind.forward).parameters


def sliding_window(trunk: nn.Module) -> int:
    """Tokens that the shortest attention of the model reaches back; within it, attention is full and may be given by a mask."""
    config: Any = trunk.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window or 1 << 62


@torch.no_grad()
def packs_exactly(trunk: nn.Module, *, length: int = 12, tolerance: float = 1e-4) -> bool:
    """Whether the packed forward of this model equals one forward per response, tried on a few tokens."""
    device = next(trunk.parameters()).device
    vocabulary = int(trunk.config.vocab_size)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocabulary, (2, length), generator=generator).to(device)
    responses = torch.randint(0, vocabulary, (2, 3, length), generator=generator).to(device)
    prompt_mask, response_mask = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
    prompt_mask[1, :3] = False
    training = trunk.training
    trunk.eval()
    try:
        one, other = (response_hidden(trunk, prompts, prompt_mask, responses, response_mask, packed=packed) for packed in (True, False))
    except (ValueError, RuntimeError, TypeError, IndexError):
        return False
    finally:
        trunk.train(training)
    scale = other.responses.abs().max().clamp(min=1.0)
    return bool((one.responses - other.responses).abs().max() <= tolerance * scale)
