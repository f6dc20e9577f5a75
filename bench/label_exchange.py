"""How long labels take out of a store and into one, and how much memory: one JSON line per measurement.

    python bench/label_exchange.py --labels 100000

A store of best-of-4 labels with token ids is written in our own format, imported, exported in every format, and each of those files is
imported into a new store. Every measurement is a command in a process of its own; ``rss_mb`` is the most memory that it had.
Targets (100,000 labels): export in 10 s within 200 MB, import in 20 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SOURCE))

from humanward.feedback.exchange import FORMAT  # noqa: E402
from humanward.feedback.log import canonical, sha256  # noqa: E402
from humanward.records import Prompt, Question, Response, write_jsonl  # noqa: E402

EXPORTS = {
    "labels": "labels.jsonl", "csv": "table.csv", "parquet": "table.parquet", "pairs": "pairs.jsonl", "unpaired": "unpaired.jsonl",
    "ziegler2019": "2019.json", "stiennon2020": "summaries.jsonl",
}  # fmt: skip
WORDS = "the of and to in a is that it was for on are as with they be at one have this from or had by but some what there we can".split(" ")  # noqa: SIM905


def rows(labels: int, seed: int) -> Iterator[dict[str, Any]]:
    """A store in our own format: two thirds of the questions are best-of-4, one third pairs, each with one label."""
    lot = random.Random(seed)
    yield {"format": FORMAT}
    asked: list[tuple[str, str, int, str]] = []
    for number in range(labels):
        texts = [" ".join(lot.choices(WORDS, k=count)) for count in (60, *[24] * (2 if number % 3 == 0 else 4))]
        parts = [(text, tuple(lot.randrange(50257) for _ in text.split())) for text in texts]
        responses = tuple(
            Response(text, tokens, "policy", "a1b2c3d4a1b2c3d4", "0123456789abcdef", {"temperature": 0.7}) for text, tokens in parts[1:]
        )
        kind = "pair" if len(responses) == 2 else "best_of_k"
        question = Question(f"q{number}", Prompt(f"p{number}", *parts[0]), responses, kind, 1 + number // 5000)
        asked.append((question.id, kind, len(responses), sha256(canonical(question.to_json()))))
        yield {"question": question.to_json()}
    for number, (question_id, kind, count, digest) in enumerate(asked):
        body = {
            "kind": kind, "answer": lot.randrange(count), "permutation": lot.sample(range(count), count),
            "seconds": round(lot.uniform(2, 60), 3),
            "confidence": None, "comment": "", "instructions": "", "question": digest,
        }  # fmt: skip
        about = {"kind": "label", "question_id": question_id, "labeler": f"labeler-{number % 20}", "client_event_id": f"event-{number}"}
        yield {"event": {**about, "time": "2026-11-21T14:30:00.000+00:00", "undoes": None, "body": body}}
    yield {"end": {"questions": labels, "events": labels}}


def command(*arguments: str | Path) -> dict[str, Any]:
    """Run ``humanward`` and measure it: seconds of wall and of CPU, most memory."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "humanward", *map(str, arguments)], env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"humanward {arguments[0]} exited with {process.returncode}")
    return {
        "seconds": round(time.monotonic() - began, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "rss_mb": round(usage.ru_maxrss / 1024, 1),
    }  # fmt: skip


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--formats", nargs="*", default=list(EXPORTS), choices=list(EXPORTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder otherwise")
    asked = parser.parse_args()
    about = {"labels": asked.labels, "cores": os.cpu_count(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        source = folder / "source.jsonl"
        write_jsonl(source, rows(asked.labels, asked.seed))
        print(
            json.dumps({"what": "import", "format": "labels", **about, "file_mb": mb(source), **command("import", folder / "run", source)}),
            flush=True,
        )
        again = command("import", folder / "run", source)
        print(json.dumps({"what": "import again", "format": "labels", **about, "file_mb": mb(source), **again}), flush=True)
        for format in asked.formats:  # noqa: A001
            out = folder / EXPORTS[format]
            done = command("export", folder / "run", "--format", format, "--out", out)
            print(json.dumps({"what": "export", "format": format, **about, "file_mb": mb(out), **done}), flush=True)
            if format not in ("labels", "ziegler2019"):  # token ids need the tokenizer of a run
                done = command("import", folder / f"run-{format}", out)
                print(json.dumps({"what": "import", "format": format, **about, "file_mb": mb(out), **done}), flush=True)


def mb(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 1)


if __name__ == "__main__":
    main()
