"""The displacement meter: its numbers by slow loops, and what is said of a training that moves probability to nobody's choice."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from humanward.models import Policy
from humanward.records import Comparison, Prompt, Response
from humanward.trainers import DPOConfig, DPOTrainer, Surroundings, train
from humanward.trainers.guards import Watch
from humanward.trainers.selftest import tiny_policy

KINDS = {"displacement", "length confound", "ending"}


def moved_tokens(trainer: DPOTrainer, prompt: tuple[int, ...], response: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """log pi and log rho of each token, one forward of the library's own model for this response alone."""

    def of(policy: Policy | None) -> np.ndarray:
        assert policy is not None
        with torch.no_grad():
            logprobs = policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        return np.array([float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(response)])

    return of(trainer.policy), of(trainer.reference)


def ending(problems: ModuleType, count: int = 8) -> list[Comparison]:
    """Pairs in which two of three responses end with the end-of-text token, which is 0."""
    rows = problems.comparisons(count, K=2)
    return [
        replace(c, responses=tuple(replace(r, tokens=(*r.tokens, 0)) if (n + k) % 3 else r for k, r in enumerate(c.responses)))
        for n, c in enumerate(rows)
    ]  # fmt: skip


def test_the_numbers_of_a_step_by_slow_loops(problems: ModuleType) -> None:
    config = DPOConfig(batch_size=8, beta=0.5, micro_batch_tokens=20)
    trainer = DPOTrainer(problems.policy_of(torch.float64, seed=0), problems.policy_of(torch.float64, seed=2), ending(problems), config)
    moved: dict[str, list[float]] = {"chosen": [], "rejected": []}
    ends: dict[str, list[float]] = {"chosen": [], "rejected": []}
    logprob: dict[str, list[float]] = {"chosen": [], "rejected": []}
    tokens, off, margins, leads = {"chosen": 0, "rejected": 0}, [], [], []
    for c in trainer.batch(0):
        sums, sizes = [], []
        for side, k in (("chosen", int(c.target)), ("rejected", 1 - int(c.target))):  # pyright: ignore[reportArgumentType]
            policy, reference = moved_tokens(trainer, c.prompt.tokens, c.responses[k].tokens)
            moved[side].append(float((policy - reference).sum()))
            logprob[side].append(float(policy.sum()))
            tokens[side] += len(policy)
            if c.responses[k].tokens[-1] == 0:
                ends[side].append(float(policy[-1] - reference[-1]))
            sums.append((policy.sum(), reference.sum()))
            sizes.append(len(policy))
        (a, b), (p, q) = sums
        off.append(max(0.0, 1 - (math.exp(a) + math.exp(p)) / (math.exp(b) + math.exp(q))))
        margins.append(0.5 * (a - b - p + q))
        leads.append(sizes[0] - sizes[1])
    found = trainer.step(0)
    both = [x < 0 and y < 0 for x, y in zip(moved["chosen"], moved["rejected"], strict=True)]
    assert 0 < sum(both) < len(both)
    expected = {
        "accuracy": np.mean(np.array(margins) > 0), "margin": np.mean(margins), "mass_off_both": np.mean(off), "both_fell": np.mean(both),
        "length_confound": np.corrcoef(margins, leads)[0, 1],
    }  # fmt: skip
    for side in ("chosen", "rejected"):
        expected |= {
            f"{side}_moved": np.mean(moved[side]), f"{side}_moved_per_token": sum(moved[side]) / tokens[side],
            f"{side}_eos_moved": np.mean(ends[side]), f"{side}_logprob": np.mean(logprob[side]),
        }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_of_single_responses_each_side_has_its_own_mean(problems: ModuleType) -> None:
    rows = [replace(c, kind="binary", responses=c.responses[:1], target=int(n < 3)) for n, c in enumerate(ending(problems))]
    config = DPOConfig(batch_size=8, loss="kto")
    trainer = DPOTrainer(problems.policy_of(torch.float64, seed=0), problems.policy_of(torch.float64, seed=1), rows, config)
    moved = [float(np.subtract(*moved_tokens(trainer, c.prompt.tokens, c.responses[0].tokens)).sum()) for c in rows]
    found = trainer.step(0)
    assert found["chosen_moved"] == pytest.approx(np.mean(moved[:3]))
    assert found["rejected_moved"] == pytest.approx(np.mean(moved[3:]))
    assert found["margin"] == pytest.approx(0.1 * (np.mean(moved[:3]) - np.mean(moved[3:])))
    assert not {"accuracy", "length_confound", "both_fell"} & found.keys()


def test_ties_are_neither_chosen_nor_rejected(problems: ModuleType) -> None:
    """Pairs of which some are tied have the numbers of the others alone, in either order of their responses."""
    rows = ending(problems)
    tied = [replace(c, kind="pair", target=[0.5, 0.5]) for c in rows[5:]]
    turned = [replace(c, responses=c.responses[::-1]) for c in tied]
    policies = [problems.policy_of(torch.float64, seed=seed) for seed in (0, 2)]
    alone, among, others = (
        DPOTrainer(*policies, part, DPOConfig(batch_size=len(part), lr=1e-30)).step(0)
        for part in (rows[:5], rows[:5] + tied, rows[:5] + turned)
    )
    names = {"accuracy", "margin", "both_fell", "length_confound"} | {
        f"{side}_{what}" for side in ("chosen", "rejected") for what in ("logprob", "moved", "moved_per_token", "eos_moved")
    }
    assert {name: among[name] for name in names} == pytest.approx({name: alone[name] for name in names})
    assert {name: others[name] for name in names} == pytest.approx({name: alone[name] for name in names})
    only = DPOTrainer(*policies, tied, DPOConfig(batch_size=len(tied), lr=1e-30)).step(0)
    assert not names & only.keys()


