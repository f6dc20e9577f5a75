"""A process that writes what a run writes, made to be killed. No torch and no numpy, so that it starts at once.

`writer.py FOLDER STEP...` saves checkpoints; `writer.py --files FOLDER STEP...` replaces state.json and extends and cuts a log of metrics.
"""

from __future__ import annotations

import sys
from pathlib import Path

from humanward.errors import RunError
from humanward.storage import Checkpoints, MetricsLog, write_json


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


if __name__ == "__main__":
    arguments = sys.argv[1:]
    try:
        if arguments[0] == "--files":
            for text in arguments[2:]:
                files(Path(arguments[1]), int(text))
        else:
            for text in arguments[1:]:
                Checkpoints(arguments[0]).save(int(text), content(int(text)), {"step": int(text)})
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
