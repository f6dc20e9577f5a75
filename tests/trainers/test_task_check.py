"""The check of a run's own model, tokenizer and prompts: silent where they go together, one line where they do not."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig, Text
from humanward.errors import RunError, UserError
from humanward.models import Policy, sampling
from humanward.records import Prompt
from humanward.trainers.selftest import END, PAD, WORDS, tiny_policy, tiny_task, tiny_tokenizer
from humanward.trainers.task_check import check_prompts, check_task

ROWS = [(4,), (5, 6, 2), (7, 2), (3, 3, 3, 4, 5), (6,)]
PROMPTS = [Prompt(str(n), " ".join(WORDS[token - 2] for token in row), row) for n, row in enumerate(ROWS)]


def learned_positions() -> Policy:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=8, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    return Policy(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer())


def unpacked() -> Policy:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=8, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.4, eos_token_id=END, pad_token_id=PAD)
    return Policy(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer())


def task_of(policy: Policy, **settings: Any) -> Task:
    return tiny_task(policy, **{"response_length": 6, "temperature": 0.6, **settings})


@pytest.mark.parametrize("make", [tiny_policy, learned_positions, unpacked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_are_served_pass(make: Callable[[], Policy], dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    policy = make()
    policy.model.to(dtype)
    for temperature in (0.6, 1.0, 2.0):
        check_task(policy, task_of(policy, temperature=temperature), PROMPTS)
    check_task(policy, task_of(policy), PROMPTS[:1])
    assert not [record for record in caplog.records if "divide" in record.message]


def test_a_tokenizer_without_a_pad_token_passes() -> None:
    """Something fills the slots, and nobody reads it."""
    policy = learned_positions()
    policy.tokenizer.pad_token = None
    check_task(policy, task_of(policy), PROMPTS)


@pytest.mark.skipif(not files("humanward").joinpath("assets/storyteller/config.json").is_file(), reason="the embedded model is not there")
def test_the_embedded_model_passes(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy.load("asset:storyteller")
    task = Task(TaskConfig(), policy.tokenizer)
    texts = [
        "Once upon a time. There was a fox who lived in a wood. He ate.",
        "It rained. Nobody came. The dog slept, and slept, and slept.",
    ]
    prompts = task.prompts(texts)
    assert len(prompts) == 2
    check_task(policy, task, prompts)
    assert caplog.records == []


def sampler_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sampling.draw
    monkeypatch.setattr(sampling, "draw", lambda logits, u, settings, s: draw(logits, u, dataclasses.replace(settings, temperature=1.0), s))


def forward_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Policy.logprobs_of
    monkeypatch.setattr(Policy, "logprobs_of", lambda *args, **settings: of(*args, **{**settings, "temperature": 1.0}))


def sampler_counts_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that begin at the first column of a left-padded block."""
    monkeypatch.setattr(sampling, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape))


def forward_tells_pads_by_their_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """What libraries do that have PAD = EOS: a real token of that id is lost."""
    forward = Policy.forward

    def by_id(self: Policy, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor, **settings: Any) -> Any:
        return forward(self, prompts, prompt_mask, responses, mask & (responses != self.pad_id), **settings)

    monkeypatch.setattr(Policy, "forward", by_id)


def forward_reads_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Policy.forward

    def all_real(self: Policy, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor, **settings: Any) -> Any:
        return forward(self, prompts, torch.ones_like(prompt_mask), responses, mask, **settings)

    monkeypatch.setattr(Policy, "forward", all_real)


FAULTS = {
    sampler_at_one: r"log-probabilities while sampling are those at temperature 1 and not at task.temperature=0.6; look at the temperature",
    forward_at_one: r"log-probabilities of a forward are those at temperature 1 and not at task.temperature=0.6; look at the temperature",
    sampler_counts_pads: r"log-probabilities while sampling differ from the model's own by .*; look at padding or positions of GPT2",
    forward_reads_pads: r"log-probabilities of a forward differ from the model's own by .*; look at padding or positions of GPT2",
    forward_tells_pads_by_their_id: r"log-probabilities change by .* nats per token with what stands in the padding; look at how GPT2",
}


