"""Reading labels of any known format: found by the first bytes and the columns, streamed, every fault with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humanward.data.formats import (
    argilla,
    best_of_k,
    label_studio,
    pairs,
    ranking,
    saferlhf,
    scores,
    shp,
    soft,
    stiennon2020,
    summeval,
    table,
    ultrafeedback,
    unpaired,
    views,
    ziegler2019,
)
from humanward.data.formats.csv_text import read_csv
from humanward.data.formats.rows import Labeled, Row, numeric
from humanward.data.locations import HUB_SETTINGS, Location, Rows, parquet_rows
from humanward.errors import UserError
from humanward.records.answers import is_number
from humanward.records.files import Faults, InputFile, Limits

SETTINGS = ("format", "kind", "middle", "faulty", *HUB_SETTINGS)
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Reader:
    """A format that labels are read from."""

    what: str
    columns: tuple[tuple[str, ...], ...]
    """Sets of columns that tell it."""
    read: Callable[[Row], Labeled]

    def columns_in(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns of this row that tell the format; none where it is another one."""
        return next((wanted for wanted in self.columns if all(column in values for column in wanted)), ())


READERS: dict[str, Reader] = {
    "table": Reader("a row per label: prompt, responses, kind, answer", (table.COLUMNS,), table.read),
    "best_of_k": Reader("which of K responses is best", (best_of_k.COLUMNS,), best_of_k.read),
    "ranking": Reader("the ranks of K responses", (ranking.COLUMNS,), ranking.read),
    "soft": Reader("how likely each of K responses is the best one", (soft.COLUMNS,), soft.read),
    "scores": Reader("a score for each of K responses", (scores.COLUMNS,), scores.read),
    "pairs": Reader("a chosen and a rejected response, or two whole dialogues", (pairs.COLUMNS,), pairs.read),
    "rating": Reader("the rating of one response", (scores.RATING_COLUMNS,), scores.read_rating),
    "unpaired": Reader("one response, and whether it was liked", (unpaired.COLUMNS,), unpaired.read),
    "ultrafeedback": Reader(
        "UltraFeedback, scored, or Argilla's pairs of it", (ultrafeedback.COLUMNS, ultrafeedback.PAIR_COLUMNS), ultrafeedback.read
    ),
    "shp": Reader("Stanford Human Preferences", (shp.COLUMNS,), shp.read),
    "summeval": Reader("pairs of summaries by experts' scores (SummEval)", (summeval.COLUMNS,), summeval.read),
    "saferlhf": Reader("which of two responses is better, and which are safe (PKU-SafeRLHF)", (saferlhf.COLUMNS,), saferlhf.read),
    "ziegler2019": Reader("the label files of lm-human-preferences", (ziegler2019.COLUMNS,), ziegler2019.read),
    "stiennon2020": Reader("the comparisons of summarize-from-feedback", (stiennon2020.COLUMNS,), stiennon2020.read),
    "label_studio": Reader("Label Studio's JSON export", (label_studio.COLUMNS,), label_studio.read),
    "argilla": Reader("Argilla 2 records, nested or flat", (argilla.COLUMNS,), argilla.read),
}
"""The first whose columns are all there is taken."""


