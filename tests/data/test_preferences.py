"""Preference data as training reads it: tokens, templates, kinds; streamed; and the real files that lie beside the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from humanward.data import PreferenceData, Task
from humanward.data.formats import LabelFile
from humanward.errors import UserError
from humanward.trainers import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from humanward.trainers.questions import DIRECT_KINDS
from humanward.trainers.selftest import tiny_policy, tiny_task

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
HH = "hh-harmless-base-test.jsonl.gz"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def chat(byte_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    made.chat_template = TEMPLATE
    return made


def test_texts_become_tokens_and_end_where_the_task_stops(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"prompt": "Q:", "chosen": " yes", "rejected": " no", "weight": 2})
    for stop, end in ((False, ()), (True, (256,))):
        (found,) = PreferenceData(path, Task.plain(byte_tokenizer, stop_at_eos=stop))
        assert found.prompt.tokens == tuple(b"Q:")
        assert [r.tokens for r in found.responses] == [tuple(r.text.encode()) + end for r in found.responses]
        assert found.responses[found.target].text == " yes"  # type: ignore[index]
        assert (found.weight, bool(found.question_id)) == (2.0, True)


def test_a_conversation_is_written_by_the_template(chat: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "A"}]}
    path = write(tmp_path / "x.jsonl", row | {"rejected": [{"role": "assistant", "content": "B"}]})
    (found,) = PreferenceData(path, Task.plain(chat, stop_at_eos=True))
    # <|end|> is the token 256 in what the template writes, once behind the question and once behind the answer
    assert found.prompt.tokens == (*b"<user>Q", 256, *b"<assistant>")
    assert sorted(r.tokens for r in found.responses) == [(*b"A", 256), (*b"B", 256)]


def test_letters_that_look_like_a_token_stay_letters(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"prompt": "Q", "chosen": "<|end|>", "rejected": "no"})
    (found,) = PreferenceData(path, Task.plain(byte_tokenizer))
    assert tuple(b"<|end|>") in [r.tokens for r in found.responses]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "needs? a chat template and this tokenizer has none"),
        ("{{ raise_exception('no') }}", "the chat template does not accept these messages: no"),
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "writes the prompt in another way"),
    ],
)
def test_a_template_that_does_not_fit_is_one_line_with_its_place(
    template: str | None, says: str, chat: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    chat.chat_template = template
    talk = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}] for answer in "AB"]
    path = write(tmp_path / "x.jsonl", {"chosen": talk[0], "rejected": talk[1]})
    with pytest.raises(UserError, match=rf"^{path}:1: .*{says}"):
        list(PreferenceData(path, Task.plain(chat)))


def test_many_rows_at_once_are_those_one_by_one(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n % 7} ", "chosen": f"yes {n}", "rejected": f" no {n % 5}"} for n in range(600)]
    task = Task.plain(byte_tokenizer)
    together = list(PreferenceData(write(tmp_path / "x.jsonl", *rows), task))
    alone = [task.tokenized(c) for c in PreferenceData(tmp_path / "x.jsonl")]
    assert together == alone
    assert len(together) == 600


def test_it_is_streamed(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The first comparison is there before a fault in row 1000 is."""
    rows = [{"prompt": f"Q{n}", "chosen": "yes", "rejected": "no"} for n in range(1200)]
    found = iter(PreferenceData(write(tmp_path / "x.jsonl", *rows, {"prompt": "Q"}), Task.plain(byte_tokenizer)))
    assert next(found).prompt.text == "Q0"
    with pytest.raises(UserError, match=r"x\.jsonl:1201: `chosen` is missing"):
        list(found)


def test_long_rows_are_left_out_and_counted(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "Q" * n, "chosen": "yes", "rejected": "no"} for n in (1, 5, 9)]
    data = PreferenceData(write(tmp_path / "x.jsonl", *rows), Task.plain(byte_tokenizer), max_tokens=8)
    assert [len(c.prompt.tokens) for c in data] == [1, 5]
    assert data.too_long == 1
    assert len(list(data)) == 2


