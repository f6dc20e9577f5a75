"""What is measured of a round's reward model: labels that it has not seen, calibration, probes, how far an ensemble's members differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from humanward.data.batches import epoch_order
from humanward.evaluation.reward_models import accuracy_by, probes
from humanward.evaluation.validation import validation_report
from humanward.evaluation.win_rates import accuracy_row, mean_with_interval
from humanward.models import RewardEnsemble, RewardModel
from humanward.records import Comparison, Prompt, Response, read_jsonl
from humanward.rounds.context import Context
from humanward.rounds.frozen import VALIDATION, chosen_responses, frozen_labels
from humanward.storage import read_json
from humanward.trainers import TextReward
from humanward.trainers.questions import best_responses, collate, is_right, target_of
from humanward.trainers.reward import scores_of
from humanward.trainers.reward_ensemble import choice_probabilities

PREDICTIONS = "predictions.jsonl"
"""A row for each validation label, beside the reward model's weights."""
MEASURED = "measured.json"
"""What all rounds so far say; parts of results.json, and of the report of a run that is not finished."""
ROWS = 256
PROBED = 200
"""Liked responses that the probes spoil: an interval of 7 points either way."""


def predictions(context: Context, model: RewardModel | RewardEnsemble, labels: Sequence[Comparison], round: int) -> list[dict[str, Any]]:
    """What a reward model says of labels that it was not fitted to: a row for each, which ``evaluation.validation`` reads."""
    if not labels:
        return []
    size = context.config.reward.validation_batch_size or 64
    scores = scores_of(model, labels, batch_size=size, check=context.stop.check)
    members = choice_probabilities(model, labels, batch_size=size, check=context.stop.check)
    confidences = {(label.question_id, label.labeler): label.confidence for label in frozen_labels(context, round).labels}
    rows: list[dict[str, Any]] = []
    for number, c in enumerate(labels):
        sign = -1.0 if c.kind == "ranking" else 1.0
        rows.append(
            {
                "question": c.question_id, "labeler": c.labeler, "round": round, "confidence": confidences.get((c.question_id, c.labeler)),
                "right": is_right(c, scores[number].index(max(scores[number]))), "best": best_responses(c),
                "target": [sign * value for value in target_of(c, len(c.responses))], "sources": [writer_of(r) for r in c.responses],
                "batch": c.prompt.metadata.get("batch"), "scores": scores[number], "members": members[:, number].tolist(),
            }
        )  # fmt: skip
    return rows


def writer_of(response: Response) -> str:
    """Whose response it is: of one out of a file the policy that the file names."""
    return response.policy or response.source if response.source == "file" else response.source


def measured(
    context: Context, model: RewardModel | RewardEnsemble, rows: Sequence[dict[str, Any]], right: Sequence[bool], round: int
) -> dict[str, Any]:
    """``reward_model`` and ``reward_validation`` of this round and those before, and ``reward_probes`` of its model.

    Args:
        context: the run.
        model: what the round fitted.
        rows: its predictions of the round's validation labels.
        right: whether it agrees with those that prefer something.
        round: the last one so far.
    """
    found: dict[str, Any] = {"reward_model": []}
    if round > 1:
        found["reward_model"] = read_json(context.path / f"rounds/{round - 1}/reward" / MEASURED)["reward_model"]
    if right:
        K = max(len(rows[0]["scores"]), 2)
        found["reward_model"].append(accuracy_row(right, round_number=round, responses_per_question=K))
    paths = [context.path / f"rounds/{number}/reward" / PREDICTIONS for number in range(1, round)]
    everything = [*(row for path in paths for _, row in read_jsonl(path)), *rows]
    if everything:
        found["reward_validation"] = validation_report(everything, seed=context.seed("bootstrap"))
    liked = liked_responses(context, round)
    if liked:
        scorer = TextReward(model.eval(), context.task)
        found["reward_probes"] = dict(probes(scorer, [p for p, _ in liked], [r for _, r in liked], seed=context.seed("bootstrap")))
    return found


def liked_responses(context: Context, round: int) -> list[tuple[str, str]]:
    """(prompt, response) texts of what the labels put first, ``PROBED`` at most, by lot."""
    labels = frozen_labels(context, round).comparisons()
    unique = list(dict.fromkeys((prompt.text, response.text) for prompt, response in chosen_responses(labels) if response.text.strip()))
    order = epoch_order(context.seed("probed responses", round), 0, len(unique))
    return [unique[i] for i in order[:PROBED]]


def reward_checks(context: Context, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[tuple[int, ...]]]) -> dict[str, Any]:
    """``reward_model``, ``reward_validation``, ``reward_probes`` and, of an ensemble, ``reward_members`` of results.json.

    Args:
        context: of a run whose rounds fitted reward models.
        prompts: fresh ones.
        answers: the tokens of each policy's response to them.
    """
    last = context.path / f"rounds/{context.config.labels.rounds}/reward"
    found: dict[str, Any] = read_json(last / MEASURED)
    model = context.reward_model(context.config.labels.rounds).eval()
    if isinstance(model, RewardEnsemble):
        found["reward_members"] = members(context, model, prompts, answers, read_json(last / VALIDATION))
    return found


def members(
    context: Context, model: RewardEnsemble, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[tuple[int, ...]]],
    validation: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """How far the members of the last ensemble differ about each policy's responses: a policy that has gone where they have seen nothing
    is scored by guesses.
    """
    deviation: dict[str, Any] = {}
    for name, tokens in answers.items():
        rows = [Comparison(p, (Response("", t),), "best_of_k", 0) for p, t in zip(prompts, tokens, strict=True)]
        deviation[name] = mean_with_interval(deviations(model, rows), seed=context.seed("bootstrap"))
    held_out = [
        accuracy_by([i < row["correct"] for i in range(row["questions"])], [number] * row["questions"])
        for number, row in enumerate(validation.get("held_out", []), start=1)
    ]
    return {
        "members": len(model.members), "combine": model.combine, "penalty": model.penalty, "deviation": deviation,
        "held_out": [row for rows in held_out for row in rows],
    }  # fmt: skip


@torch.no_grad()
def deviations(model: RewardEnsemble, rows: Sequence[Comparison]) -> list[float]:
    """The standard deviation over members of the score of each row's first response."""
    found: list[float] = []
    for start in range(0, len(rows), ROWS):
        q = collate(rows[start : start + ROWS], model.pad_id, model.device)
        found += model.member_scores(q.prompts, q.prompt_mask, q.responses, q.response_mask)[:, :, 0].std(0, correction=0).tolist()
    return found
