"""What the published systems do in training: one test per detail, each failing when the detail is undone.

Sources: lm-human-preferences (Ziegler et al. 2019, released code) and the N implementation details of its reproduction. The details of
texts, prompts and truncation are in test_data_details.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from humanward.data import Task, TaskConfig, left_pad
from humanward.maths import add_at_last_token, gae, whiten
from humanward.models import Policy, RewardModel, SamplingSettings, sample_responses
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import Episodes, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from humanward.trainers import ppo as ppo_module
from humanward.trainers.scoring import score_episodes
from humanward.trainers.selftest import END, PAD, tiny_policy, tiny_task, tiny_tokenizer

PROMPTS = [(4,), (5, 6), (7, 2), (3,)]


def lengths(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(response.split().count("good")) for response in responses]


def ppo_trainer(*, task: TaskConfig | None = None, same: bool = False, score: Any = lengths, **settings: Any) -> PPOTrainer:
    policy = tiny_policy(value_head=True)
    reference = policy.frozen_copy() if same else tiny_policy(seed=1)
    config = PPOConfig(**{"lr": 3e-3, "episodes": 64, "batch_size": 16, "kl_target": None, "kl_coef": 0.5, **settings})
    the_task = tiny_task(policy, response_length=3) if task is None else Task(task, policy.tokenizer)
    return PPOTrainer(policy, reference, score, PROMPTS, config, task=the_task, seed=5)


def reward_trainer(**settings: Any) -> RewardTrainer:
    policy = tiny_policy()
    responses = tuple(Response("", (token,)) for token in (2, 3))
    rows = [Comparison(Prompt("", "", (4,)), responses, "best_of_k", 0, question_id="q")] * 8
    tokens = torch.tensor([[2, 4], [3, 4], [5, 6], [7, 7]])
    real = torch.ones_like(tokens, dtype=torch.bool)
    episodes = Episodes(tokens, real, tokens.flip(0), real)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    config = RewardConfig(**{"batch_size": 4, "normalize_samples": 4, "lr": 1e-2, **settings})
    return RewardTrainer(model, rows, config, reference_episodes=episodes)


def naive_logits(policy: Policy, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Logits that predict each response token, from the model's own head, with the special tokens out."""
    logits = policy.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    return logits.masked_fill(policy.suppressed_tokens(keep_eos=False), -math.inf)


def rewards_of(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, ppo_module.Rollout]:
    """Per-token rewards of a first step as the update gets them, and its rollout."""
    found: dict[str, Any] = {}
    sample, add = trainer.sample_rollout, ppo_module.add_at_last_token

    def watched_sample(index: int) -> ppo_module.Rollout:
        found["rollout"] = sample(index)
        return found["rollout"]

    def watched_add(*args: Tensor) -> Tensor:
        return found.setdefault("rewards", add(*args))

    monkeypatch.setattr(trainer, "sample_rollout", watched_sample)
    monkeypatch.setattr(ppo_module, "add_at_last_token", watched_add)
    trainer.step(0)
    return found["rewards"], found["rollout"]


# ---- the policy's distribution


def test_logprobs_are_those_of_the_logits_over_the_temperature() -> None:
    """Released code, language/sample.py; N details, policy 1: logits / T in sampling, in the update and for the reference alike."""
    trainer = ppo_trainer(task=TaskConfig(prompt_start=None, prompt_end=None, truncate_token=None, response_length=3, temperature=0.7))
    rollout = trainer.sample_rollout(0)
    for row in range(16):
        prompt, response = rollout.prompts[row][rollout.prompt_mask[row]].tolist(), rollout.responses[row].tolist()
        for policy, found in ((trainer.policy, rollout.logprobs), (trainer.reference, rollout.reference_logprobs)):
            expected = torch.log_softmax(naive_logits(policy, prompt, response) / 0.7, dim=-1)[range(3), response]
            torch.testing.assert_close(found[row].double(), expected, atol=1e-5, rtol=0)


