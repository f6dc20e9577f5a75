"""Padding and the order of data."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from humanward.data import epoch_order, index_order, left_pad, length_sorted_batches, packed_batches, right_pad, shard, token_batches


def test_left_pad_ends_every_row_in_the_last_column() -> None:
    tokens, mask = left_pad([(5, 6, 7), (8,), ()], pad_id=9)
    assert tokens.tolist() == [[5, 6, 7], [9, 9, 8], [9, 9, 9]]
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, False, False]]
    assert (tokens.dtype, mask.dtype) == (torch.long, torch.bool)


def test_right_pad_begins_every_row_in_the_first_column() -> None:
    tokens, mask = right_pad([(5, 6), (8,)], pad_id=9, length=3)
    assert tokens.tolist() == [[5, 6, 9], [8, 9, 9]]
    assert mask.tolist() == [[True, True, False], [True, False, False]]


def test_a_real_token_that_equals_the_pad_id_stays_real() -> None:
    _, mask = left_pad([(9, 9), (9,)], pad_id=9)
    assert mask.tolist() == [[True, True], [False, True]]


def test_right_pad_refuses_to_cut() -> None:
    with pytest.raises(ValueError, match="3 tokens does not fit into 2"):
        right_pad([(1, 2, 3)], 0, length=2)


def test_no_rows_make_an_empty_block() -> None:
    assert left_pad([], 0)[0].shape == (0, 0)


@given(st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=6))
def test_padding_keeps_the_tokens_and_their_order(rows: list[list[int]]) -> None:
    for tokens, mask in (left_pad(rows, 1), right_pad(rows, 1)):
        assert [row[real].tolist() for row, real in zip(tokens, mask, strict=True)] == rows


def test_epoch_order_is_pinned() -> None:
    """A change here changes the data order of every run: say so, and why."""
    assert epoch_order(1, 0, 8) == [1, 0, 6, 7, 2, 4, 5, 3]


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_epoch_order_is_uniform() -> None:
    """Each of the 6 orders of 3 items is expected 1,000 times in 6,000; 5 standard deviations are 144."""
    counts = Counter(tuple(epoch_order(seed, 0, 3)) for seed in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 144 for count in counts.values())


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 9))
def test_the_stream_can_be_entered_anywhere(start: int, first: int, second: int, n: int) -> None:
    whole = index_order(3, start, first + second, n)
    assert whole == index_order(3, start, first, n) + index_order(3, start + first, second, n)


def test_the_stream_visits_everything_once_per_epoch() -> None:
    stream = index_order(0, 0, 12, 4)
    assert [sorted(stream[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert stream[:4] == epoch_order(0, 0, 4)
    assert stream[4:8] == epoch_order(0, 1, 4)


@pytest.mark.parametrize(("start", "count", "n"), [(0, 1, 0), (-1, 1, 2), (0, -1, 2)])
def test_the_stream_refuses_nonsense(start: int, count: int, n: int) -> None:
    with pytest.raises(ValueError):
        index_order(0, start, count, n)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_shards_together_are_the_global_batch(world: int) -> None:
    batch = index_order(0, 16, 8, 100)
    shards = [shard(batch, rank, world) for rank in range(world)]
    assert sorted(i for part in shards for i in part) == sorted(batch)
    assert {len(part) for part in shards} == {8 // world}


def test_shard_refuses_an_uneven_batch() -> None:
    with pytest.raises(ValueError, match="cannot be divided among 3"):
        shard([1, 2, 3, 4], 0, 3)
    with pytest.raises(ValueError, match="rank 2"):
        shard([1, 2], 2, 2)


def test_token_batches_are_even_longest_first() -> None:
    assert token_batches([2, 9, 2, 5, 9, 1], 14) == [[1], [4], [3, 0, 2, 5]]
    assert token_batches([20, 3], 10) == [[0], [1]]
    assert token_batches([], 2) == []
    with pytest.raises(ValueError, match="at least 1"):
        token_batches([1], 0)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=7), st.integers(1, 30))
def test_token_batches_are_few_and_the_largest_is_small(lengths: list[int], most: int) -> None:
    """Beside all ways to cut the sorted items."""
    found = token_batches(lengths, most)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    assert [index for batch in found for index in batch] == order
    ways = []
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        batches = [[order[0]]]
        for index, cut in zip(order[1:], cuts, strict=True):
            if cut:
                batches.append([])
            batches[-1].append(index)
        sizes = [sum(lengths[index] for index in batch) for batch in batches]
        if all(size <= most or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True)):
            ways.append((len(batches), max(sizes)))
    assert (len(found), max(sum(lengths[index] for index in batch) for batch in found)) == min(ways)


def test_packed_batches_put_long_and_short_together() -> None:
    assert packed_batches([2, 9, 2, 5, 9, 1], 14) == [[1, 3], [4, 0, 2, 5]]
    assert packed_batches([20, 3], 10) == [[0], [1]]
    assert packed_batches([0, 0], 10) == [[0, 1]]
    assert packed_batches([], 2) == []
    with pytest.raises(ValueError, match="at least 1"):
        packed_batches([1], 0)


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 30))
def test_packed_batches_hold_every_item_once_and_no_more_tokens_than_asked(lengths: list[int], most: int) -> None:
    found = packed_batches(lengths, most)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in batch) for batch in found]
    assert all(size <= most or len(batch) == 1 for size, batch in zip(sizes, found, strict=True))
    assert all(batch == sorted(batch, key=lambda index: -lengths[index]) for batch in found)
    assert len(found) <= len(token_batches(lengths, most))


def test_length_sorted_batches_cover_everything_longest_first() -> None:
    assert length_sorted_batches([2, 9, 2, 5, 9], 2) == [[1, 4], [3, 0], [2]]
    assert length_sorted_batches([], 2) == []
    with pytest.raises(ValueError):
        length_sorted_batches([1], 0)
