"""Small questions, a clock that only the test moves, and stores in memory and on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from humanward.feedback import Store
from humanward.records import Prompt, Question, Response

WORDS = ("good", "bad", "wonderful", "plain", "dull", "fine")


def question(number: int, *, k: int = 4, **fields: Any) -> Question:
    responses = tuple(Response(f"a {word} day, number {number}.", (number, index)) for index, word in enumerate(WORDS[:k]))
    return Question(f"q{number}", Prompt(f"p{number}", f"Once upon a time {number}"), responses, **fields)


class Clock:
    """Seconds since 1970 that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ask() -> Callable[..., Question]:
    """ask(number, k=4, kind=…, overlap=…, …) -> the question q<number>."""
    return question


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "disk", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A new store in each kind of database."""
    address: str | Path = ":memory:"
    if request.param == "disk":
        address = tmp_path / "labels.db"
    elif request.param == "postgresql":
        address = request.getfixturevalue("new_address")()
    made = Store(address, clock=clock)
    yield made
    assert made.verify() == []
    made.close()


_numbers = itertools.count()


@pytest.fixture
def new_address(postgresql: Any) -> Callable[[], str]:
    """new_address() -> the address of an empty PostgreSQL database."""
    return lambda: postgresql.address(f"store_{next(_numbers)}")
