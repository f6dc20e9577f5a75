"""Label kinds, the question queue and label store, labelers and known scores. Never imports torch."""

from __future__ import annotations

from humanward.feedback.judge import SentimentJudge
from humanward.feedback.kinds import KINDS, LabelKind, kind_of, to_comparisons
from humanward.feedback.labelers import Labeler, ScoreLabeler, answer_questions
from humanward.feedback.scores import Score, load_score, score_responses
from humanward.feedback.snapshot import Snapshot
from humanward.feedback.store import Answer, Assignment, Counts, Store

__all__ = [
    "KINDS",
    "Answer",
    "Assignment",
    "Counts",
    "LabelKind",
    "Labeler",
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