def test_entropies_are_those_of_the_logits_over_the_temperature() -> None:
    """Released code, language/sample.py: the logged entropy is that of the distribution sampled from."""
    policy = tiny_policy()
    response = (2, 5, 3)
    real = torch.ones(1, 3, dtype=torch.bool)
    suppressed = policy.suppressed_tokens(keep_eos=False)
    outputs = policy(
        torch.tensor([[4]]), real[:, :1], torch.tensor([response]), real, temperature=0.7, suppressed=suppressed, want_entropy=True
    )
    expected = torch.distributions.Categorical(logits=naive_logits(policy, (4,), response) / 0.7).entropy()
    torch.testing.assert_close(outputs.entropy[0].double(), expected, atol=1e-5, rtol=0)


def test_the_first_ratio_is_one() -> None:
    """Released code: no dropout, one temperature and one set of positions everywhere, so the first update begins at ratio 1."""
    assert ppo_trainer().step(0)["first_ratio_error"] < 1e-5


def test_special_tokens_are_never_sampled_and_have_no_probability() -> None:
    """Released code, language/model.py: logits behind the vocabulary, where the special tokens are, are sliced off."""
    policy = tiny_policy()
    with torch.no_grad():
        policy.head.weight[[END, PAD]] = 50 * policy.head.weight[[4, 5]]  # likeliest by far at half of the states
    prompts, mask = left_pad([(4,)] * 200, PAD)
    samples = sample_responses(policy, prompts, mask, SamplingSettings(8), seeds=range(200))
    assert not torch.isin(samples.responses, torch.tensor([END, PAD])).any()


def test_end_of_text_does_not_end_a_response() -> None:
    """Released code, language/sample.py; N details, general 4: always the full length, even where end-of-text may be drawn."""
    policy = tiny_policy()
    prompts, mask = left_pad([(4,)] * 50, PAD)
    samples = sample_responses(policy, prompts, mask, SamplingSettings(8, suppress_special_tokens=False), seeds=range(50))
    assert (samples.responses[..., :-1] == END).any()
    assert samples.response_mask.all()


def test_every_episode_has_a_seed_of_its_own() -> None:
    """N details, general 6: one prompt sampled twice, in a step or in another, gives different responses; a step again the same."""
    trainer = ppo_trainer(task=TaskConfig(prompt_start=None, prompt_end=None, truncate_token=None, response_length=12))
    trainer.rollouts.prompts = [(4,)]
    first, second, again = (trainer.sample_rollout(index).responses for index in (0, 1, 0))
    assert len({tuple(row) for row in torch.cat([first, second]).tolist()}) == 32
    assert torch.equal(first, again)


def test_positions_are_adjusted_for_pads_in_forward_and_in_sampling() -> None:
    """N details, general 3: GPT-2 has learned positions; a left-padded prompt must be the prompt, also while sampling."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5))
    policy = Policy(model, tiny_tokenizer())
    short, short_mask = left_pad([(4, 5)], PAD)
    padded, padded_mask = left_pad([(4, 5), (2, 3, 4, 5, 6)], PAD)
    one = sample_responses(policy, short, short_mask, SamplingSettings(6), seeds=[7])
    other = sample_responses(policy, padded, padded_mask, SamplingSettings(6), seeds=[7, 8])
    assert torch.equal(one.responses[0], other.responses[0])
    torch.testing.assert_close(one.logprobs[0], other.logprobs[0], atol=1e-5, rtol=0)


def test_dropout_is_off_in_policy_reference_and_reward_model() -> None:
    """Released code; N details, policy 4: a model that was trained with dropout is tuned without."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0.3, resid_pdrop=0.3))
    assert any(part.p > 0 for part in model.modules() if isinstance(part, nn.Dropout))
    policy = Policy(model, tiny_tokenizer(), value_head=True)
    for module in (policy, policy.frozen_copy(), RewardModel(model, tiny_tokenizer())):
        assert {part.p for part in module.modules() if isinstance(part, nn.Dropout)} == {0.0}
    assert PPOConfig().dropout == RewardConfig().dropout == 0.0


