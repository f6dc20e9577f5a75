"""Prompts cut from texts, for several tokenizers, against a slow restatement of the published rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig, Text
from humanward.errors import UserError
from humanward.records import Comparison, Prompt, Response

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def plain(**settings: object) -> TaskConfig:
    return TaskConfig(**{"prompt_start": None, "prompt_end": None, "truncate_token": None, **settings})


def tokens(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def published_rule(ids: list[int], length: int, start: int | None, end: int | None) -> list[int] | None:
    """The rule as the published code states it, in steps as small as they come."""
    kept = list(ids)
    if start is not None:
        if start not in kept:
            return None
        dropped = list(kept)
        while dropped[0] != start:
            dropped.pop(0)
        dropped.pop(0)
        if dropped:
            kept = dropped
    kept = kept[:length]
    if end is not None:
        if end not in kept:
            return None
        while kept[-1] != end:
            kept.pop()
    return kept


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")


@pytest.fixture(scope="module")
def llama(shared_data: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")


def book_pieces(shared_data: Path) -> list[str]:
    """450 pieces of real books, cut at fixed places, so that some have no full stop, some only one, some only at the end."""
    pieces = []
    for name in ("alices-adventures-in-wonderland-11", "grimms-fairy-tales-2591", "treasure-island-120"):
        text = (shared_data / "books" / "children" / f"{name}.txt").read_text(encoding="utf-8")
        pieces += [text[i * 311 : i * 311 + 20 + (i * 37) % 700] for i in range(150)]
    return pieces


@pytest.mark.parametrize(("start", "end", "length"), [(".", ".", 64), (None, ".", 16), (".", None, 64), (None, "\n", 30), (",", ".", 24)])
def test_cut_agrees_with_the_published_rule_on_books(
    gpt2: PreTrainedTokenizerBase, shared_data: Path, start: str | None, end: str | None, length: int
) -> None:
    task = Task(plain(prompt_start=start, prompt_end=end, prompt_length=length), gpt2)
    ids = {".": 13, "\n": 198, ",": 11, None: None}
    skipped = 0
    for text in book_pieces(shared_data):
        expected = published_rule(gpt2(text, verbose=False)["input_ids"], length, ids[start], ids[end])
        assert task.cut(text) == (None if expected is None else tuple(expected))
        skipped += expected is None
    assert (skipped > 0) == ((start, end) != (None, None))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_passage_of_a_book_keeps_the_rule(name: str, shared_data: Path, request: pytest.FixtureRequest) -> None:
    task = Task(TaskConfig(), request.getfixturevalue(name))
    text = (shared_data / "books" / "children" / "the-velveteen-rabbit-11757.txt").read_text(encoding="utf-8")
    prompts = task.prompts([Text(text, "rabbit")], passages=True)
    assert len(prompts) > 50
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    position = 0
    for prompt in prompts:
        assert len(prompt.tokens) <= task.max_prompt_length
        assert prompt.tokens[-1] == task.truncate_token_id
        assert prompt.text.endswith(".")
        begin = text.index(prompt.text, position)  # decoded text is the book's own, in order, without overlap
        assert text[begin - 1] == "."
        position = begin + len(prompt.text)
    assert task.cut(text[text.index(prompts[3].text) - 1 :]) == prompts[3].tokens


def test_a_full_stop_is_found_where_a_tokenizer_hides_it(llama: PreTrainedTokenizerBase) -> None:
    assert llama(".", add_special_tokens=False)["input_ids"] != [llama.convert_tokens_to_ids(".")]  # two tokens in isolation
    assert Task(TaskConfig(), llama).truncate_token_id == llama.convert_tokens_to_ids(".")


def test_the_published_marks_have_the_published_ids(gpt2: PreTrainedTokenizerBase) -> None:
    """launch.py: truncate_token 13 is '.', 198 is the line feed."""
    assert Task(TaskConfig(), gpt2).truncate_token_id == 13
    assert Task(plain(truncate_token="\n"), gpt2).truncate_token_id == 198


def test_prefix_and_suffix_are_the_tokens_of_their_own_text(gpt2: PreTrainedTokenizerBase) -> None:
    task = Task(plain(prompt_prefix="Article:\n\n", prompt_suffix="\n\nTL;DR:", prompt_length=500), gpt2)
    expected = [*gpt2("Article:\n\n")["input_ids"], *gpt2("A cat sat.")["input_ids"], *gpt2("\n\nTL;DR:")["input_ids"]]
    assert task.cut("A cat sat.") == tuple(expected)
    assert task.prompts(["A cat sat."])[0].text == "Article:\n\nA cat sat.\n\nTL;DR:"


def test_the_tokenizers_own_beginning_of_text_stands_in_front(llama: PreTrainedTokenizerBase) -> None:
    task = Task(plain(prompt_suffix=" The end"), llama)
    cut = task.cut("Once upon a time")
    assert cut == tuple(llama("Once upon a time The end")["input_ids"])
    assert cut is not None
    assert cut[0] == llama.bos_token_id
    assert task.prompts(["Once upon a time"])[0].text == " Once upon a time The end"


@pytest.mark.parametrize("name", ["gpt2", "llama", "byte_tokenizer"])
def test_a_continuation_keeps_its_leading_space(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    task = Task(plain(), tokenizer)
    for text in (" jumped over the moon.", "\n\nThe end", " naïve café…"):
        assert task.decode(task.encode_continuation(text)) == text
    joined = tokenizer("The cow jumped", add_special_tokens=False)["input_ids"]
    assert [*tokenizer("The cow", add_special_tokens=False)["input_ids"], *task.encode_continuation(" jumped")] == joined


def test_a_mark_of_two_tokens_is_refused(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"^task.prompt_end: '\.\.' is not one token of this tokenizer; .*task.prompt_end=null$"):
        Task(plain(prompt_end=".."), byte_tokenizer)


def test_the_lengths_must_fit_the_context(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    Task(plain(prompt_length=40, response_length=24), byte_tokenizer, context_length=64)
    long = plain(prompt_length=40, prompt_suffix=":", response_length=24)
    message = r"^task.prompt_length: prompts of up to 41 tokens and responses of 24 need 65, but the context of {} is {}; {}$"
    for room, remedy in ((64, "set task.prompt_length=39 or less, or lower task.response_length"), (20, "lower task.response_length")):
        with pytest.raises(UserError, match=message.format("some/name", room, remedy)):
            Task(long, byte_tokenizer, context_length=room, model_name="some/name")


def test_pad_must_not_be_eos(gpt2: PreTrainedTokenizerBase) -> None:
    gpt2 = AutoTokenizer.from_pretrained(gpt2.name_or_path)
    gpt2.pad_token = gpt2.eos_token
    with pytest.raises(UserError, match="PAD and EOS are the same token"):
        Task(TaskConfig(), gpt2)


def test_stopping_at_eos_needs_an_eos(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    without = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match=r"task.stop_at_eos"):
        Task(plain(stop_at_eos=True), without)


def test_truncation_must_be_reachable() -> None:
    with pytest.raises(ValueError, match="truncate_after 24 is not smaller than response_length 24"):
        TaskConfig(truncate_after=24, response_length=24)
    assert TaskConfig(truncate_after=24, response_length=24, truncate_token=None).truncate_token is None


def test_special_tokens_in_a_text_are_letters_and_in_a_prompt_tokens(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(plain(), byte_tokenizer)
    assert task.cut("a<|end|>") == tokens("a<|end|>")
    assert task.prompts([Text("a<|end|>", "1", whole=True)])[0].tokens == (*tokens("a"), byte_tokenizer.eos_token_id)


def test_a_whole_prompt_is_not_cut(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(TaskConfig(prompt_suffix=" A:"), byte_tokenizer)
    (prompt,) = task.prompts([Text("Hi. Who? I", "p1", whole=True, metadata={"source": "me"})])
    assert (prompt.id, prompt.text, prompt.tokens) == ("p1", "Hi. Who? I A:", tokens("Hi. Who? I A:"))
    assert prompt.metadata == {"source": "me"}


def test_a_whole_prompt_that_is_too_long_is_refused(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(plain(prompt_length=4), byte_tokenizer)
    with pytest.raises(UserError, match=r"^p.jsonl:3: the prompt has 5 tokens and task.prompt_length is 4; .*raise task.prompt_length$"):
        task.prompts([Text("12345", "x", "p.jsonl:3", whole=True)])


def test_an_empty_text_and_a_text_without_marks_are_left_out(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert [p.text for p in Task(TaskConfig(), byte_tokenizer).prompts(["", "no mark", "A. B. C"])] == [" B."]
    assert Task(plain(), byte_tokenizer).cut("") is None


def test_passages_go_on_behind_a_sentence_that_is_too_long(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    # window of 4 bytes behind each '.': "loooong" holds none, so the rule looks on behind the next one
    task = Task(TaskConfig(prompt_length=4), byte_tokenizer)
    assert [p.text for p in task.prompts([Text("x.loooong.ab.c.d.", "t")], passages=True)] == ["ab.", "d."]
    assert task.cut("x.loooong.ab.c.d.") is None


def test_texts_keep_their_order_and_names_in_large_batches(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [Text(f"text {i}", f"id {i}", whole=i % 3 == 0) for i in range(600)]
    prompts = Task(plain(), byte_tokenizer).prompts(iter(texts))
    assert [(p.id, p.text) for p in prompts] == [(t.id, t.text) for t in texts]


def messages(*turns: tuple[str, str]) -> Text:
    return Text("", "m", "c.jsonl:2", messages=tuple({"role": role, "content": content} for role, content in turns))


def test_messages_are_rendered_with_the_chat_template(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer, chat_template=TEMPLATE)
    task = Task(plain(prompt_prefix="not for conversations"), chat)
    (prompt,) = task.prompts([messages(("user", "Hello"))])
    assert prompt.text == "<user>Hello\n<assistant>"
    assert prompt.tokens == tokens(prompt.text)
    assert prompt.metadata["messages"] == [{"role": "user", "content": "Hello"}]


def test_messages_need_a_template_and_something_to_answer(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"^c.jsonl:2: messages need a chat template"):
        Task(plain(), byte_tokenizer).prompts([messages(("user", "Hello"))])
    chat = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer, chat_template=TEMPLATE)
    with pytest.raises(UserError, match=r"^c.jsonl:2: the last message is the assistant's"):
        Task(plain(), chat).prompts([messages(("user", "Hello"), ("assistant", "Hi"))])
    chat.chat_template = "{{ raise_exception('users only') }}"
    with pytest.raises(UserError, match=r"^c.jsonl:2: the chat template does not accept these messages: users only"):
        Task(plain(), chat).prompts([messages(("user", "Hello"))])


def test_a_tokenizer_that_knows_words_only_loses_none() -> None:
    """There a text that is glued to a context is one unknown word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = Tokenizer(models.WordLevel({"<end>": 0, "<pad>": 1, "good": 2, "dog": 3}, unk_token="<end>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    task = Task(plain(), PreTrainedTokenizerFast(tokenizer_object=known, eos_token="<end>", pad_token="<pad>"))
    assert task.encode_continuation("good dog") == (2, 3)
    assert task.decode((2, 3)) == "good dog"


def test_labels_without_tokens_get_those_of_their_texts(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task.plain(byte_tokenizer)
    responses = (Response(" yes"), Response(" no", (1, 2)))
    made = task.tokenized(Comparison(Prompt("p", "Well?"), responses, "pair", 0))
    assert made.prompt.tokens == tuple(b"Well?")
    assert [response.tokens for response in made.responses] == [tuple(b" yes"), (1, 2)]
    assert task.tokenized(made) is made
