"""Who is right how often, from labels alone."""

from __future__ import annotations

import numpy as np
import pytest

from humanward.maths import estimate_labeler_noise


def one_hot(choice: int, K: int) -> list[float]:
    return [float(k == choice) for k in range(K)]


def test_one_label_is_as_soft_as_its_labeler() -> None:
    # Nobody to compare with: 4 right and 1 wrong beforehand, so 0.8 for the choice and 0.2 / 3 for each other response of four.
    found = estimate_labeler_noise(["q"], ["ann"], [one_hot(2, 4)])
    assert found.items == ["q"]
    assert found.right.tolist() == pytest.approx([0.8])
    assert found.posterior[0].tolist() == pytest.approx([0.2 / 3, 0.2 / 3, 0.8, 0.2 / 3])


def test_two_against_one_by_hand() -> None:
    # With priors so strong that rates stay at 0.8: (0.8 * 0.8 * 0.2, 0.2 * 0.2 * 0.8) = (0.128, 0.032), so 0.8 for the two.
    votes = [one_hot(0, 2), one_hot(0, 2), one_hot(1, 2)]
    found = estimate_labeler_noise(["q"] * 3, ["a", "b", "c"], votes, prior_right=4e9, prior_wrong=1e9)
    assert found.posterior[0].tolist() == pytest.approx([0.8, 0.2], abs=1e-6)
    # The first iteration from there, with the usual prior: those two were right with 0.8, (4 + 0.8) / 6 = 0.8, the third (4 + 0.2) / 6.
    once = estimate_labeler_noise(["q"] * 3, ["a", "b", "c"], votes, most_iterations=1)
    assert once.right.tolist() == pytest.approx([0.8, 0.8, 0.7])


def test_a_tie_says_nothing_about_the_question() -> None:
    found = estimate_labeler_noise(["q", "q"], ["a", "b"], [[0.5, 0.5], one_hot(1, 2)], prior_right=4e9, prior_wrong=1e9)
    assert found.posterior[0].tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


def test_known_rates_are_found_and_beat_the_majority() -> None:
    rng = np.random.default_rng(0)
    N, K, rates = 600, 4, np.array([0.95, 0.9, 0.7, 0.4, 0.3])
    truth = rng.integers(K, size=N)
    wrong = (truth[:, None] + rng.integers(1, K, size=(N, len(rates)))) % K
    said = np.where(rng.random((N, len(rates))) < rates, truth[:, None], wrong)
    rows = [(n, labeler, one_hot(said[n, labeler], K)) for n in range(N) for labeler in range(len(rates))]
    found = estimate_labeler_noise(*zip(*rows, strict=True))
    # The deviation of a rate over 600 questions is at most 0.02.
    assert found.right == pytest.approx(rates, abs=0.06)
    majority = np.array([np.bincount(row, minlength=K).argmax() for row in said])
    estimated = found.posterior.argmax(1)
    assert (estimated == truth).mean() > (majority == truth).mean() + 0.03
    # Posteriors are honest: what is believed with p is right p of the time.
    assert found.posterior.max(1).mean() == pytest.approx((estimated == truth).mean(), abs=0.02)


def test_the_order_of_labels_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    rows = [(n, f"l{j}", one_hot(int(rng.integers(3)), 3)) for n in range(12) for j in range(3)]
    one = estimate_labeler_noise(*zip(*rows, strict=True))
    other = estimate_labeler_noise(*zip(*rows[::-1], strict=True))
    assert dict(zip(one.labelers, one.right.round(9), strict=True)) == dict(zip(other.labelers, other.right.round(9), strict=True))


@pytest.mark.parametrize(
    ("items", "labelers", "votes"),
    [([], [], []), (["q"], ["a", "b"], [[1, 0]]), (["q"], ["a"], [[1.0]]), (["q"], ["a"], [[0.7, 0.7]]), (["q"], ["a"], [[1.5, -0.5]])],
)
def test_what_is_no_vote_is_refused(items: list[str], labelers: list[str], votes: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        estimate_labeler_noise(items, labelers, votes)
