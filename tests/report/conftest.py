from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fixture() -> ModuleType:
    """The module that makes run folders; loaded by path, since tests are not a package."""
    spec = importlib.util.spec_from_file_location("report_run_folder", HERE / "run_folder.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path, fixture: ModuleType) -> Path:
    """A finished run."""
    return fixture.write_run(tmp_path / "sentiment-124m")
