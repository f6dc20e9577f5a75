"""Ensembles in the loop: they choose the next questions, reward PPO, are measured, and a killed run ends as an undisturbed one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from humanward.data.formats import LabelFile, write_labels
from humanward.errors import UserError
from humanward.feedback import Snapshot, Store
from humanward.maths.acquisition import choice_variance, propensities
from humanward.models import RewardEnsemble
from humanward.records import Comparison, Question, read_jsonl
from humanward.report import build_report, summary
from humanward.rounds import Loop, LoopConfig, choosing
from humanward.rounds.context import Context
from humanward.rounds.reward_fitting import reward_trainer, written_responses
from humanward.storage import Stopped
from humanward.trainers import EnsembleTrainer
from humanward.trainers.reward_ensemble import choice_probabilities

from .conftest import Counter, settings

KINDS = ["full", "lora"]
CHOSEN, CANDIDATES, VALIDATION = 9, 27, 3
"""Of the 12 questions of the second round a quarter is drawn at random, the others from three candidates each."""


def changed(config: LoopConfig, **sections: Mapping[str, Any]) -> LoopConfig:
    values = config.model_dump(exclude_unset=True)
    return LoopConfig.model_validate(values | {name: values.get(name, {}) | change for name, change in sections.items()})


def ensemble_settings(folder: Path, kind: str) -> LoopConfig:
    ensemble = {"members": 2, "kind": kind, "combine": "penalized", "penalty": 0.5} | ({"lora_rank": 2} if kind == "lora" else {})
    return changed(
        settings(folder), reward={"ensemble": ensemble}, labels={"choice": "disagreement", "choice_candidates": 3},
        evaluation={"prompts": 12},
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> dict[str, Loop]:
    """A finished run of each kind, over the model and the prompts of the usual one."""
    found: dict[str, Loop] = {}
    for kind in KINDS:
        config = ensemble_settings(loop.folder.path.parent, kind)
        found[kind] = Loop(tmp_path_factory.mktemp(kind) / "run", config, labelers=[Counter(f"labeler-{n}") for n in range(3)])
        found[kind].run()
    return found


def questions(run: Loop, number: int) -> list[Question]:
    path = run.folder.path / f"rounds/{number}/questions/questions.jsonl"
    return [Question.from_json(row, f"{path}:{line}") for line, row in read_jsonl(path)]


def results(run: Loop) -> dict[str, Any]:
    return json.loads((run.folder.path / "evaluation/results.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    """Of what a run learned and said; snapshots hold times."""
    wanted = [*folder.glob("rounds/*/reward/**/*"), *folder.glob("rounds/*/policy/*"), *folder.glob("rounds/*/questions/*")]
    wanted += [*folder.glob("evaluation/*"), folder / "metrics.jsonl"]
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in wanted if f.suffix in (".safetensors", ".jsonl")
    }


def test_the_second_round_asks_what_the_first_ones_members_disagree_about(runs: dict[str, Loop]) -> None:
    run = runs["full"]
    assert {q.propensity for q in questions(run, 1)} == {1.0}
    second = questions(run, 2)
    validation = [q for q in second if q.split == "validation"]
    asked = [q for q in second if q.split == "train"]
    assert ([q.propensity for q in validation], len(asked)) == ([1.0] * VALIDATION, CHOSEN)
    assert all(0 < q.propensity <= 1 for q in asked)
    assert len({q.propensity for q in asked}) > 1
    # The propensities follow from the round's own ensemble, and are highest where it is divided most.
    rows = [Comparison(q.prompt, q.responses, "best_of_k", 0) for q in asked]
    wanted = choice_variance(choice_probabilities(run.context.reward_model(1), rows))
    below_one = [i for i, q in enumerate(asked) if q.propensity < 1]
    order = np.argsort([wanted[i] for i in below_one])
    found = [asked[below_one[i]].propensity for i in order]
    assert found == sorted(found)
    assert found[-1] > CHOSEN / CANDIDATES * 0.25
    assert not {q.prompt.tokens for q in second} & {q.prompt.tokens for q in questions(run, 1)}


def test_what_is_drawn_has_its_probability_and_most_of_what_is_disputed(runs: dict[str, Loop], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many draws each candidate is in as often as its propensity says: 300 draws, four deviations."""
    run = runs["full"]
    candidates = [choosing.Candidate(q.prompt, q.responses) for q in questions(run, 1)]
    monkeypatch.setattr(run.context, "tell", lambda text: None)
    made = choice_probabilities(run.context.reward_model(1), [Comparison(*c, "best_of_k", 0) for c in candidates])
    expected = propensities(choice_variance(made), 10)
    monkeypatch.setattr(choosing, "choice_probabilities", lambda *_, **__: made)
    drawn = [0] * len(candidates)
    for seed in range(300):
        monkeypatch.setattr(run.context, "seed", lambda stream, *_, seed=seed: hash_of(stream, seed))
        chosen = choosing.choose(run.context, 2, candidates, 10)
        assert len(chosen) == 10
        for candidate, p in chosen:
            place = candidates.index(candidate)
            drawn[place] += 1
            assert p == pytest.approx(expected[place])
    for place, count in enumerate(drawn):
        assert abs(count / 300 - expected[place]) < 4 * (expected[place] * (1 - expected[place]) / 300) ** 0.5 + 1e-9


