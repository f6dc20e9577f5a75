"""Labels that somebody gave before: best-of-K choices in a file, as questions and labels."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from humanward.data.sources import Text
from humanward.data.task import Task
from humanward.errors import UserError
from humanward.records import Label, Prompt, Question, Response, content_id, read_jsonl
from humanward.records.nouns import question_id

PAD_2019 = 50259
"""What lm-human-preferences fills its label files with, whatever the tokenizer's own padding is."""
LABELER = "file"
"""Who gave a label whose row names nobody."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: Prompt
    responses: tuple[Response, ...]
    best: int
    labeler: str


def read_labels(path: Path | str, task: Task) -> tuple[list[Question], list[Label]]:
    """Questions and their labels, in the order of the file; a question that comes again is one question with several labels.

    Two forms are read, ``.gz`` too:

    - JSONL, a row per label: ``{"prompt": text, "responses": [texts], "best": index}``, and ``labeler`` if it is known. The prompt is used
      whole, with the task's prefix and suffix; other keys become the prompt's metadata.
    - JSON as released with lm-human-preferences: a list of ``{"query": ids, "sample0": ids, …, "best": index}`` with ids of the run's
      tokenizer. They are used as they are, without pads (50259).

    Raises:
        UserError: the line (of JSONL) or the row (of JSON, counted from 1) that cannot be used, and why.
    """
    path = Path(path)
    rows = _rows_2019(path, task) if _is_list(path) else _rows_of_lines(path, task)
    questions: dict[str, Question] = {}
    labels: list[Label] = []
    count = None
    for number, row in enumerate(rows):
        if count is None:
            count = len(row.responses)
        if len(row.responses) != count:
            raise UserError(f"{row.where}: {len(row.responses)} responses, but the first label has {count}; all labels must have as many")
        name = question_id(row.prompt, row.responses, round=1)
        questions.setdefault(name, Question(name, row.prompt, row.responses, "best_of_k", round=1))
        labels.append(Label(content_id("label", name, row.labeler, number), name, row.labeler, "best_of_k", row.best))
    if not labels:
        raise UserError(f"{path}: no labels in it")
    return list(questions.values()), labels


def _is_list(path: Path) -> bool:
    """Whether the file is one JSON list, not JSON lines."""
    return _read(path, 64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None


def _rows_of_lines(path: Path, task: Task) -> Iterator[_Row]:
    lines = read_jsonl(path)
    while part := list(islice(lines, ROWS_AT_ONCE)):
        checked = [(f"{path}:{number}", row) for number, row in part]
        texts = [_prompt_text(row, where) for where, row in checked]
        for (where, row), prompt in zip(checked, task.iter_prompts(texts), strict=True):
            responses = row.get("responses")
            if not isinstance(responses, list) or len(responses) < 2:
                raise UserError(f"{where}: `responses` must be a list of at least two texts, not {_short(responses)}")
            made = tuple(_response(text, f"{where}: responses[{i}]", task) for i, text in enumerate(responses))
            labeler = row.get("labeler", LABELER)
            if not isinstance(labeler, str) or not labeler:
                raise UserError(f"{where}: `labeler` must be a name, not {_short(labeler)}")
            yield _Row(where, prompt, made, _best(row, len(made), where), labeler)


def _prompt_text(row: Mapping[str, Any], where: str) -> Text:
    prompt = row.get("prompt")
    if "prompt" not in row and "query" in row:
        raise UserError(f"{where}: token ids are read from one JSON list only; put the rows into [ … ], or write `prompt` and `responses`")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: `prompt` must be a text that is not empty, not {_short(prompt)}")
    metadata = {name: value for name, value in row.items() if name not in ("prompt", "responses", "best", "labeler")}
    return Text(prompt, content_id("prompt", prompt), where, whole=True, metadata=metadata)


def _response(text: Any, where: str, task: Task) -> Response:
    if not isinstance(text, str):
        raise UserError(f"{where} must be a text, not {_short(text)}")
    if not text.strip():
        raise UserError(f"{where} is empty; write a response or delete the row")
    return _checked(Response(text, task.encode_continuation(text), "file"), where, task)


def _checked(response: Response, where: str, task: Task) -> Response:
    _check_length(len(response.tokens), "response_length", task.config.response_length, where)
    return response


def _check_length(length: int, setting: str, most: int, where: str) -> None:
    if length > most:
        raise UserError(f"{where} has {length} tokens and task.{setting} is {most}; shorten it or raise task.{setting}")


def _best(row: Mapping[str, Any], count: int, where: str) -> int:
    best = row.get("best")
    if not isinstance(best, int) or isinstance(best, bool) or not 0 <= best < count:
        raise UserError(f"{where}: `best` must be the index of a response, 0 to {count - 1}, not {_short(best)}")
    return best


def _rows_2019(path: Path, task: Task) -> Iterator[_Row]:
    for number, row in enumerate(_json_list(path), start=1):
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with `query`, `sample0`, … and `best`, not {_short(row)}")
        names = [f"sample{k}" for k in range(sum(name.startswith("sample") for name in row))]
        if len(names) < 2:
            raise UserError(f"{where}: needs at least `sample0` and `sample1`")
        query = _tokens(row, "query", where, task)
        _check_length(len(query), "prompt_length", task.config.prompt_length, f"{where}: `query`")
        samples = [_tokens(row, name, where, task) for name in names]
        responses = [
            _checked(Response(task.decode(tokens), tokens, "file"), f"{where}: `{name}`", task)
            for name, tokens in zip(names, samples, strict=True)
        ]
        text = task.decode(query)
        prompt = Prompt(content_id("prompt", text, query), text, query)
        yield _Row(where, prompt, tuple(responses), _best(row, len(responses), where), LABELER)


def _json_list(path: Path) -> Iterable[Any]:
    try:
        return json.loads(_read(path).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep") from None


def _tokens(row: Mapping[str, Any], name: str, where: str, task: Task) -> tuple[int, ...]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        raise UserError(f"{where}: `{name}` must be a list of token ids, not {_short(value)}")
    tokens = tuple(token for token in value if token != PAD_2019)
    vocabulary = len(task.tokenizer)
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise UserError(
            f"{where}: `{name}` has the token {wrong}, but the tokenizer has {vocabulary}; were the labels made with another one?"
        )
    if not tokens:
        raise UserError(f"{where}: `{name}` is empty; delete the row")
    return tokens


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
