"""Labels that somebody gave before, in any format that is read, as questions and labels with the tokens of a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from humanward.data.batches import epoch_order
from humanward.data.formats.reading import LabelFile
from humanward.data.formats.rows import Labeled
from humanward.data.label_files import LABELER, ROWS_AT_ONCE, read_labels
from humanward.data.sources import Text
from humanward.data.task import Task
from humanward.errors import UserError
from humanward.records import Label, Question, content_id
from humanward.records.nouns import question_id


@dataclass(frozen=True)
class Given:
    """The labels of a file."""

    questions: list[Question]
    labels: list[Label]
    too_long: int = 0
    """Labels that were left out because the task has no room for their prompt or a response."""


@dataclass(frozen=True)
class Lengths:
    """The longest of a file, tokens."""

    prompt: int
    response: int
    """The end-of-text token counted, where the task stops at one."""


def read_given(path: Path | str, task: Task, *, leave_out_long: bool = False) -> Given:
    """Questions and their labels, in the order of the file; a question that comes again is one question with several labels.

    Best-of-K choices and the lists of 2019 are read by ``label_files``, everything else by its format in ``formats``. A response is closed
    by the end-of-text token where the task stops there and truncates nowhere.

    Raises:
        UserError: a row that cannot be read, or is longer than the task allows and not to be left out; a line for each.
    """
    path = Path(path)
    if _is_a_choice_of_k(path):
        return Given(*read_labels(path, task))
    questions: dict[str, Question] = {}
    labels: list[Label] = []
    too_long = 0
    for row, prompt, responses in _tokenized(path, task):
        fault = _too_long(row, prompt, responses, task)
        if fault and not leave_out_long:
            raise UserError(fault)
        if fault:
            too_long += 1
            continue
        question = _question(row.question, prompt, responses, task)
        questions.setdefault(question.id, question)
        labels += [_label(label, question, len(labels)) for label in row.labels]
    if not labels:
        reason = f"none of its {too_long} labels fits task.prompt_length and task.response_length" if too_long else "no labels in it"
        raise UserError(f"{path}: {reason}")
    return Given(list(questions.values()), labels, too_long)


def longest(path: Path | str, task: Task) -> Lengths:
    """What a task would need to leave nothing out. ``task`` gives the tokenizer."""
    lengths = [(len(prompt), max(map(len, responses))) for _, prompt, responses in _tokenized(Path(path), task)]
    return Lengths(max(p for p, _ in lengths), max(r for _, r in lengths))


def with_held_out(questions: Sequence[Question], share: float, seed: int) -> list[Question]:
    """The questions with some prompts, by lot, as validation ones; as they are where the file itself says which are.

    All questions of one prompt are on the same side.
    """
    if any(question.split == "validation" for question in questions):
        return list(questions)
    prompts = sorted({question.prompt.text for question in questions})
    order = epoch_order(seed, 0, len(prompts))
    held_out = {prompts[i] for i in order[: int(len(prompts) * share)]}
    return [replace(q, split="validation") if q.prompt.text in held_out else q for q in questions]


def _is_a_choice_of_k(path: Path) -> bool:
    _, first = next(iter(LabelFile(path).rows()), ("", {}))
    return "best" in first and ("responses" in first or "sample0" in first)


def _tokenized(path: Path, task: Task) -> Iterator[tuple[Labeled, tuple[int, ...], list[tuple[int, ...]]]]:
    """(row, tokens of its prompt without what stands around, tokens of its responses)."""
    file = LabelFile(path, decode=task.decode)
    rows = file.labeled()
    eos = task.tokenizer.eos_token_id
    closed = task.config.stop_at_eos and task.config.truncate_token is None
    end: tuple[int, ...] = (int(eos),) if closed else ()  # pyright: ignore[reportArgumentType]
    while part := list(islice(rows, ROWS_AT_ONCE)):
        texts = [Text(row.question.prompt.text, "", row.where, whole=True) for row in part]
        for row, (_, tokens) in zip(part, task.encoded(texts), strict=True):
            yield row, tuple(tokens), [(*task.encode_continuation(response.text), *end) for response in row.question.responses]
        file.faults.check()
    file.faults.check()


def _too_long(row: Labeled, prompt: Sequence[int], responses: Sequence[Sequence[int]], task: Task) -> str:
    """What is wrong with the lengths; empty where nothing is."""
    longest_response = max(map(len, responses))
    for what, length, setting in (("prompt", len(prompt), "prompt_length"), ("longest response", longest_response, "response_length")):
        most = getattr(task.config, setting)
        if length > most:
            remedy = f"raise task.{setting}, or set labels.leave_out_long=true"
            return f"{row.where}: the {what} has {length} tokens and task.{setting} is {most}; {remedy}"
    return ""


def _question(question: Question, prompt: Sequence[int], responses: Sequence[tuple[int, ...]], task: Task) -> Question:
    text = f"{task.config.prompt_prefix}{question.prompt.text}{task.config.prompt_suffix}"
    made = replace(question.prompt, id=content_id("prompt", text), text=text, tokens=task.around(prompt))
    answers = tuple(replace(response, tokens=tokens) for response, tokens in zip(question.responses, responses, strict=True))
    return replace(question, id=question_id(made, answers, kind=question.kind, round=1), prompt=made, responses=answers, round=1)


def _label(label: Label, question: Question, number: int) -> Label:
    labeler = label.labeler or LABELER
    return replace(label, id=content_id("label", question.id, labeler, number), question_id=question.id, labeler=labeler)