def test_all_of_several_best_responses_are_chosen(problems: ModuleType) -> None:
    """Ranks 0, 0, 1: the mean of the first two over the third."""
    rows = [replace(c, kind="ranking", target=[0, 0, 1]) for c in problems.comparisons(8)]
    policies = [problems.policy_of(torch.float64, seed=seed) for seed in (0, 2)]
    trainer = DPOTrainer(*policies, rows, DPOConfig(batch_size=8))
    moved = np.array([[float(np.subtract(*moved_tokens(trainer, c.prompt.tokens, r.tokens)).sum()) for r in c.responses] for c in rows])
    found = trainer.step(0)
    assert found["chosen_moved"] == pytest.approx(moved[:, :2].mean())
    assert found["rejected_moved"] == pytest.approx(moved[:, 2].mean())
    assert found["accuracy"] == pytest.approx((moved.argmax(1) < 2).mean())


def alike(**settings: Any) -> tuple[DPOTrainer, list[str]]:
    """A pair of words that the model tells apart most easily by making both unlikely, and what is said of 40 steps on it.

    Their output vectors point nearly the same way, the rejected one's further (Razin et al. 2024, arXiv:2410.08847: similar embeddings
    displace).
    """
    policy = tiny_policy(seed=0)
    with torch.no_grad():
        state = policy.trunk(input_ids=torch.tensor([[4]])).last_hidden_state[0, -1]
        shared = state / state.norm()
        own = torch.randn(16, generator=torch.Generator().manual_seed(0))
        own -= (own @ shared) * shared
        policy.head.weight.mul_(0.1)
        policy.head.weight[2], policy.head.weight[3] = shared + 0.3 * own / own.norm(), 1.25 * shared
    policy.head.weight.requires_grad_(False)
    pair = Comparison(Prompt("p", "", (4,)), (Response("", (2,)), Response("", (3,))), "pair", 0)
    config = DPOConfig(
        **{"beta": 1.0, "batch_size": 4, "epochs": 40, "lr": 1e-2, "lr_schedule": "constant", "reference": "initial", **settings}
    )
    trainer = DPOTrainer(policy, None, [pair] * 4, config)
    said: list[str] = []
    train(trainer, Surroundings(tell=said.append), stage="dpo")
    return trainer, said


def test_displacement_is_said_with_what_helps() -> None:
    trainer, said = alike()
    after = trainer.step(0)
    assert after["chosen_moved"] < -1
    assert after["mass_off_both"] > 0.5
    (sentence,) = [text for text in said if "nobody judged" in text]
    assert sentence.startswith("dpo, step ")
    assert "add a term sft, raise beta, or use loss ipo or apo_zero with a beta of 1 or more" in sentence


@pytest.mark.parametrize("settings", [{"loss": "ipo"}, {"loss": "apo_zero"}, {"loss": {"sigmoid": 1.0, "sft": 1.0}}, {"beta": 10.0}])
def test_what_is_advised_helps(settings: dict[str, Any]) -> None:
    """The same pair, the same steps: no alarm, the chosen response gains, and much less of the probability is gone (0.94 above)."""
    trainer, said = alike(**settings)
    after = trainer.step(0)
    assert after["chosen_moved"] > 0
    assert after["mass_off_both"] < 0.4
    assert said == []


def test_a_healthy_training_is_not_mentioned(problems: ModuleType) -> None:
    config = DPOConfig(batch_size=8, epochs=15, lr=1e-3, lr_schedule="constant", reference="initial", beta=0.5)
    said: list[str] = []
    log = train(DPOTrainer(tiny_policy(), None, ending(problems, 16), config), Surroundings(tell=said.append))
    assert log[-1]["margin"] > log[0]["margin"] + 0.1
    assert said == []


WELL = {
    "chosen_moved": 0.5, "rejected_moved": -2.0, "chosen_moved_per_token": 0.01, "mass_off_both": 0.2, "length_confound": 0.1,
    "chosen_eos_moved": -0.1, "rejected_eos_moved": -0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("ill", "kind"),
    [
        ({"chosen_moved": -4.0, "chosen_moved_per_token": -0.1, "mass_off_both": 0.9}, "displacement"),
        ({"length_confound": 0.8}, "length confound"),
        ({"chosen_eos_moved": -1.5, "rejected_eos_moved": -1.5}, "ending"),
    ],
)  # fmt: skip
def test_each_sign_is_said_once_and_not_of_a_single_step(ill: dict[str, float], kind: str) -> None:
    def said(rows: list[dict[str, float]]) -> list[str]:
        watch = Watch()
        return [kind for row in rows for kind, _ in watch(row)]

    assert said([WELL | ill] * 40) == [kind]
    assert said([WELL] * 40) == []
    assert said([WELL] * 20 + [WELL | ill] + [WELL] * 20) == []
    assert said([WELL | ill] * 7) == []


def test_chosen_responses_that_hold_are_no_displacement() -> None:
    """Rejected responses that fall are what was asked for."""
    watch = Watch()
    rows = [WELL | {"rejected_moved": -30.0, "mass_off_both": 0.6}] * 30
    assert not any(watch(row) for row in rows)
