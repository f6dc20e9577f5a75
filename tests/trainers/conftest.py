from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def problems() -> ModuleType:
    """The module of small trainings; loaded by path, since tests are not a package."""
    spec = importlib.util.spec_from_file_location("trainer_problems", Path(__file__).parent / "problems.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
