"""Losses of direct methods: against TRL's own trainers, by hand, and in the direction in which they push."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from humanward import maths
from humanward.maths import Pairs, Singles

BETA = 0.3
PAIRED: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "sigmoid": (maths.dpo_loss, {}),
    "robust": (maths.robust_loss, {"label_smoothing": 0.2}),
    "hinge": (maths.hinge_loss, {}),
    "ipo": (maths.ipo_loss, {}),
    "exo_pair": (maths.exo_pair_loss, {"label_smoothing": 1e-3}),
    "nca_pair": (maths.nca_pair_loss, {}),
    "bco_pair": (maths.bco_pair_loss, {}),
    "sppo_hard": (maths.sppo_hard_loss, {}),
    "aot": (maths.aot_loss, {"label_smoothing": 0.1}),
    "apo_zero": (maths.apo_zero_loss, {}),
    "apo_down": (maths.apo_down_loss, {}),
    "discopop": (maths.discopop_loss, {"discopop_tau": 0.4}),
    "sigmoid_norm": (maths.sigmoid_norm_loss, {}),
}
"""What TRL's DPO trainer has under these names; sft and aot_unpaired, which are called in another way, have tests of their own."""


@pytest.fixture(scope="module")
def trl() -> ModuleType:
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("trl_oracle", Path(__file__).parent / "trl_oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Batch:
    """Random log-probabilities of N ragged pairs: chosen rows first, then the rejected ones, [2N, R]."""

    def __init__(self, seed: int, *, N: int = 7, R: int = 9, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask = torch.arange(R)[None] < torch.randint(1, R + 1, (2 * N, 1), generator=generator)
        self.logprobs = (-2 * torch.rand(2 * N, R, generator=generator, dtype=dtype)).requires_grad_()
        self.reference = self.logprobs.detach() + spread * torch.randn(2 * N, R, generator=generator, dtype=dtype)
        self.log_collision = -torch.rand(2 * N, R, generator=generator, dtype=dtype)

    def pairs(self, *, ld_alpha: float | None = None, divergence: maths.preferences.Divergence = maths.reverse_kl) -> Pairs:
        length = self.mask.sum(1)
        shared = torch.minimum(*length.chunk(2)).repeat(2)
        if ld_alpha is None:
            sums = [(x * self.mask).sum(1) for x in (self.logprobs, self.reference)]
        else:
            sums = [maths.desensitized_logprob(x, self.mask, shared, alpha=ld_alpha) for x in (self.logprobs, self.reference)]
        halves = [half for x in (*sums, length.to(self.logprobs.dtype)) for half in x.chunk(2)]
        return Pairs(*halves, divergence=divergence)

    def singles(self, desirable: Tensor) -> Singles:
        return Singles((self.logprobs * self.mask).sum(1), (self.reference * self.mask).sum(1), desirable)

    def agree(self, ours: Tensor, theirs: Tensor) -> None:
        """Values and gradients to every token's log-probability."""
        gradients = [torch.autograd.grad(loss, self.logprobs, retain_graph=True)[0] for loss in (ours, theirs)]
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        assert gradients[1].abs().max() > 1e-9
        assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-5 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("beta", [0.05, 0.8])
@pytest.mark.parametrize("name", PAIRED)
def test_paired_losses_are_trls(trl: ModuleType, name: str, beta: float) -> None:
    function, options = PAIRED[name]
    for seed in range(5):
        batch = Batch(seed)
        batch.agree(
            function(batch.pairs(), beta=beta, **options).mean(),
            trl.dpo(name, batch.logprobs, batch.reference, batch.mask, beta=beta, **options),
        )


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"])
@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_divergences_are_trls(trl: ModuleType, name: str, divergence: str) -> None:
    """In float32, the only number type for which TRL has the alpha divergence. Its coefficient is 1 - alpha."""
    function, options = PAIRED[name]
    theirs = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}[divergence]
    for seed in range(3):
        batch = Batch(seed, dtype=torch.float32, spread=0.3)
        batch.agree(
            function(batch.pairs(divergence=maths.divergence(divergence, 0.7)), beta=BETA, **options).mean(),
            trl.dpo(name, batch.logprobs, batch.reference, batch.mask, beta=BETA, divergence=theirs, coefficient=0.3, **options),
        )


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_length_desensitized_dpo_is_trls(trl: ModuleType, alpha: float) -> None:
    batch = Batch(3)
    batch.agree(
        maths.dpo_loss(batch.pairs(ld_alpha=alpha), beta=BETA).mean(),
        trl.dpo("sigmoid", batch.logprobs, batch.reference, batch.mask, beta=BETA, ld_alpha=alpha),
    )


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "apo_zero"])
def test_on_policy_weights_are_trls(trl: ModuleType, name: str) -> None:
    batch = Batch(4)
    chosen, rejected = maths.on_policy_weight(batch.logprobs, batch.log_collision, batch.mask).chunk(2)
    batch.agree(
        (chosen * rejected * PAIRED[name][0](batch.pairs(), beta=BETA)).mean(),
        trl.dpo(name, batch.logprobs, batch.reference, batch.mask, beta=BETA, log_collision=batch.log_collision),
    )