# ---- heads


def test_the_value_head_starts_at_zero() -> None:
    """Released code, policy.py: the value head is initialised with 0, its bias too; N details, policy 2."""
    head = tiny_policy(value_head=True).value_head
    assert head is not None
    assert not head.weight.any()
    assert not head.bias.any()


def test_the_reward_head_starts_with_a_deviation_of_one_over_the_root_of_width_plus_one() -> None:
    """Released code, rewards.py: N(0, 1 / sqrt(d + 1)); N details, reward 2."""
    policy, generator = tiny_policy(width=4), torch.Generator().manual_seed(0)
    models = [RewardModel(policy.model, policy.tokenizer, generator=generator) for _ in range(400)]
    heads = torch.cat([model.score_head.weight.detach() for model in models])
    # 1 600 numbers: the deviation is known to 1.8 %; less than three times that, and 1 / sqrt(4) is 12 % off.
    assert float(heads.std()) == pytest.approx(1 / math.sqrt(5), rel=0.05)
    assert abs(float(heads.mean())) < 0.04
    assert not any(model.score_head.bias.any() for model in models)


def test_the_reward_is_read_at_the_last_token_only() -> None:
    """Released code, rewards.py; N details, reward 1: one number, from the state of the last real token."""
    trainer = reward_trainer()
    model, states = trainer.reward_model, []
    handle = model.trunk.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state))
    prompts, mask = torch.tensor([[4, 5]]), torch.ones(1, 2, dtype=torch.bool)
    responses, response_mask = torch.tensor([[[2, 3, 6, PAD]]]), torch.tensor([[[True, True, True, False]]])
    score = model(prompts, mask, responses, response_mask)
    handle.remove()
    torch.testing.assert_close(score[0], model.score_head(states[-1][0, 4]))


# ---- scores and rewards


def truncating_task(**settings: Any) -> TaskConfig:
    plain = {
        "prompt_start": None,
        "prompt_end": None,
        "truncate_token": " w5",
        "truncate_after": 1,
        "response_length": 3,
        "temperature": 1.0,
    }
    return TaskConfig(**{**plain, **settings})


def test_the_score_sees_the_truncated_response_and_ppo_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released code, train_policy.py make_score_fn: the score of the text up to the mark is added to the last sampled token."""
    seen: list[str] = []

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        seen.extend(responses)
        return [10.0] * len(responses)

    trainer = ppo_trainer(task=truncating_task(), same=True, score=score, batch_size=64, whiten_rewards=False)
    rewards, rollout = rewards_of(trainer, monkeypatch)
    cut = rollout.responses[:, 1] == 7  # "w5" in the middle
    assert cut.any()
    assert rollout.response_mask.all()
    assert all(seen[row].split()[-1] == "w5" for row in cut.nonzero()[:, 0].tolist())
    torch.testing.assert_close(rewards[cut], torch.tensor([0.0, 0.0, 10.0]).expand(int(cut.sum()), 3), atol=1e-5, rtol=0)


def test_minus_one_stands_in_place_of_the_score() -> None:
    """Released code, train_policy.py make_score_fn: tf.where(valid, score, -1): in its place, not added to it; N details, policy 5."""
    policy = tiny_policy()
    task = Task(truncating_task(), policy.tokenizer)
    responses = torch.tensor([[2, 3, 7], [2, 3, 4]])
    real = torch.ones_like(responses, dtype=torch.bool)
    scores = score_episodes(task, lambda prompts, texts: [5.0, 5.0], Episodes(responses, real, responses, real))
    assert scores.scores.tolist() == [5.0, -1.0]


def test_the_true_score_of_a_response_without_an_end_can_be_kept() -> None:
    policy = tiny_policy()
    task = Task(truncating_task(missing_truncation_score=None), policy.tokenizer)
    responses = torch.tensor([[2, 3, 4]])
    real = torch.ones_like(responses, dtype=torch.bool)
    assert score_episodes(task, lambda prompts, texts: [5.0], Episodes(responses, real, responses, real)).scores.tolist() == [5.0]


def test_the_kl_penalty_is_paid_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released code, train_policy.py compute_rewards; N details, policy 8: -kl_coef * (log pi - log rho) on every token."""
    trainer = ppo_trainer(score=lambda prompts, responses: [3.0] * len(responses))
    rewards, rollout = rewards_of(trainer, monkeypatch)
    expected = -0.5 * (rollout.logprobs - rollout.reference_logprobs)
    expected[:, -1] += 3.0
    assert expected[:, 0].abs().max() > 0.1
    torch.testing.assert_close(rewards, expected)


