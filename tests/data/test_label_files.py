"""Label files: what is read, and the one line for what cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig
from humanward.data.label_files import read_labels
from humanward.errors import UserError
from humanward.feedback import Snapshot


@pytest.fixture
def task(byte_tokenizer: PreTrainedTokenizerFast) -> Task:
    return Task(TaskConfig(prompt_length=8, response_length=4, truncate_after=2), byte_tokenizer)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": "ask", "responses": ["one", "two"], "best": 1} | changes


def test_lines_become_questions_and_labels_that_a_snapshot_takes(task: Task, tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", row(), row(labeler="ann", best=0), row(prompt="why", topic="x"))
    questions, labels = read_labels(path, task)
    assert [(q.prompt.text, [r.text for r in q.responses], q.round) for q in questions] == [
        ("ask", ["one", "two"], 1),
        ("why", ["one", "two"], 1),
    ]
    assert questions[0].prompt.tokens == tuple(b"ask")
    assert questions[0].responses[1].tokens == tuple(b"two")
    assert questions[1].prompt.metadata == {"topic": "x"}
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
    "no-prompt": (json.dumps({"responses": ["a", "b"], "best": 0}), "`prompt` must be a text that is not empty, not null"),
    "empty-prompt": (json.dumps(row(prompt=" ")), '`prompt` must be a text that is not empty, not " "'),
    "ids": (json.dumps({"query": [1], "sample0": [1], "sample1": [1], "best": 0}), "token ids are read from one JSON list only"),
    "one-response": (json.dumps(row(responses=["a"])), '`responses` must be a list of at least two texts, not ["a"]'),
    "number": (json.dumps(row(responses=["a", 2])), "responses[1] must be a text, not 2"),
    "empty-response": (json.dumps(row(responses=["a", " "])), "responses[1] is empty"),
    "long-response": (json.dumps(row(responses=["a", "12345"])), "responses[1] has 5 tokens and task.response_length is 4"),
    "long-prompt": (json.dumps(row(prompt="123456789")), "the prompt has 9 tokens and task.prompt_length is 8"),
    "best-out-of-range": (json.dumps(row(best=2)), "`best` must be the index of a response, 0 to 1, not 2"),
    "negative-best": (json.dumps(row(best=-1)), "0 to 1, not -1"),
    "true": (json.dumps(row(best=True)), "0 to 1, not true"),
    "no-best": (json.dumps({"prompt": "a", "responses": ["a", "b"]}), "0 to 1, not null"),
    "another-k": (json.dumps(row(responses=["a", "b", "c"])), "3 responses, but the first label has 2"),
    "labeler": (json.dumps(row(labeler="")), '`labeler` must be a name, not ""'),
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
    "text": ("[3]", ": row 1: expected an object"),
    "broken": ('[{"query": [1],\n', ":2: not JSON"),
    "no-samples": ('[{"query": [1], "sample0": [1], "best": 0}]', ": row 1: needs at least `sample0` and `sample1`"),
    "gap": ('[{"query": [1], "sample0": [1], "sample7": [1], "best": 0}]', ": row 1: `sample1` must be a list of token ids, not null"),
    "letters": ('[{"query": ["a"], "sample0": [1], "sample1": [1], "best": 0}]', ": row 1: `query` must be a list of token ids"),
    "foreign": ('[{"query": [1], "sample0": [999], "sample1": [1], "best": 0}]', ": row 1: `sample0` has the token 999"),
    "only-pads": ('[{"query": [1], "sample0": [50259], "sample1": [1], "best": 0}]', ": row 1: `sample0` is empty"),
    "long": ('[{"query": [1], "sample0": [1, 2, 3, 4, 5], "sample1": [1], "best": 0}]', ": row 1: `sample0` has 5 tokens"),
    "best": (
        '[{"query": [1], "sample0": [1], "sample1": [1], "best": 4}]',
        ": row 1: `best` must be the index of a response, 0 to 1, not 4",
    ),
    "empty": ("[]", ": no labels in it"),
    "nothing": ("", ": no labels in it"),
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
    with pytest.raises(UserError, match="cannot read: No such file or directory"):
        read_labels(tmp_path / "none.jsonl", task)
    (tmp_path / "l.json.gz").write_bytes(gzip.compress(b"[" * 9999)[:-9])
    with pytest.raises(UserError, match=r"l\.json\.gz: (damaged gzip|not)"):
        read_labels(tmp_path / "l.json.gz", task)
