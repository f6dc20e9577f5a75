"""Every direct method through the one trainer: the loss of the formula, exact accumulation, exact resume, each kind of reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from humanward import maths
from humanward.errors import UserError
from humanward.maths import Pairs, Singles
from humanward.models import Policy
from humanward.records import Comparison
from humanward.storage import Checkpoints
from humanward.trainers import DPOConfig, DPOTrainer, Surroundings, train
from humanward.trainers import reference as reference_room
from humanward.trainers.objective import LOSSES
from humanward.trainers.questions import collate

UNPAIRED = [name for name, loss in LOSSES.items() if loss.reads == "singles"]
VARIANTS: dict[str, dict[str, Any]] = {name: {"loss": name} for name in LOSSES} | {
    "cdpo": {"label_smoothing": 0.1},
    "weighted list": {"loss": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},
    "aot and sft": {"loss": {"aot": 0.5, "sft": 0.3}},
    "ld": {"ld_alpha": 0.4},
    "wpo": {"wpo": True},
    "wpo hinge": {"loss": "hinge", "wpo": True},
    "forward kl": {"divergence": "forward_kl"},
    "js": {"divergence": "js"},
    "alpha": {"loss": "ipo", "divergence": "alpha", "divergence_alpha": 0.3},
}


def labels(problems: ModuleType, kind: str, count: int = 8) -> list[Comparison]:
    if kind == "binary":
        rows = problems.comparisons(count)
        return [replace(c, kind="binary", responses=c.responses[:1], target=int(n % 3 > 0)) for n, c in enumerate(rows)]
    if kind == "ranking":
        return [replace(c, kind=kind, target=[n % 2, 2, 1 - n % 2]) for n, c in enumerate(problems.comparisons(count))]
    if kind == "soft":
        rows = problems.comparisons(count, K=2)
        return [replace(c, kind=kind, target=[0.1 * (n + 1), 1 - 0.1 * (n + 1)]) for n, c in enumerate(rows)]
    return problems.comparisons(count, K=3 if kind == "best_of_k" else 2)


def direct(
    problems: ModuleType, kind: str = "pair", *, given: bool = True, dtype: torch.dtype = torch.float64, **settings: Any
) -> DPOTrainer:
    config = DPOConfig(**{"lr": 3e-3, "batch_size": 8, "epochs": 1, "adam_eps": 1e-5, **settings})
    reference = problems.policy_of(dtype, seed=1) if given else None
    return DPOTrainer(problems.policy_of(dtype, seed=0), reference, labels(problems, kind), config, seed=5)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) / max(1.0, float(one[name].abs().max())) for name in one)


def plain_logprob(policy: Policy, prompt: tuple[int, ...], response: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """log pi of each token and log of its distribution's collision, one forward of the library's own model for this response alone."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
    return logits[torch.arange(len(response)), torch.tensor(response)], (2 * logits).logsumexp(-1)


def slow_loss(trainer: DPOTrainer, rows: list[tuple[Comparison, int, int, float]], name: str) -> float:
    """Of (question, preferred, other, weight): the mean of the function of ``maths`` on pairs that are put together one by one."""
    c = trainer.config
    values: list[list[float]] = []
    weights = []
    chosen_length = sum(w * len(q.responses[i].tokens) for q, i, _, w in rows) / sum(w for *_, w in rows)
    for question, i, j, weight in rows:
        own, theirs, length, trust = [], [], [], 1.0
        for k, other in ((i, j), (j, i)):
            tokens = question.responses[k].tokens
            shared = len(question.responses[other].tokens)
            factor = torch.tensor([1.0 if t < shared or c.ld_alpha is None else c.ld_alpha for t in range(len(tokens))])
            logprob, collision = plain_logprob(trainer.policy, question.prompt.tokens, tokens)
            trust *= math.exp((logprob - collision).mean()) if c.wpo else 1.0
            own.append(float((factor * logprob).sum()))
            assert trainer.reference is not None
            theirs.append(float((factor * plain_logprob(trainer.reference, question.prompt.tokens, tokens)[0]).sum()))
            length.append(float(len(tokens)))
        values.append([*own, *theirs, *length])
        weights.append(weight * trust)
    columns = torch.tensor(values, dtype=torch.float64).unbind(1)
    function: Callable[..., Tensor] = LOSSES[name].function
    measured = {"reward_shift": 0.0, "mean_chosen_length": chosen_length}
    options = {n: v for n, v in {**trainer.objective.options, **measured}.items() if n in LOSSES[name].options}
    losses = function(Pairs(*columns, divergence=maths.divergence(c.divergence, c.divergence_alpha)), **options)
    total = sum(w for *_, w in rows)
    return float(losses) if losses.dim() == 0 else float((torch.tensor(weights, dtype=torch.float64) * losses).sum() / total)


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v not in UNPAIRED and v not in ("weighted list", "aot and sft", "plackett_luce")]
)
def test_the_loss_of_pairs_is_the_formula(problems: ModuleType, variant: str) -> None:
    trainer = direct(problems, **VARIANTS[variant])
    rows = [(c, int(c.target), 1 - int(c.target), 1.0) for c in trainer.batch(0)]  # pyright: ignore[reportArgumentType]
    expected = slow_loss(trainer, rows, next(iter(trainer.config.losses)))
    assert trainer.step(0)["loss"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "apo_zero", "robust"])
