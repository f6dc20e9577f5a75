"""Every kind of label trains a reward model, each with the loss that belongs to it; a score is read at the last real token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from humanward.errors import UserError
from humanward.models import EnsembleConfig, RewardModel, load_reward_model, new_ensemble
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import EnsembleTrainer, Episodes, RewardConfig, RewardTrainer, TextReward
from humanward.trainers.label_losses import LOSSES_OF_KIND, loss_for, without_labeler_noise
from humanward.trainers.questions import is_right
from humanward.trainers.scoring import score_episodes
from humanward.trainers.selftest import END, GOOD, tiny_policy, tiny_task

BETTER, WORSE, MIDDLE = (GOOD, GOOD), (4, 5), (GOOD, 4)


def labelled(kind: str, count: int = 48) -> list[Comparison]:
    """Labels of somebody who likes the word "good": BETTER over MIDDLE over WORSE, in changing places."""
    rows = []
    for n in range(count):
        shown = [BETTER, WORSE, MIDDLE][: 3 if kind in ("best_of_k", "ranking") else 2]
        shown = shown[n % len(shown) :] + shown[: n % len(shown)]
        goods = [tokens.count(GOOD) for tokens in shown]
        target: Any
        if kind == "rating":
            shown = [[BETTER, WORSE, MIDDLE][n % 3]]
            target = float(3 + 2 * shown[0].count(GOOD))
        elif kind == "binary":
            shown = [[BETTER, WORSE][n % 2]]
            target = float(GOOD in shown[0])
        elif kind == "difference":
            target = float(goods[0] - goods[1])
        elif kind == "soft":
            target = [0.9 if good == max(goods) else 0.1 for good in goods]
        elif kind == "ranking":
            target = [2 - good for good in goods]
        else:
            target = goods.index(max(goods))
        responses = tuple(Response("", tokens) for tokens in shown)
        rows.append(Comparison(Prompt(str(n), "", (3 + n % 4,)), responses, kind, target, question_id=str(n), labeler=f"l{n % 3}"))
    return rows


def trainer(comparisons: list[Comparison], *, reference: Episodes | None = None, **settings: Any) -> RewardTrainer:
    policy = tiny_policy(seed=2)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    plain = {"lr": 1e-2, "batch_size": 8, "epochs": 3, "normalize_before": False, "normalize_after": False}
    return RewardTrainer(model, comparisons, RewardConfig(**{**plain, **settings}), reference_episodes=reference)


def fitted(comparisons: list[Comparison], **settings: Any) -> RewardTrainer:
    one = trainer(comparisons, **settings)
    one.start()
    one.history = [one.step(index) for index in range(one.total_steps)]  # type: ignore[attr-defined]
    one.finish()
    return one


@torch.no_grad()
def scores(model: RewardModel, *responses: tuple[int, ...]) -> list[float]:
    prompts = torch.tensor([[3]])
    found = []
    for tokens in responses:
        r = torch.tensor([[tokens]])
        found.append(float(model(prompts, torch.ones_like(prompts, dtype=torch.bool), r, torch.ones_like(r, dtype=torch.bool))))
    return found


EVERY = [(kind, loss) for kind, losses in LOSSES_OF_KIND.items() for loss in losses]


@pytest.mark.parametrize(("kind", "loss"), EVERY)
def test_every_loss_of_every_kind_learns_what_was_liked(kind: str, loss: str) -> None:
    one = fitted(labelled(kind), loss=loss, epochs=6)
    better, middle, worse = scores(one.reward_model, BETTER, MIDDLE, WORSE)
    assert better > worse + 0.5
    if kind in ("ranking", "rating"):
        assert better > middle > worse
    assert one.history[-1]["loss"] < one.history[0]["loss"]  # type: ignore[attr-defined]
    assert ("accuracy" in one.history[0]) == (kind not in ("rating", "binary"))  # type: ignore[attr-defined]


def test_regression_gives_the_scores_that_were_given() -> None:
    one = fitted(labelled("rating"), epochs=8)
    assert scores(one.reward_model, BETTER, MIDDLE, WORSE) == pytest.approx([7.0, 5.0, 3.0], abs=1.2)
    two = fitted(labelled("difference"), epochs=8)
    better, worse = scores(two.reward_model, BETTER, WORSE)
    assert better - worse == pytest.approx(2.0, abs=0.3)


def test_a_score_of_liked_and_disliked_is_the_log_odds() -> None:
    better, worse = scores(fitted(labelled("binary"), epochs=8).reward_model, BETTER, WORSE)
    assert worse < -1 < 1 < better
    # Every fourth label is wrong: scores that say 3/4 are log 3 = 1.1 from even, unless the noise is known to be there.
    wrong = [replace(c, target=1.0 - float(c.target)) if n % 4 == n // 4 % 4 else c for n, c in enumerate(labelled("binary"))]  # type: ignore[arg-type]
    plain, _ = scores(fitted(wrong, epochs=8).reward_model, BETTER, WORSE)
    assert plain == pytest.approx(1.1, abs=0.5)
    knowing, _ = scores(fitted(wrong, epochs=8, label_noise=0.45).reward_model, BETTER, WORSE)
    assert knowing > plain + 0.5


def test_a_margin_spreads_the_scores_and_noise_explains_wrong_labels() -> None:
    # Every fourth label is wrong: scores that say 3/4 lead by log 3 = 1.1, unless the noise is known to be there.
    flips = [n % 4 == n // 4 % 4 for n in range(48)]  # whatever the prompt and the place
    rows = zip(labelled("pair"), flips, strict=True)
    wrong = [replace(c, target=1 - int(c.target)) if flip else c for c, flip in rows]  # type: ignore[arg-type]

    def lead(**settings: Any) -> float:
        better, worse = scores(fitted(wrong, epochs=6, **settings).reward_model, BETTER, WORSE)
        return better - worse

    plain = lead()
    assert plain == pytest.approx(1.1, abs=0.4)
    assert lead(margin=2.0) > plain + 1
    assert lead(label_noise=0.45) > plain + 1


def test_a_margin_counts_per_point_of_a_difference() -> None:
    comparisons = labelled("difference")
    loss = loss_for(comparisons, "choice", margin=0.5, noise=0.0)
    # Equal scores, said to differ by 2: a lead of 1 is wanted. Said to be equal: log 2.
    found = loss(torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([1.3132617, 0.6931472])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("pair", {"loss": "regression"}, "reward.loss: regression has no use for labels of kind pair; choose auto or choice"),
        ("ranking", {"loss": "choice"}, "choose auto or all_pairs or plackett_luce"),
        ("rating", {"margin": 1.0}, "reward.margin: the loss regression of labels of kind rating does not read it"),
        ("ranking", {"loss": "plackett_luce", "label_noise": 0.1}, "reward.label_noise: the loss plackett_luce"),
        ("ranking", {"label_noise": "estimated"}, "labels of kind ranking are no choices"),
        ("pair", {"normalize_after": True, "normalize_on": "demonstrations"}, "needs responses that people wrote"),
    ],
)
def test_what_a_loss_has_no_use_for_is_one_line(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        trainer(labelled(kind), **settings)
    assert "\n" not in str(raised.value)


def test_equal_ranks_and_unknown_kinds_are_one_line() -> None:
    tied = [replace(c, target=[0, 1, 1]) for c in labelled("ranking")]
    with pytest.raises(UserError, match="plackett_luce knows no equal ranks; use"):
        trainer(tied, loss="plackett_luce")
    with pytest.raises(UserError, match="question 0: nothing is learnt from labels of kind essay yet"):
        trainer([replace(c, kind="essay") for c in labelled("pair")])
    with pytest.raises(UserError, match="train on labels of one kind and one K"):
        trainer([*labelled("pair"), *labelled("difference")])


def test_certain_and_soft_choices_share_a_batch() -> None:
    one = fitted([*labelled("pair"), *labelled("soft")])
    better, worse = scores(one.reward_model, BETTER, WORSE)
    assert better > worse


def test_a_weight_is_so_many_labels() -> None:
    """Of two labels in a batch one with twice the weight = that one twice."""
    heavy, light = labelled("pair", 2)
    once = trainer([replace(heavy, weight=2.0), light], batch_size=2, epochs=1)
    twice = trainer([heavy, heavy, light], batch_size=3, epochs=1)
    assert once.step(0)["loss"] == pytest.approx(twice.step(0)["loss"], abs=1e-6)
    for name, tensor in once.tensors().items():
        # A choice does not depend on the bias of the head: its gradient is pure rounding, which Adam enlarges.
        assert name.endswith("score_head.bias") or torch.allclose(tensor, twice.tensors()[name], atol=1e-5), name


def test_weights_are_shares_of_their_batch() -> None:
    """Half the weight on every label is the same mean, whatever the micro-batches."""
    halves = [replace(c, weight=0.5 * c.weight) for c in uneven("best_of_k")]
    for size in (None, 1):
        one = trainer(uneven("best_of_k"), batch_size=5, epochs=1)
        other = trainer(halves, batch_size=5, epochs=1, micro_batch_tokens=size)
        for index in range(one.total_steps):
            expected, found = one.step(index), other.step(index)
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def uneven(kind: str) -> list[Comparison]:
    return [replace(c, weight=0.25 + n % 3) for n, c in enumerate(labelled(kind, 12))]


def test_a_label_that_counts_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="question 0: its weight is 0; a weight must be above 0"):
        trainer([replace(c, weight=0.0) for c in labelled("pair", 4)])


def test_labelers_who_contradict_the_others_count_less() -> None:
    honest = [replace(c, labeler=name) for name in ("ann", "ben", "cleo") for c in labelled("pair")]
    liar = [replace(c, labeler="dan", target=1 - int(c.target)) for c in labelled("pair")]  # pyright: ignore[reportArgumentType]
    found = without_labeler_noise(honest + liar)
    assert len(found) == 48
    for comparison, truth in zip(found, labelled("pair"), strict=True):
        assert comparison.kind == "soft"
        assert comparison.target[int(truth.target)] > 0.99  # type: ignore[index, arg-type]
    alone = without_labeler_noise(honest[:1])
    assert max(alone[0].target) == pytest.approx(0.8)  # type: ignore[arg-type]
    one = fitted(honest + liar, label_noise="estimated", epochs=6)
    assert len(one.comparisons) == 48
    with pytest.raises(UserError, match="does not say who gave it"):
        without_labeler_noise([replace(honest[0], labeler="")])


def test_who_is_right() -> None:
    pair, ranking, graded = (labelled(kind, 1)[0] for kind in ("pair", "ranking", "difference"))
    assert [is_right(pair, k) for k in (0, 1)] == [True, False]
    assert is_right(replace(pair, target=[0.5, 0.5]), 0) is None
    assert [is_right(ranking, k) for k in range(3)] == [True, False, False]
    assert [is_right(replace(ranking, target=[1, 0, 0]), k) for k in range(3)] == [False, True, True]
    assert [is_right(replace(graded, target=-1.0), k) for k in (0, 1)] == [False, True]
    assert is_right(replace(graded, target=0.0), 0) is None
    assert is_right(labelled("rating", 1)[0], 0) is None


def test_after_a_shift_demonstrations_score_nothing_on_average_and_differences_stay(problems: ModuleType) -> None:
    demonstrations, pairs = problems.episodes(), labelled("pair")

    def made(**settings: Any) -> RewardTrainer:
        policy = tiny_policy(seed=2)
        model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
        config = RewardConfig(lr=1e-2, batch_size=8, normalize_before=False, **settings)
        one = RewardTrainer(model, pairs, config, demonstrations=demonstrations)
        for index in range(one.total_steps):
            one.step(index)
        one.finish()
        return one

    shifted, raw = made(normalize_on="demonstrations", target_mean=0.25), made(normalize_after=False)
    assert float(shifted.scores(demonstrations).mean()) == pytest.approx(0.25, abs=1e-5)
    (a, b), (c, d) = scores(shifted.reward_model, BETTER, WORSE), scores(raw.reward_model, BETTER, WORSE)
    assert a - b == pytest.approx(c - d, abs=1e-5)


def test_before_regression_the_scores_have_the_moments_of_the_labels(problems: ModuleType) -> None:
    ratings = labelled("rating")
    one = trainer(ratings, reference=problems.episodes(), normalize_before=True, normalize_samples=12)
    one.start()
    found = one.scores(problems.episodes())
    targets = torch.tensor([float(c.target) for c in ratings])  # type: ignore[arg-type]
    assert float(found.mean()) == pytest.approx(float(targets.mean()), abs=1e-4)
    assert float(found.std(correction=0)) == pytest.approx(float(targets.std(correction=0)), abs=1e-4)


@torch.no_grad()
def test_the_score_is_read_at_the_last_real_token() -> None:
    """By hand: the head on the trunk's state there, whatever stands behind it and however the prompt is padded."""
    policy = tiny_policy(seed=2)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    tokens = [3, 5, 2, 6]
    state = model.trunk(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
    by_hand = float(model.score_head(state))
    prompts, responses = torch.tensor([[1, 1, 3, 5]]), torch.tensor([[[2, 6, 1, 1, 7]]])
    prompt_mask, mask = torch.tensor([[False, False, True, True]]), torch.tensor([[[True, True, False, False, False]]])
    assert float(model(prompts, prompt_mask, responses, mask)) == pytest.approx(by_hand, abs=1e-6)


@torch.no_grad()
def test_the_end_token_is_real_and_a_response_without_it_has_the_fixed_score() -> None:
    """N+ detail 23: always sample the whole length, read the score at the end token, a fixed score where there is none."""
    policy = tiny_policy(seed=2)
    model = RewardModel(policy.model, policy.tokenizer, generator=torch.Generator().manual_seed(0))
    plain = tiny_task(policy, response_length=3)
    task = type(plain)(plain.config.model_copy(update={"stop_at_eos": True, "missing_truncation_score": -1.0}), policy.tokenizer)
    end = policy.eos_id
    prompts = torch.tensor([[3], [3]])
    responses, mask = torch.tensor([[4, end, 1], [4, 5, 6]]), torch.tensor([[True, True, False], [True, True, True]])
    found = score_episodes(task, model, Episodes(prompts, torch.ones_like(prompts, dtype=torch.bool), responses, mask))
    assert found.found.tolist() == [True, False]
    assert found.scores[1].item() == -1.0
    state = model.trunk(input_ids=torch.tensor([[3, 4, end]])).last_hidden_state[0, -1]
    assert found.scores[0].item() == pytest.approx(float(model.score_head(state)), abs=1e-6)
    # The end token tells apart what the words before it do not.
    unended = TextReward(model)(["w3"], ["w4"])[0]
    assert found.scores[0].item() != pytest.approx(unended, abs=1e-4)


@pytest.mark.parametrize("stops", [True, False])
def test_a_reward_model_knows_whether_the_responses_it_was_fitted_to_end(problems: ModuleType, tmp_path: Path, stops: bool) -> None:
    rows = problems.comparisons()
    if stops:  # all but those that were cut at their full length
        rows[1:] = [replace(c, responses=tuple(replace(r, tokens=(*r.tokens, END)) for r in c.responses)) for c in rows[1:]]
    policy = tiny_policy()
    ensemble = new_ensemble(policy.model, policy.tokenizer, EnsembleConfig(members=2))
    config = RewardConfig(batch_size=8, normalize_before=False, normalize_after=False)
    EnsembleTrainer(ensemble, rows, config).run()
    ensemble.save(tmp_path)
    assert load_reward_model(tmp_path).stops_at_eos == load_reward_model(tmp_path / "member-1").stops_at_eos == stops
