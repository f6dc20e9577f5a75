"""The comparisons of summarize-from-feedback: ``info``, two ``summaries``, ``choice``, ``worker``, ``batch``, ``extra.confidence``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from humanward.data.formats import views
from humanward.data.formats.rows import Labeled, Row, asked, marked, said, short, written
from humanward.errors import UserError
from humanward.records import Label, Question
from humanward.records.answers import is_whole

COLUMNS = ("info", "summaries", "choice")
SPLITS = {"train": "train", "valid1": "validation", "valid2": "validation"}
MIDDLE = 5
"""The scale of confidence: 1 the first is surely better, 9 the second, 5 undecided (Stiennon et al. 2020, the labelling page)."""


def read(row: Row) -> Labeled:
    """A question of kind ``pair``; the info, and the batch that it was labelled in, are kept as the prompt's metadata."""
    info, summaries = row.take("info"), row.take("summaries")
    if not isinstance(info, Mapping):
        raise row.fault("info", "an object with `post` or `article`", info)
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(summary, Mapping) for summary in summaries):
        raise row.fault("summaries", "a list of two objects with `text`", summaries)
    texts = [written(summary.get("text"), f"{row.where}: `summaries[{k}].text`") for k, summary in enumerate(summaries)]
    choice = row.whole("choice", 0, 1)
    split = row.text("split") or "train"
    if split not in SPLITS:
        raise row.fault("split", ", ".join(SPLITS), split)
    policies = [str(summary.get("policy") or "") for summary in summaries]
    known = {str(key): value for key, value in info.items() if value is not None}
    if row.has("batch"):
        known["batch"] = row.name("batch")
    question = asked(_prompt(row, info), texts, "pair", split=SPLITS[split], sources=policies, metadata=known)  # type: ignore[arg-type]
    notes = [str(summary["note"]) for summary in summaries if summary.get("note")]
    marks = {"labeler": row.name("worker"), **marked(row)}
    return Labeled(row.where, question, (said("pair", choice, confidence=_confidence(row), comment="\n".join(notes), **marks),))


def write(question: Question, label: Label) -> tuple[list[dict[str, Any]], int]:
    """Labels about two responses; 1 beside them for a tie or another number of responses."""
    choice = views.best(label.kind, label.answer, 2) if len(question.responses) == 2 else None
    if choice is None:
        return [], 1
    info = dict(question.prompt.metadata)
    batch = info.pop("batch", f"round{question.round}")
    if not _says(info, question.prompt.text):
        info = {"id": question.prompt.id, "post": question.prompt.text}
    summaries = [
        {"text": response.text, "policy": response.policy or _source(response.source), "note": None} for response in question.responses
    ]
    sure = None if label.confidence is None else MIDDLE + (1 if choice else -1) * max(1, round(4 * label.confidence))
    return [
        {
            "info": info, "summaries": summaries, "choice": choice, "worker": label.labeler, "batch": batch,
            "split": "train" if question.split == "train" else "valid1", "extra": {"confidence": sure},
        }
    ], 0  # fmt: skip


def _prompt(row: Row, info: Mapping[str, Any]) -> str:
    """The text that the summaries were written for: the 2020 templates where the info is whole, else the post or the article alone."""
    if info.get("article") is not None:
        return written(info["article"], f"{row.where}: `info.article`") + "\n\nTL;DR:"
    post = written(info.get("post"), f"{row.where}: `info.post`")
    title, place = info.get("title"), info.get("subreddit")
    if title is None or place is None:
        return post
    for name in ("title", "subreddit"):
        written(info[name], f"{row.where}: `info.{name}`")
    return f"SUBREDDIT: r/{place}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _source(source: str) -> str:
    return "" if source == "file" else source


def _says(info: Mapping[str, Any], text: str) -> bool:
    """Whether an info, read again, gives this prompt."""
    try:
        return _prompt(Row("", {}), info) == text
    except UserError:
        return False


def _confidence(row: Row) -> float | None:
    extra = row.values.get("extra") or {}
    value = extra.get("confidence") if isinstance(extra, Mapping) else extra
    if value is None:
        return None
    if not is_whole(value) or not 1 <= value <= 9:
        raise UserError(f"{row.where}: `extra.confidence`: expected a whole number from 1 to 9, found {short(value)}")
    return abs(value - MIDDLE) / (MIDDLE - 1)
