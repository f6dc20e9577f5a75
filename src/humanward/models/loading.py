"""Models and tokenizers from folders, hub names or the embedded assets, with one line for everything that can be wrong with them."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from humanward.errors import UserError

transformers.utils.logging.disable_progress_bar()  # loading shows its own bar otherwise, in the middle of ours

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a peft folder, which holds an adapter and names the model that it was made on."""
Quantize = Literal["4bit", "8bit"]


def resolve(name: str | Path) -> str:
    """`asset:NAME` becomes the folder of an embedded asset; a path is checked; anything else is a hub name.

    Raises:
        UserError: an unknown asset, a file where a folder is needed, or a folder without weights in safetensors.
    """
    text = str(name)
    if text.startswith("asset:"):
        folder = Path(str(resources.files("humanward") / "assets" / text.removeprefix("asset:")))
        if not folder.is_dir():
            known = sorted(p.name for p in folder.parent.iterdir() if (p / "config.json").exists()) if folder.parent.is_dir() else []
            raise UserError(f"{text}: no such embedded model; there are: {', '.join('asset:' + k for k in known) or 'none'}")
        return str(folder)
    path = Path(text).expanduser()
    if path.is_file():
        raise UserError(f"{text}: a file; give the model's folder (config.json, model.safetensors, tokenizer.json)")
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / ADAPTER_CONFIG).exists():
            raise UserError(f"{text}: no config.json in this folder; give a folder written by save_pretrained")
        if not any(any(path.glob(pattern)) for pattern in _WEIGHT_FILES):
            raise UserError(
                f"{text}: no .safetensors weights in this folder (pickled weights are not read); save the model with safetensors"
            )
        return str(path)
    if text.startswith(("/", ".", "~")) or text.count("/") > 1:
        raise UserError(f"{text}: no such folder")
    return text


