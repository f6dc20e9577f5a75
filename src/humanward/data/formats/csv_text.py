"""CSV that spreadsheets may open: cells that would be formulas are escaped, and the escape comes off when the file is read again."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from humanward.errors import UserError
from humanward.records.files import BOM, InputFile

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""What spreadsheets take for a formula, also behind our own mark (OWASP, CSV injection)."""
_SUSPECT = frozenset("'=+-@\t\r\n＝＋－＠")
_MARKED = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")


def cell_of(value: Any) -> Any:
    """A list is spelled as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def escaped(value: Any) -> Any:
    """A text with ' in front where a spreadsheet would run it. Numbers stay numbers, None is an empty cell."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unescaped(cell: str) -> str:
    """The inverse of ``escaped``."""
    return cell[1:] if _MARKED.match(cell) else cell


class CsvWriter:
    """UTF-8 with a byte-order mark, so that spreadsheets know it, and CRLF (RFC 4180)."""

    def __init__(self, file: IO[bytes], columns: Iterable[str]) -> None:
        self._file, self._columns = file, list(columns)
        self._writer = csv.writer(self)
        file.write(BOM)
        self._writer.writerow(self._columns)

    def write(self, text: str) -> int:
        """Called by ``csv``."""
        return self._file.write(text.encode("utf-8"))

    def row(self, row: Mapping[str, Any]) -> None:
        cells = [cell_of(row.get(name)) for name in self._columns]
        # The first sign is looked at before anything is called: most of a large export is cells that begin with a letter.
        self._writer.writerow([escaped(cell) if isinstance(cell, str) and cell[:1] in _SUSPECT else cell for cell in cells])


def read_csv(file: InputFile) -> Iterator[tuple[str, dict[str, str]]]:
    """(file:line, cells by column) of a CSV file with a header. The line is the one on which the row begins."""
    csv.field_size_limit(file.limits.line)
    source = _Lines(file)
    reader = csv.reader(source, strict=True)
    try:
        header = [unescaped(name).strip() for name in next(reader)]
    except StopIteration:
        raise UserError(f"{file.path}:1: no header in it") from None
    except csv.Error as error:
        raise UserError(f"{file.path}:1: not CSV: {error}") from None
    twice = next((name for name in header if header.count(name) > 1 or not name), None)
    if twice is not None:
        raise UserError(f"{file.path}:1: the column {twice!r} is there twice" if twice else f"{file.path}:1: a column without a name")
    while True:
        source.begin()
        where = f"{file.path}:{source.next_line}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message = "a quoted cell does not end: the file was cut off" if "unexpected end" in str(error) else f"not CSV: {error}"
            raise UserError(f"{where}: {message}") from None
        where = f"{file.path}:{source.first}" if source.first else where
        if source.faulty or not cells:
            continue
        if len(cells) != len(header):
            file.faults.add(f"{where}: {len(cells)} cells, but the header has {len(header)} columns; quote cells with commas in them")
            continue
        yield where, {name: unescaped(cell) for name, cell in zip(header, cells, strict=True)}


class _Lines:
    """Decoded lines for ``csv``, which remember where a row began and whether one of its lines had a fault."""

    def __init__(self, file: InputFile) -> None:
        self._file, self._lines = file, file.lines()
        self.next_line, self.first, self.faulty = 1, 0, False

    def begin(self) -> None:
        """A new row begins with the next line."""
        self.first, self.faulty = 0, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.first = self.first or number
        self.next_line = number + 1
        where = f"{self._file.path}:{number}"
        if b"\x00" in line:
            self._fault(f"{where}: the line has a NUL byte; the file is damaged or is not text")
        try:
            return line.replace(b"\x00", b"").decode("utf-8")
        except UnicodeDecodeError as error:
            self._fault(f"{where}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8")
            return line.replace(b"\x00", b"").decode("utf-8", "replace")

    def _fault(self, message: str) -> None:
        self.faulty = True
        self._file.faults.add(message)
