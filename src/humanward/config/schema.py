"""What a settings class looks like from outside: its sections, its dotted names, and the words for its types."""

from __future__ import annotations

import difflib
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .yaml_text import Key, dotted

_WORDS = {float: "number", int: "whole number", bool: "true or false", str: "text", Path: "path", type(None): "null", Any: "anything"}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class of a section, also of one that may be null; None for a plain value or a choice between several classes."""
    sections = [part for part in _members(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    others = [part for part in _members(annotation) if part not in sections and part is not type(None)]
    return sections[0] if len(sections) == 1 and not others else None


def may_be_null(annotation: Any) -> bool:
    """Whether null is a value of this type."""
    return type(None) in _members(annotation)


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]


def names(cls: type[BaseModel], prefix: Key = ()) -> list[str]:
    """Every dotted name of a settings class, sections included."""
    found = []
    for name, info in cls.model_fields.items():
        found.append(dotted((*prefix, name)))
        section = section_of(info.annotation)
        if section is not None:
            found += names(section, (*prefix, name))
    return found


def nearest(name: str, candidates: list[str]) -> str | None:
    """The candidate that the user most probably meant: alike as a whole and in its last part; None when nothing is alike."""

    def alike(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return 0.5 * whole + 0.5 * last

    best = max(candidates, key=alike, default=None)
    return best if best is not None and alike(best) >= 0.65 else None


def type_words(info: FieldInfo) -> str:
    """The type of a setting in words: "whole number >= 1", "number > 0 or null", '"linear" or "cosine"'."""
    return _words(info.annotation, info.metadata)


def _words(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(args[0], [*args[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(part, metadata if part is not type(None) else ()) for part in args)
    if origin is typing.Literal:
        return " or ".join(f'"{part}"' if isinstance(part, str) else str(part) for part in args)
    if origin in (list, tuple, set, frozenset):
        inner = [part for part in args if part is not Ellipsis]
        return f"list of {_words(inner[0])}" if len(inner) == 1 else "list"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f'"{member.value}"' for member in annotation)
    bounds = "".join(f" and {bound}" for bound in _bounds(metadata))
    word = _WORDS.get(annotation) or getattr(annotation, "__name__", str(annotation))
    return word + bounds.replace(" and", "", 1)


def _bounds(metadata: typing.Iterable[Any]) -> list[str]:
    flat: list[Any] = []
    for item in metadata:
        flat += list(item) if isinstance(item, annotated_types.GroupedMetadata) else [item]
    found = []
    for item in flat:
        for kind, attribute, sign in _BOUNDS:
            if isinstance(item, kind) and getattr(item, attribute) is not None:
                found.append(f"{sign} {getattr(item, attribute)}")
    return found


_BOUNDS = [
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", ">="),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "<="),
    (annotated_types.MultipleOf, "multiple_of", "a multiple of"),
]
