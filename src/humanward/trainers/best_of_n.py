"""The best of n responses by their score: a policy that needs no training, and demonstrations for one that is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from humanward.data import Demonstration, Task
from humanward.data.batches import left_pad
from humanward.models import Policy, check_context, sample_responses
from humanward.models.policy import check_same_tokens
from humanward.storage import derive_seed
from humanward.trainers.responses import plain_task, prompt_ids, sampling_settings
from humanward.trainers.rewards import Reward, models_of, moved
from humanward.trainers.scoring import Episodes, ranked, score_episodes

PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Best:
    """A prompt with the best of its n responses."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    """Its tokens, truncated by the task's rule."""
    text: str
    score: float
    scores: tuple[float, ...]
    """Of all n, in the order in which they were drawn: what ``maths.best_of_n_frontier`` reads."""

    def demonstration(self, id: str = "") -> Demonstration:
        """What supervised fine-tuning takes: rejection sampling in one round."""
        return Demonstration(self.prompt, self.response, id)


@torch.no_grad()
def best_of_n(
    policy: Policy, reward: Reward, prompts: Sequence[str | Sequence[int]], n: int, *, task: Task | None = None, seed: int = 0,
    check: Callable[[], None] | None = None,
) -> list[Best]:  # fmt: skip
    """Sample n responses to each prompt and keep the one with the highest score; of equals the first.

    Its KL to the policy is at most log n - (n - 1) / n nats (Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; Beirami et al. 2024,
    arXiv:2401.01879), so that it is the baseline that every tuned policy of that KL must beat.

    Args:
        policy: what is sampled from; a prompt is computed once for its n responses.
        reward: anything that trainers accept.
        prompts: texts or token ids.
        n: responses per prompt, >= 1.
        task: how to sample and where to cut, and the fixed score of a response without an end; None: ``Task.plain``.
        seed: the same seed, policy and prompt give the same responses, whatever else is asked in the same call.
        check: called while sampling and scoring; may raise to stop.

    Raises:
        ValueError: n is less than 1.
        UserError: a reward model has no room for prompt and response, or other tokens than the policy.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be 1 or more")
    task, found = task or plain_task(policy), list[Best]()
    settings = sampling_settings(task, whole=False)
    rows = prompt_ids(task, prompts)
    for model in models_of(moved(reward, policy.device)):
        check_context(model.eval().model, max(map(len, rows), default=0), task.config.response_length, what="best of n")
        check_same_tokens(policy.tokenizer, model.tokenizer, "the reward model")
    for start in range(0, len(rows), PROMPTS_AT_ONCE):
        part = rows[start : start + PROMPTS_AT_ONCE]
        ids, mask = (x.to(policy.device) for x in left_pad(part, policy.pad_id))
        seeds = [derive_seed(seed, "best of n", *row, k) for row in part for k in range(n)]
        samples = sample_responses(policy, ids, mask, settings, seeds=seeds, num_responses=n, check=check)
        episodes = Episodes(ids, mask, samples.responses, samples.response_mask)
        scored = score_episodes(task, reward, episodes, check=check)
        for row, scores, responses, kept in zip(part, scored.scores, samples.responses, scored.scored_mask, strict=True):
            order = ranked(scores).tolist()
            best = order.index(max(order))
            tokens = tuple(responses[best][kept[best]].tolist())
            found.append(Best(row, tokens, task.decode(tokens), float(scores[best]), tuple(scores.tolist())))
    return found
