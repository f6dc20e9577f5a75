"""Models and tokenizers from folders, hub names or the embedded assets, with one line for everything that can be wrong with them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from humanward.errors import UserError

transformers.utils.logging.disable_progress_bar()  # loading shows its own bar otherwise, in the middle of ours

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


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
        if not (path / "config.json").exists():
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


def load_causal_lm(name: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in eval mode.

    Raises:
        UserError: it cannot be loaded, or is not a causal language model.
    """
    source = resolve(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        model, found = loaded
    except Exception as error:
        raise UserError(f"{name}: cannot load this as a causal language model ({_first_line(error)})") from error
    if missing := sorted(found["missing_keys"]):
        # careful: the library would only warn, and go on with random numbers in their place.
        raise UserError(
            f"{name}: the weights of {missing[0]} are not in this folder; give one whose weights and config.json belong together"
        )
    return model.eval()


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its LM head: ids -> last hidden states."""
    trunk = model.base_model
    if trunk is model:
        raise UserError(f"{type(model).__name__}: has no trunk apart from its head; use another model")
    return trunk


def context_length(model: PreTrainedModel) -> int:
    """Most tokens that prompt and response may have together."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return 1 << 30


def check_context(model: PreTrainedModel, prompt: int, response: int, *, what: str) -> None:
    """Raises UserError where a prompt of so many tokens and a response of so many are more than the model's context."""
    room = context_length(model)
    if prompt + response > room:
        raise UserError(
            f"{what}: {prompt} tokens of a prompt and {response} of a response are {prompt + response}, but the context of "
            f"{model_name(model)} is {room}; shorten them, or use a model with a longer context"
        )


def model_name(model: PreTrainedModel) -> str:
    """What the user called it; its class, where it was made and not loaded."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
