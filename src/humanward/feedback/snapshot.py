"""A frozen set of labels that a round trains on: the same labels give the same bytes, however and whenever they came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from humanward.errors import UserError
from humanward.feedback.kinds import to_comparisons
from humanward.feedback.log import canonical, sha256
from humanward.records import Comparison, Label, Question, read_jsonl, write_jsonl

_FORMAT = "humanward-snapshot-1"


@dataclass(frozen=True)
class Snapshot:
    """Labels, the questions that they answer, and one hash over what both say.

    Sorted and hashed by content: prompts, responses, kinds, labelers and answers. Ids, times, seconds, comments and the order of arrival
    change nothing.
    """

    labels: tuple[Label, ...]
    questions: tuple[Question, ...]
    """Only those that have a label."""
    sha256: str

    @classmethod
    def of(cls, questions: Iterable[Question], labels: Iterable[Label]) -> Self:
        """Sort and hash. Every label must answer one of the questions."""
        by_id = {question.id: question for question in questions}
        contents = {key: canonical(question_content(question)) for key, question in by_id.items()}

        def content(label: Label) -> tuple[str, str, str]:
            unusual = [*(["adjudication"] if label.adjudication else []), *([label.weight] if label.weight != 1 else [])]
            said = [label.kind, label.answer, *unusual]
            return contents[label.question_id], label.labeler, canonical(said)

        ordered = sorted(labels, key=content)
        asked = {label.question_id: by_id[label.question_id] for label in ordered}
        return cls(tuple(ordered), tuple(asked.values()), sha256(canonical([content(label) for label in ordered])))

    def of_split(self, split: str) -> Snapshot:
        """The part about "train" or "validation" questions."""
        kept = [question for question in self.questions if question.split == split]
        ids = {question.id for question in kept}
        return Snapshot.of(kept, (label for label in self.labels if label.question_id in ids))

    def comparisons(self) -> list[Comparison]:
        """One comparison per label, in the snapshot's order; an adjudicated question has that of its adjudication alone."""
        return to_comparisons(self.questions, self.labels)

    def save(self, path: Path | str) -> None:
        """Write JSONL: a line with the hash, the questions, the labels."""
        head = {"format": _FORMAT, "sha256": self.sha256}
        questions = ({"question": question.to_json()} for question in self.questions)
        labels = ({"label": label.to_json()} for label in self.labels)
        write_jsonl(path, (row for part in ([head], questions, labels) for row in part))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what ``save`` wrote; UserError when the contents do not match the hash."""
        rows = [(f"{path}:{number}", row) for number, row in read_jsonl(path)]
        head = rows[0][1] if rows else {}
        if head.get("format") != _FORMAT:
            raise UserError(f"{path}:1: not a snapshot of labels; expected {_FORMAT}")
        questions = [Question.from_json(row["question"], where) for where, row in rows if "question" in row]
        labels = [Label.from_json(row["label"], where) for where, row in rows if "label" in row]
        strangers = {label.question_id for label in labels} - {question.id for question in questions}
        made = None if strangers else cls.of(questions, labels)
        if made is None or made.sha256 != head.get("sha256"):
            raise UserError(f"{path}: the labels do not match their hash: the file was changed after it was written")
        return made


def question_content(question: Question) -> list[Any]:
    """What a question says, without ids."""
    responses = [[response.text, list(response.tokens)] for response in question.responses]
    return [question.round, question.split, question.kind, question.prompt.text, list(question.prompt.tokens), responses]
