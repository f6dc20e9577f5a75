"""Does a run that is killed, stopped, starved of disk or damaged end like one that nothing disturbed?

    python bench/kill_resume.py [--kills 200] [--stops 40] [--damages 24] [--full 50] [--losses 100] [--per-run 20] [--seed 0]

A small run with every stage (supervised fine-tuning, two rounds of labels, reward model and PPO, evaluation, report) is made twice
undisturbed. Then again and again in other folders, with faults on the way (`--per-run 1`: one each), each followed by the same command. In
the end the weights, Adam's moments, metrics, alarms, questions, samples and results of a folder must have the bytes of the undisturbed
one, and nothing half-written may lie about. One JSON line per kind of fault on stdout; the exit code is 1 if any end differs.

Each process says on a pipe what it is doing (`reward-2/update`, `ppo-1/rollout`, ...), so that a fault is not timed by the clock: its place
is drawn by lot, and how often the process comes there first, and how far into it. The tables say where the faults were met.

- kills: SIGKILL, a quarter each in supervised fine-tuning, reward model, PPO, and the rest of the loop; every tenth process starts cold.
- stops: SIGTERM in each place in turn, with no checkpoint but the one that it brings; gone within 10 s, with 143, and no step lost.
- damages: a bit flipped in, or the end cut off, the newest checkpoint of a killed training; stderr must name it.
- full: on a tmpfs of its own, all but a random number of bytes are taken; exit code 3, one line with the bytes needed and free, all
  checkpoints whole; with the bytes given back the run goes on.
- losses: the calls of an undisturbed run are recorded and repeated up to one drawn by lot; of what no fsync brought to the disk nothing,
  all or a part is there when the run goes on (`power_loss.py`). What was last saved must be. With every fsync left out it must not.
"""

from __future__ import annotations

import argparse
import functools
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from power_loss import lose_power, record

from humanward.storage import verify_folder

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
TRAININGS = ("sft", "reward", "ppo")
GROUPS = (*TRAININGS, "rest")
COLD_EVERY = 10
"""Every tenth process starts from nothing; the others are forked from one that has imported everything."""
DISK = 32 << 20
LEFT = (1, 16 << 10, 128 << 10)
"""Fewer bytes than these are left of it, by lot: none, too few for a small file, too few for a checkpoint."""
Target = tuple[str, int]
"""A place, and how often a process must come to it."""
Ends = list[tuple[int, bool]]
"""Of each run, how many faults it met, and whether it ended like the undisturbed one."""
FULL = r"error: \S+: the disk is full: (more than )?\d+ bytes needed, \d+ bytes free; free some space and start again"


def make_parts(folder: Path) -> list[str]:
    """Texts and prompts over six words; returns the options of the command."""
    words = ["".join(" ".join(row)) for row in itertools.product(("bad", "w2", "w3", "w4"), repeat=3)]
    (folder / "prompts.txt").write_text("".join(line + "\n" for line in words))
    rows = [json.dumps({"prompt": line, "response": "good w5"}) + "\n" for line in words]
    (folder / "texts.jsonl").write_text("".join(rows))
    (folder / "scores.py").write_text("def good(prompts, responses):\n    return [r.split().count('good') for r in responses]\n")
    SETTINGS["sft"]["texts"] = str(folder / "texts.jsonl")
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    labeler = f"score:python:{folder / 'scores.py'}:good"
    return ["--config", f"{folder}/config.yaml", "--model", f"{folder}/model", "--prompts", f"{folder}/prompts.txt", "--labeler", labeler]


