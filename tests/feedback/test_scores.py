from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from humanward.errors import UserError
from humanward.feedback import SentimentJudge, load_score
from humanward.feedback.judge import JudgeSettings, NgramHasher, words
from humanward.feedback.scores import JUDGE_FOLDER

HAPPY = ["What a wonderful, beautiful story.", "They laughed and loved every moment of it.", "The best dinner ever, simply delightful!"]
SAD = ["What a terrible, boring story.", "It was a stupid and pointless waste of time.", "The worst dinner ever, simply awful!"]


@pytest.fixture(scope="module")
def judge() -> SentimentJudge:
    return SentimentJudge.load(JUDGE_FOLDER)


def test_the_judge_knows_good_from_bad(judge: SentimentJudge) -> None:
    happy, sad = judge([""] * 3, HAPPY), judge([""] * 3, SAD)
    assert min(happy) > -0.2
    assert max(sad) < -2
    assert judge.log_odds(["not good"])[0] < judge.log_odds(["good"])[0]


def test_both_sides_are_probabilities(judge: SentimentJudge) -> None:
    positive, negative = load_score("positive"), load_score("negative")
    total = np.exp(positive([""] * 6, HAPPY + SAD)) + np.exp(negative([""] * 6, HAPPY + SAD))
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_prompts_and_neighbours_change_nothing(judge: SentimentJudge) -> None:
    alone = [judge(["x"], [text])[0] for text in HAPPY + SAD]
    assert judge(["Awful awful awful."] * 6, HAPPY + SAD) == alone
    assert judge([], []) == []


def test_texts_without_words(judge: SentimentJudge) -> None:
    assert judge(["", "", ""], ["", "...", "\ud800 %"])[0] == pytest.approx(-np.log1p(np.exp(-judge.settings.bias)))


def test_words() -> None:
    assert words("Don\u2019t STOP<br />now... Why?! 9/10, a_b") == ["don't", "stop", "now", "...", "why", "?!", "9", "10", "a", "b"]


def test_ngrams_stay_within_their_text_and_count_once() -> None:
    hasher = NgramHasher(2)
    rows, hashes = hasher(["a b", "", "a", "b a b a"])
    # a, b, "a b" | nothing | a | a, b, "b a", "a b"
    assert np.bincount(rows, minlength=4).tolist() == [3, 0, 1, 4]
    assert set(hashes[rows == 0]) < set(hashes[rows == 3])
    assert hashes[rows == 2][0] in hashes[rows == 0]


def test_log_odds_by_hand(tmp_path: Path) -> None:
    hashes = np.sort(NgramHasher(1)(["good bad"])[1])
    good = NgramHasher(1)(["good"])[1][0]
    judge = SentimentJudge(hashes, np.where(hashes == good, 2.0, -3.0), JudgeSettings(1, 1.5, 0.25, 0.5))
    # 0.25 + 1.5 * (2 - 3) / sqrt(4 distinct words), and 0.25 + 1.5 * 2 / sqrt(1)
    np.testing.assert_allclose(judge.log_odds(["good bad other words good", "good good"]), [-0.5, 3.25])
    judge.save(tmp_path / "judge")
    assert SentimentJudge.load(tmp_path / "judge").log_odds(["good"]) == judge.log_odds(["good"])


def test_the_asset_is_small_and_holds_no_text() -> None:
    assert sum(path.stat().st_size for path in JUDGE_FOLDER.iterdir()) < 8_000_000
    assert {path.name for path in JUDGE_FOLDER.iterdir()} == {"README.md", "judge.json", "judge.safetensors"}


def test_damaged_judges(tmp_path: Path) -> None:
    def damaged(name: str, data: bytes | None) -> Path:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(JUDGE_FOLDER, folder)
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        return folder

    settings = json.loads((JUDGE_FOLDER / "judge.json").read_text())
    for folder in (
        tmp_path / "none",
        damaged("judge.json", None),
        damaged("judge.json", b"{"),
        damaged("judge.json", json.dumps({**settings, "format": "other"}).encode()),
        damaged("judge.json", json.dumps({**settings, "colour": 1}).encode()),
        damaged("judge.safetensors", (JUDGE_FOLDER / "judge.safetensors").read_bytes()[:1000]),
    ):
        with pytest.raises(UserError, match=f"{folder}: ") as caught:
            load_score(f"judge:{folder}")
        assert "\n" not in str(caught.value)


def test_a_judge_of_your_own() -> None:
    sides = [load_score(f"judge:{JUDGE_FOLDER}{side}")([""], HAPPY[:1])[0] for side in ("", ":positive", ":negative")]
    assert sides[0] == sides[1] > sides[2]


def test_length() -> None:
    assert list(load_score("length:3")(["", ""], ["one two three", "one"])) == [0.0, -2.0]


def test_python_functions(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [len(p) + len(r) for p, r in zip(prompts, responses)]\n")
    assert list(load_score(f"python:{tmp_path / 'mine.py'}:score")(["ab"], ["cde"])) == [5]
    assert load_score("python:operator:add")([1.0], [2.0]) == [1.0, 2.0]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("postive", "postive: unknown score; did you mean positive?"),
        ("xyz", "xyz: unknown score; expected positive, negative, length:40, judge:FOLDER, hf:FOLDER, http://HOST/PATH or"),
        ("positive:3", "positive takes nothing behind a colon"),
        ("length", "expected a number of words, as in length:40"),
        ("length:-1", "expected a number of words"),
        ("words:3", "words takes nothing behind a colon"),
        ("repetition:0", "expected a number of words, as in repetition:3"),
        ("copied:two", "expected a number of words, as in copied:3"),
        ("judge:", "expected judge:FOLDER"),
        ("python:math", "expected python:module:function"),
        ("python:no_such_module:f", "cannot import no_such_module"),
        ("python:none.py:f", "none.py: no such file"),
        ("python:math:no_such_function", "math has no function no_such_function"),
    ],
)
def test_specs_that_are_wrong(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_score(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_and_repetition() -> None:
    assert list(load_score("words")([""] * 2, ["one two three", ""])) == [3.0, 0.0]
    # Pairs of words: "a b", "b a", "a b" again: 1 of 3 stood there before. Single words: 2 of 4.
    assert list(load_score("repetition:2")([""] * 3, ["a b a b", "a b c", "a"])) == pytest.approx([-1 / 3, 0.0, 0.0])
    assert list(load_score("repetition:1")([""], ["a b a b"])) == [-0.5]


def test_copied_runs_are_those_of_the_own_prompt() -> None:
    """Pairs of "b c x": b c stands in the first prompt, c x does not; a response of one word has no pair."""
    assert list(load_score("copied:2")(["a b c", "x y", "a b c"], ["b c x", "b c x", "a"])) == [0.5, 0.0, 0.0]


def test_a_function_needs_no_prefix_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    assert list(load_score(f"{tmp_path / 'mine.py'}:score")(["p"], ["abc"])) == [3]
    assert load_score("operator:add")([1.0], [2.0]) == [1.0, 2.0]  # type: ignore[list-item]
