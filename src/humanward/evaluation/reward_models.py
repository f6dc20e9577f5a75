"""What a reward model knows and how sure it may be: accuracy by group, calibration, probes. Pure functions over scores."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from humanward.maths.statistics import bootstrap_interval, wilson_interval

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, responses) -> one score for each response."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_ROLES = (
    ("i", "you"), ("he", "she"), ("him", "her"), ("his", "hers"), ("husband", "wife"), ("boyfriend", "girlfriend"), ("mother", "father"),
          ("brother", "sister"), ("buyer", "seller"), ("teacher", "student"), ("parent", "child"), ("boss", "employee"))  # fmt: skip
_SWAPS = {one: other for pair in _ROLES for one, other in (pair, pair[::-1])}
_VERB = re.compile(r"\b(is|are|was|were|can|could|will|would|should|has|have|had|did|does|do)\b(\s+not\b)?", re.IGNORECASE)


def accuracy_by(correct: Sequence[bool | None], groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """How often a reward model agrees with the labels, by batch, labeler, confidence, pair of policies, or whatever else tells them apart.

    Args:
        correct: of each label; None where it prefers nothing, which is left out.
        groups: what each belongs to.

    Returns:
        A row per group, in the order of their text: ``group``, ``accuracy``, ``low`` and ``high`` (Wilson, 95 %), ``labels``.

    Raises:
        ValueError: not as many groups as labels.
    """
    if len(correct) != len(groups):
        raise ValueError(f"{len(groups)} groups for {len(correct)} labels; give one for each")
    found: dict[Hashable, list[bool]] = {}
    for mark, group in zip(correct, groups, strict=True):
        if mark is not None:
            found.setdefault(group, []).append(bool(mark))
    rows: list[dict[str, Any]] = []
    for group in sorted(found, key=str):
        marks = found[group]
        low, high = wilson_interval(sum(marks), len(marks))
        rows.append({"group": group, "accuracy": sum(marks) / len(marks), "low": low, "high": high, "labels": len(marks)})
    return rows


def confidence_group(confidence: float | None) -> str:
    """A fifth of the scale from 0 to 1, or "not given"."""
    if confidence is None:
        return "not given"
    fifth = min(int(confidence * 5), 4)
    return f"{fifth / 5:.1f} to {(fifth + 1) / 5:.1f}"


def policy_pair(names: Sequence[str]) -> str:
    """Whose responses a question compares."""
    return " and ".join(sorted(set(names)))


def calibration(scores: Sequence[Sequence[float]], best: Sequence[int], *, bins: int = 10, seed: int = 0) -> dict[str, Any]:
    """Does what the model believes with probability p come true p of the time?

        p[n] = softmax(scores[n])        ECE = sum over bins of (labels in it / labels) * |share chosen - mean p|

    Guo et al. 2017 (arXiv:1706.04599), eq. 3; here every response counts with its probability of being chosen, not only the likeliest, so
    that the curve of pairs goes through (1/2, 1/2).

    Args:
        scores: [N, K] of the responses of each question.
        best: which was chosen.
        bins: of equal width between 0 and 1.
        seed: of the interval's resampling, by question.

    Returns:
        ``curve``: a row per bin that is not empty, with ``predicted``, ``observed``, ``low`` and ``high`` (Wilson, 95 %) and ``responses``;
        ``ece`` with ``low`` and ``high`` (bootstrap, 95 %), ``questions``.

    Raises:
        ValueError: no questions, or as many choices as there are not.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or len(table) == 0 or len(best) != len(table) or not np.isfinite(table).all():
        raise ValueError(f"scores of shape {table.shape} and {len(best)} choices; give one finite row and one choice for each question")
    p = np.exp(table - table.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    chosen = np.arange(table.shape[1])[None] == np.asarray(best)[:, None]
    place = np.minimum((p * bins).astype(int), bins - 1)
    curve: list[dict[str, float]] = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            count, hits = int(inside.sum()), int(chosen[inside].sum())
            low, high = wilson_interval(hits, count)
            curve.append({"predicted": float(p[inside].mean()), "observed": hits / count, "low": low, "high": high, "responses": count})

    def ece(rows: NDArray[Any]) -> float:
        gap = np.bincount(place[rows].ravel(), weights=(p[rows] - chosen[rows]).ravel(), minlength=bins)
        return float(np.abs(gap).sum() / p[rows].size)

    everything = np.arange(len(table))
    low, high = bootstrap_interval(everything, ece, seed, resamples=500)
    return {"curve": curve, "ece": ece(everything), "low": low, "high": high, "questions": len(table)}


def concordance(scores: Sequence[float], targets: Sequence[float], *, most: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How often, of two responses that were judged differently, each alone, the one that was judged better scores higher.

    For liked against disliked ones it is the area under the curve of hits against false alarms; 1/2 is blind.

    Args:
        scores: of each response.
        targets: what it was given, larger is better.
        most: responses looked at; the first of them.
        seed: of the interval's resampling.

    Returns:
        ``rate`` (equal scores count half), ``low`` and ``high`` (bootstrap by response, 95 %), ``responses``; None where all were judged
        alike.
    """
    table = np.stack([np.asarray(scores[:most], dtype=float), np.asarray(targets[:most], dtype=float)], axis=1)

    def rate(rows: NDArray[Any]) -> float:
        s, t = rows[:, 0], rows[:, 1]
        better = t[:, None] > t[None]
        return float(((s[:, None] > s[None]) + 0.5 * (s[:, None] == s[None]))[better].mean()) if better.any() else 0.5

    if len(table) == 0 or (table[:, 1] == table[0, 1]).all():
        return {"rate": None, "low": 0.0, "high": 1.0, "responses": len(table)}
    low, high = bootstrap_interval(table, rate, seed, resamples=200)
    return {"rate": rate(table), "low": low, "high": high, "responses": len(table)}


def length_bias(scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """How far a score goes with the number of words: Spearman's correlation, with its 95 % bootstrap interval by prompt.

    Stiennon et al. 2020 (arXiv:2009.01325), section 4.1: length explains about a third of the gap to the references.

    Raises:
        ValueError: fewer than three responses.
    """
    if len(responses) < 3:
        raise ValueError(f"{len(responses)} responses; a correlation needs at least three")
    table = np.stack([np.asarray(scorer(prompts, responses), dtype=float), [len(text.split()) for text in responses]], axis=1)

    def correlation(rows: NDArray[Any]) -> float:
        if (rows == rows[0]).all(0).any():
            return 0.0
        return float(stats.spearmanr(rows[:, 0], rows[:, 1])[0])  # pyright: ignore[reportArgumentType]

    low, high = bootstrap_interval(table, correlation, seed, list(prompts), resamples=500)
    return {"correlation": correlation(table), "low": low, "high": high, "responses": len(responses)}


def probe(scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], spoil: Callable[[str], str | None]) -> dict[str, Any]:
    """How often a response scores higher than itself made worse: ``shuffled_sentences``, ``reversed_roles``, ``negated``.

    Stiennon et al. 2020 (arXiv:2009.01325), section 4.3, whose people made the edits by hand.

    Args:
        scorer: what is probed.
        prompts: one for each response.
        responses: good ones.
        spoil: a response -> a worse one; None or the same where it does not apply.

    Returns:
        ``rate`` (equal scores count half), ``low`` and ``high`` (Wilson, 95 %), ``responses`` that it applies to. Blind: 0.5.
    """
    rows = [(p, r, worse) for p, r in zip(prompts, responses, strict=True) if (worse := spoil(r)) is not None and worse != r]
    if not rows:
        return {"rate": None, "low": 0.0, "high": 1.0, "responses": 0}
    asked = [p for p, _, _ in rows]
    lead = np.subtract(scorer(asked, [r for _, r, _ in rows]), scorer(asked, [worse for _, _, worse in rows]))
    won = float((lead > 0).sum() + 0.5 * (lead == 0).sum())
    low, high = wilson_interval(won, len(rows))
    return {"rate": won / len(rows), "low": low, "high": high, "responses": len(rows)}


def shuffled_sentences(text: str, seed: int = 0) -> str | None:
    """The sentences in another order; None where there are fewer than two different ones."""
    sentences = _SENTENCE.split(text.strip())
    if len(set(sentences)) < 2:
        return None
    order, rng = list(sentences), random.Random(f"{seed} {text}")
    while order == sentences:
        rng.shuffle(order)
    return text[: len(text) - len(text.lstrip())] + " ".join(order)


def reversed_roles(text: str) -> str | None:
    """Who does it to whom, exchanged: I and you, husband and wife, ...; English. None where nobody is named."""
    found = re.sub(r"[A-Za-z]+", lambda match: _like(match.group(), _SWAPS.get(match.group().lower())), text)
    return found if found != text else None


def negated(text: str) -> str | None:
    """A minimal edit: the first auxiliary verb gains a "not", or loses it; English. None where there is none."""
    found = _VERB.sub(lambda match: match.group(1) if match.group(2) else f"{match.group(1)} not", text, count=1)
    return found if found != text else None


def probes(scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], *, seed: int = 0) -> Mapping[str, dict[str, Any]]:
    """All probes, under the names that the results have; each text is scored once."""
    known: dict[tuple[str, str], float] = {}

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        pairs = list(zip(prompts, responses, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        if new:
            known.update(zip(new, map(float, scorer([p for p, _ in new], [r for _, r in new])), strict=True))
        return [known[pair] for pair in pairs]

    spoilers = {"sentence_shuffle": shuffled_sentences, "role_reversal": reversed_roles, "minimal_edit": negated}
    lengths = {"length": length_bias(score, prompts, responses, seed=seed)} if len(responses) >= 3 else {}
    return {**{name: probe(score, prompts, responses, spoil) for name, spoil in spoilers.items()}, **lengths}


def _like(word: str, other: str | None) -> str:
    """``other`` written as ``word`` is; "I" is always large."""
    if other is None:
        return word
    if other == "i":
        return "I"
    return other.capitalize() if word[0].isupper() and word != "I" else other
