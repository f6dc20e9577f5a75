"""Known scores of responses: what a mock labeler prefers, and what a test trains against."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from humanward.errors import RunError, UserError

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, responses), equally many -> one score for each response, higher is better."""

JUDGE_FOLDER = Path(__file__).parent.parent / "assets" / "sentiment-judge"
_EXAMPLES = "positive, negative, length:40, judge:FOLDER, hf:FOLDER, http://HOST/PATH or python:MODULE:FUNCTION"


def load_score(spec: str, *, dtype: Any = None) -> Score:
    """The score of a short description. ``dtype``: number type of a model that is loaded for it; None: float32.

    ``positive``, ``negative``: log P of the built-in sentiment judge, of the response alone. ``length:N``: minus the distance of the
    response's length from N words; ``words``: that length. ``repetition:N``: minus the share of the response's runs of N words that stand
    in it before; ``copied:N``: the share of those that stand in the prompt. ``judge:FOLDER``, ``judge:FOLDER:negative``: another judge
    made by recipes/judge.py.
    ``hf:FOLDER``: a reward model, or a sequence classifier of the Hugging Face libraries, shown prompt and response;
    ``hf:FOLDER:LABEL``: the log-probability of one of its labels.
    ``hf-response:FOLDER``, ``hf-response:FOLDER:LABEL``: shown the response alone.
    ``http://HOST/PATH``, ``https://HOST/PATH``: a server, see ``HTTPScore``.
    ``python:module:function`` or ``python:path/to/file.py:function``: your own function of (prompts, responses); ``python:`` may be left
    out where there is such a module or file.

    Raises:
        UserError: no such score; the message names the nearest one.
    """
    name, _, rest = spec.partition(":")
    if name not in SCORES and _is_place(name, rest):
        name, rest = "python", spec
    if name not in SCORES:
        near = difflib.get_close_matches(name, SCORES, 1)
        raise UserError(f"{spec}: unknown score; " + (f"did you mean {near[0]}?" if near else f"expected {_EXAMPLES}"))
    return SCORES[name](rest, spec, **({"dtype": dtype} if name in ("hf", "hf-response") and dtype is not None else {}))


def score_responses(score: Score, prompts: Sequence[str], responses: Sequence[str], name: str = "score") -> list[float]:
    """Call a score and check what came back: one finite number for each response, else RunError."""
    scores = [float(value) for value in score(prompts, responses)]
    if len(scores) != len(responses):
        raise RunError(f"{name}: gave {len(scores)} scores for {len(responses)} responses; it must give one for each")
    for value, response in zip(scores, responses, strict=True):
        if not math.isfinite(value):
            raise RunError(f"{name}: gave {value} for the response {response[:60]!r}; scores must be finite")
    return scores


def _sentiment(rest: str, spec: str, *, positive: bool) -> Score:
    if rest:
        raise UserError(f"{spec}: {spec.partition(':')[0]} takes nothing behind a colon; another judge is judge:FOLDER")
    return _judge(JUDGE_FOLDER, positive=positive)


def _judge(folder: Path, *, positive: bool) -> Score:
    from humanward.feedback.judge import SentimentJudge

    judge = SentimentJudge.load(folder)
    return judge if positive else judge.negative()


def _judge_of_folder(rest: str, spec: str) -> Score:
    folder, colon, side = rest.rpartition(":")
    if not colon or side not in ("positive", "negative"):
        folder, side = rest, "positive"
    if not folder:
        raise UserError(f"{spec}: expected judge:FOLDER, judge:FOLDER:positive or judge:FOLDER:negative")
    return _judge(Path(folder), positive=side == "positive")


def _hugging_face(rest: str, spec: str, *, response_only: bool, **loading: Any) -> Score:
    folder, colon, label = rest.rpartition(":")
    if not colon or Path(rest).exists():
        folder, label = rest, ""
    if not folder:
        raise UserError(f"{spec}: expected {spec.partition(':')[0]}:FOLDER or {spec.partition(':')[0]}:FOLDER:LABEL")
    # By name and on use: labels are collected without torch, and only who asks for a model pays for it.
    load_reward = importlib.import_module("humanward.trainers.loaded_reward").load_reward
    return load_reward(folder, label=label or None, response_only=response_only, **loading)


def _length(rest: str, spec: str) -> Score:
    if not (rest.isascii() and rest.isdigit()):
        raise UserError(f"{spec}: expected a number of words, as in length:40")
    target = int(rest)
    return lambda prompts, responses: [-float(abs(len(response.split()) - target)) for response in responses]


def _words(rest: str, spec: str) -> Score:
    if rest:
        raise UserError(f"{spec}: words takes nothing behind a colon; a wanted number of words is length:40")
    return lambda prompts, responses: [float(len(response.split())) for response in responses]


def _repetition(rest: str, spec: str) -> Score:
    n = _count(rest, spec)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        found = [_runs(response, n) for response in responses]
        return [len(set(runs)) / len(runs) - 1 if runs else 0.0 for runs in found]

    return score


def _copied(rest: str, spec: str) -> Score:
    n = _count(rest, spec)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        found = [(set(_runs(prompt, n)), _runs(response, n)) for prompt, response in zip(prompts, responses, strict=True)]
        return [sum(run in there for run in runs) / len(runs) if runs else 0.0 for there, runs in found]

    return score


def _count(rest: str, spec: str) -> int:
    if not (rest.isascii() and rest.isdigit() and int(rest)):
        raise UserError(f"{spec}: expected a number of words, as in {spec.partition(':')[0]}:3")
    return int(rest)


def _runs(text: str, n: int) -> list[tuple[str, ...]]:
    """The runs of n words."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _server(rest: str, spec: str) -> Score:
    from humanward.feedback.http_score import TOKEN, HTTPScore

    if not rest.startswith("//") or not urlsplit(spec).hostname:
        raise UserError(f"{spec}: expected http://HOST/PATH or https://HOST/PATH")
    if urlsplit(spec).username is not None:
        raise UserError(f"{spec.partition('@')[2]}: a password has no place in settings; put a token into {TOKEN}")
    return HTTPScore(spec)


def _is_place(name: str, rest: str) -> bool:
    """Whether this is a file or module of the user's with a function behind it."""
    if not rest.isidentifier():
        return False
    if name.endswith(".py"):
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _python(rest: str, spec: str) -> Score:
    place, _, name = rest.rpartition(":")
    if not place or not name:
        raise UserError(f"{spec}: expected python:module:function or python:path/to/file.py:function")
    function = getattr(_module(place, spec), name, None)
    if not callable(function):
        raise UserError(f"{spec}: {place} has no function {name}")
    return function  # type: ignore[return-value]


def _module(place: str, spec: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        module_spec = importlib.util.spec_from_file_location(f"humanward_score_{Path(place).stem}", place)
        if module_spec is None or module_spec.loader is None or not Path(place).is_file():
            raise UserError(f"{spec}: {place}: no such file")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
        return module
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{spec}: cannot import {place}: {' '.join(str(error).split())}") from None


SCORES: dict[str, Callable[..., Score]] = {
    "positive": lambda rest, spec: _sentiment(rest, spec, positive=True),
    "negative": lambda rest, spec: _sentiment(rest, spec, positive=False),
    "length": _length,
    "words": _words,
    "repetition": _repetition,
    "copied": _copied,
    "http": _server,
    "https": _server,
    "judge": _judge_of_folder,
    "python": _python,
    "hf": partial(_hugging_face, response_only=False),
    "hf-response": partial(_hugging_face, response_only=True),
}
