"""A blind head-to-head of two policies on fresh prompts, which asks for no more labels than the answer needs."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, PositiveInt, model_validator

from humanward.config import Config
from humanward.data.batches import epoch_order
from humanward.errors import UserError
from humanward.feedback import ScoreLabeler, Store, answer_questions, load_score
from humanward.maths.sequential import WinRateSequence, fixed_sample_size, stopping_reason
from humanward.maths.statistics import wilson_interval
from humanward.models import Policy, fingerprint
from humanward.records import Prompt, Question, Response, read_jsonl, write_jsonl
from humanward.records.answers import TIE
from humanward.records.nouns import question_id
from humanward.rounds import people
from humanward.rounds.context import Context, weights_hash
from humanward.rounds.people import instructions, patiently, still_to_come
from humanward.storage import RunFolder, read_json, verify_folder, write_json
from humanward.trainers.rewards import moved
from humanward.trainers.scoring import truncated

FIRST_ROUND = 1_000_000
"""Rounds of questions from here on are comparisons: no snapshot that a reward model is fitted to reaches so far."""
CHUNK = 32
"""Prompts that both sides answer at a time, ahead of the labelers."""
AHEAD = 8
"""Unanswered questions that wait in the store, or three for each labeler if that is more: what is still asked once the answer is known."""
POWER = 0.8


class CompareConfig(Config):
    """What is compared, and when it is enough."""

    a: str = "policy"
    """``policy``, ``reference``, ``sft``, ``round:N`` or a folder with a model of the same tokenizer."""
    b: str = "reference"
    """The other side."""
    labeler: str = "people"
    """``people`` on the page of the run, or ``score:SPEC``."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the interval, at every moment of looking: the chance to name the wrong side is at most 1 - level."""
    precise: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Also enough: the interval is no wider than so much to each side, so that the sides are about even. 0: only a decision is enough."""
    maximum: PositiveInt = 400
    """Prompts at most; the run has ``evaluation.prompts`` of them."""

    @model_validator(mode="after")
    def _consistent(self) -> CompareConfig:
        if self.a == self.b:
            raise ValueError(f"both sides are {self.a}; name two different ones")
        if self.labeler != "people" and not self.labeler.startswith("score:"):
            raise ValueError(f"labeler {self.labeler!r}: expected people or score:SPEC (for example score:positive)")
        return self


class Outcome(NamedTuple):
    """What became of one prompt, in the order in which the prompts are asked."""

    value: float
    """1: a is better, 1/2: a tie, 0: b."""
    asked: bool
    """False: both responses were the same text, and nobody was asked."""


class HeadToHead:
    """One comparison in a folder of its own below the run's; given again, it goes on where it was.

    Prompts are taken in an order fixed by lot beforehand, and outcomes are counted in this order, not in that of their arrival: easy
    questions are answered sooner. Every prompt is asked of one labeler only, since labels of one prompt are not independent.
    """

    def __init__(self, context: Context, config: CompareConfig, name: str | None = None) -> None:
        self.context, self.config = context, config
        self.name = name or default_name(config)
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"--name {self.name!r}: expected letters, digits, - and _")
        self.folder = context.path / "comparisons" / self.name
        self.round = FIRST_ROUND + int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 1_000_000
        self._sides: list[tuple[Policy, str]] | None = None
        self._read: dict[Path, list[Question]] = {}

    def run(self) -> dict[str, Any]:
        """Ask until it is known; writes results.json and returns what is in it."""
        with RunFolder(self.folder).lock():
            self._settle()
            if (self.folder / "results.json").exists():
                return read_json(self.folder / "results.json")
            prompts = self._prompts()
            with self._asking() as ask:
                outcomes, reason = self._collect(prompts, ask)
            results = self._results(outcomes, reason, len(prompts))
            write_json(self.folder / "results.json", results)
            return results

    def _settle(self) -> None:
        path, settings = self.folder / "settings.json", self.config.model_dump(mode="json")
        if not path.exists():
            for side in (self.config.a, self.config.b):
                side_folder(self.context, side)
            write_json(path, settings)
        elif (kept := read_json(path)) != settings:
            other = ", ".join(name for name in settings if settings[name] != kept.get(name))
            raise UserError(f"{path}: this comparison has other settings ({other}); give it another --name")

    def _prompts(self) -> list[Prompt]:
        prompts = self.context.prompts("evaluation")
        order = epoch_order(self.context.seed(f"comparison {self.name}"), 0, len(prompts))
        return [prompts[i] for i in order[: self.config.maximum]]

    # Questions

    def _question(self, prompts: Sequence[Prompt], number: int) -> Question:
        """The question about one prompt; both sides answer ``CHUNK`` prompts at once, and what they said is kept."""
        start = number // CHUNK * CHUNK
        path = self.folder / f"pairs-{start:06d}.jsonl"
        if path not in self._read:
            if not path.exists():
                write_jsonl(path, (q.to_json() for q in self._sample(prompts[start : start + CHUNK], start)))
            self._read[path] = [Question.from_json(row, f"{path}:{line}") for line, row in read_jsonl(path)]
        return self._read[path][number - start]

    def _sample(self, prompts: Sequence[Prompt], start: int) -> Iterator[Question]:
        context = self.context
        if self._sides is None:
            models = [context.policy(side_folder(context, side)) for side in (self.config.a, self.config.b)]
            if fingerprint(models[0].tokenizer) != fingerprint(models[1].tokenizer):
                raise UserError(f"{self.config.a} and {self.config.b} have different tokenizers; only models of one tokenizer are compared")
            self._sides = [(model, weights_hash(model)) for model in models]
        both: list[list[Response]] = []
        for (model, digest), side in zip(self._sides, (self.config.a, self.config.b), strict=True):
            _, _, samples = context.sample(model, prompts, f"comparison {self.name} {side}", start)
            responses, mask = samples.responses[:, 0], samples.response_mask[:, 0]
            both.append(context.responses(responses, truncated(context.task, responses, mask)[0], model, side, digest))
        for prompt, a, b in zip(prompts, *both, strict=True):
            yield Question(question_id(prompt, (a, b), kind="pair", round=self.round), prompt, (a, b), "pair", self.round)

    # Labels

    @contextmanager
    def _asking(self) -> Iterator[tuple[Store | None, Callable[[], None]]]:
        """(the store, None for the run's own; what to do while questions are open)."""
        if self.config.labeler == "people":
            yield None, lambda: self.context.stop.wait(people.POLL_SECONDS)
            return
        store = Store(self.folder / "labels.db")
        score = moved(load_score(self.config.labeler.removeprefix("score:")), self.context.accelerator.device)
        labeler = ScoreLabeler("mock-1", score, 0.0, self.context.config.seed)

        def answer() -> None:
            answer_questions(store, [labeler], should_stop=lambda: self.context.stop.requested)
            self.context.stop.check()

        try:
            yield store, answer
        finally:
            store.close()

    def _collect(self, prompts: Sequence[Prompt], asking: tuple[Store | None, Callable[[], None]]) -> tuple[list[Outcome], str]:
        own, wait = asking
        context, sequence, outcomes = self.context, WinRateSequence(self.config.level, "betting"), list[Outcome]()
        asked: dict[int, Question] = {}
        done, added, told_at = 0, 0, -people.TELL_SECONDS

        def with_store(work: Callable[[Store], Any]) -> Any:
            return work(own) if own is not None else patiently(context, work)

        if own is None and (text := instructions(context.config.labels.instructions)) is not None:
            with_store(lambda store: store.add_instructions(text))
        while True:
            given, hopeless = with_store(self._answers)
            while done < added and (outcome := _outcome(asked[done], given, hopeless)) is not ...:
                if outcome is not None:
                    sequence = sequence.add(outcome.value)
                    outcomes.append(outcome)
                done += 1
                reason = stopping_reason(sequence, half_width=self.config.precise)
                if reason:
                    return outcomes, reason
            if done == len(prompts):
                return outcomes, "maximum"
            low, high = sequence.interval
            context.progress("compare", done, len(prompts), {"rate": sequence.rate, "low": low, "high": high})
            waiting = sum(_outcome(asked[number], given, hopeless) is ... for number in range(done, added))
            ahead = 1 if own is not None else max(AHEAD, 3 * with_store(_labelers))
            new: list[Question] = []
            while added < len(prompts) and waiting + len(new) < ahead:
                asked[added] = self._question(prompts, added)
                new += [] if _same(asked[added]) else [asked[added]]
                added += 1
            with_store(lambda store, new=new: store.add_questions(new))
            if own is None and time.monotonic() - told_at >= people.TELL_SECONDS:
                told_at = time.monotonic()
                context.tell(f"waiting for labels: {done} so far, {len(prompts)} at most; the page: humanward label {context.path}")
            if waiting + len(new):
                wait()

    def _answers(self, store: Store) -> tuple[dict[str, Any], set[str]]:
        """(answers by question, the first where there are two; questions that everybody here has skipped)."""
        given: dict[str, Any] = {}
        for label in store.labels(self.round):
            given.setdefault(label.question_id, label.answer)
        skipped = store.counts(self.round).skipped
        return given, {key for key, count in still_to_come(store, self.round).items() if not count} if skipped else set()

    def _results(self, outcomes: Sequence[Outcome], reason: str, prompts: int) -> dict[str, Any]:
        values = [outcome.value for outcome in outcomes]
        wins, losses, ties = values.count(1.0), values.count(0.0), values.count(0.5)
        sequence, path = WinRateSequence(self.config.level, "betting"), list[list[float]]()
        for value in values:
            sequence = sequence.add(value)
            path.append([sequence.count, sequence.rate, sequence.low, sequence.high])
        store = self.context.store if self.config.labeler == "people" else None
        extra = len(store.labels(self.round)) - sum(o.asked for o in outcomes) if store is not None else 0
        return {
            "name": self.name, "a": self.config.a, "b": self.config.b, "labeler": self.config.labeler, "level": self.config.level,
            "rate": sequence.rate, "low": sequence.low, "high": sequence.high, "decided": sequence.decided, "reason": reason,
            "wins": wins, "losses": losses, "ties": ties, "same_text": sum(not o.asked for o in outcomes),
            "labels": sum(o.asked for o in outcomes), "labels_beyond": max(extra, 0), "prompts": prompts,
            "fixed_size": fixed_size(wins, losses, ties, self.config.level), "power": POWER,
            "wilson": list(wilson_interval(wins + ties / 2, len(values))) if values else [0.0, 1.0], "path": path,
        }  # fmt: skip


def default_name(config: CompareConfig) -> str:
    """Who against whom, by whom."""
    parts = [config.a, "against", config.b] + ([] if config.labeler == "people" else ["by", config.labeler])
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in "-".join(parts))[:80]


