"""Fit an ensemble of reward models, each to a bootstrap resample of the labels, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from humanward.errors import UserError
from humanward.models import RewardEnsemble, RewardModel
from humanward.models.reward_ensemble import LoraMember
from humanward.records import Comparison
from humanward.storage import derive_seed
from humanward.trainers.questions import is_right
from humanward.trainers.reward import RewardConfig, RewardTrainer, choices
from humanward.trainers.scoring import Episodes
from humanward.trainers.updates import with_prefix, without_prefix


def bootstrap(seed: int, member: int, count: int) -> tuple[list[int], list[int]]:
    """(drawn with replacement, as many as there are; never drawn) of ``count`` questions, for one member.

    Christiano et al. 2017 (arXiv:1706.03741), section 2.2.3: each predictor has a resample of its own, and about 1/e of the data, which it
    never saw, to be validated on.
    """
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", member))
    drawn = rng.integers(count, size=count).tolist()
    return drawn, sorted(set(range(count)) - set(drawn))


class EnsembleTrainer:
    """The steps of member 0, then those of member 1, ... Resumes anywhere, as every trainer.

    Args:
        ensemble: members with trunks of their own, or adapters on one.
        comparisons: labels; several labels of one question stay together in a resample.
        config: of each member.
        reference_episodes: see ``RewardTrainer``.
        demonstrations: see ``RewardTrainer``.
        resample: give each member a bootstrap resample; False: all labels, so that members differ by their heads and orders alone.
    """

    def __init__(
        self, ensemble: RewardEnsemble, comparisons: Sequence[Comparison], config: RewardConfig, *,
        reference_episodes: Episodes | None = None, demonstrations: Episodes | None = None, seed: int = 0,
        accelerator: Accelerator | None = None, resample: bool = True,
    ) -> None:  # fmt: skip
        if not comparisons:
            raise UserError("no labels to fit a reward model to; ask for labels first")
        self.ensemble, self.comparisons = ensemble, list(comparisons)
        groups: dict[str, list[Comparison]] = {}
        for number, comparison in enumerate(comparisons):
            groups.setdefault(comparison.question_id or f"number {number}", []).append(comparison)
        self.questions = list(groups.values())
        self.held_out: list[list[Comparison]] = []
        self.trainers: list[RewardTrainer] = []
        for number, member in enumerate(ensemble.members):
            assert isinstance(member, RewardModel)
            everything = list(range(len(self.questions)))
            drawn, left = bootstrap(seed, number, len(self.questions)) if resample else (everything, [])
            self.held_out.append([c for i in left for c in self.questions[i]])
            activate(member)  # the optimiser takes what has gradients
            self.trainers.append(
                RewardTrainer(
                    member, [c for i in drawn for c in self.questions[i]], config, reference_episodes=reference_episodes,
                    demonstrations=demonstrations, seed=derive_seed(seed, "member", number), accelerator=accelerator,
                )
            )  # fmt: skip
        self.ends = np.cumsum([trainer.total_steps for trainer in self.trainers]).tolist()
        self.total_steps: int = self.ends[-1]

    def start(self) -> None:
        """Of every member."""
        self._each(lambda trainer: trainer.start())

    def finish(self) -> None:
        """Of every member: each has the same mean and deviation on responses of the reference, so that none outweighs another."""
        self._each(lambda trainer: trainer.finish())

    def step(self, index: int) -> dict[str, float]:
        """One update of one member."""
        number = next(i for i, end in enumerate(self.ends) if index < end)
        trainer = self.trainers[number]
        activate(trainer.reward_model)
        return {**trainer.step(index - (self.ends[number] - trainer.total_steps)), "member": float(number)}

    def held_out_accuracy(self, *, batch_size: int = 64) -> list[tuple[int, int]]:
        """(right, counted) of each member on the questions that its resample left out; ties are not counted."""
        found: list[tuple[int, int]] = []
        for trainer, left in zip(self.trainers, self.held_out, strict=True):
            picked = choices(trainer.reward_model, left, batch_size=batch_size)
            marks = [mark for c, k in zip(left, picked, strict=True) if (mark := is_right(c, k)) is not None]
            found.append((sum(marks), len(marks)))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Of every member; what members share is there once."""
        found: dict[str, Tensor] = {}
        for number, trainer in enumerate(self.trainers):
            own = trainer.tensors()
            if isinstance(trainer.reward_model, LoraMember):
                own = {name: t for name, t in own.items() if belongs(name, trainer.reward_model)}
            found |= with_prefix(f"member-{number}", own)
        return found

    def state(self) -> dict[str, Any]:
        return {"members": [trainer.state() for trainer in self.trainers]}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for number, trainer in enumerate(self.trainers):
            own = without_prefix(f"member-{number}", tensors)
            if isinstance(trainer.reward_model, LoraMember):
                own = {name: t.clone() for name, t in trainer.tensors().items() if not belongs(name, trainer.reward_model)} | own
            trainer.load(own, state["members"][number])

    def _each(self, work: Callable[[RewardTrainer], None]) -> None:
        for trainer in self.trainers:
            activate(trainer.reward_model)
            work(trainer)


def activate(member: RewardModel) -> None:
    """Only this member's adapter computes and has gradients."""
    if isinstance(member, LoraMember):
        member.activate()


def belongs(name: str, member: LoraMember) -> bool:
    """Whether a tensor is the member's own: its adapter, its head, its optimiser state; not the trunk, not another's adapter."""
    if name.startswith("optimizer."):
        return True
    bare = name.removeprefix("reward_model.")
    return not bare.startswith("model.") or f".{member.adapter}." in bare


@torch.no_grad()
def choice_probabilities(ensemble: RewardEnsemble, comparisons: Sequence[Comparison], *, batch_size: int = 64) -> np.ndarray[Any, Any]:
    """[M, N, K]: how likely each member thinks each response is to be chosen; what ``maths.acquisition`` reads."""
    from humanward.trainers.questions import collate

    ensemble.eval()
    found: list[Tensor] = []
    for start in range(0, len(comparisons), batch_size):
        q = collate(comparisons[start : start + batch_size], ensemble.pad_id, ensemble.device)
        scores = ensemble.member_scores(q.prompts, q.prompt_mask, q.responses, q.response_mask)
        found.append(scores.double().softmax(-1).cpu())
    return torch.cat(found, dim=1).numpy()
