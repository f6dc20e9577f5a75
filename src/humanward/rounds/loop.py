"""The online loop: a list of stages on one run folder. Whatever is not there yet is made, so that starting again continues."""

from __future__ import annotations

import itertools
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from humanward.config import dump_yaml
from humanward.errors import UserError
from humanward.feedback import Labeler
from humanward.models import settled_dtype
from humanward.rounds.config import LoopConfig
from humanward.rounds.context import Context, warn
from humanward.rounds.methods import METHODS
from humanward.rounds.reward_fitting import fit_reward
from humanward.rounds.stages import ask, baseline, check_inputs, chosen_first, collect, evaluate, export, prepare_prompts, supervise
from humanward.storage import RunFolder, StopFlag, verify_folder
from humanward.storage.files import write_bytes
from humanward.trainers import Progress
from humanward.trainers.run import silent
from humanward.trainers.selftest import self_test


@dataclass(frozen=True)
class Stage:
    """One step of the loop; it is done when its output folder is there and whole."""

    name: str
    round: int
    output: str
    """Relative to the run folder."""
    work: Callable[[Context, int, Path], None]
    """Writes the stage's results into the given temporary folder."""
    all_processes: bool = False
    """Trainings run on every process, the rest on the main one."""

    @property
    def has_command(self) -> bool:
        """Whether it can be asked for alone; the others come along with the next one that can."""
        return self.name not in ("prompts", "chosen_sft", "baseline_sft", "export")


def stages_of(config: LoopConfig) -> list[Stage]:
    """The stages of a run, in order."""
    listed = [Stage("prompts", 0, "prompts", prepare_prompts)]
    if config.sft is not None:
        listed.append(Stage("sft", 0, "sft", supervise, all_processes=True))
    for number in range(1, config.labels.rounds + 1):
        folder = f"rounds/{number}"
        if config.asks:
            listed += [Stage("sample", number, f"{folder}/questions", ask), Stage("label", number, f"{folder}/labels", collect)]
        if number == 1 and config.method == "dpo" and config.dpo.sft_first is not None:
            listed.append(Stage("chosen_sft", 0, "chosen_sft", chosen_first, all_processes=True))
        if config.fits_reward:
            listed.append(Stage("reward", number, f"{folder}/reward", fit_reward, all_processes=True))
        listed.append(Stage(config.method, number, f"{folder}/policy", METHODS[config.method], all_processes=True))
    if config.baseline_sft is not None:
        listed.append(Stage("baseline_sft", 0, "baseline_sft", baseline, all_processes=True))
    return [*listed, Stage("export", 0, "policy", export), Stage("evaluate", 0, "evaluation", evaluate)]