def test_a_learner_without_use_for_differences_gets_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "responses": ["A", "B", "C"], "scores": [3, 1, 1]}]
    path = write(tmp_path / "x.jsonl", *rows)
    assert [(c.kind, c.target) for c in PreferenceData(path)] == [("difference", 2.0), ("difference", 2.0), ("difference", 0.0)]
    assert [(c.kind, c.target) for c in PreferenceData(path, kinds=DIRECT_KINDS)] == [("pair", 0), ("pair", 0), ("pair", [0.5, 0.5])]
    rated = write(tmp_path / "y.jsonl", {"prompt": "Q", "response": "A", "rating": 3})
    with pytest.raises(UserError, match=r"y\.jsonl:1: nothing is learnt from a label of kind rating"):
        list(PreferenceData(rated, kinds=DIRECT_KINDS))


GOOD, BAD = "good good", "bad bad"
TRAINABLE: dict[str, Any] = {
    "pairs": {"prompt": "w2", "chosen": GOOD, "rejected": BAD},
    "best_of_k": {"prompt": "w2", "responses": [BAD, GOOD, "w3 w3"], "best": 1},
    "ranking": {"prompt": "w2", "responses": [BAD, GOOD, "w3 w3"], "ranks": [2, 0, 1]},
    "soft": {"prompt": "w2", "responses": [BAD, GOOD], "probabilities": [0.2, 0.8]},
    "scores": {"prompt": "w2", "responses": [BAD, GOOD], "scores": [1, 4]},
    "margins": {"prompt": "w2", "chosen": GOOD, "rejected": BAD, "margin": 3},
    "unpaired": {"prompt": "w2", "completion": GOOD, "label": True},
    "ties": {"prompt": "w2", "responses": [GOOD, BAD], "kind": "pair", "answer": "tie"},
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_trainers_read_every_kind(name: str, tmp_path: Path) -> None:
    policy = tiny_policy()
    path = write(tmp_path / "x.jsonl", *[TRAINABLE[name]] * 4)
    task = tiny_task(policy)
    loss = "kto" if name == "unpaired" else "sigmoid"
    found = list(PreferenceData(path, task, kinds=DIRECT_KINDS))
    trainer = DPOTrainer(policy, policy.frozen_copy(), found, DPOConfig(loss=loss, lr=1e-2, batch_size=4))
    metrics = trainer.run()[0]
    assert metrics["loss"] == metrics["loss"]
    if name == "unpaired":
        return
    from humanward.models import RewardModel

    other = tiny_policy()
    config = RewardConfig(lr=1e-2, batch_size=4, normalize_before=False, normalize_after=False)
    fitted = RewardTrainer(RewardModel(other.model, other.tokenizer), list(PreferenceData(path, task)), config)
    assert fitted.step(0)["loss"] >= 0


# The real files


@pytest.fixture
def preferences(shared_data: Path) -> Path:
    folder = shared_data / "preferences"
    if not folder.is_dir():
        pytest.skip(f"no preference data in {folder}")
    return folder


def test_hh_rlhf(preferences: Path) -> None:
    """4 of its 2,312 rows have an empty answer; the others are all read."""
    path = preferences / HH
    file = LabelFile(path)
    assert sum(1 for _ in file.labeled()) == 2308
    with pytest.raises(UserError) as raised:
        file.faults.check()
    told = str(raised.value).splitlines()
    assert len(told) == 4
    assert all("`chosen` behind the prompt is empty" in line for line in told)
    found = list(PreferenceData(f"{path}?faulty=skip"))
    assert len(found) == 2308
    assert {c.kind for c in found} == {"pair"}
    assert all(c.prompt.text.startswith("\n\nHuman:") and c.prompt.text.endswith("\n\nAssistant:") for c in found)


def test_summeval(preferences: Path) -> None:
    path = preferences / "summeval-pairs.jsonl.gz"
    found = list(PreferenceData(path))
    assert len(found) == 11284
    assert len({c.prompt.text for c in found}) == 100
    margins = sorted(abs(c.target) for c in found)  # type: ignore[arg-type]
    assert (round(margins[0], 2), round(margins[-1], 2)) == (0.08, 3.58)  # as its README says


def test_samples_without_labels_are_told_so(preferences: Path) -> None:
    with pytest.raises(UserError, match=r"tldr-samples\.jsonl:1: `samples` of several models, and nothing that says which is better"):
        list(PreferenceData(preferences / "instructgpt-samples"))


def test_every_file_there_is_known(preferences: Path) -> None:
    def names() -> Iterator[str]:
        for path in preferences.rglob("*"):
            if path.is_file() and not path.name.startswith("LICENSE"):
                yield path.name

    assert sorted(names()) == [HH, "summeval-pairs.jsonl.gz", "tldr-samples.jsonl"]
