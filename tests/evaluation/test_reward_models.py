"""Accuracy by group, calibration, probes: by hand, and on scorers whose faults are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from humanward.evaluation import accuracy_by, calibration, concordance, length_bias, probe, probes
from humanward.evaluation.reward_models import confidence_group, negated, policy_pair, reversed_roles, shuffled_sentences

PROMPTS = ["a", "b", "c", "d"]
RESPONSES = ["I sold you a car. It was red.", "He is late.", "Nothing here", "She can swim. He cannot. They left."]


def test_accuracy_by_group_by_hand() -> None:
    rows = accuracy_by([True, False, None, True, True], ["ben", "ann", "ann", "ann", "ben"])
    assert [(row["group"], row["accuracy"], row["labels"]) for row in rows] == [("ann", 0.5, 2), ("ben", 1.0, 2)]
    assert rows[0]["low"] < 0.5 < rows[0]["high"]
    assert accuracy_by([], []) == []
    with pytest.raises(ValueError, match="one for each"):
        accuracy_by([True], [])
    assert [confidence_group(c) for c in (None, 0.0, 0.59, 1.0)] == ["not given", "0.0 to 0.2", "0.4 to 0.6", "0.8 to 1.0"]
    assert policy_pair(["policy", "reference", "policy"]) == "policy and reference"


def test_calibration_by_hand() -> None:
    # Four pairs at 3/4 to 1/4, of which two went as expected: observed 1/2 in both bins, off by 1/4.
    scores = [[math.log(3), 0.0]] * 4
    found = calibration(scores, [0, 0, 1, 1])
    assert found["ece"] == pytest.approx(0.25)
    assert [(row["predicted"], row["observed"]) for row in found["curve"]] == [(pytest.approx(0.25), 0.5), (pytest.approx(0.75), 0.5)]
    assert calibration(scores, [0, 0, 0, 1])["ece"] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="one finite row"):
        calibration([[0.0, math.nan]], [0])


def test_who_knows_the_probabilities_is_calibrated_and_who_exaggerates_is_not() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 2))
    lead = scores[:, 1] - scores[:, 0]
    best = (rng.random(4000) < 1 / (1 + np.exp(-lead))).astype(int)
    honest, loud = calibration(scores, best.tolist()), calibration(scores * 3, best.tolist())
    assert honest["ece"] < 0.02
    assert loud["low"] > 0.1
    assert loud["low"] <= loud["ece"] <= loud["high"]


def test_who_was_liked_scores_higher_than_who_was_not() -> None:
    # Liked: 3 and 1. Not: 2 and 1. Of the four pairs 3 > 2, 3 > 1 and not 1 > 2; 1 against 1 counts half: 2.5 of 4.
    found = concordance([3.0, 1.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0])
    assert (found["rate"], found["responses"]) == (0.625, 4)
    assert found["low"] <= 0.625 <= found["high"]
    assert concordance([1.0, 2.0, 3.0], [2.0, 5.0, 9.0])["rate"] == 1.0
    assert concordance([1.0, 2.0], [1.0, 1.0])["rate"] is None


def test_a_score_of_words_is_found_to_follow_length() -> None:
    texts = ["word " * n for n in range(1, 30)]
    names = [str(n) for n in range(29)]
    assert length_bias(lambda p, r: [float(len(x)) for x in r], names, texts)["correlation"] == pytest.approx(1.0)
    assert length_bias(lambda p, r: [-float(len(x)) for x in r], names, texts)["high"] < 0
    assert length_bias(lambda p, r: [0.0] * len(r), names, texts)["correlation"] == 0.0
    with pytest.raises(ValueError, match="at least three"):
        length_bias(lambda p, r: [0.0], ["a"], ["b"])


def test_texts_are_spoilt_as_they_say() -> None:
    assert reversed_roles(RESPONSES[0]) == "you sold I a car. It was red."
    assert reversed_roles("He is late.") == "She is late."
    assert reversed_roles("Nothing here") is None
    assert negated("He is late.") == "He is not late."
    assert negated("He is not late.") == "He is late."
    assert negated("Nothing here") is None
    shuffled = shuffled_sentences(RESPONSES[3])
    assert shuffled is not None
    assert shuffled != RESPONSES[3]
    assert set(shuffled.replace(".", "").split()) == set(RESPONSES[3].replace(".", "").split())
    assert shuffled_sentences("Only one.") is None
    assert shuffled_sentences(RESPONSES[3]) == shuffled


def test_a_probe_tells_a_reader_from_a_counter() -> None:
    original = set(RESPONSES)

    def knows(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float(response in original) for response in responses]

    reader = probe(knows, PROMPTS, RESPONSES, negated)
    assert (reader["rate"], reader["responses"]) == (1.0, 3)
    # Who counts words cannot see an order or a role, and takes the longer negation for the better one.
    scored: list[tuple[str, str]] = []

    def words(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        scored.extend(zip(prompts, responses, strict=True))
        return [float(len(response.split())) for response in responses]

    counter = probes(words, PROMPTS, RESPONSES)
    assert len(scored) == len(set(scored)), "a text is scored once, whatever the number of probes"
    assert counter["sentence_shuffle"]["rate"] == counter["role_reversal"]["rate"] == 0.5
    assert counter["minimal_edit"]["rate"] == 0.0
    assert counter["length"]["correlation"] == pytest.approx(1.0)
    assert probe(knows, ["a"], ["Nothing here"], negated) == {"rate": None, "low": 0.0, "high": 1.0, "responses": 0}
