"""JSON Lines that are read strictly and written atomically."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from humanward.errors import RunError, UserError

MAX_DEPTH = 100
"""Deepest nesting that is read, well inside what Python's JSON parser and encoder can do."""

MAX_LINE = 64 << 20
"""Longest line that is read, bytes: a compressed file cannot fill the memory."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(*parts: object) -> str:
    """A short name for a content: 16 hex digits of the SHA-256 of the parts as canonical JSON."""
    text = _CANONICAL.encode(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """One JSON object from one line, or a one-line UserError that begins with ``where``."""
    if b"\x00" in line:
        raise UserError(f"{where}: the line has a NUL byte; the file is damaged or is not text")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{where}: nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return checked_object(value, text, where)


def checked_object(value: Any, text: str, where: str) -> dict[str, Any]:
    """What ``text`` was parsed to, if it is an object of text that can be written again; else a UserError that begins with ``where``."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected an object like {{"prompt": …}}, found {_kind(value)}')
    if "\\ud" in text.lower():
        _no_lone_surrogates(text, value, where)
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise UserError(f"{where}: nested more than {MAX_DEPTH} deep")
    return value


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a .jsonl or .jsonl.gz file, one line in memory at a time.

    Empty lines are passed over and a byte-order mark at the beginning is accepted.

    Raises:
        UserError: one line that begins with ``file:line`` (``file`` alone where it cannot be opened): bad UTF-8, NUL, not JSON, not an
            object, NaN, Infinity or a number too large for a float, a key twice, a lone surrogate, nested too deep, damaged gzip.
    """
    path = Path(path)
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
                if len(line) > MAX_LINE:
                    raise UserError(f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MiB")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, parse_object(line, f"{path}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}:{number + 1}: damaged gzip: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> int:
    """Write one object per line and return how many; the file appears whole, and on disk, or not at all. ``.gz`` names are compressed.

    Raises:
        UserError: a row is not JSON (NaN, an unknown type); the line number is in the message. RunError: the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    number = 0
    try:
        with temporary.open("wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) if path.suffix == ".gz" else _NoClose(raw) as file:
                for number, row in enumerate(rows, start=1):
                    file.write(_line(row, f"{path}:{number}"))
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot write: {error.strerror or error}; free some space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)
    return number


class _NoClose:
    """A file that stays open behind a ``with``, so that it can still be fsynced."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write

    def __enter__(self) -> _NoClose:
        return self

    def __exit__(self, *exception: object) -> None: ...


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _line(row: dict[str, Any], where: str) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be written as JSON: {error}") from None


def sync_folder(folder: Path) -> None:
    """Bring the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json``: an object whose keys are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {json.dumps(twice)} is there twice")
    return found


def no_constant(name: str) -> NoReturn:
    """For ``json``: no NaN, no infinities."""
    raise ValueError(f"{name} is not a number that JSON knows; leave the value out or use null")


def finite(text: str) -> float:
    """For ``json``: a number that a float can hold."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _no_lone_surrogates(text: str, value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a \\u surrogate pair without the other half") from None
    except RecursionError:
        raise UserError(f"{where}: nested more than {MAX_DEPTH} deep") from None


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        containers = [outer.values() if isinstance(outer, dict) else outer for outer in level if isinstance(outer, dict | list)]
        level = [inner for container in containers for inner in container]
    return deepest - 1


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


STRICT = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=no_constant, parse_float=finite)
"""Made once: making one takes longer than a short line."""
