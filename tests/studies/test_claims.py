"""Verdicts on claims, each worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from humanward.studies.claims import parse_claim, straightness, windows
from humanward.studies.measures import CurveSource, Measure, Measured

ARMS = ["clip", "rollback", "tr_rb"]


def finals(**arms: list[float]) -> dict[str, dict[int, Measured]]:
    """Final numbers ``m`` of each arm, by seed from 1."""
    return {arm: {seed: Measured({"m": value, "other": 10.0}, []) for seed, value in enumerate(values, 1)} for arm, values in arms.items()}


def courses(*rows: list[float], x: list[float] | None = None) -> dict[str, dict[int, Measured]]:
    """A course of ``y`` per seed, of one arm."""
    steps = [[{"y": y} | ({"kl": x[i]} if x else {}) for i, y in enumerate(row)] for row in rows]
    return {"clip": {seed: Measured({}, row) for seed, row in enumerate(steps, 1)}}


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ([0.0, 1.0, 2.0], "holds"),  # differences 3, 3, 3.5: far from 0
        ([2.0, 4.5, 5.5], "open"),  # differences 1, -0.5, 0: mean 0.17, half-width 4.3 * 0.76 / sqrt(3) = 1.9
        ([9.0, 10.0, 11.0], "does not hold"),
    ],
)
def test_an_order_is_judged_by_the_paired_interval(other: list[float], word: str) -> None:
    cells = finals(clip=[3.0, 4.0, 5.5], rollback=other)
    assert parse_claim("m: clip > rollback", ARMS).judge(cells).word == word
    assert parse_claim("m: rollback < clip", ARMS).judge(cells).word == word
    turned = {"holds": "does not hold", "open": "open", "does not hold": "holds"}
    assert parse_claim("m: rollback > clip", ARMS).judge(cells).word == turned[word]
    weak = {"holds": "holds", "open": "holds", "does not hold": "does not hold"}
    assert parse_claim("m: clip >= rollback", ARMS).judge(cells).word == weak[word]


def test_pairing_by_seed_sees_what_the_spread_over_seeds_would_hide() -> None:
    """100, 200, 300 against 99, 199.1, 299: the differences are 1, 0.9 and 1."""
    said = parse_claim("m: clip > rollback", ARMS).judge(finals(clip=[100.0, 200.0, 300.0], rollback=[99.0, 199.1, 299.0]))
    assert said.word == "holds"
    assert "clip − rollback: +0.97 [0.82, 1.11]" in said.because  # 4.3027 * 0.057735 / sqrt(3) = 0.1434


def test_a_chain_is_as_good_as_its_worst_link() -> None:
    cells = finals(clip=[5.0, 5.1], rollback=[3.0, 3.1], tr_rb=[4.0, 4.1])
    assert parse_claim("m: clip > rollback > tr_rb", ARMS).judge(cells).word == "does not hold"
    assert parse_claim("m: clip > tr_rb > rollback", ARMS).judge(cells).word == "holds"


def test_numbers_and_other_measures_stand_for_arms() -> None:
    cells = finals(clip=[5.0, 5.1], rollback=[3.0, 3.1])
    assert parse_claim("m: rollback < clip <= 5.05", ARMS).judge(cells).word == "holds"
    assert parse_claim("m: clip < clip.other", ARMS).judge(cells).word == "holds"
    assert parse_claim("m: clip > 6", ARMS).judge(cells).word == "does not hold"


@pytest.mark.parametrize(
    ("margin", "word"),
    [
        ("- 0.6", "holds"),  # differences -0.1, 0, 0.1 of mean 0, half-width 4.30 * 0.1 / sqrt(3) = 0.25: all above -0.6
        ("- 0.2", "open"),  # -0.25 is below -0.2
        ("- 0", "open"),  # without a margin it would hold
        ("+ 0.3", "does not hold"),  # 0.25 is below 0.3
    ],
)
def test_no_worse_than_a_margin_must_be_shown(margin: str, word: str) -> None:
    cells = finals(clip=[4.9, 6.0, 7.1], rollback=[5.0, 6.0, 7.0])
    assert parse_claim(f"m: clip >= rollback {margin}", ARMS).judge(cells).word == word
    assert parse_claim(f"m: rollback {margin} <= clip", ARMS).judge(cells).word == word
    assert parse_claim("m: clip >= rollback", ARMS).judge(cells).word == "holds"


def test_a_margin_stands_behind_arms_measures_and_numbers() -> None:
    cells = finals(clip=[5.0, 5.2], rollback=[3.0, 3.0])
    said = parse_claim("m: clip >= rollback - 0.5", ARMS).judge(cells)
    assert said.because == "clip − (rollback - 0.5): +2.6 [1.3, 3.9]"  # 2.5 and 2.7: 12.7 * 0.1
    assert parse_claim("m: clip <= clip.other - 4.5", ARMS).judge(cells).word == "open"  # 0.5 and 0.3: 0.4 ± 12.7 * 0.1
    assert parse_claim("m: clip >= 3 - 0.5", ARMS).judge(cells).word == "holds"
    assert parse_claim("m: one - 0.1 > b", ["one - 0.1", "b"]).judge({}).because == "no seed has one - 0.1 and b"


def test_one_seed_shows_nothing() -> None:
    said = parse_claim("m: clip > rollback", ARMS).judge(finals(clip=[5.0], rollback=[1.0]))
    assert said.word == "open"
    assert "one seed: no interval" in said.because


def test_only_common_seeds_are_compared() -> None:
    cells = finals(clip=[5.0, 5.0], rollback=[1.0, 1.0, 99.0])
    assert "+4 [4, 4]" in parse_claim("m: clip > rollback", ARMS).judge(cells).because
    assert parse_claim("m: clip > tr_rb", ARMS).judge(cells).word == "cannot be judged"
    assert parse_claim("nothing: clip > rollback", ARMS).judge(cells).word == "cannot be judged"


def test_a_range_holds_for_every_seed_and_for_not_every_seed_of_the_others() -> None:
    cells = finals(clip=[5.0, 6.0, 7.0], rollback=[5.0, 6.0, 7.5], tr_rb=[6.0, 6.0, 6.0])
    assert parse_claim("m in 5..7: clip, not rollback", ARMS).judge(cells).word == "holds"
    assert parse_claim("m in 5..7: rollback", ARMS).judge(cells).word == "does not hold"
    assert parse_claim("m in 5..7: clip, not tr_rb", ARMS).judge(cells).word == "does not hold"


def test_a_course_that_rises_and_falls() -> None:
    up_and_down = [[0.0, 1, 2, 3, 4, 3, 2, 1.5], [0.1, 1, 2, 3, 4.2, 3, 2, 1.0], [0.2, 1, 2, 3, 4, 3, 2, 1.2]]
    up = [[float(i) + s / 10 for i in range(8)] for s in range(3)]
    assert parse_claim("y rises then falls: clip", ARMS).judge(courses(*up_and_down)).word == "holds"
    assert parse_claim("y falls then rises: clip", ARMS).judge(courses(*up_and_down)).word == "does not hold"
    assert parse_claim("y rises then falls: clip", ARMS).judge(courses(*up)).word == "does not hold"
    assert parse_claim("y rises: clip", ARMS).judge(courses(*up)).word == "holds"
    assert parse_claim("y falls: clip", ARMS).judge(courses(*up)).word == "does not hold"
    assert parse_claim("y falls then rises: clip", ARMS).judge(courses(*([-v for v in row] for row in up_and_down))).word == "holds"
    assert parse_claim("y rises: clip", ARMS).judge(courses([1.0] * 7)).word == "cannot be judged"


def test_a_seed_turns_where_the_other_half_does() -> None:
    """The first and third seed peak in part 3 on average, (9 + 1) / 2 against (2 + 5) / 2 in part 5; the second in part 5."""
    rows = [[0.0, 1, 9, 2, 2, 2, 2, 1], [0.0, 1, 2, 2, 4, 2, 1, 1], [0.0, 1, 1, 2, 5, 2, 1, 1]]
    said = parse_claim("y rises then falls: clip", ARMS).judge(courses(*rows)).because
    assert said.startswith("clip, part 1 to 3, 5 of 8: +3.0 ")  # 2, 2 and 5
    assert "clip, part 3, 5 to 8 of 8: −2.0 " in said  # 1 - 2, 1 - 2 and 1 - 5


def test_one_seed_has_no_turning_point() -> None:
    said = parse_claim("y rises then falls: clip", ARMS).judge(courses([0.0, 1, 2, 3, 4, 3, 2, 1.5]))
    assert said.word == "cannot be judged"
    assert "one seed" in said.because


def test_noise_is_no_turn() -> None:
    """Courses that rise for one part and stay, with noise: a fall is shown about as often as a 95 % interval errs on one side, 2.5 %."""
    generator = np.random.default_rng(1)
    claim = parse_claim("y rises then falls: clip", ARMS)
    noisy = (courses(*(np.array([-9.0, *[0.0] * 7]) + generator.normal(size=(6, 8))).tolist()) for _ in range(1000))
    assert sum(claim.judge(cells).word == "holds" for cells in noisy) < 50


def test_the_root_is_told_from_the_straight_line() -> None:
    kl = [0.25 * i for i in range(1, 33)]
    root, line = [math.sqrt(x) for x in kl], [0.3 * x for x in kl]
    assert parse_claim("y ~ sqrt(kl): clip", ARMS).judge(courses(root, root, x=kl)).word == "holds"
    assert parse_claim("y ~ sqrt(kl): clip", ARMS).judge(courses(line, line, x=kl)).word == "does not hold"
    said = parse_claim("y ~ sqrt(kl) until 2: clip", ARMS).judge(courses(root, x=kl))
    assert "8 steps" in said.because


def test_parts_of_a_course_and_of_a_line() -> None:
    assert windows([float(i) for i in range(16)]) == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]
    assert straightness(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1.0)
    assert straightness(np.array([1.0, 2, 3]), np.array([1.0, 1, 1])) == 0.0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("m clip rollback", "is no claim"),
        ("m: clip > nobody", "no arm is called 'nobody'"),
        ("m in 1..2: nobody", "no arm is called 'nobody'"),
        ("y rises: nobody", "no arm is called 'nobody'"),
        ("sum(m): clip > rollback", "is no measure"),
    ],
)
def test_what_is_no_claim_is_said(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_claim(text, ARMS)


def test_measures() -> None:
    rows = [{"kl": float(i), "torn": math.nan} for i in range(8)]
    cell = Measured({"kl": 99.0}, rows, {"best_of_n": [(0.0, -2.0), (0.5, -1.0), (1.0, -1.5)]})
    expected = {"kl": 99.0, "last(kl)": 7.0, "first(kl)": 0.0, "max(kl)": 7.0, "mean(kl)": 3.5, "tail(kl)": 6.5, "kl@3": 3.0, "kl@8": None}
    expected |= {"first(best_of_n)": -2.0, "last(best_of_n)": -1.5, "max(best_of_n)": -1.0}
    assert {text: Measure.parse(text).of(cell) for text in expected} == expected
    assert Measure.parse("torn").of(cell) is None
    with pytest.raises(ValueError, match="is no measure"):
        Measure.parse("kl - 1")


def test_curves() -> None:
    cell = Measured({}, [{"kl": 1.0, "score": 2.0, "episodes": 64.0}, {"kl": 3.0}, {"kl": 4.0, "score": 5.0, "episodes": 192.0}])
    assert CurveSource.parse("score").points(cell) == ("episodes", [64.0, 192.0], [2.0, 5.0])
    assert CurveSource.parse("kl").points(cell) == ("step", [1.0, 2.0, 3.0], [1.0, 3.0, 4.0])
    assert CurveSource.parse("score over kl").points(cell) == ("kl", [1.0, 4.0], [2.0, 5.0])
    assert CurveSource.parse("score over kl with optimum, best_of_n").beside == ("optimum", "best_of_n")
    for text in ("score by kl", "score over kl with nothing"):
        with pytest.raises(ValueError, match="is no curve"):
            CurveSource.parse(text)
