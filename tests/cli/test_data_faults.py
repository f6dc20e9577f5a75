"""Preference data that cannot be read: one line per fault, with the line and the column, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from humanward.cli.data import convert
from humanward.data.formats import LabelFile
from humanward.errors import UserError

from .conftest import run
from .test_import_faults import PAIR, UNPAIRED, Case, among, changed, csv_cases, deep, file_cases, jsonl_cases, lines, list_cases, listed

HH = {"chosen": "\n\nHuman: Say hi\n\nAssistant: Hi!", "rejected": "\n\nHuman: Say hi\n\nAssistant: No."}
TALK = {
    "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hi"}],
    "chosen": [{"role": "assistant", "content": "Hi!"}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
WHOLE_TALK = {
    "chosen": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "Hi!"}],
    "rejected": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "No."}],
}
BINARISED = {**WHOLE_TALK, "prompt": "Say hi", "score_chosen": 8.5, "score_rejected": 4.0}
BEST = {"prompt": "Say hi", "responses": ["Hi!", "No.", "Oh."], "best": 1}
RANKS = {"prompt": "Say hi", "responses": ["Hi!", "No.", "Oh."], "ranks": [1, 0, 1]}
SOFT = {"prompt": "Say hi", "responses": ["Hi!", "No."], "probabilities": [0.7, 0.3]}
SCORES = {"prompt": "Say hi", "responses": ["Hi!", "No.", "Oh."], "scores": [3.5, 1, 2]}
RATING = {"prompt": "Say hi", "response": "Hi!", "rating": 4}
ULTRA = {
    "instruction": "Say hi", "source": "evol_instruct", "models": ["a", "b"],
    "completions": [
        {"model": "a", "response": "Hi!", "fine-grained_score": 4.25, "overall_score": 8.0},
        {"model": "b", "response": "No.", "fine-grained_score": 2.0, "overall_score": 3.0},
    ],
}  # fmt: skip
ARGILLA = {
    "instruction": "Say hi", "chosen_response": "Hi!", "rejected_response": "No.", "chosen_avg_rating": 4.5, "rejected_avg_rating": 2,
}  # fmt: skip
SHP = {"history": "Say hi", "human_ref_A": "Hi!", "human_ref_B": "No.", "labels": 1, "score_A": 20, "score_B": 4}
SUMMEVAL = {"article": "Say hi", "summary_a": "Hi!", "summary_b": "No.", "preferred": "b", "mean_a": 2.0, "mean_b": 4.5}
FORMATS: dict[str, dict[str, Any]] = {
    "hh": HH, "talk": TALK, "whole-talk": WHOLE_TALK, "binarised": BINARISED, "best": BEST, "ranks": RANKS, "soft": SOFT, "scores": SCORES,
    "rating": RATING, "ultra": ULTRA, "argilla": ARGILLA, "shp": SHP, "summeval": SUMMEVAL,
}  # fmt: skip


def bad(name: str, row: dict[str, Any], says: str, to: str = "table", **changes: Any) -> Case:
    """A good row, the changed one, a good one."""
    return Case(name, "x.jsonl", among(row, changed(row, **changes)), (2,), says, (("to", to),))


def transcript_cases() -> Iterator[Case]:
    yield bad("hh-no-chosen", HH, "`chosen` is missing", chosen=...)
    yield bad("hh-no-rejected", HH, "`rejected` is missing", rejected=...)
    yield bad("hh-empty-chosen", HH, "`chosen` is empty", chosen=" ")
    yield bad("hh-empty-answer", HH, "`chosen` behind the prompt is empty", chosen="\n\nHuman: Say hi\n\nAssistant: ")
    yield bad("hh-same", HH, "`chosen` and `rejected` are the same", chosen=HH["rejected"])
    yield bad("hh-other-question", HH, "no common `Assistant:`", chosen="\n\nHuman: Hi there\n\nAssistant: Hi!")
    yield bad("hh-no-assistant", HH, "no common `Assistant:`", chosen="\n\nHuman: Say hi", rejected="\n\nHuman: Say ho")
    yield bad("hh-number", HH, "`chosen`: expected a text", chosen=3)
    yield bad("hh-null", HH, "`rejected`: expected a text", rejected=None)
    yield bad("hh-nul", HH, "`chosen` has a NUL", chosen="\n\nHuman: Say hi\n\nAssistant: H\x00i")
    yield bad("hh-weight-text", HH, "`weight`", weight="much")
    yield bad("hh-weight-zero", HH, "`weight` is 0", weight=0)
    yield bad("hh-weight-negative", HH, "`weight`", weight=-1)
    yield bad("implicit-nothing-common", HH, "`chosen` and `rejected` have no common beginning", chosen="Hi there", rejected="No way")
    yield bad("implicit-only-a-word-begins", HH, "no common beginning", chosen="Hello", rejected="Help")
    yield bad("implicit-one-is-the-beginning", HH, "`chosen` behind the prompt is empty", chosen="Say hi ", rejected="Say hi there")


def pair_cases() -> Iterator[Case]:
    yield bad("pair-margin-text", PAIR, "`margin`: expected a number", margin="large")
    yield bad("pair-margin-negative", PAIR, "`margin`: expected a number of at least 0", margin=-0.5)
    yield bad("pair-one-score", PAIR, "`score_rejected` is missing", score_chosen=3)
    yield bad("pair-score-null", PAIR, "`score_rejected`: expected a number", score_chosen=3, score_rejected=None)
    yield bad("pair-score-text", PAIR, "`score_chosen`: expected a number", score_chosen="good", score_rejected=1)
    yield bad("pair-score-true", PAIR, "`score_chosen`: expected a number", score_chosen=True, score_rejected=1)
    yield bad("pair-scores-the-other-way", PAIR, "`score_chosen`: 1 is less than `score_rejected`", score_chosen=1, score_rejected=3)
    yield bad("pair-tie-as-text", PAIR, "the same text", rejected="Hi!")
    yield bad("pair-split", PAIR, "`split`", split="dev")
    yield bad("pair-prompt-blank", PAIR, "`prompt` is empty", prompt="\n")
    yield bad("pair-prompt-object", PAIR, "`prompt`: expected a text", prompt={"text": "Say hi"})
    yield bad("pair-chosen-object", PAIR, "`chosen`: expected a text", chosen={"content": "Hi!"})
    for value in ("yes", 1, None, "", "maybe"):
        yield bad(f"unpaired-label-{value!r}", UNPAIRED, "`label`: expected true or false", label=value)
    yield bad("unpaired-no-completion", UNPAIRED, "neither `completion` nor `response`", completion=...)
    yield bad("unpaired-empty", UNPAIRED, "`completion` is empty", completion=" ")
    yield bad("unpaired-prompt-of-the-assistant", UNPAIRED, "`prompt`: roles out of order", prompt=[{"role": "assistant", "content": "x"}])
    yield bad("unpaired-no-prompt", UNPAIRED, "`prompt` is missing", prompt=...)


def conversation_cases() -> Iterator[Case]:
    user, assistant = {"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "Hi!"}
    system = {"role": "system", "content": "Be kind."}
    prompts: dict[str, tuple[Any, str]] = {
        "empty-list": ([], "`prompt`: expected a list of messages"),
        "of-texts": (["Say hi"], "`prompt`: expected a list of messages"),
        "no-role": ([{"content": "x"}], "`prompt`[0]: `role` is missing"),
        "no-content": ([{"role": "user"}], "`prompt`[0]: `content`"),
        "content-blank": ([{"role": "user", "content": " "}], "`prompt`[0]: `content` is empty"),
        "content-parts": ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "`prompt`[0]: `content`: expected a text"),
        "unknown-role": ([{"role": "narrator", "content": "x"}], "`prompt`[0]: `role`: expected system, user, assistant"),
        "role-number": ([{"role": 1, "content": "x"}], "`prompt`[0]: `role`"),
        "two-users": ([user, user], "`prompt`[1]: roles out of order: user behind user"),
        "two-assistants": ([user, assistant, assistant], "`prompt`[2]: roles out of order: assistant behind assistant"),
        "system-last": ([user, system], "`prompt`[1]: roles out of order: system behind user"),
        "two-systems": ([system, system, user], "`prompt`[1]: roles out of order: system behind system"),
        "assistant-behind-system": ([system, assistant], "`prompt`[1]: roles out of order: assistant behind system"),
        "assistant-first": ([assistant, user], "`prompt`: roles out of order: the prompt begins with the assistant"),
        "assistant-last": ([user, assistant], "`prompt`: roles out of order: the prompt ends with assistant"),
        "system-alone": ([system], "`prompt`: roles out of order: the prompt ends with system"),
    }
    for name, (prompt, says) in prompts.items():
        yield bad(f"talk-prompt-{name}", TALK, says, prompt=prompt)
    answers: dict[str, tuple[Any, str]] = {
        "of-the-user": ([user], "`chosen`: expected one message of the assistant"),
        "two": ([assistant, user, assistant], "`chosen`: expected one message of the assistant"),
        "ends-with-the-user": ([assistant, user], "`chosen`: expected one message"),
        "empty": ([], "`chosen`: expected a list of messages"),
        "text": ("Hi!", "`chosen`: expected a list of messages"),
        "blank": ([{"role": "assistant", "content": ""}], "`chosen`[0]: `content` is empty"),
        "null-content": ([{"role": "assistant", "content": None}], "`chosen`[0]: `content`: expected a text"),
        "same": (TALK["rejected"], "`chosen` and `rejected` are the same conversation"),
    }
    for name, (chosen, says) in answers.items():
        yield bad(f"talk-answer-{name}", TALK, says, chosen=chosen)
    yield bad("talk-no-prompt", TALK, "have no common messages", prompt=...)
    other = [{"role": "user", "content": "Say ho"}, assistant]
    yield bad("whole-talk-other-question", WHOLE_TALK, "`chosen` and `rejected` have no common messages", chosen=other)
    yield bad("whole-talk-longer", WHOLE_TALK, "`chosen`: expected one message", chosen=[user, assistant, user, assistant])
    yield bad("whole-talk-without-answer", WHOLE_TALK, "`chosen`: expected one message of the assistant behind the prompt, found nothing",
              chosen=[user])  # fmt: skip
    yield bad("binarised-scores", BINARISED, "`score_chosen`: 1 is less than", score_chosen=1.0)
    yield bad("binarised-nan-as-text", BINARISED, "`score_chosen`: expected a number", score_chosen="NaN")
    yield bad("binarised-one-score", BINARISED, "`score_chosen` is missing", score_chosen=...)


SAFERLHF = {
    "prompt": "Say hi", "response_0": "Hi!", "response_1": "No.", "is_response_0_safe": True, "is_response_1_safe": False,
    "better_response_id": 0,
}  # fmt: skip


def safety_cases() -> Iterator[Case]:
    for name, row, count in (("pair", PAIR, 2), ("hh", HH, 2), ("talk", TALK, 2), ("ranks", RANKS, 3)):
        for value in (True, [True], [True] * 4, [1] * count, ["yes"] * count, [None] * count, "[true"):
            says = f"`safe`: expected a list of {count} times true or false"
            yield bad(f"{name}-safe-{value}", row, says, safe=value)
    yield bad("saferlhf-flag", SAFERLHF, "`is_response_1_safe`: expected true or false", is_response_1_safe="rather")
    yield bad("saferlhf-better", SAFERLHF, "`better_response_id`: expected a whole number from 0 to 1", better_response_id=2)
    yield bad("saferlhf-same", SAFERLHF, "the same text", response_1="Hi!")
    yield bad("saferlhf-blank", SAFERLHF, "`response_0` is empty", response_0=" ")


def k_wise_cases() -> Iterator[Case]:
    for row in (BEST, RANKS, SOFT, SCORES):
        same = ["Hi!"] * len(row["responses"])
        yield bad(f"{list(row)[-1]}-same", row, f"`responses`: all {len(same)} are the same text; delete the row", responses=same)
    for name, (row, answer) in {
        "best": (BEST, "best"), "ranks": (RANKS, "ranks"), "soft": (SOFT, "probabilities"), "scores": (SCORES, "scores"),
    }.items():  # fmt: skip
        yield bad(f"{name}-no-responses", row, "`responses` is missing", responses=...)
        yield bad(f"{name}-one-response", row, "`responses`: 1 response", responses=["Hi!"])
        yield bad(f"{name}-responses-text", row, "`responses`: expected a list of texts", responses="Hi!")
        yield bad(f"{name}-empty-response", row, "`responses[1]` is empty", responses=["Hi!", " ", "Oh."])
        yield bad(f"{name}-response-number", row, "`responses[0]`: expected a text", responses=[1, "No.", "Oh."])
        yield bad(f"{name}-no-answer", row, f"`{answer}` is missing", **{answer: ...})
        yield bad(f"{name}-no-prompt", row, "`prompt` is missing", prompt=...)
        yield bad(f"{name}-answer-null", row, f"`{answer}`: expected", **{answer: None})
        yield bad(f"{name}-answer-text", row, f"`{answer}`: expected", **{answer: "first"})
        yield bad(f"{name}-answer-object", row, f"`{answer}`: expected", **{answer: {"0": 1}})
        yield bad(f"{name}-round", row, "`round`", round=-1)
        yield bad(f"{name}-confidence", row, "`confidence`", confidence=2)
    for value in (3, -1, 1.5, True, "tie"):
        yield bad(f"best-{value}", BEST, "`best`: expected the index of a response, 0 to 2", best=value)
    for value in ([0, 1], [0, 1, 2, 3]):
        yield bad(f"ranks-wrong-k-{len(value)}", RANKS, "`ranks`: expected a rank from 0 (best) for each of the 3", ranks=value)
    for value in ([0, 2, 3], [1, 3, 3], [0, 0, 2], [2, 3, 4]):
        yield bad(f"ranks-gap-{value}", RANKS, "`ranks`: a gap in the ranks", ranks=value)
    for value in ([-1, 0, 1], [0.0, 1, 2], [0, 1, None], ["0", 1, 2]):
        yield bad(f"ranks-{value}", RANKS, "`ranks`: expected a rank", ranks=value)
    for value in ([0.7, 0.4], [0.5, 0.49], [1.5, -0.5], [1.0], [0.5, 0.25, 0.25], [0.5, None], [True, False], [0, 0]):
        yield bad(f"soft-{value}", SOFT, "`probabilities`: expected 2 probabilities that sum to 1", probabilities=value)
    for value in ([1, 2], [1, 2, 3, 4], [1, 2, None], [1, 2, "3"], [1, 2, True]):
        yield bad(f"scores-{value}", SCORES, "`scores`: expected a number for each of the 3", scores=value)
    yield Case("scores-nan", "x.jsonl", among(SCORES, json.dumps(SCORES).replace("3.5", "NaN")), (2,), "NaN")
    yield Case("soft-1e400", "x.jsonl", among(SOFT, json.dumps(SOFT).replace("0.7", "1e400")), (2,), "too large")
    for value in ("good", None, True, [4]):
        yield bad(f"rating-{value}", RATING, "`rating`: expected a number", rating=value)
    yield bad("rating-no-response", RATING, "neither `completion` nor `response`", response=...)
    yield bad("rating-empty", RATING, "`response` is empty", response="")


def named_cases() -> Iterator[Case]:
    """Data sets with a name."""
    ultra: dict[str, tuple[str, Any, str]] = {
        "no-instruction": ("instruction", ..., "`instruction` is missing"),
        "empty-instruction": ("instruction", "", "`instruction` is empty"),
        "no-completions": ("completions", [], "`completions`: 0 response"),
        "one-completion": ("completions", ULTRA["completions"][:1], "`completions`: 1 response"),
        "completions-text": ("completions", "Hi!", "`completions`: expected a list"),
        "completion-text": ("completions/0", "Hi!", "`completions[0]`: expected an object"),
        "no-response": ("completions/1/response", ..., "`completions[1]`: `response`"),
        "empty-response": ("completions/1/response", " ", "`completions[1]`: `response` is empty"),
        "score-text": ("completions/0/fine-grained_score", "good", "`completions[0]`: `fine-grained_score`: expected a number"),
        "score-list": ("completions/0/fine-grained_score", [1], "`fine-grained_score`: expected a number"),
    }
    for name, (path, value, says) in ultra.items():
        yield Case(f"ultra-{name}", "x.jsonl", among(ULTRA, deep(ULTRA, path, value)), (2,), says)
    without = deep(deep(ULTRA, "completions/0/fine-grained_score", ...), "completions/0/overall_score", None)
    yield Case("ultra-no-score", "x.jsonl", among(ULTRA, without), (2,), "`completions[0]`: neither `fine-grained_score` nor")
    yield bad("argilla-pair-empty", ARGILLA, "`chosen_response` is empty", chosen_response="")
    yield bad("argilla-pair-same", ARGILLA, "`chosen_response` and `rejected_response` are the same", chosen_response="No.")
    yield bad("argilla-pair-ratings", ARGILLA, "`chosen_avg_rating`: 1 is less", chosen_avg_rating=1)
    yield bad("argilla-pair-one-rating", ARGILLA, "`rejected_avg_rating` is missing", rejected_avg_rating=...)
    for value in (2, -1, "A", None, True, 0.5):
        yield bad(f"shp-labels-{value!r}", SHP, "`labels`: expected a whole number from 0 to 1", labels=value)
    yield bad("shp-votes", SHP, "`labels`: 0, but `score_A` is 20", labels=0)
    yield bad("shp-same", SHP, "`human_ref_A` and `human_ref_B` are the same", human_ref_A="No.")
    yield bad("shp-empty", SHP, "`human_ref_B` is empty", human_ref_B="")
    yield bad("shp-history", SHP, "`history`: expected a text", history=["Say hi"])
    for value in ("c", "A", None, 0, "tie"):
        yield bad(f"summeval-preferred-{value!r}", SUMMEVAL, '`preferred`: expected "a" or "b"', preferred=value)
    yield bad("summeval-against-the-means", SUMMEVAL, "`preferred`: a, but `mean_a` - `mean_b`", preferred="a")
    yield bad("summeval-one-mean", SUMMEVAL, "`mean_b` is missing", mean_b=...)
    yield bad("summeval-mean-text", SUMMEVAL, "`mean_a`: expected a number", mean_a="low")
    yield bad("summeval-same", SUMMEVAL, "`summary_a` and `summary_b` are the same", summary_a="No.")
    yield bad("summeval-no-article", SUMMEVAL, "`article` is empty", article=" ")


def target_cases() -> Iterator[Case]:
    """Sound rows that the target, or the kind that is asked for, has no word for."""
    tie = {"prompt": "Say hi", "responses": ["Hi!", "No."], "kind": "pair", "answer": "tie"}
    certain = changed(tie, answer=0)
    for to in ("pairs", "transcripts", "conversations", "best_of_k", "shp", "ziegler2019", "stiennon2020", "unpaired", "scores"):
        out = "x.json" if to == "ziegler2019" else "x.jsonl"
        good = certain if to not in ("unpaired", "scores") else {"unpaired": UNPAIRED, "scores": SCORES}[to]
        if good is not certain:
            continue
        yield Case(f"tie-to-{to}", "x.jsonl", among(certain, tie), (2,), "a tied pair cannot be written as", (("to", to), ("out", out)))
    told = "cannot be written as pairs; table, soft can hold it"
    yield Case("soft-to-pairs", "x.jsonl", lines(SOFT), (1,), told, (("to", "pairs"),))
    yield Case("soft-to-ranking", "x.jsonl", lines(SOFT), (1,), "cannot be written as ranking", (("to", "ranking"),))
    yield Case("best-to-ranking", "x.jsonl", lines(BEST), (1,), "table, pairs, transcripts", (("to", "ranking"),))
    tied = {"prompt": "Say hi", "responses": ["Hi!", "No.", "Oh."], "ranks": [0, 0, 1]}
    yield Case("tied-ranks-to-pairs", "x.jsonl", among(RANKS, tied), (1, 2, 3), "table, ranking, argilla can hold it", (("to", "pairs"),))
    yield Case("rating-to-pairs", "x.jsonl", lines(RATING), (1,), "table, rating can hold it", (("to", "pairs"),))
    yield Case("unpaired-to-pairs", "x.jsonl", lines(UNPAIRED), (1,), "table, unpaired can hold it", (("to", "pairs"),))
    yield Case("pairs-to-unpaired", "x.jsonl", lines(PAIR), (1,), "cannot be written as unpaired", (("to", "unpaired"),))
    yield Case("pairs-to-scores", "x.jsonl", lines(PAIR), (1,), "cannot be written as scores", (("to", "scores"),))
    kinds = {
        "rating": (PAIR, "cannot become rating; it can become best_of_k, pair, ranking, soft, binary"),
        "pair": (UNPAIRED, "cannot become pair; it can become rating, binary"),
        "ranking": (BEST, "cannot become ranking; it can become best_of_k, pair, soft, binary"),
        "best_of_k": (changed(RANKS, ranks=[0, 0, 1]), "cannot become best_of_k; it can become pair, ranking"),
        "soft": (RATING, "cannot become soft; it can become rating, binary"),
        "scores": (PAIR, "cannot become scores"),
        "difference": (SOFT, "cannot become difference"),
    }
    for kind, (row, says) in kinds.items():
        yield Case(f"kind-{kind}", f"x.jsonl?kind={kind}", lines(row), (1,), says)
    for name, source, says in (
        ("kind", "x.jsonl?kind=duel", "there are best_of_k, pair"),
        ("format", "x.jsonl?format=yaml", "there are table, best_of_k"),
        ("faulty", "x.jsonl?faulty=mend", "there is skip"),
        ("setting", "x.jsonl?colour=red", "there are format, kind, middle, faulty"),
    ):
        yield Case(f"setting-{name}", source, lines(PAIR), (None,), says)
    yield Case("another-format", "x.jsonl?format=shp", lines(PAIR), (1,), "`human_ref_A` is missing")
    yield Case("unknown-target", "x.jsonl", lines(PAIR), (None,), "there are table, pairs", (("to", "yaml"),))
    yield Case("target-container", "x.jsonl", lines(ULTRA), (None,), "ultrafeedback is written as jsonl or json",
               (("to", "ultrafeedback"), ("out", "x.csv")))  # fmt: skip
    yield Case("samples-without-labels", "x.jsonl", lines({"post": "x", "samples": {"a": "y"}}), (1,), "nothing that says which is better")


def container_cases() -> Iterator[Case]:
    """The same faults in a list and behind blank lines have their own line."""
    for name, row in FORMATS.items():
        key = next(iter(row))
        yield Case(f"list-{name}", "x.json", listed(row, changed(row, **{key: 17}), row), (3,), f"`{key}`")
        yield Case(f"crlf-{name}", "x.jsonl", lines(row, "", changed(row, **{key: False})).replace(b"\n", b"\r\n"), (3,), "`")


NEW = [
    *transcript_cases(), *pair_cases(), *conversation_cases(), *k_wise_cases(), *named_cases(), *safety_cases(), *target_cases(),
    *container_cases(),
]  # fmt: skip
SHARED = [case for case in (*jsonl_cases(), *file_cases(), *list_cases(), *csv_cases()) if not case.options]


@pytest.mark.parametrize("case", [*NEW, *SHARED], ids=lambda case: case.name)
def test_a_fault_has_its_line_and_its_column_and_nothing_is_written(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file.partition("?")[0]
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    else:
        case.content(path)
    options = dict(case.options)
    out = tmp_path / "out" / options.get("out", "x.jsonl")
    out.parent.mkdir()
    with pytest.raises(UserError) as raised:
        convert(str(tmp_path / case.file), out, options.get("to", "table"))
    told = str(raised.value).splitlines()
    found = [re.match(re.escape(f"{path}:") + r"(\d+):", line) for line in told]
    assert [int(match[1]) if match else None for match in found] == list(case.lines), told
    assert case.says in told[0], told[0]
    assert all(len(line) < 400 for line in told)
    assert list(out.parent.iterdir()) == []


def test_the_good_rows_of_the_cases_are_good(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for name, row in FORMATS.items():
        path.write_bytes(lines(row))
        file = LabelFile(path)
        assert len(list(file.labeled())) == 1, name
        file.faults.check()


def test_there_are_enough_cases() -> None:
    names = [case.name for case in NEW]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert len(names) >= 150


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_the_commands_say_so_and_leave_with_2(command: str, tmp_path: Path) -> None:
    path, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    path.write_bytes(lines("{", PAIR, "[]"))
    done = run("data", command, path, *([out, "--to", "pairs"] if command == "convert" else []))
    assert (done.code, done.out) == (2, "")
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == ["error", "error"]
    assert not out.exists()


def test_rows_with_a_fault_are_skipped_when_asked(tmp_path: Path) -> None:
    path, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    path.write_bytes(lines(PAIR, changed(PAIR, chosen=""), "[]", changed(PAIR, prompt="Well?")))
    done = run("data", "convert", f"{path}?faulty=skip", out, "--to", "pairs")
    assert (done.code, done.err) == (0, f"{path}?faulty=skip: 2 pair -> 2 rows of pairs in {out}; 2 rows with a fault were skipped\n")
