"""The wish to stop: a signal sets a flag, and long work asks the flag where it is safe to leave."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818  not an error: the user asked for it
    """The user or the system asked the run to stop. Save, then leave with ``exit_code``: 128 + the number of the signal, as shells do."""

    def __init__(self, signal_number: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}")
        self.signal = signal_number
        self.exit_code = 128 + signal_number


class StopFlag:
    """Turns SIGTERM and Ctrl-C into ``Stopped`` at the next ``check()``; a second signal leaves the process at once.

    Use as a context manager. Outside the main thread, where Python allows no handlers, it can still be asked and set by ``request``.
    """

    def __init__(self) -> None:
        # careful: a plain attribute, not an Event: a handler that takes a lock which the interrupted line holds would hang.
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    @property
    def requested(self) -> bool:
        """Whether a stop has been asked for."""
        return self._signal is not None

    def request(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask for a stop from inside the program."""
        self._signal = int(signal_number)

    def check(self) -> None:
        """Raises Stopped if a stop has been asked for. Cheap: call it at every safe point."""
        if self._signal is not None:
            raise Stopped(self._signal)

    def wait(self, seconds: float) -> None:
        """Sleep, but raise Stopped within a tenth of a second of the wish to stop."""
        end = time.monotonic() + seconds
        self.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        with suppress(OSError):  # stderr may be gone with the terminal
            os.write(2, b"stopping at the next safe point; once more to leave at once\n")
