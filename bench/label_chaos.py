"""Is an answer that the server confirmed ever lost, doubled, or put down to somebody else, however often the server dies?

    python bench/label_chaos.py [--store sqlite|postgresql] [--labels 20000] [--people 50] [--seed 0] [--write docs/label_chaos.md]

Simulated people (labelling/natures.py) label over HTTP: by invite link and cookie, with events under ids of their own that they send again
until there is an answer. Some answer noisily, by lot, always the left, faster than one can read, or copy one another; some leave
questions lying until their leases are over and answer them then; some send everything twice at the same time, give up before the answer
comes, take answers back, skip, flag and comment. The server is that of `humanward label`. It is killed with SIGKILL every 2 to 8 s,
sometimes while it starts, and sometimes stays away for a while; now and then its clock is an hour wrong. With PostgreSQL, the postmaster
and its children are killed too.

In the end every event of every person is compared with the store: it must be there exactly once, under the right person and question, and
name the same texts, whatever order they were shown in. One JSON line; the exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from labelling.audit import audit, detection
from labelling.natures import crowd
from labelling.people import Office, Person
from postgresql import Cluster

from humanward.errors import RunError
from humanward.feedback import Store
from humanward.records import Prompt, Question, Response

HERE = Path(__file__).parent
KINDS = [("best_of_k", 4), ("best_of_k", 4), ("pair", 2), ("best_of_k", 9), ("ranking", 4), ("soft", 3), ("difference", 2), ("rating", 1)]
WORDS = ("amber", "birch", "cloud", "delta", "ember", "frost", "grove", "haze", "isle", "jade", "knoll", "lark", "moss", "night", "pine")
REPEATS = 0.03
GOLD = 0.02
KILL_SECONDS = (2.0, 8.0)
HOUR = 3600.0


def questions(count: int, overlap: int, lots: random.Random) -> list[Question]:
    """No two responses of a question are the same text."""
    made = []
    for number in range(count):
        kind, K = KINDS[number % len(KINDS)]
        texts = [" ".join(lots.choices(WORDS, k=6)) + f" {number}.{index}" for index in range(K)]
        prompt = Prompt(f"p{number}", f"Once upon a time {number}")
        made.append(Question(f"q{number}", prompt, tuple(map(Response, texts)), kind, overlap=overlap, round=1))
    return made


class Chaos:
    """The server, and what happens to it."""

    def __init__(self, run: Path, office: Office, lots: random.Random, args: argparse.Namespace, cluster: Cluster | None) -> None:
        self.run, self.office, self.lots, self.args, self.cluster = run, office, lots, args, cluster
        self.port = httpx.URL(office.url).port
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = self.early = self.outages = self.cluster_kills = self.cluster_kills_before = 0
        self.clock = 0.0
        self.starts: list[float] = []

    def start(self) -> None:
        if self.kills % 5 == 4:
            clock = self.lots.choice((-HOUR, 0.0, HOUR))
            if clock != self.clock:
                self.clock = clock
                self.office.jumps.append(time.monotonic())
        self.cluster_kills_before = self.cluster_kills
        words = [str(HERE / "labelling/server.py"), str(self.run), str(self.port), str(self.args.lease), str(self.clock)]
        with open(self.run.parent / "server.log", "ab") as log:
            self.process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        left = self.process.poll()
        if left == RunError.exit_code and self.cluster_kills > self.cluster_kills_before:
            self.office.counts["the server said at its start that the database is away, and left"] += 1  # as it should; it is started again
        elif left is not None:
            self.office.faults[f"the server left by itself with {left}"] += 1
        self.process.kill()
        self.process.wait()
        self.kills += 1

    async def up(self) -> None:
        """Wait until it answers."""
        began = time.monotonic()
        async with httpx.AsyncClient(verify=False) as client:
            while self.process is not None and self.process.poll() is None:
                with suppress(httpx.TransportError):
                    if (await client.get(f"{self.office.url}/health", timeout=5)).status_code == 200:
                        self.starts.append(time.monotonic() - began)
                        return
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def reign(self) -> AsyncIterator[None]:
        """Kill and start again, until the block ends; then leave a server that runs."""
        self.start()
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self.storm())
                yield
                task.cancel()
        finally:
            if self.process is not None:
                self.process.terminate()
                await asyncio.to_thread(self.process.wait)

    async def storm(self) -> None:
        while True:
            if self.lots.random() < 0.1:
                await asyncio.sleep(self.lots.uniform(0.05, 1.0))  # while it starts
                self.early += 1
            else:
                await self.up()
                await asyncio.sleep(self.lots.uniform(*self.args.kill_seconds))
            if self.cluster is not None and self.lots.random() < 0.3:
                await asyncio.to_thread(self.kill_cluster, self.cluster)
                if self.lots.random() < 0.5:
                    continue  # the same server goes on
            self.kill()
            if self.lots.random() < 0.1:
                self.outages += 1
                await asyncio.sleep(self.lots.uniform(1, self.args.outage))
            self.start()

    def kill_cluster(self, cluster: Cluster) -> None:
        cluster.kill()
        self.cluster_kills += 1
        time.sleep(self.lots.uniform(0, 1))
        cluster.start()


def inviter(store: Store) -> Any:
    """Makes invite links as `humanward invite` does, from another process than the server's."""

    def invite(name: str, person_id: str | None) -> tuple[str, str]:
        while True:
            try:
                person, token = store.people.invite("labeler", name, person_id)
                return person.id, token
            except RunError:  # the database is away
                time.sleep(0.2)

    async def later(name: str, person_id: str | None) -> tuple[str, str]:
        return await asyncio.to_thread(invite, name, person_id)

    return later


