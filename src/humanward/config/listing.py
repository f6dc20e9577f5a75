"""Settings written out: a table of every name for the documentation, and YAML that reads back equal."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from .base import Config
from .schema import may_be_null, section_of, type_words
from .yaml_text import Key, PlainDumper, dotted


class Setting(NamedTuple):
    """One row of the table of settings."""

    name: str
    type: str
    default: str
    """As YAML; "required" where there is none; empty for a section that is not null."""
    doc: str


def settings(cls: type[BaseModel]) -> list[Setting]:
    """Every setting of a class in the order of its file, sections before what is in them."""
    return _settings(cls, (), None)


def _settings(cls: type[BaseModel], prefix: Key, instance: BaseModel | None) -> list[Setting]:
    rows = []
    for name, info in cls.model_fields.items():
        key = (*prefix, name)
        if instance is not None:
            default = getattr(instance, name)
        elif info.is_required():
            default = PydanticUndefined
        else:
            default = info.get_default(call_default_factory=True, validated_data={})
        section = section_of(info.annotation)
        doc = " ".join((info.description or (section.__doc__ if section else None) or "").split())
        if section is None:
            shown = "required" if default is PydanticUndefined else _flow(_plain(default))
            rows.append(Setting(dotted(key), type_words(info), shown, doc))
            continue
        shown = "null" if default is None else "required" if default is PydanticUndefined else ""
        rows.append(Setting(dotted(key), "section or null" if may_be_null(info.annotation) else "section", shown, doc))
        rows += _settings(section, key, default if isinstance(default, BaseModel) else None)
    return rows


def dump_yaml(config: BaseModel, comments: bool = False) -> str:
    """Settings as YAML; ``type(config).load`` of it equals ``config``. With ``comments`` each setting's explanation stands above it.

    What is ``unread`` is left out: it is as it is by default.
    """
    return "".join(_block(config, comments, "")) or "{}\n"


def _block(config: BaseModel, comments: bool, indent: str) -> list[str]:
    values = config.model_dump(mode="json")
    lines = []
    unread = config.unread() if isinstance(config, Config) else ()
    for name, info in type(config).model_fields.items():
        if name in unread:
            continue
        value = getattr(config, name)
        if comments and info.description:
            doc = " ".join(info.description.split())
            lines += [f"{indent}# {line}\n" for line in textwrap.wrap(doc, 110 - len(indent), break_on_hyphens=False)]
        if isinstance(value, BaseModel):
            inner = _block(value, comments, indent + "  ")
            lines += [f"{indent}{name}:\n", *inner] if inner else [f"{indent}{name}: {{}}\n"]
        else:
            lines.append(f"{indent}{name}: {_flow(values[name])}\n")
    return lines


def _plain(value: Any) -> Any:
    """A default as YAML can write it: settings inside lists as mappings, tuples as lists."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _flow(value: Any) -> str:
    text = yaml.dump(value, Dumper=PlainDumper, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
