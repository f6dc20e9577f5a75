"""Single files that are either the old one or the new one, and a full disk told in one line."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(path: Path) -> int:
    """Bytes that this process may still write where ``path`` is or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def check_space(path: Path | str, needed: int) -> None:
    """Raises RunError unless ``needed`` bytes are free where ``path`` is or will be."""
    free = free_bytes(Path(path))
    if needed > free:
        raise _full(Path(path), needed, free)


def _full(path: Path, needed: int, free: int) -> RunError:
    need = str(needed) if needed > free else f"more than {free}"
    return RunError(f"{path}: the disk is full: {need} bytes needed, {free} bytes free; free some space and start again")


@contextmanager
def disk_faults(path: Path, needed: int = 0) -> Iterator[None]:
    """Tell a failed write or fsync of ``path`` as a RunError; the block has removed what was half written.

    Args:
        path: what was being written.
        needed: bytes that the whole of it needs; 0 where nobody knows.
    """
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise _full(path, needed, free_bytes(path)) from error
        if isinstance(error, OSError):
            raise RunError(f"{path}: could not be written: {error.strerror or error}; check the disk and start again") from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, also where a library has wrapped it."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(f"os error {code}" in str(error) for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def fsync_path(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and the ones above it, so that power loss does not take them again."""
    if path.is_dir():
        return
    if not path.parent.exists():
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync_path(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step; after a crash it is the old or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_faults(path, len(content)):
        make_folder(path.parent)
        check_space(path, len(content))
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON value in one step. Numbers come back exactly; NaN and infinities are refused, and names that are not text."""
    write_bytes(Path(path), encode_json(value, str(path), indent=2))


def encode_json(value: Any, where: str, indent: int | None = None) -> bytes:
    """JSON bytes with a newline at the end. Raises RunError that names the first value that JSON cannot hold."""
    fault = _json_fault(value, "")
    if fault is not None:
        raise RunError(f"{where}: {fault}")
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only its escape is valid UTF-8
        return (json.dumps(value, allow_nan=False, indent=indent) + "\n").encode()


def _json_fault(value: Any, name: str) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name or 'the value'} is {value}, not a finite number; it was not written"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"{name or 'the value'} has the name {key!r}, which is not text and would come back changed; it was not written"
            fault = _json_fault(item, f"{name}.{key}" if name else key)
            if fault is not None:
                return fault
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            fault = _json_fault(item, f"{name}[{index}]")
            if fault is not None:
                return fault
    return None


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises RunError in one line for a file that is missing or damaged."""
    path = Path(path)
    try:
        return decode_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{error.lineno}: damaged: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged: {error}") from None


def decode_json(content: bytes) -> Any:
    """The value of JSON bytes. Raises ValueError for anything that ``encode_json`` does not write."""
    return json.loads(content.decode(), parse_constant=_refuse)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a finite number")
