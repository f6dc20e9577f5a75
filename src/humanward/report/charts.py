"""The drawings of the report. Each takes plain numbers and returns a figure; words and tables around it are made in ``sections``.

They are drawn under ``svg.house_settings``, which is entered once for all of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from humanward.report.svg import PALETTE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

INK, MUTED, BLUE, ORANGE, GREEN, GREY, PAGE = (PALETTE[name] for name in ("ink", "muted", "blue", "orange", "green", "grey", "page"))

# Width of a drawing in CSS pixels; every drawing is made for the width at which it is shown, so that its letters keep their size.
WIDTHS = {"small": 330, "narrow": 330, "wide": 700}
CURVE_POINTS = 240


@dataclass(frozen=True)
class Estimate:
    """A measured number with its interval, and what it is of."""

    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Band:
    """A level to compare with, and its interval."""

    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Frontier:
    """Points (KL in nats, mean score), and (n, KL, score) of best-of-n."""

    optimum: list[tuple[float, ...]]
    best_of_n: list[tuple[float, ...]]
    path: list[tuple[float, ...]]
    policy: tuple[float, ...] | None
    reference: tuple[float, ...] | None


@contextmanager
def _axes(width: str, height: float, *, legend_height: float = 0) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``WIDTHS[width]`` by ``height`` CSS pixels, laid out on exit with room for a legend on top."""
    figure = Figure(figsize=(WIDTHS[width] / 72, height / 72))
    axes = figure.add_subplot()
    yield figure, axes
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - legend_height / height))


