"""Files that cannot be imported: each has its one line per fault, with the line number, and nothing is imported."""

from __future__ import annotations

import gzip
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from humanward.cli.export import import_labels
from humanward.errors import UserError
from humanward.feedback import Store
from humanward.feedback.exchange import Part, write_exact
from humanward.records import Prompt, Question, Response
from humanward.records import files as files_module
from humanward.records.files import InputFile, Limits

from .conftest import run

Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A file and the faults that it has."""

    name: str
    file: str
    content: Content
    lines: tuple[int | None, ...]
    """The line of each fault; None: the file as a whole."""
    says: str
    """A part of the first message."""
    options: tuple[tuple[str, Any], ...] = ()


PAIR = {"prompt": "Say hi", "chosen": "Hi!", "rejected": "No."}
UNPAIRED = {"prompt": "Say hi", "completion": "Hi!", "label": True}
BEST = {"prompt": "Say hi", "responses": ["Hi!", "No.", "Oh."], "best": 1}
TABLE = {"prompt": "Say hi", "responses": ["Hi!", "No.", "Oh."], "kind": "ranking", "answer": [0, 1, 1], "labeler": "ann"}
OLD = {"query": "Say hi", "sample0": "Hi!", "sample1": "No.", "best": 0}
SUMMARIES = {
    "info": {"id": "t3", "post": "Long story.", "title": "A story", "subreddit": "tifu"},
    "summaries": [{"text": " short", "policy": "ref", "note": None}, {"text": " shorter", "policy": "sup", "note": "ok"}],
    "choice": 1, "worker": "w1", "batch": "batch3", "split": "train", "extra": {"confidence": 8},
}  # fmt: skip
TASK = {
    "id": 7, "data": {"prompt": "Say hi", "answer1": "Hi!", "answer2": "No."},
    "annotations": [
        {
            "id": 31, "completed_by": 4, "was_cancelled": False, "ground_truth": False, "lead_time": 8.5,
            "created_at": "2023-05-02T10:11:12.345678Z", "unique_id": "a-31",
            "result": [{"id": "x", "type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2", "value": {"selected": "left"}}],
        }
    ],
}  # fmt: skip
RANKED = {
    "id": 8, "data": {"prompt": "Say hi", "items": [{"id": "a", "body": "Hi!"}, {"id": "b", "body": "No."}, {"id": "c", "body": "Oh."}]},
    "annotations": [{"id": 32, "completed_by": 4, "result": [{"type": "ranker", "value": {"ranker": {"rank": ["b", "a", "c"]}}}]}],
}  # fmt: skip
RECORD = {
    "id": "r1", "fields": {"prompt": "Say hi", "response1": "Hi!", "response2": "No."}, "metadata": {}, "suggestions": {}, "vectors": {},
    "responses": {"preference": [{"value": "response1", "user_id": "u-1"}]},
}  # fmt: skip
RANKING = {
    **RECORD,
    "responses": {"ranking": [{"value": [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}], "user_id": "u-1"}]},
}


def changed(row: Any, **changes: Any) -> dict[str, Any]:
    """The row with other values; ``...`` takes a key out."""
    return {name: value for name, value in (row | changes).items() if value is not ...}


def deep(row: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a row with another value deep inside; ``...`` takes it out."""
    copy = json.loads(json.dumps(row))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place = copy
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A different good row of the same format."""
    text = json.dumps(row).replace("Say hi", f"Say hi {number}").replace("Long story", f"Long story {number}")
    return json.loads(text.replace('"a-31"', f'"a-{number}"').replace('"id": 32', f'"id": {1000 + number}'))


def lines(*rows: Any) -> bytes:
    """JSON lines; bytes and texts are lines as they are."""
    return b"".join(row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows)


def among(row: Any, bad: Any) -> bytes:
    """A good row, the bad one, a good one: the fault is in line 2."""
    return lines(numbered(row, 1), bad, numbered(row, 2))


def listed(*rows: Any) -> bytes:
    """A JSON list with a row per line: row n is in line n + 1."""
    return ("[\n" + ",\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n]\n").encode()


def table(*rows: str) -> bytes:
    return "\r\n".join(("prompt,response_1,response_2,kind,answer,labeler", *rows, "")).encode()


def jsonl_cases() -> Iterator[Case]:
    """What can be wrong with JSON lines of any format."""
    raw = json.dumps(PAIR)
    deep_list = "[" * 10_000 + "]" * 10_000
    broken: dict[str, tuple[Any, str]] = {
        "cut": (raw[:-9] + "\n", "not JSON"),
        "two-rows-in-a-line": (raw + raw, "not JSON"),
        "not-an-object": ("[1, 2]", "expected an object"),
        "a-number": ("17", "expected an object"),
        "null": ("null", "expected an object"),
        "single-quotes": (raw.replace('"', "'"), "not JSON"),
        "comma-at-the-end": (raw[:-1] + ",}", "not JSON"),
        "comment": ("// pairs", "not JSON"),
        "key-twice": (raw[:-1] + ', "chosen": "x"}', "twice"),
        "nan": (raw[:-1] + ', "margin": NaN}', "NaN"),
        "infinity": (raw[:-1] + ', "margin": -Infinity}', "Infinity"),
        "1e400": (raw[:-1] + ', "margin": 1e400}', "too large"),
        "long-number": (raw[:-1] + f', "margin": {"9" * 5000}}}', "4300"),
        "depth-10k": (raw[:-1] + f', "x": {deep_list}}}', "nested"),
        "depth-200": (raw[:-1] + f', "x": {"[" * 200 + "]" * 200}}}', "nested"),
        "lone-surrogate": (raw.replace("Hi!", "\\ud800"), "surrogate"),
        "surrogates-swapped": (raw.replace("Hi!", "\\udc00\\ud800"), "surrogate"),
        "surrogate-in-a-key": (raw[:-1] + ', "\\udfff": 1}', "surrogate"),
        "nul-byte": (raw.encode().replace(b"Hi!", b"H\x00i") + b"\n", "NUL"),
        "nul-escaped": (raw.replace("Hi!", "H\\u0000i"), "NUL"),
        "latin-1": (raw.replace("Hi!", "Grüße").encode("latin-1") + b"\n", "not UTF-8"),
        "utf-8-surrogate": (raw.encode().replace(b"Hi!", b"\xed\xa0\x80") + b"\n", "not UTF-8"),
        "overlong": (raw.encode().replace(b"Hi!", b"\xc0\xaf") + b"\n", "not UTF-8"),
        "second-bom": (b"\xef\xbb\xbf" + raw.encode() + b"\n", "not JSON"),
        "control-character": (raw.replace("Hi!", "H\x07i"), "not JSON"),
        "bad-escape": (raw.replace("Hi!", "\\x41"), "not JSON"),
        "html": ("<html><body>404</body></html>", "not JSON"),
        "conflict-mark": ("<<<<<<< HEAD", "not JSON"),
    }
    for name, (bad, says) in broken.items():
        yield Case(name, "x.jsonl", among(PAIR, bad), (2,), says)
    yield Case("cut-last", "x.jsonl", lines(PAIR, PAIR, raw[:20].encode()), (3,), "not JSON")
    yield Case("cut-crlf", "x.jsonl", lines(PAIR, PAIR, raw[:20]).replace(b"\n", b"\r\n"), (3,), "not JSON")
    yield Case("bom-then-fault", "x.jsonl", b"\xef\xbb\xbf" + lines(PAIR, "{"), (2,), "not JSON")
    yield Case("blank-lines-count", "x.jsonl", lines("", PAIR, "", "", "{"), (5,), "not JSON")
    yield Case("several", "x.jsonl", lines("{", PAIR, "[]", numbered(PAIR, 2), "NaN"), (1, 3, 5), "not JSON")
    yield Case("many", "x.jsonl", lines(*["{"] * 50, PAIR), (*range(1, 21), None), "not JSON")
    yield Case(
        "line-separator", "x.jsonl", lines(PAIR, json.dumps(PAIR, ensure_ascii=False).replace("Hi!", "a\u2028b")[:-1]), (2,), "not JSON"
    )
    yield Case("utf-16", "x.jsonl", lines(PAIR).decode().encode("utf-16"), (1,), "UTF-16")
    yield Case("old-mac", "x.jsonl", lines(PAIR, PAIR).replace(b"\n", b"\r"), (1,), "not JSON")
    yield Case("pretty", "x.jsonl", json.dumps(PAIR, indent=1).encode(), (1, 2, 3, 4, 5), "not JSON")
    yield Case("binary", "x.jsonl", b"{" + bytes(range(256)), (1, 2), "NUL")


def file_cases() -> Iterator[Case]:
    """What can be wrong with a file as a whole."""
    packed = gzip.compress(lines(*(numbered(PAIR, k) for k in range(50))))
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("x.jsonl", lines(PAIR))

    yield Case("empty", "x.jsonl", b"", (None,), "empty")
    yield Case("blank", "x.jsonl", b"\n\n", (None,), "no labels")
    yield Case("only-bom", "x.jsonl", b"\xef\xbb\xbf", (None,), "no labels")
    yield Case("folder", "x.jsonl", lambda path: path.mkdir(), (None,), "folder")
    yield Case("missing", "x.jsonl", lambda path: None, (None,), "no such file")
    yield Case("fifo", "x.jsonl", lambda path: os.mkfifo(path), (None,), "not an ordinary file")
    yield Case("dangling-link", "x.jsonl", lambda path: path.symlink_to("nowhere"), (None,), "No such file")
    yield Case("loop", "x.jsonl", lambda path: path.symlink_to(path.name), (None,), "cannot read")
    yield Case("zip", "x.jsonl", archive.getvalue(), (None,), "ZIP")
    yield Case("gz-cut", "x.jsonl.gz", packed[:-20], (1,), "damaged gzip")
    yield Case("gz-damaged", "x.jsonl.gz", packed[:40] + b"\x00\xff\x00" + packed[43:], (1,), "damaged gzip")
    yield Case("gz-wrong-sum", "x.jsonl.gz", packed[:-8] + b"\x00" * 8, (1,), "damaged gzip")
    yield Case("gz-rubbish-behind", "x.jsonl.gz", packed + b"rubbish", (1,), "damaged gzip")
    yield Case("gz-under-another-name", "x.jsonl", gzip.compress(among(PAIR, "{")), (2,), "not JSON")
    yield Case("parquet-cut", "x.parquet", b"PAR1" + b"\x00" * 50, (None,), "Parquet")
    yield Case("unknown-columns", "x.jsonl", lines({"a": 1, "b": 2}), (1,), "no known format")
    yield Case("unknown-format", "x.jsonl", lines(PAIR), (None,), "there are", (("format", "yaml"),))
    yield Case("another-format", "x.jsonl", lines(PAIR), (1,), "`label` is missing", (("format", "unpaired"),))
    yield Case("json-min", "x.json", listed({"id": 1, "annotation_id": 3, "prompt": "x"}), (2,), "JSON-MIN")
    yield Case("axes", "x.jsonl", lines({"info": {}, "summary": {"axes": {}}}), (1,), "axes")


def list_cases() -> Iterator[Case]:
    """What can be wrong with one JSON list."""
    good, raw = numbered(OLD, 1), json.dumps(OLD)
    yield Case("list-cut-in-a-row", "x.json", listed(good, OLD)[:-30], (3,), "cut off")
    yield Case("list-cut-behind-a-row", "x.json", listed(good, OLD)[:-3], (3,), "cut off")
    yield Case("list-cut-behind-a-comma", "x.json", b"[\n" + raw.encode() + b",\n", (3,), "not JSON")
    yield Case("list-comma-missing", "x.json", listed(good, OLD).replace(b"},\n", b"}\n"), (3,), "expected , or ]")
    yield Case("list-comma-at-the-end", "x.json", listed(good, OLD).replace(b"}\n]", b"},\n]"), (4,), "not JSON")
    yield Case("list-text-behind", "x.json", listed(good) + b"[]", (4,), "behind the end")
    yield Case("list-of-lists", "x.json", listed(good, [1]), (3,), "expected an object")
    yield Case("list-empty", "x.json", b"[]", (None,), "no labels")
    yield Case("list-nan", "x.json", listed(good, raw[:-1] + ', "x": NaN}', numbered(OLD, 2), {}), (3, 5), "NaN")
    yield Case("list-1e400", "x.json", listed(good, raw[:-1] + ', "x": 1e400}'), (3,), "too large")
    yield Case("list-key-twice", "x.json", listed(good, raw[:-1] + ', "best": 1}'), (3,), "twice")
    yield Case("list-lone-surrogate", "x.json", listed(good, raw.replace("Hi!", "\\udead")), (3,), "surrogate")
    yield Case("list-deep", "x.json", listed(good, raw[:-1] + f', "x": {"[" * 100_000}'), (3,), "nested")
    yield Case("list-latin-1", "x.json", listed(good, raw.replace("Hi!", "üü")).decode().encode("latin-1"), (3,), "not UTF-8")
    yield Case("list-nul", "x.json", listed(good, OLD).replace(b'Say hi"', b'Say\x00hi"'), (3,), "NUL")
    yield Case("list-pretty", "x.json", json.dumps([good, {**OLD, "best": 9}], indent=2).encode(), (8,), "`best`")
    yield Case(
        "list-pretty-syntax",
        "x.json",
        json.dumps([good, OLD], indent=2).replace('"No.",\n    "best": 0\n  }\n]', '"No."\n "best"').encode(),
        (12,),
        "not JSON",
    )


def pairs_cases() -> Iterator[Case]:
    for name in PAIR:
        yield Case(f"pairs-no-{name}", "x.jsonl", among(PAIR, changed(PAIR, **{name: ...})), (2,), name)
        yield Case(f"pairs-empty-{name}", "x.jsonl", among(PAIR, changed(PAIR, **{name: " \n"})), (2,), f"`{name}` is empty")
        yield Case(f"pairs-{name}-number", "x.jsonl", among(PAIR, changed(PAIR, **{name: 3})), (2,), f"`{name}`: expected a text")
    messages = [{"role": "user"}]
    yield Case("pairs-messages", "x.jsonl", among(PAIR, changed(PAIR, prompt=messages)), (2,), "`content`: expected a text")
    yield Case("pairs-same", "x.jsonl", among(PAIR, changed(PAIR, rejected="Hi!")), (2,), "same text")
    yield Case("pairs-then-unpaired", "x.jsonl", among(PAIR, UNPAIRED), (2,), "`chosen` is missing")
    yield Case("pairs-split", "x.jsonl", among(PAIR, changed(PAIR, split="test")), (2,), "`split`")
    yield Case("pairs-labeler-list", "x.jsonl", among(PAIR, changed(PAIR, labeler=["a"])), (2,), "`labeler`")
    yield Case("pairs-labeler-newline", "x.jsonl", among(PAIR, changed(PAIR, labeler="a\nb")), (2,), "`labeler`")
    yield Case("pairs-labeler-long", "x.jsonl", among(PAIR, changed(PAIR, labeler="a" * 201)), (2,), "`labeler`")
    yield Case("pairs-time", "x.jsonl", among(PAIR, changed(PAIR, time="yesterday")), (2,), "`time`")
    for value in ("yes", 1, None, 0.5, []):
        yield Case(f"unpaired-label-{value}", "x.jsonl", among(UNPAIRED, changed(UNPAIRED, label=value)), (2,), "true or false")
    yield Case("unpaired-empty", "x.jsonl", among(UNPAIRED, changed(UNPAIRED, completion="")), (2,), "is empty")
    yield Case("unpaired-no-completion", "x.jsonl", among(UNPAIRED, changed(UNPAIRED, completion=...)), (2,), "neither")


def table_cases() -> Iterator[Case]:
    for value in (3, -1, "tie", "x", 1.5, True, None, [1]):
        yield Case(f"best-{value}", "x.jsonl", among(BEST, changed(BEST, best=value)), (2,), "")
    yield Case("one-response", "x.jsonl", among(BEST, changed(BEST, responses=["a"], best=0)), (2,), "at least 2 are needed")
    yield Case("ten-responses", "x.jsonl", among(BEST, changed(BEST, responses=list("abcdefghij"))), (2,), "needs 2 to 9 responses")
    yield Case("empty-response", "x.jsonl", among(BEST, changed(BEST, responses=["a", ""])), (2,), "`responses[1]` is empty")
    yield Case("response-number", "x.jsonl", among(BEST, changed(BEST, responses=["a", 2])), (2,), "`responses[1]`: expected a text")
    yield Case("responses-text", "x.jsonl", among(BEST, changed(BEST, responses="abc")), (2,), "a list of texts")
    yield Case("kind", "x.jsonl", among(TABLE, changed(TABLE, kind="duel")), (2,), "`kind`: expected one of")
    yield Case("no-kind", "x.jsonl", among(TABLE, changed(TABLE, kind=...)), (2,), "`kind` is missing")
    answers: dict[str, Any] = {
        "short": [0, 1],
        "long": [0, 1, 2, 3],
        "gap": [0, 2, 2],
        "from-1": [1, 2, 3],
        "negative": [-1, 0, 1],
        "text": "first",
        "float": [0.0, 1, 2],
    }
    for name, answer in answers.items():
        yield Case(f"ranking-{name}", "x.jsonl", among(TABLE, changed(TABLE, answer=answer)), (2,), "answer")
    kinds: dict[str, tuple[str, list[str], Any]] = {
        "pair-2": ("pair", ["a", "b"], 2),
        "pair-draw": ("pair", ["a", "b"], "draw"),
        "pair-of-3": ("pair", ["a", "b", "c"], 0),
        "best-of-2-tie": ("best_of_k", ["a", "b"], "tie"),
        "rating-0": ("rating", ["a"], 0),
        "rating-10": ("rating", ["a"], 10),
        "rating-of-2": ("rating", ["a", "b"], 3),
        "difference-9": ("difference", ["a", "b"], 9),
        "soft-sum": ("soft", ["a", "b"], [0.5, 0.6]),
        "soft-negative": ("soft", ["a", "b"], [1.5, -0.5]),
        "soft-one": ("soft", ["a", "b"], [1.0]),
    }
    for name, (kind, responses, answer) in kinds.items():
        bad = changed(TABLE, kind=kind, responses=responses, answer=answer)
        yield Case(name, "x.jsonl", among(TABLE, bad), (2,), "")
    fields: dict[str, Any] = {
        "seconds": -1,
        "confidence": 1.5,
        "permutation": [0, 0, 1],
        "round": -1,
        "split": "dev",
        "time": "2026-13-01",
        "comment": "x" * 10_001,
        "question_id": "a\tb",
        "event_id": "x" * 201,
    }
    for name, value in fields.items():
        yield Case(f"table-{name}", "x.jsonl", among(TABLE, changed(TABLE, **{name: value})), (2,), name)
    asked = changed(TABLE, question_id="q1")
    yield Case("one-id-two-questions", "x.jsonl", lines(asked, changed(asked, prompt="Other", labeler="bob")), (2,), "another question")
    yield Case(
        "one-id-two-kinds", "x.jsonl", lines(asked, changed(asked, kind="soft", answer=[1, 0, 0], labeler="bob")), (2,), "another question"
    )
    one = changed(asked, event_id="e1")
    yield Case("one-event-id-two-answers", "x.jsonl", lines(one, changed(one, answer=[1, 0, 0])), (2,), "another event")
    yield Case("answered-twice", "x.jsonl", lines(changed(asked, event_id="e1"), changed(asked, event_id="e2")), (2,), "answered")


def csv_cases() -> Iterator[Case]:
    good = "Say hi,Hi!,No.,pair,1,ann"
    yield Case("csv-short-row", "x.csv", table(good, "Say,Hi!,No.", good), (3,), "3 cells")
    yield Case("csv-long-row", "x.csv", table(good, "Say hi,Hi, you!,No.,pair,1,ann"), (3,), "7 cells")
    yield Case("csv-behind-two-lines", "x.csv", table('"Say\nhi\n",Hi!,No.,pair,1,ann', "Say,Hi!"), (5,), "2 cells")
    yield Case("csv-open-quote", "x.csv", table(good, 'Say,"Hi!,No.,pair,1,ann', good), (3,), "does not end")
    yield Case("csv-rubbish-behind-a-quote", "x.csv", table(good, 'Say,"Hi"x,No.,pair,1,ann'), (3,), "not CSV")
    yield Case("csv-nul", "x.csv", table(good, "Sa\x00y,Hi!,No.,pair,1,ann"), (3,), "NUL")
    yield Case("csv-latin-1", "x.csv", table(good, "Grüße,Hi!,No.,pair,1,ann").decode().encode("latin-1"), (3,), "not UTF-8")
    yield Case("csv-utf-16", "x.csv", table(good).decode().encode("utf-16"), (1,), "UTF-16")
    yield Case("csv-column-twice", "x.csv", b"prompt,prompt,answer\na,b,c\n", (1,), "twice")
    yield Case("csv-column-without-name", "x.csv", b"prompt,,answer\na,b,c\n", (1,), "without a name")
    yield Case("csv-header-alone", "x.csv", table(), (None,), "no labels")
    yield Case("csv-no-responses", "x.csv", b"prompt,kind,answer\na,pair,1\n", (2,), "no responses")
    yield Case(
        "csv-gap-in-responses",
        "x.csv",
        b"prompt,response_1,response_2,response_3,kind,answer\na,b,,c,best_of_k,1\n",
        (2,),
        "`response_2` is empty",
    )
    for value in ("", "3", "0", "x", "1.5", "true", "NaN", "tied", "1e400"):
        yield Case(f"csv-answer-{value}", "x.csv", table(good, f"Say,Hi!,No.,pair,{value},ann"), (3,), "answer")
    yield Case("csv-ranking", "x.csv", table(good, "Say,Hi!,No.,ranking,1,ann"), (3,), "answer")
    yield Case("csv-ranking-gap", "x.csv", table(good, "Say,Hi!,No.,ranking,1 3,ann"), (3,), "gap")
    yield Case("csv-semicolons", "x.csv", table(good).replace(b",", b";"), (2,), "no known format")


def summaries_cases() -> Iterator[Case]:
    bad: dict[str, tuple[str, Any, str]] = {
        "no-info": ("info", ..., "`info` is missing"),
        "info-text": ("info", "x", "`info`"),
        "no-post": ("info/post", ..., "`info.post`"),
        "title-number": ("info/title", 3, "`info.title`"),
        "no-summaries": ("summaries", ..., "`summaries` is missing"),
        "one-summary": ("summaries", [{"text": "a"}], "`summaries`"),
        "summary-text": ("summaries/1", "a", "`summaries`"),
        "empty-summary": ("summaries/0/text", " ", "is empty"),
        "choice-2": ("choice", 2, "`choice`"),
        "choice-null": ("choice", None, "`choice`"),
        "choice-text": ("choice", "left", "`choice`"),
        "split": ("split", "dev", "`split`"),
        "confidence": ("extra/confidence", 10, "confidence"),
        "worker": ("worker", {"name": "x"}, "`worker`"),
    }
    for name, (path, value, says) in bad.items():
        yield Case(f"summaries-{name}", "x.jsonl", among(SUMMARIES, deep(SUMMARIES, path, value)), (2,), says)
    for name, change, says in (
        ("no-query", {"query": ...}, "`query` is missing"),
        ("gap", {"sample1": ..., "sample2": "x"}, "without a gap"),
        ("one", {"sample1": ...}, "without a gap"),
        ("best-2", {"best": 2}, "`best`"),
        ("empty", {"sample0": ""}, "`sample0` is empty"),
        ("ids", {"query": [1, 2]}, "no tokenizer"),
        ("pads", {"query": [50259]}, "`query` is empty"),
        ("negative", {"sample1": [-1]}, "token ids"),
        ("mixed", {"sample1": [1, "x"]}, "token ids"),
    ):
        yield Case(f"2019-{name}", "x.json", listed(numbered(OLD, 1), changed(OLD, **change)), (3,), says)


def tool_cases() -> Iterator[Case]:
    task: dict[str, tuple[str, Any, str]] = {
        "no-annotation": ("annotations", [], "no annotation"),
        "cancelled": ("annotations/0/was_cancelled", True, "cancelled"),
        "annotations-null": ("annotations", None, "`annotations`"),
        "data-list": ("data", [], "`data`"),
        "no-result": ("annotations/0/result", ..., "`result`"),
        "empty-result": ("annotations/0/result", [], "none of pairwise"),
        "rectangles": ("annotations/0/result/0/type", "rectanglelabels", "none of"),
        "value-text": ("annotations/0/result/0/value", "left", "`value`"),
        "selected": ("annotations/0/result/0/value/selected", "middle", "`selected`"),
        "no-answers": ("data", {"prompt": "hi"}, "no two responses"),
        "empty-answer": ("data/answer2", "", "is empty"),
        "no-prompt": ("data/prompt", ..., "no prompt"),
        "completed-by": ("annotations/0/completed_by", [1], "`completed_by`"),
        "lead-time": ("annotations/0/lead_time", -2, "`lead_time`"),
        "created-at": ("annotations/0/created_at", "soon", "`created_at`"),
    }
    for name, (path, value, says) in task.items():
        yield Case(f"label-studio-{name}", "x.json", listed(numbered(TASK, 1), deep(TASK, path, value)), (3,), says)
    pretty = json.dumps([numbered(TASK, 1), deep(TASK, "annotations", [])], indent=2)
    where = pretty[: pretty.rindex('"id": 7')].count("\n")  # the line of the brace before
    yield Case("label-studio-pretty", "x.json", pretty.encode(), (where,), "no annotation")
    choices = deep(TASK, "annotations/0/result/0", {"type": "choices", "value": {"choices": ["Answer 3"]}})
    yield Case("label-studio-choice", "x.json", listed(numbered(TASK, 1), choices), (3,), "names none")
    several = deep(choices, "annotations/0/result/0/value/choices", ["Answer 1", "Answer 2"])
    yield Case("label-studio-choices", "x.json", listed(numbered(TASK, 1), several), (3,), "expected one choice")
    for name, ranker, says in (
        ("missing", {"rank": ["a", "b"]}, "leaves out"),
        ("strange", {"rank": ["a", "b", "x"]}, "none of"),
        ("twice", {"rank": ["a", "a", "b", "c"]}, "twice"),
        ("buckets", {"good": ["a"], "bad": ["b", "c"]}, "buckets"),
        ("list", ["a", "b", "c"], "`ranker`"),
    ):
        bad = deep(RANKED, "annotations/0/result/0/value/ranker", ranker)
        yield Case(f"label-studio-ranking-{name}", "x.json", listed(numbered(RANKED, 1), bad), (3,), says)
    yield Case("label-studio-no-list", "x.json", listed(numbered(RANKED, 1), deep(RANKED, "data/items", [])), (3,), "list of items")
    record: dict[str, tuple[dict[str, Any], str, Any, str]] = {
        "none": (RECORD, "responses", {}, "no submitted response"),
        "fields-list": (RECORD, "fields", [], "`fields`"),
        "responses-list": (RECORD, "responses", [], "`responses`"),
        "no-value": (RECORD, "responses/preference/0", {"user_id": "u"}, "`responses.preference`"),
        "strange-choice": (RECORD, "responses/preference/0/value", "response7", "no question compares"),
        "no-prompt": (RECORD, "fields/prompt", ..., "no prompt"),
        "empty-response": (RECORD, "fields/response2", " ", "is empty"),
        "two-questions": (RECORD, "responses/other", [{"value": "response2", "user_id": "u"}], "more than one question"),
        "ranking-missing": (RANKING, "responses/ranking/0/value", [{"value": "response1", "rank": 1}], "leaves out"),
        "ranking-no-rank": (RANKING, "responses/ranking/0/value/0", {"value": "response1"}, "`value` and `rank`"),
    }
    for name, (row, path, value, says) in record.items():
        yield Case(f"argilla-{name}", "x.jsonl", among(RECORD, deep(row, path, value)), (2,), says)
    flat = {
        "id": "r",
        "prompt": "hi",
        "response1": "a",
        "response2": "b",
        "p.responses": ["response1"],
        "p.responses.users": ["u", "v"],
        "p.responses.status": ["submitted"],
    }
    yield Case("argilla-flat-lengths", "x.jsonl", lines(flat), (1,), "different lengths")
    draft = changed(flat, **{"p.responses.users": ["u"], "p.responses.status": ["draft"]})
    yield Case("argilla-flat-draft", "x.jsonl", lines(draft), (1,), "no submitted response")


def exact_rows() -> list[dict[str, Any]]:
    """A small store in our own format: line 1 head, 2 instructions, 3 and 4 questions, 5 to 8 events, 9 end."""
    store = Store.in_memory(clock=lambda: 1_000_000.0)
    store.add_instructions("Choose the kinder one.")
    responses = (Response("Hi!"), Response("No."))
    store.add_questions([Question(f"q{n}", Prompt(f"p{n}", f"Say hi {n}"), responses, "pair") for n in (1, 2)])
    store.record("ann", "q1", 0, "e1", seconds=2.0)
    store.undo("ann", "e2")
    store.record("ann", "q1", 1, "e3")
    store.skip("ann", "q2", "e4", "unsure")
    out = BytesIO()
    write_exact(out, store, Part())
    return [json.loads(line) for line in out.getvalue().splitlines()]


def exact_cases() -> Iterator[Case]:
    rows = exact_rows()
    bad: dict[str, tuple[int, str, Any, str]] = {
        "format": (1, "format", "humanward-labels-9", "expected"),
        "unknown-line": (3, "question", ..., "expected instructions, question"),
        "instructions": (2, "instructions/text", "Choose.", "changed"),
        "question-prompt": (3, "question/prompt", 5, "prompt"),
        "question-kind": (3, "question/kind", "duel", "kind"),
        "question-k": (3, "question/responses/0", ..., ""),
        "gold": (3, "gold", 7, "gold"),
        "repeat": (3, "repeat_of", "q2", "belong together"),
        "strange-key": (3, "silver", 1, "unknown key"),
        "kind": (5, "event/kind", "guess", "kind"),
        "labeler": (5, "event/labeler", "", "labeler"),
        "client": (5, "event/client_event_id", "a\nb", "client_event_id"),
        "time": (5, "event/time", "2026", "time"),
        "no-question": (5, "event/question_id", "q9", "not the id of a question"),
        "answer": (5, "event/body/answer", 2, "answer"),
        "answer-kind": (5, "event/body/kind", "ranking", "kind"),
        "permutation": (5, "event/body/permutation", [0], "permutation"),
        "seconds": (5, "event/body/seconds", -1, "seconds"),
        "digest": (5, "event/body/question", "0" * 64, "another text"),
        "body-key": (5, "event/body/mood", 1, "unknown key"),
        "body": (5, "event/body", [], "body"),
        "undoes": (6, "event/undoes", None, "undoes"),
        "undoes-nothing": (6, "event/undoes", "e9", "undoes"),
        "label-undoes": (5, "event/undoes", "e2", "undoes"),
        "end": (9, "end/events", 9, "lines are missing"),
        "event-list": (5, "event", [1], "event"),
    }
    for name, (line, path, value, says) in bad.items():
        # a label that is gone makes its undo wrong too: that fault is not asked for
        yield Case(f"exact-{name}", "x.jsonl", lines(*rows[: line - 1], deep(rows[line - 1], path, value), *rows[line:]), (line,), says)
    yield Case("exact-cut", "x.jsonl", lines(*rows[:-1]), (9,), "cut off")
    yield Case("exact-line-lost", "x.jsonl", lines(*rows[:7], *rows[8:]), (8,), "lines are missing")
    yield Case("exact-question-lost", "x.jsonl", lines(*rows[:3], *rows[4:]), (7,), "not the id")
    yield Case("exact-twice", "x.jsonl", lines(*rows, *rows[:1]), (10,), "behind")
    yield Case(
        "exact-answered-again",
        "x.jsonl",
        lines(
            *rows[:6], rows[4] | {"event": rows[4]["event"] | {"client_event_id": "e9"}}, *rows[6:8], {"end": {"questions": 2, "events": 5}}
        ),
        (8,),
        "answered",
    )
    yield Case("exact-with-round", "x.jsonl", lines(*rows), (None,), "--round", (("round", 3),))


CASES = [
    *jsonl_cases(),
    *file_cases(),
    *list_cases(),
    *pairs_cases(),
    *table_cases(),
    *csv_cases(),
    *summaries_cases(),
    *tool_cases(),
    *exact_cases(),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_has_its_line_and_nothing_is_imported(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    else:
        case.content(path)
    with pytest.raises(UserError) as raised:  # the command itself costs 80 ms, most of it typer's
        import_labels(tmp_path / "run", path, **dict(case.options))
    told = str(raised.value).splitlines()
    found = [re.match(re.escape(f"{path}:") + r"(\d+):", line) for line in told]
    assert [int(match[1]) if match else None for match in found] == list(case.lines), told
    assert case.says in told[0]
    assert all(len(line) < 400 for line in told)
    database = tmp_path / "run" / "labels.db"
    if database.exists():
        store = Store(database)
        assert (store.labels(), store.questions(), store.verify()) == ([], [], [])
        store.close()


def test_the_command_says_so_and_leaves_with_2(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines("{", PAIR, "[]"))
    done = run("import", tmp_path / "run", path)
    assert (done.code, done.out) == (2, "")
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == ["error", "error"]
    assert not (tmp_path / "run").exists()


def test_there_are_enough_cases() -> None:
    names = [case.name for case in CASES]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert len(names) >= 200


def test_a_long_line_is_refused_and_the_next_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module.Limits, "line", 1000)
    file = InputFile(tmp_path / "x.jsonl", limits=Limits(line=1000))
    file.path.write_bytes(lines(PAIR, changed(PAIR, chosen="x" * 5_000_000), PAIR, "{", changed(PAIR, chosen="x" * 2000)))
    assert [where.rpartition(":")[2] for where, _ in file.objects()] == ["1", "3"]
    with pytest.raises(UserError) as told:
        file.faults.check()
    assert [line.split(":")[1] for line in str(told.value).splitlines()] == ["2", "4", "5"]


def test_a_line_of_50_mb_is_refused(tmp_path: Path) -> None:
    case = Case("", "x.jsonl", among(PAIR, changed(PAIR, chosen="x" * 50_000_000)), (2,), "longer than 16 MiB")
    test_a_fault_has_its_line_and_nothing_is_imported(case, tmp_path)


def test_a_row_of_50_mb_in_a_list_is_refused(tmp_path: Path) -> None:
    case = Case("", "x.json", listed(OLD, changed(OLD, sample0="x" * 50_000_000)), (3,), "")
    test_a_fault_has_its_line_and_nothing_is_imported(case, tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """160 MiB of blank lines in 160 KiB."""
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(lines(PAIR))
        for _ in range(160):
            file.write((b" " * 1023 + b"\n") * 1024)
    done = run("import", tmp_path / "run", path)
    assert done.code == 2
    assert re.fullmatch(rf"error: {path}:\d+: becomes more than 200 times larger when unpacked; .*\n", done.err)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(*(numbered(PAIR, k) for k in range(20_000))))
    rows = InputFile(path).objects()
    next(rows)
    with path.open("ab") as file:
        file.write(lines(PAIR))
    with pytest.raises(UserError, match="changed while it was being read"):
        list(rows)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(PAIR))
    path.chmod(0)
    done = run("import", tmp_path / "run", path)
    assert (done.code, done.err) == (2, f"error: {path}: cannot read: Permission denied\n")