@dataclass
class LabelFile:
    """The labels of a file, a folder or a data set.

    Args:
        source: ``PLACE`` or ``PLACE?format=…&kind=…&middle=…&faulty=skip&split=…&config=…``. ``kind`` reads the labels as another kind,
            where they have a meaning as one; ``middle`` is that of the scale of numbers that become ``kind=binary``; ``faulty=skip`` leaves
            rows with a fault out.
        format: a name of ``READERS``; None: what the source says, else by the columns of the first row.
        decode: the text of token ids, for files of the 2019 form.
    """

    source: Path | str
    format: str | None = None
    decode: ziegler2019.Decode | None = None
    limits: Limits = field(default_factory=Limits)
    faults: Faults = field(default_factory=Faults)
    rows_read: int = field(default=0, init=False)
    why: str = field(default="", init=False)
    """How the format was found."""

    def __post_init__(self) -> None:
        self.location = Location.parse(self.source, SETTINGS)
        settings = self.location.settings
        self.format = self.format or settings.get("format")
        self.kind = settings.get("kind")
        if self.kind is not None and self.kind not in views.KINDS:
            raise UserError(f"{self.source}: kind={self.kind}: there are {', '.join(views.KINDS)}")
        self.middle = self._middle(settings.get("middle"))
        if settings.get("faulty", "skip") != "skip":
            raise UserError(f"{self.source}: faulty={settings['faulty']}: there is skip, which leaves rows with a fault out")
        self.skipped = Faults(shown=0) if "faulty" in settings else None
        """The faults of rows that are left out."""

    def _middle(self, text: str | None) -> float | None:
        if text is None:
            return None
        if self.kind != "binary":
            raise UserError(f"{self.source}: middle={text}: it divides numbers into liked and not; write kind=binary&middle={text}")
        middle = numeric(text)
        if not is_number(middle):
            raise UserError(f"{self.source}: middle={text}: expected a number, such as 3 on a scale from 1 to 5")
        return float(middle)

    def labeled(self) -> Iterator[Labeled]:
        """The questions and labels of all rows without a fault, in the order of the file. The faults are in ``faults``."""
        reader = None
        row_faults = self.faults if self.skipped is None else self.skipped
        try:
            for where, values in self.rows():
                self.rows_read += 1
                if reader is None:
                    reader = self._reader(values, where)
                with row_faults.noted():
                    found = reader(Row(where, values))
                    yield from views.as_kind(found, self.kind, self.middle) if self.kind else (found,)
        except UserError as error:
            self.faults.add(str(error))
        if not self.rows_read and not self.faults.count:
            self.faults.add(f"{self.location.place}: no labels in it")

    def rows(self) -> Rows:
        """(where, columns) of every row. A row with a fault is left out; UserError for a fault that ends the reading."""
        return self.location.rows(self._file_rows, SUFFIXES)

    def _file_rows(self, path: Path) -> Rows:
        file = InputFile(path, self.faults if self.skipped is None else self.skipped, self.limits)
        head = file.head()
        start = head.lstrip()[:1]
        if head.startswith(_PARQUET):
            return parquet_rows(path, self.limits)
        if start == b"[":
            return file.elements()
        return file.objects() if start == b"{" or not _is_csv(path, head) else read_csv(file)

    def _reader(self, values: dict[str, Any], where: str) -> Callable[[Row], Labeled]:
        asked = self.format
        name = asked or found_format(values, where)
        if name not in READERS:
            raise UserError(f"{self.location.place}: unknown format {name!r}; there are {', '.join(READERS)}")
        self.format = name
        columns = READERS[name].columns_in(values) or tuple(column for column in values if column.endswith(".responses"))
        self.why = "asked for" if asked else f"the first row has {', '.join(f'`{column}`' for column in columns)}"
        return ziegler2019.reader(self.decode) if name == "ziegler2019" else READERS[name].read


def found_format(values: Mapping[str, Any], where: str) -> str:
    """The format that has these columns; UserError that names all formats where there is none."""
    if argilla.is_flat(values):
        return "argilla"
    for name, reader in READERS.items():
        if reader.columns_in(values):
            return name
    if "annotation_id" in values:
        raise UserError(f"{where}: a JSON-MIN or CSV export of Label Studio; export as JSON, which says who labelled what")
    if "summary" in values and "info" in values:
        raise UserError(f"{where}: ratings of one summary on several axes; only comparisons of summarize-from-feedback are read")
    if isinstance(values.get("samples"), Mapping):
        raise UserError(f"{where}: `samples` of several models, and nothing that says which is better; label them first")
    columns = ", ".join(f"`{column}`" for column in list(values)[:8]) or "(none)"
    raise UserError(f"{where}: the columns {columns} are of no known format; there are {', '.join(READERS)}: see docs/data.md")


def _is_csv(path: Path, head: bytes) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".csv", ".tsv")) or (not name.endswith((".json", ".jsonl")) and b"," in head.split(b"\n", 1)[0])
