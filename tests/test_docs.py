"""The pages that are made from the code are those of the code as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = "import sys; sys.path[:0] = ['src', 'recipes']; import pages; sys.stdout.write(pages.PAGES[sys.argv[1]]())"


@pytest.mark.parametrize("name", ["settings.md", "paper_map.md", "losses.md", "ppo.md"])
def test_a_page_is_current(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    if done.stdout != (ROOT / "docs" / name).read_bytes():
        pytest.fail(f"docs/{name} is not what the code says: run `make docs`", pytrace=False)
