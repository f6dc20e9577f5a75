"""Make the pages of docs/ that follow from the code: settings.md from the settings, paper_map.md from paper_map.yaml and the tests.

python recipes/pages.py          # or: make docs
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import yaml

from humanward.config import settings
from humanward.rounds import LoopConfig

ROOT = Path(__file__).parent.parent
MADE = "<!-- Made by `make docs`: do not edit. -->"


def settings_page() -> str:
    """Every setting with type, default and explanation, a table per section."""
    rows = settings(LoopConfig)
    sections = {row.name: row for row in rows if row.type.startswith("section")}
    lines = [
        "# Settings", "", MADE, "",
        "A run's settings come from a preset, then a YAML file, then the command line: `ppo.kl_coef=0.1`; the later wins, name by name.",
        "`humanward settings` prints this list, `humanward settings --preset NAME` with a preset's values, and `humanward init RUN` writes",
        "all of them into a file to be edited. A section that may be null is turned off by `sft=null`, and on by any name inside it.",
    ]  # fmt: skip
    for section in ("", *sections):
        inside = [row for row in rows if row.name not in sections and row.name.rpartition(".")[0] == section]
        if section:
            off = ", may be null; off by default" if sections[section].default == "null" else ""
            off = off or (", may be null" if sections[section].type != "section" else "")
            lines += ["", f"## {section}{off}", "", sections[section].doc]
        else:
            lines += ["", "## The run"]
        lines += ["", "| Setting | Type | Default | What it does |", "|---|---|---|---|"]
        lines += [f"| `{row.name}` | {_cell(row.type)} | `{_cell(row.default)}` | {_cell(row.doc)} |" for row in inside]
    return "\n".join(lines) + "\n"


def paper_map_page() -> str:
    """Published detail -> where it is here -> tests that fail without it."""
    known = {row.name for row in settings(LoopConfig)}
    tests = test_docstrings()
    lines = [
        "# From the papers to the code", "", MADE, "",
        "What the published systems do, where it is here, and which tests fail when it is undone. Settings are those of",
        "[settings.md](settings.md), the rest is below `humanward`. Presets carry the source of every value beside it.",
        "The second half lists the conformance tests with their sources.",
    ]  # fmt: skip
    for part in yaml.safe_load((ROOT / "recipes/paper_map.yaml").read_text(encoding="utf-8")):
        lines += ["", f"## {part['part']}", "", "| Detail | Here | Tests |", "|---|---|---|"]
        for row in part["rows"]:
            lines.append(f"| {_cell(row['detail'])} | {_names(row['here'], known)} | {_tests(row['tests'], tests)} |")
    lines += ["", "## Conformance tests", ""]
    for path in sorted((ROOT / "tests/conformance").glob("test_*.py")):
        lines += [f"[{path.stem}](../{path.relative_to(ROOT)})", "", "| Test | Source and detail |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(doc)} |" for name, (where, doc) in tests.items() if where == path]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def test_docstrings() -> dict[str, tuple[Path, str]]:
    """Every test function with its file and docstring; a conformance test before others of the same name."""
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py"), key=lambda p: (p.parent.name != "conformance", p)):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, (path, " ".join((ast.get_docstring(node) or "").split())))
    return found


def _names(names: list[str], known: set[str]) -> str:
    for name in names:
        if name not in known:
            _resolve(name)
    return ", ".join(f"`{name}`" for name in names)


def _resolve(name: str) -> Any:
    """The object behind `room.Name` or `room.module.name`."""
    parts = name.split(".")
    found: Any = importlib.import_module(f"humanward.{parts[0]}")
    for part in parts[1:]:
        found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
    return found


def _tests(names: list[str], tests: dict[str, tuple[Path, str]]) -> str:
    missing = [name for name in names if name not in tests]
    if missing:
        raise SystemExit(f"error: recipes/paper_map.yaml: no such test: {', '.join(missing)}")
    if not names:
        return "none yet"
    return ", ".join(f"[{name.removeprefix('test_')}](../{tests[name][0].relative_to(ROOT)})" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


PAGES = {"settings.md": settings_page, "paper_map.md": paper_map_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8")
        print(f"docs/{name}")
