"""A run's reward model as a folder that plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from humanward.trainers import load_reward

from .conftest import run


def test_the_exported_folder_gives_the_reward_models_scores(finished: Path, tmp_path: Path) -> None:
    done = run("reward-export", finished, tmp_path / "out", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["reward_model"] == str(finished / "rounds/2/reward")
    prompts, responses = ["w2 bad", "w3"], [" good w4", " bad"]
    expected = load_reward(finished / "rounds/2/reward")(prompts, responses)
    classifier, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        for prompt, response, score in zip(prompts, responses, expected, strict=True):
            logit = float(classifier(**tokenizer(prompt + response, return_tensors="pt")).logits[0, 0])
            assert logit + told["score_shift"] == pytest.approx(score, abs=1e-4)
    assert told["score_shift"] != 0
    for name, arguments, lacking in (("out", [], told["score_shift"]), ("noted", ["--note-shift"], 0.0)):
        assert name == "out" or run("reward-export", finished, tmp_path / name, *arguments).code == 0
        found = load_reward(tmp_path / name)(prompts, responses)
        assert found == pytest.approx([score - lacking for score in expected], abs=1e-4)


def test_what_cannot_be_exported_is_one_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((finished, tmp_path / "out"), f"{tmp_path / 'out'}: is there already"),
        ((finished, tmp_path / "new", "--round", "7"), f"{finished}: no whole reward model of round 7; there is one of round 2"),
        ((finished, tmp_path / "new", "--member", "2"), "--member 2: "),
        ((tmp_path / "empty", tmp_path / "new"), f"{tmp_path / 'empty'}: no reward model yet"),
        ((tmp_path / "absent", tmp_path / "new"), f"{tmp_path / 'absent'}: no such run folder"),
    ):
        done = run("reward-export", *arguments)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith(f"error: {message}")
        assert not (tmp_path / "new").exists()
