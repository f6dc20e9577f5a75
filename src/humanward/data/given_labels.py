"""Labels that somebody gave before, in any format that is read, as questions and labels with the tokens of a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from humanward.data.batches import epoch_order
from humanward.data.formats import Labeled, LabelFile
from humanward.data.formats.views import trainable
from humanward.data.sources import Text
from humanward.data.task import TEXTS_AT_ONCE, Task
from humanward.errors import UserError
from humanward.records import Comparison, Label, Prompt, Question, content_id
from humanward.records.nouns import question_id

LABELER = "file"
"""Who gave a label whose row names nobody."""


@dataclass(frozen=True)
class Given:
    """The labels of a file."""

    questions: list[Question]
    labels: list[Label]
    too_long: int = 0
    """Labels that were left out because the task has no room for their prompt or a response."""
    skipped: int = 0
    """Rows with a fault, where the source says that they are to be skipped."""


@dataclass(frozen=True)
class Lengths:
    """The longest of a file, tokens."""

    prompt: int
    response: int
    """The end-of-text token counted, where the task stops at one."""


def read_given(path: Path | str, task: Task, *, response_length: int | None = None, leave_out_long: bool = False) -> Given:
    """Questions and their labels, in the order of the file; a question that comes again is one question with several labels.

    A prompt is used whole, with the task's prefix and suffix; token ids are used as they are, and conversations as the chat template
    writes them. Other responses are closed by the end-of-text token where the task stops there.

    Args:
        path: the file.
        task: what the tokens are those of.
        response_length: tokens of a response, at most, its end counted; None: as many as the task samples.
        leave_out_long: whether a row with a longer prompt or response is left out.

    Raises:
        UserError: a row that cannot be read, or is longer than that and not to be left out, a line for each; no context for so long ones.
    """
    if response_length is not None:
        task.check_context(response_length, "labels.response_length")
    questions: dict[str, Question] = {}
    labels: list[Label] = []
    too_long = 0
    file = LabelFile(path, decode=task.checked_decode)
    for row in _tokenized(file, task):
        fault = _too_long(row, task, response_length)
        if fault and not leave_out_long:
            raise UserError(fault)
        if fault:
            too_long += 1
            continue
        question = _question(row)
        first = next(iter(questions.values()), question)
        if len(question.responses) != len(first.responses):
            counts = f"{len(question.responses)} responses, but the first label has {len(first.responses)}"
            raise UserError(f"{row.labeled.where}: {counts}; all labels must have as many: FILE?kind=pair reads them as pairs")
        questions.setdefault(question.id, question)
        labels += [_label(label, question, len(labels)) for label in row.labeled.labels]
    if not labels:
        setting = "task.response_length" if response_length is None else "labels.response_length"
        reason = f"none of its {too_long} labels fits task.prompt_length and {setting}" if too_long else "no labels in it"
        raise UserError(f"{path}: {reason}")
    return Given(list(questions.values()), labels, too_long, 0 if file.skipped is None else file.skipped.count)


def longest(path: Path | str, task: Task) -> Lengths:
    """What a task would need to leave nothing out. ``task`` gives the tokenizer."""
    lengths = [(row.prompt_length, row.response_length) for row in _tokenized(LabelFile(path, decode=task.checked_decode), task)]
    if not lengths:
        raise UserError(f"{path}: no labels in it")
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


@dataclass(frozen=True)
class _Tokenized:
    """A row of the file with tokens."""

    labeled: Labeled
    comparison: Comparison
    prompt_length: int
    """Tokens of the prompt without what stands around it."""

    @property
    def response_length(self) -> int:
        return max(len(response.tokens) for response in self.comparison.responses)


def _tokenized(file: LabelFile, task: Task) -> Iterator[_Tokenized]:
    rows = (part for labeled in file.labeled() for part in trainable(labeled))
    while block := list(islice(rows, TEXTS_AT_ONCE)):
        prompts = _prompts(block, task)
        asked = [
            (row.where, Comparison(prompt, row.question.responses, row.question.kind, 0))
            for row, (prompt, _) in zip(block, prompts, strict=True)
        ]
        for row, (_, length), comparison in zip(block, prompts, task.iter_tokenized(asked), strict=True):
            yield _Tokenized(row, comparison, length)
        file.faults.check()
    file.faults.check()


def _prompts(rows: Sequence[Labeled], task: Task) -> list[tuple[Prompt, int]]:
    """(prompt with tokens, how many of them are not prefix or suffix)."""
    given = [row.question.prompt for row in rows]
    texts = [
        Text(prompt.text, "", row.where, whole=True, messages=tuple(prompt.metadata.get("messages", ())))
        for row, prompt in zip(rows, given, strict=True) if not prompt.tokens
    ]  # fmt: skip
    encoded = task.encoded(texts)
    made = []
    for prompt in given:
        if prompt.tokens:
            made.append((replace(prompt, id=content_id("prompt", prompt.text, prompt.tokens)), len(prompt.tokens)))
            continue
        text, tokens = next(encoded)
        if not text.messages:  # the template is all that stands around a conversation
            text = replace(text, text=f"{task.config.prompt_prefix}{text.text}{task.config.prompt_suffix}")
        around = tuple(tokens) if text.messages else task.around(tokens)
        made.append((replace(prompt, id=content_id("prompt", text.text), text=text.text, tokens=around), len(tokens)))
    return made


def _too_long(row: _Tokenized, task: Task, response_length: int | None) -> str:
    """What is wrong with the lengths; empty where nothing is."""
    own = response_length is None
    for what, length, setting, most, raised in (
        ("prompt", row.prompt_length, "task.prompt_length", task.config.prompt_length, "task.prompt_length"),
        (
            "longest response", row.response_length, "task.response_length" if own else "labels.response_length",
            task.config.response_length if own else response_length, "labels.response_length",
        ),
    ):  # fmt: skip
        if length > most:
            remedy = f"raise {raised}, or set labels.leave_out_long=true"
            return f"{row.labeled.where}: the {what} has {length} tokens and {setting} is {most}; {remedy}"
    return ""


def _question(row: _Tokenized) -> Question:
    prompt, responses, asked = row.comparison.prompt, row.comparison.responses, row.labeled.question
    return replace(asked, id=question_id(prompt, responses, kind=asked.kind, round=1), prompt=prompt, responses=responses, round=1)


def _label(label: Label, question: Question, number: int) -> Label:
    labeler = label.labeler or LABELER
    return replace(label, id=content_id("label", question.id, labeler, number), question_id=question.id, labeler=labeler)
