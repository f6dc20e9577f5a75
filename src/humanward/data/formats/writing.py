"""Writing labels in the formats of others, one label in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from humanward.data.formats import pairs, stiennon2020, table, unpaired, ziegler2019
from humanward.data.formats.csv_text import CsvWriter
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
    columns: tuple[str, ...]
    """Of CSV."""
    containers: tuple[str, ...] = ("jsonl", "parquet", "csv")


_ABOUT = ("labeler", "question_id", "split")
WRITERS: dict[str, Writer] = {
    "table": Writer("every label as a row", table.write, "", ()),
    "pairs": Writer("prompt, chosen, rejected", pairs.write, "tied pairs", ("prompt", "chosen", "rejected", *_ABOUT)),
    "unpaired": Writer(
        "prompt, completion, label", unpaired.write, "labels without a good or bad response", ("prompt", "completion", "label", *_ABOUT)
    ),
    "ziegler2019": Writer("one JSON list: query, sample0 …, best", ziegler2019.write, "labels without one best response", (), ("json",)),
    "stiennon2020": Writer("info, summaries, choice", stiennon2020.write, "labels that do not choose one of two responses", (), ("jsonl",)),
}


@dataclass
class Written:
    """What came of it."""

    labels: int = 0
    rows: int = 0
    left_out: int = 0


def write_labels(
    file: IO[bytes], labeled: Iterable[tuple[Question, Label]], format: str, container: str, *, most_responses: int = 9,
    names: Mapping[str, str] | None = None, progress: Callable[[int], None] = lambda labels: None,
) -> Written:  # fmt: skip
    """Write labels to an open file.

    Args:
        file: where to.
        labeled: each label with its question.
        format: a name of ``WRITERS``.
        container: jsonl, json (one list), csv or parquet; one that the format has.
        most_responses: the columns of a CSV table.
        names: a display name for each labeler; given, every row has a column ``name``.
        progress: told the number of labels written so far.

    Raises:
        UserError: a format in a container that it does not have.
    """
    writer = WRITERS[format]
    if container not in writer.containers:
        raise UserError(f"{format}: written as {' or '.join(writer.containers)}, not as {container}; choose another name for the file")
    done = Written()
    sink = _SINKS[container](file, _columns(writer, format, most_responses, names))
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


def _columns(writer: Writer, format: str, most: int, names: object) -> list[str]:
    columns = table.header(max(most, 1)) if format == "table" else list(writer.columns)
    return columns if names is None else [*columns, "name"]


class _JsonLines:
    def __init__(self, file: IO[bytes], columns: list[str]) -> None:
        self._file = file
        self._encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

    def row(self, row: Mapping[str, Any]) -> None:
        self._file.write((self._encode(row) + "\n").encode("utf-8"))

    def end(self) -> None: ...


class _JsonList(_JsonLines):
    """A list with a row per line."""

    def __init__(self, file: IO[bytes], columns: list[str]) -> None:
        super().__init__(file, columns)
        self._before = "[\n"

    def row(self, row: Mapping[str, Any]) -> None:
        self._file.write((self._before + self._encode(row)).encode("utf-8"))
        self._before = ",\n"

    def end(self) -> None:
        self._file.write(b"[]\n" if self._before == "[\n" else b"\n]\n")


class _Csv:
    def __init__(self, file: IO[bytes], columns: list[str]) -> None:
        self._writer = CsvWriter(file, columns)
        self.row = self._writer.row

    def end(self) -> None: ...


class _Parquet:
    """Columns typed by what the formats hold, so that a file without rows has them too."""

    def __init__(self, file: IO[bytes], columns: list[str]) -> None:
        import pyarrow
        from pyarrow import parquet

        text, number = pyarrow.string(), pyarrow.float64()
        special = {
            "responses": pyarrow.list_(text), "permutation": pyarrow.list_(pyarrow.int32()), "round": pyarrow.int64(),
            "seconds": number, "confidence": number, "label": pyarrow.bool_(), "adjudication": pyarrow.bool_(),
        }  # fmt: skip
        fields = dict.fromkeys("responses" if name.startswith("response_") else name for name in columns)
        self._schema = pyarrow.schema([(name, special.get(name, text)) for name in fields])
        self._table, self._writer = pyarrow.Table, parquet.ParquetWriter(file, self._schema)
        self._rows: list[Mapping[str, Any]] = []

    def row(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _PARQUET_ROWS:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


_SINKS: dict[str, Any] = {"jsonl": _JsonLines, "json": _JsonList, "csv": _Csv, "parquet": _Parquet}
