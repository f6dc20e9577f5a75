"""How simulated people choose: their taste, their haste, and what they do besides answering."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Nature:
    """A kind of labeler. The shares are of questions, or of turns of one or two questions."""

    name: str
    noise: float = 0.15
    """Share answered by lot."""
    seconds: tuple[float, float] = (8.0, 30.0)
    """Said to have been taken for an answer."""
    always_left: bool = False
    copies: bool = False
    """Answers what the first of its kind answered."""
    vanishes: float = 0.0
    """Share of turns in which the questions are left lying until others have got them."""
    doubles: float = 0.0
    """Share of batches sent twice at the same time."""
    hurries: float = 0.0
    """Share of requests given up before the answer comes, and sent again."""
    undoes: float = 0.0
    skips: float = 0.0
    remarks: float = 0.0
    """Share flagged or commented on."""


NATURES = {
    nature.name: nature
    for nature in (
        Nature("careful", remarks=0.02),
        Nature("noisy", noise=0.35, undoes=0.03),
        Nature("fast", noise=0.3, seconds=(0.2, 0.9)),
        Nature("left", always_left=True),
        Nature("random", noise=1.0),
        Nature("colluding", noise=1.0, copies=True),
        Nature("vanishing", vanishes=0.15),
        Nature("doubling", doubles=0.5, hurries=0.1),
        Nature("undoing", undoes=0.2, skips=0.03),
        Nature("skipping", skips=0.15, remarks=0.15, undoes=0.03),
    )
}
SHARES = {
    "careful": 20,
    "noisy": 16,
    "fast": 10,
    "left": 8,
    "random": 8,
    "colluding": 8,
    "vanishing": 10,
    "doubling": 8,
    "undoing": 6,
    "skipping": 6,
}


def crowd(count: int) -> list[Nature]:
    """So many people, of every nature where there are enough."""
    wanted = {name: share * count / sum(SHARES.values()) for name, share in SHARES.items()}
    taken = dict.fromkeys(SHARES, 0)
    for _ in range(count):
        taken[max(SHARES, key=lambda name: (taken[name] == 0, wanted[name] - taken[name]))] += 1
    return [NATURES[name] for name, number in taken.items() for _ in range(number)]


def worth(text: str) -> float:
    """What all careful people think of a text, 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def answer_of(kind: str, texts: list[str], nature: Nature, lots: random.Random, copied: dict[tuple[str, ...], dict[str, float]]) -> Any:
    """An answer about the texts in the order in which they are shown."""
    if nature.always_left:
        K = len(texts)
        left: dict[str, Any] = {"ranking": list(range(K)), "rating": 5.0, "difference": 4.0, "soft": [1.0] + [0.0] * (K - 1)}
        return left.get(kind, 0)
    by_lot = lots.random() < nature.noise
    worths = {text: lots.random() if by_lot else worth(text) for text in texts}
    if nature.copies:
        worths = copied.setdefault(tuple(sorted(texts)), worths)
    return said(kind, [worths[text] for text in texts])


def said(kind: str, worths: list[float]) -> Any:
    """What somebody answers to whom the responses are worth so much."""
    match kind:
        case "pair" if abs(worths[0] - worths[1]) < 0.02:
            return "tie"
        case "ranking":
            return [sum(other > one for other in worths) for one in worths]
        case "rating":
            return 1.0 + round(8 * worths[0])
        case "difference":
            return float(round(4 * (worths[0] - worths[1])))
        case "soft":
            shares = [round(one / sum(worths), 3) for one in worths]
            shares[-1] = round(1 - sum(shares[:-1]), 3)
            return shares if min(shares) >= 0 else [1.0] + [0.0] * (len(worths) - 1)
        case _:
            return worths.index(max(worths))


def meaning(kind: str, answer: Any, texts: list[str]) -> Any:
    """An answer as what it says about the texts, whatever order they are in."""
    match kind:
        case "best_of_k" | "pair":
            return answer if isinstance(answer, str) else texts[answer]
        case "difference":
            return (texts[0] if answer > 0 else texts[1] if answer < 0 else "", abs(answer))
        case "ranking":
            ranks = sorted(set(answer))
            return sorted((text, float(ranks.index(value))) for text, value in zip(texts, answer, strict=True))
        case _:
            values = answer if isinstance(answer, list) else [answer]
            return sorted((text, float(value)) for text, value in zip(texts, values, strict=True))