def test_the_sft_term_and_a_weighted_list_are_trls(trl: ModuleType) -> None:
    """MPO: 0.8, 0.2 and 1 of sigmoid, bco_pair and sft. The mean over pairs of our term is TRL's mean over tokens."""
    batch = Batch(5)
    pairs = batch.pairs()
    sft = maths.sft_loss(pairs, mean_chosen_length=float(pairs.chosen_length.mean())).mean()
    batch.agree(sft, trl.dpo("sft", batch.logprobs, batch.reference, batch.mask, beta=BETA))
    ours = 0.8 * maths.dpo_loss(pairs, beta=BETA).mean() + 0.2 * maths.bco_pair_loss(pairs, beta=BETA).mean() + sft
    batch.agree(ours, trl.dpo({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, batch.logprobs, batch.reference, batch.mask, beta=BETA))


def test_unpaired_losses_are_trls(trl: ModuleType) -> None:
    for seed in range(5):
        batch = Batch(seed)
        desirable = torch.rand(14, generator=torch.Generator().manual_seed(seed)) < 0.6
        singles = batch.singles(desirable)
        given = (batch.logprobs, batch.reference, batch.mask, desirable)
        # one batch of mismatched responses moved up, one moved down: there TRL too cuts the reference point at 0
        for moved in (torch.tensor([2.0, -0.5]), torch.tensor([-2.0, 0.5])):
            point = maths.kto_reference_point(moved.double())
            weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
            batch.agree(
                maths.kto_loss(singles, beta=BETA, reference_point=float(point), **weights).mean(),
                trl.kto("kto", *given, beta=BETA, mismatched=(moved.double(), torch.zeros(2)), **weights),
            )
        batch.agree(maths.apo_zero_unpaired_loss(singles, beta=BETA).mean(), trl.kto("apo_zero_unpaired", *given, beta=BETA))


def test_unpaired_optimal_transport_is_trls_where_there_are_pairs(trl: ModuleType) -> None:
    batch = Batch(6)
    desirable = torch.arange(14) < 7
    batch.agree(
        maths.aot_unpaired_loss(batch.singles(desirable), beta=BETA, label_smoothing=0.1),
        trl.dpo("aot_unpaired", batch.logprobs, batch.reference, batch.mask, beta=BETA, label_smoothing=0.1),
    )


class Table:
    """Random logits at each place of N pairs of random tokens, behind prompts; as a model it says them whatever it is asked."""

    def __init__(self, prompts: list[int], chosen: list[int], rejected: list[int], *, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(7)
        self.prompts, self.lengths = torch.tensor(prompts * 2), torch.tensor(chosen + rejected)
        ends = self.prompts + self.lengths
        self.ids = torch.randint(1, 11, (len(ends), int(ends.max())), generator=generator)
        of_chosen, of_rejected = self.ids.chunk(2)
        of_prompt = torch.arange(self.ids.shape[1]) < torch.tensor(prompts)[:, None]
        self.ids = torch.cat([of_chosen, torch.where(of_prompt, of_chosen, of_rejected)])
        self.logits = torch.randn(*self.ids.shape, 11, generator=generator, dtype=dtype).requires_grad_()

    def __call__(self, ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[:, : ids.shape[1]])

    def token_ids(self) -> list[dict[str, list[int]]]:
        places = zip(self.ids.tolist(), self.prompts.tolist(), self.lengths.tolist(), strict=True)
        rows = [(ids[:prompt], ids[prompt : prompt + length]) for ids, prompt, length in places]
        n = len(rows) // 2
        return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for (p, c), (_, r) in zip(rows[:n], rows[n:], strict=True)]

    def pairs(self) -> Pairs:
        """Each response's log-probability, one after the other."""
        sums = [
            self.logits[i, p - 1 : p - 1 + r].log_softmax(-1)[torch.arange(r), self.ids[i, p : p + r]].sum()
            for i, (p, r) in enumerate(zip(self.prompts.tolist(), self.lengths.tolist(), strict=True))
        ]
        chosen, rejected = torch.stack(sums).chunk(2)
        chosen_length, rejected_length = self.lengths.to(chosen.dtype).chunk(2)
        return Pairs(chosen, rejected, torch.zeros_like(chosen), torch.zeros_like(chosen), chosen_length, rejected_length)

    def agree(self, ours: Tensor, theirs: Tensor) -> None:
        """Values and gradients to every logit."""
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        mine, its = (torch.autograd.grad(loss, self.logits, retain_graph=True)[0] for loss in (ours, theirs))
        assert torch.allclose(mine, its, rtol=1e-5, atol=1e-5 * float(its.abs().max()))


def test_losses_without_a_reference_are_trls(trl: ModuleType) -> None:
    """The whole of CPO, its fine-tuning term included, and SimPO alone and beside that term, of ragged pairs behind ragged prompts."""
    table = Table([3, 1, 4, 2], [5, 2, 7, 1], [4, 6, 1, 3])
    token_ids, pairs = table.token_ids(), table.pairs()
    measured = {"mean_chosen_length": float(pairs.chosen_length.mean())}
    for smoothing in (0.0, 0.1):
        given = {"beta": 2.0, "label_smoothing": smoothing}
        table.agree(maths.cpo_loss(pairs, **given, **measured).mean(), trl.cpo("sigmoid", table, token_ids, **given))
        simpo = maths.simpo_loss(pairs, simpo_gamma=0.7, **given).mean()
        table.agree(simpo, trl.cpo("simpo", table, token_ids, simpo_gamma=0.7, nll_weight=0.0, **given))
        beside = simpo + 0.3 * maths.sft_loss(pairs, **measured).mean()
        table.agree(beside, trl.cpo("simpo", table, token_ids, simpo_gamma=0.7, nll_weight=0.3, **given))


def test_orpo_is_trls_where_its_fine_tuning_term_leaves_out_the_prompt(trl: ModuleType) -> None:
    """Behind one token, which nothing predicts; chosen responses of one length, where a mean over tokens is one over responses."""
    table = Table([1, 1, 1, 1], [5, 5, 5, 5], [4, 6, 1, 3], dtype=torch.float32)  # TRL computes odds in float32
    token_ids = table.token_ids()
    table.agree(maths.orpo_loss(table.pairs(), odds_weight=0.25).mean(), trl.orpo(table, token_ids, odds_weight=0.25))


ALL_PAIRED = PAIRED | {
    "sft": (maths.sft_loss, {"mean_chosen_length": 3.0}),
    "cpo": (maths.cpo_loss, {"mean_chosen_length": 3.0}),
    "simpo": (maths.simpo_loss, {}),
    "orpo": (maths.orpo_loss, {}),
}
DOWN_ONLY = ("sft", "apo_down")
"""One of both responses is not pushed: sft does not know the rejected one, apo_down leaves the chosen one at the reference."""


def call(name: str, pairs: Pairs, **more: Any) -> Tensor:
    function, options = ALL_PAIRED[name]
    beta = {} if name in ("sft", "orpo") else {"beta": BETA}
    return function(pairs, **(beta | options | more))


def one_pair(chosen: float = -3.0, rejected: float = -3.0, *, reference: float = -3.0) -> Pairs:
    values = [torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected, reference, reference, 3.0, 3.0)]
    for x in values[:2]:
        x.requires_grad_()
    return Pairs(values[0], values[1], values[2], values[3], values[4], values[5])


