"""PPO on problems whose best policy is known exactly: every response can be listed, so its objective needs no sampling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from humanward.maths.optimum import optimal_value
from humanward.models import Policy
from humanward.trainers import PPOConfig, PPOTrainer
from humanward.trainers.selftest import WORDS, tiny_policy, tiny_task

PROMPT = (4,)


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Two for every "good", one and a half for a last "w4": the choices of a response hang together only through the policy's logits."""
    return [2.0 * words.count("good") + 1.5 * (words[-1] == "w4") for words in (response.split() for response in responses)]


def every_response(length: int) -> tuple[Tensor, Tensor]:
    """All responses, [N, R], and their scores, [N]."""
    responses = torch.tensor(list(itertools.product(range(2, 8), repeat=length)))
    return responses, torch.tensor(score([], [" ".join(WORDS[t - 2] for t in row) for row in responses.tolist()]), dtype=torch.float64)


@torch.no_grad()
def sequence_logprobs(policy: Policy, responses: Tensor) -> Tensor:
    prompts = torch.tensor([PROMPT]).expand(len(responses), -1)
    masks = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)
    suppressed = policy.suppressed_tokens(keep_eos=False)
    logprobs = policy(prompts, masks[0], responses, masks[1], temperature=1.0, suppressed=suppressed).logprobs.double().sum(1)
    assert logprobs.exp().sum() == pytest.approx(1, abs=1e-5)  # all of the probability is listed
    return logprobs


@pytest.mark.parametrize(("length", "beta", "seed"), [(2, 0.3, 0), (3, 0.5, 0)])
def test_ppo_comes_close_to_the_best_possible_policy(length: int, beta: float, seed: int) -> None:
    """At least 97 % of the way from the reference's E[r] - beta KL to the optimum beta log sum rho exp(r / beta), Ziegler 2019, eq. 2."""
    policy = tiny_policy(seed=seed, value_head=True)
    reference = policy.frozen_copy()
    config = PPOConfig(episodes=256 * 50, batch_size=256, lr=5e-3, kl_coef=beta, kl_target=None)
    PPOTrainer(policy, reference, score, [PROMPT], config, task=tiny_task(policy, response_length=length)).run()

    responses, scores = every_response(length)
    log_reference, log_policy = sequence_logprobs(reference, responses), sequence_logprobs(policy, responses)
    start = (log_reference.exp() * scores).sum()
    reached = (log_policy.exp() * (scores - beta * (log_policy - log_reference))).sum()
    best = optimal_value(log_reference, scores, beta)
    assert 0.97 * (best - start) <= reached - start <= best - start


def test_the_logged_objective_is_the_true_one() -> None:
    """Sampled score, KL and penalised score of a policy that differs from its reference, against their sums over every response."""
    policy, reference, beta = tiny_policy(seed=3, value_head=True), tiny_policy(seed=4), 0.4
    responses, scores = every_response(2)
    log_reference, log_policy = sequence_logprobs(reference, responses), sequence_logprobs(policy, responses)
    config = PPOConfig(episodes=4096, batch_size=4096, ppo_epochs=1, kl_coef=beta, kl_target=None)
    metrics = PPOTrainer(policy, reference, score, [PROMPT], config, task=tiny_task(policy)).step(0)
    for name, per_response in (
        ("score", scores),
        ("kl", log_policy - log_reference),
        ("penalized_score", scores - beta * (log_policy - log_reference)),
    ):
        mean = (log_policy.exp() * per_response).sum()
        deviation = (log_policy.exp() * (per_response - mean).square()).sum().sqrt()
        # four standard errors of a mean over 4096 samples
        assert metrics[name] == pytest.approx(float(mean), abs=float(4 * deviation / 64)), name
