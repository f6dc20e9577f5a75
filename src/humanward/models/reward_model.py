"""A reward model: a language model's trunk and one number read from its last real token."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanward.errors import UserError
from humanward.maths.masks import last_index
from humanward.models.adapters import LoraConfig, add_adapter, at_work, plain_state, read_adapter, save_model
from humanward.models.forward import packs_exactly, response_states
from humanward.models.fusing import fuse_activations
from humanward.models.loading import load_causal_lm, load_tokenizer, trunk_of
from humanward.models.policy import check_fits, disable_dropout, hidden_size

FORMAT = 1
_FACTS = "reward_model.json"


class RewardModel(nn.Module):
    """score = gain * (w . h(last real token) + b) + bias, one per response, [B, K].

    Args:
        model: the causal language model whose trunk is used; its LM head is not.
        tokenizer: its tokenizer.
        head_scale: the head is drawn with the deviation head_scale / sqrt(d + 1); 1 is the released code of Ziegler et al. 2019.
        generator: draws the head; None: the default one.
    """

    gain: Tensor
    bias: Tensor
    choice_scale: Tensor
    """softmax(choice_scale * scores) is how likely each response is to be chosen: what the normalisation has changed since the fit."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, head_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.adapter: str | None = None
        """The name of its own on a trunk that it may share; None: it computes with the model's weights alone."""
        self.stops_at_eos = False
        """Whether responses that it was fitted to end at the end-of-text token."""
        width = hidden_size(model)
        self.score_head = nn.Linear(width, 1)
        nn.init.normal_(self.score_head.weight, std=head_scale / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.score_head.bias)
        self.score_head.to(next(model.parameters()).device)
        self.register_buffer("gain", torch.ones((), device=self.score_head.weight.device))
        self.register_buffer("bias", torch.zeros((), device=self.score_head.weight.device))
        self.register_buffer("choice_scale", torch.ones((), device=self.score_head.weight.device))
        self._packs: bool | None = None
        fuse_activations(model)
        disable_dropout(self)
        # The LM head is not used: where it is not tied to the embedding, nothing may wait for its gradient.
        trunk_parameters = {id(p) for p in self.trunk.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in trunk_parameters:
                parameter.requires_grad_(False)
        self.train(model.training)

    @property
    def trunk(self) -> nn.Module:
        return trunk_of(self.model)

    def trunk_state(self) -> dict[str, Tensor]:
        """The weights of the trunk under their own names, its adapter worked in."""
        return plain_state(self.trunk, self.adapter)

    @property
    def device(self) -> torch.device:
        return self.score_head.weight.device

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def packs(self) -> bool:
        if self._packs is None:
            self._packs = packs_exactly(self.trunk)
        return self._packs

    def forward(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        responses: Int[Tensor, "B K R"],
        response_mask: Bool[Tensor, "B K R"],
    ) -> Float[Tensor, "B K"]:
        """Scores of K responses to each prompt; the prompt is computed once."""
        packed = self.packs()
        with self.at_work():
            states = response_states(self.trunk, prompts, prompt_mask, responses, response_mask, packed=packed)
        last = last_index(response_mask.flatten(0, 1)).view(*response_mask.shape[:2], 1)
        read = states.take(states.responses.gather(2, last).squeeze(2))
        return self.gain * self.score_head(read.to(self.score_head.weight.dtype)).squeeze(-1) + self.bias

    @torch.no_grad()
    def set_normalization(self, gain: float, bias: float) -> None:
        """After this, score_new = gain * score_raw + bias, score_raw being the head's own output."""
        self.gain.fill_(gain)
        self.bias.fill_(bias)

    def adapt(self, lora: LoraConfig, *, name: str = "reward", seed: int = 0) -> Self:
        """Freeze the trunk and train an adapter on it instead; the head is trained in full.

        Raises:
            UserError: peft is not installed, or a target is not there.
        """
        add_adapter(self.model, name, lora, seed=seed)
        self.adapter = name
        return self

    def at_work(self) -> AbstractContextManager[None]:
        """Inside, ``trunk`` computes as this reward model's; for whoever calls it without ``forward``."""
        return at_work(self.trunk, self.adapter, training=self.training)

    def save(self, folder: Path, *, merged: bool = True) -> None:
        """The trunk as a Hugging Face folder, the head and its normalisation beside it. Not ``merged``: of the trunk its adapter alone."""
        from safetensors.torch import save_file

        save_model(self.model, self.adapter, folder, merged=merged)
        self.tokenizer.save_pretrained(folder)
        save_file(self.head_tensors(), folder / "score_head.safetensors")
        facts = {"format": FORMAT, "read": "last real token of the response", "stops_at_eos": self.stops_at_eos}
        (folder / _FACTS).write_text(json.dumps(facts) + "\n")

    @classmethod
    def load(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False, on: PreTrainedModel | None = None,
        name: str = "reward",
    ) -> Self:  # fmt: skip
        """A folder written by ``save``.

        Args:
            folder: with the head, and a trunk or an adapter.
            dtype: number type of the trunk.
            trust_remote_code: let the model's own code run.
            on: the model that the folder's adapter was made on: its trunk is shared. None: a trunk of its own, an adapter merged.
            name: of the adapter on a shared trunk.

        Raises:
            UserError: no reward model there, one of another version, or a head or an adapter that is not this trunk's.
        """
        from safetensors.torch import load_file

        head_file = Path(folder) / "score_head.safetensors"
        if not head_file.exists():
            raise UserError(f"{folder}: not a reward model (no score_head.safetensors); give a folder that `humanward reward` wrote")
        facts = _read_facts(Path(folder) / _FACTS)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        reward_model = cls(
            load_causal_lm(folder, dtype=dtype, trust_remote_code=trust_remote_code) if on is None else on, tokenizer
        )  # fmt: skip
        if on is not None:
            read_adapter(on, name, Path(folder), trained=False)
            reward_model.adapter = name
        reward_model.load_head(head_file, load_file(head_file))
        reward_model.stops_at_eos = bool(facts.get("stops_at_eos"))  # folders of older versions do not say
        return reward_model.eval()

    def head_tensors(self) -> dict[str, Tensor]:
        """What a folder holds besides the trunk."""
        head = {"weight": self.score_head.weight, "head_bias": self.score_head.bias}
        head |= {"gain": self.gain, "bias": self.bias, "choice_scale": self.choice_scale}
        return {name: tensor.detach().clone().contiguous() for name, tensor in head.items()}

    @torch.no_grad()
    def load_head(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``head_tensors`` gave; ``file`` is where it stood, for the message where it is another model's."""
        check_fits(file, tensors["weight"], self.score_head.weight)
        self.score_head.weight.copy_(tensors["weight"])
        self.score_head.bias.copy_(tensors["head_bias"])
        self.set_normalization(float(tensors["gain"]), float(tensors["bias"]))
        if "choice_scale" in tensors:  # folders of older versions have none
            self.choice_scale.copy_(tensors["choice_scale"])


def _read_facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text()) if file.exists() else {"format": FORMAT}
        found = facts.get("format")
    except (ValueError, AttributeError):
        raise UserError(f"{file}: damaged: not a JSON object; fit the reward model again") from None
    if found != FORMAT:
        raise UserError(f"{file}: format {found}, and this version of Humanward reads {FORMAT}; use the version that wrote it")
    return facts
