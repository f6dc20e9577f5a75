"""Studies: a grid of settings and seeds, run in parallel and resumably, with intervals and with verdicts on what was claimed."""

from __future__ import annotations

from .spec import Cell, Study, shipped_studies

__all__ = ["Cell", "Study", "shipped_studies"]
