"""A reward from a folder, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from humanward.errors import UserError
from humanward.models import TextClassifier, load_reward_model
from humanward.models.reward_ensemble import FACTS
from humanward.trainers.rewards import Score, TextReward


def load_reward(name: str | Path, *, label: str | None = None, response_only: bool = False) -> Score:
    """A score of (prompts, responses): one of our reward models or ensembles, or any sequence classifier of the Hugging Face libraries.

    Args:
        name: a folder or hub name.
        label: of a classifier with several labels, the one whose log-probability is the score.
        response_only: show a classifier the response alone.

    Raises:
        UserError: neither is there.
    """
    if (Path(name) / FACTS).exists() or (Path(name) / "score_head.safetensors").exists():
        if label is not None or response_only:
            raise UserError(f"{name}: a reward model has no labels and reads prompt and response; give hf:{name}")
        return TextReward(load_reward_model(name))
    return TextClassifier.load(name, label=label, response_only=response_only)  # pyright: ignore[reportReturnType]
