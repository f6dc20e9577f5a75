"""Group methods as a switch of the loop: stages, rewards made of terms, the same run after a fault."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from humanward.config import preset_names
from humanward.config.presets import preset_layer
from humanward.errors import RunError, UserError
from humanward.records import read_jsonl
from humanward.rounds import Loop, LoopConfig
from humanward.trainers.selftest import tiny_policy

METHODS = ["rloo", "grpo", "dr_grpo", "reinforce", "online_dpo", "expert_iteration"]
SECTION = {"online_dpo": "online_dpo", "expert_iteration": "expert_iteration"}
STEPS = {"episodes": 64, "batch_size": 16, "responses_per_prompt": 4, "lr": 1e-2}
MINE = """
calls = [0]

def goods(prompts, responses):
    calls[0] += 1
    if calls[0] == {fails_at}:
        raise ValueError("the disk is away")
    return [response.split().count("good") for response in responses]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("groups")
    tiny_policy().save(made / "model")
    words = itertools.product(("bad", "w2", "w3", "w4"), repeat=4)
    (made / "prompts.txt").write_text("".join(" ".join(row) + "\n" for row in words))
    for name, fails_at in (("mine", 0), ("mine_fails", 3)):
        (made / f"{name}.py").write_text(MINE.format(fails_at=fails_at))
    return made


def settings(folder: Path, method: str, **more: Any) -> LoopConfig:
    values: dict[str, Any] = {
        "model": str(folder / "model"), "prompts": str(folder / "prompts.txt"), "threads": 1, "self_test": False, "method": method,
        "labeler": f"score:{folder / 'mine.py'}:goods",
        "task": {
            "prompt_length": 4, "prompt_start": None, "prompt_end": None, "response_length": 4, "truncate_token": None, "temperature": 1.0,
        },
        "labels": {"initial": 16, "total": 24, "rounds": 2, "overlap_share": 0.0, "validation_share": 0.25},
        "reward": {"batch_size": 8, "lr": 1e-3, "normalize_samples": 16},
        "baseline_sft": None,
        "evaluation": {"prompts": 16, "frontier_prompts": 2, "frontier_samples": 4, "questions": 4, "shown": 2},
        SECTION.get(method, "group"): STEPS,
    }  # fmt: skip
    return LoopConfig.model_validate(values | more)


@pytest.mark.parametrize("method", METHODS)
def test_one_switch_chooses_the_method(folder: Path, tmp_path: Path, method: str) -> None:
    loop = Loop(tmp_path / "run", settings(folder, method))
    done = [(stage.name, stage.round) for stage in loop.run()]
    rounds = [(name, number) for number in (1, 2) for name in ("sample", "label", "reward", method)]
    assert done == [("prompts", 0), *rounds, ("export", 0), ("evaluate", 0)]
    rows = [row for row in loop.context.log.read() if row["stage"] == method]
    assert [(row["round"], row["step"]) for row in rows] == [(1, 0), (1, 1), (2, 2), (2, 3)]
    results = json.loads((tmp_path / "run/evaluation/results.json").read_text())
    assert results["win_rates"][0]["policy"] == method
    assert len(results["frontier"]["path"]) == 4


def test_a_reward_of_terms_that_fails_can_be_mended(folder: Path, tmp_path: Path) -> None:
    """Its third call raises: one line, and the same command with a function that works ends as if nothing had happened."""

    def config(name: str) -> LoopConfig:
        terms = {"model": 1.0, f"{folder / name}.py:goods": 0.5, "repetition:2": 0.1}
        return settings(folder, "rloo", scoring={"terms": terms, "retries": 0}, checkpoint_seconds=1e-9)

    ends = []
    for name in ("mine", "mine_fails"):
        run = tmp_path / name
        if name == "mine_fails":
            with pytest.raises(RunError, match=r"reward .*mine_fails.py:goods: raised ValueError: the disk is away; it must map"):
                Loop(run, config(name)).run()
        Loop(run, config(name)).run()
        rows = [row for row in Loop(run).context.log.read() if row["stage"] == "rloo"]
        assert all(row.pop(f"score/{folder / name}.py:goods") is not None for row in rows)
        ends.append((rows, [row for _, row in read_jsonl(run / "evaluation/samples.jsonl")]))
    assert ends[0] == ends[1]
    first = ends[0][0][0]
    assert {"score/model", "score/repetition:2"} <= first.keys()


def test_without_the_model_among_the_terms_none_is_fitted(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, "grpo", scoring={"terms": {f"{folder / 'mine.py'}:goods": 1.0}}, reward={})
    loop = Loop(tmp_path / "run", config)
    assert "reward" not in {stage.name for stage in loop.run()}
    results = json.loads((tmp_path / "run/evaluation/results.json").read_text())
    assert "reward_model" not in results
    rows = [row for row in loop.context.log.read() if row["stage"] == "grpo"]
    assert all(row["score"] == pytest.approx(row["true_score"]) for row in rows)
    assert "\nreward:" not in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "rloo", "ppo": {"lr": 1e-3}}, "method rloo does not read ppo.lr; leave that out, or choose another method"),
        ({"group": {"lr": 1e-3}}, "method ppo does not read group.lr"),
        ({"method": "grpo", "group": {"kl_estimator": "k1"}}, "grpo: the gradient of k1 in a loss is 0 in the mean"),
        (
            {"method": "rloo", "group": {"episodes": 512}},
            "is more than the 1 steps of rloo; raise group.episodes or lower it",
        ),
        ({"method": "rloo", "scoring": {"terms": {"words": 1.0}}, "reward": {"lr": 1.0}}, "method rloo does not read reward.lr"),
        ({"scoring": {"terms": {"words": 1.0}}, "ppo": {"value_network": "reward_model"}}, "there is no reward model, since scoring.terms"),
        ({"scoring": {"terms": {"model": 0}}}, "nothing has a weight"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        LoopConfig.model_validate(values)
    assert message in str(error.value)


def test_a_term_that_nobody_knows_is_said_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", settings(folder, "rloo", scoring={"terms": {"model": 1.0, "postive": 1.0}}))
    with pytest.raises(UserError, match=r"postive: unknown score; did you mean positive\?"):
        loop.run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_has_settings_for_methods_that_it_does_not_choose(name: str) -> None:
    """They are left aside until a switch chooses them, and are right then."""
    sections = preset_layer(name).values
    for method in METHODS:
        if SECTION.get(method, "group") in sections:
            config = LoopConfig.load(preset=name, overrides=[f"method={method}"])
            assert config.tuning.model_fields_set == sections[SECTION.get(method, "group")].keys()
    LoopConfig.load(preset=name)
    with pytest.raises(UserError, match=r"method ppo does not read group\."):
        LoopConfig.load(preset=name, overrides=["group.lr=1", "method=ppo"])