class Loop:
    """A run folder and what is still to be done in it.

    Args:
        folder: made by the first run; a folder of an earlier run is continued with its own settings.
        config: settings; None: those of the folder.
        labelers: who answers the questions, instead of what ``config.labeler`` says. The setting becomes ``own:NAMES``, and whoever
            continues the run has to bring them again.
        progress: told about every step.
        stop: asked at every safe point.
        tell: told, a sentence each, what somebody should know: alarms, what the run waits for.
    """

    def __init__(
        self, folder: Path | str, config: LoopConfig | None = None, *, labelers: Sequence[Labeler] | None = None,
        progress: Progress = silent, stop: StopFlag | None = None, accelerator: Accelerator | None = None,
        tell: Callable[[str], None] = warn,
    ) -> None:  # fmt: skip
        self.folder = RunFolder(folder)
        self.now: Stage | None = None
        """The stage at work."""
        self.accelerator = accelerator or Accelerator()
        self.config = self._settled(config, "own:" + ",".join(one.name for one in labelers) if labelers else None)
        self.stages = stages_of(self.config)
        self.context = Context(self.folder, self.config, self.accelerator, progress, stop or StopFlag(), labelers, tell)

    def pending(self) -> list[Stage]:
        """Stages that are not done, in order. A stage behind one that is missing counts as missing: it was made from something else."""
        for number, stage in enumerate(self.stages):
            if verify_folder(self.folder.path / stage.output) is not None:
                return self.stages[number:]
        return []

    def run(self, only: str | None = None, *, before: str | None = None) -> list[Stage]:
        """Do what is pending.

        Args:
            only: a stage's name: do just the next stage, which must be of that name.
            before: a stage's name: leave off before the first stage of that name.

        Returns:
            The stages done by this call.

        Raises:
            UserError: ``only`` is not what comes next, or something given cannot be used; nothing is written then.
            Stopped: a signal came; everything done is saved.
        """
        if self.accelerator.is_main_process and self.pending() == self.stages:
            check_inputs(self.context)
        with self._locked():
            pending = self._start()
            if only is not None:
                pending = self._next_named(pending, only)
            if before is not None:
                pending = list(itertools.takewhile(lambda stage: stage.name != before, pending))
            for stage in pending:
                self._do(stage)
            if not self.pending():
                self.context.note("done", 0)
            return pending

    def _settled(self, config: LoopConfig | None, own: str | None) -> LoopConfig:
        if own is not None and config is not None:
            config = config.model_copy(update={"labeler": own})
        if not self.folder.started:
            if config is None:
                raise UserError(
                    f"{self.folder.path}: no run here yet; start one with `humanward loop {self.folder.path} --model … --prompts …`"
                )
            return config.model_copy(update={"dtype": settled_dtype(config.dtype, self.accelerator.device)})
        kept = LoopConfig.load(self.folder.config)
        if config is not None and config.dtype == "auto":
            config = config.model_copy(update={"dtype": kept.dtype})
        if own is not None and own != kept.labeler:
            raise UserError(f"{self.folder.config}: labeler: this run has {kept.labeler}, not {own}; choose a new run folder")
        if config is not None and config != kept:
            names = [name for name in LoopConfig.model_fields if getattr(config, name) != getattr(kept, name)]
            raise UserError(
                f"{self.folder.config}: this run has other settings ({', '.join(names)}); continue it without settings, "
                "or choose a new run folder"
            )
        return kept

    def _start(self) -> list[Stage]:
        """Prepare every process; returns what is pending, the same for all of them."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  set on the module itself
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        if self.accelerator.is_main_process:
            if not self.folder.started:
                write_bytes(self.folder.config, dump_yaml(self.config).encode())
            self.folder.record_environment(self.config.seed, torch.get_num_threads())
        pending = self.pending()
        if self.config.self_test and pending == self.stages:
            self.context.progress("self-test", 0, 1, {})
            self_test(self.config.ppo if self.config.method == "ppo" else None)
            self.context.progress("self-test", 1, 1, {})
        # careful: behind this line the main process may finish a stage before another one looks.
        self.accelerator.wait_for_everyone()
        return pending

    def _do(self, stage: Stage) -> None:
        from humanward.storage import atomic_folder

        self.context.stop.check()
        self.now = stage
        self.context.note(stage.name, stage.round)
        self.context.cord.hold(together=stage.all_processes)
        started = time.monotonic()
        reset_peak_memory()
        output = self.folder.path / stage.output
        main = self.accelerator.is_main_process
        if main:
            with atomic_folder(output) as temporary:
                stage.work(self.context, stage.round, temporary)
        elif stage.all_processes:
            stage.work(self.context, stage.round, output)
        elif stage.name == "label" and self.config.labeler == "people":
            while verify_folder(output) is not None:  # people take longer than a barrier waits
                self.context.stop.wait(1.0)
        self.accelerator.wait_for_everyone()
        if main:
            # Those of one training through all rounds have no number behind their name: the next round reads them again.
            shutil.rmtree(self.folder.checkpoints / (f"{stage.name}-{stage.round}" if stage.round else stage.name), ignore_errors=True)
            self.context.timings.append(
                {
                    "stage": stage.name, "round": stage.round, "step": 0, "seconds": round(time.monotonic() - started, 3),
                    "peak_memory_bytes": peak_memory(),
                }
            )  # fmt: skip
            self.context.timings.sync()

    def _next_named(self, pending: list[Stage], name: str) -> list[Stage]:
        known = [stage.name for stage in self.stages]
        if name not in known:
            raise UserError(f"{self.folder.path}: this run has no stage {name} (it is turned off in config.yaml)")
        if not pending or name not in [stage.name for stage in pending]:
            raise UserError(f"{self.folder.path}: {name} is done already")
        ahead = [stage for stage in pending if stage.has_command]
        if ahead[0].name != name:
            round_ = f" of round {ahead[0].round}" if ahead[0].round else ""
            raise UserError(f"{self.folder.path}: the next stage is {ahead[0].name}{round_}; run `{self.command_of(ahead[0])}` first")
        return pending[: pending.index(ahead[0]) + 1]

    def command_of(self, stage: Stage) -> str:
        """What does a stage alone. The page that people label on is a command of its own, beside it."""
        beside = " --stage" if stage.name == "label" and self.config.labeler == "people" else ""
        return f"humanward {stage.name} {self.folder.path}{beside}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.accelerator.is_main_process:
            yield
            return
        with self.folder.lock():
            yield


def reset_peak_memory() -> None:
    """Count the process's peak memory anew from here, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Bytes; since ``reset_peak_memory`` on Linux, of the whole process elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
