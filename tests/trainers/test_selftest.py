"""The self-test passes as things are and refuses to start a run when any one sign is wrong (Ziegler et al. 2019, section 4.4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import Tensor

from humanward.errors import RunError
from humanward.models import ResponseOutputs, sampling
from humanward.trainers import PPOConfig, label_losses, ppo, ppo_objective, reward, rollout, scoring, selftest
from humanward.trainers.questions import Questions


def test_the_self_test_passes() -> None:
    selftest.self_test()


def test_a_flipped_label_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    collate = reward.collate

    def flipped(*args: Any) -> Questions:
        questions = collate(*args)
        return dataclasses.replace(questions, target=questions.target.flip(1))

    monkeypatch.setattr(reward, "collate", flipped)
    with pytest.raises(RunError, match=r"self-test: a reward model .* a sign of the labels or of the reward loss"):
        selftest.self_test()


OTHER_TERMS = {
    "rollback": {"surrogate": "rollback", "kl_in": "loss", "kl_estimator": "k2"},
    "trust region": {"surrogate": "trust_region_rollback", "dual_clip": 3.0, "kl_in": "loss", "kl_estimator": "full"},
    "ratio": {"surrogate": "ratio", "old_kl_coef": 7.0, "whiten_over": "batch", "kl_estimator": "k3"},
}


@pytest.mark.parametrize("terms", OTHER_TERMS.values(), ids=OTHER_TERMS.keys())
def test_the_self_test_passes_with_the_terms_of_the_run(terms: dict[str, Any]) -> None:
    selftest.self_test(PPOConfig(**terms))


@pytest.mark.parametrize(
    ("name", "surrogate", "message"),
    [
        ("rollback_loss", "rollback", "the score that PPO optimises does not rise"),
        ("trust_region_loss", "trust_region", "the score that PPO optimises does not rise"),
    ],
)
def test_a_flipped_surrogate_of_the_run_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, surrogate: str, message: str) -> None:
    loss = getattr(ppo_objective, name)
    monkeypatch.setattr(ppo_objective, name, lambda *args, **settings: -loss(*args, **settings))
    with pytest.raises(RunError, match=f"self-test: {message}"):
        selftest.self_test(PPOConfig(surrogate=surrogate))  # pyright: ignore[reportArgumentType]


def test_a_flipped_kl_in_the_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kl = ppo.reference_kl
    monkeypatch.setattr(ppo, "reference_kl", lambda *args: -kl(*args))
    with pytest.raises(RunError, match="self-test: the KL penalty does not bring the policy back"):
        selftest.self_test(PPOConfig(kl_in="loss", kl_estimator="full"))


def test_a_flipped_reward_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = label_losses.choice_loss
    monkeypatch.setattr(label_losses, "choice_loss", lambda *args, **settings: -loss(*args, **settings))
    with pytest.raises(RunError, match="self-test: a reward model"):
        selftest.self_test()


def test_a_flipped_reward_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the score enters the reward: the logged score is right, the optimised one is not."""
    add = ppo.add_at_last_token
    monkeypatch.setattr(ppo, "add_at_last_token", lambda x, scores, mask: add(x, -scores, mask))
    with pytest.raises(RunError, match="self-test: the score that PPO optimises does not rise"):
        selftest.self_test()


