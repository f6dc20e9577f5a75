"""DPO against the formula, token by token, and the direction in which it pushes."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from humanward.errors import UserError
from humanward.models import Policy
from humanward.records import Comparison
from humanward.trainers import DPOTrainer


def sequence_logprob(policy: Policy, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """log pi(y | x), one forward of the library's own model for this response alone."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logprobs = policy.model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(response))


def implicit_rewards(trainer: DPOTrainer, comparison: Comparison) -> torch.Tensor:
    prompt = comparison.prompt.tokens
    moved = [
        sequence_logprob(trainer.policy, prompt, r.tokens) - sequence_logprob(trainer.reference, prompt, r.tokens)
        for r in comparison.responses
    ]
    return trainer.config.beta * torch.tensor(moved, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["best_of_k", "ranking"])
def test_loss_and_metrics_are_the_formula(problems: ModuleType, kind: str) -> None:
    trainer = problems.dpo(beta=0.7)
    if kind == "ranking":
        trainer.comparisons = [replace(c, kind=kind, target=[n % 2, 2, 1 - n % 2]) for n, c in enumerate(trainer.comparisons)]
    losses, right, margins, chosen, others = [], [], [], [], []
    for comparison in trainer.batch(0):
        rewards = implicit_rewards(trainer, comparison)
        if kind == "ranking":
            ranks: list[int] = comparison.target  # pyright: ignore[reportAssignmentType]
            pairs = [(i, j) for i in range(3) for j in range(3) if ranks[i] < ranks[j]]
            losses.append(sum(-torch.log(torch.sigmoid(rewards[i] - rewards[j])) for i, j in pairs) / 3)
            best = ranks.index(0)
        else:
            best = int(comparison.target)  # pyright: ignore[reportArgumentType]
            losses.append(-torch.log_softmax(rewards, 0)[best])
        rest = [k for k in range(3) if k != best]
        right.append(float(rewards.argmax() == best))
        margins.append(float(rewards[best] - rewards[rest].mean()))
        chosen.append(float(rewards[best]) / 0.7)
        others.append(float(rewards[rest].mean()) / 0.7)
    found = trainer.step(0)

    def mean(values: list[float]) -> float:
        return pytest.approx(sum(map(float, values)) / len(values), rel=1e-4)  # pyright: ignore[reportReturnType]

    assert found["loss"] == mean(losses)
    assert found["accuracy"] == mean(right)
    assert found["margin"] == mean(margins)
    assert found["chosen_moved"] == mean(chosen)
    assert found["rejected_moved"] == mean(others)


def test_what_was_preferred_becomes_likelier_than_what_was_not(problems: ModuleType) -> None:
    first, *_, last = problems.dpo(epochs=40, lr=1e-2, lr_schedule="constant").run()
    assert first["accuracy"] < 1.0
    assert last["accuracy"] == 1.0
    assert last["margin"] > first["margin"] + 0.5
    assert last["loss"] < 0.7 * first["loss"]


def test_the_policy_alone_is_trained(problems: ModuleType) -> None:
    trainer = problems.dpo()
    before = {name: p.clone() for name, p in trainer.reference.named_parameters()}
    trainer.run()
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in trainer.reference.named_parameters())


def test_labels_without_a_choice_are_refused(problems: ModuleType) -> None:
    rows = [replace(problems.comparisons(1)[0], kind="rating", target=3.0)]
    with pytest.raises(UserError, match="question 0: nothing is learnt from labels of kind rating yet"):
        DPOTrainer(problems.policy_of(torch.float32, seed=0), problems.policy_of(torch.float32, seed=1), rows, problems.dpo().config)