@pytest.mark.parametrize(("mutate", "message"), FAULTS.items(), ids=lambda part: getattr(part, "__name__", ""))
def test_what_does_not_agree_is_caught(mutate: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = learned_positions()
    check_task(policy, task_of(policy), PROMPTS)
    mutate(monkeypatch)
    with pytest.raises(RunError, match=rf"^self-test: {message}.*\. Nothing was trained$") as fault:
        check_task(policy, task_of(policy), PROMPTS)
    assert "\n" not in str(fault.value)


def test_numbers_that_are_none_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, of = tiny_policy(), Policy.logprobs_of
    monkeypatch.setattr(Policy, "logprobs_of", lambda *args, **settings: (of(*args, **settings)[0] * torch.nan, None))
    with pytest.raises(RunError, match=r"^self-test: log-probabilities of a forward differ from the model's own by nan nats per token"):
        check_task(policy, task_of(policy), PROMPTS)


def test_tokens_that_the_model_does_not_have() -> None:
    """The tokenizer has grown and the embedding has not, as where somebody adds [PAD] to GPT-2."""
    for changed, words in (
        ({"pad_token": "[PAD]"}, r"the pad token '\[PAD\]' is number 8, but the model has 8 tokens; set pad_token to one that it has"),
        (
            {"eos_token": "[END]"},
            r"the end-of-text token '\[END\]' is number 8, .* so that no response would end; set task",
        ),
    ):
        policy = tiny_policy()
        policy.tokenizer.add_special_tokens(changed)
        task = Task(task_of(policy).config.model_copy(update={"stop_at_eos": True}), policy.tokenizer)
        with pytest.raises(UserError, match=f"^LlamaForCausalLM: {words}"):
            check_task(policy, task, PROMPTS)
    policy = tiny_policy()
    policy.tokenizer.add_tokens(["new"])
    with pytest.raises(UserError, match=r"^prompt 7: has the token '.*new', number 8, but LlamaForCausalLM has 8 tokens; use"):
        check_task(policy, task_of(policy), [*PROMPTS, Prompt("7", "", (4, 8))])


def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One that puts <s> in front itself, as Llama's does."""
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    number = tokenizer.convert_tokens_to_ids("<s>")
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def free(**settings: Any) -> TaskConfig:
    return TaskConfig(**{"prompt_start": None, "prompt_end": None, "truncate_token": None, **settings})


def test_a_beginning_of_text_token_that_comes_twice(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = beginning(copy.deepcopy(byte_tokenizer))
    task = Task(free(), tokenizer)
    check_prompts(task, task.prompts([Text("a dog", "1", whole=True)]))
    doubled = task.prompts([Text("<s>a dog", "1", whole=True)])
    assert doubled[0].tokens[:2] == (258, 258)
    with pytest.raises(UserError, match=r"^prompt 1: begins with '<s>' twice, since the tokenizer puts one in front itself; take it out"):
        check_prompts(task, doubled)
    task = Task(free(prompt_prefix="<s>"), tokenizer)
    with pytest.raises(UserError, match=r"^prompt 1: begins with '<s>' twice, .* or out of task.prompt_prefix$"):
        check_prompts(task, task.prompts([Text("a dog", "1", whole=True)]))


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a space belongs to the word behind it, as in all of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = [("Ġ", "w"), ("Ġw", "o"), ("Ġwo", "r"), ("Ġwor", "d")]
    vocabulary = {token: number for number, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


@pytest.mark.parametrize(
    ("settings", "texts", "said"),
    [
        ({}, ["a dog", "a cat "], False),  # one of them: an accident of the data
        ({}, ["a dog ", "a cat "], True),
        ({"prompt_suffix": " TL;DR:"}, ["a dog", "a cat"], False),
        ({"prompt_suffix": " TL;DR: "}, ["a dog", "a cat"], True),
        ({"prompt_suffix": "\n"}, ["a dog", "a cat"], False),
        ({"prompt_prefix": "Hear: "}, ["word", "word one"], False),  # as the published prefixes are
    ],
)
def test_a_prompt_that_is_no_prefix_of_the_whole_text_is_said(
    settings: dict[str, Any], texts: list[str], said: bool, merging: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(free(**settings), merging)
    with caplog.at_level(logging.WARNING, "humanward"):
        check_prompts(task, task.prompts([Text(text, str(n), whole=True) for n, text in enumerate(texts)]))
    assert [("leave out the white space at the end of prompts" in record.getMessage()) for record in caplog.records] == [True] * said
