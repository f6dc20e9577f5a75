"""Demonstrations for supervised fine-tuning: what stands before, and what the policy is to learn to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from humanward.data.sources import Text
from humanward.data.task import Task
from humanward.errors import UserError


@dataclass(frozen=True)
class Demonstration:
    """One example: the loss is on the response only."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    id: str


def demonstrations(task: Task, texts: Iterable[Text]) -> Iterator[Demonstration]:
    """Prompts with the responses that were written for them.

    A row with ``response`` gives one demonstration, closed by the end-of-text token where the task stops there. A text without one gives
    a demonstration for every passage that the task's rule finds and that ``response_length`` tokens follow: those are the response.

    Raises:
        UserError: a whole prompt without a response, an empty response, or one that is longer than ``response_length``.
    """
    for text, tokens in task.encoded(texts):
        if text.response is not None:
            yield _answered(task, text, tokens)
        elif text.whole:
            raise UserError(f"{text.where or text.id}: a prompt without `response`; a demonstration needs both")
        else:
            yield from _continued(task, text, tokens)


def text_windows(task: Task, texts: Iterable[Text], length: int, *, setting: str = "sft.max_length") -> Iterator[Demonstration]:
    """Plain language modelling: every text in pieces of ``length`` tokens, each a response without a prompt.

    A rest of a single token is left out: it has nothing to be predicted from. This is
    how the policy of the style tasks meets books before it meets people (Ziegler et al. 2019, section 3.1). ``setting`` names ``length``
    in messages.

    Raises:
        UserError: a piece is longer than the task's model can read.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, not {length}")
    for text, tokens in task.encoded(texts):
        if task.context_length is not None and min(length, len(tokens)) > task.context_length:
            raise UserError(
                f"{text.where or text.id}: cut into pieces of {min(length, len(tokens))} tokens ({setting}), but the context of "
                f"{task.model_name} is {task.context_length}; set {setting}={task.context_length} or less"
            )
        for number, begin in enumerate(range(0, len(tokens) - 1, length)):
            yield Demonstration((), tuple(tokens[begin : begin + length]), f"{text.id}/{number}")


def _answered(task: Task, text: Text, tokens: list[int]) -> Demonstration:
    prompt = task.prompt_tokens(text, tokens)
    if prompt is None:
        raise UserError(f"{text.where or text.id}: no prompt in this text under the task's rule; give the prompt as `prompt`")
    response = task.encode_continuation(text.response or "")
    eos = task.tokenizer.eos_token_id
    if task.config.stop_at_eos:
        response = (*response, int(eos))  # pyright: ignore[reportArgumentType]
    if not response:
        raise UserError(f"{text.where or text.id}: the response is empty; write one or delete the row")
    if len(response) > task.config.response_length:
        raise UserError(
            f"{text.where or text.id}: the response has {len(response)} tokens and task.response_length is {task.config.response_length}; "
            "shorten it or raise task.response_length"
        )
    return Demonstration(prompt, response, text.id)


def _continued(task: Task, text: Text, tokens: list[int]) -> Iterator[Demonstration]:
    for number, (begin, end) in enumerate(task.passages(tokens)):
        response = tuple(tokens[end : end + task.config.response_length])
        if len(response) == task.config.response_length:
            yield Demonstration(task.around(tokens[begin:end]), response, f"{text.id}/{number}")
