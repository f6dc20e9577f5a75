"""What import-linter and ruff cannot say: sizes, forbidden calls, which room starts without torch, which packages a room may use."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "humanward"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef

HEAVY = ["torch", "transformers", "accelerate", "datasets", "matplotlib"]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval": "run no text as code",
    "exec": "run no text as code",
    "torch.load": "read safetensors",
    "torch.save": "write safetensors",
    "yaml.load": "call yaml.safe_load, or a loader derived from SafeLoader",
    "yaml.unsafe_load": "call yaml.safe_load",
    "os.system": "call subprocess.run with a list",
    "os.popen": "call subprocess.run with a list",
}
FORBIDDEN_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}
DISTRIBUTIONS = {"yaml": "pyyaml", "pydantic_core": "pydantic", "annotated_types": "pydantic"}
THIRD_PARTY = {
    "records": set[str](),
    "config": {"pydantic", "pydantic_core", "annotated_types", "yaml"},
    "maths": {"torch", "numpy", "scipy", "jaxtyping"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def third_party(files: list[Path]) -> set[str]:
    names = {module.partition(".")[0] for path in files for module in imported_modules(parsed(path))}
    return names - sys.stdlib_module_names - {"humanward"}


def faults(tree: ast.AST) -> Iterator[str]:
    """Line and reason of everything that reads pickles, runs text as code, or opens a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
            yield from (f"{node.lineno}: {module} reads pickles" for module in modules if module.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            safe = called == "yaml.load" and any(k.arg == "Loader" and "Safe" in ast.unparse(k.value) for k in node.keywords)
            if called in FORBIDDEN_CALLS and not safe:
                yield f"{node.lineno}: {called}: {FORBIDDEN_CALLS[called]}"
            for keyword in node.keywords:
                if keyword.arg in FORBIDDEN_KEYWORDS and isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
                    yield f"{node.lineno}: {keyword.arg}=True"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_runs_no_text_and_reads_no_pickle(path: Path) -> None:
    assert list(faults(parsed(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(f)",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "run('ls', shell=True)",
        "from_pretrained(n, trust_remote_code=True)",
    ],
)
def test_each_forbidden_call_is_found(code: str) -> None:
    assert len(list(faults(ast.parse(code)))) == 1


def test_what_is_allowed_is_not_found() -> None:
    allowed = "model.eval()\nyaml.load(f, Loader=yaml.SafeLoader)\nrun(['ls'], shell=False)\nload(n, trust_remote_code=asked)"
    assert list(faults(ast.parse(allowed))) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_at_most_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_has_at_most_60_lines(path: Path) -> None:
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, Function)]
    assert [f"{node.lineno}: {node.name}" for node in functions if lines_of_body(node) > 60] == []


def lines_of_body(node: Function) -> int:
    """A long docstring is no fault."""
    code = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - code[0].lineno + 1 if code else 0


@pytest.mark.parametrize("path", sorted((PACKAGE / "maths").glob("*.py")), ids=name_of)
def test_public_maths_is_explained(path: Path) -> None:
    tree = parsed(path)
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    assert ast.get_docstring(tree) is not None
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_opens_with_a_docstring_and_its_public_names(room: Path) -> None:
    if room.name == "cli":  # the door itself: the command of pyproject.toml is humanward.cli:main
        return
    tree = parsed(room / "__init__.py")
    assert ast.get_docstring(tree), "say what the room is for"
    assert [ast.unparse(node) for node in tree.body[1:] if not re_exports(node)] == []


def re_exports(node: ast.stmt) -> bool:
    """Imports, ``__all__``, and what a room needs to load its names on first use."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name("TYPE_CHECKING"), orelse=[]):
            return all(map(re_exports, node.body))
        case ast.Assign(targets=[ast.Name(name)]):
            return name.startswith("_")
        case ast.FunctionDef(name="__getattr__" | "__dir__"):
            return True
        case _:
            return False


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_public_name_of_a_room_exists(room: Path) -> None:
    module = importlib.import_module(f"humanward.{room.name}")
    assert [name for name in getattr(module, "__all__", []) if not hasattr(module, name)] == []


def test_shapes_of_maths_are_checked_under_test() -> None:
    reward_losses = importlib.import_module("humanward.maths.reward_losses")
    torch = importlib.import_module("torch")
    assert reward_losses.pair_loss(torch.zeros(2), torch.zeros(2)).shape == (2,)
    with pytest.raises(TypeCheckError):
        reward_losses.pair_loss(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("room", THIRD_PARTY)
def test_a_ground_floor_room_stands_on_few_packages(room: str) -> None:
    assert third_party(sorted((PACKAGE / room).rglob("*.py"))) <= THIRD_PARTY[room]


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {normal(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in required}
    imported = {normal(DISTRIBUTIONS.get(name, name)) for name in third_party(FILES)}
    assert imported - declared == set()


def test_every_declared_package_is_pinned_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = [normal(line.partition("==")[0]) for line in lines]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9.]+", line) for line in lines)
    assert len(pins) == len(set(pins))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {normal(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in required}
    assert declared - set(pins) == {"humanward"}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize(
    "code",
    [
        "import humanward",
        "import humanward.records",
        "import humanward.config",
        "import humanward.feedback",
        "import humanward.feedback.exchange",
        "import humanward.data.formats",
        "import humanward.storage",
        "import humanward.web",
        "from humanward.cli import main; main(['--help'])",
        "from humanward.cli import main; main(['label', '--help'])",
    ],
)
def test_these_start_without_torch(code: str) -> None:
    report = f"import json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    program = f"try:\n    {code}\nexcept SystemExit as left:\n    assert not left.code, left.code\n{report}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=bare_environment())
    assert json.loads(done.stderr.splitlines()[-1]) == []


def bare_environment() -> dict[str, str]:
    return {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"}
