"""``humanward reward-curve``: would more labels help?"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from humanward.cli.options import AsJson, Run, example
from humanward.cli.running import opened
from humanward.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reward-curve", epilog=example("humanward reward-curve runs/demo"))(reward_curve)


def reward_curve(
    run: Run,
    sizes: Annotated[int, typer.Option(min=2, max=9, help="Parts of the labels, each twice the one before.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Of each, with other labels held out.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Fit models to parts of the labels, and say from the curve what twice and four times as many would bring.

    The same command again goes on; fits that were done stay.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    with opened(run, None) as (loop, bars):
        from humanward.report import build_report
        from humanward.rounds.reward_curve import reward_curve as measured

        with bars:
            results = measured(loop.context, sizes=sizes, repeats=repeats)
        report = build_report(run)
    if as_json:
        print(json.dumps({"run": str(run), "report": str(report), "reward_curve": results}))
    else:
        print("\n".join(in_words(results)))


def in_words(results: dict[str, Any]) -> list[str]:
    """A line for each point and for each forecast."""
    lines = [f"{p['questions']:>8} questions  {100 * p['accuracy']:.1f} % right" for p in results["points"]]
    confidence = f"{100 * results['confidence']:.0f} % interval"
    for f in results["forecasts"]:
        ends = f"{100 * f['low']:.1f} to {100 * f['high']:.1f} %"
        more = f"{100 * f['gain']:.1f} points more, {100 * f['gain_low']:.1f} to {100 * f['gain_high']:.1f}"
        lines.append(f"{f['labels']:>8.0f} would give  {100 * f['accuracy']:.1f} % ({confidence} {ends}; {more}), if the curve goes on")
    return lines
