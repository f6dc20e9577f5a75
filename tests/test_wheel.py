"""The wheel alone, installed where the working tree cannot be seen, holds all that the command needs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "humanward"
BUILT_FILES = {".pyc"}
needs_command = pytest.mark.skipif(not (PACKAGE / "cli" / "__init__.py").is_file(), reason="the command line is not written yet")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs without the variables that would show the working tree to the child."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        pytest.fail(f"{command[0]} exited with {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # With the backend at hand nothing is downloaded.
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("humanward-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel. This one lends the packages that it depends on, but not its `.pth` files: no editable install."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("humanward/")}
    ours = {str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in BUILT_FILES}
    assert packed == ours
    assert "humanward/py.typed" in packed


def test_wheel_names_its_license_and_python(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    assert "License-Expression: Apache-2.0" in lines
    assert "Requires-Python: >=3.11" in lines


def test_the_package_comes_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "bin" / "python", "-c", "import humanward; print(humanward.__file__)", cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(environment)


@needs_command
def test_installed_command_says_what_it_can_do(environment: Path, tmp_path: Path) -> None:
    assert "demo" in run(environment / "bin" / "humanward", "--help", cwd=tmp_path).stdout


@needs_command
@pytest.mark.slow
def test_installed_command_runs_the_demo(environment: Path, tmp_path: Path) -> None:
    run(environment / "bin" / "humanward", "demo", "out", "--quick", cwd=tmp_path)
    assert "<html" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
