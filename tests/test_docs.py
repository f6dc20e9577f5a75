"""The pages that are made from the code are those of the code as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = "import sys; sys.path[:0] = ['src', 'recipes']; import pages; sys.stdout.write(pages.PAGES[sys.argv[1]]())"


@pytest.mark.parametrize("name", ["settings.md", "paper_map.md", "losses.md", "ppo.md"])
def test_a_page_is_current(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    if done.stdout != (ROOT / "docs" / name).read_bytes():
        pytest.fail(f"docs/{name} is not what the code says: run `make docs`", pytrace=False)


@pytest.fixture
def pages() -> ModuleType:
    """The script that makes the pages; loaded by path."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "recipes/pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_test_is_found_by_its_name_or_by_file_and_name(pages: ModuleType) -> None:
    one, other, third = (pages.Test(name, ROOT / "tests" / path, "") for name, path in (
        ("test_a", "data/test_one.py"), ("test_a", "models/test_other.py"), ("test_b", "conformance/test_third.py"),
    ))  # fmt: skip
    copied = pages.Test("test_b", one.path, "")
    tests = [one, other, third, copied]
    assert pages.find_test("test_other.py::test_a", tests) == other
    assert pages.find_test("test_b", tests) == third, "a conformance test before others"
    assert pages.find_test("test_one.py::test_b", tests) == copied
    with pytest.raises(SystemExit, match=r"several files have test_a; write one of test_one.py::test_a, test_other.py::test_a"):
        pages.find_test("test_a", tests)
    with pytest.raises(SystemExit, match="no such test: test_c"):
        pages.find_test("test_c", tests)
