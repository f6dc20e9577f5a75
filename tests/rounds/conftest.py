from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from humanward.records import Question
from humanward.rounds import Loop, LoopConfig
from humanward.trainers.selftest import tiny_policy

LABELERS = 3


class Counter:
    """Prefers the response with most `good`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answer(self, question: Question) -> int:
        counts = [response.text.split().count("good") for response in question.responses]
        return counts.index(max(counts))


def settings(folder: Path) -> LoopConfig:
    """Two rounds of 40 and 12 questions over a model of six words."""
    values: dict[str, object] = {
        "model": str(folder / "model"),
        "prompts": str(folder / "prompts.txt"),
        "threads": 1,
        "self_test": False,
        "task": {
            "prompt_length": 4, "prompt_start": None, "prompt_end": None, "response_length": 4, "truncate_token": None, "temperature": 1.0,
        },
        "labels": {
            "initial": 40, "total": 56, "rounds": 2, "validation_share": 0.25, "overlap_share": 0.1, "overlap_labels": LABELERS,
            "outstanding": 16,
        },
        "reward": {"batch_size": 8, "lr": 1e-3, "normalize_samples": 16},
        "ppo": {"episodes": 64, "batch_size": 16, "ppo_epochs": 1, "lr": 1e-2},
        "baseline_sft": None,
        "evaluation": {"prompts": 16, "frontier_prompts": 4, "frontier_samples": 8, "questions": 8, "shown": 4},
    }  # fmt: skip
    return LoopConfig.model_validate(values)


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A finished run with labelers of its own."""
    folder = tmp_path_factory.mktemp("rounds")
    tiny_policy().save(folder / "model")
    words = itertools.product(("bad", "w2", "w3", "w4"), repeat=4)
    (folder / "prompts.txt").write_text("".join(" ".join(row) + "\n" for row in words))
    run = Loop(folder / "run", settings(folder), labelers=[Counter(f"labeler-{n}") for n in range(LABELERS)])
    run.run()
    return run