def save_model(folder: str) -> None:
    """In a process of its own: a model over the same words."""
    from humanward.trainers.selftest import tiny_policy

    tiny_policy().save(Path(folder))


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run learned and said, and the names of what should not be there."""
    patterns = ("rounds/*/*/*.safetensors", "sft/*.safetensors", "policy/*.safetensors", "baseline_sft/*.safetensors")
    files = [file for pattern in (*patterns, "rounds/*/questions/*.jsonl", "evaluation/*.json*") for file in folder.glob(pattern)]
    files += newest(folder / "checkpoints/ppo").iterdir()  # Adam's moments too
    files = [file for file in [*files, folder / "metrics.jsonl", *folder.glob("alarms.jsonl")] if file.name != "manifest.json"]
    found = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
    return found | dict.fromkeys((str(path.relative_to(folder)) for path in folder.rglob("*.tmp*")), "left behind")


def newest(checkpoints: Path) -> Path:
    return max((path for path in checkpoints.glob("step-*") if path.name[5:].isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def command(arguments: list[str], said: str, pipe: Any) -> None:
    """In a process of its own: the command, and the exit code that its process would have."""
    pipe.send_bytes(b"start")
    from humanward.cli import main

    say_places(pipe)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)


def say_places(pipe: Any) -> None:
    """From here on, say what the process is about to do: STAGE or STAGE/PART."""
    from humanward import report
    from humanward.rounds import loop
    from humanward.storage import Checkpoints
    from humanward.trainers import PPOTrainer, RewardTrainer
    from humanward.trainers.updates import Updater

    inside: list[str] = []

    def marked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def marked_work(*arguments: Any, **settings: Any) -> Any:
            inside.append(name)
            pipe.send_bytes("/".join(inside).encode())
            try:
                return work(*arguments, **settings)
            finally:
                inside.pop()
                pipe.send_bytes("/".join(inside or ["between"]).encode())

        return marked_work

    parts = ((PPOTrainer, "sample_rollout", "rollout"), (PPOTrainer, "score", "score"), (RewardTrainer, "normalize", "normalize"))
    for owner, name, called in (*parts, (Updater, "update", "update"), (Checkpoints, "save", "checkpoint")):
        setattr(owner, name, marked(called, getattr(owner, name)))
    report.build_report = marked("report", report.build_report)
    stages_of = loop.stages_of

    def marked_stages(config: Any) -> list[loop.Stage]:
        def numbered(stage: loop.Stage) -> str:
            return f"{stage.name}-{stage.round}" if stage.round else stage.name

        return [replace(stage, work=marked(numbered(stage), stage.work)) for stage in stages_of(config)]

    loop.stages_of = marked_stages


class Running:
    """A process and what it said last."""

    def __init__(self, process: Any, pipe: Any, order: dict[str, int]) -> None:
        self.process, self.pipe, self.order = process, pipe, order
        self.place = ""

    def hear(self) -> bool:
        """Wait for the next place; False when the process is over."""
        try:
            self.place = self.pipe.recv_bytes().decode()
        except EOFError:
            self.process.join()
            return False
        return True

    def until(self, place: str, times: int) -> bool:
        """Wait until it comes to a place for the n-th time; False when it went past it or ended."""
        times -= self.place == place
        while times > 0:
            if not self.hear() or self.order.get(stage_of(self.place), -1) > self.order[stage_of(place)]:
                return False
            times -= self.place == place
        return True

    def catch_up(self) -> None:
        """Hear what it has said already."""
        while self.pipe.poll() and self.hear():
            pass

    def end(self) -> int:
        """Let it go on to its end, and hear where that was."""
        while self.hear():
            pass
        return int(self.process.exitcode or 0)


def stage_of(place: str) -> str:
    return place.partition("/")[0]


def plain(place: str) -> str:
    """Without the round."""
    return re.sub(r"-\d+", "", place)


class Bench:
    """The undisturbed run and the means to disturb others."""

    def __init__(self, folder: Path, seed: int, per_run: int) -> None:
        self.folder, self.lots, self.per_run = folder, random.Random(seed), per_run
        self.options = make_parts(folder)
        self.cold, self.warm = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
        self.warm.set_forkserver_preload(["humanward.cli.running", "humanward.rounds", "humanward.report", "transformers.models.llama"])
        self.numbers, self.order = itertools.count(), dict[str, int]()
        self.seconds, self.times = dict[str, float](), dict[str, int]()
        """How long a process is at each place, on average, and how often."""
        self.starts = 0
        process = self.warm.Process(target=save_model, args=(str(folder / "model"),))
        process.start()
        process.join()
        undisturbed = folder / "undisturbed"
        began = time.monotonic()
        self.note_places(self.start(undisturbed))
        self.whole = time.monotonic() - began
        self.expected = hashes(undisturbed)

    def note_places(self, running: Running) -> None:
        spent: dict[str, list[float]] = {}
        before = time.monotonic()
        while running.hear():
            now = time.monotonic()
            if spent:
                spent[list(spent)[-1]][-1] = now - before
            before = now
            # careful: moved to the end, so that the last key is where the process is
            spent[running.place] = [*spent.pop(running.place, []), 0.0]
            self.order.setdefault(stage_of(running.place), len(self.order))
        for place in ("start", "between"):
            del self.order[place], spent[place]
        self.seconds = {
            place: sum(parts) / len(parts) for place, parts in sorted(spent.items(), key=lambda item: self.order[stage_of(item[0])])
        }
        self.times = {place: len(parts) for place, parts in spent.items()}

    def start(self, run: Path, *settings: str, cold: bool = False) -> Running:
        context = self.cold if cold else self.warm
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=command, args=(["loop", str(run), *self.options, *settings], str(self.said(run)), send))
        process.start()
        send.close()
        return Running(process, receive, self.order)

    def said(self, run: Path) -> Path:
        """What the processes of a run wrote on stdout and stderr."""
        return self.folder / f"{run.name}.log"

    def along(self, targets: list[Target], ends: Ends, *settings: str, folder: Path | None = None) -> Iterator[Disturbed]:
        """One run, handed over for a fault at each of the places that it comes to, and started again after that.

        Args:
            targets: in any order. One that the run does not come to any more is left out.
            ends: gets how many faults the run met, and whether its end is that of the undisturbed one.
        """
        run = (folder or self.folder) / f"run-{next(self.numbers)}"
        running = self.start(run, *settings)
        faults = 0
        for place, times in sorted(targets, key=lambda target: self.order[stage_of(target[0])]):
            if running.until(place, times):
                time.sleep(self.lots.uniform(0, self.seconds[place]))
                running.catch_up()
                if running.process.is_alive():
                    faults += 1
                    yield Disturbed(run, running, running.place)
                    running.end()
                    self.starts += 1
                    running = self.start(run, *settings, cold=self.starts % COLD_EVERY == 0)
        self.compare(run, running.end(), faults, ends)

    def compare(self, run: Path, code: int, faults: int, ends: Ends) -> None:
        """Note whether a run that is over ended like the undisturbed one; then it is removed."""
        same = code == 0 and hashes(run) == self.expected
        ends.append((faults, same))
        if same:
            shutil.rmtree(run)
        else:
            print(f"{run} differs; see {self.said(run)}", file=sys.stderr)

    def target(self, place: str, most_times: int = 3) -> Target:
        """The place, when it is reached for the n-th time, n by lot."""
        return place, self.lots.randint(1, min(most_times, self.times[place]))

    def places(self, group: str, part: str = "") -> list[str]:
        return [place for place in self.seconds if group_of(place) == group and place.endswith(part)]


@dataclass(frozen=True)
class Disturbed:
    """A run at the moment of a fault."""

    run: Path
    running: Running
    place: str
    """Where its process is."""


def group_of(place: str) -> str:
    """One of the four that share the kills."""
    stage = plain(stage_of(place))
    return stage if stage in TRAININGS else "rest"


def kills(bench: Bench, count: int) -> dict[str, Any]:
    shares: Counter[str] = Counter()
    where: Counter[str] = Counter()
    ends: Ends = []
    while shares.total() < count:
        levels = sorted((level, group) for group in GROUPS for level in range(shares[group], -(-count // len(GROUPS))))
        groups = [group for _, group in levels[: min(bench.per_run, count - shares.total())]]  # those that are most behind
        for met in bench.along([bench.target(bench.lots.choice(bench.places(group))) for group in groups], ends):
            met.running.process.kill()
            met.running.end()
            where[plain(met.running.place)] += 1
            shares[group_of(met.running.place)] += 1
    return {
        "fault": "SIGKILL",
        "count": shares.total(),
        **summary(ends),
        "shares": dict(shares),
        "where": table(where),
        "good": all_same(ends),
    }


def stops(bench: Bench, count: int) -> dict[str, Any]:
    """With checkpoints so rare that the only one of a training is that of the signal."""
    where: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    ends: Ends = []
    longest, lost = 0.0, 0
    turns = itertools.cycle(bench.seconds)
    while where.total() < count:
        places = itertools.islice(turns, min(bench.per_run, count - where.total()))
        targets = [bench.target(place, 1 if place.endswith("/checkpoint") else 3) for place in places]
        for met in bench.along(targets, ends, "checkpoint_seconds=1000"):
            began = time.monotonic()
            met.running.process.terminate()
            codes[met.running.end()] += 1
            longest = max(longest, time.monotonic() - began)
            where[plain(met.place)] += 1
            lost += steps_lost(met.run)
    good = all_same(ends) and lost == 0 and longest < 10 and set(codes) <= {128 + signal.SIGTERM, 0}
    return {
        "fault": "SIGTERM", "count": count, **summary(ends), "steps_lost": lost, "longest_seconds": round(longest, 2),
        "exit_codes": dict(codes), "where": table(where), "good": good,
    }  # fmt: skip


def steps_lost(run: Path) -> int:
    """Steps of the last training in the log that neither a checkpoint nor the stage's output holds."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    if not lines:
        return 0
    row = json.loads(lines[-1])
    name, number = row["stage"], row["round"]
    output = f"rounds/{number}/{'policy' if name == 'ppo' else name}" if number else name
    if (run / output / "manifest.json").exists():
        return 0
    return row["step"] + 1 - step_of(newest(run / "checkpoints" / (f"{name}-{number}" if name == "reward" else name)))


