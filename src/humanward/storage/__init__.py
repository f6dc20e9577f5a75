"""What a run writes to disk: checkpoints, logs and folders that no crash can damage, seeds that need no saving, and the wish to stop."""

from __future__ import annotations

from .checkpoints import Checkpoint, Checkpoints
from .files import check_space, read_json, write_json
from .folders import atomic_folder, verify_folder
from .log import MetricsLog
from .run_folder import RunFolder
from .seeds import derive_seed, generator
from .stop import StopFlag, Stopped

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "MetricsLog",
    "RunFolder",
    "StopFlag",
    "Stopped",
    "atomic_folder",
    "check_space",
    "derive_seed",
    "generator",
    "read_json",
    "verify_folder",
    "write_json",
]
