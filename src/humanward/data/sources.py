"""Texts from files, folders and Hugging Face data sets: one row at a time, every fault one line with file:line.

A source is written as ``LOCATION`` or ``LOCATION?setting=value&…``. LOCATION is a .txt, .jsonl, .jsonl.gz or .parquet file, a folder of
such files, a folder made by ``datasets.save_to_disk``, ``owner/name`` on the Hugging Face Hub, or ``asset:NAME``, which ships with the
package. Settings: ``text``, ``prompt`` and ``response`` name the columns, ``rows=FIRST:END`` takes some of the rows, ``split`` and
``config`` choose a part of a Hugging Face data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from humanward.data.locations import HUB_SETTINGS, Location, Rows, parquet_rows
from humanward.errors import UserError
from humanward.records import content_id, read_jsonl
from humanward.records.files import Limits

SETTINGS = ("text", "prompt", "response", "rows", *HUB_SETTINGS)
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
RESPONSE_COLUMNS = ("response", "completion")


@dataclass(frozen=True)
class Text:
    """One row of a source, not yet tokens."""

    text: str
    """A text to be cut by the task's rule, or, where ``whole``, a prompt to be used as it stands. Empty where ``messages`` are given."""
    id: str
    where: str = ""
    """``file:line``, for messages about this row."""
    whole: bool = False
    messages: tuple[Mapping[str, Any], ...] = ()
    """A conversation, for the tokenizer's chat template."""
    response: str | None = None
    """What to answer, where the row is a demonstration."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_texts(spec: str | Path) -> list[Text]:
    """All texts of a source. See ``iter_texts``."""
    return list(iter_texts(spec))


def iter_texts(spec: str | Path) -> Iterator[Text]:
    """The texts of a source in its own order, one row in memory at a time.

    A ``prompt`` column is used whole and a ``text`` column is cut by the task's rule; where a row has both, ``prompt`` counts.
    ``messages``, or a ``prompt`` that is a list of messages, is a conversation. Each line of a .txt file is a text. Rows whose text is
    empty are passed over, an empty prompt is a fault. Other columns become metadata. Rows without ``id`` are named by their content.

    Raises:
        UserError: nothing there, nothing in it, or a row that cannot be read; the line number is in the message.
    """
    source = Location.parse(spec, SETTINGS)
    known: dict[str, str] = {}
    rows = 0
    for where, row in islice(source.rows(lambda path: _file_rows(path, source.settings.get("text", "text")), SUFFIXES), *source.part):
        rows += 1
        text = _text(row, where, source.settings)
        if text is None:
            continue
        if "id" in row:
            if text.id in known:
                raise UserError(f"{where}: the id {text.id!r} is already used in {known[text.id]}; ids must be unique")
            known[text.id] = where
        else:
            text = _named(text, known)
        yield text
    if not rows:
        raise UserError(f"{source.place}: no data in it; expected at least one row with `prompt` or `text`")
    if not known:
        raise UserError(f"{source.place}: all {rows} texts are empty")


def _file_rows(path: Path, text_column: str) -> Rows:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path))
    elif path.name.endswith(".txt"):
        yield from _lines(path, text_column)
    elif path.name.endswith(".parquet"):
        yield from parquet_rows(path, Limits())
    else:
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)} (JSON: one object per line, named .jsonl)")


def _lines(path: Path, column: str) -> Rows:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                if b"\x00" in line:
                    raise UserError(f"{where}: the line has a NUL byte; the file is damaged or is not text")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(f"{where}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
                if text.strip():
                    yield where, {column: text}
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None


def _text(row: Mapping[str, Any], where: str, settings: Mapping[str, str]) -> Text | None:
    """The row as a Text; None where it is an empty text."""
    column, whole = _column(row, where, settings)
    value = row[column]
    messages: tuple[Mapping[str, Any], ...] = ()
    if column == "messages" or (whole and isinstance(value, list)):
        messages, value = _messages(value, column, where), ""
    else:
        _check_string(value, column, where)
        if not value.strip():
            if whole:
                raise UserError(f"{where}: `{column}` is empty; write a prompt or delete the row")
            return None
    answer = next((name for name in (settings.get("response"), *RESPONSE_COLUMNS) if name and row.get(name) is not None), None)
    if answer is not None:
        _check_string(row[answer], answer, where)
    metadata = {name: entry for name, entry in row.items() if name not in (column, answer, "id")}
    name = row.get("id", "")
    if isinstance(name, bool) or not isinstance(name, str | int) or ("id" in row and not str(name).strip()):
        raise UserError(f"{where}: `id` must be a string or a whole number, not {name!r}")
    return Text(value, str(name), where, whole, messages, None if answer is None else row[answer], metadata)


def _column(row: Mapping[str, Any], where: str, settings: Mapping[str, str]) -> tuple[str, bool]:
    """(name of the column that holds the text, whether it is used whole)."""
    chosen = [(settings[kind], kind == "prompt") for kind in ("prompt", "text") if kind in settings]
    for column, whole in chosen or [("prompt", True), ("messages", True), ("text", False)]:
        if row.get(column) is not None:
            return column, whole
    wanted = " nor ".join(f"`{column}`" for column, _ in chosen) or "`prompt` nor `text`"
    found = ", ".join(f"`{name}`" for name in list(row)[:8]) or "nothing"
    raise UserError(f"{where}: no {wanted} in this row, only {found}; rename a column or name it: SOURCE?text=COLUMN")


def _messages(value: Any, column: str, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `{column}` must be a list of messages with at least one, each with `role` and `content`")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"{where}: every message in `{column}` must be an object with `role` and `content`")
        _check_string(message.get("content"), "content", where)
    return tuple(value)


def _check_string(value: Any, column: str, where: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{where}: `{column}` must be a string, not {type(value).__name__}")
    if "\x00" in value:
        raise UserError(f"{where}: `{column}` has a NUL character; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: `{column}` has half of a surrogate pair, which is not text; remove it") from None


def _named(text: Text, known: dict[str, str]) -> Text:
    """The text with an id made of its content; a text that comes again gets -2, -3, …"""
    base = content_id(text.text, list(text.messages), text.response)
    name, copy = base, 1
    while name in known:
        copy += 1
        name = f"{base}-{copy}"
    known[name] = text.where
    return Text(text.text, name, text.where, text.whole, text.messages, text.response, text.metadata)
