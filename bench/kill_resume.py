"""Does a run that is killed, stopped, starved of disk or damaged end like one that nothing disturbed?

    python bench/kill_resume.py [--kills 200] [--stops 12] [--damages 24] [--full 50] [--seed 0]

A small run with every stage (supervised fine-tuning, two rounds of labels, reward model and PPO, evaluation) is made once undisturbed. Then
again and again in other folders, with one fault after the other, each followed by the same command. In the end the weights, metrics,
questions, samples and results of each folder must have the bytes of the undisturbed one. One JSON line per kind of fault on stdout; the
exit code is 1 if any end differs.

- kills: SIGKILL at random times, one after the other until the run is done.
- stops: SIGTERM in each stage in turn; the command must be gone within 10 s, and say 143.
- damages: a bit flipped in, or the end cut off, the newest checkpoint of a killed training; stderr must name it.
- full: the n-th write of the process, n at random, finds the disk full (strace); exit code 3, one line, and the run goes on afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

SETTINGS: dict[str, Any] = {
    "threads": 1,
    "self_test": False,
    "checkpoint_seconds": 1e-6,
    "task": {
        "prompt_length": 4, "prompt_start": None, "prompt_end": None, "response_length": 4, "truncate_token": None, "temperature": 1.0,
    },
    "sft": {"batch_size": 8, "epochs": 3},
    "labels": {"initial": 64, "total": 128, "rounds": 2, "overlap_labels": 2},
    "reward": {"batch_size": 4, "lr": 1e-3, "normalize_samples": 16},
    "ppo": {"episodes": 512, "batch_size": 16, "ppo_epochs": 2, "lr": 1e-3},
    "baseline_sft": {"batch_size": 8},
    "evaluation": {"prompts": 16, "frontier_prompts": 4, "frontier_samples": 8, "questions": 8, "shown": 4},
}  # fmt: skip
STAGES = ("sft", "sample", "label", "reward", "ppo", "baseline_sft", "evaluate")


def make_parts(folder: Path) -> list[str]:
    """A model over six words, texts and prompts made of them; returns the options of the command."""
    from humanward.trainers.selftest import tiny_policy

    tiny_policy().save(folder / "model")
    words = ["".join(" ".join(row)) for row in itertools.product(("bad", "w2", "w3", "w4"), repeat=3)]
    (folder / "prompts.txt").write_text("".join(line + "\n" for line in words))
    rows = [json.dumps({"prompt": line, "response": "good w5"}) + "\n" for line in words]
    (folder / "texts.jsonl").write_text("".join(rows))
    (folder / "scores.py").write_text("def good(prompts, responses):\n    return [r.split().count('good') for r in responses]\n")
    SETTINGS["sft"]["texts"] = str(folder / "texts.jsonl")
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    labeler = f"score:python:{folder / 'scores.py'}:good"
    return ["--config", f"{folder}/config.yaml", "--model", f"{folder}/model", "--prompts", f"{folder}/prompts.txt", "--labeler", labeler]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run learned and said."""
    patterns = ("rounds/*/*/*.safetensors", "sft/*.safetensors", "policy/*.safetensors", "baseline_sft/*.safetensors")
    files = [file for pattern in (*patterns, "rounds/*/questions/*.jsonl", "evaluation/*.json*") for file in folder.glob(pattern)]
    files = [file for file in [*files, folder / "metrics.jsonl"] if file.name != "manifest.json"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def command(arguments: list[str], said: str) -> None:
    """In a process of its own: the command, and the exit code that its process would have."""
    from humanward.cli import main

    with Path(said).open("a") as file, redirect_stdout(file), redirect_stderr(file):
        code = main(arguments)
    os._exit(code)


class Bench:
    """The undisturbed run and the means to disturb others."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.lots = folder, random.Random(seed)
        self.options = make_parts(folder)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["humanward.cli", "humanward.rounds", "humanward.report", "transformers.models.llama"])
        self.start("warm").join()  # the server's imports are not to be measured
        began = time.monotonic()
        self.start("undisturbed").join()
        self.seconds = time.monotonic() - began
        self.expected = hashes(folder / "undisturbed")
        self.numbers = itertools.count()

    def start(self, name: str) -> Any:
        process = self.context.Process(target=command, args=(["loop", str(self.folder / name), *self.options], str(self.said(name))))
        process.start()
        return process

    def said(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def stage(self, name: str) -> str:
        try:
            return json.loads((self.folder / name / "state.json").read_text())["stage"]
        except (OSError, ValueError):
            return "before"

    def same(self, name: str) -> bool:
        """Let the run end, and compare."""
        process = self.start(name)
        process.join()
        same = process.exitcode == 0 and hashes(self.folder / name) == self.expected
        if same:
            shutil.rmtree(self.folder / name)
        else:
            print(f"{self.folder / name} differs; see {self.said(name)}", file=sys.stderr)
        return same

    def name(self) -> str:
        return f"run-{next(self.numbers)}"


def kills(bench: Bench, count: int) -> dict[str, Any]:
    where: Counter[str] = Counter()
    runs = same = 0
    while where.total() < count:
        name = bench.name()
        while True:
            process = bench.start(name)
            process.join(bench.lots.uniform(0.02, 0.4) * bench.seconds)
            if process.exitcode is not None or where.total() == count:
                process.join()
                break
            process.kill()
            process.join()
            where[bench.stage(name)] += 1
        runs += 1
        same += bench.same(name)
    return {"fault": "SIGKILL", "count": where.total(), "runs": runs, "same_end": same, "where": dict(where), "good": same == runs}


def stops(bench: Bench, count: int) -> dict[str, Any]:
    longest, same, codes = 0.0, 0, Counter[int]()
    done: Counter[str] = Counter()
    for stage in itertools.islice(itertools.cycle(STAGES), count):
        name = bench.name()
        process = bench.start(name)
        while process.is_alive() and bench.stage(name) != stage:
            time.sleep(0.002)
        time.sleep(bench.lots.uniform(0, 0.05))
        began = time.monotonic()
        process.terminate()
        process.join()
        longest = max(longest, time.monotonic() - began)
        codes[int(process.exitcode or 0)] += 1
        done[stage] += 1
        same += bench.same(name)
    good = same == count and longest < 10 and set(codes) <= {128 + signal.SIGTERM, 0}
    return {
        "fault": "SIGTERM", "count": count, "same_end": same, "longest_seconds": round(longest, 2), "exit_codes": dict(codes),
        "where": dict(done), "good": good,
    }  # fmt: skip


def damages(bench: Bench, count: int) -> dict[str, Any]:
    same = named = 0
    for number in range(count):
        name = bench.name()
        newest = next(checkpoint_of_killed(bench, name))
        file = bench.lots.choice(sorted(newest.iterdir()))
        content = bytearray(file.read_bytes())
        if number % 2:
            content[bench.lots.randrange(len(content))] ^= 1 << bench.lots.randrange(8)
        else:
            del content[bench.lots.randrange(len(content)) :]
        file.write_bytes(bytes(content))
        bench.said(name).unlink()
        same += bench.same(name)
        named += f"{newest}: damaged checkpoint" in bench.said(name).read_text()
    return {"fault": "damaged checkpoint", "count": count, "same_end": same, "named": named, "good": same == named == count}


def checkpoint_of_killed(bench: Bench, name: str) -> Iterator[Path]:
    """The newest checkpoint of a run that was killed while it trained and has two of that training."""
    while True:
        process = bench.start(name)
        process.join(bench.lots.uniform(0.05, 0.9) * bench.seconds)
        process.kill()
        process.join()
        stage = json.loads((bench.folder / name / "state.json").read_text()) if (bench.folder / name / "state.json").exists() else {}
        label = f"{stage.get('stage')}-{stage.get('round')}" if stage.get("stage") == "reward" else str(stage.get("stage"))
        there = (bench.folder / name / "checkpoints" / label).glob("step-*")
        found = sorted((path for path in there if path.name[5:].isdigit()), key=lambda path: int(path.name[5:]))
        if len(found) >= 2 and all((path / "manifest.json").exists() for path in found):
            yield found[-1]
        shutil.rmtree(bench.folder / name, ignore_errors=True)


def full_disks(bench: Bench, count: int) -> dict[str, Any]:
    """By strace: from its n-th write on, the process meets a full disk."""
    if shutil.which("strace") is None:
        return {"fault": "full disk", "count": 0, "good": False, "why": "strace is not installed"}
    arguments = [sys.executable, "-m", "humanward", "loop"]
    log = bench.folder / "writes.log"
    counted = ["strace", "-f", "--seccomp-bpf", "-y", "-o", str(log), "-e", "trace=write"]
    name = bench.name()
    subprocess.run([*counted, *arguments, str(bench.folder / name), *bench.options], check=True, capture_output=True)
    lines = [line for line in log.read_text(errors="replace").splitlines() if re.match(r"\d+ +write\(", line)]
    inside = [n for n, line in enumerate(lines, start=1) if str(bench.folder / name) in line]
    same = clean = 0
    for _ in range(count):
        shutil.rmtree(bench.folder / name, ignore_errors=True)
        when = bench.lots.choice(inside)
        fault = ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, "-e", "trace=write", "-e", f"inject=write:error=ENOSPC:when={when}"]
        done = subprocess.run([*fault, *arguments, str(bench.folder / name), *bench.options], check=False, capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        clean += done.returncode == 0 or (done.returncode == 3 and "disk is full" in last and "Traceback" not in done.stderr)
        same += bench.same(name)
    return {"fault": "full disk", "count": count, "one_line_or_not_met": clean, "same_end": same, "good": same == clean == count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=14)
    parser.add_argument("--damages", type=int, default=24)
    parser.add_argument("--full", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kinds: list[tuple[Callable[[Bench, int], dict[str, Any]], int]] = [
        (kills, args.kills), (stops, args.stops), (damages, args.damages), (full_disks, args.full),
    ]  # fmt: skip
    bad = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), args.seed)
        print(json.dumps({"undisturbed_seconds": round(bench.seconds, 2), "files": len(bench.expected)}), flush=True)
        for work, count in kinds:
            if count:
                began = time.monotonic()
                row = work(bench, count)
                bad += not row["good"]
                print(json.dumps(row | {"seconds": round(time.monotonic() - began)}), flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
