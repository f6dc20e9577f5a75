"""Padded batches and the order of data. Every order is a pure function of (seed, position), so a resumed run needs no random state."""

from __future__ import annotations

import bisect
import hashlib
import heapq
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

T = TypeVar("T")


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Rows of different lengths in one block, padded in front, so that every prompt ends in the last column.

    Returns:
        (tokens, mask): mask is True on real tokens; P is the longest row.
    """
    return _pad(rows, pad_id, None, left=True)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> tuple[Int[Tensor, "B R"], Bool[Tensor, "B R"]]:
    """Rows of different lengths in one block, padded behind, so that every response begins in the first column.

    Returns:
        (tokens, mask): mask is True on real tokens; R is ``length``, or the longest row where that is None.

    Raises:
        ValueError: a row is longer than ``length``.
    """
    return _pad(rows, pad_id, length, left=False)


def epoch_order(seed: int, epoch: int, n: int) -> list[int]:
    """A permutation of range(n): the order in which epoch ``epoch`` visits n items. The same on every machine and in every version."""
    return _epoch_order(seed, epoch, n).tolist()


def index_order(seed: int, start: int, count: int, n: int) -> list[int]:
    """``count`` indices of an endless stream over n items from position ``start``; the items are shuffled anew in every epoch.

    Position p belongs to epoch p // n, so any part of the stream can be computed alone: index_order(s, 0, 8, n) is
    index_order(s, 0, 5, n) + index_order(s, 5, 3, n).

    Raises:
        ValueError: ``n`` is not positive, or ``start`` or ``count`` is negative.
    """
    if n < 1 or start < 0 or count < 0:
        raise ValueError(f"n >= 1, start >= 0 and count >= 0 are needed, not n={n}, start={start}, count={count}")
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), n)
        order += _epoch_order(seed, epoch, n)[offset : offset + count - len(order)].tolist()
    return order


def shard(items: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """The part of a global batch that process ``rank`` of ``world`` works on: every world-th item from its own number on.

    The global batch does not depend on ``world``; the shards together are the batch.

    Raises:
        ValueError: the batch cannot be divided evenly (the processes would wait for each other for ever), or no such rank.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not one of {world} processes")
    if len(items) % world:
        raise ValueError(f"a global batch of {len(items)} cannot be divided among {world} processes; choose a multiple of {world}")
    return items[rank::world]


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All indices, each once, in batches of similar length, so that little is padding.

    The longest come first: a batch that does not fit into memory fails at the beginning, not at the end.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """All indices, each once, in batches of similar length and of at most ``max_tokens`` together; an item longer than that stands alone.

    They are as few as items in the order of their length allow, and the largest of so many is as small as can be: a small one at the end
    would cost almost as much as a full one, and the largest one decides how much memory is needed. As in ``length_sorted_batches``, the
    longest items come first.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    longest_first = [lengths[index] for index in order]
    fewest = len(_filled(longest_first, max_tokens))
    most = bisect.bisect_left(range(max_tokens), -fewest, lo=1, key=lambda most: -len(_filled(longest_first, most)))
    begins = [0, *itertools.accumulate(_filled(longest_first, most))]
    return [order[begin:end] for begin, end in itertools.pairwise(begins)]


def packed_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """As ``token_batches``, for a model that pads nothing: long and short items together, in fewer and more even batches.

    Of so many batches the emptiest takes the next item, from the longest on (Graham 1969, "Bounds on multiprocessing timing anomalies").
    """
    by_length = token_batches(lengths, max_tokens)
    for count in range(-(-sum(min(length, max_tokens) for length in lengths) // max_tokens) or 1, len(by_length) + 1):
        batches: list[list[int]] = [[] for _ in range(count)]
        sizes = [(0, number) for number in range(count)]
        for index in itertools.chain.from_iterable(by_length):
            size, number = sizes[0]
            batches[number].append(index)
            heapq.heapreplace(sizes, (size + lengths[index], number))
        if all(size <= max_tokens or len(batches[number]) == 1 for size, number in sizes):
            return batches
    return by_length


def _filled(lengths: Sequence[int], most: int) -> list[int]:
    """Numbers of items that together have at most ``most`` tokens, one batch after the other; a longer item stands alone."""
    counts: list[int] = []
    room = 0
    for length in lengths:
        room -= length
        if room < 0 or not counts:
            counts.append(0)
            room = most - length
        counts[-1] += 1
    return counts


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    key = np.frombuffer(hashlib.sha256(f"epoch order {seed} {epoch}".encode()).digest()[:16], dtype="<u8")
    # careful: numpy promises the raw bits of Philox for all versions, but not the draws of Generator.permutation.
    order = np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")
    order.setflags(write=False)
    return order


def _pad(rows: Sequence[Sequence[int]], pad_id: int, length: int | None, *, left: bool) -> tuple[Tensor, Tensor]:
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    longest = int(lengths.max(initial=0))
    columns = longest if length is None else length
    if longest > columns:
        raise ValueError(f"a row of {longest} tokens does not fit into {columns} columns")
    position = np.arange(columns)[None, :]
    mask = position >= columns - lengths[:, None] if left else position < lengths[:, None]
    tokens = np.full((len(rows), columns), pad_id, dtype=np.int64)
    tokens[mask] = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(lengths.sum()))
    return torch.from_numpy(tokens), torch.from_numpy(mask)
