"""Less kept for the backward pass: what a cheap operation made of something that is kept anyway is made again when it is asked for.

Of a GPT-2 layer autograd keeps 17 widths of the model for each token. Four of them are what GELU made of another four, two are what the
normalisations made of the stream, one is what attention gave to each question, put together: 10 are enough.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import activations


class _Recipe(NamedTuple):
    """How a tensor can be made again, while it is the one that was made."""

    made: weakref.ref[Tensor]
    version: int
    make: Callable[[], Tensor]


class _Kept(NamedTuple):
    """What is kept instead of a tensor."""

    make: Callable[[], Tensor]
    shape: torch.Size


_recipes: ContextVar[dict[int, _Recipe] | None] = ContextVar("recipes", default=None)
"""Of the forward that runs: by the address of what was made."""

_ACTIVATIONS = (
    nn.GELU, nn.SiLU, nn.Mish, activations.GELUActivation, activations.GELUTanh, activations.NewGELUActivation,
    activations.FastGELUActivation, activations.AccurateGELUActivation, activations.QuickGELUActivation, activations.SiLUActivation,
    activations.MishActivation,
)  # fmt: skip
"""Those that need their input for their own gradient, and not their result as ReLU and tanh do."""

_WIDE = 4096
"""Activations of fewer bytes for a token are kept. To compute them again takes up to 4 % of a training step at a width of 256 and 1 % at
768; half of that where the slope comes with the value, as in ``fusing``."""


@contextmanager
def recomputing(trunk: nn.Module) -> Iterator[None]:
    """Inside, a forward of ``trunk`` keeps no results of its activations and normalisations, but what they were computed from.

    Gradients are the same to the last bit: the same operation makes the same numbers. A compiled model is left as it is, and layers that
    are made again as a whole (gradient checkpointing) decide themselves what they keep.
    """
    if not torch.is_grad_enabled() or any(part._compiled_call_impl is not None for part in trunk.modules()):
        yield
        return
    recipes: dict[int, _Recipe] = {}
    before = _recipes.set(recipes)
    hooks = [part.register_forward_hook(_remember) for part in trunk.modules() if _is_cheap(part)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _pack(recipes, tensor), _unpack):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        _recipes.reset(before)


def can_be_made_again(made: Tensor, make: Callable[[], Tensor]) -> None:
    """Say within ``recomputing`` that ``make`` gives ``made`` once more, of tensors that are kept anyway, without gradient.

    What was said first counts.
    """
    recipes = _recipes.get()
    if recipes is None or not made.requires_grad or not made.is_contiguous():
        return
    address = made.data_ptr()
    if address in recipes and recipes[address].made() is made:
        return
    # careful: forgotten with the tensor, whose address another may have afterwards.
    recipes[address] = _Recipe(weakref.ref(made, lambda _: recipes.pop(address, None)), made._version, make)


def made_again_from(x: Tensor) -> bool:
    """Whether the activation of ``x`` is made again for the backward pass, so that ``x`` is kept anyway."""
    return _recipes.get() is not None and x.shape[-1] * x.element_size() >= _WIDE


def _is_cheap(module: nn.Module) -> bool:
    return isinstance(module, (nn.LayerNorm, *_ACTIVATIONS)) or type(module).__name__.endswith("RMSNorm")


def _remember(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
    if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(made, Tensor):
        return
    if made_again_from(given[0]) or not isinstance(module, _ACTIVATIONS):
        x = given[0].detach()
        can_be_made_again(made, lambda: module.forward(x))


def _pack(recipes: dict[int, _Recipe], tensor: Tensor) -> Tensor | _Kept:
    recipe = recipes.get(tensor.data_ptr())
    made = None if recipe is None else recipe.made()
    if recipe is None or made is None or made._version != recipe.version:
        return tensor
    if made.numel() != tensor.numel() or made.dtype != tensor.dtype or not tensor.is_contiguous():
        return tensor
    return _Kept(recipe.make, tensor.shape)


def _unpack(kept: Tensor | _Kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        return kept.make().view(kept.shape)