def damages(bench: Bench, count: int) -> dict[str, Any]:
    where: Counter[str] = Counter()
    ends: Ends = []
    named = 0
    while where.total() < count:
        targets = [
            (bench.lots.choice(bench.places(name, "/checkpoint")), bench.lots.randint(3, 9)) for name in bench.lots.sample(TRAININGS, 3)
        ]
        said: list[tuple[Path, str]] = []
        for met in bench.along(targets[: min(bench.per_run, count - where.total())], ends):
            met.running.process.kill()
            met.running.end()
            stage = stage_of(met.place)
            checkpoint = newest(met.run / "checkpoints" / (plain(stage) if group_of(stage) == "ppo" else stage))
            file, how = bench.lots.choice(sorted(checkpoint.iterdir())), bench.lots.choice(("cut", "flipped"))
            damage(file, how, bench.lots)
            where[f"{plain(stage)} {file.name} {how}"] += 1
            said.append((bench.said(met.run), f"{checkpoint}: damaged checkpoint: "))
        named += sum(words in log.read_text() for log, words in said)
    return {
        "fault": "damaged checkpoint", "count": count, **summary(ends), "named": named, "where": table(where),
        "good": all_same(ends) and named == count,
    }  # fmt: skip


def damage(file: Path, how: str, lots: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[lots.randrange(len(content))] ^= 1 << lots.randrange(8)
    else:
        del content[lots.randrange(len(content)) :]
    file.write_bytes(bytes(content))


def full_disks(bench: Bench, count: int) -> dict[str, Any]:
    disk = bench.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", disk], check=False, capture_output=True, text=True)
    if mounted.returncode:
        return {"fault": "full disk", "count": 0, "good": False, "why": f"no tmpfs of its own: {mounted.stderr.strip()}"}
    where: Counter[str] = Counter()
    ends: Ends = []
    told = whole = unmet = 0
    while where.total() < count:
        targets = [bench.target(bench.lots.choice(bench.places(group)), 5) for group in bench.lots.sample(GROUPS, 4)]
        for met in bench.along(targets[: min(bench.per_run, count - where.total())], ends, folder=disk):
            os.kill(met.running.process.pid, signal.SIGSTOP)
            fill(disk, bench.lots.randrange(bench.lots.choice(LEFT)))
            os.kill(met.running.process.pid, signal.SIGCONT)
            code = met.running.end()
            (disk / "filler").unlink()
            if code == 0:  # what was left was enough
                unmet += 1
                continue
            said = bench.said(met.run).read_text()
            last = said.splitlines()[-1]
            where[re.sub(r"(^error: .*/run-\d+/)|(\.tmp-\d+)|(: .*)|-?\d+", "", last)] += 1
            fitting = code == 3 and re.fullmatch(FULL, last) is not None and "Traceback" not in said
            told += fitting
            if not fitting:
                print(f"{bench.said(met.run)}: exit code {code}: {last}", file=sys.stderr)
            whole += all(verify_folder(path) is None for path in met.run.glob("checkpoints/*/step-*") if path.name[5:].isdigit())
    subprocess.run(["umount", disk], check=True)
    return {
        "fault": "full disk", "count": where.total(), **summary(ends), "one_line": told, "checkpoints_whole": whole, "unmet": unmet,
        "where": table(where), "good": all_same(ends) and told == whole == where.total(),
    }  # fmt: skip


def fill(disk: Path, left: int) -> None:
    """Take the space of a disk but for so many bytes."""
    space = os.statvfs(disk)
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, space.f_bavail * space.f_bsize - left))


