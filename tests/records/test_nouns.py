from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humanward.errors import UserError
from humanward.records import Comparison, Label, Prompt, Question, Response, question_id

texts = st.text(st.characters(codec="utf-8"), max_size=8)
tokens = st.lists(st.integers(0, 50_257), max_size=4).map(tuple)
mappings = st.dictionaries(texts, st.integers() | texts, max_size=2)
prompts = st.builds(Prompt, texts.filter(bool), texts, tokens, mappings)
responses = st.builds(Response, texts, tokens, texts, texts, texts, mappings)
response_rows = st.lists(responses, min_size=2, max_size=4).map(tuple)
questions = st.builds(
    Question, texts.filter(bool), prompts, response_rows, st.sampled_from(["best_of_k", "pair"]), st.integers(0, 9),
    st.sampled_from(["train", "validation"]), st.integers(1, 5), texts,
)  # fmt: skip
numbers = st.none() | st.floats(0, 1)
answers = st.integers(0, 3) | st.lists(st.integers(0, 3))
labels = st.builds(Label, texts, texts, texts, texts, answers, tokens, numbers, numbers, texts, texts)
targets = st.integers(0, 3) | st.floats(0, 1) | st.lists(st.integers(0, 3), max_size=3)
comparisons = st.builds(Comparison, prompts, response_rows, texts, targets, st.floats(0, 2), texts, texts)


@given(st.one_of(prompts, responses, questions, labels, comparisons))
def test_json_round_trip(noun: Any) -> None:
    assert type(noun).from_json(json.loads(json.dumps(noun.to_json()))) == noun


def test_a_question_that_was_drawn_says_how_probably() -> None:
    question = Question("q", Prompt("p", "text"), (), propensity=0.25)
    assert Question.from_json(question.to_json()) == question
    assert "propensity" not in Question("q", Prompt("p", "text"), ()).to_json(), "questions of older stores stay the same bytes"


def test_nouns_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Prompt("p", "text").text = "other"  # type: ignore[misc]


def test_ids_come_from_the_content_where_there_is_none() -> None:
    first, second = (Prompt.from_json({"text": text}) for text in ("Once", "Twice"))
    assert first.id == Prompt.from_json({"text": "Once"}).id != second.id
    asked = {"prompt": {"text": "Once"}, "responses": [{"text": "a"}, {"text": "b"}]}
    question = Question.from_json(asked)
    assert question.id == question_id(question.prompt, question.responses)
    assert question.id != Question.from_json({**asked, "round": 1}).id


FAULTS: list[tuple[type, Any, str]] = [
    (Prompt, [], "line: expected an object, found []"),
    (Prompt, {}, "line: text is missing"),
    (Prompt, {"text": 3}, "line: text: expected a string, found 3"),
    (Prompt, {"text": "a", "tokens": [1, -1]}, "line: tokens: expected a list of whole numbers from 0, found [1, -1]"),
    (Prompt, {"text": "a", "tokens": [True]}, "line: tokens: expected a list of whole numbers from 0, found [True]"),
    (Prompt, {"text": "a", "colour": 1, "age": 2}, "line: unknown key age, colour"),
    (Prompt, {"text": "a", "metadata": "x"}, "line: metadata: expected an object, found 'x'"),
    (Question, {"prompt": {"text": "a"}, "responses": {}}, "line: responses: expected a list, found {}"),
    (
        Question,
        {"prompt": {"text": "a"}, "responses": [{"text": "b"}, {"text": None}]},
        "line: responses[1]: text: expected a string, found None",
    ),
    (Question, {"prompt": {"txt": "a"}, "responses": []}, "line: prompt: text is missing"),
    (Question, {"prompt": {"text": "a"}, "responses": [], "overlap": 0}, "line: overlap: expected a whole number of at least 1, found 0"),
    (Question, {"prompt": {"text": "a"}, "responses": [], "split": "test"}, "line: split: expected train or validation, found 'test'"),
    (
        Question,
        {"prompt": {"text": "a"}, "responses": [], "propensity": 0},
        "line: propensity: expected a number above 0, at most 1, found 0",
    ),
    (Label, {"id": "l", "question_id": "q", "labeler": "a", "kind": "pair"}, "line: answer is missing"),
    (
        Label,
        {"id": "l", "question_id": "q", "labeler": "a", "kind": "pair", "answer": 0, "seconds": float("nan")},
        "line: seconds: expected a number, found nan",
    ),
    (
        Comparison,
        {"prompt": {"text": "a"}, "responses": [], "kind": "pair", "target": "first"},
        "line: target: expected a number or a list of numbers, found 'first'",
    ),
]


@pytest.mark.parametrize(("noun", "obj", "message"), FAULTS)
def test_faults_say_where_and_what(noun: Any, obj: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        noun.from_json(obj, "line")
    assert str(caught.value) == message


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UserError) as caught:
        Prompt.from_json({"text": ["a" * 1000]}, "prompts.jsonl:3")
    assert len(str(caught.value)) < 100
