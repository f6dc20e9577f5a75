"""A worker process of a study: takes one cell after the other that nobody else holds. ``python -m humanward.studies.worker FOLDER``.

Workers share nothing but the folder, so that any number of them, started by anybody, work on one study.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humanward.errors import RunError, UserError
from humanward.storage import RunFolder, StopFlag, Stopped, read_json
from humanward.storage.files import encode_json
from humanward.studies.folder import StudyFolder, final_numbers, lock_name
from humanward.studies.spec import Cell, Study

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

WAIT_SECONDS = 1.0
WEIGHTS = ("checkpoints", "policy", "rounds", "prompts", "labels.db", "baseline_sft", "sft")
"""What a finished cell does not need any more: its settings, metrics, samples and results stay."""


def main(arguments: list[str] | None = None) -> int:
    """Work until every cell is done or has failed; 128 + n when stopped by signal n."""
    folder, *overrides = sys.argv[1:] if arguments is None else arguments
    with StopFlag() as stop:
        threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
        place = StudyFolder(folder)
        study = Study.load(place.study, overrides)
        _use_cpu_well()
        try:
            work(place, study, stop)
        except Stopped as stopped:
            return stopped.exit_code
    return 0


def _use_cpu_well() -> None:
    from humanward.models import prepare_cpu

    prepare_cpu()


def _stop_with_parent(stop: StopFlag) -> None:
    """The other end of our standard input is closed when whoever started us is gone, however that came."""
    # careful: not through sys.stdin, whose lock a thread that waits would hold when the process ends.
    while os.read(0, 4096):
        pass
    stop.request()


def work(place: StudyFolder, study: Study, stop: StopFlag) -> None:
    """Do what is pending, cell by cell; where others hold the rest, wait for them, in case they die."""
    configs = study.configs()
    while pending := [cell for cell in configs if place.state(cell) == "pending"]:
        did_one = False
        for cell in pending:
            stop.check()
            with place.hold(lock_name(cell)) as ours:
                if ours and place.state(cell) == "pending":
                    did_one |= attempt(place, study, cell, configs[cell], stop)
        if not did_one:
            stop.wait(WAIT_SECONDS)


def attempt(place: StudyFolder, study: Study, cell: Cell, config: LoopConfig, stop: StopFlag) -> bool:
    """Run a cell; its fault is its own. False where it has to wait for what another worker is making."""
    began = time.monotonic()
    try:
        if not run_cell(place, study, cell, config, stop):
            return False
    except (UserError, RunError) as error:
        place.fail(cell, str(error))
    except Stopped:
        raise
    except Exception as error:
        traceback.print_exc()
        place.fail(cell, f"{type(error).__name__}: {error}")
    print(f"{cell.name}: {place.state(cell)} after {time.monotonic() - began:.1f} s", flush=True)
    return True


def run_cell(place: StudyFolder, study: Study, cell: Cell, config: LoopConfig, stop: StopFlag) -> bool:
    """One run, from what it shares with others to its numbers. False where another worker is making what is shared."""
    from humanward.rounds import Loop

    folder = place.cell(cell)
    if not RunFolder(folder).started and config.labels.rounds == 1:
        common = shared_config(config, study.config.reward_seed)
        key = _hash(common.model_dump(mode="json", exclude=set(common.unread())))
        with place.hold(f"shared-{key}") as ours:
            if not ours:
                return False
            source = Loop(place.shared(key), common, stop=stop, tell=_tell)
            source.run(before=common.method)
            _link(source, config, folder)
    print(f"{cell.name}: begins", flush=True)
    Loop(folder, config, stop=stop, tell=_tell).run()
    final, lines = final_numbers(read_json(folder / "evaluation/results.json"), config.method)
    place.finish(cell, {"stage": config.method, "final": final, "lines": lines})
    for name in WEIGHTS:
        shutil.rmtree(folder / name, ignore_errors=True) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    return True


def shared_config(config: LoopConfig, seed: int | None) -> LoopConfig:
    """The settings that everything before the tuning depends on; all others are as they are by default."""
    from humanward.rounds import LoopConfig
    from humanward.rounds.config import SECTIONS

    of_methods = {name for sections in SECTIONS.values() for name in sections} - {"reward"}
    later = of_methods | {"method", "baseline_sft", "evaluation", "checkpoint_seconds"} | ({"reward"} & config.unread())
    values = config.model_dump(mode="json", exclude=later)
    values["evaluation"] = {"prompts": config.evaluation.prompts, "frontier_prompts": 0}
    values["baseline_sft"] = None
    if config.method == "dpo":
        values["method"] = "dpo"
    elif not config.fits_reward:
        values["scoring"] = config.scoring.model_dump(mode="json")
    if seed is not None:
        values["seed"] = seed
    return LoopConfig.model_validate_json(encode_json(values, "the shared settings"))


def _link(source: Any, config: LoopConfig, folder: Path) -> None:
    """The finished stages of the common run, for a cell: the same files under other names where the disk can do that."""
    from humanward.rounds.loop import stages_of

    wanted = {stage.output for stage in stages_of(config)}
    for stage in source.stages:
        if stage.name == source.config.method:
            return
        if stage.output in wanted and not (folder / stage.output).exists():
            temporary = folder / f"{stage.output}.tmp-{os.getpid()}"
            shutil.copytree(source.folder.path / stage.output, temporary, copy_function=_hard_link)
            temporary.rename(folder / stage.output)


def _hard_link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _hash(values: Any) -> str:
    return hashlib.sha256(encode_json(values, "the shared settings")).hexdigest()[:16]


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
