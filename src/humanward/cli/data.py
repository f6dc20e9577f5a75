"""``humanward data inspect`` and ``humanward data convert``: what a file of preferences holds, and the same in another format."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from humanward.cli.files import bar, check_place, container_for, destination
from humanward.cli.options import AsJson, example
from humanward.cli.terminal import note
from humanward.errors import UserError

if TYPE_CHECKING:
    from humanward.data.inspection import Inspection
    from humanward.data.task import Task

HEURISTIC = "by patterns, a heuristic: some are missed, and other numbers are taken for them"
Source = Annotated[
    str, typer.Argument(metavar="FILE", help="A file, a folder or a data set's name, with settings such as ?kind=pair.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(
        help="Look into preference data, and write it in another format: inspect, convert.", rich_markup_mode=None,
        epilog=example("humanward data inspect pairs.jsonl"),
    )  # fmt: skip
    commands.command("inspect", epilog=example("humanward data inspect pairs.jsonl --model asset:storyteller"))(inspect)
    commands.command("convert", epilog=example("humanward data convert pairs.jsonl dialogues.jsonl.gz --to transcripts"))(convert)
    app.add_typer(commands, name="data")


def inspect(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, folders or data sets, with settings such as ?kind=pair.", show_default=False),
    ],
    model: Annotated[
        str | None, typer.Option(help="Count tokens of this model, and try its chat template and context.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="FILE", help="Another split: how many prompts are in both?", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what was understood of preference data: format, counts, lengths, ties, copies, length bias, personal data, an example."""
    from humanward.data.inspection import inspect as look
    from humanward.data.inspection import prompts_of

    task = None if model is None else _task(model)
    other = None if split is None else prompts_of(split)
    found = []
    for file in files:
        with bar("inspect") as shown:
            found.append(look(file, task, other_prompts=other, progress=shown.to))
    if as_json:
        print(json.dumps({"model": model, "split": split, "files": [one.to_json() for one in found]}, ensure_ascii=False))
        return
    print("\n\n".join("\n".join(report(one, split)) for one in found))


def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to: .jsonl, .json, .csv or .parquet; .gz compresses.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="pairs, transcripts, conversations, unpaired, ranking, …: docs/data.md.")],
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out what the format cannot hold, such as ties; else it is an error.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write preference data in another format, all of it or, where a row has a fault, nothing."""
    from humanward.data.formats import WRITERS
    from humanward.data.formats.converting import Conversion

    work = Conversion(source, to, leave_out)
    container = container_for(to, WRITERS[to].containers, out)
    check_place(out)
    with bar("check") as shown:
        work.check(shown.to)
    with destination(out) as file, bar("write", work.kinds.total()) as shown:
        done = work.write(file, container, shown.to)
    told = {
        "source": source, "file": str(out), "format": to, "labels": dict(work.kinds), "rows": done.rows, "left_out": work.left_out,
        "skipped": work.skipped,
    }  # fmt: skip
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    labels = ", ".join(f"{count:,} {kind}" for kind, count in work.kinds.items())
    left = f"; {work.left_out:,} labels that {to} cannot hold were left out" if work.left_out else ""
    skipped = f"; {work.skipped:,} rows with a fault were skipped" if work.skipped else ""
    note(f"{source}: {labels} -> {done.rows:,} rows of {to} in {out}{left}{skipped}")


def report(found: Inspection, split: str | None) -> Iterator[str]:
    """The lines that people read."""
    from humanward.data.inspection import described

    yield f"{found.source}: {described(found)}"
    yield _line("rows", f"{found.rows:,}" + (f", {found.skipped:,} skipped for a fault" if found.skipped else ""))
    responses = ", ".join(f"{count:,} of {number}" for number, count in sorted(found.responses.items()))
    yield _line("labels", f"{_counted(found.labels)}; responses per question: {responses}")
    yield _line("splits", _counted(found.splits))
    yield _line("prompts", f"{found.prompts:,} different" + (f"; {found.conversations:,} conversations" if found.conversations else ""))
    yield _line("", f"in both train and validation: {found.prompts_in_both_splits:,}")
    if found.prompts_in_other_file is not None:
        yield _line("", f"also in {split}: {found.prompts_in_other_file:,}")
    yield from _lengths(found)
    yield _line("ties", f"{found.ties:,}")
    yield _line("copies", f"{found.copies:,} labels say what an earlier one says; {found.contradictions:,} contradict an earlier one")
    yield _line("length bias", _bias(found))
    yield from _form(found)
    kinds = _counted(found.personal) or "none found"
    yield _line("personal data", f"{kinds}, in {found.rows_with_personal:,} rows ({HEURISTIC})")
    yield from _shown(found.example)


def _lengths(found: Inspection) -> Iterator[str]:
    """A small table."""
    rows = {name: quantiles for name, quantiles in found.quantiles().items() if quantiles}
    heads = list(next(iter(rows.values()), {}))
    yield _line(f"length, {found.unit}", "".join(f"{head if head != '100%' else 'longest':>10}" for head in heads))
    for name, quantiles in rows.items():
        yield _line(f"  {name}", "".join(f"{value:>10,}" for value in quantiles.values()))
    if found.beyond_context is not None:
        yield _line("", f"longer than the model's context: {found.beyond_context:,} questions")


def _bias(found: Inspection) -> str:
    bias = found.length_bias()
    if bias is None:
        return "no pairs of different length"
    share = f"{bias['share']:.1%} ({bias['low']:.1%} to {bias['high']:.1%})"
    return f"the chosen response is the longer one in {share} of {bias['pairs']:,} pairs of different length"


def _form(found: Inspection) -> Iterator[str]:
    """What a tokenizer or a template will trip over."""
    if found.prompt_in_response:
        yield _line("form", f"{found.prompt_in_response:,} responses begin with their prompt")
    for name, marks in (("responses", found.marks_in_responses), ("prompts", found.marks_in_prompts)):
        if marks:
            yield _line(f"marks in {name}", ", ".join(f"{json.dumps(mark)} {count:,}" for mark, count in marks.most_common()))
    if found.double_beginnings is not None:
        yield _line("double BOS", f"{found.double_beginnings:,}")
        faults = "; ".join(f"{count:,}: {why}" for why, count in found.template_faults.most_common())
        yield _line("chat template", faults or ("takes all conversations" if found.conversations else "not needed"))


def _shown(example: dict[str, Any]) -> Iterator[str]:
    yield _line("first", f"{example['where']}, {example['kind']}, answer {json.dumps(example['answer'])}, weight {example['weight']:g}")
    for name, text in [("prompt", example["prompt"]), *((f"response {k}", text) for k, text in enumerate(example["responses"]))]:
        yield f"  {name}:"
        yield textwrap.indent(text.strip("\n"), "    | ", lambda line: True)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _line(name: str, text: str) -> str:
    return f"  {name:<20}{text}"


def _task(model: str) -> Task:
    """What makes tokens of texts as the model reads them."""
    from transformers import AutoConfig

    from humanward.data.task import Task
    from humanward.models.loading import context_of, load_tokenizer, resolve

    tokenizer = load_tokenizer(model)
    try:
        context = context_of(AutoConfig.from_pretrained(resolve(model)))
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: no usable config.json ({str(error).splitlines()[0]})") from None
    return Task.plain(tokenizer, context_length=context)
