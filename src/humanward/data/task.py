"""The task: where a prompt begins and ends, how long a response is, how it is sampled and where it is cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from humanward.config import Config
from humanward.data.sources import Text
from humanward.errors import UserError
from humanward.records import Comparison, Prompt, content_id

CONTEXTS = ("a", "word", "9", ")")
"""Texts behind which a mark is looked up: what '.' is in running text, not at the start of one."""
TEXTS_AT_ONCE = 256
"""Texts that one call of the tokenizer takes; it works on them in parallel."""

Mark = Annotated[str, Field(min_length=1)]
Tokens = tuple[int, ...]


class TaskConfig(Config):
    """Where a prompt begins and ends, and what a response is (Ziegler et al. 2019, section 3)."""

    prompt_length: Annotated[int, Field(ge=1)] = 64
    """Tokens of a prompt, at most; prefix and suffix come on top."""
    prompt_start: Mark | None = "."
    """A text's prompt begins behind the first of these; None: at its beginning. One token of the tokenizer."""
    prompt_end: Mark | None = "."
    """A text's prompt ends with the last of these that fits; None: at ``prompt_length``. One token of the tokenizer."""
    prompt_cut_at: Mark | None = None
    """A text that is longer than ``prompt_length`` loses what stands behind the last of these, for example ``"\\n"``, again and again until
    it fits, and where none is left single characters (Stiennon et al. 2020); None: it is clipped."""
    prompt_prefix: str = ""
    """Put before every prompt, e.g. ``"Article:\\n\\n"``."""
    prompt_suffix: str = ""
    """Put behind every prompt, e.g. ``"\\n\\nTL;DR:"``."""
    response_length: Annotated[int, Field(ge=1)] = 24
    """Tokens that are sampled for every response."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Logits are divided by it, in sampling and in every log-probability. Smaller is less random."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among the k likeliest tokens; 0: among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability; 1: among all."""
    stop_at_eos: bool = False
    """Whether a response ends at the end-of-text token. False samples the full length (2019)."""
    suppress_special_tokens: bool = True
    """Give special tokens probability 0, the end-of-text token excepted where ``stop_at_eos``."""
    truncate_token: Mark | None = "."
    """A response is scored up to and including the first of these at index >= ``truncate_after``; None: whole. One token."""
    truncate_after: Annotated[int, Field(ge=0)] = 16
    """Index in the response, from 0, before which it is not truncated."""
    missing_truncation_score: float | None = -1.0
    """Score of a response that has no such token, or with ``stop_at_eos`` no end-of-text token; None: its score as it is."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the score of a response that does not end at the end-of-text token, where ``stop_at_eos``."""
    sampler: Literal["humanward", "transformers"] = "humanward"
    """Who runs the model while sampling: our own loop, or the library's ``generate``, which is slower and gives the same responses."""
    train_on_truncated: bool = False
    """Whether PPO sees the truncated response. False: it sees all sampled tokens, with the score on the last (2019)."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.stop_at_eos and self.truncate_token is not None:
            raise ValueError("stop_at_eos and truncate_token are two ends of a response; set truncate_token=null or stop_at_eos=false")
        if self.missing_eos_penalty and not self.stop_at_eos:
            raise ValueError("missing_eos_penalty is for responses that may end at end-of-text; set stop_at_eos to true")
        if self.missing_eos_penalty and self.missing_truncation_score is not None:
            raise ValueError(
                f"missing_eos_penalty is taken from a score that missing_truncation_score {self.missing_truncation_score} replaces; "
                "set missing_truncation_score to null, or missing_eos_penalty to 0"
            )
        return self

    @model_validator(mode="after")
    def _truncation_fits(self) -> Self:
        if self.truncate_token is not None and self.truncate_after >= self.response_length:
            raise ValueError(
                f"truncate_after {self.truncate_after} is not smaller than response_length {self.response_length}, "
                "so no response could ever be truncated; lower truncate_after or set truncate_token to null"
            )
        return self


class Task:
    """Cuts texts into prompts for one tokenizer.

    The rule is that of lm-human-preferences (language/datasets.py): drop everything up to and including the first start token, clip to
    ``prompt_length`` tokens, cut behind the last end token; a text in which a needed token is missing is skipped. Like there, a start
    token that ends the text is not dropped.

    Raises:
        UserError: a mark is not one token of this tokenizer, PAD = EOS, no EOS to stop at, or the lengths exceed ``context_length``.
    """

    def __init__(
        self, config: TaskConfig, tokenizer: PreTrainedTokenizerBase, *, context_length: int | None = None, model_name: str = "the model"
    ) -> None:
        self.config = config
        self.context_length, self.model_name = context_length, model_name
        self.tokenizer = tokenizer
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise UserError(
                f"tokenizer: PAD and EOS are the same token {tokenizer.eos_token!r}, so the end of a response cannot be told from padding; "
                "set its pad_token to another token of the vocabulary"
            )
        if config.stop_at_eos and tokenizer.eos_token_id is None:
            raise UserError("task.stop_at_eos: this tokenizer has no end-of-text token; set task.stop_at_eos=false")
        anchor = tuple(self._encode([CONTEXTS[0]])[0])
        # A tokenizer of few words may not know the context: there is nothing to anchor a text to then.
        self._anchor = anchor if self._decode(anchor) == CONTEXTS[0] else ()
        self._start_id = self._mark_id("prompt_start")
        self._end_id = self._mark_id("prompt_end")
        self.truncate_token_id = self._mark_id("truncate_token")
        # A beginning-of-text token stands in front where the tokenizer puts one there itself (Llama), and only there (GPT-2 has none).
        self._beginning = tuple(tokenizer("")["input_ids"][:1]) if tokenizer.bos_token_id is not None else ()
        if self._beginning != (tokenizer.bos_token_id,):
            self._beginning = ()
        self._prefix = (*self._beginning, *self._encode([config.prompt_prefix], special=True)[0])
        self._suffix = self.encode_continuation(config.prompt_suffix, special=True)
        self.check_context(config.response_length)

    @classmethod
    def plain(
        cls, tokenizer: PreTrainedTokenizerBase, *, response_length: int = 24, temperature: float = 1.0, context_length: int = 1024,
        **settings: Any,
    ) -> Self:  # fmt: skip
        """No marks, nothing cut: prompts as they stand, responses of ``response_length`` tokens, scored whole.

        Args:
            tokenizer: the model's.
            response_length: tokens of a response.
            temperature: logits are divided by it.
            context_length: the model's; prompts may fill what the response leaves of it.
            settings: others of ``TaskConfig``, such as ``stop_at_eos=True``.
        """
        # one token less, for a beginning-of-text token in front
        free = {"prompt_length": context_length - response_length - 1, "prompt_start": None, "prompt_end": None, "truncate_token": None}
        config = TaskConfig(**{**free, **settings}, response_length=response_length, temperature=temperature)
        return cls(config, tokenizer, context_length=context_length)

    @property
    def max_prompt_length(self) -> int:
        """Tokens of a prompt with everything around it, at most."""
        return self.config.prompt_length + len(self._prefix) + len(self._suffix)

    @property
    def pad_id(self) -> int:
        """What fills padded slots; they are always masked, so its value never matters to a result."""
        return 0 if self.tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]

    def cut(self, text: str) -> tuple[int, ...] | None:
        """The prompt of a text, with prefix and suffix; None: the text is skipped."""
        return next((self.prompt_tokens(*encoded) for encoded in self.encoded([text])), None)

    def prompts(self, texts: Iterable[Text | str], *, passages: bool = False) -> list[Prompt]:
        """The prompts of texts, in order; texts without a prompt are left out.

        With ``passages``, every passage of a text is taken, the rule being applied again behind each, instead of its first alone.

        Raises:
            UserError: a whole prompt has more than ``prompt_length`` tokens, or messages that this tokenizer has no template for.
        """
        return list(self.iter_prompts(texts, passages=passages))

    def iter_prompts(self, texts: Iterable[Text | str], *, passages: bool = False) -> Iterator[Prompt]:
        """``prompts``, one at a time."""
        for text, tokens in self.encoded(texts):
            if text.whole:
                yield self._whole(text, tokens)
                continue
            for number, (begin, end) in enumerate(self.passages(tokens) if passages else self._first(tokens)):
                full = self.around(tokens[begin:end])
                name = f"{text.id}/{number}" if passages else text.id
                yield Prompt(name, self.prompt_text(full), full, dict(text.metadata))

    def passages(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(begin, end) of every passage that the rule finds in the tokens of one text, in order and without overlap."""
        start = 0
        while start < len(tokens):
            begin = self._begin(tokens, start)
            if begin is None:
                return
            end = self._end(tokens, begin)
            if end is not None:
                yield begin, end
            # without an end token within reach: on behind the start token, or, where there is none, behind the clipped tokens
            start = end if end is not None else begin if begin > start else begin + self.config.prompt_length

    def encoded(self, texts: Iterable[Text | str]) -> Iterator[tuple[Text, list[int]]]:
        """Each text with its tokens, without prefix and suffix; messages come as the text that the chat template makes of them."""
        remaining = iter(texts)
        while several := list(islice(remaining, TEXTS_AT_ONCE)):
            rows = [self._rendered(text) if isinstance(text, Text) else Text(text, content_id(text)) for text in several]
            # careful: in a text to be cut, "<|endoftext|>" is the letters that somebody wrote; in a whole prompt it is the token
            plain = iter(self._encode([row.text for row in rows if not row.whole]))
            whole = iter(self._encode([row.text for row in rows if row.whole], special=True))
            yield from ((row, next(whole) if row.whole else self._fitted(row.text, next(plain))) for row in rows)

    def prompt_tokens(self, text: Text, tokens: Sequence[int]) -> tuple[int, ...] | None:
        """The prompt of one text of ``encoded``; None: the text is skipped."""
        if text.whole:
            return self._whole(text, tokens).tokens
        return next((self.around(tokens[begin:end]) for begin, end in self._first(tokens)), None)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens as they read in running text, leading space included."""
        return self._decode((*self._anchor, *tokens))[len(CONTEXTS[0]) if self._anchor else 0 :]

    def checked_decode(self, tokens: Sequence[int]) -> str:
        """``decode`` of tokens from outside; IndexError where one of them is not the tokenizer's."""
        if max(tokens) >= len(self._ids):
            raise IndexError(f"no token {max(tokens)}")
        return self.decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def prompt_text(self, tokens: Sequence[int]) -> str:
        """The text of a prompt's tokens as people read it: without the tokenizer's beginning-of-text token."""
        begins = tuple(tokens[: len(self._beginning)]) == self._beginning
        return self.decode(tokens[len(self._beginning) :] if begins else tokens)

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt's text, prefix and suffix being in it: the inverse of ``prompt_text``, up to how a text is divided."""
        return self._encode_prompts([text])[0]

    def tokenized(self, comparison: Comparison) -> Comparison:
        """The comparison with the tokens of its texts where it came without them, as labels from the files of others do."""
        where = f"question {comparison.question_id}" if comparison.question_id else "a conversation"
        return next(self.iter_tokenized([(where, comparison)]))

    def iter_tokenized(self, comparisons: Iterable[tuple[str, Comparison]]) -> Iterator[Comparison]:
        """``tokenized`` of each, many at a time; with each comes where it stands, for messages about it.

        A conversation is written as the tokenizer's chat template writes it, with what the template puts behind an answer. Behind other
        responses stands the end-of-text token where the task stops there: somebody's response ends where it ends.

        Raises:
            UserError: messages that this tokenizer has no template for, or whose answer changes how the template writes the prompt.
        """
        remaining = iter(comparisons)
        while several := list(islice(remaining, TEXTS_AT_ONCE)):
            yield from self._tokenized_block([self._templated(where, comparison) for where, comparison in several])

    def _tokenized_block(self, several: Sequence[Comparison]) -> Iterator[Comparison]:
        # careful: in what the template writes "<|im_end|>" is the token of that name, in other responses it is letters
        prompts, responses = ({True: dict[str, Tokens](), False: dict[str, Tokens]()} for _ in range(2))
        for c in several:
            spoken = "messages" in c.prompt.metadata
            responses[spoken].update(dict.fromkeys((r.text for r in c.responses if not r.tokens), ()))
            prompts[spoken].update({} if c.prompt.tokens else {c.prompt.text: ()})
        for spoken in (True, False):
            texts = list(responses[spoken])
            responses[spoken] = dict(zip(texts, self._encode_continuations(texts, special=spoken), strict=True))
        whole, texts = list(prompts[True]), list(prompts[False])
        prompts[True] = dict(zip(whole, map(self._shared, self._encode(whole, special=True)), strict=True))
        prompts[False] = dict(zip(texts, self._encode_prompts(texts), strict=True))
        end = (int(self.tokenizer.eos_token_id),) if self.config.stop_at_eos else ()  # pyright: ignore[reportArgumentType]
        for c in several:
            if c.prompt.tokens and all(r.tokens or not r.text for r in c.responses):
                yield c
                continue
            spoken = "messages" in c.prompt.metadata
            behind = () if spoken else end
            made = tuple(r if r.tokens or not r.text else replace(r, tokens=responses[spoken][r.text] + behind) for r in c.responses)
            prompt = c.prompt if c.prompt.tokens else replace(c.prompt, tokens=prompts[spoken][c.prompt.text])
            yield replace(c, prompt=prompt, responses=made)

    def _templated(self, where: str, comparison: Comparison) -> Comparison:
        """A conversation without tokens as the text that the chat template makes of it; any other comparison as it is."""
        messages = comparison.prompt.metadata.get("messages")
        if not messages or all(response.tokens for response in comparison.responses):
            return comparison
        prompt = self.rendered(messages, where)
        responses = tuple(
            response if response.tokens else replace(response, text=self.rendered_answer(messages, prompt, response.text, where))
            for response in comparison.responses
        )
        written = comparison.prompt if comparison.prompt.tokens else replace(comparison.prompt, text=prompt)
        return replace(comparison, prompt=written, responses=responses)

    def rendered(self, messages: Sequence[Mapping[str, Any]], where: str, *, answered: bool = False) -> str:
        """The text that the tokenizer's chat template makes of messages, up to where the assistant begins, or ``answered``, as a whole."""
        if self.tokenizer.chat_template is None:
            raise UserError(f"{where}: messages need a chat template and this tokenizer has none; give `prompt` as a string")
        try:
            rows = [dict(message) for message in messages]
            return str(self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=not answered))
        except Exception as error:  # a template is a program and raises what it likes
            raise UserError(f"{where}: the chat template does not accept these messages: {str(error).splitlines()[0]}") from None

    def rendered_answer(self, messages: Sequence[Mapping[str, Any]], prompt: str, answer: str, where: str) -> str:
        """What the template writes behind the prompt for an answer, with the end of the turn."""
        whole = self.rendered([*messages, {"role": "assistant", "content": answer}], where, answered=True)
        if not whole.startswith(prompt):
            raise UserError(f"{where}: the chat template writes the prompt in another way once it is answered; give both as plain text")
        return whole[len(prompt) :]

    def encode_continuation(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """The tokens of a text that continues another one: without the space that some tokenizers put before the first word.

        With ``special``, ``<|endoftext|>`` and the like are read as the tokens of that name, not as letters.
        """
        return self._encode_continuations([text], special=special)[0]

    def _encode_continuations(self, texts: Sequence[str], *, special: bool = False) -> list[tuple[int, ...]]:
        behind = self._encode([CONTEXTS[0] + text for text in texts], special=special)
        length = len(self._anchor)
        found = [self._shared(ids[length:]) for ids in behind]
        # Where the context melts into the first word ("a" + "nd"), there is no clean cut and the text alone has to do.
        melted = [i for i, ids in enumerate(behind) if not self._anchor or tuple(ids[:length]) != self._anchor]
        for i, ids in zip(melted, self._encode([texts[i] for i in melted], special=special), strict=True):
            found[i] = self._shared(ids)
        return found

    def _encode_prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        # careful: where a tokenizer puts a space before a text, one that has its own space was cut out of a longer text
        inside = [i for i, text in enumerate(texts) if text[:1].isspace()]
        behind = dict(zip(inside, self._encode_continuations([texts[i] for i in inside], special=True), strict=True))
        alone = iter(self._encode([text for i, text in enumerate(texts) if i not in behind], special=True))
        return [(*self._beginning, *(behind[i] if i in behind else self._shared(next(alone)))) for i in range(len(texts))]

    def _shared(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The same numbers, each the one object of its value: 8 bytes per token instead of 36, which counts in large data sets."""
        return tuple(map(self._ids.__getitem__, ids))

    @cached_property
    def _ids(self) -> tuple[int, ...]:
        return tuple(range(max(self.tokenizer.get_vocab().values(), default=-1) + 1))

    def _whole(self, text: Text, tokens: Sequence[int]) -> Prompt:
        if len(tokens) > self.config.prompt_length:
            raise UserError(
                f"{text.where or text.id}: the prompt has {len(tokens)} tokens and task.prompt_length is {self.config.prompt_length}; "
                "shorten the prompt or raise task.prompt_length"
            )
        if text.messages:  # the template is all that stands around a conversation
            return Prompt(text.id, text.text, tuple(tokens), {**text.metadata, "messages": list(text.messages)})
        around = f"{self.config.prompt_prefix}{text.text}{self.config.prompt_suffix}"
        return Prompt(text.id, around, self.around(tokens), dict(text.metadata))

    def _rendered(self, text: Text) -> Text:
        """A conversation as the text that the tokenizer's chat template makes of it; any other text as it is."""
        if not text.messages:
            return text
        if text.messages[-1]["role"] == "assistant":
            raise UserError(f"{text.where}: the last message is the assistant's, so nothing is left to answer; end with the user's")
        return replace(text, text=self.rendered(text.messages, text.where), whole=True)

    def _fitted(self, text: str, tokens: list[int]) -> list[int]:
        """The tokens of a text, or of what ``prompt_cut_at`` leaves of one that is too long."""
        mark, length = self.config.prompt_cut_at, self.config.prompt_length
        if mark is None or len(tokens) <= length:
            return tokens
        while len(tokens) > length and mark in text:
            text = text[: text.rindex(mark)]
            tokens = self._encode([text])[0]
        # What is far behind the last token that fits need not be taken off by the character.
        text = text if len(tokens) <= length else self._decode(tokens[: length + 8])
        while len(tokens) > length:
            text = text[:-1]
            tokens = self._encode([text])[0]
        return tokens

    def _first(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """The passage of the 2019 rule, or none: that text is skipped, even if a later passage would do."""
        begin = self._begin(tokens, 0) if tokens else None
        end = None if begin is None else self._end(tokens, begin)
        return [] if begin is None or end is None else [(begin, end)]

    def _begin(self, tokens: Sequence[int], start: int) -> int | None:
        if self._start_id is None:
            return start
        try:
            begin = tokens.index(self._start_id, start) + 1
        except ValueError:
            return None
        return begin if begin < len(tokens) else start

    def _end(self, tokens: Sequence[int], begin: int) -> int | None:
        end = min(begin + self.config.prompt_length, len(tokens))
        if self._end_id is None:
            return end
        return next((i + 1 for i in range(end - 1, begin - 1, -1) if tokens[i] == self._end_id), None)

    def around(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The tokens with what stands around every prompt: the tokenizer's beginning-of-text token, prefix and suffix."""
        return (*self._prefix, *tokens, *self._suffix)

    def _encode(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        if not texts:
            return []
        # verbose=False: long texts are cut here, not by the model, so the tokenizer's warning about their length would mislead
        return self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=not special, return_attention_mask=False, return_token_type_ids=False,
            verbose=False,
        )["input_ids"]  # fmt: skip

    def _mark_id(self, setting: str) -> int | None:
        """The id of a mark in running text; tokenizers that put a space before a text would hide it in isolation."""
        mark = getattr(self.config, setting)
        if mark is None:
            return None
        for context in CONTEXTS:
            alone, behind = self._encode([context, context + mark], special=True)
            if len(behind) == len(alone) + 1 and behind[:-1] == alone:
                return behind[-1]
        raise UserError(
            f"task.{setting}: {mark!r} is not one token of this tokenizer; choose a mark that is one token, or set task.{setting}=null"
        )

    def check_context(self, response_length: int, setting: str = "task.response_length") -> None:
        """Whether the longest prompts and responses of ``response_length``, which ``setting`` says, fit into the model's context."""
        needed = self.max_prompt_length + response_length
        if self.context_length is None or needed <= self.context_length:
            return
        room = self.context_length - (needed - self.config.prompt_length)
        remedy = f"set task.prompt_length={room} or less, or lower {setting}" if room > 0 else f"lower {setting}"
        raise UserError(
            f"task.prompt_length: prompts of up to {self.max_prompt_length} tokens and responses of {response_length} need "
            f"{needed}, but the context of {self.model_name} is {self.context_length}; {remedy}"
        )
