"""One update is the same update however it is cut and padded; Adam is the Adam that was asked for; what is not a number is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from humanward.errors import RunError
from humanward.trainers import dpo, label_losses, ppo, questions, rollout, sft, updates
from humanward.trainers.guards import TrainingError
from humanward.trainers.objective import Objective
from humanward.trainers.updates import Updater, load_weights, micro_batches, weights

TRAINERS = ["sft", "reward", "ppo", "dpo", "value network", "everything"]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative difference of the weights, each measured against its tensor's scale."""
    assert one.keys() == other.keys()
    scale = {name: max(1.0, float(tensor.abs().max())) for name, tensor in one.items()}
    return max(float((one[name] - other[name]).abs().max()) / scale[name] for name in one)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("size", [1, 13])
def test_micro_batches_do_not_change_the_update(problems: ModuleType, name: str, size: int) -> None:
    """All at once = one by one = a few at a time, of ragged rows."""
    make = problems.MAKERS[name]
    assert difference(problems.trained(make()), problems.trained(make(micro_batch_tokens=size))) < 1e-6


@pytest.mark.parametrize(
    ("width", "dtype", "networks", "tokens"),
    [
        (32, 4, 1, 1536), (256, 2, 1, 1536), (320, 4, 1, 896), (320, 4, 2, 1280), (320, 4, 3, 1536), (512, 4, 1, 512), (512, 4, 3, 512),
        (768, 4, 1, 384), (768, 2, 1, 896),
    ],
)  # fmt: skip
def test_a_forward_of_a_wide_model_takes_fewer_tokens_on_a_cpu(
    problems: ModuleType, monkeypatch: pytest.MonkeyPatch, width: int, dtype: int, networks: int, tokens: int
) -> None:
    model = problems.MAKERS["dpo"]().policy.to(torch.float32 if dtype == 4 else torch.bfloat16)
    monkeypatch.setattr(updates, "hidden_size", lambda _: width)
    found = micro_batches([128] * (2 * tokens // 128), None, model, networks=networks)
    assert [len(batch) * 128 for batch in found] == [tokens, tokens]
    assert micro_batches([128] * 2, 100, model) == [[0], [1]]


@pytest.mark.parametrize(("width", "row", "rows"), [(320, 640, 2), (320, 768, 2), (320, 769, 1), (320, 128, 7), (768, 640, 1)])
def test_long_rows_share_a_forward_in_pairs(problems: ModuleType, monkeypatch: pytest.MonkeyPatch, width: int, row: int, rows: int) -> None:
    model = problems.MAKERS["dpo"]().policy
    monkeypatch.setattr(updates, "hidden_size", lambda _: width)
    assert [len(batch) for batch in micro_batches([row] * (2 * rows), None, model)] == [rows, rows]
    # A few long ones among short ones count for little.
    assert max(map(len, micro_batches([row, *[64] * 62], None, model))) <= (14 if width == 320 else 6)


@pytest.mark.parametrize(("width", "tokens"), [(32, 1536), (320, 1536), (768, 1024), (1600, 384)])
def test_a_forward_without_gradient_takes_more_tokens(
    problems: ModuleType, monkeypatch: pytest.MonkeyPatch, width: int, tokens: int
) -> None:
    model = problems.MAKERS["dpo"]().policy
    monkeypatch.setattr(updates, "hidden_size", lambda _: width)
    with torch.no_grad():
        found = micro_batches([128] * (2 * tokens // 128), None, model)
    assert [len(batch) * 128 for batch in found] == [tokens, tokens]


def test_forwards_are_longer_where_more_networks_are_held(problems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "hidden_size", lambda _: 320)
    prompts, responses = torch.ones(24, 100, dtype=torch.bool), torch.ones(24, 28, dtype=torch.bool)
    assert [len(problems.MAKERS[name]().rollouts.micro_batches(prompts, responses)) for name in ("ppo", "value network")] == [3, 2]
    trainer = problems.MAKERS["dpo"]()
    monkeypatch.setattr(dpo, "tokens_of", lambda _: 128)
    assert len(trainer.micro_batches(trainer.comparisons[:1] * 20, range(20))) == 2
    trainer.reference = None  # as where it was asked once before the training
    assert len(trainer.micro_batches(trainer.comparisons[:1] * 20, range(20))) == 3


def test_long_and_short_rows_share_a_forward_where_nothing_is_padded(problems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = problems.MAKERS["dpo"]().policy
    assert micro_batches([9, 8, 2, 1], 10, model) == [[0, 3], [1, 2]]
    monkeypatch.setattr(model, "packs", lambda: False)
    assert micro_batches([9, 8, 2, 1], 10, model) == [[0], [1], [2, 3]]


@pytest.mark.parametrize("name", TRAINERS)
def test_updates_move_the_weights(problems: ModuleType, name: str) -> None:
    """So that the equalities of this file are not those of trainers that do nothing."""
    make = problems.MAKERS[name]
    before, after = make().tensors(), problems.trained(make())
    moved = [name for name in before if name in after and (before[name] - after[name]).abs().max() > 1e-3]
    assert len(moved) > 8


@pytest.mark.parametrize(("name", "room"), [("sft", sft), ("reward", questions), ("ppo", rollout), ("dpo", questions)])
def test_pads_do_not_change_the_update(problems: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, room: ModuleType) -> None:
    make = problems.MAKERS[name]
    expected = problems.trained(make())
    left_pad, right_pad = room.left_pad, getattr(room, "right_pad", None)

    def more_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
        block, mask = left_pad(rows, pad_id)
        return nn.functional.pad(block, (3, 0), value=4), nn.functional.pad(mask, (3, 0), value=False)

    def more_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
        assert right_pad is not None
        block, mask = right_pad(rows, pad_id)
        return nn.functional.pad(block, (0, 2), value=4), nn.functional.pad(mask, (0, 2), value=False)

    monkeypatch.setattr(room, "left_pad", more_left)
    if right_pad is not None:
        monkeypatch.setattr(room, "right_pad", more_right)
    assert difference(expected, problems.trained(make())) < 1e-6


def test_pads_behind_a_response_do_not_change_a_ppo_update(problems: ModuleType) -> None:
    def updated(extra: int) -> dict[str, Tensor]:
        trainer = problems.ppo()
        sampled = trainer.sample_rollout(0)
        pad = {"response_mask": False, "responses": 4, "logprobs": -3.0, "values": 5.0, "reference_logprobs": math.nan}
        wide = {name: nn.functional.pad(getattr(sampled, name), (0, extra), value=value) for name, value in pad.items()}
        rewards = nn.functional.pad(torch.linspace(-1, 1, 48).view(16, 3), (0, extra), value=9.0)
        trainer.update(trainer.advantages(rollout.Rollout(sampled.prompts, sampled.prompt_mask, **wide), rewards))
        return {name: tensor.clone() for name, tensor in trainer.tensors().items()}

    assert difference(updated(0), updated(3)) < 1e-6


def line_and_optimizer(**settings: Any) -> tuple[nn.Linear, Updater]:
    torch.manual_seed(0)
    line = nn.Linear(3, 2).double()
    return line, Updater(line, Accelerator(), **{"lr": 0.1, "total_updates": 10, "lr_schedule": "linear", "adam_eps": 1e-2, **settings})


def square_loss(module: nn.Module, x: Tensor) -> Tensor:
    return (module(x) - 1).square().mean()


def batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_epsilon_hat_is_tensorflows_adam() -> None:
    """Kingma and Ba 2015, section 2, last lines: alpha_t = alpha sqrt(1 - b2^t) / (1 - b1^t), theta -= alpha_t m / (sqrt(v) + eps_hat)."""
    line, updater = line_and_optimizer(adam_eps_hat=True, lr_schedule="constant")
    torch.manual_seed(0)
    slow = nn.Linear(3, 2).double()
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in slow.parameters()}
    for t, x in enumerate(batches(5), start=1):
        updater.update([x], square_loss, what="test")
        slow.zero_grad()
        square_loss(slow, x).backward()
        step_size = 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        for p, (m, v) in moments.items():
            assert p.grad is not None
            m.mul_(0.9).add_(0.1 * p.grad)
            v.mul_(0.999).add_(0.001 * p.grad**2)
            with torch.no_grad():
                p -= step_size * m / (v.sqrt() + 1e-2)
    assert difference(weights(line), weights(slow)) < 1e-12


def test_plain_epsilon_is_pytorchs_adam_with_the_schedule() -> None:
    line, updater = line_and_optimizer()
    torch.manual_seed(0)
    theirs = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(theirs.parameters(), lr=0.1, eps=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: 1 - t / 10)
    for x in batches(5):
        updater.update([x], square_loss, what="test")
        adam.zero_grad()
        square_loss(theirs, x).backward()
        adam.step()
        schedule.step()
    assert difference(weights(line), weights(theirs)) < 1e-12


def test_weight_decay_is_decoupled() -> None:
    line, updater = line_and_optimizer(weight_decay=0.5)
    before = {name: tensor.clone() for name, tensor in weights(line).items()}
    updater.update([torch.zeros(1, 3, dtype=torch.float64)], lambda module, x: 0 * module(x).sum(), what="test")
    # A gradient of zero moves nothing; the decay alone takes lr * weight_decay = 0.05 of every weight.
    assert difference(weights(line), {name: 0.95 * tensor for name, tensor in before.items()}) < 1e-12


def test_16_bit_weights_are_trained_through_float32_copies() -> None:
    """A weight of 1 has bfloat16 neighbours at 1 - 1/256 and 1 + 1/128: 20 updates of 0.001 are lost one by one and add up in the copy."""
    line = nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(line.weight)
    updater = Updater(line, Accelerator(), lr=1e-3, total_updates=20, lr_schedule="constant", adam_eps=1e-8)
    for _ in range(20):
        updater.update([torch.ones(1, 2, dtype=torch.bfloat16)] * 2, lambda module, x: -module(x).sum() / 2, what="test")
    copy = updater.weights()["weight"]
    assert copy.dtype == torch.float32
    torch.testing.assert_close(copy, torch.full((1, 2), 1.02), rtol=0, atol=1e-5)
    assert torch.equal(line.weight, copy.to(torch.bfloat16))
    assert line.weight.grad is None


def test_gradients_of_16_bit_weights_are_summed_in_float32() -> None:
    """1 + 64 times 1/256 is 1.25; in bfloat16 every one of these sums would be rounded to 1."""
    line = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    updater = Updater(line, Accelerator(), lr=1e-3, total_updates=1, lr_schedule="constant", adam_eps=1e-8)
    parts = [torch.full((1, 1), x, dtype=torch.bfloat16) for x in (1.0, *[1 / 256] * 64)]
    assert updater.update(parts, lambda module, x: module(x).sum(), what="test")["grad_norm"] == pytest.approx(1.25, abs=1e-6)


@pytest.mark.parametrize("name", TRAINERS)
def test_bfloat16_trains_as_float32_does(problems: ModuleType, name: str) -> None:
    """After a few updates the float32 copies are where float32 training is, but for the rounding of the passes."""
    one, other = problems.trained(problems.MAKERS[name]()), problems.trained(problems.MAKERS[name](dtype=torch.bfloat16))
    before = problems.MAKERS[name]().tensors()
    moved = torch.cat([(one[key] - before[key]).flatten() for key in before if key.endswith("proj.weight") and not key.startswith("opt")])
    found = torch.cat([(other[key] - before[key]).flatten() for key in before if key.endswith("proj.weight") and not key.startswith("opt")])
    assert float(torch.nn.functional.cosine_similarity(moved, found, dim=0)) > 0.8


def test_learning_rates() -> None:
    """By hand, 4 updates at 0.1. Behind one warm-up update the cosine is (1 + cos 0°) / 2, (1 + cos 60°) / 2, (1 + cos 120°) / 2."""
    expected = {
        ("linear", 0): [1, 0.75, 0.5, 0.25], ("linear", 1): [0.5, 1, 2 / 3, 1 / 3], ("cosine", 1): [0.5, 1, 0.75, 0.25],
        ("constant", 0): [1, 1, 1, 1], ("constant", 2): [1 / 3, 2 / 3, 1, 1],
    }  # fmt: skip
    for (schedule, warmup), shares in expected.items():
        _, updater = line_and_optimizer(lr_schedule=schedule, total_updates=4, warmup_updates=warmup)
        rates = [updater.update([x], square_loss, what="test")["lr"] for x in batches(4)]
        assert rates == pytest.approx([0.1 * share for share in shares], rel=1e-12)


def test_a_steps_updates_have_one_learning_rate() -> None:
    """By hand, 3 steps of 2 updates: a linear rate falls by a third per step, one that was left out too."""
    _, updater = line_and_optimizer(total_updates=6, updates_per_step=2)
    refused = [False, False, False, True, False, False]
    rates = [
        updater.update([x], square_loss, what="test", accept=lambda no=no: not no)["lr"] for x, no in zip(batches(6), refused, strict=True)
    ]
    assert rates == pytest.approx([0.1 * share for share in (1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3)], rel=1e-12)


def test_a_continued_schedule_has_the_rates_of_the_whole() -> None:
    for schedule in ("linear", "cosine", "constant"):
        settings = {"lr_schedule": schedule, "total_updates": 8, "updates_per_step": 2, "warmup_updates": 0 if schedule == "linear" else 4}
        _, whole = line_and_optimizer(**settings)
        rates = [whole.update([x], square_loss, what="test")["lr"] for x in batches(8)]
        _, first = line_and_optimizer(**settings)
        for x in batches(4):
            first.update([x], square_loss, what="test")
        _, second = line_and_optimizer(**settings)
        second.load_state_dict(first.state_dict(), first.state())
        assert [second.update([x], square_loss, what="test")["lr"] for x in batches(4)] == rates[4:]


def test_the_norm_is_measured_before_clipping_and_clipped_to_the_limit() -> None:
    """Plain: (0.3, 0.4) has norm 0.5. Adam hides the length of a gradient, so its first moment is looked at: 0.1 * gradient."""
    for limit, kept in ((None, 1.0), (10.0, 1.0), (0.05, 0.1)):
        line = nn.Linear(2, 1, bias=False).double()
        updater = Updater(line, Accelerator(), lr=0.1, total_updates=1, lr_schedule="constant", adam_eps=1e-2, max_grad_norm=limit)
        metrics = updater.update([torch.tensor([[0.3, 0.4]], dtype=torch.float64)], lambda module, x: module(x).sum(), what="test")
        assert metrics["grad_norm"] == pytest.approx(0.5)
        moment = updater.state_dict()["exp_avg.weight"]
        # 1e-6: PyTorch adds that to the norm before it divides.
        torch.testing.assert_close(moment, 0.1 * kept * torch.tensor([[0.3, 0.4]], dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("what", "loss"),
    [
        ("loss", lambda module, x: module(x).sum() * math.nan),
        ("loss", lambda module, x: module(x).sum() + math.inf),
        ("gradient", lambda module, x: (module(x) * 0).abs().sqrt().sum()),
    ],
)
def test_what_is_not_finite_is_not_applied(what: str, loss: Any) -> None:
    line, updater = line_and_optimizer()
    updater.update([batches(1)[0]], square_loss, what="test")
    before = {name: tensor.clone() for name, tensor in (weights(line) | updater.state_dict()).items()}
    for _ in range(2):
        assert updater.update([batches(1)[0]], loss, what="test")["skipped"] == 1
    with pytest.raises(TrainingError, match=rf"^test: update 3: the {what} is not a finite number, for the third time in a row") as error:
        updater.update([batches(1)[0]], loss, what="test", batch=lambda: {"x": batches(1)[0]})
    assert "\n" not in str(error.value)
    assert torch.equal(error.value.batch["x"], batches(1)[0])
    assert difference(before, weights(line) | updater.state_dict()) == 0


def test_one_bad_update_is_left_out_and_forgotten() -> None:
    line, updater = line_and_optimizer(lr_schedule="constant")
    kinds = [square_loss, lambda module, x: module(x).sum() * math.nan] * 4
    skipped = [updater.update([batches(1)[0]], loss, what="test")["skipped"] for loss in kinds]
    assert skipped == [0, 1] * 4
    assert torch.isfinite(line.weight).all()


@pytest.mark.parametrize(
    ("name", "room", "function"),
    [("sft", sft, "demonstration_loss"), ("reward", label_losses, "choice_loss"), ("dpo", Objective, "per_question"), ("ppo", ppo, "gae")],
)
def test_nan_stops_a_trainer_before_it_spoils_the_weights(
    problems: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, room: Any, function: str
) -> None:
    trainer = problems.MAKERS[name]()
    trainer.start()
    trainer.step(0)
    before = {key: tensor.clone() for key, tensor in trainer.tensors().items()}
    right = getattr(room, function)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        return tuple(part * math.nan for part in result) if isinstance(result, tuple) else result * math.nan

    monkeypatch.setattr(room, function, wrong)
    with pytest.raises(TrainingError, match="the loss is not a finite number, for the third time in a row, and was not applied") as fault:
        [trainer.step(index) for index in range(1, 4)]
    assert fault.value.batch
    assert difference(before, trainer.tensors()) == 0


@pytest.mark.parametrize("first", [0, 2])
def test_a_weight_without_a_gradient_has_no_moments_and_may_begin_late(first: int) -> None:
    """Line 0 is reached by every update, line 1 from the ``first`` on, line 2 by none; a checkpoint after the fourth changes nothing.

    A step is kept of what began late alone: checkpoints of older versions have none.
    """

    (x,) = batches(1)

    def lines() -> tuple[nn.ModuleList, Updater]:
        torch.manual_seed(0)
        module = nn.ModuleList(nn.Linear(3, 2).double() for _ in range(3))
        return module, Updater(module, Accelerator(), lr=0.1, total_updates=6, lr_schedule="linear", adam_eps=1e-2, weight_decay=0.1)

    def go_on(updater: Updater, numbers: range) -> None:
        for number in numbers:
            reached = slice(2 if number >= first else 1)
            updater.update([reached], lambda module, lines: torch.stack([square_loss(line, x) for line in module[lines]]).sum(), what="")

    whole, updater = lines()
    go_on(updater, range(6))
    _, updater = lines()
    go_on(updater, range(4))
    tensors, state, kept = updater.state_dict(), updater.state(), updater.weights()
    assert {name.partition(".")[2].partition(".")[0] for name in tensors} == {"0", "1"}
    assert {name for name in tensors if name.startswith("step.")} == ({"step.1.weight", "step.1.bias"} if first else set())
    resumed, updater = lines()
    updater.load_weights(kept)
    updater.load_state_dict(tensors, state)
    go_on(updater, range(4, 6))
    assert difference(weights(whole), weights(resumed)) == 0


def test_weights_of_another_model_are_refused() -> None:
    saved = weights(nn.Linear(3, 1))
    for module, words in (
        (nn.Linear(2, 1), r"has weight of shape (1, 3) and the model one of shape (1, 2)"),
        (nn.Linear(3, 1, bias=False), "has bias of shape (1,) and the model none"),
        (nn.Sequential(nn.Linear(3, 1)), "has no 0.bias and the model one of shape (1,)"),
    ):
        before = weights(module)["0.weight" if isinstance(module, nn.Sequential) else "weight"].clone()
        with pytest.raises(RunError, match=f"^the checkpoint {re.escape(words)}: it belongs to another model; put the run's own"):
            load_weights(module, saved)
        assert torch.equal(next(module.parameters()), before)
