"""The exact format into every kind of database, empty or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from humanward.errors import UserError
from humanward.feedback import Store
from humanward.feedback.exchange import Imported, Part, Spool, import_file, read_exact, streaming, write_exact
from humanward.records import Question
from humanward.records.files import Faults, InputFile


def exact_bytes(store: Store, part: Part | None = None) -> bytes:
    out = BytesIO()
    write_exact(out, store, part or Part())
    return out.getvalue()


def labelled(ask: Callable[..., Question], count: int = 30) -> Store:
    """Everything that people do, by two people."""
    ticks = iter(range(1_000_000, 2_000_000))
    store = Store.in_memory(clock=lambda: next(ticks), repeat_share=0.3)
    store.add_instructions("Choose the kinder one: “100 %”.")
    store.add_questions([ask(n, overlap=2, round=n % 3) for n in range(count)], gold={"q3": 1})
    for who in ("ann", "bob"):
        for number in range(count):
            held = store.lease(who)
            if held is None:
                break
            store.record(who, held.question.id, number % 4, f"{number}", seconds=0.1 + number, comment="why?" if number % 9 == 0 else "")
            if number % 7 == 0:
                store.undo(who, f"undo-{number}")
                store.flag(who, held.question.id, f"flag-{number}", "odd")
        last = store.lease(who)
        if last is not None:
            store.skip(who, last.question.id, f"skip-{who}", "unsure")
        store.release(who)
    store.adjudicate("researcher-1", "q1", 2, "decided")
    return store


def import_bytes(store: Store, content: bytes, path: Path) -> Imported:
    path.write_bytes(content)
    faults = Faults()
    with Spool(read_exact(InputFile(path, faults))) as spool:
        faults.check()
        return import_file(store, spool, source=path.name, faults=faults)


def test_a_store_comes_back_whole(store: Store, ask: Callable[..., Question], tmp_path: Path) -> None:
    source = labelled(ask)
    done = import_bytes(store, exact_bytes(source), tmp_path / "x.jsonl")
    assert done.labels == len(source.events(kinds=["label"]))
    assert exact_bytes(store) == exact_bytes(source)
    assert store.counts() == source.counts()
    assert store.snapshot() == source.snapshot()
    again = import_bytes(store, exact_bytes(source), tmp_path / "x.jsonl")
    assert again == Imported(known=done.labels + done.others)


def test_rounds_are_added_one_by_one(store: Store, ask: Callable[..., Question], tmp_path: Path) -> None:
    source = labelled(ask)
    for number in (2, 0, 1):
        import_bytes(store, exact_bytes(source, Part(round=number)), tmp_path / "x.jsonl")
        assert store.verify() == []
    assert store.counts() == source.counts()
    assert store.snapshot().sha256 == source.snapshot().sha256


def test_work_goes_on_beside_what_was_imported(store: Store, ask: Callable[..., Question], tmp_path: Path) -> None:
    source = labelled(ask)
    store.add_questions([ask(n, overlap=2, round=n % 3) for n in range(5) if n != 3])
    held = store.lease("ann")
    other = store.lease("carla")
    assert held is not None
    assert other is not None
    assert held.question.id == other.question.id
    import_bytes(store, exact_bytes(source), tmp_path / "x.jsonl")
    assert store.verify() == []
    store.record("carla", other.question.id, 0, "of-carla")
    assert store.undo("ann", "after the import") is not None
    assert store.verify() == []


def test_a_fault_of_the_last_event_takes_everything_back(store: Store, ask: Callable[..., Question], tmp_path: Path) -> None:
    store.add_questions([ask(1, k=2, kind="pair")])
    before = exact_bytes(store)
    source = Store.in_memory()
    source.add_questions([ask(n, k=2, kind="pair") for n in (2, 3)])
    source.record("ann", "q2", 0, "e1")
    lines = exact_bytes(source).splitlines(keepends=True)
    lines.insert(-1, lines[-2].replace(b'"e1"', b'"e2"'))
    lines[-1] = b'{"end": {"questions": 2, "events": 2}}\n'
    with pytest.raises(UserError, match=r"x.jsonl:5: ann has answered question q2 before"):
        import_bytes(store, b"".join(lines), tmp_path / "x.jsonl")
    assert exact_bytes(store) == before


@pytest.mark.parametrize("text", ['{"a": "\\ud83d\\ude00 \\u0000 é", "b": [1, 2.5, 1e400, -0.0, null, true]}', '{"half": "\\ud83d"}'])
def test_json_out_of_the_store_is_what_the_standard_library_reads(text: str) -> None:
    assert streaming._parsed(text) == json.loads(text)
