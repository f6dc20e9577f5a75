"""Speed and memory beside peers, one row of docs/benchmarks.md each.

    python bench/speed ROW [--shapes S M] [--dtypes float32] [--steps 7]    one JSON line per shape and number type
    python bench/speed ROW --write docs/benchmarks.md                       and in the page: this row of this machine anew
    python bench/speed all --write docs/benchmarks.md                       every row, in processes of their own
    python bench/speed ROW --memory-again --write docs/benchmarks.md        the memory alone, of rows that are there
    python bench/speed page --write docs/benchmarks.md                      the page from docs/benchmarks.jsonl

Both sides run in turn in one process, from the same weights on the same batch, the peer at the fastest of some micro-batches; before
anything is measured both must give the same loss. Memory is that of each side alone in a process, above what stands before its model is
built. Rows:

    ROWS
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import generation
import groups
import harness
import page
import pairs
import ppo
import torch
import transformers

from humanward.models import prepare_cpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Make = Callable[[str, torch.dtype, str], harness.Row]
# Smaller batches at M, so that a row takes minutes: everything else is the same, and both sides have the same batch.
ROWS: dict[str, dict[str, Make]] = {
    "dpo": {"S": pairs.dpo, "M": partial(pairs.dpo, count=2)},
    "dpo_short": {"S": partial(pairs.dpo, count=16, prompt=64), "M": partial(pairs.dpo, count=4, prompt=64)},
    "dpo_k4": {"S": partial(pairs.dpo, count=2, K=4), "M": partial(pairs.dpo, count=1, K=4)},
    "dpo_ragged": {"S": partial(pairs.dpo, count=32, real=True), "M": partial(pairs.dpo, count=8, real=True)},
    "reward": {"S": pairs.reward, "M": partial(pairs.reward, count=2)},
    "reward_k4": {"S": partial(pairs.reward, count=2, K=4), "M": partial(pairs.reward, count=1, K=4)},
    "reward_ragged": {"S": partial(pairs.reward, count=32, real=True), "M": partial(pairs.reward, count=8, real=True)},
    "generate": {"S": generation.generate, "M": generation.generate},
    "best_of_4": {
        "S": partial(generation.generate, count=1, prompt=512, K=4), "M": partial(generation.generate, count=1, prompt=512, K=4),
    },
    "ppo": {"S": ppo.ppo, "M": partial(ppo.ppo, count=16)},
    "ppo_ragged": {
        "S": partial(ppo.ppo, count=8, prompt=512, response=75, ragged=True),
        "M": partial(ppo.ppo, count=4, prompt=512, response=75, ragged=True),
    },
    "rloo": {
        "S": partial(groups.groups, method="rloo"), "M": partial(groups.groups, method="rloo", count=4),
    },
    "grpo": {
        "S": partial(groups.groups, method="grpo", count=8, K=8), "M": partial(groups.groups, method="grpo", count=2, K=8),
    },
    "online_dpo": {
        "S": partial(groups.groups, method="online_dpo", K=2), "M": partial(groups.groups, method="online_dpo", count=8, K=2),
    },
    "ppo_one_trunk": {"S": partial(ppo.ppo, one_trunk=True), "M": partial(ppo.ppo, count=16, one_trunk=True)},
}  # fmt: skip
BOTH = ("ppo", "ppo_ragged")
"""Rows that the page has in both number types whatever the machine."""


def measure(name: str, shape: str, dtype: str, device: str, steps: int) -> dict[str, Any]:
    """A row: the times in one process, then our profile and the memory of either side in others, so that little is held at once."""
    command = [name, "--shapes", shape, "--dtypes", dtype, "--device", device]
    found = json.loads(child(*command, "--steps", str(steps), "--part", "times"))
    head = page.machine(device) | {"row": name, "shape": shape, "dtype": dtype, "device": device, "threads": torch.get_num_threads()}
    return head | found | {"profile": json.loads(child(*command, "--part", "profile"))} | memory(command, found["peer_micro_batch"])


def memory(command: list[str], peer_micro_batch: int) -> dict[str, Any]:
    needs = {side: int(child(*command, "--part", side, "--micro-batch", str(peer_micro_batch))) for side in ("ours", "theirs")}
    return {
        "memory_mb": {side: round(size / 1e6) for side, size in needs.items()}, "memory_ratio": round(needs["ours"] / needs["theirs"], 3),
    }  # fmt: skip


def memory_again(path: Path, name: str, shapes: list[str], dtypes: list[str], device: str) -> None:
    """Of the rows that this machine has measured."""
    here = page.machine(device)["machine"]
    for row in page.read(path.with_suffix(".jsonl")):
        kind = (row["machine"], row["row"], row["device"])
        if kind == (here, name, device) and row["shape"] in shapes and row["dtype"] in dtypes:
            command = [name, "--shapes", row["shape"], "--dtypes", row["dtype"], "--device", device]
            found = row | memory(command, row["peer_micro_batch"])
            print(json.dumps(found), flush=True)
            page.add(found, path)


def part(args: argparse.Namespace) -> str:
    """What ``measure`` asks of processes of their own."""
    if args.part != "theirs":
        prepare_cpu()  # the memory for both sides where they run in turn; the peer alone has what its user would have
    row, dtype = make(args.row, args.shapes[0], args.dtypes[0], args.device), DTYPES[args.dtypes[0]]
    if args.part == "times":
        return json.dumps(harness.compare(row, steps=args.steps, dtype=dtype, device=args.device))
    if args.part == "profile":
        return json.dumps(harness.profile(row, args.device))
    return str(harness.memory(row, args.part, args.micro_batch, args.device))


def make(name: str, shape: str, dtype: str, device: str) -> harness.Row:
    sizes = ROWS[name]
    return sizes.get(shape, sizes["M"])(shape, DTYPES[dtype], device)


def child(*arguments: str) -> str:
    """The last line that a part of a row prints."""
    command = [sys.executable, __file__.removesuffix("/__main__.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def every_row(args: argparse.Namespace) -> None:
    """All rows, each in a process of its own: two releases of TRL cannot share one."""
    for name in ROWS:
        dtypes = ["float32", "bfloat16"] if name in BOTH and args.device == "cpu" else ["bfloat16" if args.device == "cuda" else "float32"]
        command = [sys.executable, __file__.removesuffix("/__main__.py"), name, "--steps", str(args.steps), "--device", args.device]
        command += ["--shapes", *args.shapes, "--dtypes", *dtypes, *(["--write", str(args.write)] if args.write else [])]
        subprocess.run(command, check=True)


def main() -> None:
    listing = "\n    ".join(ROWS)
    parser = argparse.ArgumentParser(
        prog="bench/speed", description=(__doc__ or "").replace("ROWS", listing), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=[*ROWS, "all", "page"])
    parser.add_argument("--shapes", nargs="+", default=["S", "M"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=7, help="measured ones of each side")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--write", type=Path, help="the page; what was measured lies beside it as .jsonl")
    parser.add_argument("--memory-again", action="store_true", help="leave the times of the rows of --write as they are")
    parser.add_argument("--part", choices=["times", "profile", "ours", "theirs"], help="print it: the last two are bytes of one side alone")
    parser.add_argument("--micro-batch", type=int, default=1, help="of the peer where its bytes are asked for")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if args.row == "page" and args.write is None:
        parser.error("page: say which with --write docs/benchmarks.md")
    if args.memory_again and args.write is None:
        parser.error("--memory-again: say of which page with --write docs/benchmarks.md")
    if args.memory_again:
        memory_again(args.write, args.row, args.shapes, args.dtypes, args.device)
        return
    if args.row == "all":
        every_row(args)
        return
    if args.row == "page":
        page.write(args.write)
        return
    if args.part is not None:
        print(part(args))
        return
    for shape in args.shapes:
        for dtype in args.dtypes:
            found = measure(args.row, shape, dtype, args.device, args.steps)
            print(json.dumps(found), flush=True)
            if args.write is not None:
                page.add(found, args.write)


if __name__ == "__main__":
    main()
