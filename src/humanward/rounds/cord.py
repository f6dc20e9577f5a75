"""The andon cord: while somebody has pulled it, the run saves at its next safe point and waits until it is released."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast

from humanward.errors import RunError

if TYPE_CHECKING:
    from humanward.feedback import Cord
    from humanward.rounds.context import Context

POLL_SECONDS = 1.0
"""Between two looks at the store, at least."""


class CordWatch:
    """Looks at the cord of a run's label store. A store that cannot be reached neither stops a run nor lets a stopped one go on."""

    def __init__(self, context: Context, poll_seconds: float = POLL_SECONDS) -> None:
        self._context, self._poll_seconds = context, poll_seconds
        self._looked = -poll_seconds
        self._pulled: Cord | None = None

    def hold(self, step: int = 0, save: Callable[[], None] | None = None, *, together: bool = False) -> None:
        """Return at once where the cord is not pulled; else save, say so, and return when it is released.

        Args:
            step: steps done of the training at work.
            save: brings these steps to the disk.
            together: called by all processes at the same point; the first one looks, and all wait.

        Raises:
            Stopped: a stop was asked for while waiting.
        """
        if not self._is_pulled(together):
            return
        if save is not None:
            save()
        context, cord = self._context, self._pulled
        began = time.monotonic()
        if cord is not None:
            self._say(step, cord)
        with context.waiting() as waits_for:
            if cord is not None:
                waits_for({"for": "cord", "person": cord.person, "reason": cord.reason, "since": cord.time})
            while self._is_pulled(together):
                context.stop.wait(self._poll_seconds)
        if cord is not None:
            seconds = time.monotonic() - began
            context.tell(f"the cord is released after {seconds:.0f} s here: the run goes on")
            self._record(step, "released", f"released; the run went on after waiting {seconds:.0f} s", cord.time)

    def _is_pulled(self, together: bool) -> bool:
        accelerator = self._context.accelerator
        if accelerator.is_main_process:
            self._look()
        if not together or accelerator.num_processes == 1:
            return self._pulled is not None
        flag = torch.tensor([int(self._pulled is not None)], device=accelerator.device)
        return bool(broadcast(flag, from_process=0).item())  # pyright: ignore[reportAttributeAccessIssue]  a tensor, as was given

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < self._poll_seconds:
            return
        self._looked = now
        context = self._context
        if context.config.label_store is None and not context.folder.labels.exists():
            return
        try:
            self._pulled = context.store.cord()
        except RunError:
            return

    def _say(self, step: int, cord: Cord) -> None:
        context = self._context
        why = cord.reason or "no reason given"
        context.tell(
            f"{cord.person} has pulled the cord ({why}): everything is saved, and the run waits; it goes on by itself when a researcher "
            "releases the cord on the page; Ctrl-C leaves"
        )
        at = f"{context.stage}" + (f", round {context.round}" if context.round else "") + (f", after step {step}" if step else "")
        self._record(step, "pulled", f"{cord.person} stopped the run at {at}: {why}", cord.time)

    def _record(self, step: int, what: str, text: str, time: str) -> None:
        """Once for every pull, however often the run is started meanwhile; under a stage of its own, which no training cuts."""
        row: dict[str, Any] = {"stage": "cord", "round": self._context.round, "step": step, "kind": what, "text": text, "time": time}
        log = self._context.alarms
        if not any(r["stage"] == "cord" and (r["kind"], r["time"]) == (what, time) for r in log.read()):
            log.append(row)
