"""Prompt, Response, Question, Label and Comparison. Each knows its JSON form and says which line of a file is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from humanward.errors import UserError
from humanward.records.answers import TIE, is_number, is_whole
from humanward.records.jsonl import content_id

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Prompt:
    """What the policy continues."""

    id: str
    text: str
    tokens: tuple[int, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "tokens": list(self.tokens), "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, obj: Any, where: str = "prompt") -> Self:
        """``id`` may be absent: it is then derived from the text and the tokens."""
        read = _Reader(obj, where)
        text, tokens, metadata = read.text("text"), read.tokens("tokens"), read.mapping("metadata")
        made = cls(read.text("id", "") or content_id("prompt", text, tokens), text, tokens, metadata)
        read.finish()
        return made


@dataclass(frozen=True)
class Response:
    """One response and where it came from."""

    text: str
    tokens: tuple[int, ...] = ()
    source: str = ""
    """"policy", "human", "baseline", …"""
    policy: str = ""
    """Hash of the policy that sampled it."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer that ``tokens`` belong to."""
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text, "tokens": list(self.tokens), "source": self.source,
            "policy": self.policy, "tokenizer": self.tokenizer, "sampling": dict(self.sampling),
        }  # fmt: skip

    @classmethod
    def from_json(cls, obj: Any, where: str = "response") -> Self:
        kinds = {key: type(value) for key, value in obj.items()} if isinstance(obj, dict) else {}
        if kinds == _WHOLE_RESPONSE and _are_tokens(obj["tokens"]):  # the usual case in a third of the time; a store has many
            return cls(obj["text"], tuple(obj["tokens"]), obj["source"], obj["policy"], obj["tokenizer"], obj["sampling"])
        read = _Reader(obj, where)
        made = cls(
            read.text("text"), read.tokens("tokens"), read.text("source", ""), read.text("policy", ""), read.text("tokenizer", ""),
            read.mapping("sampling"),
        )  # fmt: skip
        read.finish()
        return made


@dataclass(frozen=True)
class Question:
    """A prompt and K responses, shown to labelers."""

    id: str
    prompt: Prompt
    responses: tuple[Response, ...]
    kind: str = "best_of_k"
    round: int = 0
    split: Split = "train"
    overlap: int = 1
    """How many labelers are to answer it, >= 1."""
    instructions: str = ""
    """What the labeler is asked to do; its version is the text itself."""
    propensity: float = 1.0
    """The probability, above 0, with which it was drawn from the round's candidates; 1 where all of them are asked."""

    def to_json(self) -> dict[str, Any]:
        """``propensity`` only where there was a draw: what was written before there was one stays the same question."""
        return {
            "id": self.id, "prompt": self.prompt.to_json(), "responses": [r.to_json() for r in self.responses], "kind": self.kind,
            "round": self.round, "split": self.split, "overlap": self.overlap, "instructions": self.instructions,
        } | ({} if self.propensity == 1.0 else {"propensity": self.propensity})  # fmt: skip

    @classmethod
    def from_json(cls, obj: Any, where: str = "question") -> Self:
        """``id`` may be absent: it is then derived from the prompt, the responses, the kind and the round."""
        read = _Reader(obj, where)
        prompt = Prompt.from_json(read.take("prompt"), f"{where}: prompt")
        responses = tuple(Response.from_json(r, f"{where}: responses[{i}]") for i, r in enumerate(read.sequence("responses")))
        kind, number = read.text("kind", "best_of_k"), read.whole("round", 0)
        made = cls(
            read.text("id", "") or question_id(prompt, responses, kind=kind, round=number), prompt, responses, kind, number,
            read.one_of("split", ("train", "validation")), read.whole("overlap", 1, least=1), read.text("instructions", ""),
            read.share("propensity", 1.0),
        )  # fmt: skip
        read.finish()
        return made


def question_id(prompt: Prompt, responses: tuple[Response, ...], *, kind: str = "best_of_k", round: int = 0) -> str:
    """The id of a question by its content, so that asking the same thing again in one round is the same question."""
    return content_id("question", prompt.text, prompt.tokens, [(r.text, r.tokens) for r in responses], kind, round)


@dataclass(frozen=True)
class Label:
    """One labeler's answer to one question."""

    id: str
    question_id: str
    labeler: str
    kind: str
    answer: Any
    """JSON, in the order of ``question.responses`` whatever order was shown. best_of_k: the index of the best one."""
    permutation: tuple[int, ...] = ()
    """permutation[i] is the index of the response that was shown in place i."""
    seconds: float | None = None
    confidence: float | None = None
    """0 to 1."""
    comment: str = ""
    time: str = ""
    """UTC, ISO 8601."""
    instructions: str = ""
    """Version of the instructions that were shown."""
    adjudication: bool = False
    """Decides a question about which labels disagree: no other label of it trains anything."""
    weight: float = 1.0
    """How much it counts in training, > 0. Only files of others have other weights than 1."""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "question_id": self.question_id, "labeler": self.labeler, "kind": self.kind, "answer": self.answer,
            "permutation": list(self.permutation), "seconds": self.seconds, "confidence": self.confidence, "comment": self.comment,
            "time": self.time, "instructions": self.instructions, "adjudication": self.adjudication,
            **({} if self.weight == 1.0 else {"weight": self.weight}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, obj: Any, where: str = "label") -> Self:
        read = _Reader(obj, where)
        made = cls(
            read.text("id"), read.text("question_id"), read.text("labeler"), read.text("kind"), read.take("answer"),
            read.tokens("permutation"), read.number("seconds"), read.number("confidence"), read.text("comment", ""), read.text("time", ""),
            read.text("instructions", ""), read.flag("adjudication"), read.weight("weight"),
        )  # fmt: skip
        read.finish()
        return made


