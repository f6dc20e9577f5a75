"""Preference data for training: the labels of a file of any known format as comparisons with tokens, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from humanward.data.formats import Labeled, LabelFile
from humanward.data.formats.rows import named
from humanward.data.formats.views import as_kind, told, trainable
from humanward.data.task import Task
from humanward.errors import UserError
from humanward.records import Comparison


@dataclass
class PreferenceData:
    """The comparisons of a source, as ``LabelFile`` finds them; going through it again reads it again.

    Args:
        source: ``PLACE`` or ``PLACE?format=…&kind=…&faulty=skip&split=…``.
        task: whose tokenizer makes the tokens; None: texts only.
        kinds: what the learner learns from; a difference is a pair where it has no use for differences. None: anything.
        max_tokens: a comparison is left out where its prompt and its longest response have more together.

    Scores of K responses are the differences of their pairs. Every other label keeps its kind, its ties, its ranks and its weight.
    """

    source: Path | str
    task: Task | None = None
    kinds: Collection[str] | None = None
    max_tokens: int | None = None
    too_long: int = field(default=0, init=False)
    """How many the last reading left out."""

    def __iter__(self) -> Iterator[Comparison]:
        """Raises UserError behind the last comparison, a line per fault, if there were any."""
        file = LabelFile(self.source, decode=None if self.task is None else self.task.checked_decode)
        self.too_long = 0
        found = self._comparisons(file)
        for comparison in (c for _, c in found) if self.task is None else self.task.iter_tokenized(found):
            if self.max_tokens is not None and longest(comparison) > self.max_tokens:
                self.too_long += 1
                continue
            yield comparison
        file.faults.check()

    def _comparisons(self, file: LabelFile) -> Iterator[tuple[str, Comparison]]:
        for whole in file.labeled():
            with file.faults.noted():
                for labeled in trainable(whole):
                    for part in self._useful(labeled):
                        question = named(part.question)
                        for label in part.labels:
                            yield part.where, Comparison.of(question, label)

    def _useful(self, labeled: Labeled) -> Iterator[Labeled]:
        """The label, or what the learner reads of it."""
        kind = labeled.question.kind
        if self.kinds is None or kind in self.kinds:
            return iter((labeled,))
        if kind == "difference" and "pair" in self.kinds:
            return as_kind(labeled, "pair")
        raise UserError(f"{labeled.where}: nothing is learnt from {told(labeled.labels[0])}; it must be {', '.join(self.kinds)}")


def longest(comparison: Comparison) -> int:
    """Tokens of the prompt with its longest response."""
    return len(comparison.prompt.tokens) + max(len(response.tokens) for response in comparison.responses)