def side_folder(context: Context, side: str) -> str | Path:
    """Where the model of one side is.

    Raises:
        UserError: the run has no such side yet.
    """
    name, _, number = side.partition(":")
    within = {"policy": "policy", "sft": "baseline_sft", "round": f"rounds/{number}/policy"}
    if side == "reference":
        return context.reference_folder
    if name in within and (name == "round") == bool(number):
        folder = context.path / within[name]
        fault = verify_folder(folder)
        if fault is not None:
            raise UserError(f"{folder}: no whole policy there ({fault}); finish that part of the run first, or name another side")
        return folder
    if not Path(side).is_dir():
        raise UserError(f"{side}: expected policy, reference, sft, round:N or the folder of a model")
    return Path(side)


def fixed_size(wins: int, losses: int, ties: int, level: float) -> int | None:
    """Labels that a test of fixed size would have needed to see a rate like this one with probability ``POWER``; None at an even rate.

    In its favour: nobody knows the rate beforehand, and it looks only once.
    """
    if wins == losses:
        return None
    needed = fixed_sample_size(wins / (wins + losses), POWER, level)
    return math.ceil(needed * (wins + losses + ties) / (wins + losses))


def _outcome(question: Question, given: dict[str, Any], hopeless: set[str]) -> Outcome | Any | None:
    """``...`` while it is not known, None where it never will be."""
    if _same(question):
        return Outcome(0.5, asked=False)
    if question.id in given:
        return Outcome(0.5 if given[question.id] == TIE else float(given[question.id] == 0), asked=True)
    return None if question.id in hopeless else ...


def _same(question: Question) -> bool:
    return question.responses[0].text.strip() == question.responses[1].text.strip()


def _labelers(store: Store) -> int:
    return sum(person.role == "labeler" and not person.disabled for person in store.people.all())
