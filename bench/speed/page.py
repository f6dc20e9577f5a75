"""docs/benchmarks.md from the JSON lines of the rows, which lie beside it."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from workloads import SHAPES

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages import sections

TITLES = {
    "dpo": "DPO, 512 + 64 tokens",
    "dpo_short": "DPO, 64 + 64 tokens",
    "dpo_k4": "DPO on orders of 4, 512 + 64 tokens",
    "dpo_ragged": "DPO on real dialogues (hh-rlhf, harmless-base test)",
    "reward": "reward model on pairs, 512 + 64 tokens",
    "reward_k4": "reward model on orders of 4, 512 + 64 tokens",
    "reward_ragged": "reward model on real dialogues (hh-rlhf, harmless-base test)",
    "generate": "sample 64 responses, 64 + 24 tokens",
    "best_of_4": "sample 4 responses to one prompt of 512",
    "ppo": "PPO step, 64 + 24 tokens",
    "ppo_ragged": "PPO step, ragged, up to 512 + 75 tokens",
    "ppo_one_trunk": "PPO step, policy and value on one trunk (the peer: two)",
    "rloo": "RLOO step, 4 responses to a prompt, 64 + 24 tokens",
    "grpo": "GRPO step, 8 responses to a prompt, 64 + 24 tokens",
    "online_dpo": "online DPO step, 2 responses to a prompt, 64 + 24 tokens",
}
TO_REACH = {
    "dpo": (2.0, 3.0), "dpo_short": (1.3, 1.6), "dpo_k4": (2.3, 3.0), "dpo_ragged": (2.0, 3.0), "reward": (1.6, 2.0),
    "reward_ragged": (1.6, 2.0),
    "reward_k4": (2.3, 3.0), "generate": (1.4, 1.8), "best_of_4": (1.9, 2.5), "ppo_one_trunk": (2.0, 3.0),
    ("ppo", "float32"): (1.0, 1.15), ("ppo", "bfloat16"): (1.3, 1.7),
    ("ppo_ragged", "float32"): (1.6, 2.0), ("ppo_ragged", "bfloat16"): (1.8, 2.5),
}  # fmt: skip
"""Floor and goal of ``times_as_fast``, set before anything was built; none was set for the group methods."""
MEMORY_TO_REACH = 0.7
SHARE_TO_REACH = {"float32": 0.65, "bfloat16": 0.4}
"""Floors for all rows, of the share for those that optimise."""
SAMPLING = ("generate", "best_of_4")

COLUMNS = (
    "what", "model", "type", "ours, s", "peer, s", "times as fast", "floor / goal", "memory, MB: ours / peer", "ratio", "tokens/s",
    "share of peak", "in updates",
)  # fmt: skip
HEAD = """# Speed and memory beside peers

`make bench` writes this page: each row is `python bench/speed ROW --write docs/benchmarks.md`, which runs our step and the peer's in turn
in one process, from the same weights on the same batch. Rows of DPO and of reward models are refused where the first losses differ by more
than 1e-3 of their size (1e-1 in bfloat16), rows of `generate` where the number of sampled tokens does; the steps of PPO, RLOO, GRPO and
online DPO draw responses of their own on each side, so that no number of them is compared. What it measured lies in
[benchmarks.jsonl](benchmarks.jsonl). The peer has the fastest of several micro-batches, and no dropout, checkpointing or logging. Models
have random weights: S is a GPT-2 of 10 layers x 256 with 8192 tokens (10 million weights), M is GPT-2 small (124 million). bfloat16 is
what each side means by it: ours has 16-bit weights with float32 copies, the peer autocast.

Times are medians, the least in brackets. "Times as fast" is the peer's median divided by ours, with the floor and the goal that were set
before. Memory is what a side needs alone in a process, above what that holds when everything is imported: weights, optimiser and the
highest moment of three steps; the floor is 0.7 of the peer's. It can be younger than the times beside it (`--memory-again`), and hangs on
which micro-batch was the peer's fastest, of which the small ones differ by less than the noise. The share of the peak counts the least
arithmetic that the step needs, each prompt once, against the best rate of a large matrix product, measured after every pair of steps, of
which the median is taken as of the times; what a step does besides products is in the time and not in the count. "In updates" is the share
while a step that also samples and scores optimises: forward, backward and optimiser. The floor of optimisation is 65 % in float32 and 40 %
in bfloat16. It holds for the updates where they are a part of a step, and for the whole step where it is nothing else or where the row is
older than that column. Rows of ragged PPO without it are in doubt: their policies learned to end early, so that less was computed than was
counted, on each side by its own samples.