def prepare(run: Path, args: argparse.Namespace, cluster: Cluster | None) -> Store:
    """A run of people that waits for labels."""
    address = cluster.address("chaos") if cluster is not None else str(run / "labels.db")
    settings: dict[str, Any] = {"labeler": "people", "labels": {"repeat_share": REPEATS}}
    if cluster is not None:
        settings["label_store"] = address
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    store = Store(address, repeat_share=REPEATS)
    lots = random.Random(args.seed)
    made = questions(math.ceil(args.labels / args.overlap * 1.15) + 4 * args.people, args.overlap, lots)
    golden = [question for question in made if question.kind == "best_of_k"][: max(1, int(GOLD * args.labels / args.people))]
    store.add_questions(made, gold={question.id: lots.randrange(len(question.responses)) for question in golden})
    return store


async def storm(run: Path, store: Store, args: argparse.Namespace, cluster: Cluster | None) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    office = Office(url, inviter(store), args.labels, args.lease)
    people = [Person(nature, office, f"{args.seed} {number}") for number, nature in enumerate(crowd(args.people))]
    chaos = Chaos(run, office, random.Random(f"chaos {args.seed}"), args, cluster)
    async with chaos.reign():
        await chaos.up()
        began = time.monotonic()
        await asyncio.gather(*(person.work() for person in people))
        seconds = time.monotonic() - began
    found = await asyncio.to_thread(audit, store, people, office)
    row = {
        "store": args.store, "people": args.people, **found, "kills": chaos.kills, "kills_while_starting": chaos.early,
        "postmaster_kills": chaos.cluster_kills, "outages": chaos.outages, "clock_jumps": len(office.jumps), "seconds": round(seconds, 1),
        "labels_per_second": round(found["acked"] / seconds, 1), "ack_p50_ms": quantile(office.acks, 0.5),
        "ack_p95_ms": quantile(office.acks, 0.95), "until_acked_p95_ms": quantile(office.waits, 0.95),
        "start_p50_ms": quantile(chaos.starts, 0.5), "flagged": detection(store, people), "met": dict(office.counts.most_common()),
        "faults": dict(office.faults),
    }  # fmt: skip
    row["good"] = is_good(row)
    return row


