from __future__ import annotations

import json
import math

import pytest

from humanward.evaluation import accuracy_row, mean_with_interval, win_rates


def test_win_rates_by_hand():
    # 2 wins, 1 loss, 1 tie of 4: (2 + 0.5) / 4
    [row] = win_rates({"ppo": [1, 2, 3, 4], "reference": [0, 1, 4, 4]}, [("ppo", "reference")])
    assert (row["policy"], row["against"], row["wins"], row["losses"], row["ties"], row["rate"]) == ("ppo", "reference", 2, 1, 1, 0.625)
    assert 0 < row["low"] < 0.625 < row["high"] < 1  # type: ignore[operator]
    assert json.loads(json.dumps(row)) == row


def test_swapping_the_pair_mirrors_the_row():
    scores = {"a": [0.1, 0.5, 0.3, 0.9, 0.2], "b": [0.2, 0.4, 0.3, 0.1, 0.0]}
    one, other = win_rates(scores, [("a", "b"), ("b", "a")])
    assert one["rate"] == pytest.approx(1 - other["rate"])  # type: ignore[operator]
    assert one["low"] == pytest.approx(1 - other["high"])  # type: ignore[operator]


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="no scores for 'dpo'; there are scores for ppo"):
        win_rates({"ppo": [1.0]}, [("ppo", "dpo")])


def test_mean_with_interval():
    row = mean_with_interval([1.0, 2.0, 3.0, 4.0] * 25, seed=1)
    # standard error = sqrt(1.25 / 100) = 0.112; the percentile interval is about +-0.22
    assert row["mean"] == 2.5
    assert row["low"] == pytest.approx(2.28, abs=0.05)  # 0.05: 2,000 resamples of a discrete mean
    assert row["high"] == pytest.approx(2.72, abs=0.05)
    assert row == mean_with_interval([1.0, 2.0, 3.0, 4.0] * 25, seed=1)


def test_clusters_widen_the_interval():
    values = [0.0] * 50 + [1.0] * 50
    alone = mean_with_interval(values, seed=1)
    together = mean_with_interval(values, seed=1, clusters=[i // 25 for i in range(100)])
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_give_no_mean_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="not finite"):
        mean_with_interval(values, seed=1)


def test_accuracy_row():
    row = accuracy_row([True] * 5 + [False] * 5, round_number=2, responses_per_question=4)
    assert row["low"] == pytest.approx(0.2366, abs=1e-4)  # Wilson's interval of 5 of 10
    assert (row["round"], row["accuracy"], row["questions"], row["chance"]) == (2, 0.5, 10, 0.25)
    with pytest.raises(ValueError, match="0 questions"):
        accuracy_row([], round_number=1, responses_per_question=4)
