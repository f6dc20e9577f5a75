"""A matplotlib figure as inline SVG that obeys a strict content security policy and follows the page's colours.

matplotlib writes ``style`` attributes, ids that repeat from figure to figure, metadata and namespaces. Inside an HTML page the styles
become presentation attributes, palette colours become classes (so that dark mode and print can change them), ids get the figure's name
as a prefix, and the rest goes.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

# Name of the page's colour -> the colour given to matplotlib. Okabe and Ito's colours, safe for the common kinds of colour blindness.
PALETTE = {
    "ink": "#1b1b1f",
    "muted": "#5e5e68",
    "grid": "#e2e2e6",
    "page": "#fffffe",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "grey": "#8a8a94",
}
_NAMES = {colour: name for name, colour in PALETTE.items()}

SETTINGS: dict[str, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "humanward",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 12.5,
    "axes.labelsize": 11.5,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "axes.edgecolor": PALETTE["grey"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def house_settings() -> Iterator[None]:
    """Run matplotlib under ``SETTINGS`` whatever the user's own style is. The browser has the letters that matplotlib's font lacks."""
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context(SETTINGS), warnings.catch_warnings():  # pyright: ignore[reportArgumentType]
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline_svg(figure: Figure, *, name: str, title: str, description: str, width: str) -> Markup:
    """Write a figure as one ``<svg>`` element for an HTML page; to be called under ``house_settings``.

    Args:
        figure: a figure made under the same ``house_settings``.
        name: unique on the page, a plain word; the prefix of every id.
        title: read out by a screen reader as the picture's name.
        description: what the picture shows, in a sentence or two with numbers.
        width: the class of the element: "small", "narrow" or "wide".
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    ids = {element: f"{name}-{i}" for i, element in enumerate(_referenced(root))}
    drawing = "".join(_write(child, ids) for child in root)
    view = root.get("viewBox", "0 0 1 1")
    head = Markup('<svg class="{}" viewBox="{}" role="img" aria-labelledby="{}-title {}-desc">').format(width, view, name, name)
    head += Markup('<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>').format(name, title, name, description)
    return head + Markup(drawing) + Markup("</svg>")


_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _referenced(root: ElementTree.Element) -> list[str]:
    """The ids that something points at, in the order of the document."""
    wanted: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            wanted.update(_REFERENCE.findall(value))
            if _local(key) == "href":
                wanted.add(value.removeprefix("#"))
    return [i for element in root.iter() if (i := element.get("id", "")) in wanted]


def _write(element: ElementTree.Element, ids: dict[str, str]) -> str:
    tag = _local(element.tag)
    if tag in ("metadata", "style", "title"):
        return ""
    inner = escape(element.text or "") if tag == "text" else "".join(_write(child, ids) for child in element)
    if tag in ("g", "defs") and not inner:
        return ""
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in _attributes(element, ids))
    if tag == "g" and not attributes:
        return inner
    return f"<{tag}{attributes}>{inner}</{tag}>" if inner else f"<{tag}{attributes}/>"


def _attributes(element: ElementTree.Element, ids: dict[str, str]) -> Iterator[tuple[str, str]]:
    classes: list[str] = []
    for key, value in element.attrib.items():
        name = _local(key)
        if name == "id":
            if value in ids:
                yield "id", ids[value]
        elif name == "href":
            yield "href", f"#{ids[value.removeprefix('#')]}"
        elif name == "style":
            yield from _styles(value, classes)
        elif name == "d":
            yield "d", _short_path(value)
        elif not (name == "transform" and value.startswith("rotate(-0 ")):
            yield name, _REFERENCE.sub(lambda found: f"url(#{ids[found.group(1)]})", value)
    if classes:
        yield "class", " ".join(classes)


def _styles(style: str, classes: list[str]) -> Iterator[tuple[str, str]]:
    """Style declarations as presentation attributes; a palette colour goes to ``classes`` (f-: fill, s-: stroke)."""
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in ("fill", "stroke") and value in _NAMES:
            classes.append(f"{key[0]}-{_NAMES[value]}")
        elif key == "font":  # matplotlib before 3.10 writes the shorthand
            yield from (("font-size", size) for size in re.findall(r"[\d.]+px", value)[:1])
        elif key not in ("font-family", ""):
            yield key, value


def _short_path(path: str) -> str:
    """A tenth of a pixel is enough: shorter and the same to the eye."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), " ".join(path.split()))