def test_uncertain_labels_are_the_mean_over_both_orders(problems: ModuleType, name: str) -> None:
    trainer = direct(problems, "soft", loss=name)
    rows = [(c, k, 1 - k, c.target[k]) for c in trainer.batch(0) for k in (0, 1)]  # pyright: ignore[reportIndexIssue]
    expected = slow_loss(trainer, rows, name)
    assert trainer.step(0)["loss"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", ["hinge", "ipo", "aot", "simpo"])
def test_a_choice_among_three_is_two_pairs(problems: ModuleType, name: str) -> None:
    trainer = direct(problems, "best_of_k", loss=name)
    rows = [(c, int(c.target), j, 0.5) for c in trainer.batch(0) for j in range(3) if j != c.target]  # pyright: ignore[reportArgumentType]
    expected = slow_loss(trainer, rows, name)
    assert trainer.step(0)["loss"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "sppo_hard"])
def test_an_order_of_three_is_three_pairs(problems: ModuleType, name: str) -> None:
    trainer = direct(problems, "ranking", loss=name)
    rows = [
        (c, i, j, 1 / 3) for c in trainer.batch(0) for i in range(3) for j in range(3)
        if c.target[i] < c.target[j]  # pyright: ignore[reportIndexIssue]
    ]  # fmt: skip
    expected = slow_loss(trainer, rows, name)
    assert trainer.step(0)["loss"] == pytest.approx(expected, rel=1e-7)


def logratios(trainer: DPOTrainer, comparison: Comparison) -> list[float]:
    assert trainer.reference is not None
    models = (trainer.policy, trainer.reference)
    pairs = [[float(plain_logprob(m, comparison.prompt.tokens, r.tokens)[0].sum()) for m in models] for r in comparison.responses]
    return [policy - reference for policy, reference in pairs]


def test_plackett_luce_is_the_likelihood_of_the_order(problems: ModuleType) -> None:
    trainer = direct(problems, "ranking", loss="plackett_luce", beta=0.7)
    expected = 0.0
    for c in trainer.batch(0):
        left = sorted(zip(c.target, logratios(trainer, c), strict=True))  # pyright: ignore[reportArgumentType]
        while left:
            expected -= 0.7 * left[0][1] - math.log(sum(math.exp(0.7 * z) for _, z in left))
            left = left[1:]
    assert trainer.step(0)["loss"] == pytest.approx(expected / 8, rel=1e-7)


@pytest.mark.parametrize("kind", ["pair", "binary"])
@pytest.mark.parametrize("name", UNPAIRED)
def test_the_loss_of_single_responses_is_the_formula(problems: ModuleType, name: str, kind: str) -> None:
    """Of a pair the chosen response is liked and the other one is not, half a question each."""
    trainer = direct(problems, kind, loss=name)
    values, liked = [], []
    for c in trainer.batch(0):
        values += logratios(trainer, c)
        liked += [bool(c.target)] if kind == "binary" else [k == c.target for k in (0, 1)]
    ratio = torch.tensor(values, dtype=torch.float64)
    singles = Singles(ratio, torch.zeros_like(ratio), torch.tensor(liked))
    crossed = torch.tensor([logratios(trainer, trainer.crossed[row]) for row in trainer.rows(0)]) if trainer.crossed else torch.zeros(1)
    measured = {"reference_point": float(maths.kto_reference_point(crossed.flatten())), "reward_shift": 0.0}
    options = {n: v for n, v in {"beta": 0.1, **measured}.items() if n in LOSSES[name].options}
    expected = float(LOSSES[name].function(singles, **options).mean())
    assert trainer.step(0)["loss"] == pytest.approx(expected, rel=1e-6)


