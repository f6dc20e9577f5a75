"""Presets: YAML files that ship with the package, each a published recipe or one of ours."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from importlib.resources.abc import Traversable

from ..errors import UserError
from .schema import nearest
from .yaml_text import Layer, parse_layer


def _folder() -> Traversable:
    return files("humanward").joinpath("presets")


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    folder = _folder()
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_layer(name: str) -> Layer:
    """The settings of a preset. Raises UserError for a name that no preset has."""
    known = preset_names()
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}? " if near else ""
        raise UserError(f"preset {name}: unknown preset; {hint}presets: {', '.join(known) or 'none'}")
    return replace(parse_layer(_folder().joinpath(f"{name}.yaml").read_bytes(), f"preset {name}"), ready_made=True)