def hash_of(stream: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{stream} {seed}".encode()).digest()[:7], "big")


def test_propensities_are_in_the_store_in_snapshots_and_in_exports(runs: dict[str, Loop], tmp_path: Path) -> None:
    run = runs["full"]
    expected = {q.id: q.propensity for q in questions(run, 2)}
    assert {q.id: q.propensity for q in run.context.store.questions(2)} == expected
    snapshot = Snapshot.load(run.folder.path / "rounds/2/labels/snapshot.jsonl")
    found = {q.id: q.propensity for q in snapshot.questions if q.round == 2}
    assert found == {key: expected[key] for key in found}
    by_id = {q.id: q for q in snapshot.questions}
    for container in ("csv", "parquet", "jsonl"):
        path = tmp_path / f"labels.{container}"
        with path.open("wb") as file:
            write_labels(file, [(by_id[label.question_id], label) for label in snapshot.labels], "table", container)
        read = {row.question.id: row.question.propensity for row in LabelFile(path).labeled()}
        assert read == {q.id: pytest.approx(q.propensity) for q in snapshot.questions}
    store = Store.in_memory()
    store.add_questions(run.context.store.questions(2))
    assert store.add_questions([Question.from_json(q.to_json()) for q in questions(run, 2)]) == 0, "the same questions, written again"


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_is_scored_by_the_ensemble_and_the_report_shows_its_members(runs: dict[str, Loop], kind: str) -> None:
    run = runs[kind]
    model = run.context.reward_model(2)
    assert isinstance(model, RewardEnsemble)
    assert (len(model.members), model.combine, model.penalty) == (2, "penalized", 0.5)
    rows = [row for row in run.context.log.read() if row["stage"] == "reward"]
    assert {row["member"] for row in rows} == {0.0, 1.0}
    found = results(run)
    assert found["reward_members"]["deviation"].keys() == {"reference", "ppo"}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in found["reward_members"]["deviation"].values())
    assert found["reward_members"]["deviation"]["ppo"]["mean"] > 0
    assert [row["group"] for row in found["reward_members"]["held_out"]] == [1, 2]
    validation = found["reward_validation"]
    assert validation["labels"] == sum(len(list(read_jsonl(run.folder.path / f"rounds/{n}/reward/predictions.jsonl"))) for n in (1, 2))
    assert {row["group"] for row in validation["by"]["round"]} <= {1, 2}
    assert {row["group"] for row in validation["by"]["policies"]} <= {"policy", "reference", "policy and reference"}
    assert validation["members"]["disagreement"]["mean"] > 0
    html = build_report(run.folder.path).read_text(encoding="utf-8")
    for words in ("The members of the ensemble", "Does it know what it knows?", "Where it was right", "less 0.500 of their deviation"):
        assert words in html
    assert summary(run.folder.path)["reward_ece"]["ece"] is not None


class StopAt:
    """Ends a run when a stage has done so many steps."""

    def __init__(self, stage: str, round: int, step: int) -> None:
        self.stage, self.round, self.step = stage, round, step
        self.run: Loop | None = None

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        assert self.run is not None
        if stage == self.stage and self.run.now is not None and self.run.now.round == self.round and done == self.step:
            raise Stopped(15)


@pytest.mark.parametrize(("kind", "stage", "step"), [("full", "reward", 9), ("lora", "reward", 9), ("lora", "ppo", 3)])
def test_a_killed_run_ends_bit_for_bit_as_an_undisturbed_one(
    runs: dict[str, Loop], kind: str, stage: str, step: int, tmp_path: Path
) -> None:
    """Killed inside the second member's fit of the second round, or inside PPO against the ensemble."""
    config = runs[kind].config.model_copy(update={"labeler": "score:positive", "checkpoint_seconds": 1e-6})
    labelers = [Counter(f"labeler-{n}") for n in range(3)]
    stop = StopAt(stage, 2, step)
    stop.run = Loop(tmp_path / "run", config, labelers=labelers, progress=stop)
    with pytest.raises(Stopped):
        stop.run.run()
    again = Loop(tmp_path / "run", labelers=labelers)
    again.run()
    assert hashes(tmp_path / "run") == hashes(runs[kind].folder.path)


