"""The faults of a set of settings, one line each: where it was written, which setting, what is wrong, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from .schema import names, nearest, section_of
from .yaml_text import Key, dotted

_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a section of `name: value` lines",
    "none_required": "null",
    "finite_number": "a finite number",
}
_BOUND_WORDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


class Unknown:
    """Settings that the class does not have, taken out of ``values`` so that the rest can be checked as well."""

    def __init__(self, cls: type[BaseModel], values: dict[str, Any], origins: Mapping[Key, str]) -> None:
        self.lines: list[str] = []
        self.meant: set[str] = set()
        """The names that were suggested: not also to be reported as missing."""
        self._origins = origins
        self._names = names(cls)
        self._strip(cls, values, ())

    def _strip(self, cls: type[BaseModel], values: dict[str, Any], prefix: Key) -> None:
        for name in list(values):
            key = (*prefix, name)
            info = cls.model_fields.get(name)
            if info is None:
                del values[name]
                self.lines.append(f"{origin(key, self._origins)}: {dotted(key)}: unknown setting; {self._hint(cls, key)}")
                continue
            section = section_of(info.annotation)
            if section is not None and isinstance(values[name], dict):
                self._strip(section, values[name], key)

    def _hint(self, cls: type[BaseModel], key: Key) -> str:
        name = dotted(key)
        if name in self._names:
            self.meant.add(name)
            return f"nest it: `{key[-1]}` becomes `{str(key[-1]).replace('.', ': {')}: …" + "}" * str(key[-1]).count(".") + "`"
        near = nearest(name, self._names)
        if near is not None:
            self.meant.add(near)
            return f"did you mean {near}?"
        known = list(cls.model_fields)
        shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        return f"{dotted(key[:-1]) or 'the top level'} has {shown}"


def validation_lines(error: ValidationError, values: dict[str, Any], origins: Mapping[Key, str], told: set[str]) -> list[str]:
    """One line for each setting that pydantic refused and that is not in ``told``; the branches of a union are told as one."""
    found: dict[Key, list[tuple[str | None, str]]] = {}
    for fault in error.errors(include_url=False):
        key = _key(fault["loc"], fault["type"], values)
        if dotted(key) in told and (fault["type"] == "missing" or fault["input"] is None):
            continue
        words = _words(fault)
        if words not in found.setdefault(key, []):
            found[key].append(words)
    lines = []
    for key, words in found.items():
        where = f"{origin(key, origins)}: " + (f"{dotted(key)}: " if key else "")
        expected = [word for word, _ in words if word is not None]
        if len(expected) == len(words):
            lines.append(f"{where}expected {' or '.join(expected)}, got {words[0][1]}")
        else:
            lines.append(where + "; or ".join(text if word is None else f"expected {word}, got {text}" for word, text in words))
    return lines


def origin(key: Key, origins: Mapping[Key, str]) -> str:
    """Where a setting was written; for one that was not, where the nearest section around it was."""
    for length in range(len(key), -1, -1):
        if key[:length] in origins:
            return origins[key[:length]]
    return "settings"


def _key(loc: tuple[str | int, ...], kind: str, values: Any) -> Key:
    """The path of a fault without the names of union branches that pydantic puts into it."""
    key: list[str | int] = []
    here: Any = values
    for position, part in enumerate(loc):
        inside: Any = dict(enumerate(here)) if isinstance(here, list) else here if isinstance(here, dict) else {}
        if part in inside:
            here = inside[part]
        elif not (kind == "missing" and position == len(loc) - 1):
            continue
        key.append(part)
    return tuple(key)


def _words(fault: Any) -> tuple[str | None, str]:
    """(what was expected, what came) or (None, the whole message)."""
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind in _EXPECTED:
        return _EXPECTED[kind], _shown(value) + _advice(kind, value)
    if kind in ("literal_error", "enum"):
        return str(context["expected"]), _shown(value)
    if kind in _BOUND_WORDS:
        word, bound = _BOUND_WORDS[kind]
        return None, f"must be {word} {_shown(_short(context[bound]))}, got {_shown(value)}"
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        count = context["min_length"] if few else context["max_length"]
        return None, f"needs {'at least' if few else 'at most'} {count} items, got {context['actual_length']}"
    if kind in ("string_too_short", "string_too_long"):
        few = kind == "string_too_short"
        count = context["min_length"] if few else context["max_length"]
        return None, f"needs {'at least' if few else 'at most'} {count} characters, got {_shown(value)}"
    if kind == "missing":
        return None, "required setting is missing; give it a value"
    if kind == "extra_forbidden":
        return None, "unknown setting; remove it"
    if kind in ("value_error", "assertion_error"):
        return None, " ".join(str(context["error"]).split())
    message = " ".join(str(fault["msg"]).split())
    return None, f"{message[:1].lower()}{message[1:]}, got {_shown(value)}"


def _advice(kind: str, value: Any) -> str:
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    if kind == "model_type" and value is None:
        return "; remove the name or put settings under it"
    return ""


def _short(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 1e6 else number


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | int | float | type(None)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
