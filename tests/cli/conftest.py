"""Runs so small that a whole loop takes seconds: a model over six words, prompts made of them, and a labeler who likes one of them."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import yaml

from humanward.cli import main

SOURCE = str(Path(__file__).parents[2] / "src")
SETTINGS = {
    "threads": 1,
    "self_test": False,
    "checkpoint_seconds": 1e-6,
    "task": {
        "prompt_length": 4, "prompt_start": None, "prompt_end": None, "response_length": 4, "truncate_token": None, "temperature": 1.0,
    },
    "labels": {"initial": 24, "total": 48, "rounds": 2, "overlap_labels": 2},
    "reward": {"batch_size": 8, "lr": 1e-3, "normalize_samples": 16},
    "ppo": {"episodes": 128, "batch_size": 16, "ppo_epochs": 2, "lr": 1e-3},
    "baseline_sft": {"batch_size": 8},
    "evaluation": {"prompts": 16, "frontier_prompts": 4, "frontier_samples": 8, "questions": 8, "shown": 4},
}  # fmt: skip
SCORES = """
def good(prompts, responses):
    return [response.split().count("good") for response in responses]

def broken(prompts, responses):
    return [float("nan")] * len(responses)
"""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


def run(*arguments: str | Path) -> Done:
    """The command, in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "humanward", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@dataclass(frozen=True)
class Parts:
    """Files to make runs from."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.txt"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def options(self, **changed: str | Path) -> list[str]:
        """Options of ``loop`` and ``init``."""
        scores = f"score:python:{self.folder / 'scores.py'}:good"
        options = {"config": self.config, "model": self.model, "prompts": self.prompts, "labeler": scores} | changed
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def save_model(folder: Path) -> None:
    from humanward.trainers.selftest import tiny_policy

    folder.mkdir(parents=True)
    tiny_policy().save(folder)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    save_model(folder / "model")
    words = itertools.product(("bad", "w2", "w3", "w4"), repeat=3)
    (folder / "prompts.txt").write_text("".join(" ".join(row) + "\n" for row in words))
    (folder / "scores.py").write_text(SCORES)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return Parts(folder)


@pytest.fixture(scope="session")
def finished(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run("loop", folder, *parts.options())
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def fingerprint() -> Callable[[Path], dict[str, str]]:
    """SHA-256 of what a run learned and said. Snapshots of labels carry times, but results.json has the hash of their content."""
    return hashes


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.glob("rounds/*/*/*.safetensors"), *folder.glob("policy/*.safetensors"), *folder.glob("baseline_sft/*.safetensors")]
    files += [folder / "metrics.jsonl", *folder.glob("evaluation/results.json"), *folder.glob("evaluation/samples.jsonl")]
    files += [*folder.glob("rounds/*/questions/*.jsonl"), *folder.glob("rounds/*/reward/measured.json")]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
