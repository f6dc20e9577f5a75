"""The end of a run on the terminal: who is preferred, at what distance, what the reward model knew, what it took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from humanward.storage import RunFolder


def print_summary(console: Console, run: RunFolder, numbers: dict[str, Any], stages: list[dict[str, Any]]) -> None:
    """Tables of ``report.summary``, of the stages' costs, and where things lie."""
    for table in (_win_rates(numbers), _policies(numbers), _reward_models(numbers), _costs(stages)):
        if table.row_count:
            console.print(table)
    for line in numbers["missing"]:
        console.print(f"missing: {line}", soft_wrap=True)
    console.print(f"report  {run.report}", soft_wrap=True)
    console.print(f"policy  {run.policy}", soft_wrap=True)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _win_rates(numbers: dict[str, Any]) -> Table:
    table = _table("Win rates on fresh prompts", "policy", "against", "win rate", "95 % interval", "wins", "losses", "ties")
    for row in numbers["win_rates"]:
        counts = (_count(row[name]) for name in ("wins", "losses", "ties"))
        table.add_row(row["policy"], row["against"], _percent(row["rate"]), _interval(row["low"], row["high"], _percent), *counts)
    return table


def _policies(numbers: dict[str, Any]) -> Table:
    table = _table("Score and distance", "policy", "score", "95 % interval", "KL, nats per response", "95 % interval")
    for name in _names(numbers["scores"], numbers["kl"]):
        score, kl = numbers["scores"].get(name, {}), numbers["kl"].get(name, {})
        table.add_row(name, *_mean(score), *_mean(kl))
    return table


def _reward_models(numbers: dict[str, Any]) -> Table:
    what = "Implicit reward" if "dpo" in _names(numbers["scores"], numbers["kl"]) else "Reward model"
    table = _table(f"{what} on held-out questions", "round", "accuracy", "95 % interval", "chance", "questions")
    for row in numbers["reward_model"]:
        table.add_row(
            _count(row["round"]), _percent(row["accuracy"]), _interval(row["low"], row["high"], _percent), _percent(row["chance"]),
            _count(row["questions"]),
        )  # fmt: skip
    return table


def _costs(stages: list[dict[str, Any]]) -> Table:
    table = _table("Time and memory", "stage", "round", "time", "peak memory")
    for row in stages:
        table.add_row(row["stage"], str(row["round"] or ""), duration(row["seconds"]), f"{row['peak_memory_bytes'] / 2**20:.0f} MiB")
    if stages:
        total, peak = sum(row["seconds"] for row in stages), max(row["peak_memory_bytes"] for row in stages)
        table.add_row("all", "", duration(total), f"{peak / 2**20:.0f} MiB")
    return table


def duration(seconds: float) -> str:
    """9.1 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _names(*tables: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _mean(measured: dict[str, Any]) -> tuple[str, str]:
    return _decimal(measured.get("mean")), _interval(measured.get("low"), measured.get("high"), _decimal)


def _interval(low: float | None, high: float | None, show: Any) -> str:
    return "" if low is None or high is None else f"{show(low)} to {show(high)}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
