"""Label kinds, the question queue and label store, labelers and known scores. Never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from humanward.feedback.kinds import KINDS, LabelKind, kind_of, to_comparisons
from humanward.feedback.labelers import Labeler, ScoreLabeler, answer_questions
from humanward.feedback.people import Person
from humanward.feedback.reading import Disputed, Event, LabelerRow, Past
from humanward.feedback.scores import Score, load_score, score_responses
from humanward.feedback.snapshot import Snapshot
from humanward.feedback.store import Answer, Assignment, Cord, Counts, Store

if TYPE_CHECKING:
    from humanward.feedback.judge import SentimentJudge

__all__ = [
    "KINDS",
    "Answer",
    "Assignment",
    "Cord",
    "Counts",
    "Disputed",
    "Event",
    "LabelKind",
    "Labeler",
    "LabelerRow",
    "Past",
    "Person",
    "Score",
    "ScoreLabeler",
    "SentimentJudge",
    "Snapshot",
    "Store",
    "answer_questions",
    "kind_of",
    "load_score",
    "score_responses",
    "to_comparisons",
]


def __getattr__(name: str) -> Any:
    if name == "SentimentJudge":  # it needs numpy, which takes a third of the time that this room takes to import
        from humanward.feedback.judge import SentimentJudge

        return SentimentJudge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
