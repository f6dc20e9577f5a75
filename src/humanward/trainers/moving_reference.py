"""A reference that follows the policy slowly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from humanward.errors import UserError
from humanward.models import Policy
from humanward.trainers.updates import load_weights, weights


class MovingReference:
    """Exponential moving average of the weights that the policy trains, from the reference's own on.

        reference <- share * reference + (1 - share) * policy          after each step

    Xu et al. 2024 (arXiv:2404.10719), section 5, "Ref. EMA"; their code moves by 1 - share = 0.001 at a step (ReaLHF, ppo_ref_ema.py).

    Args:
        reference: is moved in place; kept in float32 beside it where its weights are of 16 bits, since a small step would be lost there.
        policy: of the same architecture, with weights of its own.
        share: what stays, 0 to 1.
    """

    def __init__(self, reference: Policy, policy: Policy, share: float) -> None:
        mine = {id(p) for p in policy.parameters()}
        if any(id(p) in mine for p in reference.parameters()):
            raise UserError("ppo.reference_ema: policy and reference share their weights, as with adapters; set reference_ema to null")
        self.reference, self.share = reference, share
        trained = {name for name, p in policy.named_parameters() if p.requires_grad}
        self.exact = {
            name: tensor if tensor.element_size() > 2 else tensor.float() for name, tensor in weights(reference, only=trained).items()
        }
        """The reference's own tensors, or the float32 copies of 16-bit ones."""

    @torch.no_grad()
    def follow(self, policy: Mapping[str, Tensor]) -> None:
        """One step toward the policy's weights, by their names in it."""
        for name, tensor in self.exact.items():
            tensor.lerp_(policy[name].to(tensor.dtype), 1 - self.share)
        load_weights(self.reference, self.exact, only=self.exact)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.exact)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.exact.items():
            tensor.copy_(tensors[name])
        load_weights(self.reference, self.exact, only=self.exact)
