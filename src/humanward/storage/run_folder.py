"""A run is a folder: where everything of it lies, one process at a time, and what machine and versions made it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from .checkpoints import Checkpoints
from .files import make_folder, read_json, write_json
from .folders import discard_leftovers
from .log import MetricsLog

_PACKAGES = ("humanward", "torch", "transformers", "accelerate", "safetensors", "numpy", "scipy-openblas32", "pydantic", "sqlalchemy")


class RunFolder:
    """The places of one run. Nothing is created before ``create`` or ``lock``."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.state = self.path / "state.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timings = self.path / "timings.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.labels = self.path / "labels.db"
        self.checkpoints = self.path / "checkpoints"
        self.policy = self.path / "policy"
        self.report = self.path / "report.html"

    def create(self) -> RunFolder:
        """Make the folder. Raises UserError where that is not possible."""
        try:
            make_folder(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made a run folder: {error.strerror or error}") from None
        return self

    @property
    def started(self) -> bool:
        """Whether a run has begun here: then it is resumed, with its own config."""
        return self.config.exists()

    def checkpoint_store(self, keep: int = 2) -> Checkpoints:
        """The checkpoints of this run."""
        return Checkpoints(self.checkpoints, keep)

    def metrics_log(self) -> MetricsLog:
        """The log of metrics: no wall-clock time in it, so that a resumed run ends with the same bytes."""
        return MetricsLog(self.metrics)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out while the block runs; a dead process holds no lock.

        Raises:
            UserError: another process works here, or the folder cannot be written to.
        """
        self.create()
        file = self.path / "lock"
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to: {error.strerror or error}; choose another run folder") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "unknown"
                raise UserError(f"{self.path}: another process works in this folder ({owner}); stop it or choose another folder") from None
            os.ftruncate(descriptor, 0)
            self._discard_leftovers()
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def _discard_leftovers(self) -> None:
        """What writers who died have left beside state.json and beside the outputs of stages that are done."""
        for leftover in self.path.glob(".*.tmp-*"):
            leftover.unlink(missing_ok=True)
        for folder in (self.path, *self.path.glob("*"), *self.path.glob("rounds/*")):
            discard_leftovers(folder)

    def record_environment(self, seed: int, threads: int | None = None) -> list[str]:
        """Write environment.json on the first start; later say on stderr, and return, what has changed since.

        A changed version, machine or number of threads may change the last bits of every number: an honest resume says so.

        Raises:
            UserError: the seed or the text of config.yaml is another one; a run keeps both.
        """
        now = describe_environment(seed, threads)
        if self.config.exists():
            now["config"] = hashlib.sha256(self.config.read_bytes()).hexdigest()
        if not self.environment.exists():
            write_json(self.environment, now)
            return []
        first = read_json(self.environment)
        before = {**first, **(first["resumed"][-1] if first.get("resumed") else {})}
        if before.get("seed") != seed:
            raise UserError(f"{self.environment}: the run began with seed {before.get('seed')}, not {seed}; keep it or start a new run")
        if before.get("config") != now.get("config"):
            raise UserError(f"{self.config}: changed since the run began, which would mix two runs in one; restore it or start a new run")
        old, new = _flat(before), _flat(now)
        names = sorted(name for name in new.keys() | old.keys() if not name.startswith("resumed") and old.get(name) != new.get(name))
        changes = [f"{self.environment}: {name} was {old.get(name)}, is {new.get(name)}: results may differ" for name in names]
        for change in changes:
            print(change, file=sys.stderr)
        if changes:
            write_json(self.environment, {**first, "resumed": [*first.get("resumed", []), now]})
        return changes


def describe_environment(seed: int, threads: int | None = None) -> dict[str, Any]:
    """Versions, seed, hardware and threads of this process, as JSON; without importing anything heavy."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None:
        threads = torch.get_num_threads() if threads is None else threads
        if torch.cuda.is_available():
            hardware["accelerators"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"seed": seed, "threads": threads, "versions": versions, "hardware": hardware}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(_flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item})
    return flat
