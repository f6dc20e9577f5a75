"""Before a run: do its own model, tokenizer and prompts go together? A few real prompts, and a few tokens behind each.

The self-test shows on a tiny problem that every term pushes the right way. What it cannot know is what the user brings: a tokenizer with
tokens that the model has not, a beginning-of-text token that comes twice, an architecture that reads its padding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from humanward.data import Task
from humanward.data.batches import left_pad
from humanward.errors import RunError, UserError
from humanward.models import Policy, sample_responses
from humanward.models.loading import model_name
from humanward.records import Prompt
from humanward.trainers.responses import sampling_settings
from humanward.trainers.scoring import Episodes

PROMPTS, TOKENS = 4, 8
"""Prompts that are tried, and tokens of each response."""
AMONG = 256
"""First prompts of the run, of which the shortest, the longest and some between are taken."""


@torch.no_grad()
def check_task(policy: Policy, task: Task, prompts: Sequence[Prompt]) -> None:
    """Run all checks.

    Args:
        policy: what the run begins with.
        task: of the run.
        prompts: of the run, at least one.

    Raises:
        UserError: tokens that the model does not have, or a doubled beginning-of-text token.
        RunError: sampling and scoring do not speak of one distribution at the task's temperature, or padding is read.
    """
    order = sorted(range(min(len(prompts), AMONG)), key=lambda i: len(prompts[i].tokens))
    some = [prompts[order[i * (len(order) - 1) // (PROMPTS - 1)]] for i in range(PROMPTS)]
    check_vocabulary(policy, task, some)
    check_prompts(task, some)
    settings = sampling_settings(task, whole=True)
    settings = replace(settings, response_length=min(TOKENS, settings.response_length))
    ids, mask = (x.to(policy.device) for x in left_pad([p.tokens for p in some], policy.pad_id))
    samples = sample_responses(policy, ids, mask, settings, seeds=range(PROMPTS))
    episodes = Episodes(ids, mask, samples.responses[:, 0], samples.response_mask[:, 0])
    suppressed = policy.suppressed_tokens(keep_eos=settings.stop_at_eos) if settings.suppress_special_tokens else None
    check_temperature(policy, episodes, samples.logprobs[:, 0], task.config.temperature, suppressed)
    check_padding(policy, episodes, task.config.temperature)


def check_vocabulary(policy: Policy, task: Task, prompts: Sequence[Prompt]) -> None:
    """The model has every token that the tokenizer will give it."""
    name, tokenizer = model_name(policy.model), policy.tokenizer
    known = len(next(policy.model.get_input_embeddings().parameters()))
    if tokenizer.pad_token_id is not None and policy.pad_id >= known:
        raise UserError(
            f"{name}: the pad token {tokenizer.pad_token!r} is number {policy.pad_id}, but the model has {known} tokens; "
            "set pad_token to one that it has"
        )
    if task.config.stop_at_eos and policy.eos_id >= known:
        raise UserError(
            f"{name}: the end-of-text token {tokenizer.eos_token!r} is number {policy.eos_id}, but the model has {known} tokens, so that "
            "no response would end; set task.stop_at_eos=false, or use the tokenizer that the model was trained with"
        )
    for prompt in prompts:
        if max(prompt.tokens) >= known:
            raise UserError(
                f"prompt {prompt.id}: has the token {task.decode([max(prompt.tokens)])!r}, number {max(prompt.tokens)}, but {name} has "
                f"{known} tokens; use the tokenizer that the model was trained with"
            )


def check_prompts(task: Task, prompts: Sequence[Prompt]) -> None:
    """One beginning-of-text token at most, and prompts that are a token prefix of prompt + response.

    The run puts the ids of prompt and response together, so that the prompt always is a prefix of what the model reads. Whether it also is
    one of what the tokenizer would make of the whole text, which is what the model has learned from, is said and not enforced.
    """
    begin = task.tokenizer.bos_token_id
    for prompt in prompts:
        if begin is not None and prompt.tokens[:2] == (begin, begin):
            raise UserError(
                f"prompt {prompt.id}: begins with {task.tokenizer.bos_token!r} twice, since the tokenizer puts one in front itself; "
                "take it out of the prompts, or out of task.prompt_prefix"
            )
    # One alone may be an accident of the data; where all fail, the cause is in the rule, the suffix or the file.
    if not any(_is_prefix(task, prompt) for prompt in prompts):
        logging.getLogger("humanward").warning(
            "the tokenizer would divide prompts otherwise with a word behind them, as in %r: the model has rarely read them so; "
            "leave out the white space at the end of prompts or of task.prompt_suffix, which belongs to the next word",
            prompts[0].text[-20:] + _word_behind(prompts[0]),
        )


def check_temperature(
    policy: Policy, episodes: Episodes, sampled: Float[Tensor, "B R"], temperature: float, suppressed: Bool[Tensor, " V"] | None
) -> None:
    """Log-probabilities while sampling and of a forward are the model's own at the task's temperature, and not those at 1.

    So the first ratio of PPO is 1, and the KL of the first rollout to the reference, which is the same model, is 0.
    """
    e = episodes
    forward = policy(e.prompts, e.prompt_mask, e.responses, e.response_mask, temperature=temperature, suppressed=suppressed).logprobs
    own, at_one = (row_by_row(policy, e, t, suppressed) for t in (temperature, 1.0))
    for found, who in ((sampled, "while sampling"), (forward, "of a forward")):
        error, other = _error(found, own, e.response_mask), _error(found, at_one, e.response_mask)
        if error <= _tolerance(policy):
            continue
        if other <= _tolerance(policy):
            _fail(f"log-probabilities {who} are those at temperature 1 and not at task.temperature={temperature}", "the temperature")
        _fail(
            f"log-probabilities {who} differ from the model's own by {error:.2g} nats per token",
            f"padding or positions of {type(policy.model).__name__}; try task.sampler=transformers, or another model",
        )


def check_padding(policy: Policy, episodes: Episodes, temperature: float) -> None:
    """What is a token and what is padding is said by the masks, never by an id: a response may hold PAD or EOS, and pads any token."""
    lengths = 1 + torch.arange(len(episodes.responses), device=policy.device) % episodes.responses.shape[1]
    columns = torch.arange(episodes.responses.shape[1], device=policy.device)
    mask = columns < lengths[:, None]
    last = columns == lengths[:, None] - 1
    responses = episodes.responses.masked_fill(last, policy.pad_id)  # and pads are what was sampled
    prompts = episodes.prompts.where(episodes.prompt_mask, episodes.responses[0, 0])
    ragged = Episodes(prompts, episodes.prompt_mask, responses, mask)
    found = policy(prompts, episodes.prompt_mask, responses, mask, temperature=temperature).logprobs
    error = _error(found, row_by_row(policy, ragged, temperature, None), mask)
    if not error <= _tolerance(policy):
        _fail(
            f"log-probabilities change by {error:.2g} nats per token with what stands in the padding",
            f"how {type(policy.model).__name__} masks, or how responses are; use another model",
        )


def row_by_row(policy: Policy, episodes: Episodes, temperature: float, suppressed: Bool[Tensor, " V"] | None) -> Float[Tensor, "B R"]:
    """Log-probabilities of the responses by the model's own forward, one after the other and without any padding; 0 on pads."""
    logprobs = torch.zeros(episodes.responses.shape, device=policy.device)
    rows = zip(episodes.prompts, episodes.prompt_mask, episodes.responses, episodes.response_mask, strict=True)
    for row, (prompt, prompt_mask, response, real) in enumerate(rows):
        ids = torch.cat([prompt[prompt_mask], response[real]])
        hidden = policy.trunk(input_ids=ids[None], use_cache=False).last_hidden_state[0, int(prompt_mask.sum()) - 1 : -1]
        logits = policy.logits_of(hidden) / temperature
        if suppressed is not None:
            logits = logits.masked_fill(suppressed, -math.inf)
        logprobs[row, real] = torch.log_softmax(logits, dim=-1).gather(1, response[real][:, None])[:, 0]
    return logprobs


def _error(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Mean difference per token, nats; not a number where one side is not."""
    return float((found - expected)[mask].abs().mean())


def _tolerance(policy: Policy) -> float:
    """16-bit logits are rounded to a few hundredths, and a path with a cache rounds at other places than one without."""
    return 1e-3 if torch.finfo(policy.head.weight.dtype).bits >= 32 else 0.1


def _is_prefix(task: Task, prompt: Prompt) -> bool:
    alone, longer = task.encode_prompt(prompt.text), task.encode_prompt(prompt.text + _word_behind(prompt))
    return longer[: len(alone)] == alone


def _word_behind(prompt: Prompt) -> str:
    return "word" if prompt.text[-1:].isspace() else " word"


def _fail(what: str, suspects: str) -> None:
    raise RunError(f"self-test: {what}; look at {suspects}. Nothing was trained")
