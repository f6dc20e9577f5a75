"""YAML to plain values that remember where each was written. A strict subset: no aliases, no tags, no second meaning of a word."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from ..errors import UserError

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Layer:
    """One source of settings: plain values, where each of them was written, and the faults found while reading."""

    values: dict[str, Any]
    origins: dict[Key, str]
    faults: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    """Names whose fault is in ``faults`` already."""
    ready_made: bool = False
    """A preset: nobody chose each of its settings."""


class PlainLoader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: `no` and `on` are text, 1e-3 is a number, 2019-09-18 is text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, "an alias (*name) is not supported; write the value out", event.start_mark)
        return super().compose_node(parent, index)


class PlainDumper(yaml.SafeDumper):
    """Writes what PlainLoader reads."""


_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_SCALARS = [  # tag, pattern, first characters
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
]
for _class in (PlainLoader, PlainDumper):
    _class.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def _one_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if len(text.splitlines()) > 1 or text != text.strip() else None)


PlainDumper.add_representer(str, _one_line)
PlainDumper.add_representer(float, lambda dumper, number: dumper.represent_scalar("tag:yaml.org,2002:float", repr(number)))


def read_layer(path: Path) -> Layer:
    """The settings of a YAML file. Raises UserError with one line for a file that cannot be read at all."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the YAML file in it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_layer(content, str(path))


def parse_layer(content: bytes, source: str) -> Layer:
    """The settings of a YAML text; ``source`` stands before the line number in ``origins`` and in messages."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8") from None
    node = compose(text, source)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        raise UserError(f"{source}:1: no settings in this file; write `name: value` lines or leave the file out")
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{source}:{_line(node)}: expected settings as `name: value` lines, got {_kind(node)}")
    layer = Layer({}, {(): f"{source}:{_line(node)}"})
    layer.values.update(_construct(node, (), source, layer))
    return layer


def compose(text: str, source: str) -> yaml.Node | None:
    """The YAML node of a text. Raises UserError with ``source:line`` for a text that is not YAML."""
    try:
        loader = PlainLoader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        # a colon that is missing is missed where the next line begins: name the line that lacks it
        keyless = "could not find expected ':'" in (error.problem or "")
        mark = error.context_mark if keyless else error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{source}:{line}: {_syntax_fault(error, text, line)}") from None
    except ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        character = error.character if isinstance(error.character, int) else ord(error.character)
        raise UserError(f"{source}:{line}: character U+{character:04X} is not allowed in YAML; remove it") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deep to be settings") from None


def parse_value(text: str, source: str) -> Any:
    """A value as written behind `name=` on the command line."""
    node = compose(text, source)
    if node is None:
        return None
    layer = Layer({}, {})
    value = _construct(node, (), source, layer)
    if layer.faults:
        raise UserError(layer.faults[0])
    return value


def _syntax_fault(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    problem = error.problem or "not YAML"
    if "\\t" in problem or re.match(r" *\t", here):
        return "a tab; indent with spaces"
    if "alias" in problem:
        return problem
    if "another document" in problem:
        return "a second document begins here; keep one document per file"
    if "could not find expected ':'" in problem:
        return "expected `name: value` with a space behind the colon"
    return f"not YAML: {problem}"


def _construct(node: yaml.Node, key: Key, source: str, layer: Layer) -> Any:
    try:
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise ValueError(f"the tag {node.tag} is not supported; write the plain value")
    except ValueError as error:
        layer.faults.append(f"{source}:{_line(node)}: {dotted(key) + ': ' if key else ''}{error}")
        layer.told.add(dotted(key))
        return None
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            layer.origins[(*key, index)] = f"{source}:{_line(child)}"
        return [_construct(child, (*key, index), source, layer) for index, child in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    result: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name_node, child in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            layer.faults.append(f"{source}:{_line(name_node)}: expected a name before the colon, got {_kind(name_node)}")
            continue
        name = name_node.value
        here = (*key, name)
        if name in lines:
            layer.faults.append(f"{source}:{_line(name_node)}: {dotted(here)}: given twice, first in line {lines[name]}; keep one")
            continue
        lines[name] = _line(name_node)
        layer.origins[here] = f"{source}:{_line(name_node)}"
        result[name] = _construct(child, here, source, layer)
    return result


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
    if kind == "str":
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("half of a surrogate pair is not text; write the whole character")
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("int", "float"):
        if len(text) > 4000:
            raise ValueError("the number has too many digits")
        plain = text.replace("_", "")
        try:
            if kind == "int":
                return int(plain, 16) if plain.lower().startswith("0x") else int(plain)
            return float(re.sub(r"\.(inf|nan)$", r"\1", plain.lower()))
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
    raise ValueError(f"the tag {node.tag} is not supported; write the plain value")


def dotted(key: Key) -> str:
    """("ppo", "kl_coef") -> "ppo.kl_coef"."""
    return ".".join(str(part) for part in key)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _kind(node: yaml.Node) -> str:
    return {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}.get(type(node), "a single value")
