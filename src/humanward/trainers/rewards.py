"""What a policy is tuned toward: a reward model, an ensemble, any function of texts, a server, or a weighted sum of such terms."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn

from humanward.config import Config
from humanward.data import Task
from humanward.data.batches import left_pad, right_pad
from humanward.errors import RunError, UserError
from humanward.feedback import Labeler, load_score
from humanward.feedback.http_score import HTTPScore
from humanward.models import RewardEnsemble, RewardModel, TextClassifier, context_length
from humanward.records import Prompt, Question, Response
from humanward.records.nouns import question_id
from humanward.storage import Stopped
from humanward.trainers.calls import Late, call_again

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Any callable of (prompts, responses) -> scores, texts in, one number per response out."""
AsyncScore = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[float]]]
"""The same as a coroutine function."""
TIMEOUT = 600.0
"""Seconds that a user's function may take for one batch, where nothing else is said."""
MODEL = "model"
"""In settings: the reward model that a round has fitted."""


@dataclass(frozen=True)
class GuardedScore:
    """A user's function with limits."""

    score: Score | AsyncScore
    timeout: float | None = TIMEOUT
    """Seconds that it may take for one batch; None: any."""
    retries: int = 0
    """Further attempts where it raised, after 1, 2, 4, … seconds."""
    name: str | None = None
    """In messages; None: the function's own."""


@dataclass(frozen=True)
class WeightedReward:
    """score = sum over terms of weight * the term's score. Each term is logged under its name."""

    terms: Mapping[str, tuple[float, Score | AsyncScore | GuardedScore | RewardModel | RewardEnsemble]]


Reward = Score | AsyncScore | GuardedScore | RewardModel | RewardEnsemble | WeightedReward
"""What trainers accept."""
R = TypeVar("R", bound=Reward)


class ScoringConfig(Config):
    """What a response scores while the policy is tuned."""

    terms: dict[str, float] = Field(default={MODEL: 1.0})
    """Weights of the terms whose sum is the score. ``model`` is the round's reward model; every other term is a score as in
    ``labeler=score:…``: ``python:FILE.py:FUNCTION``, ``http://HOST/PATH``, ``hf:FOLDER``, ``length:40``, ``repetition:3``, ``words``, ….
    0 leaves a term out."""
    timeout: PositiveFloat = TIMEOUT
    """Seconds that a function may take for one batch, and a server for one request."""
    retries: NonNegativeInt = 2
    """Further attempts where a function raised or a server did not answer, after 1, 2, 4, … seconds."""

    @model_validator(mode="after")
    def _something(self) -> ScoringConfig:
        if not any(self.terms.values()):
            raise ValueError("terms: nothing has a weight, so that all responses would score 0; give one term a weight, as in {model: 1}")
        return self

    @property
    def needs_model(self) -> bool:
        return bool(self.terms.get(MODEL))

    def others(self, *, dtype: torch.dtype = torch.float32) -> dict[str, GuardedScore]:
        """The terms besides the reward model, by name; models that are loaded have ``dtype``.

        Raises:
            UserError: a term that nobody knows or that cannot be loaded.
        """
        return {name: self._guarded(name, dtype) for name, weight in self.terms.items() if weight and name != MODEL}

    def reward(self, model: RewardModel | RewardEnsemble | None, others: Mapping[str, GuardedScore]) -> Reward:
        """The sum; ``model`` is the round's, None where it has no weight, and ``others`` what the method of that name gave."""
        if model is not None and self.terms == {MODEL: 1.0}:
            return model
        parts = ({} if model is None else {MODEL: model}) | dict(others)
        return WeightedReward({name: (self.terms[name], part) for name, part in parts.items()})

    def _guarded(self, name: str, dtype: torch.dtype) -> GuardedScore:
        score = load_score(name, dtype=dtype)
        if isinstance(score, HTTPScore):  # it has its own limits, request by request
            return GuardedScore(replace(score, timeout=self.timeout, retries=self.retries), timeout=None, name=name)
        if isinstance(score, OWN):
            return GuardedScore(score, timeout=None, name=name)
        return GuardedScore(score, self.timeout, self.retries, name)


def models_of(reward: Reward) -> list[RewardModel | RewardEnsemble]:
    """The reward models in a reward, those that read tokens."""
    return [part for part in _parts(reward) if isinstance(part, RewardModel | RewardEnsemble)]


def moved(reward: R, device: torch.device) -> R:
    """The same reward, its models on a device, those that read texts too."""
    for part in _parts(reward):
        score = part.score if isinstance(part, GuardedScore) else part
        model: Any = score.model if isinstance(score, OWN) else score
        if isinstance(model, nn.Module):
            model.to(device)
    return reward


def _parts(reward: Reward) -> list[Any]:
    return [part for _, part in reward.terms.values()] if isinstance(reward, WeightedReward) else [reward]


