"""Values from a network of their own, beside the policy's."""

from __future__ import annotations

import copy
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from humanward.models.forward import packs_exactly, predicting_states
from humanward.models.fusing import fuse_activations
from humanward.models.loading import trunk_of
from humanward.models.policy import disable_dropout, zero_head
from humanward.models.reward_model import RewardModel


class ValueNetwork(nn.Module):
    """V(x, y_<t): a trunk and one number read before each token of a response.

    Twice the work of a value head on the policy's trunk, and no pull of the one loss on the other's weights.

    Args:
        model: its trunk is used, its LM head is not.
        head: reads the last hidden state; None: zeros.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.trunk = trunk_of(model)
        self.head = zero_head(model) if head is None else head
        self._packs: bool | None = None
        fuse_activations(self)
        disable_dropout(self)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> Self:
        """A copy that begins as the reward model, normalisation included (Stiennon et al. 2020, arXiv:2009.01325, section 3.4)."""
        head = copy.deepcopy(reward_model.score_head)
        with torch.no_grad():
            head.weight.mul_(reward_model.gain)
            head.bias.mul_(reward_model.gain).add_(reward_model.bias)
        return cls(copy.deepcopy(reward_model.model), head).requires_grad_(True)

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
        hidden = predicting_states(self.trunk, prompts, prompt_mask, responses, response_mask, packed=self.packs())
        values = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return values.new_zeros(responses.shape).masked_scatter(response_mask, values)
