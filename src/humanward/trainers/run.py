"""The one loop of all trainers: step, log, checkpoint, resume, listen for stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from humanward.errors import RunError
from humanward.storage import Checkpoint, Checkpoints, MetricsLog, StopFlag, Stopped
from humanward.trainers.guards import KEPT_KINDS, TrainingError, Watch, keep_batch
from humanward.trainers.updates import Updater

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called as (stage, steps done, steps in all, last metrics)."""


SAVES_APART = 20
"""At least so many times what the last save took lies between two checkpoints: they cost a twentieth of the time at most."""
CHEAP_SAVE = 1.0
"""Seconds up to which a save may come as often as it is wished."""


class Trainer(Protocol):
    """What the loop needs of a trainer. ``step(i)`` must be a pure function of the state and ``i``: no iterator, no global random state."""

    total_steps: int

    @property
    def kl_limit(self) -> float | None:
        """KL per response, nats, that the watch calls too far; None where none is measured."""
        return None

    @property
    def ratio_limit(self) -> float | None:
        """How far from 1 the first ratios of a step may be; None where there are none."""
        return None

    def start(self) -> None:
        """Called once, before the first step of a training that does not resume. By default there is nothing to prepare."""

    def step(self, index: int) -> dict[str, float]: ...

    def finish(self) -> None:
        """Called after the last step of all. By default there is nothing to complete."""

    def run(self) -> list[dict[str, float]]:
        """All steps, without checkpoints; ``train`` has the rest."""
        self.start()
        history = [self.step(index) for index in range(self.total_steps)]
        self.finish()
        return history

    def tensors(self) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None: ...


