"""Labels of a file with the tokens of a task: their end, their lengths, what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from humanward.data import Task, TaskConfig
from humanward.data.given_labels import Lengths, longest, read_given, with_held_out
from humanward.errors import UserError
from humanward.trainers.selftest import END, tiny_tokenizer

ROWS = [
    {"prompt": "w2 w3", "chosen": "good", "rejected": "bad bad"},
    {"prompt": "w2 w3", "chosen": "good w4", "rejected": "bad"},
    {"prompt": "w4", "chosen": "w5 w5 w5 w5", "rejected": "bad"},
    {"prompt": "w5", "chosen": "good", "rejected": "w2"},
]


def task(**settings: Any) -> Task:
    plain = {"prompt_start": None, "prompt_end": None, "truncate_token": None, "stop_at_eos": True}
    return Task(TaskConfig(**{**plain, "prompt_length": 2, "response_length": 3, **settings}), tiny_tokenizer())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_responses_are_closed_where_the_task_stops_at_their_end(file: Path) -> None:
    for stops, end in ((True, (END,)), (False, ())):
        given = read_given(file, task(stop_at_eos=stops, response_length=5))
        by_text = {r.text: r.tokens for q in given.questions for r in q.responses}
        assert by_text["bad bad"] == (3, 3, *end)
        assert given.questions[0].prompt.tokens == (4, 5)
        assert all(q.round == 1 and q.kind == "pair" for q in given.questions)
    assert [q.responses[label.answer].text for q, label in zip(given.questions, given.labels, strict=True)] == [r["chosen"] for r in ROWS]


def test_what_stands_around_a_prompt_is_put_there(file: Path) -> None:
    given = read_given(file, task(prompt_prefix="w5 ", prompt_suffix=" w4", response_length=5))
    assert given.questions[0].prompt.tokens == (7, 4, 5, 6)
    assert given.questions[0].prompt.text == "w5 w2 w3 w4"


def test_long_labels_are_a_fault_or_left_out_and_counted(file: Path) -> None:
    with pytest.raises(UserError, match=r"pairs.jsonl:3: the longest response has 5 tokens and task.response_length is 3"):
        read_given(file, task())
    given = read_given(file, task(), leave_out_long=True)
    assert (len(given.questions), len(given.labels), given.too_long) == (3, 3, 1)
    assert longest(file, task()) == Lengths(prompt=2, response=5)
    with pytest.raises(UserError, match=r"pairs.jsonl:1: the prompt has 2 tokens and task.prompt_length is 1"):
        read_given(file, task(prompt_length=1))


def test_labelled_responses_may_be_longer_than_sampled_ones(file: Path) -> None:
    given = read_given(file, task(), response_length=5)
    assert (len(given.labels), given.too_long) == (4, 0)
    with pytest.raises(UserError, match=r":3: the longest response has 5 tokens and labels.response_length is 4; raise labels.resp"):
        read_given(file, task(), response_length=4)
    with pytest.raises(UserError, match=r"none of its 4 labels fits task.prompt_length and labels.response_length"):
        read_given(file, task(), response_length=1, leave_out_long=True)
    small = Task(task().config, tiny_tokenizer(), context_length=6)
    with pytest.raises(UserError, match=r"need 7, but the context of the model is 6; .* or lower labels.response_length"):
        read_given(file, small, response_length=5)


def test_prompts_are_held_out_whole_and_by_lot(file: Path) -> None:
    questions = read_given(file, task(response_length=5)).questions
    seen = set()
    for seed in range(8):
        split = with_held_out(questions, 0.34, seed)
        held_out = {q.prompt.text for q in split if q.split == "validation"}
        assert len(held_out) == 1
        assert not held_out & {q.prompt.text for q in split if q.split == "train"}
        assert split == with_held_out(questions, 0.34, seed)
        seen |= held_out
    assert len(seen) > 1
    marked = with_held_out(questions, 0.34, 0)
    assert with_held_out(marked, 0.9, 5) == marked, "a file that says it itself is believed"


def test_faults_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], "chosen": 3}) + "\n")
    with pytest.raises(UserError, match=r"bad.jsonl:2: `chosen`: expected a text, found 3"):
        read_given(path, task())
    given = read_given(f"{path}?faulty=skip", task())
    assert (len(given.labels), given.skipped) == (1, 1)


def test_rankings_of_several_lengths_are_read_as_the_pairs_that_the_message_names(tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    rows = [{"prompt": "w2", "responses": ["good", "bad", "w3", "w4"][:k], "ranks": [0, 1, 2, 3][:k]} for k in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"ranks.jsonl:2: 4 responses, but the first label has 3; .*: FILE\?kind=pair reads them as pairs"):
        read_given(path, task())
    assert len(read_given(f"{path}?kind=pair", task()).labels) == 3 + 6