def test_ppo_can_be_told_to_train_on_the_truncated_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alternative to the released code: tokens behind the mark are then neither rewarded nor trained."""
    trainer = ppo_trainer(task=truncating_task(train_on_truncated=True), same=True, score=lambda p, r: [10.0] * len(r), batch_size=64)
    rewards, rollout = rewards_of(trainer, monkeypatch)
    cut = rollout.responses[:, 1] == 7
    torch.testing.assert_close(rewards[cut], torch.tensor([0.0, 10.0, 0.0]).expand(int(cut.sum()), 3), atol=1e-5, rtol=0)


def test_whitened_rewards_keep_their_mean() -> None:
    """Released code, train_policy.py: whiten(rewards, shift_mean=False) with the population variance and 1e-8.

    By hand: 1, 3 have mean 2 and population variance 1 (sample variance 2): 2 +- 1.
    """
    x, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(whiten(x, mask, shift_mean=False), torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(whiten(1e-4 * x, mask)[0, 1], torch.tensor(1e-4 / math.sqrt(2e-8)))


def minibatch_inputs() -> tuple[PPOTrainer, ppo_module.Rollout, Tensor]:
    trainer = ppo_trainer()
    rollout = trainer.sample_rollout(0)
    rollout = dataclasses.replace(rollout, values=torch.linspace(-1, 1, 48).view(16, 3))
    return trainer, rollout, torch.linspace(0, 3, 48).view(16, 3).cos()


def test_advantages_are_whitened_to_mean_zero_and_rewards_are_not() -> None:
    """Released code, train_policy.py: rewards keep their mean, advantages lose it; returns come from the advantages before that."""
    trainer, rollout, rewards = minibatch_inputs()
    mask = rollout.response_mask
    minibatch = trainer.advantages(rollout, rewards)
    advantages, returns = gae(whiten(rewards, mask, shift_mean=False), rollout.values, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(minibatch.returns, returns)
    torch.testing.assert_close(minibatch.advantages, (advantages - advantages.mean()) / advantages.std(correction=0))


def test_whitening_happens_in_every_minibatch_of_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released code, train_policy.py; N details, policy 9: on the rows of the minibatch, anew in each of the epochs."""
    shapes: list[tuple[int, ...]] = []

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return whiten(x, *args, **kwargs)

    monkeypatch.setattr(ppo_module, "whiten", watched)
    ppo_trainer(minibatches=2, ppo_epochs=4).step(0)
    assert shapes == [(8, 3)] * (2 * 4 * 2)  # rewards and advantages


def test_whitening_needs_eight_rows() -> None:
    """Released code, train_policy.py: at least 8 rows where rewards are whitened."""
    with pytest.raises(ValueError, match="8 episodes or more"):
        PPOConfig(batch_size=16, minibatches=4, episodes=64)


def test_gae_has_gamma_one_lambda_095_and_nothing_behind_the_end() -> None:
    """Released code, train_policy.py PpoHParams; N details, policy 6.

    By hand, rewards 0, 1 and values .5, .2: delta = .2 - .5, 1 - .2; advantages -.3 + .95 * .8 = .46 and .8.
    """
    c = PPOConfig()
    assert (c.gamma, c.gae_lambda) == (1.0, 0.95)
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.2]]), mask, gamma=c.gamma, gae_lambda=c.gae_lambda)
    torch.testing.assert_close(advantages, torch.tensor([[0.46, 0.8]]))
    torch.testing.assert_close(returns, torch.tensor([[0.96, 1.0]]))


