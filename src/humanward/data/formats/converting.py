"""From any format to any that can hold what the labels say: looked through first, then written, one label in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from humanward.data.formats.conversation import messages_of
from humanward.data.formats.reading import LabelFile
from humanward.data.formats.rows import named, safety
from humanward.data.formats.views import told
from humanward.data.formats.writing import WRITERS, Written, write_labels
from humanward.errors import UserError
from humanward.records import Label, Question

Progress = Callable[[int], None]


@dataclass
class Conversion:
    """The labels of a source on their way into another format.

    Args:
        source: as ``LabelFile`` takes it.
        format: a name of ``WRITERS``.
        leave_out: leave out, and count, what the format cannot hold, where it would be a fault.
    """

    source: Path | str
    format: str
    leave_out: bool = False
    kinds: Counter[str] = field(default_factory=Counter, init=False)
    """How many labels of each kind are written."""
    left_out: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    """Rows with a fault, where the source says that they are to be skipped."""
    most_responses: int = field(default=0, init=False)
    optional: set[str] = field(default_factory=set, init=False)
    """Those of ``OPTIONAL`` that some label has something to say in."""
    conversations: bool = field(default=True, init=False)
    """Whether every prompt that is written is one."""

    def __post_init__(self) -> None:
        if self.format not in WRITERS:
            raise UserError(f"{self.format}: cannot be written; there are {', '.join(WRITERS)}")
        self._writer = WRITERS[self.format]

    def check(self, progress: Progress = lambda labels: None) -> None:
        """Look through the source.

        Raises:
            UserError: a line for each row with a fault, or that the format cannot hold.
        """
        file = LabelFile(self.source)
        for where, question, label in self._labels(file, progress):
            if self._writer.holds(question, label):
                self.kinds[label.kind] += 1
                self.most_responses = max(self.most_responses, len(question.responses))
                self.optional |= ({"weight"} if label.weight != 1 else set()) | safety(question, ()).keys()
                self.conversations = self.conversations and messages_of(question.prompt) is not None
            elif self.leave_out:
                self.left_out += 1
            else:
                able = ", ".join(name for name, writer in WRITERS.items() if writer.holds(question, label))
                what = told(label) if self._writer.holds_prompt(question) else "a conversation"
                wrong = f"{what} cannot be written as {self.format}"
                file.faults.add(f"{where}: {wrong}; {able} can hold it, or --leave-out leaves it out")
        file.faults.check()
        self.skipped = 0 if file.skipped is None else file.skipped.count
        if not self.kinds:
            raise UserError(f"{self.source}: none of its {self.left_out} labels can be written as {self.format}")

    def write(self, out: IO[bytes], container: str, progress: Progress = lambda labels: None) -> Written:
        """Write what ``check`` has passed."""
        file = LabelFile(self.source)
        held = ((question, label) for _, question, label in self._labels(file) if self._writer.holds(question, label))
        done = write_labels(
            out, held, self.format, container, most_responses=self.most_responses, optional=self.optional,
            conversations=self.conversations, progress=progress,
        )  # fmt: skip
        file.faults.check()
        return done

    def _labels(self, file: LabelFile, progress: Progress = lambda labels: None) -> Iterator[tuple[str, Question, Label]]:
        for labeled in file.labeled():
            question = named(labeled.question)
            for label in labeled.labels:
                yield labeled.where, question, label
            progress(file.rows_read)
