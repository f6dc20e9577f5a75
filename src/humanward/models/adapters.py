"""Low-rank adapters: few trained numbers beside the weights of a frozen trunk, which several models can share, each with its own.

At rest no adapter is at work, and the trunk is the model that was loaded, number for number: the reference costs nothing. Whoever computes
says with which adapter (``at_work``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from humanward.config import Config
from humanward.errors import UserError
from humanward.models.loading import ADAPTER_WEIGHTS, Quantize, missing_for_quantization, peft_library, trunk_of


class LoraConfig(Config):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685, section 4.1): W x + alpha / rank * B A x."""

    rank: PositiveInt = 16
    """Rows of A and columns of B: what an adapter can learn, and what it costs."""
    alpha: PositiveInt = 32
    """Size of an adapter's part. Learning rates want to be about ten times those that train all weights."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of what an adapter is given, in trainings on texts and labels. Never while a policy learns from its own samples: their
    probabilities would be those of another policy."""
    targets: list[str] | None = None
    """Which linear maps get an adapter: the ends of their names, such as ``[q_proj, v_proj]``. null: all of the trunk, which it takes to
    keep up with training all weights (QLoRA, Dettmers et al. 2023, section 4)."""
    rslora: bool = False
    """Divide alpha by the root of the rank, which keeps high ranks learning (Kalajdzievski 2023, arXiv:2312.03732)."""
    quantize: Quantize | None = None
    """Hold the frozen weights in so many bits (``4bit``: NF4, quantised twice, as QLoRA; ``8bit``: LLM.int8). Needs bitsandbytes."""
    save: Literal["merged", "adapter"] = "merged"
    """What ``policy/`` is. ``merged``: an ordinary Hugging Face folder. ``adapter``: a peft folder of some megabytes, which needs the model
    that it was made on."""


class Switch:
    """Which adapter of a trunk is at work; None at rest."""

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.adapter: str | None = None

    def turn(self, adapter: str | None) -> None:
        if adapter == self.adapter:
            return
        for layer in self.layers:
            # careful: not peft's set_adapter and enable_adapters, which freeze what is not at work, even if its backward pass is to come.
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        self.adapter = adapter


def switch_of(trunk: nn.Module) -> Switch | None:
    """None for a trunk without adapters."""
    return getattr(trunk, "_adapter_switch", None)


@contextmanager
def at_work(trunk: nn.Module, adapter: str | None, *, training: bool) -> Iterator[None]:
    """Inside, a trunk computes with this adapter, or with none; afterwards as before.

    Args:
        trunk: may be shared.
        adapter: its name; None: the trunk as it was loaded.
        training: whether dropout acts; who shares a trunk may train while another is asked.
    """
    switch = switch_of(trunk)
    if switch is None:
        yield
        return
    before, mode = switch.adapter, trunk.training
    try:
        switch.turn(adapter)
        if mode != training:
            trunk.train(training)
        yield
    finally:
        switch.turn(before)
        if mode != training:
            trunk.train(mode)


def checkpoint_contexts(trunk: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For ``torch.utils.checkpoint``: a layer is computed again with the adapter that it was computed with."""
    switch = switch_of(trunk)
    return nullcontext(), at_work(trunk, None if switch is None else switch.adapter, training=trunk.training)


def add_adapter(model: PreTrainedModel, name: str, lora: LoraConfig, *, seed: int = 0) -> None:
    """Freeze ``model`` and give its trunk an adapter to train. A is random and B zero, so that it changes nothing yet.

    Raises:
        UserError: peft is not installed, or a target is not there.
    """
    paths = linear_maps(trunk_of(model))
    names = sorted({path.rpartition(".")[2] for path in paths})
    targets = names if lora.targets is None else lora.targets
    for target in targets:
        if not any(f".{path}".endswith(f".{target}") for path in paths):
            raise UserError(f"lora.targets: {type(model).__name__} has no linear map {target}; there are {', '.join(names)}")
    settings = peft_library().LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_rslora=lora.rslora, target_modules=targets, task_type="CAUSAL_LM"
    )
    _inject(model, name, settings, seed=seed)


def read_adapter(model: PreTrainedModel, name: str, folder: Path, *, trained: bool) -> None:
    """Give the trunk of ``model``, which is frozen, the adapter of a folder that ``save_model`` or peft wrote; or give it again.

    Raises:
        UserError: peft is not installed, or the adapter is not one for this model.
    """
    from safetensors.torch import load_file

    settings = peft_library().PeftConfig.from_pretrained(str(folder))
    settings.inference_mode = False
    if not adapter_tensors(model, name):
        _inject(model, name, settings, trained=trained)
    given, own = load_file(folder / ADAPTER_WEIGHTS), adapter_tensors(model, name)
    for key in sorted(given.keys() | own.keys()):
        if key not in given or key not in own or given[key].shape != own[key].shape:
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS}: {key} does not fit this {type(model).__name__}; give an adapter that was made on this model"
            )
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(given[key])


def _inject(model: PreTrainedModel, name: str, settings: Any, *, seed: int = 0, trained: bool = True) -> None:
    trunk = trunk_of(model)
    switch = switch_of(trunk) or Switch()
    switch.turn(None)
    before = {id(p) for layer in switch.layers for p in layer.parameters() if p.requires_grad}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are what is wanted
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # it is found out and set for GPT-2's transposed maps
        torch.manual_seed(seed)
        # careful: into the trunk, so that an LM head, which is no part of a reward model, gets none.
        peft_library().inject_adapter_in_model(settings, trunk, adapter_name=name)
    switch.layers = [module for module in trunk.modules() if hasattr(module, "lora_A")]
    switch.adapter = name  # peft has put it to work
    switch.turn(None)
    trunk._adapter_switch = switch  # pyright: ignore[reportArgumentType]
    own = {id(p) for p in adapter_tensors(model, name).values()} if trained else set()
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own | before)


def disable_adapter_dropout(trunk: nn.Module, name: str | None) -> None:
    """Of one adapter; others on the trunk keep theirs."""
    for path, part in trunk.named_modules():
        if isinstance(part, nn.Dropout) and path.endswith(f".lora_dropout.{name}"):
            part.p = 0.0


def linear_maps(trunk: nn.Module) -> list[str]:
    """Where the trunk has linear maps, whether they have adapters already or not."""
    found: list[str] = []
    for path, module in trunk.named_modules():
        inside = {"base_layer", "lora_A", "lora_B"} & set(path.split("."))
        if not inside and (isinstance(module, nn.Linear | Conv1D) or hasattr(module, "lora_A")):
            found.append(path)
    return found


def adapter_tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """What is trained of an adapter, under the names that peft gives it in a file."""
    found: dict[str, nn.Parameter] = {}
    for key, parameter in model.named_parameters():
        for part in (f".lora_A.{name}.", f".lora_B.{name}."):
            if part in key:
                found["base_model.model." + key.replace(f".{name}.", ".")] = parameter
    return found


def adapter_scales(model: PreTrainedModel, name: str | None) -> list[float]:
    """What an adapter's part is multiplied by in each layer: alpha / rank, or what rslora makes of it."""
    switch = switch_of(trunk_of(model))
    return [] if switch is None or name is None else [float(layer.scaling[name]) for layer in switch.layers if name in layer.scaling]


def weights_at_work(model: PreTrainedModel, adapter: str | None) -> dict[str, Tensor]:
    """What a model computes with, its adapter included, under names that do not tell who else shares the trunk."""
    found: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): p.detach() for name, p in model.named_parameters() if ".lora_" not in name
    }
    own = {} if adapter is None else adapter_tensors(model, adapter)
    return found | {name: p.detach() for name, p in own.items()}


