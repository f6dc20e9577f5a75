from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from humanward.errors import RunError, UserError
from humanward.feedback import ScoreLabeler, Store, answer_questions
from humanward.feedback.kinds import KINDS
from humanward.feedback.labelers import ANSWERS
from humanward.records import Label, Question

Ask = Callable[..., Question]


def words_first(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """good 0, bad 1, wonderful 2, plain 3, …: the last response is the best."""
    return [float(["good", "bad", "wonderful", "plain", "dull", "fine"].index(response.split()[1])) for response in responses]


def flat(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [0.0] * len(responses)


def test_the_highest_score_wins(ask: Ask) -> None:
    labeler = ScoreLabeler("score", words_first)
    assert labeler.answer(ask(0)) == 3
    assert ScoreLabeler("score", lambda p, r: [-s for s in words_first(p, r)]).answer(ask(0)) == 0
    assert labeler.answer(ask(0, k=2, kind="pair")) == 1
    assert labeler.answer(ask(0, k=3, kind="ranking")) == [2, 1, 0]
    assert ScoreLabeler("flat", flat).answer(ask(0, k=2, kind="pair")) == "tie"


def test_a_score_answers_every_kind_of_question(ask: Ask) -> None:
    def halves(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [0.5 * k for k in range(len(responses))]

    assert set(ANSWERS) == set(KINDS)
    labeler = ScoreLabeler("score", halves)
    assert labeler.answer(ask(0, k=1, kind="rating")) == 5.0  # the middle of 1 to 9 at a score of 0
    assert ScoreLabeler("score", lambda p, r: [0.75]).answer(ask(0, k=1, kind="rating")) == 6.5  # 5 + 2 * 0.75
    assert ScoreLabeler("score", lambda p, r: [-40.0]).answer(ask(0, k=1, kind="rating")) == 1.0
    assert labeler.answer(ask(0, k=2, kind="difference")) == -1.0  # 2 * (0 - 0.5)
    assert ScoreLabeler("score", lambda p, r: [9.0, 0.0]).answer(ask(0, k=2, kind="difference")) == 4.0
    first, second = labeler.answer(ask(0, k=2, kind="soft"))
    assert second / first == pytest.approx(math.exp(0.5))
    assert first + second == pytest.approx(1, abs=1e-12)
    for kind, K in (("rating", 1), ("difference", 2), ("soft", 3)):
        question = ask(0, k=K, kind=kind)
        assert KINDS[kind].check_answer(question, labeler.answer(question)) == labeler.answer(question)


def test_noisy_ratings_are_uniform(ask: Ask) -> None:
    ratings = ScoreLabeler("noisy", flat, noise=1.0).answer_many([ask(number, k=1, kind="rating") for number in range(2000)])
    # Uniform on [1, 9]: mean 5, deviation 8 / sqrt(12) = 2.309, of the mean 2.309 / sqrt(2000) = 0.0516.
    assert abs(sum(ratings) / 2000 - 5) < 4 * 0.0516
    assert min(ratings) < 1.1
    assert max(ratings) > 8.9


def test_noise_is_a_uniform_answer_at_its_rate(ask: Ask) -> None:
    questions = [ask(number) for number in range(2000)]
    answers = ScoreLabeler("noisy", words_first, noise=0.4, seed=1).answer_many(questions)
    # Right answers: 1 - 0.4 + 0.4 / 4 = 0.7; the three others 0.1 each.
    # Standard deviations: sqrt(0.21 / 2000) = 0.0102, sqrt(0.09 / 2000) = 0.0067.
    shares = [answers.count(index) / 2000 for index in range(4)]
    assert abs(shares[3] - 0.7) < 4 * 0.0102
    assert all(abs(share - 0.1) < 4 * 0.0067 for share in shares[:3])
    assert answers == [ScoreLabeler("noisy", words_first, noise=0.4, seed=1).answer(question) for question in questions]
    assert answers != ScoreLabeler("noisy", words_first, noise=0.4, seed=2).answer_many(questions)
    assert answers != ScoreLabeler("other", words_first, noise=0.4, seed=1).answer_many(questions)


def test_equal_scores_are_settled_by_lot(ask: Ask) -> None:
    answers = ScoreLabeler("flat", flat).answer_many([ask(number) for number in range(2000)])
    assert all(abs(answers.count(index) / 2000 - 0.25) < 4 * 0.0097 for index in range(4))  # sqrt(0.1875 / 2000)


@pytest.mark.parametrize("noise", [-0.1, 1.1])
def test_noise_is_a_probability(noise: float) -> None:
    with pytest.raises(UserError, match="expected a probability, 0 to 1"):
        ScoreLabeler("noisy", flat, noise=noise)


def test_bad_scores_are_one_line(ask: Ask) -> None:
    for score, message in (
        (lambda p, r: [0.0], "labeler bad: gave 1 scores for 4 responses"),
        (lambda p, r: [float("nan")] * len(r), "labeler bad: gave nan for the response 'a good day, number 0.'"),
    ):
        with pytest.raises(RunError, match=message):
            ScoreLabeler("bad", score).answer(ask(0))


def team() -> list[ScoreLabeler]:
    return [ScoreLabeler(name, words_first, noise=0.5) for name in ("ann", "bob", "cy")]


def asked(store: Store, ask: Ask) -> Store:
    store.add_questions([ask(number, overlap=3 if number % 10 == 0 else 1) for number in range(200)])
    return store


def said(store: Store) -> list[tuple[str, str, Any, str]]:
    return sorted((label.question_id, label.labeler, label.answer, label.id) for label in store.labels())


def test_everything_is_answered_with_its_overlap(store: Store, ask: Ask) -> None:
    seen: list[Label] = []
    assert answer_questions(asked(store, ask), team(), on_answer=seen.append) == 240  # 180 + 20 * 3
    assert seen == store.labels()
    assert store.counts().missing == 0
    assert answer_questions(store, team()) == 0


def test_a_stopped_or_broken_run_goes_on_to_the_same_labels(ask: Ask) -> None:
    quiet = asked(Store.in_memory(), ask)
    answer_questions(quiet, team())
    disturbed = asked(Store.in_memory(), ask)
    stops = iter([False, True])
    assert answer_questions(disturbed, team(), should_stop=lambda: next(stops)) == 64

    def broken(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_questions(disturbed, [ScoreLabeler("ann", broken), *team()[1:]])
    disturbed.lease_many("bob", 7)  # what a killed process leaves behind
    answer_questions(disturbed, team())
    assert said(disturbed) == said(quiet)
    assert disturbed.snapshot().sha256 == quiet.snapshot().sha256


def test_an_undone_answer_is_given_again(store: Store, ask: Ask) -> None:
    store.add_questions([ask(0)])
    labeler = ScoreLabeler("ann", words_first)
    answer_questions(store, [labeler])
    store.undo("ann", "undo")
    assert answer_questions(store, [labeler]) == 1
    assert [label.answer for label in store.labels()] == [3]


def test_a_labeler_without_batches(store: Store, ask: Ask) -> None:
    class Slow:
        name = "slow"

        def answer(self, question: Question) -> int:
            return int(question.id[1:]) % 4

    store.add_questions([ask(number) for number in range(5)])
    assert answer_questions(store, [Slow()]) == 5
    assert [label.answer for label in store.labels()] == [0, 1, 2, 3, 0]


def test_names_are_their_own(store: Store) -> None:
    with pytest.raises(UserError, match="two of them have the same name"):
        answer_questions(store, [ScoreLabeler("ann", flat), ScoreLabeler("ann", flat)])
