"""People, simulated, over HTTP against a server that is killed again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_version_of_the_bench_of_kills(tmp_path: Path) -> None:
    """2,000 labels of 50 people; the bench itself compares every event with the store."""
    page = tmp_path / "labelling.md"
    words = ["--labels", "2000", "--kill-seconds", "2", "6", "--folder", str(tmp_path / "chaos"), "--write", str(page)]
    command = [sys.executable, str(ROOT / "bench/label_chaos.py"), *words]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout)
    assert row["good"]
    assert row["acked"] >= 2000
    assert row["kills"] >= 2
    assert min(row["sent_again"], row["undone"], row["abandoned"]) > 0
    assert f"| answers confirmed | {row['acked']:,} |" in page.read_text()
