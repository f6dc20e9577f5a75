"""Where rows come from: files, folders of files, folders of ``datasets``, data sets of the Hugging Face Hub; one row in memory at a time.

A location is written as ``PLACE`` or ``PLACE?setting=value&…``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from humanward.errors import UserError
from humanward.records.files import Limits

Rows = Iterator[tuple[str, dict[str, Any]]]
"""(``file:line`` or ``place: row n``, columns) of each row."""
HUB_SETTINGS = ("split", "config")
_PART = re.compile(r"(\d*):(\d*)")
_OWNER_NAME = re.compile(r"([A-Za-z0-9][\w.-]*)/[\w.-]+")


@dataclass(frozen=True)
class Location:
    """A place and what is said of how to read it."""

    place: str
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: str | Path, known: Sequence[str]) -> Location:
        """``PLACE?setting=value&…``. A file whose own name has a question mark is itself.

        Raises:
            UserError: a setting that is not one of ``known``, or without a value.
        """
        place, mark, query = str(spec).partition("?")
        if not mark or Path(spec).exists():
            return cls(str(spec))
        settings = dict(parse_qsl(query, keep_blank_values=True))
        for name, value in settings.items():
            if name not in known or not value:
                raise UserError(f"{spec}: {name}={value!r} is not a setting of a source; there are {', '.join(known)}")
        return cls(place, settings)

    @property
    def path(self) -> Path:
        """The place as a path; ``asset:NAME`` is the file of that name that ships with the package."""
        if self.place.startswith("asset:"):
            return Path(str(files("humanward") / "assets" / f"{self.place.removeprefix('asset:')}.jsonl.gz"))
        return Path(self.place).expanduser()

    @property
    def part(self) -> tuple[int, int | None]:
        """(first, end) of the rows that are wanted, from ``rows=FIRST:END``, counted from 0; the end itself is left out.

        Raises:
            UserError: it is not written so.
        """
        found = _PART.fullmatch(self.settings.get("rows", ":"))
        if found is None:
            raise UserError(f"{self.place}: rows={self.settings['rows']!r}: expected FIRST:END, for example rows=0:1000")
        return int(found[1] or 0), int(found[2]) if found[2] else None

    def rows(self, read_file: Callable[[Path], Rows], suffixes: Sequence[str]) -> Rows:
        """The rows of all files there, in the order of their names, or of the data set there.

        Raises:
            UserError: nothing is there, or it cannot be read.
        """
        path = self.path
        if path.is_dir():
            return self._folder_rows(path, read_file, suffixes)
        if path.exists() or path.is_symlink():
            return read_file(path)
        return self._hub_rows(suffixes)

    def _folder_rows(self, path: Path, read_file: Callable[[Path], Rows], suffixes: Sequence[str]) -> Rows:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            yield from self._saved_rows(path)
            return
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(tuple(suffixes)))
        if not files:
            raise UserError(
                f"{path}: a folder without data; expected {', '.join(suffixes)} files or a folder made by datasets.save_to_disk"
            )
        for file in files:
            yield from read_file(file)

    def _saved_rows(self, path: Path) -> Rows:
        from datasets import DatasetDict, load_from_disk  # imported here: it takes a second, and most sources do without

        try:
            found = load_from_disk(str(path))
        except Exception as error:  # it raises its own kinds and those of pyarrow, json and the file system
            raise UserError(f"{path}: cannot read this folder of `datasets`: {first_line(error)}") from None
        if isinstance(found, DatasetDict):
            found = found[self._split([str(name) for name in found])]
        yield from _numbered(str(path), found)

    def _hub_rows(self, suffixes: Sequence[str]) -> Rows:
        name, settings = self.place, self.settings
        owner = _OWNER_NAME.fullmatch(name)
        if owner is None or name.endswith(tuple(suffixes)) or Path(owner[1]).exists():
            raise UserError(f"{name}: no such file or folder (a data set of the Hugging Face Hub is written owner/name)")
        from datasets import get_dataset_split_names, load_dataset

        try:
            splits = [] if "split" in settings else get_dataset_split_names(name, settings.get("config"))
            split = self._split(splits)
            found = load_dataset(name, settings.get("config"), split=split, streaming=True)
        except UserError:
            raise
        except Exception as error:  # unknown name, no network, a loading script, …: the user needs the one line
            raise UserError(
                f"{name}: no such file or folder here, and not readable from the Hugging Face Hub: {first_line(error)}"
            ) from None
        yield from _numbered(f"{name} ({split})", found)

    def _split(self, splits: list[str]) -> str:
        """The asked-for split, else ``train``, else the only one."""
        name, asked = self.place, self.settings.get("split")
        if asked is not None and (not splits or asked in splits):
            return asked
        if asked is None and ("train" in splits or len(splits) == 1):
            return "train" if "train" in splits else splits[0]
        which = "choose a" if asked is None else "no such"
        raise UserError(f"{name}: {which} split; write {name}?split=NAME with one of {', '.join(splits)}")


def parquet_rows(path: Path, limits: Limits) -> Rows:
    """The rows of a Parquet file, a batch in memory at a time."""
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
        where = f"{path}: row {number + 1}" if number else f"{path}"
        raise UserError(f"{where}: not a readable Parquet file: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _numbered(name: str, rows: Any) -> Rows:
    for number, row in enumerate(rows, start=1):
        yield f"{name}: row {number}", row