@pytest.mark.parametrize("name", ALL_PAIRED)
def test_a_step_down_each_paired_loss_prefers_what_was_chosen(name: str) -> None:
    """From the reference on: the chosen response gains on the rejected one, and neither is pushed the wrong way."""
    pairs = one_pair()
    call(name, pairs).sum().backward()
    assert pairs.chosen_logprob.grad is not None
    chosen, rejected = -float(pairs.chosen_logprob.grad), 0.0 if name == "sft" else -float(pairs.rejected_logprob.grad)  # pyright: ignore[reportArgumentType]
    assert chosen > rejected
    if name not in DOWN_ONLY:
        assert chosen > 0 > rejected
    elif name == "apo_down":
        assert chosen == pytest.approx(0, abs=1e-12)


def test_apo_down_lowers_a_response_that_gained() -> None:
    pairs = one_pair(chosen=-1.0, rejected=-9.0)
    maths.apo_down_loss(pairs, beta=BETA).sum().backward()
    assert pairs.chosen_logprob.grad is not None
    assert -float(pairs.chosen_logprob.grad) < 0


LOG2 = math.log(2)
AT_THE_REFERENCE = {
    "sigmoid": LOG2, "robust": LOG2, "hinge": 1.0, "ipo": (1 / 0.6) ** 2, "nca_pair": 2 * LOG2, "bco_pair": 2 * LOG2,
    "sppo_hard": 2 * (1 / 0.6) ** 2, "aot": LOG2, "apo_zero": 1.0, "apo_down": 1.0, "discopop": (LOG2 + 1) / 2, "sigmoid_norm": LOG2,
    # half of log(0.5 / 0.999) and half of log(0.5 / 0.001)
    "exo_pair": 0.5 * math.log(0.25 / 0.000999),
    # three tokens of -1: the mean is 1; with CPO log 2 for the margin
    "sft": 1.0, "cpo": 1.0 + LOG2,
    # no lead, where 0.5 is sought: -log sigmoid(-0.5)
    "simpo": math.log(1 + math.exp(0.5)),
    # odds are equal: 1 + 0.1 log 2
    "orpo": 1.0 + 0.1 * LOG2,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL_PAIRED)
