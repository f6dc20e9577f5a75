"""A reward from a folder, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

import torch

from humanward.errors import UserError
from humanward.models import TextClassifier, load_reward_model
from humanward.models.reward_ensemble import FACTS
from humanward.trainers.rewards import Score, TextReward


def load_reward(
    name: str | Path, *, label: str | None = None, response_only: bool = False, dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Score:  # fmt: skip
    """A score of (prompts, responses): one of our reward models or ensembles, or any sequence classifier of the Hugging Face libraries.

    Args:
        name: a folder or hub name.
        label: of a classifier with several labels, the one whose log-probability is the score.
        response_only: show a classifier the response alone.
        dtype: number type of the model.
        trust_remote_code: let the model's own code run.

    Raises:
        UserError: neither is there.
    """
    if (Path(name) / FACTS).exists() or (Path(name) / "score_head.safetensors").exists():
        if label is not None or response_only:
            raise UserError(f"{name}: a reward model has no labels and reads prompt and response; give hf:{name}")
        return TextReward(load_reward_model(name, dtype=dtype, trust_remote_code=trust_remote_code))
    return TextClassifier.load(  # pyright: ignore[reportReturnType]
        name, label=label, response_only=response_only, dtype=dtype, trust_remote_code=trust_remote_code
    )
