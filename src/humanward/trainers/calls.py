"""Calls of a user's function in a thread of their own: a stop is heard while it works, and one that hangs is left behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch

POLL = 0.1
"""Seconds between two looks at the wish to stop."""


class Late(Exception):  # noqa: N818
    """No answer in time."""


class Exited(Exception):  # noqa: N818
    """The function wanted to end the program."""


def nothing() -> None:
    """No wish to stop."""


def call(function: Callable[..., Any], *args: Any, timeout: float | None = None, check: Callable[[], None] | None = None) -> Any:
    """What ``function(*args)`` returns; where it is a coroutine, what that gives.

    Args:
        function: sync or async. It runs in another thread than its caller, on the same CUDA device.
        *args: of the function.
        timeout: seconds it may take; None: any.
        check: called again and again meanwhile; may raise to stop.

    Raises:
        Late: it took longer. Nothing can end a thread, so the function goes on until the process ends; its answer is lost. A coroutine is
            cancelled.
        Exited: it called ``sys.exit``.
        Exception: whatever the function raised.
    """
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    left_behind = threading.Event()
    running: list[concurrent.futures.Future[Any]] = []

    def work() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            result = function(*args)
            if inspect.isawaitable(result):
                running.append(asyncio.run_coroutine_threadsafe(_awaited(result, device), _loop()))
                if left_behind.is_set():
                    running[0].cancel()
                result = running[0].result()
            answer.set_result(result)
        except SystemExit as fault:
            answer.set_exception(Exited(f"it called sys.exit({fault.code!r})"))
        except BaseException as fault:  # whatever it is, it belongs to the caller
            answer.set_exception(fault)

    threading.Thread(target=work, daemon=True, name=f"humanward-{getattr(function, '__name__', 'call')}").start()
    end = time.monotonic() + timeout if timeout is not None else None
    try:
        while not answer.done():
            left = POLL if end is None else min(POLL, end - time.monotonic())
            if left <= 0:
                raise Late
            concurrent.futures.wait([answer], left)
            (check or nothing)()
    except BaseException:
        left_behind.set()
        for coroutine in running:
            coroutine.cancel()
        raise
    return answer.result()


async def _awaited(result: Awaitable[Any], device: int | None) -> Any:
    if device is not None:
        torch.cuda.set_device(device)
    try:
        return await result
    except SystemExit as fault:  # careful: it would end the loop
        raise Exited(f"it called sys.exit({fault.code!r})") from None


def _loop() -> asyncio.AbstractEventLoop:
    """The one of all calls, in a thread of its own: a client that belongs to a loop lives from call to call."""
    with _MAKING_LOOP:
        if not _LOOPS:
            _LOOPS.append(asyncio.new_event_loop())
            threading.Thread(target=_LOOPS[0].run_forever, daemon=True, name="humanward-coroutines").start()
        return _LOOPS[0]


_MAKING_LOOP = threading.Lock()
_LOOPS: list[asyncio.AbstractEventLoop] = []


def call_again(
    function: Callable[..., Any], *args: Any, timeout: float | None, retries: int, check: Callable[[], None] | None,
    give_up: tuple[type[Exception], ...] = (), backoff: float = 1.0,
) -> Any:  # fmt: skip
    """``call``, and again where it raised: ``retries`` times, after 1, 2, 4, … times ``backoff`` seconds.

    A call that was late is not repeated, since the first one may still be at work; nor one that raised what is in ``give_up``.
    """
    for attempt in range(retries + 1):
        try:
            return call(function, *args, timeout=timeout, check=check)
        except (Late, *give_up):
            raise
        except Exception:
            if attempt == retries:
                raise
        pause(backoff * 2**attempt, check)
    raise AssertionError("unreachable")


def pause(seconds: float, check: Callable[[], None] | None) -> None:
    """Sleep, but let ``check`` raise meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        (check or nothing)()
        time.sleep(min(left, POLL))
