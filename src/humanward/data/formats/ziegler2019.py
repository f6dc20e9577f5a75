"""The label files of lm-human-preferences: one JSON list of ``query``, ``sample0`` … and ``best``, token ids or texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from humanward.data.formats import views
from humanward.data.formats.rows import Labeled, Row, asked, marked, said, short
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import is_whole

COLUMNS = ("query", "sample0", "best")
PAD = 50259
"""What the released files are filled up with, whatever the tokenizer's own padding is."""

Decode = Callable[[Sequence[int]], str]


def reader(decode: Decode | None) -> Callable[[Row], Labeled]:
    """A reader of rows. ``decode``: the text of token ids; without it only texts are read."""
    return partial(read, decode=decode)


def read(row: Row, decode: Decode | None = None) -> Labeled:
    """A question of kind ``best_of_k``, as many responses as there are samples."""
    names = sorted((name for name in row.values if re.fullmatch(r"sample\d", name)), key=lambda name: int(name[6:]))
    if names != [f"sample{k}" for k in range(len(names))] or len(names) < 2:
        raise UserError(f"{row.where}: expected `sample0`, `sample1`, … without a gap, found {', '.join(names) or 'none'}")
    texts, tokens = zip(*(_text(row, name, decode) for name in ("query", *names)), strict=True)
    best = row.whole("best", 0, len(names) - 1)
    question = asked(texts[0], texts[1:], "best_of_k", split=row.split())
    question = replace(
        question, prompt=replace(question.prompt, tokens=tokens[0]),
        responses=tuple(replace(response, tokens=ids) for response, ids in zip(question.responses, tokens[1:], strict=True)),
    )  # fmt: skip
    return Labeled(row.where, question, (said("best_of_k", best, **marked(row)),))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """Token ids where the question has them, else texts; 1 beside it where no single response is the best."""
    best = views.best(label.kind, label.answer, len(question.responses))
    if best is None:
        return [], 1
    parts = [question.prompt, *question.responses]
    with_tokens = all(part.tokens for part in parts)
    values = [list(part.tokens) if with_tokens else part.text for part in parts]
    names = ("query", *(f"sample{k}" for k in range(len(question.responses))))
    return [{**dict(zip(names, values, strict=True)), "best": best}], 0


def _text(row: Row, name: str, decode: Decode | None) -> tuple[str, tuple[int, ...]]:
    value = row.take(name)
    if isinstance(value, str):
        return row.filled(name), ()
    if not isinstance(value, list) or not all(is_whole(token) and token >= 0 for token in value):
        raise UserError(f"{row.where}: `{name}`: expected a list of token ids or a text, found {short(value)}")
    tokens = tuple(token for token in value if token != PAD)
    if not tokens:
        raise UserError(f"{row.where}: `{name}` is empty; delete the row")
    if decode is None:
        raise UserError(f"{row.where}: `{name}` has token ids, and there is no tokenizer here; import into a run that has config.yaml")
    try:
        return decode(tokens), tokens
    except (IndexError, OverflowError, ValueError, TypeError):
        raise UserError(f"{row.where}: `{name}` has a token that the tokenizer does not have; is it another one?") from None
