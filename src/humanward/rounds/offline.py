"""A run on labels that were given before: how long prompts and responses have to be."""

from __future__ import annotations

from humanward.data import Task
from humanward.data.given_labels import longest
from humanward.models import Policy, context_length
from humanward.rounds.config import LoopConfig


def with_lengths(config: LoopConfig) -> LoopConfig:
    """The settings with room for the longest prompt and response of the labels, as far as the model's context goes.

    Lengths that were given stay. Where there is not enough room for both, a response gets half of it at least.
    """
    given = config.task.model_fields_set & {"prompt_length", "response_length"}
    if len(given) == 2:
        return config
    policy = Policy.load(config.model, pad_token=config.pad_token)
    loose = config.task.model_copy(update={"prompt_length": 1, "response_length": 1})
    task = Task(loose, policy.tokenizer)
    room = context_length(policy.model) - (task.max_prompt_length - 1)
    needed = longest(config.labeler.removeprefix("labels:"), task)
    prompt = config.task.prompt_length if "prompt_length" in given else needed.prompt
    response = config.task.response_length if "response_length" in given else min(needed.response, max(room // 2, room - prompt))
    if "prompt_length" not in given:
        prompt = min(prompt, room - response)
    lengths = {"prompt_length": max(prompt, 1), "response_length": max(response, 1)}
    return config.model_copy(update={"task": config.task.model_copy(update=lengths)})
