"""A process that labels, made to be recorded: `label_writer.py STORE` says on stdout how many labels it has been promised."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from humanward.feedback import Store
from humanward.records import Prompt, Question, Response
from humanward.storage import RunFolder

LABELS = 40


def label(path: Path) -> None:
    """Goes on behind the labels that are there."""
    RunFolder(path.parent).create()
    store = Store(path)
    responses = [Response(f"a {word} day", (number,)) for number, word in enumerate(("good", "bad"))]
    store.add_questions(Question(f"q{number}", Prompt(f"p{number}", f"Day {number}"), tuple(responses)) for number in range(LABELS))
    for number in range(len(store.labels()), LABELS):
        store.record("ada", f"q{number}", number % 2, f"event-{number}")
        os.write(1, f"safe {path} {number + 1}\n".encode())
    store.close()


if __name__ == "__main__":
    label(Path(sys.argv[1]))