def _level(axes: Axes, band: Band, *, along: str) -> None:
    """The band of a level, and its name."""
    span, line = (axes.axvspan, axes.axvline) if along == "x" else (axes.axhspan, axes.axhline)
    if band.low is not None and band.high is not None:
        span(band.low, band.high, color=GREEN, alpha=0.18, linewidth=0)
    line(band.value, color=GREEN, linewidth=1.4)
    if along == "x":
        right = band.value > 0.6
        axes.annotate(band.label, (band.value, 0), (-4 if right else 4, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      color=GREEN, fontsize=11, va="bottom", ha="right" if right else "left")  # fmt: skip
    else:
        axes.annotate(band.label, (0, band.value), (4, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                      color=GREEN, fontsize=11)  # fmt: skip


def sequence(path: Sequence[tuple[float, float, float, float]], *, width: str) -> Figure:
    """A win rate after every outcome, (count, rate, low, high), beside one half."""
    with _axes(width, 240) as (figure, axes):
        xs = [p[0] for p in path]
        axes.fill_between(xs, [p[2] for p in path], [p[3] for p in path], color=BLUE, alpha=0.22, linewidth=0, step="post")
        axes.plot(xs, [p[1] for p in path], color=BLUE)
        axes.axhline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        above = bool(path) and path[-1][1] < 0.5
        axes.annotate("no difference", (1, 0.5), (-2, 4 if above else -13), xycoords=("axes fraction", "data"), textcoords="offset points",
                      color=MUTED, fontsize=11, ha="right")  # fmt: skip
        axes.set_ylim(0, 1)
        axes.set_xlabel("outcomes")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
        axes.margins(x=0.01)
    return figure


def label_curve(
    measured: Sequence[tuple[float, float, float | None, float | None]], drawn: Sequence[tuple[float, float]],
    ahead: Sequence[tuple[float, ...]], *, chance: float | None, ceiling: Band | None, width: str,
) -> Figure:  # fmt: skip
    """Accuracy over labels: points with intervals, the fitted curve, dashed where it is drawn on, with the intervals of what it says."""
    with _axes(width, 260) as (figure, axes):
        if ceiling is not None:
            _level(axes, ceiling, along="y")
        last = measured[-1][0]
        inside = [p for p in drawn if p[0] <= last]
        beyond = [*inside[-1:], *(p for p in drawn if p[0] > last)]
        for part, style in ((inside, "-"), (beyond, (0, (4, 3)))):
            if len(part) > 1:
                axes.plot(*zip(*part, strict=True), color=BLUE, linestyle=style, linewidth=1.4)
        for n, value, low, high in [*measured, *((row[0], row[1], row[2], row[3]) for row in ahead)]:
            if low is not None and high is not None:
                axes.plot([n, n], [low, high], color=BLUE, linewidth=5, alpha=0.3 if n <= last else 0.18, solid_capstyle="butt")
            axes.plot([n], [value], marker="o", markersize=6, color=BLUE if n <= last else PAGE, markeredgecolor=BLUE)
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate("chance", (1, chance), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                          color=MUTED, fontsize=11, ha="right")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks([row[0] for row in (*measured, *ahead)])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.set_ylim(0, 1)
        axes.set_xlabel("questions answered")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    return figure


def estimates(items: Sequence[Estimate], *, line: float | None, line_label: str, width: str, ceiling: Band | None = None) -> Figure:
    """Shares between 0 and 1 as dots with intervals, one row each, beside a dashed line and a level to compare them with."""
    row = 50
    with _axes(width, 44 + row * len(items)) as (figure, axes):
        axes.set_xlim(0, 1)
        axes.set_ylim(-len(items) + 0.35, 0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        if ceiling is not None:
            _level(axes, ceiling, along="x")
        if line is not None:
            axes.axvline(line, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(line_label, (line, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          color=MUTED, fontsize=11, va="top")  # fmt: skip
        for i, item in enumerate(items):
            if item.low is not None and item.high is not None:
                axes.plot([item.low, item.high], [-i, -i], color=BLUE, linewidth=6, alpha=0.3, solid_capstyle="butt")
            axes.plot([item.value], [-i], marker="o", markersize=8, color=BLUE, markeredgecolor=PAGE)
            room = 60 if width == "wide" else 26
            label = item.label if len(item.label) <= room else f"{item.label[: room - 1]}…"
            backing = {"facecolor": PAGE, "edgecolor": "none", "pad": 1}
            # Outside the layout: a long foreign name must not push the axes away.
            name = axes.text(0.004, -i + 0.32, label, ha="left", va="center", bbox=backing)
            name.set_in_layout(False)
            axes.text(0.996, -i + 0.32, f"{100 * item.value:.1f} %", ha="right", va="center", fontweight="bold", bbox=backing)
    return figure


def accuracy_by_round(items: Sequence[tuple[float, Estimate]], *, chance: float | None, width: str, ceiling: Band | None = None) -> Figure:
    """Reward-model accuracy over rounds with intervals, for runs of many rounds."""
    with _axes(width, 230) as (figure, axes):
        if ceiling is not None:
            _level(axes, ceiling, along="y")
        xs = [x for x, _ in items]
        axes.plot(xs, [item.value for _, item in items], color=BLUE, marker="o", markersize=5)
        for x, item in items:
            if item.low is not None and item.high is not None:
                axes.plot([x, x], [item.low, item.high], color=BLUE, linewidth=4, alpha=0.3, solid_capstyle="butt")
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate("chance", (1, chance), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                          color=MUTED, fontsize=11, ha="right")  # fmt: skip
        axes.set_ylim(0, 1)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    return figure


def calibration(points: Sequence[tuple[float, float, float | None, float | None]], *, width: str) -> Figure:
    """How often it was so over how probable the model held it, (predicted, observed, low, high), beside the diagonal of an honest one."""
    with _axes(width, 330 if width == "wide" else 300) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate("honest", (1, 1), (-4, -14), xycoords="data", textcoords="offset points", color=MUTED, fontsize=11, ha="right")
        axes.plot([p[0] for p in points], [p[1] for p in points], color=BLUE, linewidth=1.2)
        for x, y, low, high in points:
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
            axes.plot([x], [y], marker="o", markersize=7, color=BLUE, markeredgecolor=PAGE)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("how probable the reward model held it that the response is chosen")
        axes.set_ylabel("how often it was chosen")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
            axis.set_major_locator(MaxNLocator(nbins=5))
    return figure


def frontier(data: Frontier, *, width: str) -> Figure:
    """Score against KL: the best that any policy could do, best-of-n, and the way that this policy went."""
    wide = width == "wide"
    with _axes(width, 400 if wide else 340, legend_height=46 if wide else 62) as (figure, axes):
        if data.optimum:
            axes.plot(*zip(*sorted(data.optimum), strict=True), color=MUTED, linestyle=(0, (5, 3)), label="optimum")
        if data.best_of_n:
            ordered = sorted(data.best_of_n)
            axes.plot([p[1] for p in ordered], [p[2] for p in ordered], color=ORANGE, marker="s", markersize=5, linewidth=1.2,
                      markeredgecolor=PAGE, label="best of n")  # fmt: skip
            for n, kl, score in ordered if wide else ordered[-1:]:
                axes.annotate(f"n = {n:.0f}", (kl, score), (7, -12), textcoords="offset points", color=ORANGE, fontsize=10.5)
        if data.path:
            axes.plot(
                *zip(*_averaged([(p[0], p[1]) for p in data.path], 60), strict=True),
                color=BLUE,
                linewidth=1.6,
                alpha=0.75,
                label="this policy over training",
            )
        if data.policy:
            axes.plot(*data.policy, marker="D", markersize=10, color=BLUE, markeredgecolor=PAGE, linestyle="none", label="tuned policy")
        if data.reference:
            axes.plot(*data.reference, marker="o", markersize=9, color=INK, markeredgecolor=PAGE, linestyle="none", label="reference")
        axes.set_xlabel("KL from the reference, nats per response")
        axes.set_ylabel("mean score by the labeler")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        handles, _ = axes.get_legend_handles_labels()
        figure.legend(handles=handles, loc="upper left", ncols=3 if wide else 2, fontsize=11.5, borderaxespad=0.1,
                      handlelength=1.6, columnspacing=1.2, labelcolor=INK)  # fmt: skip
    return figure


@dataclass(frozen=True)
class Curve:
    """One quantity over training: ``series`` are (label, xs, ys)."""

    series: list[tuple[str, list[float], list[float]]]
    x_label: str
    target: float | None = None
    target_label: str = "target"
    share: bool = False
    """Whether the numbers are shares, shown as percentages."""


def curve(data: Curve, *, width: str = "small") -> Figure:
    """A small line chart; long series are averaged down to ``CURVE_POINTS`` points."""
    colours = (BLUE, ORANGE, GREEN, GREY)
    styles = ("-", (0, (5, 2)), (0, (1, 1.5)), "-.")
    with _axes(width, 190) as (figure, axes):
        for i, (label, xs, ys) in enumerate(data.series):
            drawn = _averaged(list(zip(xs, ys, strict=True)))
            dot = "o" if len(drawn) == 1 else ""
            axes.plot(*zip(*drawn, strict=True), color=colours[i % 4], linestyle=styles[i // 4 % 4], marker=dot, label=label)
        if data.target is not None:
            axes.axhline(data.target, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(data.target_label, (0, data.target), (4, 4), xycoords=("axes fraction", "data"),
                          textcoords="offset points", color=MUTED, fontsize=11)  # fmt: skip
        if len(data.series) > 1:
            axes.legend(fontsize=11, handlelength=1.4, labelspacing=0.2, borderaxespad=0.2, ncols=2 if len(data.series) > 3 else 1)
        axes.set_xlabel(data.x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if data.share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axes.margins(x=0.01)
    return figure


ARM_COLOURS = ("blue", "orange", "green", "ink", "grey")
"""Of the palette, for what is compared; behind the last of them the line is dashed and they come again."""
ARM_STYLES = (("solid", "-"), ("dashed", (0, (5, 2))), ("dotted", (0, (1, 1.5))))


def arm_look(index: int) -> tuple[str, str]:
    """(colour, style) by name, of the arm at this place; the same in every chart of a page."""
    return ARM_COLOURS[index % len(ARM_COLOURS)], ARM_STYLES[index // len(ARM_COLOURS) % len(ARM_STYLES)][0]


@dataclass(frozen=True)
class ArmCurve:
    """One arm of a comparison: (x, mean, low, high) at each point, and its place among the arms."""

    index: int
    points: list[tuple[float, float, float | None, float | None]]


def comparison(
    arms: Sequence[ArmCurve], *, x_label: str, beside: Sequence[tuple[str, list[tuple[float, float]]]] = (), width: str = "small"
) -> Figure:
    """Means with the bands of their intervals; lines ``beside`` are named where they end. Arms are told apart by a legend outside."""
    styles = dict(ARM_STYLES)
    with _axes(width, 200 if width == "small" else 260) as (figure, axes):
        for arm in arms:
            colour = PALETTE[arm_look(arm.index)[0]]
            known = [(x, low, high) for x, _, low, high in arm.points if low is not None and high is not None]
            if known:
                xs, lows, highs = (list(part) for part in zip(*known, strict=True))
                axes.fill_between(xs, lows, highs, color=colour, alpha=0.16, linewidth=0)
        for arm in arms:
            colour, style = arm_look(arm.index)
            dot = "o" if len(arm.points) == 1 else ""
            axes.plot([p[0] for p in arm.points], [p[1] for p in arm.points], color=PALETTE[colour], linestyle=styles[style], marker=dot)
        heights = [p[1] for arm in arms for p in arm.points]
        right = max((p[0] for arm in arms for p in arm.points), default=0.0)
        for name, line in beside:
            shown = [p for p in line if p[0] <= 1.15 * right] or line[:1]
            axes.plot(*zip(*shown, strict=True), color=MUTED, linewidth=1.3, linestyle=(0, (5, 3)))
            at_left = shown[-1][0] < 0.4 * right  # its name would run over the axis
            axes.annotate(
                name, shown[-1], (-8, 18) if at_left else (-2, 3), textcoords="offset points", color=MUTED, fontsize=11,
                ha="left" if at_left else "right", path_effects=[withStroke(linewidth=3, foreground=PAGE)],
            )  # fmt: skip
            heights += [y for _, y in shown]
        _frame(axes, heights)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.margins(x=0.01)
    return figure


def _frame(axes: Axes, heights: Sequence[float]) -> None:
    """The means decide the frame: a wide interval of few seeds would press them together."""
    if heights and max(heights) > min(heights):
        room = 0.35 * (max(heights) - min(heights))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(heights) - room), min(high, max(heights) + room))


def _short(value: float, _: int | None = None) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if abs(value) >= 1e4 else f"{value:,g}"


def _averaged(series: list[tuple[float, float]], most: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """Means of neighbouring points, at most ``most`` of them."""
    size = -(-len(series) // most)
    chunks = (series[i : i + size] for i in range(0, len(series), size))
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
