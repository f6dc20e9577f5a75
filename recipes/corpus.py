"""Texts for the embedded model: read a folder of books, make flowing paragraphs of them, hold some out.

    python recipes/corpus.py ../shared/data/books        # says what is there and which books are held out

The folder has sub-folders (`children`, `novels`) of `.txt` or `.txt.gz` files, one book each.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = 5
"""So many children's books are never trained on; chosen by the SHA-256 of the file name, so nobody picks the easy ones."""

_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": "--", "\u2013": "-", "\ufeff": "", "\r": ""})


@dataclass(frozen=True)
class Book:
    name: str
    text: str
    children: bool
    held_out: bool


def flowing(text: str) -> str:
    """Undo the line breaks of a printed page: one line per paragraph, paragraphs apart by one newline; plain quotes."""
    text = text.translate(_QUOTES).replace("[Illustration]", "").replace("_", "")
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return "\n".join(p for p in paragraphs if p)


def read_book(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return flowing(data.decode("utf-8", errors="replace"))


def books(folder: Path) -> list[Book]:
    """Every book of the folder, in a fixed order, the held-out ones marked."""
    paths = sorted(p for p in folder.rglob("*") if p.name.endswith((".txt", ".txt.gz")))
    if not paths:
        raise SystemExit(f"error: no .txt or .txt.gz files below {folder}")
    children = [p for p in paths if p.parent.name == "children"]
    held_out = set(sorted(children, key=lambda p: hashlib.sha256(p.name.encode()).hexdigest())[:HELD_OUT])
    return [Book(p.name, read_book(p), p in children, p in held_out) for p in paths]


if __name__ == "__main__":
    for book in books(Path(sys.argv[1])):
        kind = "children" if book.children else "novel"
        print(f"{'held out' if book.held_out else '':9}{kind:9}{len(book.text.encode()):>9} bytes  {book.name}")
