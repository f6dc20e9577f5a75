"""The report of a run or a study: one self-contained HTML file with plots and tables, made from its folder alone."""

from __future__ import annotations

from humanward.report.build import build_report, summary
from humanward.report.study import build_study_report

__all__ = ["build_report", "build_study_report", "summary"]
