"""What `humanward demo` reaches: the whole command for several seeds, each in a process of its own.

    python bench/demo_quality.py RUNS_FOLDER [--seeds 1 2 3] [--write docs/results.md]

One JSON line per seed on stdout. Time is that of the whole command, from its start to the report; memory is the largest resident size of
its process. A run that is finished is not done again: its figures are read.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BARS = {"win rate": 0.82, "its lower end": 0.78, "KL": 10.0, "reward-model accuracy": 0.5, "seconds": 300, "memory": 3e9}


def demo(folder: Path, seed: int) -> None:
    """Run the command, and keep beside the run what only its parent can see."""
    measured = folder / "measured.json"
    if measured.exists():
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "humanward", "demo", str(folder), "--seed", str(seed), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    # careful: the maximum over all children so far; seeds differ little in it.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    measured.write_text(json.dumps({"seconds": round(seconds, 1), "memory": memory}) + "\n")


def figures(folder: Path, seed: int) -> dict[str, Any]:
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    rates = {(row["policy"], row["against"]): row for row in results["win_rates"]}
    quality = results["text_quality"]
    return {
        "seed": seed,
        "prompts": results["prompts"],
        "win_rate": [rates["ppo", "reference"][name] for name in ("rate", "low", "high")],
        "against_sft": [rates["ppo", "sft"][name] for name in ("rate", "low", "high")],
        "sft_against_reference": [rates["sft", "reference"][name] for name in ("rate", "low", "high")],
        "kl": [results["kl"]["ppo"][name] for name in ("mean", "low", "high")],
        "reward_model_accuracy": [[row[name] for name in ("accuracy", "low", "high")] for row in results["reward_model"]],
        "bits_per_byte": {name: quality[name]["bits_per_byte"] for name in ("reference", "sft", "ppo")},
        **json.loads((folder / "measured.json").read_text()),
    }


def interval(values: list[float], percent: bool = True) -> str:
    mean, low, high = values
    return f"{mean:.1%} [{low:.1%}, {high:.1%}]" if percent else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


HEAD = """# What the demo reaches

Made by `python bench/demo_quality.py RUNS_FOLDER --write docs/results.md` on {day}: {machine}, {cores} CPU cores, torch {torch}.

Every run is `humanward demo` with another seed: model, prompts and judge are the embedded ones, the settings those of the preset `demo`.
The policy is tuned on the learned reward; the scores that decide here are the labeler's own, on {prompts} prompts that no stage had seen.
Intervals are 95 %.

"""
MARK = "<!-- From here on not made by bench/demo_quality.py. -->"
"""What stands behind it in the page stays."""
FOOT = """
- *Preferred*: one response of each policy to each prompt, ties counting half, with Wilson's interval.
- *KL*: of the tokens that the labeler sees, sampled, with a bootstrap interval.
- *Reward model*: the share of fresh best-of-4 questions, all responses from the reference, in which it picks what the labeler picks; chance
  is 25 %.
- *Bits per byte*: what the reference needs for the shown text. Text that it finds ordinary needs few.
- *SFT*: supervised fine-tuning on all responses that the labeler chose, those of the tuned policy in the second round among them.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """docs/results.md."""
    import torch

    head = HEAD.format(
        day=f"{datetime.now(UTC):%Y-%m-%d}", machine=platform.machine(), cores=torch.get_num_threads(), torch=torch.__version__,
        prompts=rows[0]["prompts"],
    )  # fmt: skip
    lines: dict[str, list[str]] = {
        "Preferred to the reference": [interval(row["win_rate"]) for row in rows],
        "Preferred to SFT": [interval(row["against_sft"]) for row in rows],
        "SFT preferred to the reference": [interval(row["sft_against_reference"]) for row in rows],
        "KL, nats per response": [interval(row["kl"], percent=False) for row in rows],
    }
    for number in range(len(rows[0]["reward_model_accuracy"])):
        lines[f"Reward model of round {number + 1} right"] = [interval(row["reward_model_accuracy"][number]) for row in rows]
    for name, title in (("reference", "the reference"), ("sft", "SFT"), ("ppo", "PPO")):
        lines[f"Bits per byte of {title}"] = [f"{row['bits_per_byte'][name]:.2f}" for row in rows]
    lines["Seconds"] = [f"{row['seconds']:.0f}" for row in rows]
    lines["Peak memory, GB"] = [f"{row['memory'] / 1e9:.2f}" for row in rows]
    table = ["| | " + " | ".join(f"seed {row['seed']}" for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    table += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in lines.items()]
    return head + "\n".join(table) + "\n" + FOOT


def missed(row: dict[str, Any]) -> list[str]:
    reached = {
        "win rate": row["win_rate"][0] >= BARS["win rate"],
        "its lower end": row["win_rate"][1] > BARS["its lower end"],
        "KL": row["kl"][0] <= BARS["KL"],
        "reward-model accuracy": row["reward_model_accuracy"][-1][0] >= BARS["reward-model accuracy"],
        "seconds": row["seconds"] <= BARS["seconds"],
        "memory": row["memory"] <= BARS["memory"],
    }
    return [name for name, good in reached.items() if not good]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        folder = args.folder / f"seed-{seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        demo(folder, seed)
        rows.append(figures(folder, seed))
        print(json.dumps(rows[-1] | {"missed": missed(rows[-1])}), flush=True)
    if args.write is not None:
        _, mark, rest = args.write.read_text().partition(MARK) if args.write.exists() else ("", "", "")
        args.write.write_text(page(rows) + (f"\n{mark}{rest}" if mark else ""))


if __name__ == "__main__":
    main()
