"""The table of ``feedback.quality`` of a store, kept for a while, since every look at the page of the labelers needs all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from humanward.feedback import Store
from humanward.feedback.quality import QualityTable, quality_table

FRESH_SECONDS = 10.0
"""A table is kept for so long, or ten times as long as it took to make."""


class Qualities:
    """The table of a store, kept for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._made: tuple[float, frozenset[str], QualityTable] | None = None

    def table(self, researchers: Collection[str]) -> QualityTable:
        """``researchers``: the labelers whose answers the others are compared with."""
        key = frozenset(researchers)
        with self._lock:
            if self._made is not None and self._made[1] == key:
                age = time.monotonic() - self._made[0]
                if age < max(FRESH_SECONDS, 10 * self._made[2].seconds):
                    return self._made[2]
            began = time.monotonic()
            table = quality_table(self._store.labeler_rows(), key)._replace(seconds=time.monotonic() - began)
            self._made = time.monotonic(), key, table
            return table