On CPUs with AVX-512 that are not Intel's, ours multiplies float32 by OpenBLAS, since PyTorch's library does without it there
(`humanward.models.products`). The peer has PyTorch's, as its user has, and the share is of PyTorch's rate, as the floors are. In brackets
behind both: how many times as fast ours is as the peer by OpenBLAS too, put there by us (our median beside the least of three of its
steps, so that a doubt is the peer's), and the share of OpenBLAS's rate. float32 rows of such a CPU without brackets are older than that.
A CPU whose name tells little has its family behind it: of AMD's, 25 are Zen 3 and 4, 26 is Zen 5, with twice the rate in bfloat16.
"""

PROFILE = """
### Where the time goes

One step of ours under torch's profiler, in percent. Only matrix products and attention count for the share of the peak, and no small
product runs at the rate of a large one. Least of all those of attention, be it PyTorch's kernel or, on a CPU in bfloat16 and, for 160 to
1,024 tokens, in float32, products block by block: with all that belongs to them they reach 25 to 55 % of the peak
(`python bench/attention.py`). So the share is lowest in a small model with long prompts, where attention takes more than a quarter of
the time.
"""


def machine(device: str) -> dict[str, str]:
    """What ran, and when."""
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{_cpu()}, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, transformers {version('transformers')}, TRL {version('trl')}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def add(row: dict[str, Any], path: Path) -> None:
    """Put a row beside the page, in the place of one of its kind from the same machine, and write the page anew."""
    data = path.with_suffix(".jsonl")
    found = {_kind(earlier): earlier for earlier in read(data)} | {_kind(row): row}
    data.write_text("".join(json.dumps(found[kind]) + "\n" for kind in sorted(found)))
    write(path)


def write(path: Path) -> None:
    """The page of the rows beside it; what it said of other machines stays."""
    path.write_text(page(read(path.with_suffix(".jsonl")), path.read_text() if path.exists() else ""))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _kind(row: dict[str, Any]) -> tuple[str, int, int, str]:
    return row["machine"], [*TITLES].index(row["row"]), [*SHAPES].index(row["shape"]), row["dtype"]


def page(rows: Sequence[dict[str, Any]], before: str = "") -> str:
    """The page as Markdown; ``before`` is the page as it was, whose sections of machines without rows are kept."""
    parts = [HEAD]
    machines = {row["machine"] for row in rows}
    parts += [text + "\n" for title, text in sections(before).items() if title not in machines]
    for machine_name in dict.fromkeys(row["machine"] for row in rows):
        own = [row for row in rows if row["machine"] == machine_name]
        peaks = sorted({row["matmul_peak_gflops"] for row in own})
        parts.append(f"## {machine_name}\n")
        told = ["; ".join(sorted({row[name] for row in own})) for name in ("date", "versions")]
        parts.append(f"{'; '.join(told)}; matrix products at {peaks[0]:.0f} to {peaks[-1]:.0f} GFLOP/s.\n")
        parts += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        parts += [line(row) for row in own]
        parts += where_the_time_goes(own)
        parts.append("\n### What a step is\n")
        parts += dict.fromkeys(
            f"- **{TITLES[row['row']]}, {row['shape']}**: {row['work']}; {row['peer']}{micro(row)}, {row['steps']} steps of each."
            for row in own
        )
        parts.append("")
    return "\n".join(parts)


def line(row: dict[str, Any]) -> str:
    floor, goal = TO_REACH.get((row["row"], row["dtype"])) or TO_REACH.get(row["row"]) or (0.0, 0.0)
    ours, theirs = (f"{row['seconds_median'][side]:.2f} ({row['seconds_min'][side]:.2f})" for side in ("ours", "theirs"))
    memory = row["memory_mb"]  # None: by an older method
    aims = f"{floor} / {goal}{missed(row['times_as_fast'] < floor)}" if goal else ""
    share, in_updates = row["share_of_matmul_peak"], row.get("update_share_of_matmul_peak")
    least = 0 if row["row"] in SAMPLING or in_updates is not None else SHARE_TO_REACH[row["dtype"]]
    same = f" ({row['times_as_fast_as_the_peer_by_openblas']:.2f})" if "share_of_openblas_peak" in row else ""
    beside = f" ({100 * row['share_of_openblas_peak']:.0f} %)" if same else ""
    cells = (
        TITLES[row["row"]], row["shape"], row["dtype"], ours, theirs, f"**{row['times_as_fast']:.2f}**{same}", aims,
        f"{memory['ours']} / {memory['theirs']}" if memory else "to be measured again",
        f"{memory['ours'] / memory['theirs']:.2f}{missed(memory['ours'] > MEMORY_TO_REACH * memory['theirs'])}" if memory else "",
        f"{row['tokens_per_second']}", f"{100 * share:.0f} %{beside}{missed(share < least)}",
        "" if in_updates is None else f"{100 * in_updates:.0f} %{missed(in_updates < SHARE_TO_REACH[row['dtype']])}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def where_the_time_goes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One step of ours by kind of work."""
    kinds = list(rows[0]["profile"])
    lines = []
    for row in rows:
        shares = " | ".join(f"{100 * row['profile'][kind]:.0f}" for kind in kinds)
        lines.append(f"| {TITLES[row['row']]} | {row['shape']} | {row['dtype']} | {shares} |")
    return [PROFILE, f"| what | model | type | {' | '.join(kinds)} |", "|" + "---|" * (3 + len(kinds)), *lines]


def missed(is_missed: bool) -> str:
    return ", missed" if is_missed else ""


def micro(row: dict[str, Any]) -> str:
    return "" if row["row"] in SAMPLING else f" with micro-batches of {row['peer_micro_batch']}"


def _cpu() -> str:
    """Its name; a virtual machine's may hide which of a maker's it is, and then its family tells."""
    path = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in path.read_text().splitlines()] if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # the first CPU's
    name = facts.get("model name") or platform.processor()
    if "cpu family" not in facts or any(c.isdigit() for c in name):
        return name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"
