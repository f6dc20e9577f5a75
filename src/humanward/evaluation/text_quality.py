"""Whether a tuned policy still writes language: cheap counts on tokens that move long before a reader is asked.

A policy that has found a fault of its reward model repeats itself, writes one text for every prompt or copies the prompt; each of these
has its number. Every function returns None where there is nothing to count, never 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

Tokens = Sequence[Hashable]


def distinct_share(responses: Sequence[Tokens], n: int) -> float | None:
    """Different n-grams over all n-grams of the responses taken together.

    Li et al. 2016 (arXiv:1510.03055), distinct-n. It falls as more tokens are looked at:
    compare policies on the same number of prompts only.

    Args:
        responses: tokens of each response, after truncation.
        n: length of a gram, >= 1.

    Returns:
        0 to 1; 1 where no n-gram occurs twice; None where no response has n tokens.
    """
    grams = [gram for response in responses for gram in _grams(response, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated_share(responses: Sequence[Tokens], n: int) -> float | None:
    """Mean over responses of the share of n-grams that stood earlier in the same response.

    Welleck et al. 2020 (arXiv:1908.04319), seq-rep-n: 1 - different n-grams / all n-grams.

    Args:
        responses: tokens of each response, after truncation; those with fewer than n tokens do not count.
        n: length of a gram, >= 1.

    Returns:
        0 to below 1; 0 where no response repeats itself; None where no response has n tokens.
    """
    shares = []
    for response in responses:
        grams = list(_grams(response, n))
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else None


def copied_share(prompts: Sequence[Tokens], responses: Sequence[Tokens], n: int) -> float | None:
    """Mean over responses of the share of n-grams that stand in the response's own prompt.

    Args:
        prompts: tokens of each prompt.
        responses: tokens of the response to it, after truncation; those with fewer than n tokens do not count.
        n: length of a gram, >= 1.

    Returns:
        0 to 1; 1 where every response is a piece of its prompt; None where no response has n tokens.

    Raises:
        ValueError: not as many prompts as responses.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses; give one prompt per response")
    shares = []
    for prompt, response in zip(prompts, responses, strict=True):
        there = set(_grams(prompt, n))
        grams = list(_grams(response, n))
        if grams:
            shares.append(sum(gram in there for gram in grams) / len(grams))
    return sum(shares) / len(shares) if shares else None


def text_quality(responses: Sequence[Tokens], prompts: Sequence[Tokens] | None = None) -> dict[str, float | None]:
    """The row of one policy under ``text_quality`` in the results, but for bits per byte, which need the reference model.

    Args:
        responses: tokens of each response, after truncation.
        prompts: tokens of each prompt; None leaves the copying out.

    Returns:
        ``distinct_2``, ``repeated_4grams``, ``copied_4grams`` (shares) and ``length`` (mean tokens).
    """
    return {
        "distinct_2": distinct_share(responses, 2),
        "repeated_4grams": repeated_share(responses, 4),
        "copied_4grams": copied_share(prompts, responses, 4) if prompts is not None else None,
        "length": sum(len(response) for response in responses) / len(responses) if responses else None,
    }


def _grams(tokens: Tokens, n: int) -> Iterator[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return (tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
