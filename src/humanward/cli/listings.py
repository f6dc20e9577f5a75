"""``humanward presets`` and ``humanward settings``: what there is to choose."""

from __future__ import annotations

import json
from importlib.resources import files

import typer

from humanward.cli.options import AsJson, Preset, example


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("presets", epilog=example("humanward presets"))(presets)
    app.command("settings", epilog=example("humanward settings --preset demo_quick"))(settings)


def presets(as_json: AsJson = False) -> None:
    """List the settings that ship with the package."""
    from humanward.config import preset_names

    rows = {name: _first_comment(name) for name in preset_names()}
    if as_json:
        print(json.dumps({"presets": rows}, ensure_ascii=False))
        return
    width = max(map(len, rows), default=0)
    for name, what in rows.items():
        print(f"{name:<{width}}  {what}")


def _first_comment(name: str) -> str:
    text = files("humanward").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""


def settings(preset: Preset = None, as_json: AsJson = False) -> None:
    """List every setting with its type, its value by default or in a preset, and what it does."""
    import textwrap

    from humanward.config import settings as listed
    from humanward.rounds import LoopConfig

    rows = listed(LoopConfig)
    chosen = LoopConfig.load(preset=preset).model_dump(mode="json") if preset is not None else None
    values = {row.name: _value(chosen, row.name) for row in rows} if chosen is not None else {}
    if as_json:
        found = [row._asdict() | ({"value": values[row.name]} if values else {}) for row in rows]
        print(json.dumps({"preset": preset, "settings": found}, ensure_ascii=False))
        return
    for row in rows:
        here = f" = {values[row.name]}" if values and not row.type.startswith("section") else ""
        default = f", default {row.default}" if row.default else ""
        print(f"{row.name}{here}  ({row.type}{default})")
        print("\n".join(textwrap.wrap(row.doc, 110, initial_indent="    ", subsequent_indent="    ")))


def _value(values: object, name: str) -> str | None:
    """The value of a dotted name as JSON; None inside a section that is turned off, and for sections."""
    for part in name.split("."):
        if not isinstance(values, dict):
            return None
        values = values[part]
    return None if isinstance(values, dict) else json.dumps(values, ensure_ascii=False)
