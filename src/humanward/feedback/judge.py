"""A small sentiment judge: a linear model over hashed word n-grams, read from a folder and run with numpy alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from humanward.errors import UserError

WEIGHTS, SETTINGS, FORMAT = "judge.safetensors", "judge.json", "humanward-judge-1"

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[!?]+|\.\.+")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'"})
_CACHED_WORDS = 200_000
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


def words(text: str) -> list[str]:
    """Lower-case words with their apostrophes ("don't"), runs of ! and ?, and ellipses. HTML line breaks are spaces."""
    return _WORD.findall(_BREAK.sub(" ", text).translate(_PLAIN).lower())


class NgramHasher:
    """The distinct word n-grams of each text as 32-bit hashes: BLAKE2b of a word, mixed over neighbours by multiply-and-add."""

    def __init__(self, orders: int) -> None:
        """orders: n-grams of 1 to so many words, 1 to 3."""
        self.orders = orders
        self._hashes: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """(row[N], hash[N]): every distinct n-gram once per text, sorted by text, then by hash."""
        ids, lengths = self._word_hashes(texts)
        rows = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
        found = []
        mixed = np.zeros(len(ids), np.uint64)
        for order in range(self.orders):
            size = len(ids) - order
            if size <= 0:
                break
            mixed = (mixed[:size] + ids[order:]) * _MIX[order]
            inside = rows[:size] == rows[order:]
            found.append((rows[:size][inside] << np.uint64(32)) | (mixed[inside] >> np.uint64(32)))
        pairs = np.sort(np.concatenate([*found, np.zeros(0, np.uint64)]))
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]  # np.unique would hash, ten times slower
        return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    def _word_hashes(self, texts: Sequence[str]) -> tuple[NDArray[np.uint64], list[int]]:
        known, ids, lengths = self._hashes, [], []
        if len(known) > _CACHED_WORDS:
            known.clear()
        for text in texts:
            found = words(text)
            lengths.append(len(found))
            for word in found:
                value = known.get(word)
                if value is None:
                    value = known[word] = int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
                ids.append(value)
        return np.array(ids, np.uint64), lengths


@dataclass(frozen=True)
class JudgeSettings:
    """How weights become a log-probability; the contents of judge.json."""

    orders: int
    """Longest n-gram, in words."""
    scale: float
    """Multiplies the sum of the weights."""
    bias: float
    """Added to it: the log-odds of a text without any known n-gram."""
    length_power: float
    """The sum is divided by (number of distinct n-grams) ** length_power, so that long and short texts are on one scale."""
    format: str = FORMAT


class SentimentJudge:
    """The log-probability that a response is positive, by its distinct n-grams.

        log-odds = bias + scale * sum of weights / n ** length_power,   n = number of distinct n-grams

    Naive-Bayes weighted logistic regression after Wang and Manning 2012 ("Baselines and Bigrams"); recipes/judge.py fits it. The prompt is
    not looked at.
    """

    def __init__(self, hashes: NDArray[np.uint32], weights: NDArray[np.floating], settings: JudgeSettings) -> None:
        """hashes[F]: sorted n-gram hashes; weights[F]: the weight of each, > 0 is positive."""
        self.hashes, self.weights, self.settings = hashes, weights.astype(np.float64), settings
        self._ngrams = NgramHasher(settings.orders)

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds, log P(positive) - log P(negative) of each text, nats; 0 is undecided."""
        rows, hashes = self._ngrams(texts)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        weights = np.where(self.hashes[places] == hashes, self.weights[places], 0.0)
        total = np.bincount(rows, weights, minlength=len(texts))
        count = np.maximum(np.bincount(rows, minlength=len(texts)), 1)
        return self.settings.bias + self.settings.scale * total / count**self.settings.length_power

    def log_probability(self, texts: Sequence[str], *, positive: bool = True) -> list[float]:
        """The log P(positive), or log P(negative), of each text: nats, <= 0, never -inf."""
        odds = self.log_odds(texts)
        return (-np.logaddexp(0.0, -odds if positive else odds)).tolist()

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The log P(positive) of each response. The prompts are not looked at."""
        return self.log_probability(responses)

    def negative(self) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
        """The score log P(negative)."""
        return lambda prompts, responses: self.log_probability(responses, positive=False)

    def save(self, folder: Path | str) -> None:
        """Write judge.safetensors (hashes as uint32, weights as float16) and judge.json."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"hashes": self.hashes, "weights": self.weights.astype(np.float16)}, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(asdict(self.settings), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a folder that ``save`` wrote. UserError when it is not one."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            settings = JudgeSettings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
            tensors = load_file(folder / WEIGHTS)
            hashes, weights = tensors["hashes"], tensors["weights"]
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = f"{SETTINGS} or {WEIGHTS} is missing" if missing else " ".join(str(error).split())
            raise UserError(f"{folder}: not a judge: {reason}; name a folder made by recipes/judge.py") from None
        well_formed = hashes.ndim == 1 and hashes.shape == weights.shape and len(hashes) > 0 and hashes.dtype == np.uint32
        if settings.format != FORMAT or not 1 <= settings.orders <= len(_MIX) or not well_formed:
            raise UserError(f"{folder}: a judge of another format ({settings.format}); this version reads {FORMAT}")
        return cls(hashes, weights, settings)