def power_losses(bench: Bench, count: int) -> dict[str, Any]:
    if shutil.which("strace") is None:
        return {"fault": "power loss", "count": 0, "good": False, "why": "no strace to record the calls"}
    recorded = bench.folder / "recorded/run"
    recorded.parent.mkdir()
    saying = [sys.executable, str(Path(__file__).with_name("power_loss.py")), "loop", str(recorded), *bench.options]
    operations = record(saying, recorded, bench.folder / "recorded.log")
    where: Counter[str] = Counter()
    ends: Ends = []
    kept = lost_unsynced = 0
    for number in range(count):
        loss = lose_power(operations, recorded, bench.folder / f"loss-{number}", bench.lots)
        where[loss.place] += 1
        kept += loss.kept()
        bench.compare(loss.folder, bench.start(loss.folder, cold=number % COLD_EVERY == 0).end(), 1, ends)
        unsynced = lose_power(operations, recorded, bench.folder / f"unsynced-{number}", bench.lots, syncs=False)
        lost_unsynced += not unsynced.kept()
        shutil.rmtree(unsynced.folder, ignore_errors=True)
    return {
        "fault": "power loss", "count": count, **summary(ends), "calls": len(operations), "kept": kept, "lost_without_fsync": lost_unsynced,
        "where": table(where), "good": all_same(ends) and kept == count and lost_unsynced > 0,
    }  # fmt: skip