def test_paired_losses_at_the_reference_by_hand(name: str) -> None:
    assert call(name, one_pair()).mean().item() == pytest.approx(AT_THE_REFERENCE[name])


@pytest.mark.parametrize("name", ALL_PAIRED)
def test_only_the_logratio_counts_or_only_the_policy(name: str) -> None:
    """A shift of policy and reference changes no loss that has a reference; the reference changes none that has none."""
    batch = Batch(8)
    pairs = batch.pairs()
    without = name in ("sft", "cpo", "simpo", "orpo")
    moved = replace(pairs, chosen_reference=pairs.chosen_reference - 1.5, rejected_reference=pairs.rejected_reference - 0.5)
    if not without:
        moved = replace(moved, chosen_logprob=pairs.chosen_logprob - 1.5, rejected_logprob=pairs.rejected_logprob - 0.5)
    if name == "aot":  # margins of policy and reference are sorted apart
        moved = replace(moved, chosen_logprob=pairs.chosen_logprob - 1.0, rejected_logprob=pairs.rejected_logprob)
    assert torch.allclose(call(name, moved), call(name, pairs))


@pytest.mark.parametrize("name", ALL_PAIRED)
@pytest.mark.parametrize("far", [-400.0, 400.0])
def test_paired_losses_stay_numbers_far_from_the_reference(name: str, far: float) -> None:
    pairs = one_pair(chosen=-500.0 + max(far, 0.0), rejected=-500.0 - min(far, 0.0), reference=-500.0)
    pairs = Pairs(*(x.detach().float() for x in list(vars(pairs).values())[:6]))
    pairs.chosen_logprob.requires_grad_()
    loss = call(name, pairs).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert pairs.chosen_logprob.grad is not None
    assert torch.isfinite(pairs.chosen_logprob.grad).all()


def test_label_smoothing_stops_at_the_margin_of_the_noise() -> None:
    """cDPO with e = 0.1 is least where sigmoid(beta * margin) = 0.9; the plain loss falls for ever."""
    best = math.log(0.9 / 0.1) / BETA
    for function, options in ((maths.dpo_loss, {"label_smoothing": 0.1}), (maths.exo_pair_loss, {"label_smoothing": 0.1})):
        pairs = one_pair(chosen=-3.0 + best)
        function(pairs, beta=BETA, **options).sum().backward()
        assert pairs.chosen_logprob.grad is not None
        assert pairs.chosen_logprob.grad.abs() < 1e-12
    pairs = one_pair(chosen=-3.0 + best)
    maths.dpo_loss(pairs, beta=BETA).sum().backward()
    assert pairs.chosen_logprob.grad is not None
    assert pairs.chosen_logprob.grad < -1e-3


