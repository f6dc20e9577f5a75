"""Every kind of label goes once around the loop: asked, answered, fitted, measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from humanward.errors import UserError
from humanward.feedback import Snapshot
from humanward.records import Comparison, Prompt, Question, Response
from humanward.rounds import Loop, LoopConfig
from humanward.rounds.stages import chosen_responses

SHOWN = {"pair": 2, "ranking": 3, "soft": 3, "rating": 1, "difference": 2}
SCORE = """
def goods(prompts, responses):
    return [response.split().count("good") - 1.0 for response in responses]
"""


@pytest.mark.parametrize(("kind", "K"), SHOWN.items())
def test_a_run_with_this_kind_of_label_learns_from_it(kind: str, K: int, loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCORE)
    values = loop.config.model_dump(exclude_unset=True)
    values |= {"labeler": f"score:python:{tmp_path}/score.py:goods", "baseline_sft": {"batch_size": 8, "lr": 1e-4}}
    values["labels"] |= {"initial": 96, "total": 96, "rounds": 1, "kind": kind, "responses_per_question": K}
    values["reward"] |= {"lr": 5e-3, "epochs": 4}
    values["ppo"] |= {"episodes": 32}
    values["evaluation"] |= {"questions": 64}
    Loop(tmp_path / "run", LoopConfig.model_validate(values)).run()

    snapshot = Snapshot.load(tmp_path / "run/rounds/1/labels/snapshot.jsonl")
    assert {(q.kind, len(q.responses)) for q in snapshot.questions} == {(kind, K)}
    validation = [q for q in snapshot.questions if q.split == "validation"]
    sources = [r.source for q in validation for r in q.responses]
    assert sources.count("reference") == (K // 2 or 0.5) * len(validation)
    measured = json.loads((tmp_path / "run/rounds/1/reward/validation.json").read_text())
    assert 0 < measured["questions"] <= len(snapshot.labels)
    results = json.loads((tmp_path / "run/evaluation/results.json").read_text())
    row = results["reward_model"][0]
    assert row["chance"] == 1 / max(K, 2)
    assert row["accuracy"] > row["chance"]


def test_ratings_above_their_mean_are_what_the_baseline_imitates() -> None:
    def rated(text: str, rating: float) -> Comparison:
        return Comparison(Prompt("p", "a prompt", (1,)), (Response(text, (2,)),), "rating", rating)

    found = chosen_responses([rated("low", 3.0), rated("mean", 5.0), rated("high", 7.0)])
    assert [response.text for _, response in found] == ["high"]


@pytest.mark.parametrize(
    ("kind", "K", "message"),
    [
        ("rating", 2, "kind rating shows 1 response, not 2; set responses_per_question to 1"),
        ("difference", 3, "kind difference shows 2 responses, not 3; set responses_per_question to 2"),
        ("ranking", 1, "kind ranking compares responses, and there is one; set responses_per_question to 2 or more"),
    ],
)
def test_a_kind_says_how_many_responses_it_shows(kind: str, K: int, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"labels:\n  kind: {kind}\n  responses_per_question: {K}\n")
    with pytest.raises(UserError, match=message):
        LoopConfig.load(file)


def test_a_direct_method_has_no_use_for_ratings(loop: Loop) -> None:
    values = {"method": "dpo", "model": "m", "labels": {"kind": "rating", "responses_per_question": 1}}
    with pytest.raises(ValueError, match=r"method dpo learns nothing from labels.kind rating; choose best_of_k, pair, .* or method ppo"):
        LoopConfig.model_validate(values)


def test_the_first_questions_may_be_answered_at_a_temperature_of_their_own(loop: Loop, tmp_path: Path) -> None:
    values = loop.config.model_dump(exclude_unset=True)
    values |= {"labeler": "score:positive", "baseline_sft": None}
    values["labels"] |= {"initial": 48, "total": 96, "rounds": 2, "initial_temperature": 3.0}
    values["ppo"] |= {"episodes": 32}
    Loop(tmp_path / "run", LoopConfig.model_validate(values)).run()

    snapshot = Snapshot.load(tmp_path / "run/rounds/2/labels/snapshot.jsonl")
    used = {q.round: {r.sampling["temperature"] for r in q.responses} for q in snapshot.questions if q.round > 0}
    assert used == {1: {3.0}, 2: {loop.config.task.temperature}}
    before = Snapshot.load(loop.context.path / "rounds/1/labels/snapshot.jsonl")
    assert different(q for q in snapshot.questions if q.round == 1) > different(before.questions)


def different(questions: Iterable[Question]) -> float:
    """Share of the responses that no other one equals."""
    found = [response.tokens for question in questions for response in question.responses]
    return len(set(found)) / len(found)
