"""How long a labeler waits for the next question, and a researcher for numbers, as the label store grows. One JSON line per size.

    python bench/label_store.py [--sizes 1000,1000000] [--folder DIR] [--postgresql] [--rounds 400]

The store is put together by bulk insert: rounds of 10,000 questions with four responses each, half of them answered by 50 labelers, one in
ten twice; then the labelers ask and answer in turn, each call timed by itself. Times are in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from humanward.feedback import Store, schema
from humanward.feedback.log import HASHED, canonical, chained, sha256, time_text
from humanward.records import Prompt, Question, Response

LABELERS = [f"labeler-{number}" for number in range(50)]
ROUND = 10_000
CHUNK = 5_000
ANSWERED = 0.5


def body_of(number: int) -> str:
    """Question ``number`` as JSON, as ``Store.add_questions`` keeps it; only its id and its round differ from the next one's."""
    return (
        _BODY.replace('"q"', f'"q{number:07}"')
        .replace('"round":0', f'"round":{number // ROUND}')
        .replace('"overlap":1', f'"overlap":{_overlap(number)}')
    )


def _overlap(number: int) -> int:
    return 1 + (number % 10 == 0)


_TEXT = "once upon a time there was a small brave house by the river who told the cat about every good morning"
_RESPONSES = tuple(
    Response(f"{_TEXT} and then it {verb}", tuple(range(40_000, 40_024)), "policy", "a1b2c3d4") for verb in ("ran", "sat", "hid", "left")
)
_BODY = canonical(Question("q", Prompt("p", _TEXT), _RESPONSES).to_json())