def test_the_score_is_on_the_last_real_token() -> None:
    """Released code: rewards[:, -1] += scores, at the response's own last token, not behind it."""
    mask = torch.tensor([[True, True, False]])
    assert add_at_last_token(torch.zeros(1, 3), torch.tensor([2.0]), mask).tolist() == [[0.0, 2.0, 0.0]]


# ---- the update


def update_loss(trainer: PPOTrainer, minibatch: ppo_module.Minibatch) -> float:
    return trainer.update(minibatch)["loss"]


def test_the_loss_is_the_clipped_policy_loss_and_a_tenth_of_half_the_clipped_square_error() -> None:
    """Released code, train_policy.py loss: clip .2, value clip .2 around the old values, vf_coef .1, half, and no entropy term."""
    trainer, rollout, rewards = minibatch_inputs()
    # Other old log-probabilities, so that ratios lie on both sides of the clip; the value head says 0.
    rollout = dataclasses.replace(rollout, logprobs=rollout.logprobs + torch.linspace(-0.5, 0.5, 48).view(16, 3))
    b = trainer.advantages(rollout, rewards)
    ratio = torch.exp(-torch.linspace(-0.5, 0.5, 48).view(16, 3))
    policy_loss = torch.maximum(-b.advantages * ratio, -b.advantages * ratio.clamp(0.8, 1.2)).mean()
    clipped = torch.zeros(16, 3).clamp(rollout.values - 0.2, rollout.values + 0.2)
    value_loss = 0.5 * torch.maximum(b.returns.square(), (clipped - b.returns).square()).mean()
    assert update_loss(trainer, b) == pytest.approx(float(policy_loss + 0.1 * value_loss), abs=1e-5)


def test_approximate_kl_is_half_the_mean_square_of_the_change() -> None:
    """Released code, train_policy.py: approxkl = .5 * mean((logprob - old logprob)^2)."""
    trainer, rollout, rewards = minibatch_inputs()
    rollout = dataclasses.replace(rollout, logprobs=rollout.logprobs - 0.1)
    assert trainer.update(trainer.advantages(rollout, rewards))["approx_kl"] == pytest.approx(0.005, rel=1e-3)


def test_the_loss_does_not_know_the_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released code, train_policy.py: the entropy is logged only."""

    def after(scale: float) -> Tensor:
        trainer, rollout, rewards = minibatch_inputs()
        forward = trainer.policy.forward

        def scaled(*args: Any, **kwargs: Any) -> Any:
            outputs = forward(*args, **kwargs)
            return dataclasses.replace(outputs, entropy=scale * outputs.entropy)

        monkeypatch.setattr(trainer.policy, "forward", scaled)
        trainer.update(trainer.advantages(rollout, rewards))
        return trainer.policy.head.weight.detach().clone()

    assert torch.equal(after(1.0), after(100.0))


def test_gradients_are_not_clipped() -> None:
    """Released code: no gradient clipping, neither in the policy's nor in the reward model's training."""
    assert PPOConfig().max_grad_norm is None
    assert RewardConfig().max_grad_norm is None
    assert ppo_trainer().updater.max_grad_norm is None


def test_adams_epsilon_is_1e_5_and_can_stand_outside_the_bias_correction() -> None:
    """Released code, utils/core.py: Adam with 1e-5 in TensorFlow's form; N details, Adam. The first step is then 1 / 31 of PyTorch's.

    By hand, a gradient g far below epsilon moves lr * g / eps in PyTorch's form, and in TensorFlow's lr * sqrt(.001) * g / (sqrt(.001) g
    + eps), which is lr * .0316 * g / eps.
    """
    assert PPOConfig().adam_eps == RewardConfig().adam_eps == 1e-5
    moved = []
    for hat in (False, True):
        trainer = ppo_trainer(adam_eps_hat=hat, lr_schedule="constant", lr=1.0)
        head = trainer.policy.value_head
        assert head is not None
        trainer.updater.update([None], lambda module, _: 1e-9 * module.policy.value_head.bias.sum(), what="test")
        moved.append(float(head.bias.detach().abs()))
    assert moved[0] == pytest.approx(1e-4, rel=1e-3)
    assert moved[1] == pytest.approx(1e-4 * math.sqrt(0.001), rel=1e-3)


def test_the_learning_rate_of_the_policy_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released code, train_policy.py policy_frac; N details, general 5: lr * (1 - steps done / steps) in all updates of a step."""
    trainer = ppo_trainer(ppo_epochs=2, minibatches=2, lr=1.0e-3)
    update, rates = trainer.updater.update, list[float]()

    def watched(*args: Any, **settings: Any) -> dict[str, float]:
        found = update(*args, **settings)
        rates.append(found["lr"])
        return found

    monkeypatch.setattr(trainer.updater, "update", watched)
    trainer.run()
    assert rates == pytest.approx([1e-3 * (1 - step / 4) for step in range(4) for _ in range(4)])


