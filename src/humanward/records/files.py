"""Files from outside, read once and strictly: every fault is one line with file:line, and reading goes on behind it where it can."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from humanward.errors import UserError
from humanward.records import jsonl

FAULTS_SHOWN = 20
BOM = b"\xef\xbb\xbf"
_GZIP, _ZIP, _UTF16 = b"\x1f\x8b", b"PK\x03\x04", (b"\xff\xfe", b"\xfe\xff")
_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a file may ask of this machine; beyond it the file is refused."""

    line: int = 16 << 20
    """Bytes of a line, or of one row of a JSON list."""
    unpacked: int = 8 << 30
    """Bytes of the whole file, unpacked."""
    ratio: int = 200
    """How many times larger a compressed file may become, once it is above ``ratio_from``. Text packs 5 to 30 times."""
    ratio_from: int = 16 << 20


class Faults:
    """The faults of one file: the first are kept word for word, all are counted."""

    def __init__(self, shown: int = FAULTS_SHOWN) -> None:
        self.shown, self.count = shown, 0
        self._lines: list[str] = []
        self._noted = _Noted(self)

    def add(self, message: str) -> None:
        """One fault; ``message`` begins with file:line."""
        self.count += 1
        if self.count <= self.shown:
            self._lines.append(" ".join(message.split()))

    def noted(self) -> AbstractContextManager[None, bool]:
        """A UserError inside the block is one fault, and the program goes on behind the block."""
        return self._noted

    def check(self) -> None:
        """Raises UserError, a line per fault, if there were any."""
        if not self.count:
            return
        rest = self.count - len(self._lines)
        raise UserError("\n".join([*self._lines, *([f"… and {rest} more faults"] if rest else [])]))


class _Noted:
    """A class of its own, since every row passes through it: a generator would take three times as long."""

    __slots__ = ("_faults",)

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, UserError):
            return False
        self._faults.add(str(error))
        return True


