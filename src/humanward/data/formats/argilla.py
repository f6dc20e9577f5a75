"""Argilla 2 exports: records with ``fields`` and ``responses``, nested (to_json, to_dict) or flat (to_datasets: ``name.responses``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from humanward.data.formats.outside import chosen, numbered, prompt_column, ranks, response_columns
from humanward.data.formats.rows import Labeled, Row, asked, said, short, written
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import TIE

COLUMNS = ("fields", "responses")
_OWN = ("id", "status", "_server_id", "inserted_at", "updated_at")


def is_flat(names: Any) -> bool:
    """Whether these are the columns of a flat export."""
    return any(str(name).endswith(".responses") for name in names)


def read(row: Row) -> Labeled:
    """The question of a record, with a label for each submitted answer to its one ranking or choice."""
    fields, answers = _parts(row)
    submitted = {name: [one for one in given if one.get("status") in (None, "submitted")] for name, given in answers.items()}
    submitted = {name: given for name, given in submitted.items() if given}
    if not submitted:
        raise UserError(f"{row.where}: no submitted response in this record; export completed records only")
    columns = response_columns(fields)
    found: list[tuple[str, str, Any, Mapping[str, Any]]] = []
    for name, given in submitted.items():
        for one in given:
            read_answer = _answer(one.get("value"), columns, list(fields), f"{row.where}: `{name}`")
            if read_answer is not None:
                found.append((name, *read_answer, one))
    questions = {name for name, *_ in found}
    if len(questions) != 1:
        many = "more than one question compares" if questions else "no question compares"
        raise UserError(f"{row.where}: {many} the responses; found {', '.join(f'`{name}`' for name in submitted)}")
    if len({kind for _, kind, *_ in found}) > 1:
        raise UserError(f"{row.where}: rankings and choices in one question")
    ranked = found[0][1] == "ranking"
    names = _ranked_names(found[0][3]["value"], list(fields), row.where) if ranked else columns
    prompt = prompt_column(fields, row.where, names)
    responses = [written(fields[name], f"{row.where}: `{name}`") for name in names]
    comments = {str(one.get("user_id")): str(one["value"]) for name, given in submitted.items() if name not in questions for one in given}
    kind = "ranking" if ranked else "pair" if len(names) == 2 else "best_of_k"
    labels = tuple(_label(kind, value, names, one, comments, f"{row.where}: `{name}`") for name, _, value, one in found)
    return Labeled(row.where, asked(written(fields[prompt], f"{row.where}: `{prompt}`"), responses, kind), labels)


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A nested record with one response; 1 beside it where the label is no choice and no ranking.

    A choice answers the question ``best``, a ranking the question ``ranking``; both name the fields ``response1``, ``response2``, …
    ``user_id`` is there where the labeler's name is an id as Argilla has them.
    """
    fields = numbered("response", question)
    names = list(fields)
    if label.kind == "ranking":
        name, value = "ranking", [{"value": field, "rank": rank + 1} for field, rank in zip(names, label.answer, strict=True)]
    elif label.kind in ("pair", "best_of_k"):
        name, value = "best", "tie" if label.answer == TIE else names[label.answer]
    else:
        return [], 1
    answer = {"value": value, **({"user_id": label.labeler} if _is_uuid(label.labeler) else {}), "status": "submitted"}
    return [{"fields": {"prompt": question.prompt.text, **fields}, "responses": {name: [answer]}}], 0


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _label(kind: str, value: Any, names: list[str], one: Mapping[str, Any], comments: Mapping[str, str], where: str) -> Label:
    if kind == "ranking":
        value = ranks(value, names, where)
    elif value == "tie" and kind != "pair":
        raise UserError(f"{where}: a tie among {len(names)} responses; only pairs can be tied")
    user = one.get("user_id")
    named = isinstance(user, str) and user not in ("", "None")
    return said(kind, value, labeler=user if named else "", comment=comments.get(str(user), ""))


def _parts(row: Row) -> tuple[dict[str, Any], dict[str, list[Mapping[str, Any]]]]:
    """(fields, answers of each question) of a nested or a flat record."""
    if not is_flat(row.values):
        fields, answers = row.take("fields"), row.take("responses")
        if not isinstance(fields, Mapping):
            raise row.fault("fields", "an object", fields)
        if not isinstance(answers, Mapping):
            raise row.fault("responses", "an object with a list for each question", answers)
        for name, given in answers.items():
            if not isinstance(given, list) or not all(isinstance(one, Mapping) and "value" in one for one in given):
                raise row.fault(f"responses.{name}", "a list of objects with `value` and `user_id`", given)
        return dict(fields), {str(name): list(given) for name, given in answers.items()}
    names = [name.removesuffix(".responses") for name in row.values if name.endswith(".responses")]
    answers = {}
    for name in names:
        columns = [row.values.get(f"{name}.responses{part}") for part in ("", ".users", ".status")]
        lists = [column if isinstance(column, list) else [] for column in columns]
        if columns[0] is not None and not isinstance(columns[0], list):
            raise row.fault(f"{name}.responses", "a list", columns[0])
        if any(column and len(column) != len(lists[0]) for column in lists[1:]):
            raise UserError(f"{row.where}: `{name}.responses` and its `.users` or `.status` have different lengths")
        users, states = (column or [None] * len(lists[0]) for column in lists[1:])
        answers[name] = [{"value": v, "user_id": u, "status": s} for v, u, s in zip(lists[0], users, states, strict=True)]
    own = {*_OWN, *(name for name in row.values if ".responses" in name or ".suggestion" in name)}
    return {name: value for name, value in row.values.items() if name not in own and isinstance(value, str)}, answers


def _answer(value: Any, columns: list[str], fields: list[str], where: str) -> tuple[str, Any] | None:
    """(kind, answer) of a value that compares responses: groups of names from best to worst, or a choice; None for any other value."""
    if isinstance(value, list):
        return ("ranking", _groups(value, where)) if value and _names(value)[0] in fields else None
    if not isinstance(value, str) or len(columns) < 2:
        return None
    try:
        return "choice", chosen(value, columns, where)
    except UserError:
        return None


def _groups(value: list[Any], where: str) -> list[list[str]]:
    """``["a", "b"]`` or ``[{"value": "a", "rank": 1}, …]`` as groups of equal rank."""
    if all(isinstance(item, str) for item in value):
        return [[item] for item in value]
    by_rank: dict[int, list[str]] = {}
    for item in value:
        rank = item.get("rank") if isinstance(item, Mapping) else None
        if not isinstance(rank, int) or isinstance(rank, bool) or "value" not in item:
            raise UserError(f"{where}: expected `value` and `rank` for each response, found {short(item)}")
        by_rank.setdefault(rank, []).append(str(item["value"]))
    return [by_rank[rank] for rank in sorted(by_rank)]


def _names(value: list[Any]) -> list[str]:
    return [str(item.get("value")) if isinstance(item, Mapping) else str(item) for item in value]


def _ranked_names(value: list[Any], fields: list[str], where: str) -> list[str]:
    """The ranked fields, in the order in which the record has them."""
    names = _names(value)
    kept = [name for name in fields if name in names or name in response_columns(fields)]
    return kept if len(kept) >= 2 else names