@given(st.floats(-20, 20), st.floats(0, 0.45))
def test_the_robust_loss_is_unbiased(margin: float, flipped: float) -> None:
    """Its mean over labels flipped with probability e is DPO's loss on the clean ones; cDPO's is not."""
    right, wrong = one_pair(chosen=-3.0 + margin), one_pair(rejected=-3.0 + margin)
    mean = (1 - flipped) * maths.robust_loss(right, beta=BETA, label_smoothing=flipped) + flipped * maths.robust_loss(
        wrong, beta=BETA, label_smoothing=flipped
    )
    assert mean.item() == pytest.approx(maths.dpo_loss(right, beta=BETA).item(), rel=1e-9, abs=1e-9)


def test_ipo_seeks_a_margin_per_token() -> None:
    """1 / (2 * 0.3) nats per token at 3 tokens is a margin of 5; twice the tokens at twice the margin is the same loss."""
    assert maths.ipo_loss(one_pair(chosen=-3.0 + 5.0), beta=BETA).item() == pytest.approx(0)
    short, long = one_pair(chosen=-2.0), one_pair(chosen=-1.0)
    long = replace(long, chosen_length=2 * long.chosen_length, rejected_length=2 * long.rejected_length)
    for loss in (maths.ipo_loss, maths.sigmoid_norm_loss):
        assert loss(short, beta=BETA).item() == pytest.approx(loss(long, beta=BETA).item())
    assert maths.dpo_loss(short, beta=BETA).item() != pytest.approx(maths.dpo_loss(long, beta=BETA).item())


def test_discopop_starts_the_wrong_way_with_a_narrow_gate() -> None:
    """Slope at margin 0: (1 - log 2) / (4 tau) - 3/4, which is positive below tau = 0.102."""
    for tau, sign in ((0.05, 1.0), (0.10, 1.0), (0.11, -1.0), (0.4, -1.0)):
        pairs = one_pair()
        maths.discopop_loss(pairs, beta=1.0, discopop_tau=tau).sum().backward()
        assert pairs.chosen_logprob.grad is not None
        assert float(pairs.chosen_logprob.grad) == pytest.approx((1 - LOG2) / (4 * tau) - 0.75)
        assert pairs.chosen_logprob.grad.sign().item() == sign


def test_the_shift_of_bco_moves_the_border() -> None:
    """Both rewards at the shift: the classifier knows nothing, 2 log 2."""
    pairs = one_pair(chosen=-1.0, rejected=-1.0)
    assert maths.bco_pair_loss(pairs, beta=BETA, reward_shift=2 * BETA).item() == pytest.approx(2 * LOG2)
    assert maths.bco_pair_loss(pairs, beta=BETA).item() != pytest.approx(2 * LOG2)
    chosen, rejected = (Singles(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([liked])) for liked in (True, False))
    together = sum(maths.bco_loss(x, beta=BETA, reward_shift=0.2) for x in (chosen, rejected))
    assert together.item() == pytest.approx(maths.bco_pair_loss(pairs, beta=BETA, reward_shift=0.2).item())  # pyright: ignore[reportAttributeAccessIssue]


