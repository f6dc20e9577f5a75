"""How often a text has what looks like somebody's personal data. A heuristic: it misses some and takes other things for it."""

from __future__ import annotations

import re

KINDS = ("emails", "phones", "cards", "ip_addresses")
_NUMBER = re.compile(r"\d\D?\D?\d\D?\D?\d")
"""Three digits close together: most texts have none, and need no more looking at."""
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_ABROAD, _AMERICAN = r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,4}){2,4}", r"(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"
_PHONE = re.compile(rf"(?<![\w.+-])(?:{_ABROAD}|{_AMERICAN})(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others, as that of payment cards does.

    ISO/IEC 7812-1, annex B: from the right, every second digit is doubled, digits are summed, and the sum is a multiple of 10.
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def personal(text: str) -> dict[str, int]:
    """How many e-mail addresses, phone numbers, payment cards and IP addresses there seem to be; kinds without any are left out."""
    found: dict[str, int] = {}
    if "@" in text:
        found["emails"] = len(_EMAIL.findall(text))
    if _NUMBER.search(text):
        cards = [match[0] for match in _CARD.finditer(text) if _is_card(match[0])]
        found["cards"] = len(cards)
        for card in cards:
            text = text.replace(card, " ")
        found["phones"] = len(_PHONE.findall(text))
        found["ip_addresses"] = sum(all(int(part) < 256 for part in match.split(".")) for match in _ADDRESS.findall(text))
    return {kind: count for kind, count in found.items() if count}


def _is_card(text: str) -> bool:
    digits = "".join(filter(str.isdigit, text))
    return 13 <= len(digits) <= 19 and luhn(digits)
