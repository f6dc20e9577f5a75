from __future__ import annotations

import pytest

from humanward.report.text import clipped, decimal, duration, estimate, interval, memory, percent, visible, without_secrets


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not recorded"), (0, "0"), (-1.9034, "−1.90"), (6.08, "6.08"), (0.15, "0.150"), (100_000, "100,000"), (1e-05, "1e−05"),
        (0.00424, "0.00424"), (123.4, "123"), (1234.5, "1,234"), (9.999, "10.00"), (1e300, "1e+300"), (-0.5, "−0.500"),
    ],
)  # fmt: skip
def test_decimal(value: float | None, shown: str):
    assert decimal(value) == shown


def test_units():
    assert percent(0.8633) == "86.3\u00a0%"
    assert percent(None) == "not recorded"
    assert interval(0.5, 0.75, "percent").replace("\u00a0", " ") == "50.0 to 75.0 %"
    assert interval(None, 1.0) == ""
    assert memory(3 << 29) == "1.5 GiB"
    assert memory(5 << 40) == "5.0 TiB"
    assert duration(59.94) == "59.9 s"
    assert duration(3_725) == "1 h 2 min"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 日本語 🙂", "plain, naïve, 日本語 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("a\x00b\x1b[31m", "a⟨U+0000⟩b⟨U+001B⟩[31m"),
        ("user\u202etxt.exe", "user⟨U+202E⟩txt.exe"),
        ("a\u2066b\u2069\u200f", "a⟨U+2066⟩b⟨U+2069⟩⟨U+200F⟩"),
        ("pay\u200bpal \ufeff", "pay⟨U+200B⟩pal ⟨U+FEFF⟩"),
        ("hidden\U000e0041", "hidden⟨U+E0041⟩"),
        ("lone \ud800", "lone ⟨U+D800⟩"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        ("a\u200db", "a⟨U+200D⟩b"),
    ],
)
def test_hidden_characters_are_shown(text: str, shown: str):
    assert visible(text) == shown


def test_cutting_is_said():
    assert clipped("a" * 5_000, 10) == "a" * 10 + "… [cut here: 10 of 5,000 characters]"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("labels.address", "postgresql://ann:s3cret@db/labels", "postgresql://ann:(hidden)@db/labels"),
        ("hub.hf_token", "hf_abc", "(hidden)"),
        ("api_key", "k", "(hidden)"),
        ("api_key", "none", "none"),
        ("task.truncate_token", ".", "."),
    ],
)
def test_secrets_stay_at_home(key: str, value: str, shown: str):
    assert without_secrets(key, value) == shown


def test_an_estimate_has_the_places_of_its_interval() -> None:
    assert estimate(0.00203, -0.41879, 0.42285) == "0.00 [−0.42, 0.42]"
    assert estimate(1234.5, 1200.2, 1268.8) == "1234 [1200, 1269]"
    assert estimate(0.000123, 0.00012, 0.000126, sign=True) == "+0.0001230 [0.0001200, 0.0001260]"
    assert estimate(2.5, None, None) == "2.50"
    assert estimate(4.0, 4.0, 4.0) == "4 [4, 4]"
