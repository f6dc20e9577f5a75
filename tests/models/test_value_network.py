"""A value network reads the state before each token, and begins as the reward model it is made from."""

from __future__ import annotations

import torch

from humanward.models import Policy, RewardModel, ValueNetwork
from humanward.trainers.selftest import tiny_policy

PROMPTS = torch.tensor([[1, 3], [4, 5]])
PROMPT_MASK = torch.tensor([[False, True], [True, True]])
RESPONSES = torch.tensor([[6, 7, 2], [3, 1, 1]])
RESPONSE_MASK = torch.tensor([[True, True, True], [True, False, False]])


def reward_model(policy: Policy) -> RewardModel:
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    model.set_normalization(1.7, -0.4)
    return model.eval()


@torch.no_grad()
def test_values_are_the_reward_models_scores_of_what_stands_before_each_token() -> None:
    policy = tiny_policy(seed=3)
    model = reward_model(policy)
    values = ValueNetwork.from_reward_model(model)(PROMPTS, PROMPT_MASK, RESPONSES, RESPONSE_MASK)
    for row in range(2):
        for t in range(int(RESPONSE_MASK[row].sum())):
            before = torch.cat([PROMPTS[row][PROMPT_MASK[row]], RESPONSES[row, :t]])[None]
            expected = model(before[:, :-1], before[:, :-1] >= 0, before[:, None, -1:], before[:, None, -1:] >= 0)
            torch.testing.assert_close(values[row, t], expected[0, 0], rtol=0, atol=1e-6)
    assert values[1, 1:].tolist() == [0, 0]


def test_it_is_a_copy_that_learns() -> None:
    policy = tiny_policy(seed=3)
    model = reward_model(policy)
    network = ValueNetwork.from_reward_model(model.requires_grad_(False))
    network(PROMPTS, PROMPT_MASK, RESPONSES, RESPONSE_MASK).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in model.parameters()}
