"""What a round asks, whom, and what its reward model is made from (Ziegler et al. 2019, section 2.3 and the appendix on labels)."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from humanward.feedback import Snapshot, Store
from humanward.models import RewardModel
from humanward.records import Question, read_jsonl
from humanward.rounds import Loop, frozen, reward_fitting, stages

INITIAL, SECOND = 40, 12
"""56 - (56 - 40) * (1 - 1/2)^2 = 52 labels are due at half of PPO."""


def questions(loop: Loop, number: int) -> list[Question]:
    path = loop.folder.path / f"rounds/{number}/questions/questions.jsonl"
    return [Question.from_json(row, f"{path}:{line}") for line, row in read_jsonl(path)]


def snapshot(loop: Loop, number: int) -> Snapshot:
    return Snapshot.load(loop.folder.path / f"rounds/{number}/labels/snapshot.jsonl")


def test_each_round_asks_what_the_label_schedule_wants(loop: Loop) -> None:
    assert [len(questions(loop, number)) for number in (1, 2)] == [INITIAL, SECOND]
    assert not {q.prompt.tokens for q in questions(loop, 1)} & {q.prompt.tokens for q in questions(loop, 2)}


def test_a_share_of_the_questions_is_answered_by_several_labelers(loop: Loop) -> None:
    for number, asked in ((1, INITIAL), (2, SECOND)):
        overlapping = [q for q in questions(loop, number) if q.overlap > 1]
        assert [q.overlap for q in overlapping] == [3] * int(0.1 * asked)
        answered = {q.id: [label.labeler for label in snapshot(loop, 2).labels if label.question_id == q.id] for q in overlapping}
        assert all(sorted(names) == ["labeler-0", "labeler-1", "labeler-2"] for names in answered.values())


def test_half_the_responses_of_validation_questions_come_from_the_reference(loop: Loop) -> None:
    for number, asked in ((1, INITIAL), (2, SECOND)):
        validation = [q for q in questions(loop, number) if q.split == "validation"]
        assert len(validation) == int(0.25 * asked)
        for question in validation:
            assert Counter(r.source for r in question.responses) == {"policy": 2, "reference": 2}


def test_all_responses_of_other_questions_come_from_the_current_policy(loop: Loop) -> None:
    policies = []
    for number in (1, 2):
        training = [q for q in questions(loop, number) if q.split == "train"]
        assert {r.source for q in training for r in q.responses} == {"policy"}
        policies.append({r.policy for q in training for r in q.responses})
    assert [len(p) for p in policies] == [1, 1]
    assert policies[0] != policies[1], "the second round must ask about the tuned policy"


def test_a_round_trains_on_the_validation_questions_of_earlier_rounds(loop: Loop) -> None:
    for number, own, labels in ((1, 10, 38), (2, 3, 59)):
        training, validation = frozen.comparisons(loop.context, number)
        assert len({c.question_id for c in validation}) == own
        # 0.1 * 40 = 4 questions of the first round and 1 of the second have three answers instead of one.
        assert len(training) == labels
        held_out = {q.id for q in questions(loop, number) if q.split == "validation"}
        assert {c.question_id for c in validation} == held_out
        assert not {c.question_id for c in training} & held_out


def test_each_reward_model_begins_from_the_reference(loop: Loop) -> None:
    reference = loop.context.policy(loop.config.model).model
    first, second = (reward_fitting.new_reward_model(loop.context, number) for number in (1, 2))
    assert not torch.equal(first.score_head.weight, second.score_head.weight)
    for new in (first, second):
        assert all(torch.equal(new.model.state_dict()[name], tensor) for name, tensor in reference.state_dict().items())
    fitted = RewardModel.load(loop.folder.path / "rounds/1/reward")
    assert not torch.equal(fitted.score_head.weight, second.score_head.weight)


def test_the_random_head_is_as_large_as_the_setting_says(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    full = reward_fitting.new_reward_model(loop.context, 1)
    reward = loop.config.reward.model_copy(update={"head_scale": 0.25})
    monkeypatch.setattr(loop.context, "config", loop.config.model_copy(update={"reward": reward}))
    torch.testing.assert_close(reward_fitting.new_reward_model(loop.context, 1).score_head.weight, 0.25 * full.score_head.weight)


def test_the_reward_model_of_a_round_has_seen_all_labels_so_far(loop: Loop) -> None:
    written = [json.loads((loop.folder.path / f"rounds/{n}/reward/validation.json").read_text()) for n in (1, 2)]
    assert [row["labels"] for row in written] == [38, 59]
    assert [row["questions"] for row in written] == [10, 3]


def test_ppo_goes_on_where_the_round_before_stopped(loop: Loop) -> None:
    rows = [row for row in loop.context.log.read() if row["stage"] == "ppo"]
    assert [(row["round"], row["step"]) for row in rows] == [(1, 0), (1, 1), (2, 2), (2, 3)]
    assert [row["episodes"] for row in rows] == [16, 32, 48, 64]


def test_only_so_many_questions_are_outstanding(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = stages.answer_questions

    def counted(store: Store, *arguments: Any) -> None:
        counts = store.counts()
        seen.append((counts.questions, counts.labels))
        real(store, *arguments)

    monkeypatch.setattr(stages, "answer_questions", counted)
    monkeypatch.setattr(loop.context, "store", Store(tmp_path / "labels.db"))
    (tmp_path / "out").mkdir()
    stages.collect(loop.context, 1, tmp_path / "out")
    assert seen == [(16, 0), (32, 16), (40, 32)], "the next 16 wait until the first are answered"


def test_the_order_in_which_labels_arrive_changes_no_byte_of_the_reward_model(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 orders, with other ids, times and seconds; the reward model is all that the rest of a round sees of its labels."""
    source, copy = loop.folder.path, tmp_path / "run"
    shutil.copytree(source, copy)
    context = Loop(copy, labelers=loop.context.labelers).context
    given = snapshot(loop, 1)
    monkeypatch.setattr(reward_fitting, "measured", lambda *_: {})  # it follows from predictions.jsonl, with many resamplings
    files = ("model.safetensors", "score_head.safetensors", "validation.json", "predictions.jsonl")

    def fitted(run: Path) -> list[bytes]:
        return [(run / "rounds/1/reward" / name).read_bytes() for name in files]

    arrivals = set()
    for number in range(20):
        lots = random.Random(number)
        store = Store.in_memory(clock=lambda lots=lots: lots.uniform(0, 2e9))
        store.add_questions(lots.sample(given.questions, len(given.questions)))
        for label in lots.sample(given.labels, len(given.labels)):
            store.record(label.labeler, label.question_id, label.answer, f"{lots.random()}", seconds=lots.uniform(1, 60))
        arrivals.add(tuple(label.question_id for label in store.labels()))
        store.snapshot(1).save(copy / "rounds/1/labels/snapshot.jsonl")
        store.close()
        shutil.rmtree(copy / "rounds/1/reward")
        reward_fitting.fit_reward(context, 1, copy / "rounds/1/reward")
        shutil.rmtree(copy / "checkpoints/reward-1")
        assert fitted(copy) == fitted(source)
    assert len(arrivals) == 20
