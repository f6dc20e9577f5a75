"""Settings that trade memory against speed and change no result: layers computed again in the backward pass, and compiled layers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from humanward.errors import UserError
from humanward.models import adapters, attention
from humanward.models.policy import Policy
from humanward.models.reward_model import RewardModel
from humanward.models.value_network import ValueNetwork

Model = Policy | RewardModel | ValueNetwork
M = TypeVar("M", bound=Model)


def with_options(model: M, *, gradient_checkpointing: bool = False, compiled: bool = False) -> M:
    """The same model with its layers checkpointed, compiled, or both. Move it to its device first.

    Args:
        model: what is trained, or asked at every update.
        gradient_checkpointing: see ``checkpoint_layers``; acts while training only.
        compiled: see ``compile_layers``; sampling stays as it is.

    Raises:
        UserError: the model or the machine cannot do it.
    """
    if gradient_checkpointing:
        checkpoint_layers(model)
    if compiled:
        compile_layers(model)
    return model


def checkpoint_layers(model: Model) -> None:
    """Keep only the input of each layer for the backward pass, which computes the layer again.

    Activations take the memory of one layer instead of all, for about a quarter more time. Gradients are the same numbers.

    Raises:
        UserError: this kind of model cannot do it.
    """
    trunk: Any = model.trunk
    # The older name is deprecated where there is a newer one.
    enable = getattr(trunk, "activation_checkpointing_enable", None) or trunk.gradient_checkpointing_enable
    try:
        # The other kind would lose the gradient of what a layer is given by name.
        settings: dict[str, Any] = {"use_reentrant": False}
        if adapters.switch_of(trunk) is not None:
            settings["context_fn"] = partial(adapters.checkpoint_contexts, trunk)
        enable(settings)
    except ValueError:
        raise UserError(f"gradient_checkpointing: {type(trunk).__name__} cannot do it; set gradient_checkpointing=false") from None


def compile_layers(model: Model) -> None:
    """Compile each layer of the trunk with ``torch.compile``, for all lengths at once.

    Names of weights, saving and resuming are unchanged; numbers are equal up to rounding. All layers share one compilation, which takes up
    to half a minute. Our attention is left out: it makes rows of another shape for every batch. So each layer is two graphs with the
    attention between them, and what is won is its norms, activations and sums. The library's checkpoint cannot be compiled either: where
    layers are checkpointed, their parts are compiled one by one.

    Raises:
        UserError: nothing to compile with, or no layers of the library's kind.
    """
    check_compiler(model.device)
    layers = [layer for layer in model.trunk.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"compile: {type(model.trunk).__name__} has no layers that are known to be alike; set compile=false")
    model.packs()  # tried on the layers as they are
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.attention))
    for layer in layers:
        for part in layer.children() if layer.gradient_checkpointing else [layer]:
            # Who shares a trunk may have compiled it before.
            if part._compiled_call_impl is None and any(True for _ in part.parameters()):
                part.compile(dynamic=True)


def check_compiler(device: torch.device) -> None:
    """Raises UserError where ``torch.compile`` could make no code for the device."""
    missing = missing_for_compile(device)
    if missing is not None:
        raise UserError(f"compile: {missing}; install it, or set compile=false")


def missing_for_compile(device: torch.device) -> str | None:
    """What ``torch.compile`` needs and this machine does not have, in a few words; None where nothing is missing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "no triton here, which makes the code for the GPU"
        wanted = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        wanted = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    if not any(shutil.which(name) for name in wanted):
        return f"no C++ compiler here ({' or '.join(wanted)})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h here, which compiled code is built with (the package python3-dev on Debian and Ubuntu)"
    return None
