"""The other tools, run as tests: the closing line of pytest speaks for all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["pyright", "--pythonpath", sys.executable],
    "floors": ["lint-imports", "--no-logo"],
}


@pytest.mark.parametrize("check", [pytest.param(name, marks=pytest.mark.slow if name == "types" else ()) for name in CHECKS])
def test_check(check: str) -> None:
    tool, *arguments = CHECKS[check]
    done = subprocess.run([BIN / tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{tool} {' '.join(arguments)} exited with {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
