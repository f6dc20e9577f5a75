"""What a file of preferences holds, and what in it will trouble a training: lengths, ties, copies, length bias, marks, personal data."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from humanward.data import personal
from humanward.data.formats import READERS, Labeled, LabelFile, views
from humanward.errors import UserError
from humanward.maths.statistics import wilson_interval
from humanward.records import Comparison, Label, Question
from humanward.records.answers import TIE

if TYPE_CHECKING:
    from humanward.data.task import Task

QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)
MARKS = (
    "\n\nHuman:", "\n\nAssistant:", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
    "<start_of_turn>", "<|user|>", "<|assistant|>", "### Instruction:", "### Response:",
)  # fmt: skip
"""What chat templates and transcripts put between turns."""
SHOWN = 600
"""Letters of a text of the example."""


@dataclass
class Inspection:
    """What was found. Lengths are tokens where a tokenizer was given, else characters."""

    source: str
    format: str = ""
    why: str = ""
    rows: int = 0
    skipped: int = 0
    """Rows with a fault that the source says to skip."""
    labels: Counter[str] = field(default_factory=Counter)
    """By kind."""
    responses: Counter[int] = field(default_factory=Counter)
    """Questions by their number of responses."""
    splits: Counter[str] = field(default_factory=Counter)
    conversations: int = 0
    unit: str = "characters"
    lengths: dict[str, array[int]] = field(default_factory=dict)
    """Of prompts, of responses found best or liked (chosen), of the others (rejected), and of those of which neither is said (response)."""
    ties: int = 0
    """Labels that find all responses equal."""
    copies: int = 0
    """Labels that say what an earlier one of the file says."""
    contradictions: int = 0
    """Labels that say something else about a question than an earlier one."""
    prompts: int = 0
    """Different ones."""
    prompts_in_both_splits: int = 0
    prompts_in_other_file: int | None = None
    longer_chosen: int = 0
    compared_lengths: int = 0
    """Pairs of different length."""
    prompt_in_response: int = 0
    """Responses that begin with their prompt."""
    marks_in_responses: Counter[str] = field(default_factory=Counter)
    marks_in_prompts: Counter[str] = field(default_factory=Counter)
    double_beginnings: int | None = None
    """Prompts that begin with two beginning-of-text tokens."""
    template_faults: Counter[str] = field(default_factory=Counter)
    """Conversations that the chat template does not write, or writes differently once they are answered, by why."""
    beyond_context: int | None = None
    """Questions whose prompt and longest response are more than the model's context."""
    personal: Counter[str] = field(default_factory=Counter)
    rows_with_personal: int = 0
    example: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        plain = {name: value for name, value in vars(self).items() if name not in ("lengths", "longer_chosen", "compared_lengths")}
        counters = {name: {str(key): n for key, n in value.items()} for name, value in plain.items() if isinstance(value, Counter)}
        return {**plain, **counters, "lengths": self.quantiles(), "length_bias": self.length_bias()}

    def quantiles(self) -> dict[str, dict[str, int]]:
        """10, 50, 90, 99 and 100 % of each of ``lengths``."""
        found = {}
        for name, lengths in self.lengths.items():
            values = np.quantile(np.asarray(lengths), QUANTILES, method="inverted_cdf").tolist() if lengths else []
            found[name] = {f"{share:.0%}": int(value) for share, value in zip(QUANTILES, values, strict=False)}
        return found

    def length_bias(self) -> dict[str, float] | None:
        """How often the chosen of two responses of different length is the longer one, with Wilson's 95 % interval."""
        if not self.compared_lengths:
            return None
        low, high = wilson_interval(self.longer_chosen, self.compared_lengths)
        return {"pairs": self.compared_lengths, "share": self.longer_chosen / self.compared_lengths, "low": low, "high": high}


def prompts_of(source: str) -> set[int]:
    """Hashes of the prompts of a source; UserError where it has a fault."""
    file = LabelFile(source)
    found = {hash(labeled.question.prompt.text) for labeled in file.labeled()}
    file.faults.check()
    return found


def inspect(
    source: str, task: Task | None = None, *, other_prompts: set[int] | None = None, progress: Callable[[int], None] = lambda rows: None
) -> Inspection:
    """Read a source once, one block in memory at a time.

    Args:
        source: as ``LabelFile`` takes it.
        task: the tokenizer whose tokens, template and context count.
        other_prompts: ``prompts_of`` another source.
        progress: told the number of rows read.

    Raises:
        UserError: a line for each row with a fault.
    """
    return _Inspector(source, task, other_prompts).run(progress)


