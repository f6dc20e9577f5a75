"""The kinds of label: what a question of the kind is, what an answer to it is, and the comparison that a loss reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from humanward.errors import UserError
from humanward.records import Comparison, Label, Question
from humanward.records.answers import best_of_k_answer, is_number, pair_answer, ranking_answer, soft_answer

MAX_RESPONSES = 9
"""As many as there are digit keys."""
RATING_RANGE = (1, 9)
DIFFERENCE_RANGE = (-4, 4)
DISPUTED_RATINGS = 3


def rating_answer(answer: Any, k: int) -> float:
    """How good the one response is."""
    return _number_between(answer, *RATING_RANGE)


def difference_answer(answer: Any, k: int) -> float:
    """How much better the first response is than the second; negative where the second is better."""
    return _number_between(answer, *DIFFERENCE_RANGE)


def first_shown(answer: int | str, permutation: Sequence[int]) -> Any:
    """An index among the responses as shown -> its index in the question; "tie" stays."""
    return permutation[answer] if isinstance(answer, int) else answer


def list_shown(answer: list[Any], permutation: Sequence[int]) -> list[Any]:
    """One value for each response as shown -> the values in the order of the question."""
    values = [None] * len(permutation)
    for place, index in enumerate(permutation):
        values[index] = answer[place]
    return values


def difference_shown(answer: float, permutation: Sequence[int]) -> float:
    """First shown minus second shown -> first minus second of the question."""
    return answer if permutation[0] == 0 else -answer


def same(answer: Any, permutation: Sequence[int]) -> Any:
    """An answer that no order changes."""
    return answer


def differ(answers: Sequence[Any]) -> bool:
    """Not all are equal."""
    return any(answer != answers[0] for answer in answers)


def no_common_best(answers: Sequence[list[int]]) -> bool:
    """No response is ranked first by all."""
    return not set.intersection(*({index for index, rank in enumerate(ranks) if rank == 0} for ranks in answers))


def far_apart(answers: Sequence[float]) -> bool:
    """Ratings that are DISPUTED_RATINGS or more apart."""
    return max(answers) - min(answers) >= DISPUTED_RATINGS


def opposite(answers: Sequence[float]) -> bool:
    """One says that the first response is better, another that the second is."""
    return min(answers) < 0 < max(answers)


def most_probable_differ(answers: Sequence[list[float]]) -> bool:
    """No response is the most probable one for all."""
    return not set.intersection(*({index for index, p in enumerate(soft) if p == max(soft)} for soft in answers))


@dataclass(frozen=True)
class LabelKind:
    """One kind of label. A new kind is one entry of ``KINDS``, and one loss in maths if something is to be trained from it."""

    name: str
    least_responses: int
    most_responses: int
    parse: Callable[[Any, int], Any]
    """(answer, K) -> the answer in its stored form; UserError with what was expected."""
    unpermute: Callable[[Any, Sequence[int]], Any]
    """(parsed answer about the responses as shown, permutation) -> the answer in the order of the question."""
    default_instructions: str
    disagree: Callable[[Sequence[Any]], bool]
    """(two or more stored answers to one question) -> whether a researcher should look at them."""

    def check_question(self, question: Question) -> None:
        """UserError unless the question can be asked with this kind."""
        k = len(question.responses)
        if not self.least_responses <= k <= self.most_responses:
            span = f"{self.least_responses}" + (f" to {self.most_responses}" if self.most_responses > self.least_responses else "")
            raise UserError(f"question {question.id}: {self.name} needs {span} responses, found {k}")

    def check_answer(self, question: Question, answer: Any) -> Any:
        """The answer in its stored form; UserError that names the question."""
        try:
            return self.parse(answer, len(question.responses))
        except UserError as error:
            raise UserError(f"question {question.id}: answer of kind {self.name}: {error}") from None


def kind_of(question: Question) -> LabelKind:
    """The kind of a question; UserError when there is none of that name."""
    if question.kind not in KINDS:
        raise UserError(f"question {question.id}: unknown kind {question.kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[question.kind]


def to_comparisons(questions: Sequence[Question], labels: Sequence[Label]) -> list[Comparison]:
    """One comparison per label, in the order of the labels; an adjudicated question has that of its adjudication alone."""
    by_id = {question.id: question for question in questions}
    decided = {label.question_id for label in labels if label.adjudication}
    counting = (label for label in labels if label.adjudication or label.question_id not in decided)
    return [Comparison.of(by_id[label.question_id], label) for label in counting]


def _number_between(answer: Any, least: float, most: float) -> float:
    if not is_number(answer) or not least <= answer <= most:
        raise UserError(f"expected a number from {least} to {most}, found {answer!r}")
    return float(answer)


KINDS: dict[str, LabelKind] = {
    kind.name: kind
    for kind in (
        LabelKind("best_of_k", 2, MAX_RESPONSES, best_of_k_answer, first_shown, "Choose the best response.", differ),
        LabelKind("pair", 2, 2, pair_answer, first_shown, "Choose the better response, or say that they are equally good.", differ),
        LabelKind(
            "ranking",
            2,
            MAX_RESPONSES,
            ranking_answer,
            list_shown,
            "Order the responses from best to worst. Ties are allowed.",
            no_common_best,
        ),
        LabelKind("rating", 1, 1, rating_answer, same, "Rate the response from 1 (worst) to 9 (best).", far_apart),
        LabelKind(
            "difference", 2, 2, difference_answer, difference_shown, "Say how much better the first response is, from -4 to 4.", opposite
        ),
        LabelKind(
            "soft",
            2,
            MAX_RESPONSES,
            soft_answer,
            list_shown,
            "Give each response the probability that it is the best one.",
            most_probable_differ,
        ),
    )
}
