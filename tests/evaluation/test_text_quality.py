from __future__ import annotations

import pytest

from humanward.evaluation import copied_share, distinct_share, repeated_share, text_quality


def test_distinct_share_by_hand():
    # a b a b | a b: 2-grams ab ba ab ab -> 2 different of 4
    assert distinct_share(["abab", "ab"], 2) == 0.5


def test_repeated_share_by_hand():
    # aaaaaa: 4-grams aaaa x 3 -> 2 of 3 repeated; abcd: 0; abc: too short, does not count. Mean of 2/3 and 0.
    assert repeated_share(["aaaaaa", "abcd", "abc"], 4) == pytest.approx(1 / 3)


def test_copied_share_by_hand():
    # prompt has bc cd; response bcx: bc copied, cx not -> 1/2. The second copies nothing of its own prompt, though it does of the first.
    assert copied_share(["bcd", "xyz"], ["bcx", "bcd"], 2) == 0.25


def test_nothing_to_count_is_none_not_zero():
    assert distinct_share(["a"], 2) is None
    assert repeated_share([], 4) is None
    assert copied_share([], [], 2) is None
    assert text_quality([]) == {"distinct_2": None, "repeated_4grams": None, "copied_4grams": None, "length": None}


def test_repetition_moves_both_measures_the_right_way():
    good, loop = text_quality([list(range(20))] * 1), text_quality([[1, 2] * 10])
    assert loop["distinct_2"] < good["distinct_2"]  # type: ignore[operator]
    assert loop["repeated_4grams"] > good["repeated_4grams"]  # type: ignore[operator]
    assert loop["length"] == good["length"] == 20


@pytest.mark.parametrize("n", [0, -1])
def test_n_below_one_is_refused(n: int):
    with pytest.raises(ValueError, match="at least 1"):
        distinct_share(["ab"], n)


def test_prompts_and_responses_must_match():
    with pytest.raises(ValueError, match="2 prompts for 1 responses"):
        copied_share(["a", "b"], ["a"], 1)