def load_tokenizer(name: str | Path, *, pad_token: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        name: a folder, a hub name or `asset:NAME`.
        trust_remote_code: let the model's own code run.
        pad_token: an existing token to pad with, where the tokenizer has none of its own or the wrong one.

    Raises:
        UserError: no tokenizer there, or PAD = EOS.
    """
    source = resolve(name)
    base = None if (Path(source) / "tokenizer_config.json").exists() else base_of(source)
    if base is not None:
        return load_tokenizer(base, pad_token=pad_token, trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises a dozen kinds; the user needs the one line
        raise UserError(f"{name}: no usable tokenizer ({_first_line(error)}); put tokenizer.json beside config.json") from error
    if tokenizer is None or len(tokenizer.get_vocab()) == 0:
        raise UserError(f"{name}: no tokenizer in this folder; put tokenizer.json beside config.json")
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise UserError(f"pad_token: {pad_token!r} is not a token of {name}")
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{name}: PAD and EOS are the same token {tokenizer.eos_token!r}, so the end of a response cannot be told from padding; "
            "set pad_token to another token of the vocabulary"
        )
    return tokenizer


def load_causal_lm(
    name: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False, quantize: Quantize | None = None
) -> PreTrainedModel:
    """A causal language model in eval mode. A folder of a peft adapter is the model that it was made on, with the adapter merged.

    Args:
        name: a folder, a hub name or `asset:NAME`.
        dtype: number type of the weights.
        trust_remote_code: let the model's own code run.
        quantize: hold the linear maps in so many bits.

    Raises:
        UserError: it cannot be loaded, or is not a causal language model; nothing to quantise with.
    """
    source = resolve(name)
    base = base_of(source)
    if base is not None:
        if quantize is not None:
            raise UserError(f"lora.quantize: {name} is an adapter; merge it into its model first: Policy.load(…).save(FOLDER)")
        return _merged(source, load_causal_lm(base, dtype=dtype, trust_remote_code=trust_remote_code))
    settings = {} if quantize is None else {"quantization_config": quantization(quantize, dtype)}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True,
            **settings,
        )  # fmt: skip
        model, found = loaded
    except Exception as error:
        raise UserError(f"{name}: cannot load this as a causal language model ({_first_line(error)})") from error
    never_packed(model)
    if missing := sorted(found["missing_keys"]):
        # careful: the library would only warn, and go on with random numbers in their place.
        raise UserError(
            f"{name}: the weights of {missing[0]} are not in this folder; give one whose weights and config.json belong together"
        )
    return model.eval()


def base_of(source: str) -> str | None:
    """The model that a peft folder, or a repository on the hub, was made on; None for what is no adapter.

    Raises:
        UserError: an adapter that does not say, or whose weights are pickled.
    """
    file = find_adapter_config_file(source)
    if file is None:
        return None
    try:
        base = json.loads(Path(file).read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: does not name the model that the adapter was made on; set base_model_name_or_path in it")
    return base


def _merged(source: str, model: PreTrainedModel) -> PreTrainedModel:
    peft = peft_library()
    try:
        # The weights are asked for first: without them peft would take pickled ones.
        folder = Path(cached_file(source, ADAPTER_WEIGHTS)).parent  # pyright: ignore[reportArgumentType]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one library about its use of the other
            merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:
        raise UserError(f"{source}: cannot load this as an adapter of {model_name(model)} ({_first_line(error)})") from error
    merged.config._name_or_path = source
    return merged.eval()


def quantization(bits: Quantize, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What ``from_pretrained`` is told, so that it holds the linear maps in so many bits, as QLoRA does (Dettmers et al. 2023).

    Raises:
        UserError: bitsandbytes is not installed.
    """
    missing = missing_for_quantization()
    if missing is not None:
        raise UserError(f"lora.quantize: {bits}: {missing}")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def never_packed(model: PreTrainedModel) -> None:
    """Keep 4-bit weights in the layout that has a gradient.

    careful: on CPUs with AVX512-BF16, bitsandbytes packs a layer's weights the first time it is asked without gradient, and packed weights
    pass none to their input: everything below would stop learning after the first forward of a reference, or a sample.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def peft_library() -> Any:
    """The module ``peft``.

    Raises:
        UserError: it is not installed.
    """
    missing = missing_for_lora()
    if missing is not None:
        raise UserError(f"lora: {missing}")
    import peft

    return peft


def missing_for_lora() -> str | None:
    """What adapters need and is not here, with what to do; None where nothing is missing."""
    return None if _installed("peft") else "peft is not installed; pip install peft, or train all weights (lora=null)"


def missing_for_quantization() -> str | None:
    """What quantised weights need and is not here, with what to do; None where nothing is missing."""
    if _installed("bitsandbytes"):
        return None
    return "bitsandbytes is not installed; pip install bitsandbytes, or set lora.quantize=null"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its LM head: ids -> last hidden states."""
    trunk = model.base_model
    if trunk is model:  # some models name their trunk otherwise than their class says
        trunk = getattr(model, "model", model)
    if trunk is model:
        raise UserError(f"{type(model).__name__}: has no trunk apart from its head; use another model")
    return trunk


def context_length(model: PreTrainedModel) -> int:
    """Most tokens that prompt and response may have together."""
    return context_of(model.config)


def context_of(config: PreTrainedConfig) -> int:
    """The same, of a model that is not loaded."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return 1 << 30


def check_context(model: PreTrainedModel, prompt: int, response: int, *, what: str) -> None:
    """Whether a prompt of so many tokens and a response of so many are within what the model can read.

    Said once of a model whose rotary positions stretch for all rows of a forward as soon as one passes the original context (longrope,
    dynamic): from there on a row depends on those beside it.

    Raises:
        UserError: they are more than the model's context.
    """
    room = context_length(model)
    if prompt + response > room:
        raise UserError(
            f"{what}: {prompt} tokens of a prompt and {response} of a response are {prompt + response}, but the context of "
            f"{model_name(model)} is {room}; shorten them, or use a model with a longer context"
        )
    original = stretched_beyond(model.config)
    if original is not None and prompt + response > original:
        _say_stretched(model_name(model), original)


def stretched_beyond(config: PreTrainedConfig) -> int | None:
    """The tokens of one row beyond which every row of a forward gets other rotary positions; None where that is not so."""
    config = config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]  # one for all layers, or one for each type of layer
    stretching = [kind for kind in kinds if kind.get("rope_type") in ("longrope", "dynamic")]
    found = [kind.get("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None)) for kind in stretching]
    return min((length for length in found if isinstance(length, int)), default=None)


@lru_cache
def _say_stretched(name: str, original: int) -> None:
    logging.getLogger("humanward").warning(
        "%s: one row of more than %d tokens changes the rotary positions of all rows beside it, so that log-probabilities depend on the "
        "batch; keep prompt and response within %d tokens",
        name, original, original,
    )  # fmt: skip


def model_name(model: PreTrainedModel) -> str:
    """What the user called it; its class, where it was made and not loaded."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
