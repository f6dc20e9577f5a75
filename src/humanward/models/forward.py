"""The one forward that everything uses: hidden states at response positions, the prompt computed once for its K responses.

A row of the packed batch is [prompt | response 1 | ... | response K]. A response sees its prompt and its own past, never its siblings; its
positions continue the prompt's. That is exact for every model whose attention is given by a mask; a model for which it is not (state
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
        rows = _run(
            trunk,
            torch.cat([prompts.repeat_interleave(K, 0), responses.flatten(0, 1)], dim=1),
            torch.cat([prompt_mask.repeat_interleave(K, 0), response_mask.flatten(0, 1)], dim=1),
        )
        return ResponseHidden(rows[::K, P - 1], rows[:, P:].unflatten(0, (B, K)))
    ids = torch.cat([prompts, responses.flatten(1, 2)], dim=1)
    mask = torch.cat([prompt_mask, response_mask.flatten(1, 2)], dim=1)
    prompt_positions = position_ids(prompt_mask)
    offsets = prompt_mask.sum(1)[:, None, None]
    positions = torch.cat([prompt_positions, (offsets + torch.arange(R, device=ids.device)).expand(B, K, R).flatten(1, 2)], dim=1)
    states = _run(trunk, ids, mask, positions, siblings_apart(mask, P, K, R, next(trunk.parameters()).dtype))
    return ResponseHidden(states[:, P - 1], states[:, P:].unflatten(1, (K, R)))


def siblings_apart(mask: Bool[Tensor, "B T"], P: int, K: int, R: int, dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """Additive attention mask of the packed row: causal, over real tokens, and no response sees another."""
    T = mask.shape[1]
    group = torch.zeros(T, dtype=torch.long, device=mask.device)  # 0: prompt, k: response k
    group[P:] = torch.arange(1, K + 1, device=mask.device).repeat_interleave(R)
    seen = (group == 0) | (group == group[:, None])
    allowed = torch.tril(seen.expand(T, T)) & mask[:, None, None, :]
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
