"""Writing labels in the formats of others, one label in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from humanward.data.formats import (
    argilla,
    best_of_k,
    conversation,
    label_studio,
    pairs,
    ranking,
    scores,
    shp,
    soft,
    stiennon2020,
    table,
    transcripts,
    ultrafeedback,
    unpaired,
    views,
    ziegler2019,
)
from humanward.data.formats.csv_text import CsvWriter, cell_of
from humanward.errors import UserError
from humanward.records import Label, Question

Rows = Callable[[Question, Label], tuple[list[dict[str, Any]], int]]
_PARQUET_ROWS = 2000


@dataclass(frozen=True)
class Writer:
    """A format that labels can be written in."""

    what: str
    rows: Rows
    """(question, label) -> (its rows, how many parts of it the format has no word for)."""
    left_out: str
    """What those parts are, in the plural."""
    kinds: tuple[str, ...]
    """Kinds of label that it holds without losing what they say. A choice of one among K may become several rows."""
    columns: Mapping[str, str]
    """Column -> its type: text, number, whole, flag, texts, numbers, wholes, flags, messages, or talk: messages of a conversation, else
    a text."""
    containers: tuple[str, ...] = ("jsonl", "json", "parquet", "csv")
    conversations: bool = True
    """Whether prompts may be messages; those of labelling tools are transcripts, for people to read."""

    def holds(self, question: Question, label: Label) -> bool:
        """Whether all that the label says can be written."""
        if label.kind not in self.kinds or not self.holds_prompt(question):
            return False
        rows, left_out = self.rows(question, label)
        return bool(rows) and not left_out

    def holds_prompt(self, question: Question) -> bool:
        """Whether the prompt can be written without losing that it is a conversation."""
        return self.conversations or conversation.messages_of(question.prompt) is None


OPTIONAL = ("weight", "safe")
"""Columns that CSV and Parquet have only where a label has something to say in them."""
_CHOICE = ("best_of_k", "pair")
_COMPARED = (*_CHOICE, "ranking", "difference", "scores")
WRITERS: dict[str, Writer] = {
    "table": Writer("every label as a row", table.write, "", views.KINDS, table.WRITTEN),
    "pairs": Writer("prompt, chosen, rejected", pairs.write, "tied pairs", _COMPARED, pairs.WRITTEN),
    "transcripts": Writer(
        "chosen, rejected: whole dialogues as in HH-RLHF", transcripts.write, "tied pairs", _COMPARED, transcripts.WRITTEN
    ),
    "conversations": Writer(
        "prompt, chosen, rejected as lists of messages", transcripts.write_messages, "tied pairs", _COMPARED,
        transcripts.MESSAGES_WRITTEN,
    ),
    "unpaired": Writer(
        "prompt, completion, label", unpaired.write, "labels without a good or bad response", ("binary",), unpaired.WRITTEN
    ),
    "best_of_k": Writer(
        "prompt, responses, best", best_of_k.write, "labels without one best response", _CHOICE, best_of_k.WRITTEN
    ),
    "ranking": Writer(
        "prompt, responses, ranks", ranking.write, "labels that order nothing", ("ranking", "pair"), ranking.WRITTEN
    ),
    "soft": Writer(
        "prompt, responses, probabilities", soft.write, "labels that are no choices", ("soft", *_CHOICE), soft.WRITTEN
    ),
    "scores": Writer("prompt, responses, scores", scores.write, "labels without scores", ("scores",), scores.WRITTEN),
    "rating": Writer(
        "prompt, response, rating", scores.write_rating, "labels without ratings", ("rating", "scores"), scores.RATING_WRITTEN
    ),
    "ultrafeedback": Writer(
        "instruction, completions with scores", ultrafeedback.write, "labels without scores", ("scores",), {}, ("jsonl", "json"),
        conversations=False,
    ),
    "shp": Writer(
        "history, human_ref_A, human_ref_B, labels", shp.write, "labels that do not choose one of two responses", _CHOICE, shp.WRITTEN,
        conversations=False,
    ),
    "ziegler2019": Writer(
        "one JSON list: query, sample0 …, best", ziegler2019.write, "labels without one best response", _CHOICE, {}, ("json",),
        conversations=False,
    ),
    "stiennon2020": Writer(
        "info, summaries, choice", stiennon2020.write, "labels that do not choose one of two responses", _CHOICE, {}, ("jsonl", "json"),
        conversations=False,
    ),
    "label_studio": Writer(
        "Label Studio's tasks with annotations", label_studio.write, "labels that are no choice and no ranking without ties",
        (*_CHOICE, "ranking"), {}, ("json", "jsonl"),
    ),
    "argilla": Writer(
        "Argilla's records with responses", argilla.write, "labels that are no choice and no ranking", (*_CHOICE, "ranking"), {},
        ("jsonl", "json"),
    ),
}  # fmt: skip


@dataclass
class Written:
    """What came of it."""

    labels: int = 0
    rows: int = 0
    left_out: int = 0


def write_labels(
    file: IO[bytes], labeled: Iterable[tuple[Question, Label]], format: str, container: str, *, most_responses: int = 9,
    optional: Collection[str] = (), conversations: bool = False, names: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda labels: None,
) -> Written:  # fmt: skip
    """Write labels to an open file.

    Args:
        file: where to.
        labeled: each label with its question.
        format: a name of ``WRITERS``.
        container: jsonl, json (one list), csv or parquet; one that the format has.
        most_responses: the columns of a CSV table.
        optional: those of ``OPTIONAL`` that CSV and Parquet are to have.
        conversations: every prompt is one, so that Parquet has columns of messages; otherwise it spells messages as JSON, as CSV does.
        names: a display name for each labeler; given, every row has a column ``name``.
        progress: told the number of labels written so far.

    Raises:
        UserError: a format in a container that it does not have.
    """
    writer = WRITERS[format]
    if container not in writer.containers:
        raise UserError(f"{format}: written as {' or '.join(writer.containers)}, not as {container}; choose another name for the file")
    done = Written()
    sink = _SINKS[container](file, _columns(writer, format, container, most_responses, optional, conversations, names))
    rows_of = table.write_cells if format == "table" and container == "csv" else writer.rows
    for question, label in labeled:
        rows, left_out = rows_of(question, label)
        done.labels, done.rows, done.left_out = done.labels + 1, done.rows + len(rows), done.left_out + left_out
        for row in rows:
            if names is not None:
                row["name"] = names.get(label.labeler, "")
            sink.row(row)
        progress(done.labels)
    sink.end()
    return done


def _columns(
    writer: Writer, format: str, container: str, most: int, optional: Collection[str], conversations: bool, names: object
) -> dict[str, str]:  # fmt: skip
    talk = "messages" if conversations else "text"
    columns = {name: talk if what == "talk" else what for name, what in writer.columns.items() if name in optional or name not in OPTIONAL}
    if format == "table" and container == "csv":
        columns = dict.fromkeys(table.header(max(most, 1)), "text") | {name: columns[name] for name in OPTIONAL if name in columns}
    return columns if names is None else {**columns, "name": "text"}


class _JsonLines:
    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        self._file = file
        self._encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

    def row(self, row: Mapping[str, Any]) -> None:
        self._file.write((self._encode(row) + "\n").encode("utf-8"))

    def end(self) -> None: ...


class _JsonList(_JsonLines):
    """A list with a row per line."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        super().__init__(file, columns)
        self._before = "[\n"

    def row(self, row: Mapping[str, Any]) -> None:
        self._file.write((self._before + self._encode(row)).encode("utf-8"))
        self._before = ",\n"

    def end(self) -> None:
        self._file.write(b"[]\n" if self._before == "[\n" else b"\n]\n")


