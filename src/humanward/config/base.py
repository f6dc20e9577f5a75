"""The base of every settings class and the way settings are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from ..errors import UserError
from .faults import Unknown, validation_lines
from .presets import preset_layer
from .schema import section_of
from .yaml_text import Key, Layer, parse_value, read_layer


class Config(BaseModel):
    """A set of settings: unknown names are errors, values never change, the text under a field explains it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def left_aside(cls, values: Mapping[str, Any]) -> frozenset[str]:
        """Sections of a preset that nothing reads beside these values: a preset may have settings for choices that it does not make."""
        return frozenset()

    def unread(self) -> frozenset[str]:
        """Settings that nothing reads beside the others as they are: it is a fault to give them, and ``dump_yaml`` leaves them out."""
        return frozenset()

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Iterable[str] = (), preset: str | None = None) -> Self:
        """Read settings: defaults, then a preset, then a YAML file, then overrides; the later wins, section by section.

        Args:
            path: a YAML file.
            overrides: ``ppo.kl_coef=0.1``; the value is YAML. ``sft=null`` turns a section off that may be null; a name inside turns it on.
            preset: the name of a preset, see ``preset_names()``.

        Raises:
            UserError: one line for every fault found, with file and line.
        """
        layers = [preset_layer(preset)] if preset is not None else []
        layers += [read_layer(Path(path))] if path is not None else []
        return cls.of_layers([*layers, *map(override_layer, overrides)])

    @classmethod
    def of_layers(cls, layers: Sequence[Layer]) -> Self:
        """Settings of several sources over the defaults; the later wins, section by section.

        Raises:
            UserError: one line for every fault found, with the place that its layer names.
        """
        values: dict[str, Any] = {}
        origins: dict[Key, str] = {}
        faults = [fault for layer in layers for fault in layer.faults]
        for layer in layers:
            _merge(cls, values, layer.values)
            origins.update(layer.origins)
        chosen = {key[0] for layer in layers if not layer.ready_made for key in layer.origins if key}
        for name in (cls.left_aside(values) & values.keys()) - chosen:
            del values[name]
        told = {name for layer in layers for name in layer.told}
        unknown = Unknown(cls, values, origins)
        faults += unknown.lines
        try:
            config = cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            faults += validation_lines(error, values, origins, unknown.meant | told)
            raise UserError("\n".join(faults or [f"settings: {error}"])) from None
        if faults:
            raise UserError("\n".join(faults))
        return config


def override_layer(override: str) -> Layer:
    """``ppo.kl_coef=0.1`` as a layer of its own."""
    source = f"override {override}"
    name, equals, text = override.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise UserError(f"{source}: expected name=value, for example ppo.kl_coef=0.1")
    try:
        value = parse_value(text, source)
    except UserError as error:
        raise UserError(str(error).replace(f"{source}:1:", f"{source}:", 1)) from None
    for part in reversed(key):
        value = {part: value}
    return Layer(value, {key[:length]: source for length in range(len(key) + 1)})


def _merge(cls: type[BaseModel] | None, lower: dict[str, Any], upper: dict[str, Any]) -> None:
    """Put ``upper`` over ``lower`` in place: mappings merge name by name, everything else is replaced."""
    for name, value in upper.items():
        info = cls.model_fields.get(name) if cls is not None else None
        section = section_of(info.annotation) if info is not None else None
        if not isinstance(value, dict):
            lower[name] = copy.deepcopy(value)
            continue
        if name not in lower and info is not None:
            lower[name] = _default_values(info)
        if not isinstance(lower.get(name), dict):
            lower[name] = {}
        _merge(section, lower[name], value)


def _default_values(info: FieldInfo) -> dict[str, Any]:
    """What a section's default sets beyond its class: one name given in a file does not reset the others."""
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    return default.model_dump(mode="json", exclude_unset=True) if isinstance(default, BaseModel) else {}