@dataclass
class InputFile:
    """One file that is being read. ``.gz`` is found by its first bytes, whatever the name."""

    path: Path
    faults: Faults = field(default_factory=Faults)
    limits: Limits = field(default_factory=Limits)

    def head(self, size: int = 1 << 16) -> bytes:
        """The first bytes, unpacked and without a byte-order mark. UserError where the file cannot be read at all."""
        with self._open() as file:
            return file.read(size).removeprefix(BOM)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, bytes with the newline), without a byte-order mark. A line that is too long is a fault and left out."""
        number = 0
        with self._open() as file:
            while line := file.readline(self.limits.line + 1):
                number += 1
                if len(line) > self.limits.line:
                    self.faults.add(f"{self.path}:{number}: the line is longer than {self.limits.line >> 20} MiB")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_CHUNK)
                    continue
                if number == 1:
                    if line.startswith(_UTF16):
                        raise UserError(f"{self.path}:1: the file is UTF-16; save it as UTF-8")
                    line = line.removeprefix(BOM)
                yield number, line

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file:line, object) of JSON lines. Empty lines are passed over; a line that is not an object is a fault."""
        for number, line in self.lines():
            if line.strip():
                with self.faults.noted():
                    where = f"{self.path}:{number}"
                    row = jsonl.parse_object(line, where)
                    yield where, row

    def elements(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file:line: row n, object) of one JSON list, a row in memory at a time. The line is the one on which the row begins."""
        yield from _List(self).rows()

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        path = self.path
        try:
            before = path.stat()
            if stat.S_ISDIR(before.st_mode):
                raise UserError(f"{path}: this is a folder; name a file in it")
            if not stat.S_ISREG(before.st_mode):
                raise UserError(f"{path}: not an ordinary file; save it as a file first")
            if not before.st_size:
                raise UserError(f"{path}: the file is empty")
            with path.open("rb") as raw:
                start = raw.read(4)
                raw.seek(0)
                if start.startswith(_ZIP):
                    raise UserError(f"{path}: a ZIP archive; unpack it and name the file in it")
                yield io.BufferedReader(_Measured(path, raw, start.startswith(_GZIP), self.limits), _CHUNK)
                after = os.fstat(raw.fileno())
            found = path.stat()
            if len({(state.st_ino, state.st_size, state.st_mtime_ns) for state in (before, after, found)}) > 1:
                raise UserError(f"{path}: the file was changed while it was being read; wait until it is whole and start again")
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror or error}") from None


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears whole, and on disk, when the block ends well, and not at all otherwise. ``.gz`` names are compressed."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=6) as packed:
                    yield packed  # type: ignore[misc]
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
        jsonl.sync_folder(path.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


class _Measured(io.RawIOBase):
    """The unpacked bytes of a file, which stop with a fault where there are too many of them."""

    def __init__(self, path: Path, raw: IO[bytes], packed: bool, limits: Limits) -> None:
        super().__init__()
        self._path, self._raw, self._packed, self._limits = path, raw, packed, limits
        self._file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        self._read = self._lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self._path}:{self._lines + 1}: damaged gzip: {error}") from None
        self._read += len(part)
        self._lines += part.count(b"\n")
        self._check()
        buffer[: len(part)] = part
        return len(part)

    def _check(self) -> None:
        limits, where = self._limits, f"{self._path}:{self._lines + 1}"
        if self._read > limits.unpacked:
            raise UserError(f"{where}: more than {limits.unpacked >> 20} MiB; divide the file and import the parts")
        if self._packed and self._read > limits.ratio_from and self._read > limits.ratio * max(1, self._raw.tell()):
            raise UserError(f"{where}: becomes more than {limits.ratio} times larger when unpacked; unpack it yourself if you trust it")


class _List:
    """The rows of one JSON list, by way of a buffer that holds a row."""

    def __init__(self, file: InputFile) -> None:
        self.path, self.faults, self.most = file.path, file.faults, file.limits.line
        self._file = file
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self._decode = jsonl.STRICT.raw_decode

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._file._open() as self._bytes:
            self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
            if self._next() != "[":
                raise UserError(f"{self.path}:{self._line}: expected a JSON list: [ … ]")
            self._skip(1)
            number = 0
            if self._next() == "]":
                self._skip(1)
            else:
                while True:
                    number += 1
                    where = f"{self.path}:{self._line}: row {number}"
                    try:
                        row = self._row(where)
                    except _StopError:
                        raise
                    except UserError as error:
                        self.faults.add(str(error))
                    else:
                        yield where, row
                    if self._comma():
                        break
            if self._next():
                raise UserError(f"{self.path}:{self._line}: text behind the end of the list; there must be one list and nothing else")

    def _comma(self) -> bool:
        """Move behind what follows a row; True where the list ends."""
        mark = self._next()
        if not mark:
            raise UserError(f"{self.path}:{self._line}: the list does not end with ]; the file was cut off")
        if mark not in ",]":
            raise UserError(f"{self.path}:{self._line}: not JSON: expected , or ] behind a row, found {mark!r}")
        self._skip(1)
        self._next()
        return mark == "]"

    def _row(self, where: str) -> dict[str, Any]:
        """The row at the place reached. A fault of its contents raises a UserError behind it, anything else one that ends the reading."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # a number, or a word, at the end of what was read so far may go on
                if end < len(self._text) or self._ended or isinstance(value, dict | list | str):
                    break
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > self.most:
                    raise self._not_json(error) from None
            except RecursionError:
                raise _StopError(f"{where}: nested more than {jsonl.MAX_DEPTH} deep") from None
            except ValueError as error:  # NaN, a key twice, …: the row is passed over, its end found by a parser that lets it through
                self._skip_row(json.JSONDecoder().raw_decode)
                raise UserError(f"{where}: {error}") from None
            self._more(max(_CHUNK, len(self._text) - self._at))
        text = self._text[self._at : end]
        self._skip(end - self._at)
        return jsonl.checked_object(value, text, where)

    def _skip_row(self, decode: Callable[[str, int], tuple[Any, int]]) -> None:
        while True:
            try:
                _, end = decode(self._text, self._at)
                self._skip(end - self._at)
                return
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > self.most:
                    raise self._not_json(error) from None
            self._more(max(_CHUNK, len(self._text) - self._at))

    def _not_json(self, error: json.JSONDecodeError) -> _StopError:
        if not self._ended:
            return _StopError(f"{self.path}:{self._line}: a row of more than {self.most >> 20} MiB, or one that is not JSON: {error.msg}")
        line = self._line + self._text.count("\n", self._at, error.pos)
        column = error.pos - self._text.rfind("\n", 0, error.pos)
        cut = ": the file was cut off" if not self._text[error.pos :].strip() or error.msg.startswith("Unterminated") else ""
        return _StopError(f"{self.path}:{line}: not JSON: {error.msg} at column {column}{cut}")

    def _next(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._skip(space.end() - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more(_CHUNK)

    def _skip(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def _more(self, size: int) -> None:
        part = self._bytes.read(size)
        try:
            text = self._utf8.decode(part, final=not part)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n")
            raise _StopError(f"{self.path}:{line}: not UTF-8; save the file as UTF-8") from None
        if "\x00" in text:
            line = self._line + self._text.count("\n", self._at) + text[: text.index("\x00")].count("\n")
            raise _StopError(f"{self.path}:{line}: a NUL byte; the file is damaged or is not text")
        self._text, self._at, self._ended = self._text[self._at :] + text, 0, not part


class _StopError(UserError):
    """A fault behind which a list cannot be read on."""
