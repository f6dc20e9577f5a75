"""Preference data of every format: what a row becomes, what it is as another kind, and what comes back of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humanward.data.formats import READERS, WRITERS, Labeled, LabelFile, views
from humanward.data.formats.conversation import ASSISTANT, HUMAN, of_transcript
from humanward.data.formats.converting import Conversion
from humanward.data.formats.pairs import common_prompt
from humanward.errors import UserError
from humanward.records import Comparison, Label, Prompt, Question, Response


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(source: Path | str) -> list[Labeled]:
    file = LabelFile(source)
    found = list(file.labeled())
    file.faults.check()
    return found


def said(labeled: Labeled) -> tuple[Any, ...]:
    """(kind, prompt, responses, answer) with the chosen response first where it is one of two."""
    question, label = labeled.question, labeled.labels[0]
    texts = [response.text for response in question.responses]
    if label.kind == "pair" and label.answer == 1:
        return "pair", question.prompt.text, texts[::-1], 0
    if label.kind == "difference" and label.answer < 0:
        return "difference", question.prompt.text, texts[::-1], -label.answer
    return label.kind, question.prompt.text, texts, label.answer


USER, ANSWER, OTHER = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
ROWS: dict[str, tuple[dict[str, Any], str, tuple[Any, ...]]] = {
    "explicit": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "pairs", ("pair", "Q", ["A", "B"], 0)),
    "implicit": ({"chosen": "The cat sat", "rejected": "The car ran"}, "pairs", ("pair", "The", [" cat sat", " car ran"], 0)),
    "hh": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: Ab"},
        "pairs", ("pair", "\n\nHuman: Q\n\nAssistant:", [" A", " Ab"], 0),
    ),
    "margin": ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2}, "pairs", ("difference", "Q", ["A", "B"], 2)),
    "conversation": ({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, "pairs", ("pair", "Q", ["A", "B"], 0)),
    "whole-conversations": ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "pairs", ("pair", "Q", ["A", "B"], 0)),
    "prompt-twice": ({"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "pairs", ("pair", "Q", ["A", "B"], 0)),
    "sharegpt": (
        {"chosen": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "rejected": [USER, OTHER]},
        "pairs", ("pair", "Q", ["A", "B"], 0),
    ),
    "text-prompt-of-conversations": ({"prompt": "Q", "chosen": [ANSWER], "rejected": [OTHER]}, "pairs", ("pair", "Q", ["A", "B"], 0)),
    "ultrafeedback-binarised": (
        {"prompt": "Q", "chosen": [USER, ANSWER], "rejected": [USER, OTHER], "score_chosen": 8.5, "score_rejected": 6.0, "messages": []},
        "pairs", ("difference", "Q", ["A", "B"], 2.5),
    ),
    "unpaired": ({"prompt": "Q", "completion": "A", "label": False}, "unpaired", ("binary", "Q", ["A"], False)),
    "unpaired-conversation": ({"prompt": [USER], "completion": [ANSWER], "label": True}, "unpaired", ("binary", "Q", ["A"], True)),
    "best_of_k": ({"prompt": "Q", "responses": ["A", "B", "C"], "best": 2}, "best_of_k", ("best_of_k", "Q", ["A", "B", "C"], 2)),
    "ranking": ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [1, 0, 1]}, "ranking", ("ranking", "Q", ["A", "B", "C"], [1, 0, 1])),
    "ranking-from-1": ({"prompt": "Q", "responses": ["A", "B"], "ranks": [2, 1]}, "ranking", ("ranking", "Q", ["A", "B"], [1, 0])),
    "soft": ({"prompt": "Q", "responses": ["A", "B"], "probabilities": [0.7, 0.3]}, "soft", ("soft", "Q", ["A", "B"], [0.7, 0.3])),
    "scores": ({"prompt": "Q", "responses": ["A", "B"], "scores": [1, 2.5]}, "scores", ("scores", "Q", ["A", "B"], [1.0, 2.5])),
    "rating": ({"prompt": "Q", "response": "A", "rating": 4}, "rating", ("rating", "Q", ["A"], 4.0)),
    "table": ({"prompt": "Q", "responses": ["A", "B"], "kind": "pair", "answer": "tie"}, "table", ("pair", "Q", ["A", "B"], "tie")),
    "ultrafeedback": (
        {"instruction": "Q", "completions": [{"response": "A", "overall_score": 7.5}, {"response": "B", "fine-grained_score": 2}]},
        "ultrafeedback", ("scores", "Q", ["A", "B"], [7.5, 2.0]),
    ),
    "ultrafeedback-argilla": (
        {"instruction": "Q", "chosen_response": "A", "rejected_response": "B", "chosen_avg_rating": 4.5, "rejected_avg_rating": 2},
        "ultrafeedback", ("difference", "Q", ["A", "B"], 2.5),
    ),
    "shp": ({"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 1}, "shp", ("pair", "Q", ["A", "B"], 0)),
    "shp-b": ({"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 0}, "shp", ("pair", "Q", ["B", "A"], 0)),
    "summeval": (
        {"article": "Q", "summary_a": "A", "summary_b": "B", "preferred": "b", "mean_a": 2, "mean_b": 4.5},
        "summeval", ("difference", "Q\n\nTL;DR:", ["B", "A"], 2.5),
    ),
    "saferlhf": (
        {
            "prompt": "Q", "response_0": "A", "response_1": "B", "is_response_0_safe": False, "is_response_1_safe": True,
            "better_response_id": 1, "safer_response_id": 1,
        },
        "saferlhf", ("pair", "Q", ["B", "A"], 0),
    ),
    "ziegler2019": ({"query": "Q", "sample0": "A", "sample1": "B", "best": 1}, "ziegler2019", ("best_of_k", "Q", ["A", "B"], 1)),
    "stiennon2020": (
        {"info": {"post": "Q"}, "summaries": [{"text": "A"}, {"text": "B"}], "choice": 0}, "stiennon2020", ("pair", "Q", ["A", "B"], 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_understood(name: str, tmp_path: Path) -> None:
    row, wanted, expected = ROWS[name]
    path = write(tmp_path / "x.jsonl", row)
    file = LabelFile(path)
    (labeled,) = file.labeled()
    file.faults.check()
    assert (file.format, said(labeled)) == (wanted, expected)
    assert "`" in file.why


def test_every_reader_has_a_row() -> None:
    assert {name for _, name, _ in ROWS.values()} == set(READERS) - {"label_studio", "argilla"}  # tests/cli/test_exchange.py has those


@pytest.mark.parametrize("container", ["jsonl.gz", "json", "parquet", "folder", "saved"])
def test_a_row_is_understood_in_every_container(container: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": [{"role": "assistant", "content": "A"}], "rejected": [OTHER]} for n in range(3)]
    path = tmp_path / f"x.{container}"
    if container == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif container == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif container == "folder":
        path.mkdir()
        write(path / "a.jsonl", *rows[:1])
        write(path / "b.jsonl", *rows[1:])
        (path / "README.md").write_text("# About")
    else:
        from datasets import Dataset, DatasetDict

        made = Dataset.from_list(rows)
        if container == "parquet":
            made.to_parquet(path)
        else:
            DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(path)
    assert [said(one) for one in read(path)] == [("pair", f"Q{n}", ["A", "B"], 0) for n in range(3)]
    if container == "saved":
        assert len(read(f"{path}?split=test")) == 1
        with pytest.raises(UserError, match=r"no such split; write .*\?split=NAME with one of train, test"):
            read(f"{path}?split=dev")


@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_says_of_its_label_is_read_from_every_format(name: str, tmp_path: Path) -> None:
    more = {"weight": 0.5, "labeler": "ann", "time": "2026-11-21T14:30:00+00:00"}
    split = "valid1" if name == "stiennon2020" else "validation"
    (labeled,) = read(write(tmp_path / "x.jsonl", ROWS[name][0] | more | {"split": split}))
    (label,) = labeled.labels
    assert (label.weight, label.labeler, label.time[:16], labeled.question.split) == (0.5, "ann", "2026-11-21T14:30", "validation")


def test_csv_holds_lists_as_json_and_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,responses,ranks,weight\n"Q, they asked","[""A"", ""B""]","[1, 0]",2\n', encoding="utf-8")
    (labeled,) = read(path)
    assert said(labeled) == ("ranking", "Q, they asked", ["A", "B"], [1, 0])
    assert labeled.labels[0].weight == 2


# The common prompt

TWICE = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Say hi. Hi!", "Say hi. No.", "Say hi."),
        ("Say hi\nHi!", "Say hi No.", "Say hi"),  # what differs is the space itself
        (TWICE + " same one", TWICE + " same two", TWICE),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "\n\nHuman: a\n\nAssistant: e", "\n\nHuman: a\n\nAssistant:"),
        ("Hello", "Help", ""),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: b", ""),
    ],
)  # fmt: skip
def test_the_common_prompt_ends_with_a_word(chosen: str, rejected: str, prompt: str) -> None:
    assert chosen[: common_prompt(chosen, rejected)] == prompt


words = st.lists(st.sampled_from(["a", "ab", "abc", "b"]), min_size=1, max_size=5).map(" ".join)


@given(prompt=words, chosen=words, rejected=words)
def test_the_parts_of_implicit_pairs_are_the_whole(prompt: str, chosen: str, rejected: str) -> None:
    first, second = f"{prompt} {chosen}", f"{prompt} {rejected}"
    length = common_prompt(first, second)
    assert first[:length] == second[:length]
    if length < min(len(first), len(second)):
        assert first[length].isspace()
        assert second[length].isspace()


@given(prompt=words, chosen=words, rejected=words)
def test_a_transcript_is_divided_where_it_was_joined(prompt: str, chosen: str, rejected: str) -> None:
    begin = f"{HUMAN} {prompt}{ASSISTANT}"
    length = common_prompt(f"{begin} {chosen}", f"{begin} {rejected}")
    assert length == len(begin)
    assert of_transcript(begin) == [{"role": "user", "content": prompt}]


# As other kinds


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"responses": ["A", "B", "C"], "best": 1}, "pair", [(["A", "B"], 1), (["B", "C"], 0)]),
        ({"responses": ["A", "B", "C"], "ranks": [0, 1, 1]}, "pair", [(["A", "B"], 0), (["A", "C"], 0), (["B", "C"], "tie")]),
        ({"responses": ["A", "B", "C"], "ranks": [2, 0, 1]}, "best_of_k", [(["A", "B", "C"], 1)]),
        ({"responses": ["A", "B"], "probabilities": [0.3, 0.7]}, "pair", [(["A", "B"], 1)]),
        ({"responses": ["A", "B", "C"], "scores": [4, 1, 2]}, "difference", [(["A", "B"], 3.0), (["A", "C"], 2.0), (["B", "C"], -1.0)]),
        ({"responses": ["A", "B", "C"], "scores": [4, 1, 4]}, "ranking", [(["A", "B", "C"], [0, 1, 0])]),
        ({"responses": ["A", "B"], "scores": [4, 1]}, "rating", [(["A"], 4.0), (["B"], 1.0)]),
        ({"responses": ["A", "B", "C"], "scores": [4, 1, 2]}, "binary", [(["A"], True), (["B"], False), (["C"], False)]),
        ({"responses": ["A", "B"], "best": 1}, "soft", [(["A", "B"], [0.0, 1.0])]),
    ],
)
def test_a_label_as_another_kind(row: dict[str, Any], kind: str, expected: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"prompt": "Q", "weight": 2, **row})
    found = read(f"{path}?kind={kind}")
    assert [([r.text for r in one.question.responses], one.labels[0].answer) for one in found] == expected
    assert {(one.question.kind, one.labels[0].kind, one.labels[0].weight) for one in found} == {(kind, kind, 2.0)}


def test_numbers_are_divided_at_the_middle_that_is_given(tmp_path: Path) -> None:
    """Stars from 1 to 5: 4 and 5 are liked, 1 and 2 are not, 3 says nothing."""
    path = write(tmp_path / "stars.jsonl", *({"prompt": "Q", "response": str(stars), "rating": stars} for stars in range(1, 6)))
    found = [(one.question.responses[0].text, one.labels[0].answer) for one in read(f"{path}?kind=binary&middle=3")]
    assert found == [("1", False), ("2", False), ("4", True), ("5", True)]
    with pytest.raises(
        UserError, match=r"stars.jsonl:1: the scale of .*rating \(1.0\) is not known: write FILE\?kind=binary&middle=NUMBER"
    ):
        read(f"{path}?kind=binary")
    with pytest.raises(UserError, match="middle=3: it divides numbers into liked and not; write kind=binary&middle=3"):
        read(f"{path}?middle=3")
    with pytest.raises(UserError, match="middle=three: expected a number"):
        read(f"{path}?kind=binary&middle=three")
    scored = write(tmp_path / "scored.jsonl", {"prompt": "Q", "responses": ["A", "B", "C"], "scores": [4, 3.5, 1]})
    assert [one.labels[0].answer for one in read(f"{scored}?kind=binary&middle=3")] == [True, True, False]
    assert [one.labels[0].answer for one in read(f"{scored}?kind=binary")] == [True, False, False]


def test_what_a_loss_reads_of_each_kind(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "responses": ["A", "B"], "kind": "pair", "answer": "tie", "weight": 0.5},
        {"prompt": "Q", "responses": ["A"], "kind": "binary", "answer": True},
        {"prompt": "Q", "responses": ["A"], "kind": "binary", "answer": False},
        {"prompt": "Q", "responses": ["A", "B", "C"], "kind": "scores", "answer": [1, 1, 3]},
    ]
    found = [
        Comparison.of(part.question, part.labels[0])
        for labeled in read(write(tmp_path / "x.jsonl", *rows))
        for part in views.trainable(labeled)
    ]
    assert [(c.kind, c.target, c.weight) for c in found] == [
        ("pair", [0.5, 0.5], 0.5), ("binary", 1, 1.0), ("binary", 0, 1.0), ("difference", 0.0, 1.0), ("difference", -2.0, 1.0),
        ("difference", -2.0, 1.0),
    ]  # fmt: skip


# Any to any


def convert(source: Path | str, out: Path, to: str, container: str = "jsonl", **options: Any) -> Conversion:
    work = Conversion(source, to, **options)
    work.check()
    with out.open("wb") as file:
        work.write(file, container)
    return work


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("to", WRITERS)
def test_what_a_format_can_hold_comes_back_and_what_it_cannot_is_an_error(name: str, to: str, tmp_path: Path) -> None:
    row, _, expected = ROWS[name]
    path = write(tmp_path / "x.jsonl", row)
    (before,) = read(path)
    for container in WRITERS[to].containers:
        out = tmp_path / f"out.{container}"
        if not WRITERS[to].holds(before.question, before.labels[0]):
            with pytest.raises(UserError, match=f"cannot be written as {to}; table"):
                convert(path, out, to, container)
            continue
        convert(path, out, to, container)
        after = read(out)
        assert after
        if to == "table":
            assert [said(one) for one in after] == [expected]
        if len(after) == 1:  # the same preference, be it by another kind
            (one,) = after
            texts = [response.text.strip() for response in one.question.responses]
            best = views.best(one.labels[0].kind, one.labels[0].answer, len(texts))
            was = views.best(before.labels[0].kind, before.labels[0].answer, len(before.question.responses))
            assert (None if best is None else texts[best]) == (None if was is None else before.question.responses[was].text.strip())
            assert plain(one.question.prompt.text) == plain(expected[1])


def plain(text: str) -> list[str]:
    """The words of a prompt without the marks of a transcript."""
    return text.replace("Human:", "").replace("Assistant:", "").split()


def test_a_choice_among_k_says_how_many_pairs_come_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *({"prompt": f"Q{n}", "responses": ["A", "B", "C", "D"], "best": n} for n in range(3)))
    work = Conversion(path, "pairs")
    work.check()
    with (tmp_path / "y.jsonl").open("wb") as file:
        assert work.write(file, "jsonl").rows == 9
    assert dict(work.kinds) == {"best_of_k": 3}


def test_weights_margins_and_ties_survive(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 1.5, "weight": 0.25, "labeler": "ann", "split": "validation"},
        {"prompt": "Q", "chosen": "A", "rejected": "C", "weight": 3},
    )
    for container in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"y.{container}"
        convert(path, out, "pairs", container)
        first, second = read(out)
        assert (said(first), first.labels[0].weight, first.labels[0].labeler, first.question.split) == (
            ("difference", "Q", ["A", "B"], 1.5), 0.25, "ann", "validation",
        )  # fmt: skip
        assert (said(second), second.labels[0].weight) == (("pair", "Q", ["A", "C"], 0), 3.0)


def test_a_conversation_keeps_its_messages_from_list_to_list(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, USER, ANSWER, USER]
    path = write(tmp_path / "x.jsonl", {"prompt": prompt, "chosen": [ANSWER], "rejected": [OTHER]})
    convert(path, tmp_path / "y.parquet", "conversations", "parquet")
    (labeled,) = read(tmp_path / "y.parquet")
    assert labeled.question.prompt.metadata["messages"] == prompt
    convert(path, tmp_path / "z.jsonl", "transcripts")
    (row,) = map(json.loads, (tmp_path / "z.jsonl").read_text().splitlines())
    assert row["chosen"] == "\n\nSystem: Be kind.\n\nHuman: Q\n\nAssistant: A\n\nHuman: Q\n\nAssistant: A"


def test_a_batch_survives(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS["stiennon2020"][0] | {"batch": "batch17"})
    convert(path, tmp_path / "y.jsonl", "stiennon2020")
    (row,) = map(json.loads, (tmp_path / "y.jsonl").read_text().splitlines())
    assert (row["batch"], row["info"]) == ("batch17", {"post": "Q"})


TALK = [{"role": "system", "content": "Be kind."}, USER, ANSWER, USER]
TALKS: dict[str, dict[str, Any]] = {
    "pairs": {"chosen": "A\n", "rejected": "B"},
    "conversations": {"chosen": "A\n", "rejected": "B"},
    "unpaired": {"completion": "A\n", "label": True},
    "best_of_k": {"responses": ["A\n", "B", "C"], "best": 2},
    "ranking": {"responses": ["A\n", "B", "C"], "ranks": [1, 0, 1]},
    "soft": {"responses": ["A\n", "B"], "probabilities": [0.7, 0.3]},
    "scores": {"responses": ["A\n", "B"], "scores": [1.5, 2]},
    "rating": {"response": "A\n", "rating": 4},
    "table": {"responses": ["A\n", "B"], "kind": "pair", "answer": 1},
}


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("among", [0, 1])
def test_a_conversation_is_one_again_in_every_container(name: str, among: int, tmp_path: Path) -> None:
    """Alone and among plain prompts, which stay plain."""
    prompts: list[Any] = [TALK, "[a plain one]", [USER]] if among else [TALK, [USER]]
    rows = [{"prompt": prompt, **TALKS[name]} for prompt in prompts]
    if name == "conversations":
        rows = [row for row in rows if isinstance(row["prompt"], list)]
    before = read(write(tmp_path / "x.jsonl", *rows))
    for container in WRITERS[name].containers:
        out = tmp_path / f"y.{container}"
        convert(tmp_path / "x.jsonl", out, name, container)
        after = read(out)
        assert [said(one) for one in after] == [said(one) for one in before]
        assert [one.question.prompt for one in after] == [one.question.prompt for one in before]
        assert after[0].question.prompt.metadata == {"messages": TALK}
        if container == "parquet" and not among:
            from pyarrow import parquet

            assert parquet.read_table(out)["prompt"][0].as_py() == TALK


@pytest.mark.parametrize("to", ["shp", "ultrafeedback", "ziegler2019", "stiennon2020"])
def test_a_format_of_texts_holds_no_conversation(to: str, tmp_path: Path) -> None:
    row = {"responses": ["A", "B"], "scores": [1, 2]} if to == "ultrafeedback" else {"responses": ["A", "B"], "best": 1}
    path = write(tmp_path / "x.jsonl", {"prompt": TALK, **row})
    with pytest.raises(UserError, match=f"x.jsonl:1: a conversation cannot be written as {to}; table, .* can hold it"):
        convert(path, tmp_path / "y.json", to, "json")


def test_messages_that_are_not_the_prompt_are_not_written_for_it() -> None:
    prompt = Prompt("p", "Q", (), {"messages": [USER, ANSWER]})
    question = Question("q", prompt, (Response("A"), Response("B")), "pair")
    for to in ("pairs", "conversations", "table", "best_of_k"):
        (row,), _ = WRITERS[to].rows(question, Label("l", "q", "ann", "pair", 1))
        assert row["prompt"] == ([USER] if to == "conversations" else "Q")


SAFE: dict[str, dict[str, Any]] = {
    "pairs": {"chosen": "A", "rejected": "B", "safe": [True, False]},
    "pairs the other way": {"chosen": "B", "rejected": "A", "safe": [False, True]},
    "dialogues": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B", "safe": [True, False]},
    "conversation": {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER], "safe": [True, False]},
    "best_of_k": {"responses": ["A", "B", "C"], "best": 1, "safe": [True, False, False]},
    "scores": {"responses": ["B", "C", "A"], "scores": [1, 2, 3], "safe": [False, False, True]},
    "table": {"responses": ["B", "A"], "kind": "pair", "answer": 0, "safe": [False, True]},
    "saferlhf": {**ROWS["saferlhf"][0], "is_response_0_safe": True, "is_response_1_safe": False},
}


def safe_of(labeled: Labeled) -> dict[str, bool]:
    """Whether each response is safe, by its text."""
    question = labeled.question
    return {r.text.strip(): safe for r, safe in zip(question.responses, question.prompt.metadata["safe"], strict=True)}


@pytest.mark.parametrize("name", SAFE)
def test_safety_stays_with_its_response_from_any_format_to_any_that_holds_it(name: str, tmp_path: Path) -> None:
    """Of all rows A alone is safe."""
    row = SAFE[name] if name == "dialogues" else {"prompt": "Q", **SAFE[name]}
    path = write(tmp_path / "x.jsonl", row)
    (before,) = read(path)
    assert safe_of(before) == {r.text.strip(): r.text.strip() == "A" for r in before.question.responses}
    for to in ("table", "pairs", "transcripts", "conversations", "best_of_k", "scores"):
        if WRITERS[to].holds(before.question, before.labels[0]):
            for container in WRITERS[to].containers:
                out = tmp_path / f"{to}.{container}"
                convert(path, out, to, container)
                assert {text: safe for one in read(out) for text, safe in safe_of(one).items()} == safe_of(before)
    for part in read(f"{path}?kind=pair"):
        assert safe_of(part) == {r.text.strip(): r.text.strip() == "A" for r in part.question.responses}


def test_safety_in_a_cell_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,chosen,rejected,safe\nQ,A,B,"[true, false]"\nQ,A,C,\n', encoding="utf-8")
    first, second = read(path)
    assert safe_of(first) == {"A": True, "B": False}
    assert "safe" not in second.question.prompt.metadata


def test_some_equal_responses_are_kept_and_all_equal_ones_left_out(tmp_path: Path) -> None:
    row = {"prompt": "Q", "kind": "best_of_k", "responses": ["A", "A", "B"], "answer": 2}
    path = write(tmp_path / "x.jsonl", row, row | {"responses": ["A", "A", "A"]})
    assert convert(path, tmp_path / "y.jsonl", "best_of_k", leave_out=True).left_out == 1
    assert [said(one) for one in read(tmp_path / "y.jsonl")] == [("best_of_k", "Q", ["A", "A", "B"], 2)]


def test_leaving_out_is_counted(tmp_path: Path) -> None:
    tie = {"prompt": "Q", "responses": ["A", "B"], "kind": "pair", "answer": "tie"}
    path = write(tmp_path / "x.jsonl", tie, {**tie, "answer": 1}, tie)
    work = convert(path, tmp_path / "y.jsonl", "pairs", leave_out=True)
    assert (work.left_out, dict(work.kinds), len(read(tmp_path / "y.jsonl"))) == (2, {"pair": 1}, 1)
    with pytest.raises(UserError, match="none of its 2 labels can be written as pairs"):
        convert(write(tmp_path / "x.jsonl", tie, tie), tmp_path / "y.jsonl", "pairs", leave_out=True)


@pytest.mark.parametrize("tool", ["label_studio", "argilla"])
@pytest.mark.parametrize(
    ("kind", "answer"), [("pair", 0), ("pair", "tie"), ("best_of_k", 2), ("ranking", [1, 0, 2]), ("ranking", [0, 1, 0])], ids=str
)
def test_a_labelling_tool_gets_back_what_it_would_have_said(tool: str, kind: str, answer: Any, tmp_path: Path) -> None:
    responses = ["A", "B", "C"][: 2 if kind == "pair" else 3]
    who = "label-studio-7" if tool == "label_studio" else "0d7c2f6e-5d0c-4f3e-9a51-3f4f1f3f2b11"
    row = {"prompt": "Q", "responses": responses, "kind": kind, "answer": answer, "labeler": who, "seconds": 4.5}
    path = write(tmp_path / "x.jsonl", row)
    if tool == "label_studio" and answer == [0, 1, 0]:
        with pytest.raises(UserError, match=r"cannot be written as label_studio; .*argilla"):
            convert(path, tmp_path / "y.jsonl", tool)
        return
    for container in WRITERS[tool].containers:
        convert(path, tmp_path / "y", tool, container)
        (labeled,) = read(tmp_path / "y")
        assert said(labeled) == (kind, "Q", responses, answer)
        assert labeled.labels[0].labeler == who