class _Csv:
    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        self._writer = CsvWriter(file, columns)
        self.row = self._writer.row

    def end(self) -> None: ...


class _Parquet:
    """Columns typed by what the formats hold, so that a file without rows has them too."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        import pyarrow
        from pyarrow import parquet

        text, number, whole, flag = pyarrow.string(), pyarrow.float64(), pyarrow.int64(), pyarrow.bool_()
        types = {
            "text": text, "number": number, "whole": whole, "flag": flag, "texts": pyarrow.list_(text), "numbers": pyarrow.list_(number),
            "wholes": pyarrow.list_(whole), "flags": pyarrow.list_(flag),
            "messages": pyarrow.list_(pyarrow.struct([("role", text), ("content", text)])),
        }  # fmt: skip
        self._schema = pyarrow.schema([(name, types[what]) for name, what in columns.items()])
        self._texts = {name for name, what in columns.items() if what == "text"}
        self._table, self._writer = pyarrow.Table, parquet.ParquetWriter(file, self._schema)
        self._rows: list[Mapping[str, Any]] = []

    def row(self, row: Mapping[str, Any]) -> None:
        self._rows.append({name: cell_of(value) if name in self._texts else value for name, value in row.items()})
        if len(self._rows) >= _PARQUET_ROWS:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


_SINKS: dict[str, Any] = {"jsonl": _JsonLines, "json": _JsonList, "csv": _Csv, "parquet": _Parquet}
