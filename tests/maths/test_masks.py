from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from humanward.maths import add_at_last_token, last_index, masked_mean, position_ids, response_mask_until_eos, truncate_at

rows_of_bits = st.integers(1, 9).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)
)


def mask_of(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "x" for c in row] for row in rows])


def test_positions_by_hand():
    positions = position_ids(mask_of("..xxx", "xxx..", "x.x.x", "....."))
    assert positions.dtype == torch.long
    assert positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 0, 0], [0, 0, 1, 0, 2], [0, 0, 0, 0, 0]]


@given(rows_of_bits, st.integers(0, 3), st.integers(0, 3))
def test_positions_of_real_tokens_do_not_depend_on_padding(rows, left, right):
    mask = torch.tensor(rows)
    padded = torch.nn.functional.pad(mask, (left, right), value=False)
    assert torch.equal(position_ids(padded)[padded], position_ids(mask)[mask])
    for row, positions in zip(mask, position_ids(mask), strict=True):
        assert positions[row].tolist() == list(range(int(row.sum())))
        assert (positions[~row] == 0).all()


def test_masked_mean_by_hand_ignores_what_pads_hold():
    x = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), -9.0]], requires_grad=True)
    mean = masked_mean(x, mask_of("xx.", "x.."))
    assert mean.item() == 3.0  # (1 + 2 + 6) / 3, not the mean of the row means 1.5 and 6
    mean.backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]) / 3)


def test_masked_mean_without_a_real_token_is_zero():
    assert masked_mean(torch.tensor([[float("nan"), 5.0]]), mask_of("..")).item() == 0.0


def test_masked_means_of_shards_weighted_by_tokens_give_the_whole():
    x, mask = torch.arange(6.0).reshape(3, 2), mask_of("xx", "x.", "..")
    parts = [(masked_mean(x[i : i + 1], mask[i : i + 1]), mask[i].sum()) for i in range(3)]
    assert sum(m * n for m, n in parts) / mask.sum() == masked_mean(x, mask) == 1.0  # (0 + 1 + 2) / 3


def test_last_index_by_hand():
    index = last_index(mask_of("xxx.", "..x.", "xxxx", "x..x", "...."))
    assert index.dtype == torch.long
    assert index.tolist() == [2, 2, 3, 3, 0]


def test_scores_land_on_the_last_real_token_only():
    x = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    before = x.clone()
    added = add_at_last_token(x, torch.tensor([1.0, -2.0, 5.0]), mask_of("xx.", "xxx", "..."))
    assert torch.allclose(added, torch.tensor([[0.1, 1.2, 0.3], [0.1, 0.2, -1.7], [0.1, 0.2, 0.3]]))
    assert torch.equal(x, before), "the argument was written to"


def test_a_score_without_a_place_spoils_nothing():
    x = torch.zeros(1, 2)
    assert torch.equal(add_at_last_token(x, torch.tensor([float("nan")]), mask_of("..")), x)


def test_first_eos_is_real_and_the_rest_is_not():
    responses = torch.tensor([[5, 9, 7, 9], [9, 9, 9, 9], [1, 2, 3, 4], [1, 2, 3, 9]])
    assert torch.equal(response_mask_until_eos(responses, 9), mask_of("xx..", "x...", "xxxx", "xxxx"))


def test_truncation_by_hand():
    # Token 7 ends a response, but not before index 2.
    responses = torch.tensor([[7, 7, 1, 7, 7], [1, 1, 7, 1, 1], [7, 7, 1, 1, 1], [1, 1, 1, 1, 7]])
    mask, found = truncate_at(responses, 7, 2)
    assert torch.equal(mask, mask_of("xxxx.", "xxx..", "xxxxx", "xxxxx"))
    assert found.tolist() == [True, True, False, True]


@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(0, 6))
def test_truncation_is_the_slow_loop(rows, after):
    mask, found = truncate_at(torch.tensor(rows), 1, after)
    for row, row_mask, row_found in zip(rows, mask.tolist(), found.tolist(), strict=True):
        ends = [i for i, token in enumerate(row) if token == 1 and i >= after]
        assert row_found == bool(ends)
        assert row_mask == [not ends or i <= ends[0] for i in range(len(row))]


def test_eos_mask_is_truncation_from_the_first_token():
    responses = torch.randint(0, 4, (20, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(response_mask_until_eos(responses, 3), truncate_at(responses, 3, 0)[0])
