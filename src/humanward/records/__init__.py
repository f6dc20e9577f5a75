"""The nouns of the house, as frozen dataclasses that are read from and written to JSONL. Standard library only."""

from __future__ import annotations

from humanward.records.jsonl import content_id, read_jsonl, write_jsonl
from humanward.records.nouns import Comparison, Label, Prompt, Question, Response, question_id

__all__ = ["Comparison", "Label", "Prompt", "Question", "Response", "content_id", "question_id", "read_jsonl", "write_jsonl"]
