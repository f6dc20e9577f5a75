"""Labels of any kind as a table, a row per label: for spreadsheets (CSV) and data frames (Parquet). Exact but for tokens and metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from humanward.data.formats import conversation
from humanward.data.formats.ranking import dense_ranks
from humanward.data.formats.rows import Labeled, Row, asked, clipped, numeric, safety, said, short, written
from humanward.errors import UserError
from humanward.records import Label, Question, answers
from humanward.records.answers import is_number, is_whole

COLUMNS = ("prompt", "answer")
WRITTEN = {
    "time": "text", "labeler": "text", "round": "whole", "split": "text", "kind": "text", "prompt": "talk", "responses": "texts",
    "answer": "text", "seconds": "number", "confidence": "number", "comment": "text", "adjudication": "flag", "instructions": "text",
    "permutation": "wholes", "propensity": "number", "question_id": "text", "event_id": "text", "safe": "flags",
    "weight": "number",
}  # fmt: skip
MAX_RESPONSES = 9
"""Of a CSV file."""
LIST_KINDS = ("ranking", "soft", "scores")
Parse = Callable[[Any, int], Any]
KINDS: dict[str, tuple[int, int, Parse]] = {
    "best_of_k": (2, 0, answers.best_of_k_answer), "pair": (2, 2, answers.pair_answer), "ranking": (2, 0, partial(dense_ranks, first=0)),
    "soft": (2, 0, answers.soft_answer), "scores": (2, 0, answers.scores_answer), "difference": (2, 2, answers.number_answer),
    "rating": (1, 1, answers.number_answer), "binary": (1, 1, answers.binary_answer),
}  # fmt: skip
"""kind -> (least and most responses, 0 for any number; what an answer is)."""


def read(row: Row) -> Labeled:
    """One question and one label of any kind."""
    responses = _responses(row)
    if not responses:
        raise UserError(f"{row.where}: no responses: expected `responses`, a list of texts, or `response_1`, `response_2`, …")
    kind = row.text("kind")
    if not kind:
        raise UserError(f"{row.where}: `kind` is missing: say what kind of label `answer` is")
    if kind not in KINDS:
        raise UserError(f"{row.where}: `kind`: expected one of {', '.join(KINDS)}, found {short(kind)}")
    least, most, parse = KINDS[kind]
    if len(responses) < least or (most and len(responses) > most):
        needed = f"at least {least}" if not most else str(least)
        raise UserError(f"{row.where}: `responses`: {kind} needs {needed} responses, found {len(responses)}")
    given = _answer(row, kind)
    try:
        answer = parse(given, len(responses))
    except UserError as error:
        raise UserError(f"{row.where}: `answer`: {clipped(str(error))}") from None
    number = row.whole("round", 0, 1 << 30) if row.has("round") else 0
    prompt, metadata = conversation.read_prompt(row)
    question = asked(
        prompt, responses, kind, id=row.name("question_id"), round=number, split=row.split(),
        metadata=metadata | row.safe(len(responses)),
    )  # fmt: skip
    question = replace(question, propensity=_propensity(row))
    label = said(
        kind, answer, id=row.name("event_id"), labeler=row.name("labeler"), permutation=_permutation(row, len(responses)),
        seconds=row.number("seconds"), confidence=row.number("confidence", 0, 1), comment=row.text("comment"), time=row.time("time"),
        instructions=row.text("instructions"), adjudication=str(row.values.get("adjudication") or "").lower() == "true",
        weight=row.weight(),
    )  # fmt: skip
    return Labeled(row.where, question, (label,))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """One row, lists as lists."""
    lists = {
        "responses": [response.text for response in question.responses], "answer": json.dumps(label.answer),
        "permutation": list(label.permutation),
    }  # fmt: skip
    return [_plain(question, label) | lists], 0


def write_cells(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """One row for CSV: a column per response; responses are counted from 1, as the columns are."""
    row = _plain(question, label)
    for number, response in enumerate(question.responses, start=1):
        row[f"response_{number}"] = response.text
    row["answer"] = _spelled(label.kind, label.answer)
    row["permutation"] = " ".join([str(index + 1) for index in label.permutation])
    return [row], 0


def _plain(question: Question, label: Label) -> dict[str, Any]:
    """What is no list."""
    return {
        "time": label.time, "labeler": label.labeler, "round": question.round, "split": question.split, "kind": label.kind,
        "prompt": conversation.written_prompt(question.prompt), "seconds": label.seconds, "confidence": label.confidence,
        "comment": label.comment, "adjudication": label.adjudication, "instructions": label.instructions, "propensity": question.propensity,
        "question_id": question.id, "event_id": label.id, **safety(question, range(len(question.responses))),
        **({} if label.weight == 1 else {"weight": label.weight}),
    }  # fmt: skip


def header(most: int) -> list[str]:
    """The columns of a CSV file for questions of at most ``most`` responses."""
    responses = [f"response_{number}" for number in range(1, most + 1)]
    before = ["time", "labeler", "round", "split", "kind", "prompt"]
    behind = ["answer", "seconds", "confidence", "comment", "adjudication", "instructions", "permutation", "propensity"]
    return [*before, *responses, *behind, "question_id", "event_id"]


def _spelled(kind: str, answer: Any) -> Any:
    if isinstance(answer, list):
        return " ".join(str(value + 1 if kind == "ranking" else value) for value in answer)
    if isinstance(answer, bool):
        return str(answer).lower()
    return answer + 1 if kind in ("best_of_k", "pair") and answer != "tie" else answer


def _responses(row: Row) -> list[str]:
    given = row.values.get("responses")
    if given is not None:
        if not isinstance(given, list):
            raise row.fault("responses", "a list of texts", given)
        return [written(text, f"{row.where}: `responses[{k}]`") for k, text in enumerate(given)]
    names = [f"response_{number}" for number in range(1, MAX_RESPONSES + 1)]
    filled = [name for name in names if row.has(name)]
    count = names.index(filled[-1]) + 1 if filled else 0
    return [row.filled(name) for name in names[:count]]


def _answer(row: Row, kind: str) -> Any:
    value = row.take("answer")
    if "responses" in row.values:  # JSON or Parquet: the answer as it is stored
        return _parsed(row, value) if isinstance(value, str) and value != "tie" else value
    if not isinstance(value, str) or not value.strip():
        raise row.fault("answer", "an answer", value)
    if kind in LIST_KINDS:
        numbers = [numeric(word) for word in value.split()]
        if not all(is_whole(n) if kind == "ranking" else is_number(n) for n in numbers):
            raise row.fault("answer", "a rank from 1 for each response" if kind == "ranking" else "a number for each response", value)
        return [n - 1 for n in numbers] if kind == "ranking" else numbers
    number = numeric(value)
    return number - 1 if kind in ("best_of_k", "pair") and is_whole(number) else number


def _parsed(row: Row, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda word: word)
    except ValueError:
        raise row.fault("answer", "an answer as JSON", text) from None
    except RecursionError:
        raise row.fault("answer", "an answer as JSON", "nested too deep") from None


def _propensity(row: Row) -> float:
    value = row.number("propensity", 0, 1)
    if value == 0:
        raise row.fault("propensity", "a probability above 0", value)
    return 1.0 if value is None else float(value)


def _permutation(row: Row, count: int) -> tuple[int, ...]:
    value = row.values.get("permutation")
    if value in (None, "", []):
        return ()
    order = [number - 1 if is_whole(number) else number for number in map(numeric, value.split())] if isinstance(value, str) else value
    if not isinstance(order, list) or not all(map(is_whole, order)) or sorted(order) != list(range(count)):
        raise UserError(f"{row.where}: `permutation`: expected each of the {count} responses once, found {short(value)}")
    return tuple(order)
