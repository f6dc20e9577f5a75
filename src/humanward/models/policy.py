"""A policy: a causal language model, its tokenizer and, where asked for, a value head on its trunk."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanward.errors import UserError
from humanward.maths.full_kl import linear_kl
from humanward.maths.logprobs import linear_log_collision, linear_logprobs
from humanward.models.adapters import LoraConfig, adapter_scales, add_adapter, at_work, read_adapter, save_model, weights_at_work
from humanward.models.forward import packs_exactly, predicting_states
from humanward.models.fusing import fuse_activations
from humanward.models.loading import Quantize, load_causal_lm, load_tokenizer, resolve, trunk_of

_VALUE_HEAD = "value_head.safetensors"
_ABOUT_FILES = ("architectures", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Of a model's config: what is said elsewhere, or says nothing of what is computed."""


@dataclass(frozen=True)
class NextTokens:
    """The next-token distributions at response tokens, kept as the states and the head that give them: [B, R, D] instead of [B, R, V]."""

    states: Float[Tensor, "*shape D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None

    def __getitem__(self, rows: Tensor | slice) -> NextTokens:
        return NextTokens(self.states[rows], self.weight, self.bias)


@dataclass(frozen=True)
class ResponseOutputs:
    """What a forward says about given responses, at response positions only; 0 on pads."""

    logprobs: Float[Tensor, "B *K R"]
    """log pi(y_t | x, y_<t) at the sampling temperature, nats."""
    entropy: Float[Tensor, "B *K R"] | None
    """Entropy of the next-token distribution, nats; None where it was not asked for."""
    values: Float[Tensor, "B *K R"] | None
    """Value of the state before each token, score units; None without a value head."""
    log_collision: Float[Tensor, "B *K R"] | None = None
    """log of the sum of the squared next-token probabilities, nats, without gradient; None where it was not asked for."""
    states: Float[Tensor, "B *K R D"] | None = None
    """Hidden states that predict the tokens, without gradient; None where they were not asked for."""
    kl_from: Float[Tensor, "B *K R"] | None = None
    """KL(others || this policy) over the vocabulary, nats; None where it was not asked for."""
    kl_to: Float[Tensor, "B *K R"] | None = None
    """KL(this policy || others), nats; None where it was not asked for."""


@dataclass(frozen=True)
class LogitRule:
    """How hidden states become logits, so that log-probabilities can be taken in row chunks without the model's own head call."""

    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> LogitRule:
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(getattr(config, "final_logit_softcapping", None), float(scale))


class Policy(nn.Module):
    """pi(y | x), with log-probabilities, entropies and values of responses in one forward.

    Args:
        model: any Hugging Face causal language model.
        tokenizer: its tokenizer.
        value_head: add a value head of zeros on the last hidden state (Ziegler et al. 2019 share the trunk).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, value_head: bool = False) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.adapter: str | None = None
        """The name of its own on a trunk that it may share; None: it computes with the model's weights alone."""
        self.logit_rule = LogitRule.of(model)
        self.value_head: nn.Linear | None = zero_head(model) if value_head else None
        self._packs: bool | None = None
        fuse_activations(model)
        disable_dropout(self)
        self.train(model.training)

    @classmethod
    def load(
        cls, name: str | Path, *, value_head: bool = False, pad_token: str | None = None, dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False, quantize: Quantize | None = None,
    ) -> Self:  # fmt: skip
        """From a Hugging Face folder or hub name, or `asset:NAME` for an embedded model; a peft adapter is merged into its model.

        A value head that ``save`` left there is taken up again; otherwise it is one of zeros.

        Raises:
            UserError: no model or tokenizer there, PAD = EOS, a value head of another model, or logits that we do not reproduce.
        """
        tokenizer = load_tokenizer(name, pad_token=pad_token, trust_remote_code=trust_remote_code)
        model = load_causal_lm(name, dtype=dtype, trust_remote_code=trust_remote_code, quantize=quantize)
        policy = cls(model, tokenizer, value_head=value_head)
        policy.check_head(str(name))
        if policy.value_head is not None and (saved := Path(resolve(name)) / _VALUE_HEAD).exists():
            head = load_file(saved)
            check_fits(saved, head["weight"], policy.value_head.weight)
            policy.value_head.load_state_dict(head)
        return policy

    @property
    def trunk(self) -> nn.Module:
        return trunk_of(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        """What fills padded slots. They are always masked, so its value never matters to a result."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    @property
    def eos_id(self) -> int:
        """The end-of-text token; -1, which no token is, where the tokenizer has none."""
        eos = self.tokenizer.eos_token_id
        return eos if isinstance(eos, int) else -1

    def suppressed_tokens(self, *, keep_eos: bool) -> Bool[Tensor, " V"]:
        """Special tokens and the unused tail of the embedding matrix: never sampled, probability 0 (2019: their logits are sliced off)."""
        vocabulary = self.head.weight.shape[0]
        suppressed = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        suppressed[[i for i in self.tokenizer.all_special_ids if i < vocabulary]] = True
        suppressed[len(self.tokenizer) :] = True
        if keep_eos and self.eos_id >= 0:
            suppressed[self.eos_id] = False
        return suppressed

    @property
    def head(self) -> nn.Linear:
        return self.model.get_output_embeddings()  # pyright: ignore[reportReturnType]

    def packs(self) -> bool:
        if self._packs is None:
            self._packs = packs_exactly(self.trunk)
        return self._packs

    def forward(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        responses: Int[Tensor, "B *K R"],
        response_mask: Bool[Tensor, "B *K R"],
        *,
        temperature: float,
        suppressed: Bool[Tensor, " V"] | None = None,
        want_entropy: bool = False,
        want_collision: bool = False,
        want_states: bool = False,
        kl_from: NextTokens | None = None,
        kl_to: NextTokens | None = None,
    ) -> ResponseOutputs:
        """Log-probabilities, entropies and values of one response to each prompt, [B, R], or of K, [B, K, R].

        A prompt is computed once for all its responses, and the LM head runs at response positions only. With ``kl_from`` or ``kl_to``,
        the KL from or to other distributions at the same tokens, over the whole vocabulary.
        """
        hidden = self.states(prompts, prompt_mask, responses, response_mask)
        logprobs, entropy = self.logprobs_of(
            hidden, responses[response_mask], temperature=temperature, suppressed=suppressed, want_entropy=want_entropy
        )
        values = None if self.value_head is None else self.values_of(hidden)
        collision = self.log_collision_of(hidden, temperature=temperature, suppressed=suppressed) if want_collision else None

        def padded(x: Tensor) -> Tensor:
            return x.new_zeros(responses.shape).masked_scatter(response_mask, x)

        def divergence(other: NextTokens, *, of_this: bool) -> Tensor:
            return padded(self.kl_of(hidden, other[response_mask], of_this=of_this, temperature=temperature, suppressed=suppressed))

        return ResponseOutputs(
            padded(logprobs), *(None if x is None else padded(x) for x in (entropy, values, collision)),
            states=padded_states(hidden.detach(), response_mask) if want_states else None,
            kl_from=None if kl_from is None else divergence(kl_from, of_this=False),
            kl_to=None if kl_to is None else divergence(kl_to, of_this=True),
        )  # fmt: skip

    def states(self, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, response_mask: Tensor) -> Float[Tensor, "N D"]:
        """Hidden states from which the real tokens of the responses are predicted, in their order, without a pass of the LM head."""
        packed = self.packs()
        with self.at_work():
            return predicting_states(self.trunk, prompts, prompt_mask, responses, response_mask, packed=packed)

    def next_tokens(self, states: Float[Tensor, "B *K R D"], *, frozen: bool = False) -> NextTokens:
        """The distributions that ``states`` of a forward had under the head as it is now; the head is copied, unless it is ``frozen``."""
        head: dict[str, Tensor] = {name: p.detach() for name, p in self.head.named_parameters(recurse=False)}
        if not frozen:
            head = {name: tensor.clone() for name, tensor in head.items()}
        return NextTokens(states, head["weight"], head.get("bias"))

    def logprobs_of(
        self, hidden: Float[Tensor, "N D"], tokens: Int[Tensor, " N"], *, temperature: float, suppressed: Tensor | None, want_entropy: bool
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
        return linear_logprobs(
            hidden, self.head.weight, tokens, bias=self.head.bias, temperature=temperature, softcap=self.logit_rule.softcap,
            scale=self.logit_rule.scale, suppressed=suppressed, want_entropy=want_entropy,
        )  # fmt: skip

    def log_collision_of(self, hidden: Float[Tensor, "N D"], *, temperature: float, suppressed: Tensor | None) -> Float[Tensor, " N"]:
        return linear_log_collision(
            hidden, self.head.weight, bias=self.head.bias, temperature=temperature, softcap=self.logit_rule.softcap,
            scale=self.logit_rule.scale, suppressed=suppressed,
        )  # fmt: skip

    def kl_of(
        self, hidden: Float[Tensor, "N D"], other: NextTokens, *, of_this: bool, temperature: float, suppressed: Tensor | None
    ) -> Float[Tensor, " N"]:
        """KL over the vocabulary, ``of_this`` policy to the other distributions, or of those to it."""
        this, that = (hidden, self.head.weight), (other.states, other.weight)
        biases = (self.head.bias, other.bias)
        return linear_kl(
            *(this + that if of_this else that + this), bias=biases[not of_this], other_bias=biases[of_this], temperature=temperature,
            softcap=self.logit_rule.softcap, scale=self.logit_rule.scale, suppressed=suppressed,
        )  # fmt: skip

    def values_of(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape"]:
        assert self.value_head is not None
        return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)

    def logits_of(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """float32 logits of a few rows, for sampling."""
        logits = self.head(hidden).float() * self.logit_rule.scale
        return logits if self.logit_rule.softcap is None else self.logit_rule.softcap * torch.tanh(logits / self.logit_rule.softcap)

    @torch.no_grad()
    def check_head(self, name: str) -> None:
        """Our logits must be the model's own.

        Raises:
            UserError: they differ, so that training would move another distribution than the one the model samples from.
        """
        ids = torch.arange(min(8, self.head.weight.shape[0]), device=self.device)[None]
        ours = self.logits_of(self.trunk(input_ids=ids, use_cache=False).last_hidden_state[0])
        # The model's cap and scale are taken in float32 too: in 16 bits their rounding alone would be a difference.
        with self.head.register_forward_hook(lambda module, given, logits: logits.float()):
            theirs = self.model(input_ids=ids, use_cache=False).logits[0].float()
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > 1e-3 * theirs.abs().max().clamp(min=1):
            raise UserError(
                f"{name}: {type(self.model).__name__} does more to its logits than a head, a scale and a soft cap; use another model"
            )

    def adapt(self, lora: LoraConfig, *, name: str = "policy", seed: int = 0) -> Self:
        """Freeze the weights and train an adapter on them instead; a value head is trained in full.

        Raises:
            UserError: peft is not installed, or a target is not there.
        """
        add_adapter(self.model, name, lora, seed=seed)
        self.adapter = name
        return self

    def take_adapter(self, folder: Path, *, name: str = "policy", trained: bool = True) -> Self:
        """Freeze the weights and compute with the adapter of a folder, which goes on being trained or not.

        Raises:
            UserError: peft is not installed, or the adapter is not one for this model.
        """
        read_adapter(self.model, name, folder, trained=trained)
        self.adapter = name
        return self

    def beside(self) -> Policy:
        """The model without an adapter, as another policy on the same trunk: it is asked and never trained. No weight is copied."""
        other = Policy(self.model, self.tokenizer)
        other._packs = self._packs
        other.training = False  # of its forwards; the trunk's mode is that of whoever is at work
        return other

    def reference(self) -> Policy:
        """The policy with its adapter switched off: the model that it was made on, number for number.

        Raises:
            UserError: it has no adapter, so that its weights move.
        """
        if self.adapter is None:
            raise UserError("a policy without an adapter has no reference of its own; take frozen_copy(), or adapt it (lora)")
        return self.beside()

    def settings(self) -> dict[str, Any]:
        """What it computes with and is in no weight: the base of rotary positions, a cap of logits, the scale of an adapter, ..."""
        config = self.model.config.to_dict()
        told = {name: value for name, value in config.items() if not name.startswith("_") and name not in _ABOUT_FILES}
        return {"config": told, "adapter": adapter_scales(self.model, self.adapter)}

    def weights(self) -> dict[str, Tensor]:
        """What it computes with, without what others have on a shared trunk; with ``settings``, its distribution."""
        return weights_at_work(self.model, self.adapter)

    def at_work(self) -> AbstractContextManager[None]:
        """Inside, ``trunk`` and ``model`` compute as this policy; for whoever calls them without its ``forward``."""
        return at_work(self.trunk, self.adapter, training=self.training)

    def frozen_copy(self) -> Policy:
        """The same distribution, without value head, never trained: a reference."""
        reference = Policy(copy.deepcopy(self.model), self.tokenizer)
        reference.adapter = self.adapter
        return reference.requires_grad_(False).eval()

    def save(self, folder: str | Path, *, merged: bool = True) -> None:
        """An ordinary Hugging Face folder; the value head, if any, in a file of its own beside it.

        Not ``merged``: its adapter alone, as a peft folder.
        """
        save_model(self.model, self.adapter, folder, merged=merged)
        self.tokenizer.save_pretrained(folder)
        if self.value_head is not None:
            save_file({name: tensor.detach() for name, tensor in self.value_head.state_dict().items()}, Path(folder) / _VALUE_HEAD)


def padded_states(hidden: Float[Tensor, "N D"], mask: Bool[Tensor, "B *K R"]) -> Float[Tensor, "B *K R D"]:
    """0 on pads."""
    states = hidden.new_zeros(*mask.shape, hidden.shape[-1])
    states[mask] = hidden
    return states


def zero_head(model: PreTrainedModel) -> nn.Linear:
    """A scalar head that starts at zero (Ziegler et al. 2019: the value head)."""
    head = nn.Linear(hidden_size(model), 1, device=next(model.parameters()).device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def check_fits(file: Path, found: Tensor, expected: Tensor) -> None:
    """Raises UserError where a head in a file is not for the trunk beside it."""
    if found.shape != expected.shape:
        raise UserError(
            f"{file}: a head for states of {found.shape[-1]} numbers, but the model beside it has {expected.shape[-1]}; "
            "give a folder whose files belong together"
        )


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, whose: str) -> None:
    """Raises UserError where a model reads other words in the policy's token ids than the policy wrote."""
    theirs, special = other.get_vocab(), {*tokenizer.all_special_tokens}
    differ = [token for token, index in tokenizer.get_vocab().items() if theirs.get(token) != index and token not in special]
    if differ:
        raise UserError(
            f"{whose} has another tokenizer than the policy: {len(differ)} tokens differ, such as {min(differ)!r}; give one that was made "
            "from a model of the policy's family, or score texts, as hf:FOLDER or TextReward do"
        )


def check_apart(policy: Policy, reference: Policy) -> None:
    """Raises UserError where a reference computes with weights that are trained as the policy's, so that it would move along."""
    trained = {p.data_ptr() for p in policy.parameters() if p.requires_grad}
    if any(weight.data_ptr() in trained for weight in reference.weights().values()):
        raise UserError(
            "the reference computes with weights that the policy trains, so that it would move along; "
            "take policy.frozen_copy(), or policy.reference() where it has an adapter"
        )


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the last hidden state: what the LM head reads."""
    return int(model.get_output_embeddings().weight.shape[1])  # pyright: ignore[reportOptionalMemberAccess]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, a model computes without dropout; afterwards as before."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def disable_dropout(module: nn.Module, rate: float = 0.0) -> None:
    """Set every dropout of a model (2019: off in policy and reward training), but for those of adapters, which have a setting of their own.

    Attention dropout kept as a number is set too.
    """
    for path, part in module.named_modules():
        if isinstance(part, nn.Dropout) and "lora_dropout" not in path.split("."):
            part.p = rate
        for name in ("attention_dropout", "attn_dropout", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, rate)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Which token ids mean what: a hash of vocabulary and special tokens, to tell tokenizers apart."""
    import hashlib

    facts: Any = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