def test_kto_crosses_prompts_and_responses(problems: ModuleType) -> None:
    trainer = direct(problems, "binary", loss="kto")
    for c, crossed in zip(trainer.comparisons, trainer.crossed, strict=True):
        assert crossed.prompt == c.prompt
        source = [other for other in trainer.comparisons if other.responses == crossed.responses]
        assert source
        assert all(other.prompt.tokens != c.prompt.tokens for other in source)


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulation_is_exact(problems: ModuleType, variant: str) -> None:
    """8 x 1 = 1 x 8, two updates, in float64."""
    whole, parts = (direct(problems, **VARIANTS[variant], batch_size=4, micro_batch_tokens=size) for size in (1000, 1))
    assert len(whole.micro_batches(whole.comparisons, whole.rows(0))) == 1
    assert len(parts.micro_batches(parts.comparisons, parts.rows(0))) == 4
    logs = [[trainer.step(index) for index in range(2)] for trainer in (whole, parts)]
    assert difference(whole.tensors(), parts.tensors()) < 1e-6
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "apo_down"])
def test_every_loss_separates_what_it_was_told_to(problems: ModuleType, variant: str) -> None:
    """Fails when the sign of a loss flips anywhere between the label and the weights. discopop's own gate pushes the wrong way at first."""
    more: dict[str, Any] = {"discopop_tau": 0.4} if variant == "discopop" else {}
    trainer = direct(
        problems, **VARIANTS[variant], **more, reference="initial", given=False, lr=2e-3, lr_schedule="constant", epochs=12,
        dtype=torch.float32,
    )  # fmt: skip
    log = trainer.run()
    gap = [row["chosen_moved"] - row["rejected_moved"] for row in log]
    assert gap[-1] > gap[0] + 0.1
    if variant != "sft":
        assert log[-1]["accuracy"] >= log[0]["accuracy"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_weight_of_two_is_the_question_twice(problems: ModuleType, variant: str) -> None:
    """In the same batch: the update and every number of the meter, in float64."""
    times = [2 if n in (1, 4) else 1 for n in range(8)]
    rows = labels(problems, "pair")

    def over(rows: list[Comparison]) -> DPOTrainer:
        config = DPOConfig(**{"lr": 3e-3, "batch_size": len(rows), "adam_eps": 1e-5, **VARIANTS[variant]})
        return DPOTrainer(problems.policy_of(torch.float64, seed=0), problems.policy_of(torch.float64, seed=1), rows, config, seed=5)

    once = over([replace(c, weight=float(n)) for c, n in zip(rows, times, strict=True)])
    twice = over([c for c, n in zip(rows, times, strict=True) for _ in range(n)])
    assert once.step(0) == pytest.approx(twice.step(0), rel=1e-6, abs=1e-9)
    assert difference(once.tensors(), twice.tensors()) < 1e-6


STATEFUL: dict[str, dict[str, Any]] = {
    "running mean": {"loss": "bco_pair"},
    "soft": {"reference": "synchronised", "reference_sync_every": 2},
    "hard": {"reference": "synchronised", "reference_sync_every": 3, "reference_sync_rate": 1.0},
    "initial": {"reference": "initial", "given": False},
    "precomputed": {"reference": "precomputed", "given": False},
    "point": {"loss": "kto"},
    "sorted": {"loss": "aot_unpaired"},
    "none": {"loss": "orpo", "reference": "none", "given": False},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_training_ends_like_an_undisturbed_one(problems: ModuleType, tmp_path: Path, name: str) -> None:
    def make() -> DPOTrainer:
        return direct(problems, **STATEFUL[name], batch_size=2, epochs=2, dtype=torch.float32)

    whole, first, second = make(), make(), make()
    expected = train(whole)
    around = Surroundings(checkpoints=Checkpoints(tmp_path))
    found = train(first, around, until=5) + train(second, around)
    assert found == expected
    assert second.state() == whole.state()
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[key]), key


def test_the_shift_of_bco_is_the_mean_of_the_rewards_so_far(problems: ModuleType) -> None:
    trainer = direct(problems, loss="bco_pair", batch_size=2, beta=0.5)
    rewards = []
    for index in range(3):
        ratios = [logratios(trainer, c) for c in trainer.batch(index)]
        shift = sum(rewards) / len(rewards) if rewards else 0.0
        assert trainer.step(index)["reward_shift"] == pytest.approx(shift)
        rewards.append(0.5 * sum(map(sum, ratios)) / 4)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_a_synchronised_reference_follows_the_policy(problems: ModuleType, rate: float) -> None:
    given = problems.policy_of(torch.float32, seed=1)
    before = {name: p.clone() for name, p in given.named_parameters()}
    config = DPOConfig(lr=3e-3, batch_size=2, reference="synchronised", reference_sync_every=2, reference_sync_rate=rate)
    trainer = DPOTrainer(problems.policy_of(torch.float32, seed=0), given, labels(problems, "pair"), config)
    assert trainer.reference is not None
    trainer.step(0)
    assert all(torch.equal(before[name], p) for name, p in trainer.reference.named_parameters())
    trainer.step(1)
    policy = dict(trainer.policy.named_parameters())
    for name, p in trainer.reference.named_parameters():
        assert torch.allclose(p, (1 - rate) * before[name] + rate * policy[name], atol=1e-7)
        assert rate < 1 or torch.equal(p, policy[name])
    assert all(torch.equal(before[name], p) for name, p in given.named_parameters())  # it is a copy that moves


@pytest.mark.parametrize("variant", ["sigmoid", "kto", "ld"])
def test_a_precomputed_reference_says_what_the_model_says(problems: ModuleType, variant: str) -> None:
    one, other = (direct(problems, **VARIANTS[variant], reference=reference, epochs=2) for reference in ("given", "precomputed"))
    assert other.reference is None
    assert [one.step(index) for index in range(2)] == [pytest.approx(other.step(index), rel=1e-6) for index in range(2)]
    assert difference(one.tensors(), other.tensors()) < 1e-6


@pytest.mark.parametrize("tokens", [None, 1])
@pytest.mark.parametrize("variant", ["sigmoid", "aot", "kto"])
def test_a_reference_is_asked_once_for_each_question_of_a_step(
    problems: ModuleType, monkeypatch: pytest.MonkeyPatch, variant: str, tokens: int | None
) -> None:
    """Before the first forward with gradient, in one forward where they all fit; and once more about KTO's mismatched responses."""
    asked: list[bool] = []
    ask = reference_room.ask
    monkeypatch.setattr(reference_room, "ask", lambda *given, **more: asked.append(torch.is_grad_enabled()) or ask(*given, **more))
    trainer = direct(problems, **VARIANTS[variant], batch_size=4, micro_batch_tokens=tokens)
    trainer.step(0)
    assert asked == [False] * (1 if tokens is None else 4) * (2 if variant == "kto" else 1)


def test_what_a_reference_said_belongs_to_its_question(problems: ModuleType) -> None:
    trainer = direct(problems, batch_size=4)
    assert trainer.known is not None
    rows = [5, 2, 7, 2]  # a batch that was filled up has a question twice
    known = trainer.known.ahead(rows)
    for some in ([2], [7, 5], rows):
        questions = collate([trainer.comparisons[row] for row in some], 0, torch.device("cpu"))
        with torch.no_grad():
            expected = reference_room.ask(trainer.reference, questions).logprobs
        assert torch.allclose(known.logprobs(questions, some), expected, atol=1e-6)


def test_precomputed_numbers_are_kept_under_a_fingerprint(problems: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = reference_room.ask
    monkeypatch.setattr(reference_room, "ask", lambda *given, **more: asked.append(1) or ask(*given, **more))
    settings = {"reference": "precomputed", "reference_cache": tmp_path}

    def questions_asked(**more: Any) -> int:
        asked.clear()
        direct(problems, **settings, **more)
        return len(asked)

    assert questions_asked() > 0
    assert questions_asked() == 0
    assert questions_asked(given=False) > 0  # other weights
    assert questions_asked(kind="best_of_k") > 0  # other responses
    assert len(list(tmp_path.iterdir())) == 3
    expected = direct(problems, **settings).step(0)
    for folder in tmp_path.iterdir():
        file = folder / "logprobs.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    assert questions_asked() > 0  # a damaged file is made anew
    assert direct(problems, **settings).step(0) == expected


@pytest.mark.parametrize("name", ["sft", "cpo", "simpo", "orpo"])
def test_losses_without_a_reference_need_none(problems: ModuleType, name: str) -> None:
    alone = direct(problems, given=False, loss=name, reference="none")
    beside = direct(problems, loss=name)
    one, other = alone.step(0), beside.step(0)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    assert difference(alone.tensors(), beside.tensors()) < 1e-9
    assert "chosen_moved" not in one
    assert one["chosen_logprob"] == pytest.approx(other["chosen_logprob"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "sigmoidal"}, "unknown loss sigmoidal; it must be one of sigmoid, robust"),
        ({"loss": {}}, "unknown loss"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "loss hinge does not read label_smoothing; leave it out, or use sigmoid, robust"),
        ({"loss": "orpo", "beta": 0.1}, "loss orpo does not read beta"),
        ({"simpo_gamma": 1.0}, "does not read simpo_gamma; leave it out, or use simpo"),
        ({"loss": "kto", "divergence": "js"}, "divergence js is not defined for loss kto; use reverse_kl, or sigmoid"),
        ({"loss": "simpo", "divergence": "js"}, "divergence js is not defined for loss simpo; use reverse_kl, or sigmoid"),
        ({"loss": "sft", "divergence": "forward_kl"}, "divergence forward_kl is not defined for loss sft; use reverse_kl, or sigmoid"),
        ({"divergence_alpha": 0.5}, "use divergence alpha"),
        ({"reference_sync_rate": 1.0}, "reference given does not read reference_sync_rate; leave it out, or use reference synchronised"),
        ({"reference": "initial", "reference_sync_every": 4}, "reference initial does not read reference_sync_every; leave it out, or use"),
        ({"reference_cache": "here"}, "reference given does not read reference_cache; leave it out, or use reference precomputed"),
        ({"loss": {"sigmoid": 1.0, "sft": 1.0}, "reference": "none"}, "needs a reference; only sft, cpo, simpo, orpo do without"),
        ({"loss": "kto", "ld_alpha": 0.5}, "ld_alpha weights compared responses"),
        ({"loss": "aot", "wpo": True}, "wpo weights compared responses"),
        ({"loss": "exo_pair", "label_smoothing": 0.0}, "exo_pair needs a label_smoothing above 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as fault:
        DPOConfig(**settings)
    assert said in str(fault.value)


def test_labels_that_do_not_fit_are_named(problems: ModuleType) -> None:
    for kind, loss, said in (
        ("binary", "sigmoid", "question 0: loss sigmoid compares responses, and this one was judged alone; use kto, bco"),
        ("soft", "aot", "question 0: loss aot sorts a batch of certain choices"),
    ):
        with pytest.raises(UserError, match=said):
            direct(problems, kind, loss=loss)
    for weight, loss, said in (
        (0.0, "sigmoid", "its weight is 0; a weight must be above 0"),
        (1.5, "aot", "a weight of 1.5 has no meaning"),
    ):
        rows = [replace(c, weight=weight) for c in labels(problems, "pair")]
        with pytest.raises(UserError, match=said):
            DPOTrainer(problems.policy_of(torch.float32, seed=0), None, rows, DPOConfig(loss=loss, reference="initial"))
    tie = [replace(c, kind="ranking", target=[0, 1, 1]) for c in problems.comparisons(4)]
    with pytest.raises(UserError, match="question 0: loss plackett_luce has no use for ties; use sigmoid"):
        DPOTrainer(problems.policy_of(torch.float32, seed=0), None, tie, DPOConfig(loss="plackett_luce", reference="initial"))
    with pytest.raises(UserError, match=r"batch \d has only responses of one kind; raise dpo.batch_size or use kto"):
        direct(problems, "binary", loss="aot_unpaired", batch_size=1)
    for reference, given, said in (("given", False, "but no reference was"), ("initial", True, "but another reference was given")):
        with pytest.raises(UserError, match=said):
            direct(problems, given=given, reference=reference)