class _Inspector:
    def __init__(self, source: str, task: Task | None, other_prompts: set[int] | None) -> None:
        self._file = LabelFile(source, decode=None if task is None else task.checked_decode)
        self._task, self._other = task, other_prompts
        self._found = Inspection(source, unit="characters" if task is None else "tokens")
        self._found.lengths = {name: array("l") for name in ("prompt", "chosen", "rejected", "response")}
        self._splits_of: dict[int, set[str]] = {}
        self._said: dict[int, int] = {}
        if task is not None:
            self._found.double_beginnings, self._found.beyond_context = 0, 0

    def run(self, progress: Callable[[int], None]) -> Inspection:
        found = self._found
        for question, label, comparison in self._tokenized(self._looked_through(progress)):
            self._measure(question, label, comparison)
        self._file.faults.check()
        found.format, found.why, found.rows = self._file.format or "", self._file.why, self._file.rows_read
        found.skipped = 0 if self._file.skipped is None else self._file.skipped.count
        found.prompts = len(self._splits_of)
        found.prompts_in_both_splits = sum(len(splits) > 1 for splits in self._splits_of.values())
        if self._other is not None:
            found.prompts_in_other_file = len(self._other & self._splits_of.keys())
        return found

    def _looked_through(self, progress: Callable[[int], None]) -> Iterator[tuple[Labeled, Label]]:
        """Each label, after what needs no tokens was seen to; conversations that the template does not take are left out."""
        for labeled in self._file.labeled():
            progress(self._file.rows_read)
            self._look(labeled)
            for label in labeled.labels:
                self._hear(labeled.question, label)
                if self._template_takes(labeled.question):
                    yield labeled, label

    def _look(self, labeled: Labeled) -> None:
        """A question."""
        found, question = self._found, labeled.question
        prompt, responses = question.prompt.text, [response.text for response in question.responses]
        if not found.example:
            found.example = _example(labeled)
        found.responses[len(responses)] += 1
        found.splits[question.split] += 1
        found.conversations += "messages" in question.prompt.metadata
        self._splits_of.setdefault(hash(prompt), set()).add(question.split)
        found.prompt_in_response += sum(text.startswith(prompt) for text in responses)
        found.marks_in_responses.update(mark for mark in MARKS if any(mark in text for text in responses))
        if "messages" not in question.prompt.metadata:
            found.marks_in_prompts.update(mark for mark in MARKS if mark in prompt)
        seen = Counter[str]()
        for text in (prompt, *responses):
            seen.update(personal.personal(text))
        found.personal.update(seen)
        found.rows_with_personal += bool(seen)

    def _hear(self, question: Question, label: Label) -> None:
        """What is said of it."""
        found = self._found
        found.labels[label.kind] += 1
        values = views.values(label.kind, label.answer, len(question.responses))
        found.ties += values is not None and len(set(values)) == 1
        asked = hash((question.prompt.text, *(response.text for response in question.responses)))
        said = hash(str(label.answer))
        if asked in self._said:
            found.copies += self._said[asked] == said
            found.contradictions += self._said[asked] != said
        else:
            self._said[asked] = said

    def _template_takes(self, question: Question) -> bool:
        messages = question.prompt.metadata.get("messages")
        if not messages or self._task is None:
            return True
        try:
            prompt = self._task.rendered(messages, "")
            for response in question.responses:
                self._task.rendered_answer(messages, prompt, response.text, "")
        except UserError as error:
            self._found.template_faults[str(error).removeprefix(": ")] += 1
            return False
        return True

    def _tokenized(self, labels: Iterator[tuple[Labeled, Label]]) -> Iterator[tuple[Question, Label, Comparison | None]]:
        if self._task is None:
            yield from ((labeled.question, label, None) for labeled, label in labels)
            return
        waiting: list[tuple[Question, Label]] = []

        def comparisons() -> Iterator[tuple[str, Comparison]]:
            for labeled, label in labels:
                waiting.append((labeled.question, label))
                yield labeled.where, Comparison.of(labeled.question, label)

        for comparison in self._task.iter_tokenized(comparisons()):
            yield *waiting.pop(0), comparison

    def _measure(self, question: Question, label: Label, comparison: Comparison | None) -> None:
        """Lengths."""
        found, lengths = self._found, self._found.lengths
        if comparison is None:
            prompt, sizes = len(question.prompt.text), [len(response.text) for response in question.responses]
        else:
            prompt, sizes = len(comparison.prompt.tokens), [len(response.tokens) for response in comparison.responses]
            self._check_tokens(comparison)
        lengths["prompt"].append(prompt)
        judged = dict(views.approved(label.kind, label.answer, len(sizes))) if label.kind != "rating" else {}
        for index, size in enumerate(sizes):
            lengths[{True: "chosen", False: "rejected", None: "response"}[judged.get(index)]].append(size)
        for chosen, rejected, _ in views.pairs(label.kind, label.answer, len(sizes))[0]:
            found.compared_lengths += sizes[chosen] != sizes[rejected]
            found.longer_chosen += sizes[chosen] > sizes[rejected]

    def _check_tokens(self, comparison: Comparison) -> None:
        found, task = self._found, self._task
        assert task is not None
        assert found.double_beginnings is not None
        assert found.beyond_context is not None
        beginning = task.tokenizer.bos_token_id
        tokens = comparison.prompt.tokens
        found.double_beginnings += beginning is not None and tokens[:2] == (beginning, beginning)
        longest = len(tokens) + max(len(response.tokens) for response in comparison.responses)
        found.beyond_context += task.context_length is not None and longest > task.context_length


def _example(labeled: Labeled) -> dict[str, Any]:
    """The first question, shortened, and what was said of it."""
    question, label = labeled.question, labeled.labels[0]
    answer = "a tie" if label.answer == TIE else label.answer
    texts: Sequence[str] = [response.text for response in question.responses]
    return {
        "where": labeled.where, "kind": label.kind, "prompt": _cut(question.prompt.text, from_end=True),
        "responses": [_cut(text) for text in texts], "answer": answer, "weight": label.weight,
    }  # fmt: skip


def _cut(text: str, *, from_end: bool = False) -> str:
    if len(text) <= SHOWN:
        return text
    return f"… {text[-SHOWN:]}" if from_end else f"{text[:SHOWN]} …"


def described(found: Inspection) -> str:
    """The format in words."""
    return f"{found.format}: {READERS[found.format].what}; {found.why}"
