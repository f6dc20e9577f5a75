"""Which of a round's candidates are asked: all of them, or those on which the reward models of the round before disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from humanward.data.batches import epoch_order
from humanward.maths.acquisition import bald, choice_variance, draw_with_propensities, propensities
from humanward.models import members_of
from humanward.records import Comparison, Prompt, Response
from humanward.rounds.context import Context
from humanward.trainers.reward_ensemble import choice_probabilities

MEASURES: dict[str, Callable[[Any], NDArray[np.float64]]] = {"disagreement": choice_variance, "bald": bald}
"""What ``labels.choice`` may be, besides random -> how much a candidate is wanted, from each member's distribution of the choice."""


class Candidate(NamedTuple):
    """A question that could be asked."""

    prompt: Prompt
    responses: tuple[Response, ...]


def chooses(context: Context, round: int) -> bool:
    """Whether a round's questions are chosen; the first has no reward model to choose by."""
    return context.config.labels.choice != "random" and round > 1


def candidates_of_round(context: Context, round: int, questions: int) -> int:
    """Prompts that get responses so that a round can ask ``questions``: its validation questions, drawn at random, and the candidates."""
    labels = context.config.labels
    validation = int(questions * labels.validation_share)
    return validation + (questions - validation) * (labels.choice_candidates if chooses(context, round) else 1)


def choose(context: Context, round: int, candidates: Sequence[Candidate], count: int) -> list[tuple[Candidate, float]]:
    """``count`` candidates in their order, each with the probability with which it was drawn.

    Christiano et al. 2017 (arXiv:1706.03741), section 2.2.4, asks what an ensemble disagrees about most. Here a candidate is drawn with a
    probability that grows with the disagreement and is never 0, so that means over all candidates can be estimated from those asked.
    """
    if not chooses(context, round):
        return [(candidate, 1.0) for candidate in candidates]
    labels = context.config.labels
    model = context.reward_model(round - 1)
    rows = [Comparison(c.prompt, c.responses, "best_of_k", 0) for c in candidates]
    wanted = MEASURES[labels.choice](choice_probabilities(model, rows, check=context.stop.check))
    p = propensities(wanted, count, uniform_share=labels.choice_uniform_share)
    uniform = (context.seed("question choice", round) % 2**32) / 2**32
    # careful: neighbours in the order of a systematic draw exclude each other, hence a random one.
    drawn = draw_with_propensities(p, uniform, epoch_order(context.seed("question choice order", round), 0, len(candidates)))
    context.tell(
        f"sample, round {round}: {count} of {len(candidates)} candidates chosen by {labels.choice} of {len(members_of(model))} reward "
        f"models: {wanted[drawn].mean():.3g} on average, {wanted.mean():.3g} among all"
    )
    return [(candidates[i], float(p[i])) for i in drawn]
