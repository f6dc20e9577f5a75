"""What each section of the report says: numbers of a run turned into words, tables and drawings, a file for each theme.

Anything absent is named in ``run.missing``.
"""

from __future__ import annotations

from humanward.report.sections.asked import asked, labeler_words, settings_tables
from humanward.report.sections.curves import alarms, learning_curves, more_curves
from humanward.report.sections.parts import DIRECT, Chart, Table, policy_name, tuned_by
from humanward.report.sections.people import agreement_chart, flagged, pairs_table, people_table, stops
from humanward.report.sections.price import frontier_chart
from humanward.report.sections.records import environment_table, labels_table, samples, time_table
from humanward.report.sections.reward import reward_model
from humanward.report.sections.reward_checks import calibration_chart, members_table, probes_chart, reward_groups
from humanward.report.sections.versus import asked_people, comparisons, more_labels
from humanward.report.sections.wins import WinRate, headline, quality_table, score_table, scored_by, verdict, win_rate_chart, win_rates

__all__ = [
    "DIRECT",
    "Chart",
    "Table",
    "WinRate",
    "agreement_chart",
    "alarms",
    "asked",
    "asked_people",
    "calibration_chart",
    "comparisons",
    "environment_table",
    "flagged",
    "frontier_chart",
    "headline",
    "labeler_words",
    "labels_table",
    "learning_curves",
    "members_table",
    "more_curves",
    "more_labels",
    "pairs_table",
    "people_table",
    "policy_name",
    "probes_chart",
    "quality_table",
    "reward_groups",
    "reward_model",
    "samples",
    "score_table",
    "scored_by",
    "settings_tables",
    "stops",
    "time_table",
    "tuned_by",
    "verdict",
    "win_rate_chart",
    "win_rates",
]