def train_only(model: PreTrainedModel, *names: str) -> None:
    """Of all weights and adapters of a model, let those adapters have gradients. Heads are not the model's."""
    own = {id(p) for name in names for p in adapter_tensors(model, name).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)


def copy_adapter(model: PreTrainedModel, name: str, other: str) -> None:
    """Give the trunk a second adapter that begins as ``name`` is."""
    _inject(model, other, _settings_of(trunk_of(model), name))
    with torch.no_grad():
        for one, copy in zip(adapter_tensors(model, name).values(), adapter_tensors(model, other).values(), strict=True):
            copy.copy_(one)


def _settings_of(trunk: nn.Module, name: str) -> Any:
    return copy.deepcopy(trunk.peft_config[name])  # pyright: ignore[reportIndexIssue, reportArgumentType]


def save_model(model: PreTrainedModel, adapter: str | None, folder: str | Path, *, merged: bool = True) -> None:
    """A language model as an ordinary Hugging Face folder, its adapter added to the weights; or, not ``merged``, the adapter alone.

    The latter is peft's own kind of folder and names the model that it was made on.
    """
    from safetensors.torch import save_file

    if adapter is None or merged:
        plain, state = _plain(model, adapter)
        plain.save_pretrained(folder, state_dict=state)
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings_of(trunk_of(model), adapter)
    name = str(model.config._name_or_path)
    settings.base_model_name_or_path = str(Path(name).absolute()) if name and Path(name).is_dir() else name
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    tensors = {name: p.detach().to("cpu").clone().contiguous() for name, p in adapter_tensors(model, adapter).items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _plain(model: PreTrainedModel, adapter: str | None) -> tuple[PreTrainedModel, dict[str, Tensor] | None]:
    """A model without adapters and quantisation, and the weights that it should have; None: its own."""
    if switch_of(trunk_of(model)) is None and not is_quantized(model):
        return model, None
    state = plain_state(model, adapter)
    if not is_quantized(model):
        return model, state
    config = type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        return type(model)(config), state


@torch.no_grad()
def plain_state(module: nn.Module, adapter: str | None) -> dict[str, Tensor]:
    """Weights of a model or its trunk under the names that they have without adapters; one adapter is added to them."""
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
    found: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for path, part in module.named_modules():
        if ".lora_" in f".{path}":
            continue
        prefix = "".join(f"{name}." for name in path.split(".") if name not in ("", "base_layer"))
        kept = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
        found |= {prefix + name: tensor.detach() for name, tensor in kept.items() if name not in part._non_persistent_buffers_set}
        if _quantized(part):
            found[prefix + "weight"] = _dequantized(part).to(dtype)
        if adapter is not None and adapter in getattr(part, "lora_A", {}):
            layers[prefix + "weight"] = part
    for name, layer in layers.items():
        found[name] = found[name] + layer.get_delta_weight(adapter).to(found[name].dtype)
    return found


def is_quantized(model: nn.Module) -> bool:
    """Whether some weights are held in 4 or 8 bits."""
    return any(_quantized(module) for module in model.modules())


def _quantized(module: nn.Module) -> bool:
    # An adapter's layer shows its base layer's weight as its own.
    return type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params") and not hasattr(module, "base_layer")


def _dequantized(module: nn.Module) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    weight = module.weight
    found = dequantize_module_weight(module).detach()
    module.weight = weight  # careful: peft puts a copy in its place, which on a CPU has lost the scales of 8-bit weights
    return found


def check_lora(lora: LoraConfig) -> None:
    """Raises UserError where this installation cannot do what is asked."""
    peft_library()
    missing = missing_for_quantization() if lora.quantize is not None else None
    if missing is not None:
        raise UserError(f"lora.quantize: {lora.quantize}: {missing}")
