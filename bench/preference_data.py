"""How long 100,000 pairs take from a file to batches of tokens, and how much memory: one JSON line.

    python bench/preference_data.py --pairs 100000

Dialogues of HH-RLHF (``preferences/hh-harmless-base-test.jsonl.gz``) are repeated, each time with another number in the first question,
until there are enough. They are read, divided into prompt and responses, tokenised with the embedded model's tokenizer and put into
batches of at most ``--batch-tokens`` tokens of like length, in a process of its own; ``peak_mb`` is the most memory that it had, torch and
transformers included. Target: 60 s, 1 GB.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HUMANWARD_SHARED") or ROOT.parent / "shared") / "data/preferences/hh-harmless-base-test.jsonl.gz"
sys.path.insert(0, str(ROOT / "src"))


def make(source: Path, out: Path, pairs: int) -> None:
    """So many rows, all different."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if all(not text.endswith("\n\nAssistant: ") for text in row.values())]
    with out.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            row = {name: text.replace("\n\nHuman:", f"\n\nHuman: ({number})", 1) for name, text in rows[number % len(rows)].items()}
            file.write(json.dumps(row) + "\n")


def measure(path: Path, batch_tokens: int) -> dict[str, float | int]:
    """Read, tokenise, bucket."""
    began = time.perf_counter()
    from humanward.data import PreferenceData, Task, token_batches
    from humanward.models import load_tokenizer
    from humanward.trainers.questions import DIRECT_KINDS, tokens_of

    task = Task.plain(load_tokenizer("asset:storyteller"), stop_at_eos=True)
    loaded = time.perf_counter()
    comparisons = list(PreferenceData(path, task, kinds=DIRECT_KINDS))
    read = time.perf_counter()
    lengths = [tokens_of(comparison) for comparison in comparisons]
    batches = token_batches(lengths, batch_tokens)
    done = time.perf_counter()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "pairs": len(comparisons), "tokens": sum(lengths), "batches": len(batches), "load_seconds": round(loaded - began, 2),
        "read_seconds": round(read - loaded, 2), "bucket_seconds": round(done - read, 2), "seconds": round(done - began, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }  # fmt: skip


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--source", type=Path, default=DATA)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure is not None:
        print(json.dumps(measure(asked.measure, asked.batch_tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        make(asked.source, path, asked.pairs)
        command = [sys.executable, __file__, "--measure", str(path), "--batch-tokens", str(asked.batch_tokens)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        about = {"cores": os.cpu_count(), "python": platform.python_version(), "file_mb": round(path.stat().st_size / 1e6, 1)}
    print(json.dumps({**json.loads(done.stdout), **about}))


if __name__ == "__main__":
    main()
