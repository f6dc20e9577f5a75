"""The report of a run: one self-contained HTML file with plots and tables, made from the run folder alone."""

from __future__ import annotations

from humanward.report.build import build_report, summary

__all__ = ["build_report", "summary"]
