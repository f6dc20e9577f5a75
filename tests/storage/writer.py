"""A process that saves checkpoints, made to be killed: `writer.py FOLDER STEP...`. No torch and no numpy, so that it starts at once."""

from __future__ import annotations

import sys

from humanward.errors import RunError
from humanward.storage import Checkpoints


def content(step: int) -> dict[str, bytes]:
    """What a checkpoint of this step holds."""
    return {"a": bytes([step % 256]) * 100, "b": bytes(range(step % 256))}


if __name__ == "__main__":
    try:
        for text in sys.argv[2:]:
            Checkpoints(sys.argv[1]).save(int(text), content(int(text)), {"step": int(text)})
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
