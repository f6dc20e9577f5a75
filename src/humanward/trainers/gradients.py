"""The gradient of a global batch, added up weight by weight while its parts are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from humanward.maths.chunked_head import head_gradients_added_to

_FEW = 4
"""An embedding keeps the rows that its gradient reaches while they are less than one in so many."""


class GradientSum:
    """Sums of gradients in memory of their own, in float32 where weights have 16 bits.

    As soon as a backward pass has the gradient of a weight it is added up and let go. The sums are made once, before anything short-lived,
    so that they do not lie scattered among it. On a CPU a language model's head adds its share directly; and the gradient of an embedding
    stays the few rows that the batch's tokens reach, a sparse tensor, if nothing but the embedding has a share in it, as in a reward model
    or value network.

    Args:
        module: what is differentiated.
        weights: its parameters that are trained.
        sums: for each the parameter whose gradient is the sum: itself, or its float32 copy.
    """

    def __init__(self, module: nn.Module, weights: Mapping[str, nn.Parameter], sums: Mapping[str, nn.Parameter]) -> None:
        self.weights, self.sums = weights, sums
        self.embeddings = [
            part for part in module.modules()
            if isinstance(part, nn.Embedding) and part.weight.requires_grad and part.weight.device.type == "cpu"
            and not part.scale_grad_by_freq
        ]  # fmt: skip
        looked_up = {id(part.weight) for part in self.embeddings}
        self.memory = {name: torch.zeros_like(sums[name]) for name, weight in weights.items() if id(weight) not in looked_up}
        self.reached: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside, gradients of backward passes are taken; afterwards each sum is a ``grad``. A weight that none has reached has none."""
        for weight in (*self.weights.values(), *self.sums.values()):
            weight.grad = None
        self.reached.clear()
        hooks = [weight.register_post_accumulate_grad_hook(partial(self._take, name)) for name, weight in self.weights.items()]
        sparse = [part.sparse for part in self.embeddings]
        for part in self.embeddings:
            part.sparse = True
        on_cpu = {weight.data_ptr(): partial(self._total, name) for name, weight in self.weights.items() if weight.device.type == "cpu"}
        try:
            with head_gradients_added_to(on_cpu):
                yield
            self.reached |= {name: rows.coalesce() for name, rows in self.rows.items()}
        finally:
            self.rows.clear()
            for hook in hooks:
                hook.remove()
            for part, before in zip(self.embeddings, sparse, strict=True):
                part.sparse = before
        for name, total in self.reached.items():
            self.sums[name].grad = total

    def _take(self, name: str, weight: Tensor) -> None:
        found, weight.grad = weight.grad, None
        if found is None:  # a head's, which has added to the sum
            return
        if not found.is_sparse:
            self._add(name, found)
            return
        # careful: added up in the type of the sum, not in 16 bits.
        found = found.to(self.sums[name].dtype)
        if name not in self.reached:
            found = self.rows[name] + found if name in self.rows else found
            if found._nnz() * _FEW < len(weight):
                self.rows[name] = found
                return
            self.rows.pop(name, None)
        self._add(name, found)

    def _total(self, name: str) -> Tensor:
        """What a head adds its share to, chunk by chunk."""
        if name not in self.reached:
            self._add(name, self.sums[name].new_zeros(()).expand_as(self.sums[name]))
        return self.reached[name]

    def _add(self, name: str, found: Tensor) -> None:
        if name in self.reached:
            self.reached[name].add_(found)
        elif found.is_sparse:
            self.reached[name] = found.to_dense()
        else:
            if name not in self.memory:
                self.memory[name] = torch.empty_like(self.sums[name])
            self.reached[name] = self.memory[name].copy_(found)
            if name in self.rows:  # of an earlier part, in which its head had no share
                self.reached[name].add_(self.rows.pop(name))
