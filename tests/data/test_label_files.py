"""Label files: what is read, and the one line for what cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig
from humanward.data.given_labels import read_given
from humanward.errors import UserError
from humanward.feedback import Snapshot
from humanward.records import Label, Question


def read_labels(path: Path, task: Task) -> tuple[list[Question], list[Label]]:
    given = read_given(path, task)
    return given.questions, given.labels


@pytest.fixture
def task(byte_tokenizer: PreTrainedTokenizerFast) -> Task:
    return Task(TaskConfig(prompt_length=8, response_length=4, truncate_after=2), byte_tokenizer)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": "ask", "responses": ["one", "two"], "best": 1} | changes


def test_lines_become_questions_and_labels_that_a_snapshot_takes(task: Task, tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", row(), row(labeler="ann", best=0), row(prompt="why"))
    questions, labels = read_labels(path, task)
    assert [(q.prompt.text, [r.text for r in q.responses], q.round) for q in questions] == [
        ("ask", ["one", "two"], 1),
        ("why", ["one", "two"], 1),
    ]
    assert questions[0].prompt.tokens == tuple(b"ask")
    assert questions[0].responses[1].tokens == tuple(b"two")
    assert [(label.labeler, label.answer) for label in labels] == [("file", 1), ("ann", 0), ("file", 1)]
    assert len({label.id for label in labels}) == 3
    snapshot = Snapshot.of(questions, labels)
    snapshot.save(tmp_path / "snapshot.jsonl")
    assert sorted((c.prompt.text, c.target) for c in Snapshot.load(tmp_path / "snapshot.jsonl").comparisons()) == [
        ("ask", 0),
        ("ask", 1),
        ("why", 1),
    ]


def test_a_prompt_gets_what_the_task_puts_around_it(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    around = Task(TaskConfig(prompt_suffix="?", response_length=4, truncate_after=2), byte_tokenizer)
    (question,), _ = read_labels(write(tmp_path / "l.jsonl", row()), around)
    assert question.prompt.tokens == tuple(b"ask?")
    assert question.prompt.text == "ask?"


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_the_released_form_is_read_without_its_pads(suffix: str, task: Task, tmp_path: Path) -> None:
    rows = [{"query": [50259, 97, 98], "sample0": [99, 50259], "sample1": [100], "sample2": [101, 102], "sample3": [103], "best": 2}]
    path = tmp_path / f"labels{suffix}"
    content = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    (question,), (label,) = read_labels(path, task)
    assert (question.prompt.tokens, question.prompt.text) == ((97, 98), "ab")
    assert [(r.tokens, r.text) for r in question.responses] == [((99,), "c"), ((100,), "d"), ((101, 102), "ef"), ((103,), "g")]
    assert (label.answer, label.question_id) == (2, question.id)


FAULTS = {
    "not-an-object": ("[1", "not JSON"),
    "no-prompt": (json.dumps({"responses": ["a", "b"], "best": 0}), "`prompt` is missing"),
    "empty-prompt": (json.dumps(row(prompt=" ")), "`prompt` is empty"),
    "ids": (json.dumps({"query": [1], "sample0": [1], "sample1": [1], "best": 0}), "`responses` is missing"),
    "one-response": (json.dumps(row(responses=["a"])), "`responses`: 1 response, but at least 2 are needed"),
    "number": (json.dumps(row(responses=["a", 2])), "`responses[1]`: expected a text, found 2"),
    "empty-response": (json.dumps(row(responses=["a", " "])), "`responses[1]` is empty"),
    "long-response": (json.dumps(row(responses=["a", "12345"])), "the longest response has 5 tokens and task.response_length is 4"),
    "long-prompt": (json.dumps(row(prompt="123456789")), "the prompt has 9 tokens and task.prompt_length is 8"),
    "best-out-of-range": (json.dumps(row(best=2)), "`best`: expected the index of a response, 0 to 1, found 2"),
    "negative-best": (json.dumps(row(best=-1)), "0 to 1, found -1"),
    "true": (json.dumps(row(best=True)), "0 to 1, found True"),
    "no-best": (json.dumps({"prompt": "a", "responses": ["a", "b"]}), "`best` is missing"),
    "another-k": (json.dumps(row(responses=["a", "b", "c"])), "3 responses, but the first label has 2"),
    "labeler": (json.dumps(row(labeler=["x"])), '`labeler`: expected a text, found ["x"]'),
}


@pytest.mark.parametrize(("line", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_every_fault_of_a_line_is_one_line_with_its_place(line: str, words: str, task: Task, tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", row())
    path.write_text(path.read_text() + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_labels(path, task)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert words in message
    assert "\n" not in message


FAULTS_2019 = {
    "text": ("[3]", ":1: row 1: expected an object"),
    "broken": ('[{"query": [1],\n', ":2: not JSON"),
    "no-samples": (
        '[{"query": [1], "sample0": [1], "best": 0}]',
        ":1: row 1: expected `sample0`, `sample1`, … without a gap, found sample0",
    ),
    "gap": ('[{"query": [1], "sample0": [1], "sample7": [1], "best": 0}]', ":1: row 1: expected `sample0`, `sample1`, … without a gap"),
    "letters": ('[{"query": ["a"], "sample0": [1], "sample1": [1], "best": 0}]', ":1: row 1: `query`: expected a list of token ids"),
    "foreign": ('[{"query": [1], "sample0": [999], "sample1": [1], "best": 0}]', ":1: row 1: `sample0` has a token that the tokenizer"),
    "only-pads": ('[{"query": [1], "sample0": [50259], "sample1": [1], "best": 0}]', ":1: row 1: `sample0` is empty"),
    "long": ('[{"query": [1], "sample0": [1, 2, 3, 4, 5], "sample1": [1], "best": 0}]', ":1: row 1: the longest response has 5 tokens"),
    "best": (
        '[{"query": [1], "sample0": [1], "sample1": [1], "best": 4}]',
        ":1: row 1: `best`: expected a whole number from 0 to 1, found 4",
    ),
    "empty": ("[]", ": no labels in it"),
    "nothing": ("", ": the file is empty"),
}


@pytest.mark.parametrize(("content", "words"), FAULTS_2019.values(), ids=FAULTS_2019.keys())
def test_every_fault_of_a_list_is_one_line_with_its_row(content: str, words: str, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_labels(path, task)
    assert str(caught.value).startswith(f"{path}{words}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_damaged_gzip_are_one_line(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_labels(tmp_path / "none.jsonl", task)
    (tmp_path / "l.json.gz").write_bytes(gzip.compress(b"[" * 9999)[:-9])
    with pytest.raises(UserError, match=r"l\.json\.gz:1: damaged gzip"):
        read_labels(tmp_path / "l.json.gz", task)


def test_any_format_of_preferences_is_read(task: Task, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", {"prompt": "ask", "chosen": "one", "rejected": "two", "weight": 2})
    (question,), (label,) = read_labels(path, task)
    assert (question.kind, question.responses[label.answer].text, label.weight) == ("pair", "one", 2.0)
    snapshot = Snapshot.of([question], [label])
    snapshot.save(tmp_path / "snapshot.jsonl")
    assert [c.weight for c in Snapshot.load(tmp_path / "snapshot.jsonl").comparisons()] == [2.0]
    unpaired = write(tmp_path / "u.jsonl", {"prompt": "ask", "completion": "one", "label": True})
    assert [c.target for c in Snapshot.of(*read_labels(unpaired, task)).comparisons()] == [1]
    ending = Task(TaskConfig(prompt_length=8, response_length=5, truncate_token=None, stop_at_eos=True), byte_tokenizer)
    (question,), _ = read_labels(write(tmp_path / "e.jsonl", row(responses=["four", "one"])), ending)
    assert [r.tokens for r in question.responses] == [(*b"four", 256), (*b"one", 256)]