def test_a_flipped_score_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the score is asked for: what is logged rises while what people want falls."""
    call = scoring.call_score
    monkeypatch.setattr(scoring, "call_score", lambda *args: -call(*args))
    with pytest.raises(RunError, match="self-test: "):
        selftest.self_test()


def test_a_flipped_kl_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    add = ppo.add_at_last_token
    monkeypatch.setattr(ppo, "add_at_last_token", lambda x, scores, mask: add(-x, scores, mask))
    with pytest.raises(RunError, match="self-test: the KL penalty does not bring the policy back"):
        selftest.self_test()


def test_swapped_policy_and_reference_in_the_kl_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ppo.PPOTrainer.sample_rollout

    def swapped(self: ppo.PPOTrainer, index: int) -> rollout.Rollout:
        right = sample(self, index)
        return dataclasses.replace(right, reference_logprobs=2 * right.logprobs - right.reference_logprobs)

    monkeypatch.setattr(ppo.PPOTrainer, "sample_rollout", swapped)
    with pytest.raises(RunError, match="self-test: the KL between two different policies is not positive"):
        selftest.self_test()


def test_a_flipped_advantage_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    gae = ppo.gae

    def flipped(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        advantages, returns = gae(*args, **kwargs)
        return -advantages, returns

    monkeypatch.setattr(ppo, "gae", flipped)
    with pytest.raises(RunError, match="self-test: the score that PPO optimises does not rise"):
        selftest.self_test()


def test_a_flipped_policy_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = ppo_objective.ppo_clip_loss
    monkeypatch.setattr(ppo_objective, "ppo_clip_loss", lambda *args, **kwargs: -loss(*args, **kwargs))
    with pytest.raises(RunError, match="self-test: the score that PPO optimises does not rise"):
        selftest.self_test()


def test_reward_and_kl_flipped_together_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very accident of section 4.4: the policy stayed fluent and became the worst possible."""
    add = ppo.add_at_last_token
    monkeypatch.setattr(ppo, "add_at_last_token", lambda x, scores, mask: add(-x, -scores, mask))
    with pytest.raises(RunError, match="self-test: the score that PPO optimises does not rise"):
        selftest.self_test()


def test_a_forgotten_temperature_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities of another distribution than the one that was sampled from: the first ratio is not 1."""
    logprobs_of = selftest.Policy.logprobs_of

    def forgotten(self: selftest.Policy, hidden: Tensor, tokens: Tensor, **settings: Any) -> tuple[Tensor, Tensor | None]:
        return logprobs_of(self, hidden, tokens, **{**settings, "temperature": 2 * settings["temperature"]})

    monkeypatch.setattr(selftest.Policy, "logprobs_of", forgotten)
    with pytest.raises(RunError, match="self-test: log-probabilities while sampling differ"):
        selftest.self_test()


def test_a_flipped_score_of_the_reward_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the reward model, which is right, and PPO, which is right."""
    scores = scoring.model_scores
    monkeypatch.setattr(scoring, "model_scores", lambda *args, **settings: -scores(*args, **settings))
    with pytest.raises(RunError, match="self-test: what the labeler prefers does not become likelier under the reward model"):
        selftest.self_test()


def test_a_sampler_without_temperature_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """At temperature 1 nothing shows it."""
    draw = sampling.draw
    monkeypatch.setattr(sampling, "draw", lambda logits, u, settings, s: draw(logits, u, dataclasses.replace(settings, temperature=1.0), s))
    with pytest.raises(RunError, match="self-test: log-probabilities while sampling are not those at the task's temperature"):
        selftest.self_test()


def test_a_reference_without_temperature_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The KL between a policy and itself would be positive, and PPO would be paid for a sharper distribution."""
    ask = rollout.RolloutSampler.ask

    def at_one(self: rollout.RolloutSampler, policy: selftest.Policy, *args: Tensor, **settings: bool) -> ResponseOutputs:
        right, self.sampling = self.sampling, dataclasses.replace(self.sampling, temperature=1.0)
        try:
            return ask(self, policy, *args, **settings)
        finally:
            self.sampling = right

    monkeypatch.setattr(rollout.RolloutSampler, "ask", at_one)
    with pytest.raises(RunError, match="self-test: log-probabilities of the reference are not those at the task's temperature"):
        selftest.self_test()


def test_a_temperature_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere alike, so that policy, reference and sampling agree."""
    draw, logprobs_of = sampling.draw, selftest.Policy.logprobs_of
    monkeypatch.setattr(sampling, "draw", lambda logits, u, settings, s: draw(logits, u, dataclasses.replace(settings, temperature=1.0), s))
    monkeypatch.setattr(selftest.Policy, "logprobs_of", lambda *args, **settings: logprobs_of(*args, **{**settings, "temperature": 1.0}))
    with pytest.raises(RunError, match="self-test: log-probabilities while sampling are not those at the task's temperature"):
        selftest.self_test()
