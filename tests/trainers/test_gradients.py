"""Sums of gradients are those of autograd, in rows where few are reached; and nothing is left on the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from humanward.maths import linear_logprobs
from humanward.trainers import gradients, updates
from humanward.trainers.gradients import GradientSum
from humanward.trainers.updates import Updater

WORDS = 50


class Words(nn.Module):
    """An embedding with a line on it, or with itself as its head."""

    def __init__(self, *, tied: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(WORDS, 3, dtype=dtype)
        self.line = nn.Linear(3, 1, dtype=dtype)
        self.unused = nn.Linear(3, 1, dtype=dtype)
        self.tied = tied

    def forward(self, ids: Tensor) -> Tensor:
        states = self.table(ids)
        return (states @ self.table.weight.T).square().mean() + self.line(states).mean() if self.tied else self.line(states.tanh()).mean()


PARTS = [torch.tensor([[3, 4, 3]]), torch.tensor([[4, 9]]), torch.tensor([[49], [0]])]


def collect(total: GradientSum, module: Words, parts: list[Tensor]) -> None:
    with total.collecting():
        for ids in parts:
            module(ids).backward()


def summed(module: Words) -> dict[str, Tensor | None]:
    named = dict(module.named_parameters())
    total = GradientSum(module, named, named)
    for _ in range(2):  # the second time in memory that was used before
        collect(total, module, PARTS)
    return {name: p.grad for name, p in named.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("few", [0, 4, 12])
def test_the_sum_is_autograds(monkeypatch: pytest.MonkeyPatch, tied: bool, few: int) -> None:
    """Seven tokens are few of fifty words for 4; for 12 there are too many from the second part on."""
    monkeypatch.setattr(gradients, "_FEW", few)
    found, plain = summed(Words(tied=tied)), Words(tied=tied)
    sum((plain(ids) for ids in PARTS), torch.zeros(())).backward()
    for name, p in plain.named_parameters():
        got = found[name]
        assert (got is None) == (p.grad is None) == name.startswith("unused")
        if got is not None:
            torch.testing.assert_close(got.to_dense() if got.is_sparse else got, p.grad, rtol=1e-12, atol=1e-12)
    rows = found["table.weight"]
    assert rows is not None
    assert rows.is_sparse == (not tied and few < 12)
    assert not rows.is_sparse or rows.indices()[0].tolist() == [0, 3, 4, 9, 49]


@pytest.mark.parametrize("with_head", [0, 1, 2])
def test_an_embedding_may_be_a_head_in_one_part_alone(with_head: int) -> None:
    """Whether the part with a dense gradient comes first, between or last."""

    def loss(module: Words, number: int) -> Tensor:
        module.tied = number == with_head
        return module(PARTS[number])

    module, plain = Words(), Words()
    named = dict(module.named_parameters())
    total = GradientSum(module, named, named)
    with total.collecting():
        for number in range(3):
            loss(module, number).backward()
    sum((loss(plain, number) for number in range(3)), torch.zeros(())).backward()
    for name, p in plain.named_parameters():
        assert (named[name].grad is None) == (p.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(named[name].grad, p.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("few", [0, 4])
@pytest.mark.parametrize("parts_with_head", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_head_adds_to_the_sum_and_gives_autograd_nothing(
    monkeypatch: pytest.MonkeyPatch, tied: bool, few: int, parts_with_head: tuple[int, ...]
) -> None:
    """What its backward pass would have given is as large as the embedding and would lie there until the pass has come down to it."""

    def loss(module: Words, head: nn.Linear, number: int) -> Tensor:
        ids = PARTS[number].flatten()
        states = module.table(ids).tanh()
        if number not in parts_with_head:
            return module.line(states).mean()
        weight = module.table.weight if tied else head.weight
        logprobs, entropies = linear_logprobs(states, weight, ids, bias=head.bias, chunk_rows=2)
        assert entropies is not None
        return (logprobs + entropies).mean()

    monkeypatch.setattr(gradients, "_FEW", few)
    parts = [nn.ModuleList([Words(), nn.Linear(3, WORDS, dtype=torch.float64)]) for _ in range(2)]
    parts[1].load_state_dict(parts[0].state_dict())
    (module, head), (plain, plain_head) = parts
    named = dict(parts[0].named_parameters())
    total, seen = GradientSum(parts[0], named, named), []
    take = total._take

    def watched(name: str, weight: Tensor) -> None:
        seen.append((name, weight.grad is not None and not weight.grad.is_sparse))
        take(name, weight)

    monkeypatch.setattr(total, "_take", watched)
    for _ in range(2):
        with total.collecting():
            for number in range(3):
                loss(module, head, number).backward()
    sum((loss(plain, plain_head, number) for number in range(3)), torch.zeros(())).backward()
    for name, p in parts[1].named_parameters():
        found = named[name].grad
        assert (found is None) == (p.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(found.to_dense() if found.is_sparse else found, p.grad, rtol=1e-12, atol=1e-12)
    assert ("0.table.weight", False) in seen
    assert not {("0.table.weight", True), ("1.weight", True)} & {*seen}


def test_rows_of_16_bit_weights_are_summed_in_float32() -> None:
    """1 + 64 times 1/256 is 1.25; in bfloat16 every one of these sums would be rounded to 1."""
    table = nn.Embedding(1000, 1, dtype=torch.bfloat16)
    updater = Updater(table, Accelerator(), lr=1e-3, total_updates=1, lr_schedule="constant", adam_eps=1e-8)
    parts = [1.0, *[1 / 256] * 64]
    metrics = updater.update(parts, lambda module, size: module(torch.tensor([7])).sum() * size, what="test")
    assert updater.named["weight"].grad is not None
    assert updater.named["weight"].grad.is_sparse
    assert metrics["grad_norm"] == pytest.approx(1.25, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 0.01}, {"adam_eps_hat": True, "weight_decay": 0.1}])
def test_an_update_in_rows_is_the_update(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """Three updates, after which every row has moved that one of them has reached, those of the first by momentum."""

    def trained(few: int) -> dict[str, Tensor]:
        monkeypatch.setattr(gradients, "_FEW", few)
        module = Words()
        updater = Updater(module, Accelerator(), **{"lr": 0.1, "total_updates": 9, "lr_schedule": "linear", "adam_eps": 1e-2, **settings})
        for ids in PARTS:
            updater.update([ids, ids + 0], lambda module, ids: module(ids), what="test")
        table = updater.named["table.weight"].grad
        assert table is not None
        assert table.is_sparse == (few == 4)
        return {**updater.weights(), **updater.state_dict()}

    monkeypatch.setattr(updates, "_ROWS", 7)
    rows, dense = trained(4), trained(1000)
    assert rows.keys() == dense.keys()
    for name, tensor in rows.items():
        torch.testing.assert_close(tensor, dense[name], rtol=1e-12, atol=1e-15)
    moved = (rows["table.weight"] - Words().table.weight).abs().sum(1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [0, 3, 4, 9, 49] or settings.get("weight_decay")


def test_nothing_is_left_on_the_module() -> None:
    """Its own user's gradients are dense and where they always are, also after an error."""
    module = Words()
    named = dict(module.named_parameters())
    total = GradientSum(module, named, named)
    with pytest.raises(IndexError):
        collect(total, module, [*PARTS, torch.tensor([[WORDS]])])
    assert all(p.grad is None for p in named.values())
    module(PARTS[0]).backward()
    assert module.table.weight.grad is not None
    assert not module.table.weight.grad.is_sparse
