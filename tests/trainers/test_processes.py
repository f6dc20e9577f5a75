"""Two processes on one global batch are one process on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import humanward

SCRIPT = Path(__file__).parent / "in_processes.py"


def start(folder: Path, rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(humanward.__file__).parents[1]), "ACCELERATE_USE_CPU": "true"}
    if world > 1:
        environment |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], env=environment, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(tmp_path: Path) -> None:
    """SFT, reward model, weighted too, and direct methods on 15 rows in batches of 8: the last one is uneven; methods that sample, some in
    micro-batches; a reward model and PPO in bfloat16, with heads in float32; a value head that nothing trains."""
    port = free_port()
    runs = [start(tmp_path / "one", 0, 1, port), *(start(tmp_path / "two", rank, 2, port) for rank in range(2))]
    faults = [run.communicate(timeout=300)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(faults)
    for name in (
        "sft1",
        "sft2",
        "reward1",
        "reward2",
        "reward3",
        "dpo1",
        "dpo2",
        "dpo3",
        "dpo4",
        "ppo0",
        "ppo1",
        "ppo2",
        "everything0",
        "rloo0",
        "grpo1",
        "reinforce0",
        "online_dpo0",
        "expert_iteration0",
    ):
        one, two = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("one", "two"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            scale = max(1.0, float(tensor.abs().max()))
            assert float((tensor - two[key]).abs().max()) <= 1e-5 * scale, f"{name}: {key}"
