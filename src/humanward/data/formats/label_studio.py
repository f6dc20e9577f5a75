"""Label Studio's JSON export: tasks with ``data`` and ``annotations``, whose results are of type pairwise, ranker or choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from humanward.data.formats.outside import chosen, numbered, prompt_column, ranks, response_columns
from humanward.data.formats.rows import Labeled, Row, asked, said, short, written
from humanward.errors import UserError
from humanward.records import Label, Question, content_id
from humanward.records.answers import TIE, is_whole

COLUMNS = ("data", "annotations")
TYPES = ("pairwise", "ranker", "choices")
ITEM_TEXTS = ("body", "text", "html", "content", "title")
_PSEUDONYM = "label-studio-"


def read(row: Row) -> Labeled:
    """The question of a task, with a label for each annotation that was not cancelled."""
    data, annotations = row.take("data"), row.take("annotations")
    if not isinstance(data, Mapping):
        raise row.fault("data", "an object", data)
    if not isinstance(annotations, list) or not all(isinstance(one, Mapping) for one in annotations):
        raise row.fault("annotations", "a list of annotations", annotations)
    kept = [one for one in annotations if not one.get("was_cancelled")]
    if not kept:
        why = "all its annotations were cancelled" if annotations else "it has no annotation"
        raise UserError(f"{row.where}: task {short(row.values.get('id'))}: {why}; export finished tasks only")
    found = [_label(row, data, one, f"{row.where}: `annotations[{number}]`") for number, one in enumerate(annotations) if one in kept]
    columns, responses, kinds = found[0][0], found[0][1], {label.kind for *_, label in found}
    if len(kinds) > 1:
        raise UserError(f"{row.where}: annotations of different kinds ({', '.join(sorted(kinds))}) of one task; export them one by one")
    name = prompt_column(data, row.where, columns)
    prompt = written(data[name], f"{row.where}: `data.{name}`")
    return Labeled(row.where, asked(prompt, responses, kinds.pop()), tuple(label for *_, label in found))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """A task with its annotation, to be imported there; 1 beside them where the label is no choice and orders nothing without ties.

    The tasks want a labeling configuration with a Pairwise or Choices called ``choice`` for ``answer1``, ``answer2``, …, or with a Ranker
    called ``rank`` of the List ``answers``.
    """
    answers = numbered("answer", question)
    names = list(answers)
    data: dict[str, Any] = answers
    if label.kind == "ranking" and len(set(label.answer)) == len(names):
        data = {"answers": [{"id": name, "body": text} for name, text in answers.items()]}
        order = [name for _, name in sorted(zip(label.answer, names, strict=True))]
        result = _result("ranker", "rank", "answers", ranker={"rank": order})
    elif label.kind in ("pair", "best_of_k") and (label.answer == TIE or len(names) > 2):
        result = _result("choices", "choice", "prompt", choices=["tie" if label.answer == TIE else names[label.answer]])
    elif label.kind in ("pair", "best_of_k"):
        result = _result("pairwise", "choice", ",".join(names), selected=("left", "right")[label.answer])
    else:
        return [], 1
    annotation: dict[str, Any] = {"result": [result]}
    who = label.labeler.removeprefix(_PSEUDONYM)
    if who != label.labeler and who.isdigit():
        annotation["completed_by"] = int(who)
    if label.seconds is not None:
        annotation["lead_time"] = label.seconds
    return [{"data": {"prompt": question.prompt.text, **data}, "annotations": [annotation]}], 0


def _result(type: str, name: str, of: str, **value: Any) -> dict[str, Any]:
    return {"type": type, "from_name": name, "to_name": of, "value": value}


def _label(row: Row, data: Mapping[str, Any], annotation: Mapping[str, Any], where: str) -> tuple[list[str], list[str], Label]:
    """(columns of the responses, their texts, the label)."""
    results = annotation.get("result")
    if not isinstance(results, list) or not all(isinstance(one, Mapping) for one in results):
        raise UserError(f"{where}: `result`: expected a list, found {short(results)}")
    telling = [one for one in results if one.get("type") in TYPES]
    if len(telling) != 1:
        types = ", ".join(sorted({str(one.get("type")) for one in results})) or "nothing"
        many = "more than one of" if telling else "none of"
        raise UserError(f"{where}: {many} {', '.join(TYPES)} in its result, found {types}")
    result = telling[0]
    value = result.get("value")
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: `value`: expected an object, found {short(value)}")
    columns, responses, kind, answer = (_ranked if result["type"] == "ranker" else _chosen)(data, result, value, where)
    comment = "\n".join(str(line) for one in results if one.get("type") == "textarea" for line in _texts(one))
    seconds = annotation.get("lead_time")
    about = Row(where, annotation)
    label = said(
        kind, answer, labeler=_labeler(annotation.get("completed_by"), where), comment=comment, time=about.time("created_at"),
        seconds=None if seconds is None else about.number("lead_time"), id=_event(annotation),
    )  # fmt: skip
    return columns, responses, label


def _chosen(
    data: Mapping[str, Any], result: Mapping[str, Any], value: Mapping[str, Any], where: str
) -> tuple[list[str], list[str], str, Any]:
    named = [part.strip() for part in str(result.get("to_name", "")).split(",")]
    columns = named if len(named) > 1 and all(name in data for name in named) else response_columns(data)
    if len(columns) < 2:
        raise UserError(f"{where}: no two responses in `data`; expected columns such as `answer1` and `answer2`")
    responses = [written(data[name], f"{where}: `data.{name}`") for name in columns]
    if result["type"] == "pairwise":
        if len(columns) != 2:
            raise UserError(f"{where}: pairwise, but `data` has {len(columns)} responses")
        side = value.get("selected")
        if side not in ("left", "right"):
            raise UserError(f"{where}: `selected`: expected left or right, found {short(side)}")
        return columns, responses, "pair", int(side == "right")
    words = value.get("choices")
    if not isinstance(words, list) or len(words) != 1:
        raise UserError(f"{where}: `choices`: expected one choice, found {short(words)}")
    answer = chosen(words[0], columns, where)
    if answer == "tie" and len(columns) > 2:
        raise UserError(f"{where}: a tie among {len(columns)} responses; only pairs can be tied")
    return columns, responses, "pair" if len(columns) == 2 else "best_of_k", answer


def _ranked(
    data: Mapping[str, Any], result: Mapping[str, Any], value: Mapping[str, Any], where: str
) -> tuple[list[str], list[str], str, Any]:
    lists = [name for name, items in data.items() if isinstance(items, list) and items and all(_is_item(item) for item in items)]
    if len(lists) != 1:
        raise UserError(f"{where}: expected one list of items with `id` in `data`, found {len(lists)}")
    items = data[lists[0]]
    names = [str(item["id"]) for item in items]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: `data.{lists[0]}`: two items have one id")
    responses = []
    for item in items:
        text = next((item[key] for key in ITEM_TEXTS if item.get(key)), None)
        responses.append(written(text, f"{where}: the text of item {short(item['id'])}"))
    buckets = value.get("ranker")
    if not isinstance(buckets, Mapping) or not all(isinstance(bucket, list) for bucket in buckets.values()):
        raise UserError(f"{where}: `ranker`: expected an object of lists, found {short(buckets)}")
    filled = [bucket for bucket in buckets.values() if bucket]
    if len(filled) != 1:
        raise UserError(f"{where}: items in {len(filled)} buckets: buckets are groups, not an order; only rankings are read")
    return [lists[0]], responses, "ranking", ranks([[name] for name in filled[0]], names, where)


def _is_item(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("id") is not None


def _texts(result: Mapping[str, Any]) -> list[Any]:
    value = result.get("value")
    text = value.get("text") if isinstance(value, Mapping) else None
    return text if isinstance(text, list) else [] if text is None else [text]


def _labeler(who: Any, where: str) -> str:
    """A pseudonym; never the e-mail address that some exports have."""
    if isinstance(who, Mapping):
        who = who.get("id", who.get("email"))
    if who is None:
        return ""
    if is_whole(who):
        return f"{_PSEUDONYM}{who}"
    if isinstance(who, str) and who:
        return f"{_PSEUDONYM}{content_id('labeler', who)}"
    raise UserError(f"{where}: `completed_by`: expected a user, found {short(who)}")


def _event(annotation: Mapping[str, Any]) -> str:
    name = annotation.get("unique_id") or annotation.get("id")
    return f"{_PSEUDONYM}{name}" if isinstance(name, str | int) and not isinstance(name, bool) else ""
