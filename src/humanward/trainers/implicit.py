"""The reward that is implicit in a policy: what a direct method has learned, measured like a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from humanward.models import Policy
from humanward.models.policy import evaluating
from humanward.records import Comparison
from humanward.trainers.objective import Objective, Said
from humanward.trainers.questions import agreement_marks, collate, tokens_of
from humanward.trainers.reference import ask
from humanward.trainers.updates import micro_batches


@torch.no_grad()
def implicit_rewards(
    policy: Policy, reference: Policy | None, comparisons: Sequence[Comparison], objective: Objective, *, tokens: int | None = None,
    check: Callable[[], None] | None = None,
) -> list[list[float]]:  # fmt: skip
    """Of each response of each question in units of beta: log(pi / rho), as the objective's divergence turns it into a reward.

    Dropout is off meanwhile.

    Args:
        policy: pi.
        reference: rho; None: the mean log-probability per token is the reward.
        comparisons: questions; their labels are not read.
        objective: says how log-ratios become rewards.
        tokens: of a forward, at most; None: as many as are fast on the policy's device.
        check: called before each forward; may raise to stop.
    """
    rewards: list[list[float]] = [[] for _ in comparisons]
    device = policy.device
    with evaluating(policy):
        for rows in micro_batches([tokens_of(c) for c in comparisons], tokens, policy):
            if check is not None:
                check()
            questions = collate([comparisons[row] for row in rows], policy.pad_id, device)
            said = Said(ask(policy, questions).logprobs, None if reference is None else ask(reference, questions).logprobs)
            for row, values in zip(rows, objective.scores(said, questions).tolist(), strict=True):
                rewards[row] = values
    return rewards


def implicit_choices(
    policy: Policy, reference: Policy | None, comparisons: Sequence[Comparison], objective: Objective, *,
    check: Callable[[], None] | None = None,
) -> list[int]:  # fmt: skip
    """Which response of each question has the highest implicit reward."""
    return [values.index(max(values)) for values in implicit_rewards(policy, reference, comparisons, objective, check=check)]


def implicit_agreements(policy: Policy, reference: Policy | None, comparisons: Sequence[Comparison], objective: Objective) -> list[bool]:
    """Whether the implicit reward prefers what the labels prefer, a mark for each that prefers something; chance is 1 / K."""
    return agreement_marks(comparisons, implicit_rewards(policy, reference, comparisons, objective))
