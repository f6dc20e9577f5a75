"""Make the pages of docs/ that follow from the code: settings.md from the settings and settings.yaml, paper_map.md from paper_map.yaml and
the tests, losses.md from the losses and losses.yaml, ppo.md from the settings of PPO, ppo_settings.yaml and ppo.md.

python recipes/pages.py          # or: make docs
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from humanward.config import settings
from humanward.maths import preferences
from humanward.rounds import LoopConfig
from humanward.trainers import PPOConfig
from humanward.trainers.objective import LOSSES, MEASURED

ROOT = Path(__file__).parent.parent
MADE = "<!-- Made by `make docs`: do not edit. -->"


def settings_page() -> str:
    """Every setting with type, default and explanation, a table per section; where it is known, with source and tests."""
    rows = settings(LoopConfig)
    sections = {row.name: row for row in rows if row.type.startswith("section")}
    known, tests = _known_settings({row.name for row in rows} - sections.keys()), test_functions()
    lines = [
        "# Settings", "", MADE, "",
        "A run's settings come from a preset, then a YAML file, then the command line: `ppo.kl_coef=0.1`; the later wins, name by name.",
        "`humanward settings` prints this list, `humanward settings --preset NAME` with a preset's values, and `humanward init RUN` writes",
        "all of them into a file to be edited. A section that may be null is turned off by `sft=null`, and on by any name inside it.",
        "`task`, `scoring` and the methods on groups say where a setting is from and which tests fail without it; [ppo.md](ppo.md) says it",
        "of `ppo`, and [losses.md](losses.md) of the losses of `dpo`.",
    ]  # fmt: skip
    for section in ("", *sections):
        inside = [row for row in rows if row.name not in sections and row.name.rpartition(".")[0] == section]
        if section:
            off = ", may be null; off by default" if sections[section].default == "null" else ""
            off = off or (", may be null" if sections[section].type != "section" else "")
            lines += ["", f"## {section}{off}", "", sections[section].doc]
        else:
            lines += ["", "## The run"]
        told = any(row.name in known for row in inside)
        lines += ["", "| Setting | Type | Default | What it does |" + " Source | Tests that fail without it |" * told]
        lines.append("|---|---|---|---|" + "---|---|" * told)
        for row in inside:
            behind = f" {_cell(known[row.name]['source'])} | {_tests(known[row.name]['tests'], tests)} |" if told else ""
            lines.append(f"| `{row.name}` | {_cell(row.type)} | `{_cell(row.default)}` | {_cell(row.doc)} |{behind}")
    return "\n".join(lines) + "\n"


def _known_settings(names: set[str]) -> dict[str, Any]:
    """Source and tests of the settings in settings.yaml, whose sections must be whole."""
    known = yaml.safe_load((ROOT / "recipes/settings.yaml").read_text(encoding="utf-8"))
    begun = {name.rpartition(".")[0] for name in known}
    wrong = known.keys() ^ {name for name in names if name.rpartition(".")[0] in begun}
    if wrong:
        raise SystemExit(f"error: recipes/settings.yaml: {', '.join(sorted(wrong))} is not in both it and the code")
    return known


def paper_map_page() -> str:
    """Published detail -> where it is here -> tests that fail without it."""
    known = {row.name for row in settings(LoopConfig)}
    tests = test_functions()
    lines = [
        "# From the papers to the code", "", MADE, "",
        "What the published systems do, where it is here, and which tests fail when it is undone, or why none does. Settings are those of",
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
        lines += [f"| `{name}` | {_cell(doc)} |" for name, where, doc in tests if where == path]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def losses_page() -> str:
    """Every loss of direct methods: formula, source, options, agreement with TRL and tests."""
    known, tests = yaml.safe_load((ROOT / "recipes/losses.yaml").read_text(encoding="utf-8")), test_functions()
    absent = known.pop("absent")
    if known.keys() != LOSSES.keys():
        raise SystemExit(f"error: recipes/losses.yaml: {', '.join(sorted(known.keys() ^ LOSSES.keys()))} is not in both it and the code")
    lines = [
        "# Losses of direct methods", "", MADE, "",
        "`dpo.loss` is one of these names, or several with weights: `{sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}`. In the formulas chosen and",
        "rejected are log(pi / rho) of the two responses of a pair (or f'(pi / rho), where another divergence is set), margin is their",
        "difference. Agreement means values and gradients to every token's log-probability within 1e-5 on random ragged batches, with TRL",
        "1.16's own trainers computing theirs. What a choice or an order of K > 2 responses is made of is said in `trainers.DPOTrainer`.",
    ]  # fmt: skip
    for title, fits in (
        ("Pairs, against a reference", lambda loss: loss.reads == "pairs" and loss.reference),
        ("Pairs, without a reference", lambda loss: not loss.reference),
        ("Orders of K responses", lambda loss: loss.reads == "orders"),
        ("Responses judged alone; of pairs, one liked and one not", lambda loss: loss.reads == "singles"),
    ):
        lines += ["", f"## {title}", "", "| Loss | Formula | Source | Options | TRL | Tests |", "|---|---|---|---|---|---|"]
        for name, loss in LOSSES.items():
            if fits(loss):
                what, formula, source = _docstring(loss.function)
                options = ", ".join(f"`{option}`" for option in loss.options if option not in MEASURED)
                cells = [f"`{name}` {what}", formula, source, options, known[name]["trl"], _tests(known[name]["tests"], tests)]
                lines.append("| " + " | ".join(cell if cell == cells[-1] else _cell(cell) for cell in cells) + " |")
    lines += ["", "## What goes with them", "", "| Setting | Formula | Source |", "|---|---|---|"]
    for setting, function in (
        ("`dpo.divergence: forward_kl`", preferences.forward_kl), ("`dpo.divergence: js`", preferences.jensen_shannon),
        ("`dpo.divergence: alpha`", preferences.alpha_divergence), ("`dpo.ld_alpha`", preferences.desensitized_logprob),
        ("`dpo.wpo`", preferences.on_policy_weight),
    ):  # fmt: skip
        what, formula, source = _docstring(function)
        lines.append(f"| {setting} | {_cell(formula or what)} | {_cell(source)} |")
    lines += ["", "## Losses of TRL 1.16 that are not here", "", "| TRL | Why not |", "|---|---|"]
    lines += [f"| {_cell(row['trl'])} | {_cell(row['why'])} |" for row in absent]
    return "\n".join(lines) + "\n"


def ppo_page() -> str:
    """How PPO is set, and for every setting its source and its tests."""
    known, tests = yaml.safe_load((ROOT / "recipes/ppo_settings.yaml").read_text(encoding="utf-8")), test_functions()
    rows = {row.name: row for row in settings(PPOConfig)}
    if known.keys() != rows.keys():
        raise SystemExit(
            f"error: recipes/ppo_settings.yaml: {', '.join(sorted(known.keys() ^ rows.keys()))} is not in both it and the code"
        )
    lines = [
        "# PPO", "", MADE, "", (ROOT / "recipes/ppo.md").read_text(encoding="utf-8").strip(), "",
        "## Every setting with its source and its tests", "",
        "| `ppo.` | Default | What it does | Source | Tests that fail without it |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        cells = [f"`{name}`", f"`{_cell(row.default)}`" if row.default else "", _cell(row.doc), _cell(known[name]["source"])]
        lines.append(f"| {' | '.join(cells)} | {_tests(known[name]['tests'], tests)} |")
    return "\n".join(lines) + "\n"


def _docstring(function: Any) -> tuple[str, str, str]:
    """What it is, the formula and the source of a function of ``maths``."""
    text = inspect.getdoc(function) or ""
    parts = text.split("Args:")[0].split("Returns:")[0].split("\n\n")
    formulas = [part for part in parts if part.startswith("    ")]
    formula = "<br>".join(f"`{' '.join(line.split())}`" for part in formulas for line in part.splitlines())
    source = " ".join(" ".join(part.split()) for part in parts[1:] if "arXiv" in part or re.search(r"\b(19|20)\d\d\b", part))
    return " ".join(parts[0].split()), formula, source or " ".join(parts[0].split())


class Test(NamedTuple):
    """A test function."""

    name: str
    path: Path
    doc: str


def test_functions() -> list[Test]:
    """Of all files, in their order."""
    return [
        Test(node.name, path, " ".join((ast.get_docstring(node) or "").split()))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


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


def _tests(names: list[str] | str, tests: list[Test]) -> str:
    """Links to tests, or the text that says why there is none. A name that several files have begins with ``test_file.py::``."""
    if isinstance(names, str):
        return _cell(names)
    found = [find_test(name, tests) for name in names]
    return ", ".join(f"[{name.removeprefix('test_')}](../{path.relative_to(ROOT)})" for name, path, _ in found)


def find_test(name: str, tests: list[Test]) -> Test:
    """The test of that name, a conformance test before others."""
    file, _, function = name.rpartition("::")
    found = [test for test in tests if test.name == function and file in ("", test.path.name)]
    found = [test for test in found if test.path.parent.name == "conformance"] or found
    if len(found) != 1:
        said = f"several files have {name}; write one of {', '.join(f'{t.path.name}::{name}' for t in found)}"
        raise SystemExit(f"error: recipes: {said if found else f'no such test: {name}'}")
    return found[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


PAGES = {"settings.md": settings_page, "paper_map.md": paper_map_page, "losses.md": losses_page, "ppo.md": ppo_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8")
        print(f"docs/{name}")
