"""Numbers of the evaluation, against a slower way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from humanward.rounds import Loop, LoopConfig
from humanward.rounds.assessment import held_out_bits
from humanward.storage import read_json

from .conftest import settings


def test_held_out_bits_are_the_models_own_loss_on_the_prompts(loop: Loop) -> None:
    context = loop.context
    policy, prompts = context.policy(context.path / "policy"), context.prompts("evaluation")
    nats, size = 0.0, 0
    for prompt in prompts:
        ids = torch.tensor([prompt.tokens])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, :-1]
        nats -= float(logits.log_softmax(-1)[torch.arange(len(prompt.tokens) - 1), ids[0, 1:]].sum())
        size += len(context.task.decode(prompt.tokens[1:]).encode())
    expected = nats / size / math.log(2)
    assert held_out_bits(context, policy, prompts) == pytest.approx(expected, rel=1e-4)
    quality = read_json(context.path / "evaluation/results.json")["text_quality"]
    assert quality["ppo"]["held_out_bits_per_byte"] == pytest.approx(expected, rel=1e-4)
    assert quality["reference"]["held_out_bits_per_byte"] != quality["ppo"]["held_out_bits_per_byte"]


def test_what_nobody_asks_for_is_left_out(loop: Loop, tmp_path: Path) -> None:
    """With a known score, the frontier and the accuracy are measured unless their number is 0."""
    folder = loop.folder.path.parent
    config = settings(folder)
    values = config.model_dump(mode="json", exclude=set(config.unread()))
    (folder / "good.py").write_text("def good(p, r):\n    return [text.split().count('good') for text in r]\n")
    values |= {
        "labeler": f"score:python:{folder / 'good.py'}:good",
        "labels": {"initial": 16, "total": 16, "rounds": 1, "overlap_share": 0.0},
    }
    values["evaluation"] |= {"frontier_prompts": 0, "questions": 0}
    run = Loop(tmp_path / "run", LoopConfig.model_validate(values))
    run.run(before="ppo")
    assert run.pending()[0].name == "ppo"
    run.run()
    results = read_json(tmp_path / "run/evaluation/results.json")
    assert "scores" in results
    assert "frontier" not in results
    assert [row["questions"] for row in results["reward_model"]] == [1]  # the one that was held out of 16, which costs nothing
