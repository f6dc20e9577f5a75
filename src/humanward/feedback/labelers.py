"""Whoever answers questions without a page: a labeler with a known score and known noise, and the loop that lets labelers work."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from humanward.errors import UserError
from humanward.feedback.kinds import DIFFERENCE_RANGE, RATING_RANGE
from humanward.feedback.scores import Score, score_responses
from humanward.feedback.store import Answer, Assignment, Store
from humanward.records import Label, Question, content_id
from humanward.records.answers import TIE

BATCH = 64
"""Questions leased, answered and recorded together."""
POINTS_PER_SCORE = 2.0
"""Of a rating or a difference: the nine points span four units of a score, about what normalised scores span."""


class Labeler(Protocol):
    """Somebody with a name who can answer a question.

    A labeler that is faster with many questions at once also has ``answer_many(questions) -> answers``.
    """

    @property
    def name(self) -> str:
        """Who it is; a labeler never gets the same question twice."""
        ...

    def answer(self, question: Question) -> Any:
        """The answer, in the order of ``question.responses``."""
        ...


class ScoreLabeler:
    """Prefers the response with the highest score; with probability ``noise`` it answers uniformly at random instead.

    No state: what it answers depends on the question, its name and its seed alone. Equal scores are settled by lot, or are ties where the
    kind has ties. ``ANSWERS`` has what it says to questions of each kind.
    """

    def __init__(self, name: str, score: Score, noise: float = 0.0, seed: int = 0) -> None:
        """noise: 0 to 1; at 1 the answer says nothing about the score."""
        if not 0 <= noise <= 1:
            raise UserError(f"labeler {name}: noise {noise}: expected a probability, 0 to 1")
        self.name, self.score, self.noise, self.seed = name, score, noise, seed

    def answer(self, question: Question) -> Any:
        """The answer to one question."""
        return self.answer_many([question])[0]

    def answer_many(self, questions: Sequence[Question]) -> list[Any]:
        """The answers to several questions, with one call of the score."""
        prompts = [question.prompt.text for question in questions for _ in question.responses]
        responses = [response.text for question in questions for response in question.responses]
        scores = iter(score_responses(self.score, prompts, responses, f"labeler {self.name}"))
        return [self._answer(question, [next(scores) for _ in question.responses]) for question in questions]

    def _answer(self, question: Question, scores: list[float]) -> Any:
        lots = [self._uniform(question, index) for index in range(len(scores))]
        if self._uniform(question, "noise") < self.noise:
            scores = [4 * lot - 2 for lot in lots]  # from end to end of a rating's scale
        return ANSWERS[question.kind](scores, lots)

    def _uniform(self, question: Question, purpose: int | str) -> float:
        """A number in [0, 1) that only this labeler gets, for this question and this purpose."""
        key = json.dumps([self.seed, self.name, question.id, purpose]).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


def best_by_score(scores: Sequence[float], lots: Sequence[float]) -> int:
    """The index of the highest score, by lot among equals."""
    return max(range(len(scores)), key=lambda index: (scores[index], lots[index]))


def pair_by_score(scores: Sequence[float], lots: Sequence[float]) -> int | str:
    """0, 1, or "tie" for equal scores."""
    return TIE if scores[0] == scores[1] else best_by_score(scores, lots)


def ranks_by_score(scores: Sequence[float], lots: Sequence[float]) -> list[int]:
    """The rank of each, 0 for the highest score; equal scores share a rank."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) for score in scores]


def soft_by_score(scores: Sequence[float], lots: Sequence[float]) -> list[float]:
    """Softmax of the scores: the probability that each is chosen (Bradley and Terry 1952, for K responses Luce 1959)."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def rating_by_score(scores: Sequence[float], lots: Sequence[float]) -> float:
    """The middle of the scale for a score of 0, and two points for every unit of it."""
    least, most = RATING_RANGE
    return min(max((least + most) / 2 + POINTS_PER_SCORE * scores[0], least), most)


def difference_by_score(scores: Sequence[float], lots: Sequence[float]) -> float:
    """Two points for every unit by which the first score is larger."""
    least, most = DIFFERENCE_RANGE
    return min(max(POINTS_PER_SCORE * (scores[0] - scores[1]), least), most)


ANSWERS: dict[str, Callable[[Sequence[float], Sequence[float]], Any]] = {
    "best_of_k": best_by_score,
    "pair": pair_by_score,
    "ranking": ranks_by_score,
    "soft": soft_by_score,
    "rating": rating_by_score,
    "difference": difference_by_score,
}


def answer_questions(
    store: Store,
    labelers: Sequence[Labeler],
    on_answer: Callable[[Label], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> int:
    """Let the labelers answer until there is nothing left for any of them, or ``should_stop`` says so; returns how many answers came in.

    They go through leases and records like a person. Whoever has the fewest labels is next, so that who answers what depends on the store
    alone: a run that is killed and repeated ends with the same labels, each of them once. Leases of these labelers that a killed run left
    behind are given back first, so do not let two processes answer under the same name.
    """
    names = [labeler.name for labeler in labelers]
    if len(set(names)) < len(names):
        raise UserError(f"labelers {', '.join(names)}: two of them have the same name; every labeler needs their own")
    for name in names:
        store.release(name)
    busy, done, answered = list(labelers), store.labels_by(names), 0
    while busy and not (should_stop and should_stop()):
        labeler = min(busy, key=lambda one: done[one.name])
        labels = _answer_some(store, labeler)
        if not labels:
            busy.remove(labeler)
        done[labeler.name] += len(labels)
        answered += len(labels)
        for label in labels:
            if on_answer:
                on_answer(label)
    return answered


def _answer_some(store: Store, labeler: Labeler) -> list[Label]:
    answer_many = getattr(labeler, "answer_many", None)
    assignments = store.lease_many(labeler.name, BATCH if answer_many else 1)
    if not assignments:
        return []
    try:
        questions = [assignment.question for assignment in assignments]
        answers = answer_many(questions) if answer_many else [labeler.answer(question) for question in questions]
    except BaseException:
        store.release(labeler.name)
        raise
    return store.record_many(labeler.name, [_to_record(*pair) for pair in zip(assignments, answers, strict=True)])


def _to_record(assignment: Assignment, answer: Any) -> Answer:
    question = assignment.question.id
    return Answer(question, answer, content_id("answer", assignment.labeler, question, assignment.attempt))
