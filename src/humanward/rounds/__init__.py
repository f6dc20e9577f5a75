"""The online loop: sample, ask, collect, fit the reward model, tune the policy, again; then evaluate. Resumable at any point."""

from __future__ import annotations

from .config import EvaluationConfig, LabelsConfig, LoopConfig
from .head_to_head import CompareConfig, HeadToHead
from .loop import Loop, Stage, stages_of

__all__ = ["CompareConfig", "EvaluationConfig", "HeadToHead", "LabelsConfig", "Loop", "LoopConfig", "Stage", "stages_of"]
