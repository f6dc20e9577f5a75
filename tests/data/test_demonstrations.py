"""Texts and answered prompts as examples for supervised fine-tuning."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from humanward.data import Demonstration, Task, TaskConfig, Text, text_windows
from humanward.data.demonstrations import demonstrations
from humanward.errors import UserError


def tokens(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def plain(**settings: object) -> TaskConfig:
    return TaskConfig(**{"prompt_start": None, "prompt_end": None, "truncate_token": None, **settings})


def test_an_answered_prompt_is_one_demonstration(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(plain(prompt_suffix=" A:", stop_at_eos=True), byte_tokenizer)
    found = list(demonstrations(task, [Text("Why?", "1", whole=True, response=" So.")]))
    assert found == [Demonstration(tokens("Why? A:"), (*tokens(" So."), 256), "1")]


def test_without_a_stop_no_end_token_is_added(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    (found,) = demonstrations(Task(plain(), byte_tokenizer), [Text("Why?", "1", whole=True, response=" So.")])
    assert found.response == tokens(" So.")


def test_a_text_is_continued_by_itself(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(TaskConfig(prompt_length=3, response_length=4, truncate_after=0), byte_tokenizer)
    found = list(demonstrations(task, [Text("x.ab.cdef.gh.ij", "t")]))
    # behind "x.": "ab." then "cdef"; behind "cdef.": "gh." has only two bytes left to continue it
    assert found == [Demonstration(tokens("ab."), tokens("cdef"), "t/0")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text("Why?", "1", "f:1", whole=True), "^f:1: a prompt without `response`"),
        (Text("Why?", "1", "f:1", whole=True, response=""), "^f:1: the response is empty"),
        (Text("Why?", "1", "f:1", whole=True, response="x" * 25), "^f:1: the response has 25 tokens and task.response_length is 24"),
        (Text("no mark", "1", "f:1", response="x"), "^f:1: no prompt in this text"),
    ],
)
def test_faults_name_the_row(byte_tokenizer: PreTrainedTokenizerFast, text: Text, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(demonstrations(Task(TaskConfig(), byte_tokenizer), [text]))


def test_windows_cover_a_text_once(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(TaskConfig(), byte_tokenizer)
    found = list(text_windows(task, [Text("abcdefghi", "t")], 4))
    assert [bytes(d.response) for d in found] == [b"abcd", b"efgh"]  # a last window of one token predicts nothing
    assert {d.prompt for d in found} == {()}
    assert [d.id for d in found] == ["t/0", "t/1"]
    with pytest.raises(ValueError):
        next(text_windows(task, ["ab"], 1))


def test_windows_must_fit_the_context(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """A setting that no text reaches does no harm."""
    task = Task(plain(prompt_length=2, response_length=4), byte_tokenizer, context_length=8, model_name="some/name")
    assert len(list(text_windows(task, [Text("abcdefgh", "t")], 256))) == 1
    with pytest.raises(UserError, match=r"^f:1: cut into pieces of 9 .* context of some/name is 8; set sft.max_length=8 or less$"):
        list(text_windows(task, [Text("abcdefghi", "t", "f:1")], 256))
