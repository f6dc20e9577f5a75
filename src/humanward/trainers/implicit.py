"""The reward that is implicit in a policy: what a direct method has learned, measured like a reward model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from humanward.models import Policy
from humanward.records import Comparison
from humanward.trainers.objective import Objective, Said
from humanward.trainers.questions import collate, tokens_of
from humanward.trainers.reference import ask
from humanward.trainers.updates import micro_batches


@torch.no_grad()
def implicit_choices(
    policy: Policy, reference: Policy | None, comparisons: Sequence[Comparison], objective: Objective, *, tokens: int | None = None
) -> list[int]:
    """Which response of each question has the highest implicit reward, log(pi / rho) where the objective has a reference.

    Args:
        policy: pi.
        reference: rho; None: the mean log-probability per token is the reward.
        comparisons: questions; their labels are not read.
        objective: says how log-ratios become rewards.
        tokens: of a forward, at most; None: as many as are fast on the policy's device.
    """
    chosen = [0] * len(comparisons)
    device = policy.device
    for rows in micro_batches([tokens_of(c) for c in comparisons], tokens, device):
        questions = collate([comparisons[row] for row in rows], policy.pad_id, device)
        said = Said(ask(policy, questions).logprobs, None if reference is None else ask(reference, questions).logprobs)
        for row, best in zip(rows, objective.scores(said, questions).argmax(1).tolist(), strict=True):
            chosen[row] = best
    return chosen
