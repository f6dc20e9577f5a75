"""A process that writes what a run writes, made to be killed. No torch and no numpy, so that it starts at once.

`writer.py FOLDER STEP...` saves checkpoints; `writer.py --files FOLDER STEP...` replaces state.json and extends and cuts a log of metrics;
`writer.py --stages FOLDER` goes through the stages of a run, or through those that are left, and says on stdout what is safe.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from humanward.errors import RunError
from humanward.storage import Checkpoints, MetricsLog, RunFolder, atomic_folder, read_json, verify_folder, write_json

STAGES = ("sft", "reward", "policy", "policy")
"""The last replaces the output of the one before."""
STEPS = 4


def content(step: int) -> dict[str, bytes]:
    """What a checkpoint of this step holds."""
    return {"a": bytes([step % 256]) * 100, "b": bytes(range(step % 256))}


def files(folder: Path, step: int) -> None:
    """A step, resumed: its row is in the log already, is cut and written again, and is on the disk before the state says so."""
    log = MetricsLog(folder / "metrics.jsonl")
    log.append({"stage": "ppo", "step": step, "attempt": 1})
    log.truncate("ppo", 0, step)
    log.append({"stage": "ppo", "step": step, "attempt": 2})
    log.sync()
    write_json(folder / "state.json", {"step": step})


def stages(folder: Path) -> None:
    """Each stage has steps with a row and a checkpoint each, then an output, which makes its checkpoints needless."""
    run = RunFolder(folder)
    with run.lock():
        for number, stage in enumerate(STAGES):
            output = folder / stage
            if verify_folder(output) is None and read_json(output / "round.json") >= number:
                continue
            write_json(run.state, {"stage": stage, "round": number})
            store, log = Checkpoints(run.checkpoints / f"{stage}-{number}"), run.metrics_log()
            newest = store.latest()
            first = newest.step if newest is not None else 0
            log.truncate(stage, number, first)
            for step in range(first, STEPS):
                log.append({"stage": stage, "round": number, "step": step, "text": "x" * 1500})
                log.sync()
                store.save(step + 1, content(step + 1), {"step": step + 1})
                say_safe(store.folder, step + 1)
            with atomic_folder(output) as temporary:
                (temporary / "model").mkdir()
                (temporary / "model/weights").write_bytes(bytes(range(256)) * 8)
                write_json(temporary / "round.json", number)
            say_safe(output)
            log.close()
            shutil.rmtree(store.folder, ignore_errors=True)
        write_json(run.state, {"stage": "done"})


def say_safe(path: Path, step: int = -1) -> None:
    os.write(1, f"safe {path} {step}\n".encode())


if __name__ == "__main__":
    arguments = sys.argv[1:]
    try:
        if arguments[0] == "--stages":
            stages(Path(arguments[1]))
        elif arguments[0] == "--files":
            for text in arguments[2:]:
                files(Path(arguments[1]), int(text))
        else:
            for text in arguments[1:]:
                Checkpoints(arguments[0]).save(int(text), content(int(text)), {"step": int(text)})
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
