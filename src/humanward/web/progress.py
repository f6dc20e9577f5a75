"""How much a labeler has done and how fast, kept up to date from the events that came since the last look."""

from __future__ import annotations

import statistics
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from humanward.feedback import Store

PAUSE_SECONDS = 1800.0
"""A longer gap between two labels begins a new sitting."""
RECENT = 20
_BATCH = 5000


@dataclass
class _Pace:
    seq: int = 0
    """Of the last event seen."""
    labels: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    """seq of each label that counts: when it came, and the seconds that it took."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Paces:
    """The pace of every labeler. Gold questions and repeats count like all others, so that the numbers do not give them away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._of: dict[str, _Pace] = {}
        self._lock = threading.Lock()

    def of(self, labeler: str) -> dict[str, Any]:
        """``done``: labels in all; ``session_done``: in this sitting; ``pace_seconds``: median of the last labels, or None."""
        with self._lock:
            pace = self._of.setdefault(labeler, _Pace())
        with pace.lock:
            self._catch_up(labeler, pace)
            times = [time for time, _ in pace.labels.values()]
            recent = [seconds for _, seconds in list(pace.labels.values())[-RECENT:] if seconds is not None]
        return {
            "done": len(times),
            "session_done": _last_stretch(times),
            "pace_seconds": round(statistics.median(recent), 1) if recent else None,
        }

    def _catch_up(self, labeler: str, pace: _Pace) -> None:
        while True:
            events = self._store.events(labeler=labeler, kinds=("label", "undo"), after=pace.seq, limit=_BATCH)
            for event in events:
                pace.seq = event.seq
                if event.kind == "label":
                    pace.labels[event.seq] = datetime.fromisoformat(event.time).timestamp(), event.body.get("seconds")
                elif event.target is not None:
                    pace.labels.pop(event.target, None)
            if len(events) < _BATCH:
                return


def _last_stretch(times: list[float]) -> int:
    """How many of the last times follow each other without a pause."""
    count = 0
    for index in range(len(times) - 1, -1, -1):
        count += 1
        if index and times[index] - times[index - 1] > PAUSE_SECONDS:
            break
    return count
