"""Prompts and responses of a policy as texts, for whoever works without a run folder."""

from __future__ import annotations

from collections.abc import Sequence

from humanward.data import Task, Text
from humanward.data.batches import left_pad
from humanward.errors import UserError
from humanward.models import Policy, SamplingSettings, context_length, sample_responses
from humanward.storage import derive_seed
from humanward.trainers.scoring import texts, truncated


def sampling_settings(task: Task, *, whole: bool) -> SamplingSettings:
    """How the task samples a response; not ``whole``: it is written no further than to where the task's rule truncates it."""
    c = task.config
    stop = None if whole else task.truncate_token_id
    return SamplingSettings(
        c.response_length, c.temperature, c.top_k, c.top_p, c.stop_at_eos, c.suppress_special_tokens, stop, c.truncate_after, c.sampler
    )


def plain_task(policy: Policy) -> Task:
    """``Task.plain`` within the policy's context."""
    return Task.plain(policy.tokenizer, context_length=context_length(policy.model))


def prompt_ids(task: Task, prompts: Sequence[str | Sequence[int]]) -> list[tuple[int, ...]]:
    """Token ids of prompts: a text is used whole, between the task's prefix and suffix; ids stay as they are.

    Raises:
        UserError: a prompt is empty, or a text has more than ``prompt_length`` tokens.
    """
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {number}: empty; a response needs at least one token before it")
    wholes = [Text(text, f"prompt {number}", whole=True) for number, text in enumerate(prompts) if isinstance(text, str)]
    made = iter(task.prompts(wholes))
    return [next(made).tokens if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def respond(
    policy: Policy, prompts: Sequence[str | Sequence[int]], *, task: Task | None = None, num_responses: int = 1, seed: int = 0
) -> list[list[str]]:
    """Sample ``num_responses`` responses to each prompt, truncated by the task's rule, as texts.

    Args:
        policy: what is sampled from.
        prompts: texts or token ids.
        task: how to sample and where to cut; None: ``Task.plain``.
        num_responses: responses per prompt.
        seed: the same seed, policy and prompt give the same responses, whatever else is asked in the same call.
    """
    task = task or plain_task(policy)
    rows = prompt_ids(task, prompts)
    ids, mask = (x.to(policy.device) for x in left_pad(rows, policy.pad_id))
    seeds = [derive_seed(seed, "respond", *row, k) for row in rows for k in range(num_responses)]
    samples = sample_responses(policy, ids, mask, sampling_settings(task, whole=False), seeds=seeds, num_responses=num_responses)
    responses, response_mask = samples.responses.flatten(0, 1), samples.response_mask.flatten(0, 1)
    found = texts(task, responses, truncated(task, responses, response_mask)[0])
    return [found[i : i + num_responses] for i in range(0, len(found), num_responses)]