Target = int | float | list[int] | list[float]


@dataclass(frozen=True)
class Comparison:
    """What a loss reads: a prompt, responses, and which of them is better."""

    prompt: Prompt
    responses: tuple[Response, ...]
    kind: str
    target: Target
    """best_of_k: index of the best. ranking: the rank of each response, 0 best, equal ranks are ties. pair: an index, or the distribution
    [0.5, 0.5] for a tie. soft: a probability for each response. binary: 1 where the only response was liked, 0 where it
    was not. rating, difference: a number."""
    weight: float = 1.0
    question_id: str = ""
    labeler: str = ""

    @classmethod
    def of(cls, question: Question, label: Label) -> Self:
        """What a label says. A tied pair becomes the distribution [0.5, 0.5]; every other target is the answer itself."""
        target = [0.5, 0.5] if label.answer == TIE else int(label.answer) if isinstance(label.answer, bool) else label.answer
        return cls(question.prompt, question.responses, question.kind, target, label.weight, question.id, label.labeler)

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt.to_json(), "responses": [r.to_json() for r in self.responses], "kind": self.kind, "target": self.target,
            "weight": self.weight, "question_id": self.question_id, "labeler": self.labeler,
        }  # fmt: skip

    @classmethod
    def from_json(cls, obj: Any, where: str = "comparison") -> Self:
        read = _Reader(obj, where)
        prompt = Prompt.from_json(read.take("prompt"), f"{where}: prompt")
        responses = tuple(Response.from_json(r, f"{where}: responses[{i}]") for i, r in enumerate(read.sequence("responses")))
        made = cls(
            prompt, responses, read.text("kind"), read.target("target"), read.weight("weight"),
            read.text("question_id", ""), read.text("labeler", ""),
        )  # fmt: skip
        read.finish()
        return made


_REQUIRED = object()


class _Reader:
    """Takes typed fields out of a JSON object; every complaint is one line that begins with where the object came from."""

    def __init__(self, obj: Any, where: str) -> None:
        if not isinstance(obj, dict | Mapping):
            raise UserError(f"{where}: expected an object, found {_short(obj)}")
        self.rest, self.where = dict(obj), where

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.rest.pop(key, default)
        if value is _REQUIRED:
            raise UserError(f"{self.where}: {key} is missing")
        return value

    def finish(self) -> None:
        if self.rest:
            raise UserError(f"{self.where}: unknown key {', '.join(map(str, sorted(self.rest)))}")

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self.take(key, default)
        return value if isinstance(value, str) else self._wrong(key, "a string", value)

    def whole(self, key: str, default: Any = _REQUIRED, *, least: int = 0) -> int:
        value = self.take(key, default)
        return value if is_whole(value) and value >= least else self._wrong(key, f"a whole number of at least {least}", value)

    def flag(self, key: str) -> bool:
        value = self.take(key, False)
        return value if isinstance(value, bool) else self._wrong(key, "true or false", value)

    def number(self, key: str) -> float | None:
        value = self.take(key, None)
        return value if value is None or is_number(value) else self._wrong(key, "a number", value)

    def weight(self, key: str) -> float:
        value = self.number(key)
        return 1.0 if value is None else value

    def share(self, key: str, default: float) -> float:
        value = self.take(key, default)
        return float(value) if is_number(value) and 0 < value <= 1 else self._wrong(key, "a number above 0, at most 1", value)

    def one_of(self, key: str, choices: tuple[Any, ...]) -> Any:
        value = self.take(key, choices[0])
        return value if value in choices else self._wrong(key, " or ".join(choices), value)

    def sequence(self, key: str) -> list[Any]:
        value = self.take(key)
        return value if isinstance(value, list) else self._wrong(key, "a list", value)

    def tokens(self, key: str) -> tuple[int, ...]:
        value = self.take(key, [])
        if isinstance(value, list | tuple) and _are_tokens(value):
            return tuple(value)
        return self._wrong(key, "a list of whole numbers from 0", value)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.take(key, {})
        return value if isinstance(value, dict) else self._wrong(key, "an object", value)

    def target(self, key: str) -> Target:
        value = self.take(key)
        if is_number(value) or (isinstance(value, list) and all(map(is_number, value))):
            return value
        return self._wrong(key, "a number or a list of numbers", value)

    def _wrong(self, key: str, expected: str, found: Any) -> Any:
        raise UserError(f"{self.where}: {key}: expected {expected}, found {_short(found)}")


_WHOLE_RESPONSE = {"text": str, "tokens": list, "source": str, "policy": str, "tokenizer": str, "sampling": dict}


def _are_tokens(values: list[Any] | tuple[Any, ...]) -> bool:
    return set(map(type, values)) <= {int} and min(values, default=0) >= 0  # no loop of ours: a store has many tokens


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
