"""Fit an ensemble of reward models, each to a draw of the labels of its own, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from humanward.data.batches import epoch_order
from humanward.errors import UserError
from humanward.models import EnsembleConfig, RewardEnsemble, RewardModel, members_of
from humanward.models.adapters import train_only
from humanward.records import Comparison
from humanward.storage import derive_seed
from humanward.trainers.label_losses import LOSSES_OF_KIND, without_labeler_noise
from humanward.trainers.questions import check_questions, collate, is_right
from humanward.trainers.reward import RewardConfig, RewardTrainer, choices, question_batches
from humanward.trainers.run import Trainer
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


def hold_out(seed: int, member: int, count: int) -> tuple[list[int], list[int]]:
    """(kept, held out) of ``count`` questions, for one member: 1/e of them by lot, as many as a bootstrap leaves out."""
    order = epoch_order(derive_seed(seed, "hold out", member), 0, count)
    left = round(count / math.e)
    return sorted(order[left:]), sorted(order[:left])


def everything(seed: int, member: int, count: int) -> tuple[list[int], list[int]]:
    """All of ``count`` questions, and none."""
    return list(range(count)), []


Draw = Callable[[int, int, int], tuple[list[int], list[int]]]
DRAWS: dict[str, Draw] = {"bootstrap": bootstrap, "hold_out": hold_out, "none": everything}
"""What ``ensemble.resample`` may be -> (what a member is fitted to, what it never sees)."""


class EnsembleTrainer(Trainer):
    """The steps of member 0, then those of member 1, ... Resumes anywhere, as every trainer.

    Args:
        ensemble: members with trunks of their own, or adapters on one.
        comparisons: labels; several labels of one question stay together in a draw. Labelers' noise, where it is estimated, is estimated
            once from all of them: a question that is drawn three times has one probability three times, not three times the votes.
        config: of each member; how labels are drawn is in its section ``ensemble``.
        reference_episodes: see ``RewardTrainer``.
        demonstrations: see ``RewardTrainer``.
        check: see ``RewardTrainer``.
    """

    def __init__(
        self, ensemble: RewardEnsemble, comparisons: Sequence[Comparison], config: RewardConfig, *,
        reference_episodes: Episodes | None = None, demonstrations: Episodes | None = None, seed: int = 0,
        accelerator: Accelerator | None = None, check: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        if not comparisons:
            raise UserError("no labels to fit a reward model to; ask for labels first")
        check_questions(comparisons, ensemble.model, tuple(LOSSES_OF_KIND))
        self.ensemble, self.comparisons = ensemble, list(comparisons)
        groups: dict[str, list[Comparison]] = {}
        for number, comparison in enumerate(comparisons):
            groups.setdefault(comparison.question_id or f"number {number}", []).append(comparison)
        self.questions = list(groups.values())
        fitted = self.questions
        if config.label_noise == "estimated":
            fitted = [[question] for question in without_labeler_noise(comparisons)]
            config = config.model_copy(update={"label_noise": 0.0})
        self.held_out: list[list[Comparison]] = []
        self.trainers: list[RewardTrainer] = []
        draw = DRAWS[(config.ensemble or EnsembleConfig()).resample]
        for number, member in enumerate(ensemble.members):
            assert isinstance(member, RewardModel)
            drawn, left = draw(seed, number, len(self.questions))
            self.held_out.append([c for i in left for c in self.questions[i]])
            activate(member)  # the optimiser takes what has gradients
            self.trainers.append(
                RewardTrainer(
                    member, [c for i in drawn for c in fitted[i]], config, reference_episodes=reference_episodes,
                    demonstrations=demonstrations, seed=derive_seed(seed, "member", number), accelerator=accelerator, check=check,
                )
            )  # fmt: skip
        self.updater = self.trainers[0].updater
        """Of the member whose turn it is."""
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
        self.updater = trainer.updater
        return {**trainer.step(index - (self.ends[number] - trainer.total_steps)), "member": float(number)}

    def held_out_accuracy(self, *, batch_size: int = 64, check: Callable[[], None] | None = None) -> list[tuple[int, int]]:
        """(right, counted) of each member on the questions that its resample left out; ties are not counted."""
        found: list[tuple[int, int]] = []
        for trainer, left in zip(self.trainers, self.held_out, strict=True):
            picked = choices(trainer.reward_model, left, batch_size=batch_size, check=check)
            marks = [mark for c, k in zip(left, picked, strict=True) if (mark := is_right(c, k)) is not None]
            found.append((sum(marks), len(marks)))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Of every member; a trunk that they share is frozen and in none."""
        found: dict[str, Tensor] = {}
        for number, trainer in enumerate(self.trainers):
            found |= with_prefix(f"member-{number}", trainer.tensors())
        return found

    def state(self) -> dict[str, Any]:
        return {"members": [trainer.state() for trainer in self.trainers]}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for number, trainer in enumerate(self.trainers):
            trainer.load(without_prefix(f"member-{number}", tensors), state["members"][number])

    def _each(self, work: Callable[[RewardTrainer], None]) -> None:
        for trainer in self.trainers:
            activate(trainer.reward_model)
            work(trainer)


def activate(member: RewardModel) -> None:
    """Of the adapters on a shared trunk, only this member's is trained."""
    if member.adapter is not None:
        train_only(member.model, member.adapter)


@torch.no_grad()
def choice_probabilities(
    model: RewardModel | RewardEnsemble, comparisons: Sequence[Comparison], *, batch_size: int = 64, check: Callable[[], None] | None = None
) -> NDArray[np.float64]:
    """[M, N, K]: how likely each member thinks each response is to be chosen; what ``maths.acquisition`` reads. A reward model is one.

    On the scale on which the scores were fitted: the normalisation behind the fit changes scores, not what the labels were explained by.
    """
    model.eval()
    members = members_of(model)
    found = np.zeros((len(members), len(comparisons), len(comparisons[0].responses) if comparisons else 0))
    for rows in question_batches(model, comparisons, batch_size, check):
        q = collate([comparisons[i] for i in rows], model.pad_id, model.device)
        for number, member in enumerate(members):
            scores = member.choice_scale * member(q.prompts, q.prompt_mask, q.responses, q.response_mask)
            found[number, rows] = scores.double().softmax(-1).cpu().numpy()
    return found
