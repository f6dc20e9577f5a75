"""What an inspection finds, each number worked out by hand; and personal data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from humanward.data import Task
from humanward.data.inspection import inspect, prompts_of
from humanward.data.personal import luhn, personal
from humanward.errors import UserError


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_counts_and_lengths(tmp_path: Path) -> None:
    source = write(
        tmp_path / "x.jsonl",
        pair("Q1", "long answer", "no"),  # 11 and 2 letters: the chosen one is longer
        pair("Q1", "long answer", "no"),  # a copy
        pair("Q1", "no", "long answer"),  # contradicts it; the chosen one is shorter
        pair("Q2", "yes", "why"),  # equal lengths: no word on bias
        pair("Q2", "Q2 is", "nothing", split="validation"),  # begins with its prompt; shorter
    )
    found = inspect(source)
    assert (found.format, found.rows, found.prompts, dict(found.labels)) == ("pairs", 5, 2, {"pair": 5})
    assert (found.copies, found.contradictions, found.ties, found.prompt_in_response) == (1, 1, 0, 1)
    assert (dict(found.splits), found.prompts_in_both_splits) == ({"train": 4, "validation": 1}, 1)
    assert sorted(found.lengths["chosen"]) == [2, 3, 5, 11, 11]
    assert sorted(found.lengths["rejected"]) == [2, 2, 3, 7, 11]
    assert found.quantiles()["chosen"] == {"10%": 2, "50%": 5, "90%": 11, "99%": 11, "100%": 11}
    bias = found.length_bias()
    assert bias is not None
    assert (bias["pairs"], bias["share"]) == (4, 0.5)
    assert (round(bias["low"], 3), round(bias["high"], 3)) == (0.150, 0.850)  # Wilson, 2 of 4
    assert found.example["prompt"] == "Q1"


def test_ties_and_k_responses(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "responses": ["a", "bb", "ccc"], "ranks": ranks} for ranks in ([0, 1, 2], [0, 0, 0], [1, 0, 0])]
    found = inspect(write(tmp_path / "x.jsonl", *rows))
    assert (found.ties, dict(found.responses), found.contradictions) == (1, {3: 3}, 2)
    # [0, 1, 2]: a over bb, a over ccc, bb over ccc; all equal: nothing; [1, 0, 0]: bb over a, ccc over a
    assert (found.longer_chosen, found.compared_lengths) == (2, 5)
    assert sorted(found.lengths["chosen"]) == [1, 2, 3]
    assert sorted(found.lengths["response"]) == [1, 2, 3]  # of the one where all are equal


def test_prompts_of_another_file(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", pair("Q1", "a", "b"), pair("Q2", "a", "b"))
    two = write(tmp_path / "b.jsonl", pair("Q2", "c", "d"), pair("Q3", "a", "b"))
    assert inspect(one, other_prompts=prompts_of(two)).prompts_in_other_file == 1


def test_marks_of_templates(tmp_path: Path) -> None:
    rows = [pair("\n\nHuman: Q\n\nAssistant:", " a\n\nHuman: and?", " b"), pair("[INST] Q [/INST]", "a", "b")]
    found = inspect(write(tmp_path / "x.jsonl", *rows))
    assert dict(found.marks_in_responses) == {"\n\nHuman:": 1}
    assert dict(found.marks_in_prompts) == {"\n\nHuman:": 1, "\n\nAssistant:": 1, "[INST]": 1, "[/INST]": 1}


def test_with_a_tokenizer(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer.backend_tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    refuse = "{% if m['content'] == 'Q' %}{{ raise_exception('no Q') }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + refuse + "{{ m['content'] }}{% endfor %}"
    task = Task.plain(tokenizer, context_length=40)
    talks = [{"prompt": [{"role": "user", "content": text}], "chosen": [{"role": "assistant", "content": "é"}],
              "rejected": [{"role": "assistant", "content": "no"}]} for text in ("Q", "P")]  # fmt: skip
    found = inspect(write(tmp_path / "x.jsonl", *talks, pair("<|end|><|end|>Q", "é", "no"), pair("x" * 39, "é", "no")), task)
    assert (found.unit, found.conversations, found.rows) == ("tokens", 2, 4)
    assert found.double_beginnings == 1
    assert found.beyond_context == 1  # 39 + 2
    assert dict(found.template_faults) == {"the chat template does not accept these messages: no Q": 1}
    assert sorted(found.lengths["prompt"]) == [1, 3, 39]  # the one that the template refused is not measured
    assert sorted(found.lengths["chosen"]) == [2, 2, 2]  # é is two bytes


def test_a_fault_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl:2: `chosen` is empty"):
        inspect(write(tmp_path / "x.jsonl", pair("Q", "a", "b"), pair("Q", "", "b")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann.lee+x@mail.example.org, or not", {"emails": 1}),
        ("a@b", {}),
        ("call (212) 555-0123 or 212-555-0123", {"phones": 2}),
        ("+49 30 901820 is a number in Berlin", {"phones": 1}),
        ("the year 1999-2000 and 3.14159", {}),
        ("card 4111 1111 1111 1111 please", {"cards": 1}),  # the well-known test number
        ("card 4111 1111 1111 1112 please", {}),  # its check digit is wrong
        ("server 192.168.0.1.", {"ip_addresses": 1}),
        ("version 1.2.3.4.5 or 300.1.1.1", {}),
        ("nothing here", {}),
        ("10.0.0.1 and b@c.de", {"ip_addresses": 1, "emails": 1}),
    ],
)
def test_personal_data(text: str, expected: dict[str, int]) -> None:
    assert personal(text) == expected


def test_luhn() -> None:
    assert luhn("79927398713")  # the example of ISO/IEC 7812-1 as commonly given: 7+9+9+4+7+6+9+7+7+2+3 = 70
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")
