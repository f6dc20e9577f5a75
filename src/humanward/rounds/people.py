"""Rounds with people: the questions go to the page, the loop waits where everybody sees for what, and goes on when the labels are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from humanward.errors import RunError, UserError
from humanward.feedback import Counts, Store
from humanward.records import Question
from humanward.rounds.context import Context

POLL_SECONDS = 1.0
"""Between two looks at the store."""
TELL_SECONDS = 600.0
"""Between two lines about the same wait; a terminal has a bar that moves with every label."""
LOOK_SECONDS = 10.0
"""Between two long looks at who could still answer what, while nothing is answered."""
RETRY_SECONDS = 5.0
"""Longest time between two attempts to reach a store that does not answer."""

T = TypeVar("T")


def ask_people(context: Context, round: int, questions: Sequence[Question]) -> None:
    """Put a round's questions on the page, ``labels.outstanding`` unanswered ones at a time, and wait until nobody has one left.

    Stopped, killed or without its database at any moment, it goes on from what the store holds.
    """
    gold = gold_questions(context)
    patiently(context, lambda store: prepare(context, store, gold))
    patiently(context, lambda store: _check_own(context, store, round, questions))
    wanted = sum(question.overlap for question in questions)
    outstanding = context.config.labels.outstanding
    added, told_at, told, done = 0, -TELL_SECONDS, -1, -1
    left = Left(round)
    with context.waiting() as waits_for:
        while True:
            counts, due = patiently(context, left)
            while added < len(questions) and due < outstanding:
                batch = questions[added : added + outstanding - due]
                patiently(context, lambda store, batch=batch: store.add_questions(batch))
                added += len(batch)
                counts, due = patiently(context, left)
            if counts.labels != done:
                done = counts.labels
                context.progress("label", min(done, wanted), wanted, {})
                waits_for({"for": "labels", "labels": done, "wanted": wanted, "policy": questions[-1].responses[0].policy})
            if added == len(questions) and not due:
                return
            if done != told and time.monotonic() - told_at >= TELL_SECONDS:
                context.tell(f"waiting for labels: {done} of {wanted} for round {round}; the page: humanward label {context.path}")
                told, told_at = done, time.monotonic()
            context.stop.wait(POLL_SECONDS)


class Left:
    """How many labels of a round somebody could still give: not those of questions that everybody here has answered or skipped.

    Who is here: everybody with the role of a labeler who is not disabled, and whoever has answered or skipped something in this round.
    """

    def __init__(self, round: int) -> None:
        self.round = round
        self._of: tuple[Any, ...] = ()
        self._due, self._looked = 0, 0.0

    def __call__(self, store: Store) -> tuple[Counts, int]:
        """(the round's counts, labels that may still come)."""
        counts = store.counts(self.round)
        if not counts.missing or not (counts.labels or counts.skipped):
            return counts, counts.missing
        # Nobody can be out of questions while nothing was skipped and nothing needs a second labeler: the long look is not needed.
        if counts.skipped or counts.wanted > counts.questions:
            known = (counts.questions, counts.labels, counts.skipped)
            if known != self._of or time.monotonic() - self._looked > LOOK_SECONDS:
                self._of, self._looked, self._due = known, time.monotonic(), self._look(store)
            return counts, self._due
        return counts, counts.missing

    def _look(self, store: Store) -> int:
        return sum(still_to_come(store, self.round).values())


def still_to_come(store: Store, round: int) -> dict[str, int]:
    """The questions of a round that lack labels: how many of these somebody who is here could give, see ``Left``."""
    questions = store.questions(round)
    seen: dict[str, set[str]] = {question.id: set() for question in questions}
    labels = dict.fromkeys(seen, 0)
    for label in store.labels(round):
        seen[label.question_id].add(label.labeler)
        labels[label.question_id] += 1
    for event in store.events(kinds=("skip",), limit=1_000_000):
        if event.question_id in seen and not event.undone:
            seen[event.question_id].add(event.labeler)
    people = store.people.all()
    here = set[str]().union(*seen.values()) | {person.id for person in people if person.role == "labeler"}
    here -= {person.id for person in people if person.disabled}
    lacking = {question.id: question.overlap - labels[question.id] for question in questions}
    return {key: min(lacks, len(here - seen[key])) for key, lacks in lacking.items() if lacks > 0}


def prepare(context: Context, store: Store, gold: Sequence[tuple[Question, Any]]) -> None:
    """What the store needs to know of the run's settings before a question is shown."""
    text = instructions(context.config.labels.instructions)
    if text is not None:
        store.add_instructions(text)
    if gold:
        store.add_questions([question for question, _ in gold], gold={question.id: answer for question, answer in gold})


def instructions(setting: str | None) -> str | None:
    """The text of ``labels.instructions``: its own, or that of the file that it names."""
    if setting is None:
        return None
    path = Path(setting)
    if path.suffix not in (".txt", ".md") or "\n" in setting:
        return setting
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start + 1}"
        raise UserError(f"labels.instructions: {path}: cannot be read: {reason}; name a text file, or write the text itself") from None
    if not text:
        raise UserError(f"labels.instructions: {path}: is empty; write into it what people are to do, or set it to null")
    return text


def gold_questions(context: Context) -> list[tuple[Question, Any]]:
    """The questions of ``labels.gold`` with their known answers, in the order of the file.

    Raises:
        UserError: the file cannot be read, or a question does not look like the run's own.
    """
    settings = context.config.labels
    if settings.gold is None:
        return []
    from humanward.data.given_labels import read_given

    given = read_given(settings.gold, context.task)
    questions, labels = given.questions, given.labels
    known: dict[str, Any] = {}
    for label in labels:
        if known.setdefault(label.question_id, label.answer) != label.answer:
            raise UserError(f"labels.gold: {settings.gold}: two different known answers to one question; keep the right one")
    for question in questions:
        if question.kind != settings.kind and {question.kind, settings.kind} != {"pair", "best_of_k"}:
            raise UserError(f"labels.gold: {settings.gold}: known answers of kind {question.kind}, but labels.kind is {settings.kind}")
        if len(question.responses) != settings.responses_per_question:
            raise UserError(
                f"labels.gold: {settings.gold}: a question has {len(question.responses)} responses, the run's own have "
                f"{settings.responses_per_question}: labelers would know it for a test; give it as many"
            )
    return [
        (Question(f"gold-{q.id}", q.prompt, q.responses, settings.kind, round=0, instructions=q.instructions), known[q.id])
        for q in questions
    ]


def patiently(context: Context, work: Callable[[Store], T]) -> T:
    """Do something with the store; while it cannot be reached, say so once and try again until it can, or until a stop is asked for."""
    said, pause = "", 0.5
    while True:
        try:
            result = work(context.store)
        except RunError as fault:
            if "malformed" in str(fault):
                raise
            if str(fault) != said:
                said = str(fault)
                context.tell(f"the label store does not answer: {fault}; waiting until it does")
            context.stop.wait(pause)
            pause = min(2 * pause, RETRY_SECONDS)
        else:
            if said:
                context.tell("the label store answers again")
            return result


def _check_own(context: Context, store: Store, round: int, questions: Sequence[Question]) -> None:
    """Labels of two runs in one database would be mixed by the next snapshot."""
    strangers = {question.id for question in store.questions(round)} - {question.id for question in questions}
    if strangers:
        place = context.config.label_store or str(context.folder.labels)
        raise UserError(f"label_store: {place} holds questions of another run; give every run a database of its own")
