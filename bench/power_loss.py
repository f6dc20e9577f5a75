"""What a disk holds after power loss, from the record of the calls by which a process changed it.

    python bench/power_loss.py COMMAND...

runs a command of humanward and says on stdout, as `safe PATH [STEP]`, each checkpoint and each stage's output once it is promised to last.

`record` lists the calls of a process as strace sees them. `Disk` repeats them, or the first of them, and `lose_power` then keeps no more
than what the calls promise: the content of a file as of its last fsync, the entries of a folder as of the folder's last fsync. Of what came
later it keeps by lot nothing, all or a part: of a file any sectors, the others being old or zeros, at any size between the old and the new;
of the entries made, renamed and removed, the first ones or any of them, whatever their order was.
"""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from humanward.storage import Checkpoints, verify_folder

CALLS = (
    "mkdir", "open", "openat", "lseek", "write", "pwrite64", "sendfile", "ftruncate", "fsync", "fdatasync", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
SYNCS = ("fsync", "fdatasync")
SECTOR = 512
NOT_RECORDED = ("-shm",)
"""Ends of names that are written through shared memory, and made anew from the other files."""
Tree = dict[str, bytes | None]
"""The files below a folder by their names in it; None is a folder."""


@dataclass(frozen=True)
class Operation:
    """One call that changed the disk, with absolute paths."""

    call: str
    """mkdir, create, write, copy, truncate, fsync, rename, exchange, remove; or safe, which changes nothing."""
    path: str
    other: str = ""
    """The new name, the file to exchange with, or the source of a copy."""
    at: int | None = None
    """Where in the file; None is its end."""
    content: bytes = b""
    size: int = 0
    """Of a truncated file; how much is copied; the step of a safe checkpoint, -1 for a folder."""


def record(command: list[str], run: Path, log: Path, environment: dict[str, str] | None = None) -> list[Operation]:
    """The calls by which a command makes the folder ``run``, which is new, under a parent that holds nothing else."""
    traced = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", str(1 << 26), "-o", str(log), "-e", f"trace={','.join(CALLS)}"]
    done = subprocess.run([*traced, *command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    with log.open() as lines:
        operations = list(read_calls(lines, run.parent))
    disk = Disk(run)
    for operation in operations:
        disk.do(operation)
    there, repeated = (without_shared(tree) for tree in (read_tree(run), disk.now()))
    if there != repeated:
        differing = sorted(name for name in there.keys() | repeated.keys() if there.get(name, 0) != repeated.get(name, 0))
        raise RuntimeError(f"{log}: the calls in it do not give what the process left in {', '.join(differing)}")
    return operations


def without_shared(tree: Tree) -> Tree:
    return {name: content for name, content in tree.items() if not name.endswith(NOT_RECORDED)}


def read_calls(lines: Iterator[str], top: Path) -> Iterator[Operation]:
    """The operations below ``top`` in a log of strace."""
    written = "".join(f"\\x{byte:02x}" for byte in os.fsencode(top))
    begun: dict[str, str] = {}
    positions = Positions()
    for line in lines:
        process, _, call = line.rstrip("\n").partition(" ")
        call = call.lstrip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... "):
            call = begun.pop(process) + call.partition("resumed>")[2]
        found = re.fullmatch(r"(\w+)\((.*)\) += (\d+)(?:<.*>)?(?: \(.*\))?", call)
        if found and written in call:
            yield from operations_of(found[1], found[2].split(", "), int(found[3]), positions)


class Positions:
    """Where in its file each descriptor is."""

    def __init__(self) -> None:
        self.places = dict[int, int | None]()
        """None: always at the end."""

    def move(self, descriptor: str, count: int) -> int | None:
        """Count on; returns the place before."""
        number = int(descriptor.partition("<")[0])
        before = self.places.get(number, 0)
        self.places[number] = None if before is None else before + count
        return before

    def set(self, descriptor: str | int, place: int | None) -> None:
        number = descriptor if isinstance(descriptor, int) else int(descriptor.partition("<")[0])
        self.places[number] = place


def operations_of(call: str, words: list[str], result: int, positions: Positions) -> Iterator[Operation]:  # noqa: C901  one case per call
    match call, words:
        case ("open", [path, flags, *_]) | ("openat", [_, path, flags, *_]):
            name = joined(words[0], path) if call == "openat" else text(path)
            positions.set(result, None if "O_APPEND" in flags else 0)
            if "O_CREAT" in flags:
                yield Operation("create", name)
            if "O_TRUNC" in flags:
                yield Operation("truncate", name)
        case "lseek", [descriptor, *_]:
            if positions.places.get(int(descriptor.partition("<")[0]), 0) is not None:
                positions.set(descriptor, result)
        case "write", [descriptor, content, _]:
            said = raw(content)
            if said.startswith(b"safe "):
                _, path, step = said.decode().split(" ")
                yield Operation("safe", path, size=int(step))
            else:
                yield Operation("write", opened(descriptor), at=positions.move(descriptor, result), content=said[:result])
        case "pwrite64", [descriptor, content, _, at]:
            yield Operation("write", opened(descriptor), at=int(at), content=raw(content)[:result])
        case "sendfile", [descriptor, source, _, _]:
            yield Operation("copy", opened(descriptor), opened(source), at=positions.move(descriptor, result), size=result)
        case "ftruncate", [descriptor, size]:
            yield Operation("truncate", opened(descriptor), size=int(size))
        case (("fsync" | "fdatasync"), [descriptor]):
            yield Operation("fsync", opened(descriptor))
        case "rename", [old, new]:
            yield Operation("rename", text(old), text(new))
        case (("renameat" | "renameat2"), [old_folder, old, new_folder, new, *flags]):
            kind = "exchange" if flags == ["RENAME_EXCHANGE"] else "rename"
            yield Operation(kind, joined(old_folder, old), joined(new_folder, new))
        case "mkdir", [path, _]:
            yield Operation("mkdir", text(path))
        case (("unlink" | "rmdir"), [path]):
            yield Operation("remove", text(path))
        case "unlinkat", [folder, path, _]:
            yield Operation("remove", joined(folder, path))
        case _:
            raise ValueError(f"{call}({', '.join(words)}): unknown to the replay")


def raw(word: str) -> bytes:
    r"""The bytes of "\x61\x62"."""
    return bytes.fromhex(word.strip('"').replace("\\x", ""))


def text(word: str) -> str:
    return os.fsdecode(raw(word))


def opened(descriptor: str) -> str:
    """The path of 3<path>."""
    found = re.fullmatch(r"-?\w+<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?", descriptor)
    return "" if found is None or found[2] else os.fsdecode(raw(found[1]))


def joined(folder: str, path: str) -> str:
    return os.path.join(opened(folder), text(path))


@dataclass(eq=False)
class File:
    now: bytearray = field(default_factory=bytearray)
    kept: bytes = b""
    """As of the last fsync."""


@dataclass(eq=False)
class Folder:
    now: dict[str, File | Folder] = field(default_factory=dict)
    kept: dict[str, File | Folder] = field(default_factory=dict)


Change = list[tuple[Folder, str, "File | Folder | None"]]
"""Entries that change together; None is one that goes."""


class Disk:
    """A run folder on a disk that has more in its memory than on its platters."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.top = Folder()
        """The parent of the run folder."""
        self.changes: list[Change] = []
        """Of entries, not yet brought to the disk, in order."""

    def find(self, path: str) -> File | Folder | None:
        node: File | Folder | None = self.top
        for part in Path(path).relative_to(self.run.parent).parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def place(self, path: str) -> tuple[Folder, str]:
        folder = self.find(os.path.dirname(path))
        assert isinstance(folder, Folder), path
        return folder, os.path.basename(path)

    def change(self, *entries: tuple[Folder, str, File | Folder | None]) -> None:
        for folder, name, node in entries:
            put(folder.now, name, node)
        self.changes.append(list(entries))

    def do(self, operation: Operation) -> None:
        """Careful: a file that has no name any more is left alone."""
        path, call = operation.path, operation.call
        if call == "safe" or not Path(path).is_relative_to(self.run.parent):
            return
        node = self.find(path)
        if call in ("mkdir", "create"):
            if node is None:
                self.change((*self.place(path), Folder() if call == "mkdir" else File()))
        elif call == "remove":
            self.change((*self.place(path), None))
        elif call == "rename":
            self.change((*self.place(path), None), (*self.place(operation.other), node))
        elif call == "exchange":
            self.change((*self.place(path), self.find(operation.other)), (*self.place(operation.other), node))
        elif call == "fsync":
            self.sync(node)
        elif isinstance(node, File):
            self.fill(node, operation)

    def fill(self, file: File, operation: Operation) -> None:
        if operation.call == "truncate":
            file.now[:] = file.now[: operation.size].ljust(operation.size, b"\0")
            return
        at = len(file.now) if operation.at is None else operation.at
        content = operation.content
        if operation.call == "copy":
            source = self.find(operation.other) if Path(operation.other).is_relative_to(self.run.parent) else None
            content = (bytes(source.now) if isinstance(source, File) else Path(operation.other).read_bytes())[at : at + operation.size]
        file.now.extend(bytes(max(0, at - len(file.now))))
        file.now[at : at + len(content)] = content

    def sync(self, node: File | Folder | None) -> None:
        if isinstance(node, File):
            node.kept = bytes(node.now)
            return
        for change in [change for change in self.changes if any(folder is node for folder, _, _ in change)]:
            self.changes.remove(change)
            keep(change)

    def now(self) -> Tree:
        """What the process sees below the run folder."""
        return dict(listed(self.top.now.get(self.run.name), lambda folder: folder.now, lambda file: bytes(file.now)))

    def lose_power(self, lots: random.Random) -> Tree:
        """What is below the run folder when the power is back."""
        if lots.random() < 0.5:
            survivors = self.changes[: lots.randint(0, len(self.changes))]
        else:
            survivors = [change for change in self.changes if lots.random() < 0.5]
        for change in survivors:
            keep(change)
        return dict(listed(self.top.kept.get(self.run.name), lambda folder: folder.kept, lambda file: torn(file, lots)))


def put(entries: dict[str, File | Folder], name: str, node: File | Folder | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def keep(change: Change) -> None:
    for folder, name, node in change:
        put(folder.kept, name, node)


def torn(file: File, lots: random.Random) -> bytes:
    """The bytes of the last fsync, those of now, or a part of each."""
    least, most = sorted((len(file.kept), len(file.now)))
    size = lots.choice((len(file.kept), len(file.now), lots.randint(least, most)))
    old, new = file.kept[:size].ljust(size, b"\0"), bytes(file.now[:size]).ljust(size, b"\0")
    share = lots.choice((0.0, 0.5, 1.0))
    return b"".join((new if lots.random() < share else old)[at : at + SECTOR] for at in range(0, size, SECTOR))


def listed(
    node: File | Folder | None, entries: Callable[[Folder], dict[str, File | Folder]], content: Callable[[File], bytes], name: str = ""
) -> Iterator[tuple[str, bytes | None]]:
    if isinstance(node, File):
        yield name, content(node)
    elif isinstance(node, Folder):
        yield name, None
        for entry, inner in entries(node).items():
            yield from listed(inner, entries, content, f"{name}/{entry}" if name else entry)


def read_tree(folder: Path) -> Tree:
    paths = [folder, *folder.rglob("*")] if folder.exists() else []
    return {"" if path == folder else path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in paths}


def write_tree(tree: Tree, folder: Path) -> None:
    for name, content in tree.items():  # a folder comes before what is in it
        if content is None:
            (folder / name).mkdir(parents=True)
        else:
            (folder / name).write_bytes(content)


@dataclass(frozen=True)
class Loss:
    """One power loss: a folder as it is afterwards."""

    folder: Path
    safe: Operation | None
    """What was last said to be safe."""
    place: str
    """What was being changed in the run folder."""

    def kept(self) -> bool:
        """Whether what was safe is there."""
        if self.safe is None:
            return True
        path = self.folder / self.safe.path
        if self.safe.size < 0:
            return verify_folder(path) is None
        with redirect_stderr(io.StringIO()):
            checkpoint = Checkpoints(path).latest()
        return checkpoint is not None and checkpoint.step >= self.safe.size


def lose_power(operations: list[Operation], run: Path, folder: Path, lots: random.Random, *, syncs: bool = True) -> Loss:
    """Write into ``folder``, which is new, what a power loss at a random call leaves of ``run``.

    Args:
        syncs: False: as if no fsync had been called.
    """
    end = lots.randrange(len(operations))
    disk = Disk(run)
    for operation in operations[:end]:
        if syncs or operation.call != "fsync":
            disk.do(operation)
    write_tree(disk.lose_power(lots), folder)
    safe = [operation for operation in operations[:end] if operation.call == "safe"]
    last = replace(safe[-1], path=os.path.relpath(safe[-1].path, run)) if safe else None
    return Loss(folder, last, place_of(os.path.relpath(operations[end].path, run)))


def place_of(path: str) -> str:
    """A path in a run folder without numbers, and no deeper than a stage's output."""
    found = re.match(r"checkpoints/[^/]+|rounds/\d+/[^/]+|[^/]+", path)
    name = re.sub(r"\.tmp-\d+|-?\d+", "", found[0] if found else path)
    return "the run folder" if name in (".", "..") else name


def say_safe(path: Path | str, step: int = -1) -> None:
    os.write(1, f"safe {path} {step}\n".encode())


def main() -> None:
    from humanward import storage
    from humanward.cli import main as humanward

    save, atomic_folder = Checkpoints.save, storage.atomic_folder

    def saying_save(self: Checkpoints, step: int, tensors: Mapping[str, Any], state: Any) -> Path:
        path = save(self, step, tensors, state)
        say_safe(self.folder, step)
        return path

    @contextmanager
    def saying_folder(path: Path | str, *, bytes_needed: int = 0) -> Iterator[Path]:
        with atomic_folder(path, bytes_needed=bytes_needed) as temporary:
            yield temporary
        say_safe(path)

    Checkpoints.save = saying_save
    storage.atomic_folder = saying_folder
    sys.exit(humanward(sys.argv[1:]))


if __name__ == "__main__":
    main()
