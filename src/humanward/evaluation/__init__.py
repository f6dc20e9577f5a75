"""How good a policy and a reward model are, with intervals: win rates, accuracies, and whether the text is still language."""

from __future__ import annotations

from humanward.evaluation.text_quality import copied_share, distinct_share, repeated_share, text_quality
from humanward.evaluation.win_rates import accuracy_row, mean_with_interval, win_rates

__all__ = ["accuracy_row", "copied_share", "distinct_share", "mean_with_interval", "repeated_share", "text_quality", "win_rates"]