def test_the_last_batch_is_a_whole_one() -> None:
    """Released code, train_policy.py nupdates: total_episodes / batch_size, rounded up. 65 episodes in batches of 16 are 5 steps."""
    assert ppo_trainer(episodes=65).total_steps == PPOConfig(episodes=65, batch_size=16).steps == 5


def test_the_learning_rate_of_the_reward_model_falls_to_zero() -> None:
    """Released code, train_reward.py; N details, general 5: lr * (1 - start / num_train)."""
    trainer = reward_trainer()
    assert [trainer.step(index)["lr"] for index in range(trainer.total_steps)] == pytest.approx([1e-2, 0.5e-2])


def test_batch_minibatch_and_micro_batch_are_three_things() -> None:
    """N details, policy 7: a batch is sampled, divided into minibatches that one update each is made of, and those into forwards."""
    trainer = ppo_trainer(batch_size=32, minibatches=2, ppo_epochs=3, micro_batch_tokens=20)
    forwards: list[tuple[int, int]] = []
    trainer.policy.register_forward_hook(lambda module, args, output: forwards.append((len(args[0]), int(args[1].sum() + args[3].sum()))))
    trainer.step(0)
    assert trainer.updater.updates == 2 * 3
    assert sum(rows for rows, _ in forwards) == 32 * 3
    assert all(tokens <= 20 for _, tokens in forwards)
    assert len(forwards) > 2 * 3


