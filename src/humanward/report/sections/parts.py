"""What the sections share: tables, charts, names of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from humanward.report.reading import Run, number
from humanward.report.svg import inline_svg
from humanward.report.text import clipped, interval, visible

if TYPE_CHECKING:
    from markupsafe import Markup

RESULTS = "evaluation/results.json"
TABLE_ROWS = 60

SHORT_NAMES = {
    "ppo": "PPO", "sft": "SFT", "dpo": "DPO", "rloo": "RLOO", "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "reinforce": "REINFORCE",
    "online_dpo": "online DPO", "expert_iteration": "expert iteration",
}  # fmt: skip
POLICY_NAMES = {method: f"{name} policy" for method, name in SHORT_NAMES.items()} | {
    "reference": "reference", "sft": "SFT on chosen responses", "best_of_n": "best of n",
}  # fmt: skip
DIRECT = ("dpo",)
"""Methods that are fitted to labels without a reward model."""
NO_JUDGE = (
    "Who is preferred is not known: the labeler’s scores are not known, this method has no reward model, and the policy is no judge of "
    "itself. `humanward compare RUN` asks people, `humanward compare RUN --labeler score:SPEC` a score."
)


@dataclass(frozen=True)
class Table:
    """Column names and rows of text; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing (perhaps in two widths), its words and the numbers behind it."""

    name: str
    title: str
    caption: str
    pictures: list[Markup]
    table: Table


def tuned_by(run: Run) -> str:
    """The method that tuned the policy: also the name of the stage and of the policy itself."""
    return str(run.config.get("method") or "ppo")


def has_judge(run: Run) -> bool:
    """Whether something could score the policies: a labeler whose scores are known, or a reward model."""
    return "scored_by" in run.results or tuned_by(run) not in DIRECT


def policy_name(name: object) -> str:
    """A policy's key in the results as words; unknown keys as they are, made visible and short."""
    return POLICY_NAMES.get(str(name), visible(clipped(str(name), 40)))


def two_widths(name: str, title: str, description: str, draw: Any) -> list[Markup]:
    """The same drawing for a wide and for a narrow page."""
    return [
        inline_svg(draw(width), name=f"{name}-{width}", title=title, description=description, width=width) for width in ("wide", "narrow")
    ]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spaced, the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def ends(values: dict[str, Any]) -> str:
    """The interval of a measured number."""
    return interval(number(values.get("low")), number(values.get("high")))