def call_score(
    score: Score | AsyncScore | GuardedScore, prompts: Sequence[str], responses: Sequence[str], check: Callable[[], None] | None = None
) -> Float[Tensor, " B"]:
    """Ask a user's callable and check what comes back.

    It runs in a thread of its own; ``check`` is called meanwhile and may raise to stop.

    Raises:
        RunError: it raised, took too long, or gave the wrong number of scores, None, or a number that is not finite.
    """
    guarded = score if isinstance(score, GuardedScore) else _guarded(score)
    name = guarded.name or getattr(guarded.score, "__name__", type(guarded.score).__name__)
    try:
        given = call_again(
            guarded.score, prompts, responses, timeout=guarded.timeout, retries=guarded.retries, check=check,
            give_up=(Stopped, UserError, RunError),
        )  # fmt: skip
        values = _numbers(given)
    except (Stopped, UserError, RunError):
        raise
    except Late:
        raise RunError(
            f"reward {name}: no answer within {guarded.timeout:g} s for {len(responses)} responses; see why it hangs, or give it longer "
            "(scoring.timeout, or GuardedScore(…, timeout=…))"
        ) from None
    except Exception as error:
        raise RunError(
            f"reward {name}: raised {type(error).__name__}: {' '.join(str(error).split())}; "
            "it must map (prompts, responses) to one number each"
        ) from error
    if isinstance(values, str):
        raise RunError(f"reward {name}: returned {values}; it must return one number per response")
    if len(values) != len(responses):
        raise RunError(f"reward {name}: {len(values)} scores for {len(responses)} responses; it must return one number per response")
    scores = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
    for finite, value, response in zip(scores.isfinite().tolist(), values, responses, strict=True):
        if not finite:
            raise RunError(f"reward {name}: the score of {response[:60]!r} is {value}; scores must be finite numbers of 32 bits")
    return scores


def _guarded(score: Score | AsyncScore) -> GuardedScore:
    """With the limits that a score has of itself."""
    return GuardedScore(score, timeout=None if isinstance(score, (*OWN, HTTPScore)) else TIMEOUT)


def _numbers(given: Any) -> list[float | None] | str:
    """Of whatever a function returned; a text says what it is instead."""
    shape = getattr(given, "shape", None)
    if shape is not None and len(shape) != 1:
        return f"an array of shape {tuple(shape)}"
    if given is None or isinstance(given, str | bytes | Mapping):
        return "None" if given is None else f"a {type(given).__name__}"
    if not isinstance(given, Iterable):
        return f"a {type(given).__name__}"
    values = list(given)
    nested = next((value for value in values if isinstance(value, list | tuple)), None)
    if nested is not None:
        return f"rows of shape ({len(values)}, {len(nested)})"
    return [None if value is None else float(value) for value in values]


class LabelerChoice:
    """A labeler who answers at once in place of a score: 1 for the response to a prompt that they find best, 0 for the others.

    For methods that sample groups and only ask which response is the best: online DPO and expert iteration.

    Args:
        labeler: a mock labeler or an AI judge; people take too long.
        num_responses: K, ``responses_per_prompt`` of the method: so many responses in a row belong to one prompt.
    """

    def __init__(self, labeler: Labeler, num_responses: int) -> None:
        self.labeler, self.num_responses = labeler, num_responses
        self.__name__ = f"labeler {labeler.name}"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        K, questions = self.num_responses, list[Question]()
        for start in range(0, len(responses), K):
            prompt, row = Prompt("", prompts[start]), tuple(Response(text) for text in responses[start : start + K])
            questions.append(Question(question_id(prompt, row), prompt, row))
        answer_many = getattr(self.labeler, "answer_many", None)
        answers = answer_many(questions) if answer_many else [self.labeler.answer(question) for question in questions]
        return [float(k == best) for best in answers for k in range(K)]


class TextReward:
    """A reward model, or an ensemble of them, as a plain callable of (prompts, responses).

    An end-of-text token at the end of a response's text is read as that token. Where responses stop at one, it is read behind every other
    text too: a text ends where it ends.

    Args:
        model: the reward model.
        task: the one whose responses it was fitted to; None: ``Task.plain``, which stops there if they did.
    """

    def __init__(self, model: RewardModel | RewardEnsemble, task: Task | None = None) -> None:
        self.model = model
        self.task = task or Task.plain(model.tokenizer, context_length=context_length(model.model), stop_at_eos=model.stops_at_eos)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The score of each response, in texts as ``Prompt.text`` and ``Response.text`` have them; an empty one is read at an end token."""
        scores: list[float] = []
        for start in range(0, len(prompts), 64):
            rows = slice(start, start + 64)
            p, pm = left_pad([self.task.encode_prompt(text) for text in prompts[rows]], self.model.pad_id)
            r, rm = right_pad([self._tokens(text) for text in responses[rows]], self.model.pad_id)
            device = self.model.device
            scores += self.model(p.to(device), pm.to(device), r[:, None].to(device), rm[:, None].to(device))[:, 0].tolist()
        return scores

    def _tokens(self, response: str) -> tuple[int, ...]:
        tokenizer, eos = self.model.tokenizer, self.model.tokenizer.eos_token_id
        text = response.removesuffix(str(tokenizer.eos_token or ""))
        tokens = self.task.encode_continuation(text)
        if tokens and text == response and not self.task.config.stop_at_eos:
            return tokens
        if not isinstance(eos, int):
            raise UserError("an empty response cannot be scored: the tokenizer has no end-of-text token to read instead")
        return (*tokens, eos)


OWN = (TextReward, TextClassifier)
"""Models in this process: they take as long as they take."""