def test_each_epoch_shuffles_anew() -> None:
    """Released code, train_policy.py: np.random.permutation in every epoch; together the minibatches are the batch."""
    trainer = ppo_trainer(minibatches=2)
    epochs = [torch.cat(list(trainer.minibatch_rows(0, epoch))).tolist() for epoch in range(4)]
    assert all(sorted(rows) == list(range(16)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4


# ---- the KL controller


def test_the_kl_coefficient_follows_the_kl_of_whole_responses_after_the_update() -> None:
    """Released code, AdaptiveKLController; N details, policy 11: KL summed over tokens, averaged over responses, clip .2."""
    trainer = ppo_trainer(kl_target=6.0)
    first = trainer.step(0)
    assert first["kl_coef"] == 0.5  # the batch was trained with the old one
    error = max(-0.2, min(0.2, first["kl"] / 6.0 - 1))
    adapted = 0.5 * (1 + error * 16 / 10_000)
    assert trainer.kl_coef == pytest.approx(adapted, rel=1e-9)
    assert trainer.step(1)["kl_coef"] == pytest.approx(adapted, rel=1e-9)


def test_the_logged_kl_is_a_sum_over_tokens() -> None:
    """Released code: mean_kl = mean over the batch of the sum over tokens."""
    trainer = ppo_trainer()
    rollout = trainer.sample_rollout(0)
    expected = (rollout.logprobs - rollout.reference_logprobs).sum(1).mean()
    assert trainer.step(0)["kl"] == pytest.approx(float(expected), rel=1e-5)


def test_without_a_target_the_coefficient_stays() -> None:
    """Released code, launch.py: the summary runs have a fixed coefficient."""
    assert {step["kl_coef"] for step in ppo_trainer(kl_target=None).run()} == {0.5}


def test_the_published_controller_settings_are_the_defaults() -> None:
    """Released code, launch.py: .15, target 6, horizon 10 000."""
    c = PPOConfig()
    assert (c.kl_coef, c.kl_target, c.kl_horizon, c.kl_clip) == (0.15, 6.0, 10_000, 0.2)


# ---- the reward model


@pytest.mark.parametrize("when", ["before", "after"])
def test_scores_of_reference_responses_are_normalised(when: str) -> None:
    """Released code, train_reward.py; N details, reward 3: mean 0 and population deviation 1, before fitting and again after."""
    trainer = reward_trainer(normalize_before=when == "before", normalize_after=when == "after", target_mean=0.5, target_std=2.0)
    assert trainer.reference_episodes is not None
    trainer.start()
    if when == "after":
        assert float(trainer.reward_model.gain) == 1.0
        trainer.step(0)
        trainer.finish()
    scores = trainer.scores(trainer.reference_episodes)
    assert float(scores.mean()) == pytest.approx(0.5, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(2.0, rel=1e-5)


def test_normalising_begins_at_gain_one_and_bias_zero() -> None:
    """Released code, train_reward.py: reset_reward_scale first, so that normalising twice is normalising once."""
    trainer = reward_trainer()
    trainer.normalize(0.0, 1.0)
    once = float(trainer.reward_model.gain), float(trainer.reward_model.bias)
    trainer.reward_model.set_normalization(17.0, -4.0)
    trainer.normalize(0.0, 1.0)
    assert (float(trainer.reward_model.gain), float(trainer.reward_model.bias)) == pytest.approx(once)


def test_gain_and_bias_are_not_trained() -> None:
    """Released code, rewards.py: they are set by normalising only."""
    trainer = reward_trainer(normalize_before=False, normalize_after=False)
    trainer.step(0)
    assert (float(trainer.reward_model.gain), float(trainer.reward_model.bias)) == (1.0, 0.0)


def test_the_reward_model_has_a_trunk_of_its_own() -> None:
    """Ziegler et al. 2019, section 2.1: fitting the reward model must not move the policy; each starts from its own copy."""
    policy = tiny_policy(value_head=True)
    reference = policy.frozen_copy()
    before = policy.head.weight.clone()
    with torch.no_grad():
        reference.head.weight.add_(1)
    assert torch.equal(policy.head.weight, before)
    assert not any(p.requires_grad for p in reference.parameters())


def test_the_labels_are_seen_once() -> None:
    """Released code, train_reward.py: one epoch over the labels, each in one batch."""
    trainer = reward_trainer()
    trainer.comparisons = [dataclasses.replace(c, question_id=str(n)) for n, c in enumerate(trainer.comparisons)]
    assert RewardConfig().epochs == 1
    seen = [c.question_id for index in range(trainer.total_steps) for c in trainer.batch(index)]
    assert sorted(seen) == [str(n) for n in range(8)]


def test_the_loss_of_the_reward_model_is_a_softmax_over_all_k() -> None:
    """Ziegler et al. 2019, eq. 1: cross-entropy over the K scores, averaged over questions."""
    trainer = reward_trainer()
    questions = [trainer.batch(0)[0]]
    prompts, mask = left_pad([questions[0].prompt.tokens], PAD)
    responses = torch.tensor([[[2], [3]]])
    scores = trainer.reward_model(prompts, mask, responses, torch.ones_like(responses, dtype=torch.bool))
    expected = float(nn.functional.cross_entropy(scores.detach(), torch.tensor([0])))
    assert trainer.step(0)["loss"] == pytest.approx(expected, rel=1e-5)