def fill(store: Store, size: int) -> None:
    """Questions, and the answers to the first ones, as the store itself would have written them."""
    answered = int(size * ANSWERED)
    seq, last = 0, ""
    for start in range(0, size, CHUNK):
        rows: dict[str, list[dict[str, Any]]] = {"questions": [], "assignments": [], "events": []}
        for number in range(start, min(size, start + CHUNK)):
            body, key, overlap = body_of(number), f"q{number:07}", _overlap(number)
            row = {"id": key, "position": number + 1, "round": number // ROUND, "split": "train", "overlap": overlap, "body": body}
            labels = overlap if number < answered else 0
            rows["questions"].append(row | {"leases": 0, "labels": labels, "words": "[20,24,24,24,24]"})
            for k in range(labels):
                labeler, seq = LABELERS[(number + 7 * k) % len(LABELERS)], seq + 1
                said = {
                    "kind": "best_of_k", "answer": 1, "permutation": [0, 1, 2, 3], "seconds": 9.5, "confidence": None, "comment": "",
                    "instructions": "", "question": sha256(body),
                }  # fmt: skip
                event = {
                    "seq": seq, "kind": "label", "question_id": key, "labeler": labeler, "client_event_id": f"e{seq}", "target": None,
                    "body": canonical(said), "time": time_text(1.7e9 + seq),
                }  # fmt: skip
                event["hash"] = last = chained(last, event, HASHED)
                rows["events"].append(event)
                mine = {"question_id": key, "labeler": labeler, "permutation": "[0, 1, 2, 3]", "state": "answered", "expires": 0.0}
                rows["assignments"].append(mine | {"turn": 0, "attempt": 0})
        with store._database.write() as connection:
            for name, some in rows.items():
                if some:
                    connection.execute(insert(schema.metadata.tables[name]), some)
    with store._database.write() as connection:
        connection.execute(
            insert(schema.labelers), [{"name": n, "cursor": answered, "gold_cursor": 0, "lent": 0, "gold_at": 0} for n in LABELERS]
        )
        connection.exec_driver_sql(
            "INSERT INTO tallies SELECT round, count(*), sum(overlap), sum(labels), "
            "sum(CASE WHEN overlap > labels THEN overlap - labels ELSE 0 END), sum(leases), 0, 0 FROM questions GROUP BY round"
        )


class Timer:
    """One store, and how long its calls took."""

    def __init__(self, address: str | Path) -> None:
        started = time.perf_counter()
        self.store = Store(address)
        self.startup, self.took = time.perf_counter() - started, dict[str, list[float]]()
        self.lot = secrets.token_hex(4)

    def time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        before = time.perf_counter()
        value = call(*arguments)
        self.took.setdefault(name, []).append(time.perf_counter() - before)
        return value

    def turn(self, turn: int) -> None:
        """One labeler asks for questions and answers the first; now and then one takes back a label, and the researcher looks."""
        store, labeler = self.store, LABELERS[turn % len(LABELERS)]
        for assignment in self.time("next", store.held, labeler, 2)[:1]:
            self.time("left", store.left, labeler)
            self.time("label", store.record, labeler, assignment.question.id, turn % 4, f"{self.lot} {turn}")
        if turn % 20 == 0:
            self.time("undo", store.undo, labeler, f"{self.lot} undo {turn}")
        if turn % 40 == 0:
            for name, call, *arguments in (
                ("counts", store.counts), ("counts_of_round", store.counts, 0), ("disputed", store.disputed, 50),
                ("inbox", store.inbox, 50), ("history", store.history, labeler), ("cord", store.cord),
                ("labels_by", store.labels_by, LABELERS), ("events_of_a_question", store.events, None, "q0000400", ("label",), 0, 1),
            ):  # fmt: skip
                self.time(name, call, *arguments)

    def result(self) -> dict[str, Any]:
        self.time("rows_of_a_labeler", self.store.labeler_rows, LABELERS[0])
        self.store.close()
        found: dict[str, Any] = {"startup_s": round(self.startup, 3)}
        for name, seconds in self.took.items():
            ordered = sorted(seconds)
            found[name] = {"p50": ms(ordered[len(ordered) // 2]), "p95": ms(ordered[int(len(ordered) * 0.95)])}
        return found


def ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


@contextlib.contextmanager
def address_for(size: int, folder: Path, postgresql: bool) -> Iterator[str | Path]:
    if not postgresql:
        yield folder / f"labels-{size}.db"
        return
    from postgresql import Cluster

    with Cluster(fsync=True) as cluster:
        yield cluster.address()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", default="1000,10000,100000,1000000")
    arguments.add_argument("--folder", type=Path, help="where the databases stay, to be used again; the 1,000,000 one takes 2.5 GB")
    arguments.add_argument("--postgresql", action="store_true", help="on a private PostgreSQL server instead of SQLite")
    arguments.add_argument("--rounds", type=int, default=400, help="how many questions are asked for and answered")
    arguments.add_argument("--verify", action="store_true", help="check the store that was put together, and how long that takes")
    options = arguments.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = {size: stack.enter_context(address_for(size, folder, options.postgresql)) for size in sizes}
        filled = {size: filled_in(address, size) for size, address in addresses.items()}
        timers = {size: Timer(address) for size, address in addresses.items()}
        for turn in range(options.rounds):
            for timer in timers.values():  # in turn, so that whatever else the machine does slows all of them alike
                timer.turn(turn)
        for size, timer in timers.items():
            line = {"questions": size, "filled_s": filled[size], **timer.result()}
            if options.verify:
                line |= verified(addresses[size])
            print(json.dumps(line), flush=True)


def filled_in(address: str | Path, size: int) -> float:
    started = time.perf_counter()
    store = Store(address)
    if not store.events(limit=1):
        fill(store, size)
    store.close()
    return round(time.perf_counter() - started, 1)


def verified(address: str | Path) -> dict[str, float]:
    """How long the check of the whole store takes, and how much memory it adds."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = Store(address)
    faults = store.verify()
    store.close()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"faults": len(faults), "verify_s": round(time.perf_counter() - started, 1), "verify_mb": round(added / 1024, 1)}


if __name__ == "__main__":
    sys.exit(main())