@given(st.floats(-3, 3), st.floats(0.05, 0.95))
def test_divergences_are_the_derivatives_of_their_functions(logratio: float, alpha: float) -> None:
    """f'(u) - f'(1) by automatic differentiation of f as the f-DPO paper writes it, in float64."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "reverse_kl": lambda u: u * u.log(),
        "forward_kl": lambda u: -u.log(),
        "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        "alpha": lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
    }
    for name, f in functions.items():
        u = torch.tensor([math.exp(logratio), 1.0], dtype=torch.float64, requires_grad=True)
        slope, at_one = torch.autograd.grad(f(u).sum(), u)[0]
        found = maths.divergence(name, alpha)(torch.tensor(logratio, dtype=torch.float64))
        assert found.item() == pytest.approx(float(slope - at_one), rel=1e-7, abs=1e-9), name


def test_the_alpha_divergence_lies_between_both_kls() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.allclose(maths.alpha_divergence(x, alpha=1e-6), maths.reverse_kl(x), atol=1e-5)
    assert torch.allclose(maths.alpha_divergence(x, alpha=1 - 1e-9), maths.forward_kl(x), atol=1e-6)
    assert torch.isfinite(maths.forward_kl(torch.tensor([-1e4]))).all()


def test_kto_by_hand() -> None:
    # beta 0.5, point 1. Liked and moved by 3: 1 - sigmoid(1). Not liked and moved by 3: 1 - sigmoid(-1), twice for its weight.
    singles = Singles(torch.tensor([-2.0, -2.0]), torch.tensor([-5.0, -5.0]), torch.tensor([True, False]))
    sigmoid = 1 / (1 + math.exp(-1))
    found = maths.kto_loss(singles, beta=0.5, reference_point=1.0, undesirable_weight=2.0)
    assert found.tolist() == pytest.approx([1 - sigmoid, 2 * sigmoid])
    assert maths.kto_reference_point(torch.tensor([3.0, -1.0])).item() == 1.0
    assert maths.kto_reference_point(torch.tensor([-3.0, 1.0])).item() == 0.0


UNPAIRED: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "kto": (maths.kto_loss, {"reference_point": 0.3}),
    "bco": (maths.bco_loss, {"reward_shift": 0.1}),
    "apo_zero_unpaired": (maths.apo_zero_unpaired_loss, {}),
    "aot_unpaired": (maths.aot_unpaired_loss, {}),
}


@pytest.mark.parametrize("name", UNPAIRED)
def test_a_step_down_each_unpaired_loss_raises_what_was_liked(name: str) -> None:
    logprob = torch.tensor([-2.0, -3.0, -2.5, -1.0], requires_grad=True)
    singles = Singles(logprob, torch.full((4,), -2.0), torch.tensor([True, False, True, False]))
    function, options = UNPAIRED[name]
    function(singles, beta=BETA, **options).sum().backward()
    assert logprob.grad is not None
    assert (-logprob.grad).sign().tolist() == [1.0, -1.0, 1.0, -1.0]


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5), st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_unpaired_optimal_transport_of_uneven_counts_is_that_of_copies(liked: list[float], disliked: list[float]) -> None:
    """C and D samples are D * C copies each: then both can be sorted and subtracted."""

    def of(values: tuple[list[float], list[float]]) -> float:
        logprob = torch.tensor(values[0] + values[1], dtype=torch.float64)
        desirable = torch.arange(len(logprob)) < len(values[0])
        return maths.aot_unpaired_loss(Singles(logprob, torch.zeros_like(logprob), desirable), beta=BETA, label_smoothing=0.2).item()

    copies = (liked * len(disliked), disliked * len(liked))
    z = BETA * (torch.tensor(sorted(copies[0]), dtype=torch.float64) - torch.tensor(sorted(copies[1]), dtype=torch.float64))
    slow = (0.8 * torch.nn.functional.softplus(-z) + 0.2 * torch.nn.functional.softplus(z)).mean().item()
    assert of((liked, disliked)) == pytest.approx(slow)


@given(st.permutations(range(7)))
def test_optimal_transport_does_not_depend_on_the_order_of_the_batch(order: list[int]) -> None:
    pairs = Batch(9).pairs()
    shuffled = Pairs(*(x[order] for x in list(vars(pairs).values())[:6]))
    assert maths.aot_loss(shuffled, beta=BETA).item() == pytest.approx(maths.aot_loss(pairs, beta=BETA).item())


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=5), st.randoms())
def test_plackett_luce_is_the_slow_product(scores: list[float], random: Any) -> None:
    ranks = list(range(len(scores)))
    random.shuffle(ranks)
    slow, left = 0.0, sorted(range(len(scores)), key=lambda k: ranks[k])
    while left:
        slow -= scores[left[0]] - math.log(sum(math.exp(scores[k]) for k in left))
        left = left[1:]
    found = maths.plackett_luce_loss(torch.tensor([scores], dtype=torch.float64), torch.tensor([ranks]))
    assert found.item() == pytest.approx(slow, abs=1e-9)


def test_plackett_luce_by_hand() -> None:
    # exp of log 1, log 2, log 5 in the order 5, 1, 2: 5/8 * 1/3 * 1
    scores = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log().requires_grad_()
    loss = maths.plackett_luce_loss(scores, torch.tensor([[1, 2, 0]]))
    assert loss.item() == pytest.approx(-math.log(5 / 24))
    assert maths.plackett_luce_loss(torch.zeros(1, 4), torch.tensor([[3, 1, 0, 2]])).item() == pytest.approx(math.log(24))
    zero = torch.zeros(1, 3, requires_grad=True)
    maths.plackett_luce_loss(zero, torch.tensor([[1, 2, 0]])).sum().backward()
    assert zero.grad is not None
    assert (-zero.grad)[0].argsort(descending=True).tolist() == [2, 0, 1]


def test_two_places_of_plackett_luce_are_dpo() -> None:
    pairs = Batch(10).pairs()
    scores = BETA * torch.stack([pairs.chosen_logratio, pairs.rejected_logratio], dim=1)
    found = maths.plackett_luce_loss(scores, torch.tensor([[0, 1]]).expand(7, 2))
    assert torch.allclose(found, maths.dpo_loss(pairs, beta=BETA))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_choice_among_two_is_dpo(smoothing: float) -> None:
    pairs = Batch(11).pairs()
    scores = torch.stack([pairs.rejected_logratio, pairs.chosen_logratio], dim=1)
    found = maths.dpo_choice_loss(scores, torch.tensor([[0.0, 1.0]]).expand(7, 2), beta=BETA, label_smoothing=smoothing)
    assert torch.allclose(found, maths.dpo_loss(pairs, beta=BETA, label_smoothing=smoothing))


def test_a_choice_among_three_by_hand() -> None:
    # exp of beta times the scores: 1, 2, 5. The second was picked, and a fifth of the picks are thought to be wrong.
    scores = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log() / 0.5
    loss = maths.dpo_choice_loss(scores, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), beta=0.5, label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.8 * math.log(4) + 0.1 * math.log(8) + 0.1 * math.log(8 / 5))


def test_pair_weights_by_hand() -> None:
    third, sixth = 1 / 3, 1 / 6
    # the second of three is best: it beats each other one, half a pair each
    assert maths.pair_weights(torch.tensor([[0.0, 1.0, 0.0]]), ranked=False)[0].tolist() == [[0, 0, 0], [0.5, 0, 0.5], [0, 0, 0]]
    # a tie of two, and 0.7 for the second
    assert maths.pair_weights(torch.tensor([[0.5, 0.5]]), ranked=False)[0].tolist() == [[0, 0.5], [0.5, 0]]
    assert maths.pair_weights(torch.tensor([[0.3, 0.7]]), ranked=False)[0].flatten().tolist() == pytest.approx([0, 0.3, 0.7, 0])
    # order: the third, then the other two as equals
    found = maths.pair_weights(torch.tensor([[1.0, 1.0, 0.0]]), ranked=True)[0].flatten().tolist()
    assert found == pytest.approx([0, sixth, 0, sixth, 0, 0, third, third, 0])


def test_the_excess_of_a_response_counts_less() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -4.0, 99.0], [99.0, -1.0, -2.0, -4.0]])
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])
    found = maths.desensitized_logprob(logprobs, mask, torch.tensor([2, 1]), alpha=0.5)
    assert found.tolist() == [-5.0, -4.0]  # -1 - 2 - 4 / 2 and -1 - (2 + 4) / 2
    assert maths.desensitized_logprob(logprobs, mask, torch.tensor([2, 1]), alpha=1.0).tolist() == [-7.0, -7.0]


def test_on_policy_weights_by_hand_without_gradient() -> None:
    # two tokens of log 1/2 and log 1/4 from distributions with a collision of 1/2 and 1/2: sqrt(1 * 1/2)
    logprobs = torch.tensor([[0.5, 0.25, 0.9]]).log().requires_grad_()
    weight = maths.on_policy_weight(logprobs, torch.full((1, 3), 0.5).log(), torch.tensor([[True, True, False]]))
    assert weight.item() == pytest.approx(math.sqrt(0.5))
    assert not weight.requires_grad