def silent(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
    """No progress shown."""


def go_on(done: int, save: Callable[[], None]) -> None:
    """Nothing to wait for."""


@dataclass
class Surroundings:
    """Where a training runs: all optional, so that a trainer can be used alone."""

    checkpoints: Checkpoints | None = None
    log: MetricsLog | None = None
    stop: StopFlag = field(default_factory=StopFlag)
    progress: Progress = silent
    checkpoint_seconds: float = 30.0
    """Save when so much time has passed since the last save, or 20 times what that save took if that is longer and it took over a second.
    When a checkpoint was written never changes a result."""
    is_main: bool = True
    """Only the main process writes."""
    faults: Path | None = None
    """Where the batch of a fault is kept, and that of the first alarm of some kinds."""
    alarms: MetricsLog | None = None
    """What the watch over the metrics said."""
    tell: Callable[[str], None] = logging.getLogger("humanward").warning
    """Told each alarm, a sentence."""
    hold: Callable[[int, Callable[[], None]], None] = go_on
    """Called before each step as (steps done, a function that saves). It may save and wait; that never changes a result."""


def train(
    trainer: Trainer, surroundings: Surroundings | None = None, *, stage: str = "train", round: int = 0, until: int | None = None
) -> list[dict[str, float]]:
    """Run ``trainer`` from its newest checkpoint, or from the start, to step ``until`` (None: its end).

    Returns:
        The metrics of the steps done by this call.

    Raises:
        Stopped: a signal came; everything done is saved.
        RunError: the loss was not finite three times in a row, the disk is full, …; earlier checkpoints are intact.
    """
    around = surroundings or Surroundings()
    end = trainer.total_steps if until is None else min(until, trainer.total_steps)
    # careful: where an earlier round is done again, the newest checkpoint may be one of a later round.
    checkpoint = around.checkpoints.latest(before=end + 1) if around.checkpoints is not None else None
    if checkpoint is None:
        trainer.start()
    else:
        _load(trainer, checkpoint)
    first = 0 if checkpoint is None else checkpoint.step
    if around.log is not None and around.is_main:
        around.log.truncate(stage, round, first)
    watch = _watch(around, trainer, stage, round, first)
    history: list[dict[str, float]] = []
    saves = _Saves(around, trainer, first)
    done = first

    try:
        for index in range(first, end):
            around.stop.check()
            around.hold(done, lambda done=done: saves.save(done))
            metrics = {name: value for name, value in trainer.step(index).items() if math.isfinite(value)}
            done = index + 1
            history.append(metrics)
            _say(around, trainer, watch(metrics), stage, round, index)
            if around.log is not None and around.is_main:
                around.log.append({"stage": stage, "round": round, "step": index, **metrics})
            around.progress(stage, done, end, metrics)
            if done < end and saves.due():
                saves.save(done)
    except TrainingError as fault:
        raise RunError(f"{fault}. {_after(around, trainer, stage, round, done, fault, before=end + 1)}") from None
    except Stopped:
        # careful: a step that was interrupted has changed nothing yet only if it raised before its first update; the last whole step is
        # what the weights hold whenever a trainer checks the flag before updating, and that is the rule for trainers.
        saves.save(done)
        raise
    if end == trainer.total_steps and (first < end or end == 0):
        trainer.finish()
    if first < end:
        _save(around, trainer, end)
    return history


class _Saves:
    """When a training was saved last, and what it took."""

    def __init__(self, around: Surroundings, trainer: Trainer, step: int) -> None:
        self.around, self.trainer, self.step = around, trainer, step
        self.at, self.seconds = time.monotonic(), 0.0

    def due(self) -> bool:
        pause = SAVES_APART * self.seconds if self.seconds > CHEAP_SAVE else 0.0
        return time.monotonic() - self.at > max(self.around.checkpoint_seconds, pause)

    def save(self, done: int) -> None:
        """Save so many steps; nothing where they are saved already."""
        if done > self.step:
            began = time.monotonic()
            _save(self.around, self.trainer, done)
            self.at, self.step = time.monotonic(), done
            self.seconds = self.at - began


def _load(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Raises RunError, with the folder in it, where the checkpoint is not one of this trainer."""
    try:
        trainer.load(checkpoint.tensors, checkpoint.state)
    except RunError as fault:
        raise RunError(f"{checkpoint.folder}: {fault}") from None
    except KeyError as fault:
        raise RunError(
            f"{checkpoint.folder}: the checkpoint has no {fault.args[0]}: another model or another version of Humanward wrote it; "
            f"go on with that one, or remove {checkpoint.folder.parent} to begin this training again"
        ) from None


def _watch(around: Surroundings, trainer: Trainer, stage: str, round: int, first: int) -> Watch:
    """Who knows the steps before this one."""
    watch = Watch(kl_limit=trainer.kl_limit, ratio_limit=trainer.ratio_limit)
    if around.alarms is not None and around.is_main:
        around.alarms.truncate(stage, round, first)
    if around.log is not None and around.is_main:
        watch.look_back(row for row in around.log.read() if row["stage"] == stage)
    return watch


def _say(around: Surroundings, trainer: Trainer, found: list[tuple[str, str]], stage: str, round: int, step: int) -> None:
    for kind, text in found if around.is_main else []:
        path = None if around.faults is None or kind not in KEPT_KINDS else around.faults / f"{stage}-{kind}"
        updater: Updater | None = getattr(trainer, "updater", None)
        if path is not None and updater is not None and not path.exists():
            batch = updater.batch_left_out if kind == "numbers" else updater.batch
            keep_batch(path, stage, round, step, text, batch())
        around.tell(f"{stage}, step {step + 1}: {text}")
        if around.alarms is not None:
            around.alarms.append({"stage": stage, "round": round, "step": step, "kind": kind, "text": text})


def _after(around: Surroundings, trainer: Trainer, stage: str, round: int, step: int, fault: TrainingError, *, before: int) -> str:
    """Go back to the last checkpoint of a step before that, keep the batch, and say so."""
    checkpoint = around.checkpoints.latest(before=before) if around.checkpoints is not None else None
    if checkpoint is not None:
        _load(trainer, checkpoint)
    said = f"The weights are those of step {checkpoint.step}" if checkpoint is not None else "Nothing was saved before"
    if around.faults is not None and around.is_main:
        path = around.faults / (f"{stage}-{round}-step-{step}" if round else f"{stage}-step-{step}")
        said += f"; the batch is in {keep_batch(path, stage, round, step, str(fault), fault.batch)}"
    return said


def _save(around: Surroundings, trainer: Trainer, step: int) -> None:
    if around.checkpoints is None or not around.is_main:
        return
    for log in (around.log, around.alarms):
        if log is not None:
            log.sync()
    around.checkpoints.save(step, trainer.tensors(), trainer.state())
