"""The labels that a round froze: what is trained on, what is held out, and how often a model agrees with what was held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from humanward.feedback import Snapshot
from humanward.records import Comparison, Prompt, Response
from humanward.rounds.context import Context
from humanward.storage import write_json
from humanward.trainers.questions import best_responses

VALIDATION = "validation.json"
"""How often the model of a round was right, beside its weights."""


def frozen_labels(context: Context, round: int) -> Snapshot:
    """All labels that there were when the round's were collected."""
    return Snapshot.load(context.path / f"rounds/{round}/labels/snapshot.jsonl")


def comparisons(context: Context, round: int, *, only_new: bool = False) -> tuple[list[Comparison], list[Comparison]]:
    """(training, validation) of a round: a round's own validation questions are held out, those of earlier rounds are trained on, unless
    it is to have ``only_new`` ones.
    """
    snapshot = frozen_labels(context, round)
    held_out = {q.id for q in snapshot.questions if q.split == "validation" and q.round == round}
    earlier = {q.id for q in snapshot.questions if only_new and q.round < round}
    both: tuple[list[Comparison], list[Comparison]] = ([], [])
    for comparison in snapshot.comparisons():
        if comparison.question_id in earlier:
            continue
        both[comparison.question_id in held_out].append(context.task.tokenized(comparison))
    return both


def chosen_responses(labels: Sequence[Comparison]) -> list[tuple[Prompt, Response]]:
    """What the labels put first, with its prompt; of ratings, what lies above their mean; of what was liked or not, what was liked."""
    if labels[0].kind in ("rating", "binary"):
        ratings = [float(c.target) for c in labels]  # pyright: ignore[reportArgumentType]
        middle = sum(ratings) / len(ratings) if labels[0].kind == "rating" else 0.5
        return [(c.prompt, c.responses[0]) for c, rating in zip(labels, ratings, strict=True) if rating > middle]
    return [(c.prompt, c.responses[best[0]]) for c in labels if len(best := best_responses(c)) == 1]


def write_accuracy(
    output: Path, round: int, right: Sequence[bool], validation: Sequence[Comparison], labels: int, **more: Any
) -> None:  # fmt: skip
    """Into validation.json: how often a model prefers what the labelers do, on questions that nothing was trained on."""
    compared = max(len(validation[0].responses), 2) if validation else 0  # what was judged alone is compared two by two
    counts = {"questions": len(right), "correct": sum(right), "responses_per_question": compared, "labels": labels}
    write_json(output / VALIDATION, {"round": round, **counts, **more})