def is_good(row: dict[str, Any]) -> bool:
    wrong = ("lost", "doubled", "misattributed", "invented", "refused_but_kept", "undone_wrongly", "over_overlap", "verify", "faults")
    return not any(row[name] for name in wrong)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else math.nan


# The page


INTRODUCTION = """\
# What survives when people label and the server dies

    python bench/label_chaos.py --store sqlite --labels 20000 --write docs/label_chaos.md
    python bench/label_chaos.py --store postgresql --labels 10000 --write docs/label_chaos.md

Simulated people label over HTTP while the server is killed with SIGKILL every 2 to 8 seconds. In the end every answer of every person is
compared with the store, by the texts that they chose.
"""
SAID = {
    "people": "people at the same time",
    "acked": "answers confirmed",
    "lost": "of them lost",
    "doubled": "of them doubled",
    "misattributed": "of them under another person, question or answer",
    "invented": "stored answers that nobody sent",
    "over_overlap": "answers beyond the overlap, other than after an expired lease",
    "kept_late": "answers beyond it, kept after an expired lease",
    "undone": "answers and skips taken back",
    "sent_again": "events sent more than once",
    "kills": "kills of the server",
    "postmaster_kills": "kills of the database server",
    "clock_jumps": "jumps of the server's clock by an hour or two",
    "seconds": "seconds",
    "labels_per_second": "answers per second, all in",
    "ack_p50_ms": "ack, median, ms",
    "ack_p95_ms": "ack, 95th percentile, ms",
    "until_acked_p95_ms": "ack with the wait for the server, 95th percentile, ms",
}


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/labelling.md out of the rows of all stores."""
    head = ["| | " + " | ".join(row["store"] for row in rows) + " |", "|---|" + "---:|" * len(rows)]
    figures = [f"| {words} | " + " | ".join(f"{row[name]:,}" for row in rows) + " |" for name, words in SAID.items()]
    natures = dict.fromkeys(name for row in rows for name in row["flagged"])
    flagged = [f"| {name} | " + " | ".join(row["flagged"].get(name, "") for row in rows) + " |" for name in natures]
    between = "Flagged on the researcher's page as answering always in one place, or no better than chance:"
    raw = ["The lines that the bench wrote:", "", "```json", *map(json.dumps, rows), "```", ""]
    return "\n".join([INTRODUCTION, *head, *figures, "", between, "", *head, *flagged, "", *raw])


def write_page(path: Path, row: dict[str, Any]) -> None:
    """Replace the row of this store, and keep that of the other one."""
    text = path.read_text() if path.exists() else ""
    rows = {known["store"]: known for known in map(json.loads, re.findall(r"^\{.*\}$", text, re.MULTILINE))}
    rows[row["store"]] = row
    path.write_text(page([rows[name] for name in sorted(rows, reverse=True)]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--lease", type=float, default=8.0, help="seconds")
    parser.add_argument("--kill-seconds", type=float, nargs=2, default=KILL_SECONDS, metavar=("LEAST", "MOST"))
    parser.add_argument("--outage", type=float, default=5.0, help="the longest time without a server, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page to write, docs/label_chaos.md")
    parser.add_argument("--folder", type=Path, help="where the run stays, to look at; a temporary one otherwise")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no server is left behind
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(fsync=True)) if args.store == "postgresql" else None
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.mkdir(exist_ok=True, parents=True)
        store = prepare(folder / "run", args, cluster)
        row = asyncio.run(storm(folder / "run", store, args, cluster))
        store.close()
        said = (folder / "server.log").read_text(errors="replace")
    print(json.dumps(row), flush=True)
    unexpected = [line for line in said.splitlines() if "Traceback" in line or "Error" in line]
    for line in unexpected[:20]:
        print(line, file=sys.stderr)
    if args.write is not None:
        write_page(args.write, row)
    return 0 if row["good"] else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
