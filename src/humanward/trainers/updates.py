"""One optimiser step on a global batch: micro-batches, processes, schedule, clipping, and the refusal of numbers that are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.adamw import adamw

from humanward.data.batches import packed_batches, token_batches
from humanward.errors import RunError, UserError
from humanward.maths.schedules import cosine, linear_to_zero, warmup_share
from humanward.models import Policy, RewardEnsemble, RewardModel, give_back_freed_memory
from humanward.models.policy import hidden_size
from humanward.trainers.gradients import GradientSum
from humanward.trainers.guards import BAD_UPDATES, TrainingError

Schedule = Literal["linear", "cosine", "constant"]
T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")
_ROWS = 4096
"""Of an embedding that are updated at once where its gradient is a few rows."""


class Updater:
    """AdamW on one module under Accelerate, with a state that is plain tensors.

    The gradient is that of the loss over the global batch: the caller's loss of a micro-batch is its share of it, already divided by the
    global count, and processes are summed, not averaged. So 8 x 1 = 1 x 8 = 2 processes x 4.

    16-bit weights are trained through a float32 copy of each: gradients are summed and applied there, and the 16-bit weight is the copy,
    rounded. An update much smaller than a weight would be lost in 16 bits.

    Args:
        module: what is trained; parameters without gradient are left alone.
        total_updates: the schedule ends at this many updates.
        updates_per_step: the learning rate stays for so many updates, those on the episodes of one step.
        adam_eps_hat: put epsilon outside the bias correction, as TensorFlow's Adam does ("epsilon hat" of Kingma and Ba 2015, section 2);
            PyTorch has it inside, which makes the first updates much larger (Huang et al. 2024, "N implementation details").
        warmup_updates: a cosine or constant rate rises over so many.
        max_grad_norm: clip the gradient's norm; None: no clipping (2019).
        lr_scale: of a weight: its learning rate in units of ``lr``.
    """

    def __init__(
        self, module: nn.Module, accelerator: Accelerator, *, lr: float, total_updates: int, updates_per_step: int = 1,
        lr_schedule: Schedule, adam_eps: float, adam_eps_hat: bool = False, adam_betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0, warmup_updates: int = 0, max_grad_norm: float | None = None,
        lr_scale: Callable[[nn.Parameter], float] = lambda weight: 1.0,
    ) -> None:  # fmt: skip
        self.accelerator = accelerator
        self.lr, self.lr_schedule, self.updates_per_step = lr, lr_schedule, updates_per_step
        self.total_updates, self.warmup_updates = total_updates, warmup_updates
        self.adam_eps, self.adam_eps_hat, self.max_grad_norm = adam_eps, adam_eps_hat, max_grad_norm
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.kept = self.trained.keys() | dict(module.named_buffers()).keys()
        self.named = {name: p if p.element_size() > 2 else nn.Parameter(p.detach().float()) for name, p in self.trained.items()}
        """What the optimiser works on: the weights, or the float32 copies of 16-bit ones."""
        self.copied = [name for name, p in self.trained.items() if p is not self.named[name]]
        scales = {name: lr_scale(weight) for name, weight in self.trained.items()}
        give_back_freed_memory()  # what loading left over, so that what stays is not put in between
        self.gradients = GradientSum(module, self.trained, self.named)
        groups = [
            {"params": [self.named[name] for name in scales if scales[name] == scale], "scale": scale}
            for scale in sorted({*scales.values()})
        ]
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=adam_betas, eps=adam_eps, weight_decay=weight_decay, fused=True)
        self.bare = module
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        for p in self.named.values():
            self._adam[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)} | {
                moment: torch.zeros_like(p) for moment in MOMENTS
            }
        self.updates = 0
        """Where the schedule is: updates made, left out and passed over."""
        self.applied = 0
        """Updates that Adam has made."""
        self.bad_in_a_row = 0
        self.batch: Callable[[], Mapping[str, Tensor]] = dict
        """Of the last update."""
        self.batch_left_out: Callable[[], Mapping[str, Tensor]] = dict
        """Of the last update whose loss or gradient was not finite."""

    def current_lr(self) -> float:
        """The learning rate of the next update: lr * (1 - steps done / steps) when linear, as lm-human-preferences anneals."""
        step, steps, warmup = (n // self.updates_per_step for n in (self.updates, self.total_updates, self.warmup_updates))
        if self.lr_schedule == "linear":
            return self.lr * linear_to_zero(step, steps, warmup)
        if self.lr_schedule == "cosine":
            return self.lr * cosine(step, steps, warmup)
        return self.lr * warmup_share(step, warmup)

    def update(
        self, micro_batches: Sequence[T], loss: Callable[[nn.Module, T], Tensor], *, what: str,
        batch: Callable[[], Mapping[str, Tensor]] = dict, accept: Callable[[], bool] = lambda: True,
    ) -> dict[str, float]:  # fmt: skip
        """One step. ``loss`` gives a micro-batch's share of the global batch's loss.

        A loss or gradient that is not finite is not applied: the weights stay, ``skipped`` is 1. Nor is one that ``accept`` refuses, which
        is asked when all losses are known: there is a ``stopped`` then.

        Args:
            micro_batches: the batch, in parts.
            loss: of one part.
            what: is trained, for messages.
            batch: what to keep of the batch when the training has to end.
            accept: whether to apply the update.

        Returns:
            The loss over the global batch, the gradient's norm before clipping, the learning rate, and whether the update was skipped.

        Raises:
            TrainingError: the third such update in a row.
        """
        self.batch = batch
        total = torch.zeros((), device=self.accelerator.device)
        with self.gradients.collecting(), self.accelerator.no_sync(self.module):  # processes meet once, in _sum_gradients
            for micro in micro_batches:
                share = loss(self.module, micro)
                self.accelerator.backward(share)
                total += share.detach()
        self._sum_gradients()
        total = sum_over_processes(self.accelerator, total)
        gradients = [p.grad.values() if p.grad.is_sparse else p.grad for p in self.named.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.max_grad_norm is not None:
            scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale)
        lr = self.current_lr()
        if not bool(torch.isfinite(total)) or not bool(torch.isfinite(norm)):
            self.bad_in_a_row += 1
            self.batch_left_out = batch
            if self.bad_in_a_row >= BAD_UPDATES:
                raise TrainingError(
                    f"{what}: update {self.updates}: the {'loss' if not torch.isfinite(total) else 'gradient'} is not a finite number, "
                    "for the third time in a row, and was not applied; lower the learning rate or look at the scores",
                    batch(),
                )
            self.updates += 1
            return {"loss": float(total), "grad_norm": float(norm), "lr": lr, "skipped": 1.0}
        self.bad_in_a_row = 0
        metrics = {"loss": float(total), "grad_norm": float(norm), "lr": lr, "skipped": 0.0}
        if not accept():
            self.updates += 1
            return metrics | {"stopped": 1.0}
        self._apply(lr)
        self.updates += 1
        return metrics

    def _apply(self, lr: float) -> None:
        """Adam's update with the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
            # PyTorch divides sqrt(v) by sqrt(1 - beta2^t) before it adds epsilon; epsilon divided by the same stays outside the correction.
            group["eps"] = self.adam_eps / math.sqrt(1 - group["betas"][1] ** (self.applied + 1)) if self.adam_eps_hat else self.adam_eps
        groups = [(group, p) for group in self.optimizer.param_groups for p in group["params"]]
        in_rows = [(group, p, p.grad) for group, p in groups if p.grad is not None and p.grad.is_sparse]
        for _, p, _ in in_rows:
            p.grad = None  # of which the optimizer wants nothing to know
        self.optimizer.step()
        for group, p, gradient in in_rows:
            self._apply_rows(p, gradient, group)
            p.grad = gradient
        self._round()
        self.applied += 1

    @torch.no_grad()
    def _apply_rows(self, weight: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        """The same update from a gradient given in rows, a part of the weight at a time: dense it would be as large as the weight."""
        kept, (beta1, beta2) = self._adam[weight], group["betas"]
        (reached,), values = gradient.indices(), gradient.values()
        for begin in range(0, len(weight), _ROWS):
            part = slice(begin, begin + _ROWS)
            inside = slice(*torch.searchsorted(reached, torch.tensor([part.start, part.stop])).tolist())
            dense = torch.zeros_like(weight[part]).index_copy_(0, reached[inside] - begin, values[inside])
            adamw(
                [weight[part]], [dense], [kept["exp_avg"][part]], [kept["exp_avg_sq"][part]], [], [kept["step"].clone()], fused=True,
                amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
                maximize=False,
            )  # fmt: skip
        kept["step"] += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint must have besides tensors."""
        return {"updates": self.updates, "applied": self.applied, "bad_in_a_row": self.bad_in_a_row}

    def _sum_gradients(self) -> None:
        """Over processes. A weight that nobody's share has reached keeps no gradient, as in one process."""
        if self.accelerator.num_processes == 1:
            return
        reached = torch.tensor([float(p.grad is not None) for p in self.named.values()], device=self.accelerator.device)
        for p, processes in zip(self.named.values(), sum_over_processes(self.accelerator, reached).tolist(), strict=True):
            if processes:
                # careful: every process must take part, also one whose share did not reach this weight.
                own = torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
                p.grad = sum_over_processes(self.accelerator, own)

    @torch.no_grad()
    def _round(self) -> None:
        for name in self.copied:
            self.trained[name].copy_(self.named[name])

    def weights(self) -> dict[str, Tensor]:
        """Every trained weight as the optimiser has it, in float32 where it keeps a copy, and the buffers. What is frozen is elsewhere."""
        return weights(self.bare, only=self.kept) | {name: self.named[name].detach() for name in self.copied}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``weights`` gave.

        Raises:
            RunError: the checkpoint belongs to a model of another shape.
        """
        load_weights(self.bare, tensors, only=self.kept)
        for name in self.copied:
            self.named[name].copy_(tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's two moments of every parameter that had a gradient, by its name, and how many it had where that is not ``applied``."""
        found: dict[str, Tensor] = {}
        for name, p in self.named.items():
            steps = float(self._adam[p]["step"])
            if steps:
                found |= {f"{moment}.{name}": self._adam[p][moment] for moment in MOMENTS}
                if steps != self.applied:
                    found[f"step.{name}"] = self._adam[p]["step"]
        return found

    def load_state_dict(self, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` and ``state`` gave."""
        self.updates, self.applied, self.bad_in_a_row = (int(given[name]) for name in ("updates", "applied", "bad_in_a_row"))
        for name, p in self.named.items():
            kept = self._adam[p]
            if f"exp_avg.{name}" in tensors:
                kept["step"].copy_(tensors.get(f"step.{name}", torch.tensor(float(self.applied))))
                for moment in MOMENTS:
                    kept[moment].copy_(tensors[f"{moment}.{name}"])
            else:
                for tensor in kept.values():
                    tensor.zero_()

    @property
    def _adam(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        return self.optimizer.optimizer.state if hasattr(self.optimizer, "optimizer") else self.optimizer.state


def micro_batches(
    lengths: Sequence[int], tokens: int | None, model: Policy | RewardModel | RewardEnsemble, *, networks: int = 1
) -> list[list[int]]:
    """Rows that share a forward of ``model``, of at most ``tokens`` together; None: as many as are fast on its device, and more of them
    inside ``torch.no_grad``.

    ``networks``: like it, that are held together: itself, a reference, a value network.
    """
    # On a GPU a packed batch is rows of the same width: attention.in_rows.
    batches = packed_batches if model.device.type == "cpu" and model.packs() else token_batches
    usual = sum(lengths) // max(len(lengths), 1)
    return batches(lengths, tokens or _fast_tokens(hidden_size(model.model) * model.model.dtype.itemsize, model.device, networks, usual))


def _fast_tokens(width: int, device: torch.device, networks: int, usual: int) -> int:
    """For a hidden state of so many bytes, and rows of usually so many tokens. A GPU wants long kernels. On a CPU the rest of a layer is
    worth as much as its products in a narrow model, and wants many tokens; in a wide one few are almost as fast, and take less memory
    beside its weights. Without gradient a token takes memory in one layer at a time.
    """
    if device.type != "cpu":
        return 16384
    enough = 1536 * 1280**2 // width**2
    if not torch.is_grad_enabled():
        return max(384, min(1536, 4 * enough))
    # What a token keeps weighs less where that is little, or where much else is held.
    most = 1536 if width < 1024 else {1: 896, 2: 1280}.get(networks, 1536)
    # Long rows go in pairs, or much of what is allowed would stay empty.
    return max(384, min(max(most, min(2 * usual, 1536)), enough))


def sum_over_processes(accelerator: Accelerator, x: Tensor) -> Tensor:
    """The sum of every process's ``x``, on every process."""
    return x if accelerator.num_processes == 1 else accelerator.reduce(x, reduction="sum")  # pyright: ignore[reportReturnType]


def gather_rows(accelerator: Accelerator, x: Tensor) -> Tensor:
    """Rows of all processes, those of process 0 first: the global batch in its own order when each holds ``my_rows``."""
    return x if accelerator.num_processes == 1 else accelerator.gather(x.contiguous())  # pyright: ignore[reportReturnType]


def my_rows(accelerator: Accelerator, count: int) -> slice:
    """The rows of a global batch that this process works on: contiguous, so that gathered rows come back in order."""
    if count % accelerator.num_processes:
        raise UserError(f"a batch of {count} cannot be divided among {accelerator.num_processes} processes; choose a multiple of it")
    share = count // accelerator.num_processes
    return slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under `PREFIX.NAME`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `PREFIX.NAME`, by NAME."""
    return {name.removeprefix(f"{prefix}."): tensors[name] for name in tensors if name.startswith(f"{prefix}.")}


def weights(module: nn.Module, *, only: Container[str] | None = None) -> dict[str, Tensor]:
    """Every parameter once (tied ones under one name) and every buffer that belongs to the state; or those of certain names."""
    kept = module.state_dict().keys()
    named = [*module.named_parameters(), *((n, b) for n, b in module.named_buffers() if n in kept)]
    return {name: tensor.detach() for name, tensor in named if only is None or name in only}


@torch.no_grad()
def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, only: Container[str] | None = None) -> None:
    """Put back what ``weights`` gave.

    Raises:
        RunError: the checkpoint belongs to a model of another shape.
    """
    own = weights(module, only=only)
    for name in sorted(own.keys() | tensors.keys()):
        found, expected = (tuple(side[name].shape) if name in side else None for side in (tensors, own))
        if found != expected:
            raise RunError(
                f"the checkpoint has {f'{name} of shape {found}' if found is not None else f'no {name}'} and the model "
                f"{f'one of shape {expected}' if expected is not None else 'none'}: it belongs to another model; "
                "put the run's own model back, or start a new run folder"
            )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