def summary(ends: Ends) -> dict[str, int]:
    """``same_end``: faults of the runs that ended like the undisturbed one."""
    return {"runs": len(ends), "same_runs": sum(same for _, same in ends), "same_end": sum(faults for faults, same in ends if same)}


def all_same(ends: Ends) -> bool:
    return all(same for _, same in ends)


def table(where: Counter[str]) -> dict[str, int]:
    return dict(sorted(where.items()))


def in_own_mounts() -> None:
    """Go on, where the system allows it, in a namespace whose mounts go when the process does."""
    mark = "KILL_RESUME_OWN_MOUNTS"
    if mark not in os.environ and subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0:
        os.execvpe("unshare", ["unshare", "-rm", *sys.orig_argv], {**os.environ, mark: "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=40)
    parser.add_argument("--damages", type=int, default=24)
    parser.add_argument("--full", type=int, default=50)
    parser.add_argument("--losses", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=20, help="most faults that one run meets before its end is compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page to write, docs/faults.md")
    parser.add_argument("--results", type=Path, help="write the page from these JSON lines; nothing is run")
    args = parser.parse_args()
    if args.results is not None:
        args.write.write_text(page([json.loads(line) for line in args.results.read_text().splitlines()]))
        return
    if args.full:
        in_own_mounts()
    kinds: list[tuple[Callable[[Bench, int], dict[str, Any]], int]] = [
        (kills, args.kills), (stops, args.stops), (damages, args.damages), (full_disks, args.full),
        (power_losses, args.losses),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), args.seed, args.per_run)
        ends: Ends = []
        list(bench.along([], ends))
        bad = not all_same(ends)
        row = {"fault": "none", "count": 1, "same_end": int(not bad), "files": len(bench.expected), "good": not bad}
        rows = [row | {"seconds": round(bench.whole, 1)}]
        print(json.dumps(rows[0]), flush=True)
        for work, count in kinds:
            if count:
                began = time.monotonic()
                row = work(bench, count)
                bad |= not row["good"]
                rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
                print(json.dumps(rows[-1]), flush=True)
    if args.write is not None:
        args.write.write_text(page(rows))
    sys.exit(bad)


PAGE = """# Faults

`python bench/kill_resume.py --per-run 1 --write docs/faults.md` writes this page. A small run with every stage, two rounds of labels among
them, is made undisturbed. Then again and again in folders of their own, each with a fault on the way, at a place drawn by lot, and with the
same command given once more. "Same end" counts the faults after which weights, Adam's moments, metrics, alarms, questions, samples and
results had the bytes of the undisturbed run, and nothing half-written lay about. No folder was tidied by hand.

| fault | met | same end | besides |
|---|---|---|---|
"""
BESIDES: dict[str, Callable[[dict[str, Any]], str]] = {
    "none": lambda row: f"{row['files']} files compared",
    "SIGKILL": lambda row: ", ".join(f"{count} in {stage}" for stage, count in row["shares"].items()),
    "SIGTERM": lambda row: f"{row['steps_lost']} steps lost; gone after {row['longest_seconds']} s at most",
    "damaged checkpoint": lambda row: f"{row['named']} named on stderr and passed over",
    "full disk": lambda row: (
        f"{row['one_line']} said in one line with the bytes needed and free; {row['checkpoints_whole']} left all checkpoints whole"
    ),
    "power loss": lambda row: (
        f"{row['kept']} kept what was last saved; without any fsync {row['lost_without_fsync']} of {row['count']} lost it"
    ),
}
TAIL = """
A power loss is played back: strace records every call by which an undisturbed run changes its folder, the calls up to one drawn by lot are
repeated, and of what no fsync has brought to the disk nothing, all or a part is left. A file may hold old bytes, new ones and zeros, sector
by sector, at any size between the old and the new; any of the names made, changed and removed may be as before. What was last saved must be
there, checkpoint or output of a stage, and the same command must go on to the same end. The trials are sharp: when the calls of fsync are
left out of the record, what was saved is lost. Shorter trials, of a run's stages and of the label store, are tests:
`tests/storage/test_power_loss.py` and `tests/feedback/test_power_loss.py`.

Killing at every single system call of a checkpoint, a state file and a line of the log, and every single call that can fail for want of
space, is a test: `tests/storage/test_crash.py`. A short version of this page's bench is one too: `tests/cli/test_resume.py`.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and where the faults were met."""
    lines = [f"| {row['fault']} | {row['count']} | {row['same_end']} | {BESIDES[row['fault']](row)} |" for row in rows]
    places = [
        f"- **{row['fault']}**: {', '.join(f'{count} {place}' for place, count in row['where'].items())}" for row in rows if "where" in row
    ]
    return PAGE + "\n".join(lines) + "\n\nWhere they were met:\n\n" + "\n".join(places) + "\n" + TAIL


if __name__ == "__main__":
    main()
