"""``humanward compare``: two policies head to head, blind, with no more labels than the answer needs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from humanward.cli.options import AsJson, Run, example
from humanward.cli.running import opened
from humanward.errors import UserError

Side = typer.Option(help="policy, reference, sft, round:N or a model's folder.", show_default=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", epilog=example("humanward compare runs/demo --a policy --b reference --labeler people"))(compare)


def compare(
    run: Run,
    a: Annotated[str, Side] = "policy",
    b: Annotated[str, Side] = "reference",
    labeler: Annotated[str, typer.Option(help="people, on the page of `humanward label RUN`; or score:SPEC.")] = "people",
    maximum: Annotated[int, typer.Option(help="Prompts at most; the run's evaluation.prompts are its fresh ones.")] = 400,
    precise: Annotated[float, typer.Option(help="Enough where the interval reaches no further to each side; 0: only a decision is.")] = 0.1,
    level: Annotated[float, typer.Option(help="Of the interval, at every moment.")] = 0.95,
    name: Annotated[
        str | None, typer.Option(help="Of the comparison, where there are several of the same sides.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show both sides' responses to fresh prompts, side by side, unnamed and in random order, until it is known which is preferred.

    The interval holds however often one looks, so it may stop as soon as it is known. The same command again goes on.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    with opened(run, None) as (loop, bars):
        from pydantic import ValidationError

        from humanward.report import build_report
        from humanward.rounds import CompareConfig, HeadToHead

        values = {"a": a, "b": b, "labeler": labeler, "maximum": maximum, "precise": precise, "level": level}
        try:
            config = CompareConfig.model_validate(values)
        except ValidationError as error:
            raise UserError("; ".join(_fault(one) for one in error.errors())) from None
        with bars:
            results = HeadToHead(loop.context, config, name).run()
        report = build_report(run)
    if as_json:
        print(json.dumps({"run": str(run), "report": str(report), "comparison": results}))
    else:
        print("\n".join(in_words(results)))


def _fault(error: Any) -> str:
    where = "".join(f"--{part}: " for part in error["loc"])
    return f"{where}{error['msg'].removeprefix('Value error, ')}"


def in_words(results: dict[str, Any]) -> list[str]:
    """What came out, a line each."""
    first, second = results["a"], results["b"]
    rate = f"{100 * results['rate']:.1f} % for {first} ({100 * results['level']:g} % interval {100 * results['low']:.1f} to"
    rate += f" {100 * results['high']:.1f} %), {results['wins']} wins, {results['losses']} losses, {results['ties']} ties"
    better = {"a": (first, second), "b": (second, first)}.get(results["decided"])
    verdict = f"{better[0]} is preferred to {better[1]}" if better else f"no difference between {first} and {second} is shown"
    why = {"precise": "about even: the interval is as narrow as was asked for", "maximum": "the prompts are used up"}.get(results["reason"])
    lines = [verdict + (f" ({why})" if why else ""), rate]
    size = f"{results['labels']} labels"
    if results["same_text"]:
        size += f", and {results['same_text']} ties that nobody was asked about: both responses were the same text"
    if results["fixed_size"]:
        size += (
            f"; a test of fixed size would have taken {results['fixed_size']} to see such a rate with {100 * results['power']:.0f} % chance"
        )
    return [*lines, size]
