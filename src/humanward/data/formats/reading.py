"""Reading labels from a file of any known format: found by its first bytes and its columns, streamed, every fault with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humanward.data.formats import argilla, label_studio, pairs, stiennon2020, table, unpaired, ziegler2019
from humanward.data.formats.csv_text import read_csv
from humanward.data.formats.rows import Labeled, Row
from humanward.errors import UserError
from humanward.records.files import Faults, InputFile, Limits

Reader = Callable[[Row], Iterator[Labeled]]

READERS: dict[str, tuple[str, tuple[tuple[str, ...], ...], Reader]] = {
    "table": ("a row per label: prompt, responses, kind, answer", (table.COLUMNS, table.BEST_COLUMNS), table.read),
    "pairs": ("prompt, chosen, rejected", (pairs.COLUMNS,), pairs.read),
    "unpaired": ("prompt, completion, label", (unpaired.COLUMNS,), unpaired.read),
    "ziegler2019": ("query, sample0 … and best of lm-human-preferences", (ziegler2019.COLUMNS,), ziegler2019.read),
    "stiennon2020": ("info, summaries, choice of summarize-from-feedback", (stiennon2020.COLUMNS,), stiennon2020.read),
    "label_studio": ("Label Studio's JSON export", (label_studio.COLUMNS,), label_studio.read),
    "argilla": ("Argilla 2 records, nested or flat", (argilla.COLUMNS,), argilla.read),
}
"""name -> (what it is, sets of columns that tell it, its reader). The first whose columns are all there is taken."""

_PARQUET = b"PAR1"


@dataclass
class LabelFile:
    """A file of labels.

    Args:
        path: the file.
        format: a name of ``READERS``; None: by the columns of the first row.
        decode: the text of token ids, for files of the 2019 form.
    """

    path: Path
    format: str | None = None
    decode: ziegler2019.Decode | None = None
    limits: Limits = field(default_factory=Limits)
    faults: Faults = field(default_factory=Faults)

    def labeled(self) -> Iterator[Labeled]:
        """The questions and labels of all rows without a fault, in the order of the file. The faults are in ``faults``."""
        reader = None
        number = 0
        try:
            for where, values in self.rows():
                number += 1
                if reader is None:
                    reader = self._reader(values, where)
                with self.faults.noted():
                    yield from reader(Row(where, values))
        except UserError as error:
            self.faults.add(str(error))
        if not number and not self.faults.count:
            self.faults.add(f"{self.path}: no labels in it")

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, columns) of every row. A row with a fault is left out; UserError for a fault that ends the reading."""
        file = InputFile(self.path, self.faults, self.limits)
        head = file.head()
        start = head.lstrip()[:1]
        if head.startswith(_PARQUET):
            return _parquet_rows(self.path, self.limits)
        if start == b"[":
            return file.elements()
        return file.objects() if start == b"{" or not _is_csv(self.path, head) else read_csv(file)

    def _reader(self, values: dict[str, Any], where: str) -> Reader:
        name = self.format or found_format(values, where)
        if name not in READERS:
            raise UserError(f"{self.path}: unknown format {name!r}; there are {', '.join(READERS)}")
        self.format = name
        return ziegler2019.reader(self.decode) if name == "ziegler2019" else READERS[name][2]


def found_format(values: dict[str, Any], where: str) -> str:
    """The format that has these columns; UserError that names all formats where there is none."""
    if argilla.is_flat(values):
        return "argilla"
    for name, (_, columns, _) in READERS.items():
        if any(all(column in values for column in wanted) for wanted in columns):
            return name
    if "annotation_id" in values:
        raise UserError(f"{where}: a JSON-MIN or CSV export of Label Studio; export as JSON, which says who labelled what")
    if "summary" in values and "info" in values:
        raise UserError(f"{where}: ratings of one summary on several axes; only comparisons of summarize-from-feedback are read")
    known = "; ".join(f"{name}: {', '.join(columns[0])}" for name, (_, columns, _) in READERS.items())
    raise UserError(f"{where}: the columns {', '.join(list(values)[:8]) or '(none)'} are of no known format ({known})")


def _is_csv(path: Path, head: bytes) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".csv", ".tsv")) or (not name.endswith((".json", ".jsonl")) and b"," in head.split(b"\n", 1)[0])


def _parquet_rows(path: Path, limits: Limits) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
            if sum(groups) > limits.unpacked:
                raise UserError(f"{path}: more than {limits.unpacked >> 20} MiB; divide the file and import the parts")
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: row {number + 1}: not a readable Parquet file: {reason}") from None
