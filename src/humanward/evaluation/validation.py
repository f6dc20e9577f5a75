"""What reward models said of labels that they had not seen: accuracy by group, calibration, how far the members of an ensemble differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from humanward.evaluation.reward_models import accuracy_by, calibration, concordance, confidence_group, policy_pair
from humanward.evaluation.win_rates import mean_with_interval
from humanward.maths.acquisition import choice_variance

Prediction = Mapping[str, Any]
"""A row per label: ``question``, ``labeler``, ``round``, ``confidence``, ``batch`` (None where it has none), ``right`` (None where the
label prefers nothing), ``best`` (the responses that it prefers), ``target`` (what it says of each response, larger is better), ``sources``
(who wrote each), ``scores`` of the responses, and ``members``: each member's probabilities of the choice."""


def validation_report(rows: Sequence[Prediction], *, seed: int = 0) -> dict[str, Any]:
    """All that labels which a reward model was not fitted to tell of it.

    Args:
        rows: of labels with equal numbers of responses; each round's are predicted by the round's own reward model.
        seed: of the bootstraps.

    Returns:
        ``labels`` and ``questions``; ``by``: rows of ``accuracy_by`` under ``round``, ``labeler``, ``confidence``, ``batch`` where
        labels have one, and ``policies``, which is counted over the pairs that a label orders; ``calibration`` of the members' mean belief,
        None where no label prefers one response; ``members`` where there are several: ``accuracy`` of each alone, and ``disagreement``, the
        mean of their choice variance; ``concordance`` where responses were judged alone.
    """
    right = [row["right"] for row in rows]
    pairs = [pair for row in rows for pair in _ordered_pairs(row)]
    found: dict[str, Any] = {
        "labels": len(rows),
        "questions": len({row["question"] for row in rows}),
        "by": {
            "round": accuracy_by(right, [row["round"] for row in rows]),
            "labeler": accuracy_by(right, [row["labeler"] for row in rows]),
            "confidence": accuracy_by(right, [confidence_group(row["confidence"]) for row in rows]),
            "policies": accuracy_by([correct for _, correct in pairs], [group for group, _ in pairs]),
        },
        "calibration": None,
    }
    batches = [row.get("batch") for row in rows]
    if any(batches):
        found["by"]["batch"] = accuracy_by(right, [batch or "not given" for batch in batches])
    choices = [row for row in rows if len(row["best"]) == 1 and len(row["scores"]) > 1]
    if choices:
        belief = np.mean([row["members"] for row in choices], axis=1)
        floor = np.finfo(float).tiny  # a probability that was too small for a float
        found["calibration"] = calibration(np.log(np.maximum(belief, floor)).tolist(), [row["best"][0] for row in choices], seed=seed)
    if choices and len(choices[0]["members"]) > 1:
        found["members"] = _members(choices, seed)
    alone = [row for row in rows if len(row["scores"]) == 1]
    if alone:
        found["concordance"] = concordance([row["scores"][0] for row in alone], [row["target"][0] for row in alone], seed=seed)
    return found


def _members(rows: Sequence[Prediction], seed: int) -> dict[str, Any]:
    members = np.asarray([row["members"] for row in rows]).swapaxes(0, 1)  # [M, N, K]
    best = [row["best"][0] for row in rows]
    alone = [accuracy_by((member.argmax(1) == best).tolist(), [number] * len(best))[0] for number, member in enumerate(members, start=1)]
    questions = [row["question"] for row in rows]
    return {"accuracy": alone, "disagreement": mean_with_interval(choice_variance(members).tolist(), seed=seed, clusters=questions)}


def _ordered_pairs(row: Prediction) -> Iterator[tuple[str, bool]]:
    """(who wrote them, whether the scores order them so) of every pair of responses that the label orders."""
    target, scores, sources = row["target"], row["scores"], row["sources"]
    for better, value in enumerate(target):
        for worse, other in enumerate(target):
            if value > other:
                yield policy_pair([sources[better], sources[worse]]), scores[better] > scores[worse]
