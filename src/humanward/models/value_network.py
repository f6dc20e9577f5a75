"""Values from a network of their own, beside the policy's."""

from __future__ import annotations

import copy
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanward.errors import UserError
from humanward.models.adapters import adapter_tensors, at_work, copy_adapter
from humanward.models.forward import packs_exactly, predicting_states
from humanward.models.fusing import fuse_activations
from humanward.models.loading import trunk_of
from humanward.models.policy import check_same_tokens, disable_dropout, zero_head
from humanward.models.reward_model import RewardModel


class ValueNetwork(nn.Module):
    """V(x, y_<t): a trunk and one number read before each token of a response.

    Twice the work of a value head on the policy's trunk, and no pull of the one loss on the other's weights.

    Args:
        model: its trunk is used, its LM head is not.
        head: reads the last hidden state; None: zeros.
        tokenizer: the one whose tokens it reads, where that is known.
        adapter: the name of its own on a trunk that it shares.
    """

    def __init__(
        self, model: PreTrainedModel, head: nn.Linear | None = None, *, tokenizer: PreTrainedTokenizerBase | None = None,
        adapter: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokenizer, self.adapter = tokenizer, adapter
        self.trunk = trunk_of(model)
        self.head = zero_head(model) if head is None else head
        self._packs: bool | None = None
        fuse_activations(self)
        disable_dropout(self)
        self.train(model.training)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> Self:
        """A copy that begins as the reward model, normalisation included (Stiennon et al. 2020, arXiv:2009.01325, section 3.4).

        Of a reward model with an adapter, the adapter and the head are copied, and the trunk is shared. Its own adapter is then frozen.
        """
        head = copy.deepcopy(reward_model.score_head)
        with torch.no_grad():
            head.weight.mul_(reward_model.gain)
            head.bias.mul_(reward_model.gain).add_(reward_model.bias)
        if reward_model.adapter is None:
            return cls(copy.deepcopy(reward_model.model), head, tokenizer=reward_model.tokenizer).requires_grad_(True)
        copy_adapter(reward_model.model, reward_model.adapter, "value")
        for parameter in adapter_tensors(reward_model.model, reward_model.adapter).values():
            parameter.requires_grad_(False)
        return cls(reward_model.model, head.requires_grad_(True), tokenizer=reward_model.tokenizer, adapter="value")

    def check_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError where it cannot read the policy's tokens."""
        if self.tokenizer is not None:
            check_same_tokens(tokenizer, self.tokenizer, "the value network")
        known = self.trunk.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue]
        if known < len(tokenizer):
            raise UserError(
                f"the value network has embeddings for {known} tokens, but the policy's tokenizer has {len(tokenizer)}; give one that was "
                "made from a model of the policy's family"
            )

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

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
    ) -> Float[Tensor, "B *K R"]:
        """Value of the state before each token, score units; 0 on pads."""
        packed = self.packs()
        with at_work(self.trunk, self.adapter, training=self.training):
            hidden = predicting_states(self.trunk, prompts, prompt_mask, responses, response_mask, packed=packed)
        values = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return values.new_zeros(responses.shape).masked_scatter(response_mask, values)
