"""How long a labeler waits for the next question, and a researcher for numbers, as the label store grows. One JSON line per size.

    python bench/label_store.py [--sizes 1000,1000000] [--folder DIR] [--postgresql] [--rounds 400]

The store is put together by bulk insert: rounds of 10,000 questions with four responses each, half of them answered by 50 labelers, one in
ten twice; then the labelers ask and answer in turn, each call timed by itself. Times are in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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


def measure(address: str | Path, times: int) -> dict[str, Any]:
    """Fifty labelers in turn, then the researcher; every other call is a write."""
    started = time.perf_counter()
    store = Store(address)
    found: dict[str, Any] = {"startup_s": round(time.perf_counter() - started, 3)}
    took: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        before = time.perf_counter()
        value = call(*arguments)
        took.setdefault(name, []).append(time.perf_counter() - before)
        return value

    for turn in range(times):
        labeler = LABELERS[turn % len(LABELERS)]
        for assignment in timed("next", store.held, labeler, 2)[:1]:
            timed("label", store.record, labeler, assignment.question.id, turn % 4, f"new{turn}")
        if turn % 20 == 0:
            timed("undo", store.undo, labeler, f"undo{turn}")
        if turn % 40 == 0:
            researcher = {
                "counts": (store.counts,), "counts_of_round": (store.counts, 0), "disputed": (store.disputed, 50),
                "inbox": (store.inbox, 50), "history": (store.history, labeler),
                "labels_by": (store.labels_by, LABELERS), "cord": (store.cord,),
                "newest_events": (store.events, None, None, None, 0, 100),
            }  # fmt: skip
            for name, (call, *arguments) in researcher.items():
                timed(name, call, *arguments)
    timed("rows_of_a_labeler", store.labeler_rows, LABELERS[0])
    store.close()
    for name, seconds in took.items():
        ordered = sorted(seconds)
        found[name] = {"p50": ms(ordered[len(ordered) // 2]), "p95": ms(ordered[int(len(ordered) * 0.95)])}
    return found


def ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


@contextlib.contextmanager
def address_for(size: int, folder: Path, postgresql: bool) -> Iterator[str | Path]:
    if not postgresql:
        path = folder / f"labels-{size}.db"
        yield path
        path.unlink()
        return
    from postgresql import Cluster

    with Cluster(fsync=True) as cluster:
        yield cluster.address()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", default="1000,10000,100000,1000000")
    arguments.add_argument("--folder", type=Path, help="where the databases are made; the 1,000,000 one takes about 3 GB")
    arguments.add_argument("--postgresql", action="store_true", help="on a private PostgreSQL server instead of SQLite")
    arguments.add_argument("--rounds", type=int, default=400, help="how many questions are asked for and answered")
    arguments.add_argument("--verify", action="store_true", help="check the store that was put together, and how long that takes")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in map(int, options.sizes.split(",")):
            with address_for(size, Path(folder), options.postgresql) as address:
                started = time.perf_counter()
                store = Store(address)
                fill(store, size)
                store.close()
                line = {"questions": size, "filled_s": round(time.perf_counter() - started, 1), **measure(address, options.rounds)}
                if options.verify:
                    started = time.perf_counter()
                    store = Store(address)
                    assert store.verify() == []
                    store.close()
                    line["verify_s"] = round(time.perf_counter() - started, 1)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
