"""Text for people: numbers with units, and foreign text in which nothing is hidden."""

from __future__ import annotations

import math
import re
import unicodedata

NOT_RECORDED = "not recorded"
MINUS = "−"
NO_BREAK = "\u00a0"

# Bidirectional controls, zero-width characters, line separators, tag characters: they change what the eye sees without being seen.
_HIDDEN = {
    *range(0x202A, 0x202F), *range(0x2066, 0x2070), *range(0x200B, 0x2010), *range(0x2028, 0x202A), *range(0x2060, 0x2066),
    *range(0xE0000, 0xE0080), 0x061C, 0x180E, 0x00AD, 0xFEFF, 0x115F, 0x1160, 0x3164, 0xFFA0,
}  # fmt: skip
_SUSPECT = re.compile("[^\\n\\t\\x20-\\x7e\\xa1-\\xac\\xae-\\u02ff]")
_SECRET = re.compile(r"(^|[._-])(password|passwd|secret|api_?key|access_?key|(hf|auth|access|api)_?token)$|(^|\.)token$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*):[^/\s@]+@")


def visible(text: str) -> str:
    """The text with every control, bidirectional, zero-width and unpaired surrogate character written as ⟨U+…⟩.

    A joiner (U+200C, U+200D) behind a character that is not ASCII stays: Persian, Indic scripts and emoji are spelled with it.
    """
    if not _SUSPECT.search(text):
        return text
    shown = []
    previous = ""
    for character in text:
        joiner = character in "\u200c\u200d" and previous > "\x7f"
        hidden = ord(character) in _HIDDEN or (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co"))
        shown.append(f"⟨U+{ord(character):04X}⟩" if hidden and not joiner else character)
        previous = character
    return "".join(shown)


def clipped(text: str, length: int = 4_000) -> str:
    """At most ``length`` characters; what was cut is said."""
    return text if len(text) <= length else f"{text[:length]}… [cut here: {length:,} of {len(text):,} characters]"


def without_secrets(key: str, value: str) -> str:
    """A setting as it may be sent to somebody: no password of a database address, no access token."""
    if _SECRET.search(key) and value not in ("none", ""):
        return "(hidden)"
    return _URL_PASSWORD.sub(r"\1:(hidden)@", value)


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, thousands separated, a true minus sign."""
    if value is None:
        return NOT_RECORDED
    size = abs(value)
    if value == int(value) and size < 1e12:
        text = f"{int(value):,}"
    elif size >= 10 ** (digits - 1) and size < 1e12:
        text = f"{value:,.0f}"
    elif 1e-4 <= size < 1e12:
        places = digits - len(str(int(size))) if size >= 1 else digits - 1 - _exponent(size)
        text = f"{value:.{max(places, 0)}f}"
    else:
        text = f"{value:.{digits - 1}g}"
    return text.replace("-", MINUS)


def _exponent(size: float) -> int:
    return int(f"{size:e}".split("e")[1])


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal place."""
    return NOT_RECORDED if value is None else f"{100 * value:.1f}{NO_BREAK}%".replace("-", MINUS)


def interval(low: float | None, high: float | None, show: str = "decimal") -> str:
    """``low to high``, or nothing where either end is missing."""
    if low is None or high is None:
        return ""
    if show == "percent":
        return f"{100 * low:.1f} to {100 * high:.1f} %".replace("-", MINUS).replace(" ", NO_BREAK)
    return f"{decimal(low)} to {decimal(high)}".replace(" ", NO_BREAK)


def estimate(mean: float, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """``mean [low, high]``, all with as many places as two digits of half the interval take; the mean alone where there is none."""
    plus = "+" if sign and mean > 0 else ""
    if low is None or high is None:
        return plus + decimal(mean)
    half = (high - low) / 2
    places = min(max(1 - math.floor(math.log10(half)), 0), 9) if half > 0 else max(len(decimal(mean).partition(".")[2]), 0)
    return f"{plus}{mean:.{places}f} [{low:.{places}f}, {high:.{places}f}]".replace("-", MINUS)


def memory(size: float | None) -> str:
    """Bytes in binary units."""
    if size is None:
        return NOT_RECORDED
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit in ("B", "KiB", "MiB") else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
