"""How good a policy and a reward model are, with intervals: win rates, accuracies, and whether the text is still language."""

from __future__ import annotations

from humanward.evaluation.reward_models import accuracy_by, calibration, concordance, length_bias, probe, probes
from humanward.evaluation.text_quality import copied_share, distinct_share, repeated_share, text_quality
from humanward.evaluation.validation import validation_report
from humanward.evaluation.win_rates import accuracy_row, mean_with_interval, win_rates

__all__ = [
    "accuracy_by",
    "accuracy_row",
    "calibration",
    "concordance",
    "copied_share",
    "distinct_share",
    "length_bias",
    "mean_with_interval",
    "probe",
    "probes",
    "repeated_share",
    "text_quality",
    "validation_report",
    "win_rates",
]
