"""One HTML file that needs nothing else, runs no script and asks no server for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from humanward.report.text import visible


def page(template: str, context: Mapping[str, Any]) -> bytes:
    """A template of this room with the house's style."""
    style = Markup(_asset("style.css"))
    # The policy allows this one style sheet by its hash and nothing else: were markup injected, a browser would still load and run nothing.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(style=style, policy=policy, **context).encode()


def _shown(value: object) -> object:
    """Jinja's finalize: every foreign string passes here before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def _asset(name: str) -> str:
    return resources.files("humanward.report").joinpath(name).read_text(encoding="utf-8")
