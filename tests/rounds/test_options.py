"""Settings of memory and speed reach every model that is trained, and no number shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from humanward.models import with_options
from humanward.rounds import Loop, context, stages


def test_checkpointed_layers_change_no_number_of_a_run(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is asked for but left out, since it changes the last bits."""
    calls: list[bool] = []
    asked: list[tuple[str, bool, bool]] = []
    checkpoint: Any = transformers.modeling_utils.checkpoint

    def counted(*args: Any, **settings: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return checkpoint(*args, **settings)

    def watched(model: Any, *, gradient_checkpointing: bool, compiled: bool) -> Any:
        asked.append((type(model).__name__, gradient_checkpointing, compiled))
        return with_options(model, gradient_checkpointing=gradient_checkpointing)

    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", counted)
    monkeypatch.setattr(context, "with_options", watched)
    monkeypatch.setattr(stages, "check_compiler", lambda device: None)
    config = loop.config.model_copy(update={"gradient_checkpointing": True, "compile": True})
    Loop(tmp_path / "run", config, labelers=loop.context.labelers).run()
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (loop.folder.path / "metrics.jsonl").read_bytes()
    trained = [("RewardModel", True, True), ("Policy", True, True)]
    asked_for_numbers = [("Policy", False, True), ("RewardModel", False, True)]  # PPO's reference and its reward model
    assert asked == 2 * [*trained, *asked_for_numbers]
    rows = loop.context.log.read()
    assert len(calls) == sum(row["stage"] in ("reward", "ppo") for row in rows)  # of one layer, one micro-batch and one epoch each
    assert all(calls)
