"""What the documents show, runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "recipes/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = [
    pytest.param(block[1], id=f"{path.name}:{text[: block.start()].count(chr(10)) + 1}")
    for path in DOCUMENTS
    for text in [path.read_text(encoding="utf-8")]
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]
LINKS = [
    pytest.param(path.parent / link, id=f"{path.name}:{link}")
    for path in DOCUMENTS
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_block_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", LINKS)
def test_link_leads_somewhere(target: Path) -> None:
    assert target.exists()


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert named <= targets


def test_every_command_that_is_named_exists_with_its_options() -> None:
    from typer.main import get_command

    from humanward.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    code = re.compile(r"^```sh\n(.*?)^```$|`(humanward [^`]*)`", re.DOTALL | re.MULTILINE)
    texts = [block[1] or block[2] for path in DOCUMENTS for block in code.finditer(path.read_text(encoding="utf-8"))]
    lines = [line.partition(" #")[0].split()[1:] for text in texts for line in text.splitlines() if line.startswith("humanward ")]
    assert len(lines) > 10
    for words in lines:
        options = {word for word in words if word.startswith("--")} - {"--help", "--version"}
        named = [word for word in words if not word.startswith("-")]
        assert not named or named[0] in commands, words
        command = commands[named[0]] if named else None
        if command is not None and hasattr(command, "commands"):
            command = command.commands[named[1]] if named[1:] else command
        assert options <= {option for parameter in (command.params if command else ()) for option in parameter.opts}, words