def test_members_are_drawn_as_the_settings_say(runs: dict[str, Loop], monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs["full"]
    training = [Comparison(q.prompt, q.responses, "best_of_k", 0, question_id=q.id) for q in questions(run, 1)]
    for resample, least, most, left in (("bootstrap", 40, 40, None), ("hold_out", 25, 25, 15), ("none", 40, 40, 0)):
        config = changed(run.config, reward={"ensemble": {"members": 2, "resample": resample}})
        monkeypatch.setattr(run.context, "config", config)
        trainer = reward_trainer(run.context, training, 1)
        assert isinstance(trainer, EnsembleTrainer)
        for member, held_out in zip(trainer.trainers, trainer.held_out, strict=True):
            assert least <= len(member.comparisons) <= most
            assert left is None or len(held_out) == left
            assert not {c.question_id for c in held_out} & {c.question_id for c in member.comparisons}
        # hold_out: round(40 / e) = 15.
        drawn = [[c.question_id for c in member.comparisons] for member in trainer.trainers]
        assert (drawn[0] == drawn[1]) == (resample == "none")


def test_scores_are_normalised_on_what_people_wrote(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    context: Context = loop.context
    config = changed(loop.config, reward={"normalize_on": "demonstrations", "target_mean": 0.5, "normalize_samples": 1000})
    monkeypatch.setattr(context, "config", config)
    training = [
        Comparison(q.prompt, q.responses, "best_of_k", n % 4, question_id=q.id) for n, q in enumerate(questions(loop, 1))
    ]  # fmt: skip
    chosen = sorted(c.responses[int(c.target)].tokens for c in training)  # type: ignore[arg-type]
    found = written_responses(context, training, 1)
    tokens = [tuple(row[keep].tolist()) for row, keep in zip(found.responses, found.response_mask, strict=True)]
    assert sorted(tokens) == chosen
    trainer = reward_trainer(context, training, 1)
    for index in range(trainer.total_steps):
        trainer.step(index)
    trainer.finish()
    assert float(trainer.scores(found).mean()) == pytest.approx(0.5, abs=1e-4)  # type: ignore[union-attr]
    # Responses that people wrote come before those that labelers chose; the texts of sft before both.
    human = replace(training[0].responses[0], source="human")
    mixed = [replace(training[0], responses=(human, *training[0].responses[1:])), *training[1:]]
    assert len(written_responses(context, mixed, 1).responses) == 1
    path = loop.folder.path.parent / "demonstrations.jsonl"
    path.write_text("".join(json.dumps({"prompt": "w2", "response": f"w3 {word}"}) + "\n" for word in ("good", "bad", "w4")))
    monkeypatch.setattr(context, "config", changed(config, sft={"texts": str(path)}))
    assert len(written_responses(context, mixed, 1).responses) == 3
    ties = [replace(c, kind="ranking", target=[0, 0, 0, 0]) for c in training]
    monkeypatch.setattr(context, "config", config)
    with pytest.raises(UserError, match=r"normalize_on: demonstrations: sft.texts has no responses, and no label prefers one"):
        written_responses(context, ties, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"choice": "bald"}}, "labels.choice bald needs reward models that can differ; set reward.ensemble.members=3"),
        ({"labels": {"choice": "disagreement", "rounds": 1, "total": 40}}, "begins with the second round; raise labels.rounds"),
        ({"labels": {"choice": "bald", "kind": "rating", "responses_per_question": 1}}, "kind rating shows one, choose random"),
        ({"reward": {"ensemble": {"penalty": 2.0}}}, "penalty is read where combine is penalized, not mean"),
        ({"reward": {"ensemble": {"lora_rank": 4}}}, "lora_rank is read where kind is lora, not full"),
        (
            {"reward": {"ensemble": {"kind": "lora"}}, "ppo": {"value_network": "reward_model"}},
            "needs a reward model with a trunk of its own",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(loop: Loop, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(loop.config, **changes)


def test_the_scale_of_choices_outlives_normalisation(runs: dict[str, Loop]) -> None:
    """Normalised scores divided by what the normalisation changed are the fitted ones, after a round trip through the folder too."""
    for kind in KINDS:
        for member in runs[kind].context.reward_model(1).members:  # type: ignore[union-attr]
            assert 0 < float(member.choice_scale) != 1.0
