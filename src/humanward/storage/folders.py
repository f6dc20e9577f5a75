"""Folders that appear whole or not at all, with a manifest that finds every later damage."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import RunError
from .files import check_space, decode_json, disk_faults, encode_json, fsync_path, make_folder

MANIFEST = "manifest.json"
FORMAT = 1
"""Of the manifest and of what stands beside it; a later version that writes something else counts it up."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_folder(path: Path | str, *, bytes_needed: int = 0) -> Iterator[Path]:
    """A temporary folder to write into, which becomes ``path`` when the block ends well and vanishes when it does not.

    Each file is brought to the disk, then a manifest of sizes and SHA-256, then the folder; then it is renamed, then the parent is
    brought to the disk. A folder that stood at ``path`` is exchanged in one step and removed when that is on the disk. After a failed
    fsync nothing is tried again.

    Args:
        path: the folder to create or replace.
        bytes_needed: what will be written, if known: refused at once where less is free.

    Raises:
        RunError: the disk is full or refused a write; ``path`` is what it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with disk_faults(path, bytes_needed):
        make_folder(path.parent)
        discard_leftovers(path.parent, path.name)
        check_space(path, bytes_needed)
        try:
            temporary.mkdir()
            with _owned(temporary):
                yield temporary
                _seal(temporary)
                _put_in_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which says to ``discard_leftovers`` that its writer lives."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def discard_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove temporary folders, of ``name`` or of all, whose writers died."""
    pattern = re.compile((re.escape(name) if name else ".*") + r"\.tmp-\d+")
    for folder in [entry for entry in _entries(parent) if pattern.fullmatch(entry.name)]:
        with suppress(OSError), _owned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def remove_folder(path: Path) -> None:
    """Remove a folder so that a crash on the way leaves a leftover and never a folder with files missing."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with suppress(OSError):
        os.rename(path, temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _seal(folder: Path) -> None:
    files = [file for file in _files(folder) if file != folder / MANIFEST]
    entries = {}
    for file in files:
        fsync_path(file)
        entries[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    with open(folder / MANIFEST, "wb") as manifest:
        # without the last newline: each byte counts, so that a manifest cut short by one is found
        manifest.write(encode_json({"format": FORMAT, "files": entries}, str(folder / MANIFEST)).rstrip())
        manifest.flush()
        os.fsync(manifest.fileno())
    for inner in [entry for entry in folder.rglob("*") if entry.is_dir()]:
        fsync_path(inner)
    fsync_path(folder)


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename, or exchange with the folder that is there: ``path`` is the whole old or the whole new folder at every instant."""
    aside = None
    if not path.exists():
        os.rename(temporary, path)
    elif not _exchange(temporary, path):
        # careful: a file system without exchange has an instant at which only the .old folder is there; it is not removed by a crash.
        aside = path.with_name(f"{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        os.rename(temporary, path)
    # careful: before the old folder is emptied, because power loss may undo the renaming and not the removing.
    fsync_path(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically (renameat2). False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def verify_folder(path: Path | str) -> str | None:
    """None where every file of the manifest is there, whole and unchanged; else what is wrong, in a few words.

    Raises:
        RunError: a newer version wrote it. That is no damage: whoever took it for one would do the work again over it.
    """
    path = Path(path)
    try:
        manifest = decode_json((path / MANIFEST).read_bytes())
        _refuse_newer(path, manifest)
        entries = _manifest_files(manifest)
        for name, entry in entries.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            size = file.stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
            if _sha256(file) != entry["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError):
        return f"{MANIFEST} is damaged"
    return None


def _refuse_newer(path: Path, manifest: Any) -> None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise RunError(
            f"{path / MANIFEST}: has format {found} and this version reads {FORMAT}: a newer version of Humanward wrote it; "
            "go on with that one, or choose a new run folder"
        )


def _manifest_files(manifest: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise ValueError("not a manifest")
    for name, entry in manifest["files"].items():
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name
        if not inside or not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise ValueError("not a manifest")
    return manifest["files"]
