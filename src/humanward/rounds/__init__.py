"""The online loop: sample, ask, collect, fit the reward model, tune the policy, again; then evaluate. Resumable at any point."""

from __future__ import annotations

from .config import EvaluationConfig, LabelsConfig, LoopConfig
from .loop import Loop, Stage, stages_of

__all__ = ["EvaluationConfig", "LabelsConfig", "Loop", "LoopConfig", "Stage", "stages_of"]
