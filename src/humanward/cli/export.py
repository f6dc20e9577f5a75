"""``humanward export`` and ``humanward import``: labels out of a run and into one, in our format and in those of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from humanward.cli.files import Bar, bar, container_for, destination, suffix_of
from humanward.cli.label import store_address
from humanward.cli.options import AsJson, Run, example
from humanward.cli.terminal import note
from humanward.errors import UserError
from humanward.storage import RunFolder

if TYPE_CHECKING:
    from humanward.feedback import Store

EXACT = "labels"
"""Our own format."""
ALIASES = {"csv": ("table", "csv"), "parquet": ("table", "parquet")}
"""The table, by the name of its container."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export", epilog=example("humanward export runs/demo --format pairs --out pairs.jsonl"))(export)
    app.command("import", epilog=example("humanward import runs/other pairs.jsonl"))(import_labels)


def export(
    run: Run,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="labels (exact, for import), csv or parquet (a row per label), pairs (prompt, chosen, rejected), "
            "unpaired (prompt, completion, label), ziegler2019, stiennon2020, …: docs/data.md.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; else stdout. .gz compresses; pairs.parquet is Parquet.")
    ] = None,
    round: Annotated[int | None, typer.Option(help="Only questions of this round.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="Only questions of train or validation.", show_default=False)] = None,
    with_names: Annotated[bool, typer.Option("--with-names", help="Add the labelers' names; else only pseudonyms leave the run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the labels of a run to a file, while people go on labelling."""
    from humanward.data.formats import WRITERS
    from humanward.feedback.exchange import Part

    suffix = suffix_of(out)
    name = format or (suffix if suffix in ALIASES else EXACT)
    names = [EXACT, *ALIASES, *(writer for writer in WRITERS if writer != "table")]
    if name not in names:
        raise UserError(f"--format {name}: there are {', '.join(names)}")
    if split not in (None, "train", "validation"):
        raise UserError(f"--split {split}: there are train and validation")
    if as_json and out is None:
        raise UserError("--json tells what was written; name the file with --out")
    container = _container(name, out)
    store = _store(run)
    try:
        with destination(out) as file, bar("export") as shown:
            told = _write(store, file, name, container, Part(round, split), with_names, shown)
        asked = {"format": name, "round": round, "split": split, "with_names": with_names}
        store.people.audit("command line", "export", {part: value for part, value in asked.items() if value not in (None, False)})
    finally:
        store.close()
    if as_json:
        print(json.dumps({"run": str(run), "file": str(out), "format": name} | told))
    else:
        note(_told(told, str(out or "stdout")))


def import_labels(
    run: Run,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Labels: .jsonl, .json, .csv or .parquet, also .gz; FILE?kind=pair, …")],
    format: Annotated[str | None, typer.Option(metavar="NAME", help="Else it is told by the columns.", show_default=False)] = None,
    round: Annotated[int | None, typer.Option(help="The round of the questions, where the file is not of our own format.")] = None,
    labeler: Annotated[str, typer.Option(metavar="NAME", help="Who gave labels of a file that names nobody.")] = "file",
    as_json: AsJson = False,
) -> None:
    """Add the labels of a file to a run: all of them, or none where one has a fault. The same file again adds nothing."""
    from humanward.feedback.exchange import FORMAT, Spool, import_file
    from humanward.records.files import Faults

    folder = RunFolder(run)
    faults = Faults()
    with bar("check") as reading, Spool(reading.through(_records(folder, file, format, round, labeler, faults))) as spool:
        faults.check()
        folder.create()
        from humanward.feedback import Store

        store = Store(store_address(run))
        try:
            with bar("import", spool.events) as writing:
                done = import_file(store, spool, source=Path(file).name, faults=faults, progress=writing.to)
        finally:
            store.close()
    told = {"questions": done.questions, "labels": done.labels, "other_events": done.others, "known": done.known}
    if as_json:
        print(json.dumps({"run": str(run), "file": str(file), "format": format or FORMAT} | told))
        return
    known = f"; {done.known} events were there already" if done.known else ""
    others = f" and {done.others} other events" if done.others else ""
    note(f"{file}: {done.labels} labels{others}, {done.questions} new questions{known}")


def _records(folder: RunFolder, file: str | Path, format: str | None, round: int | None, labeler: str, faults: Any) -> Iterator[Any]:
    from humanward.data.formats import READERS, LabelFile
    from humanward.feedback.exchange import foreign_records, is_exact, read_exact
    from humanward.records.files import InputFile

    names = [EXACT, *ALIASES, *READERS]
    if format is not None and format not in names:
        raise UserError(f"--format {format}: there are {', '.join(names)}")
    if format == EXACT or (format is None and Path(file).is_file() and is_exact(InputFile(Path(file)))):
        if round is not None:
            raise UserError("--round: a file of our own format says which round each question belongs to")
        return read_exact(InputFile(Path(file), faults))
    found = LabelFile(file, ALIASES.get(format or "", (format,))[0], _decoder(folder), faults=faults)
    return foreign_records(found.labeled(), faults, round=round, labeler=labeler)


def _decoder(folder: RunFolder) -> Callable[[Any], str] | None:
    """The text of token ids by the run's tokenizer, which is loaded when the first ids come."""
    if not folder.started:
        return None
    loaded: list[Any] = []

    def decode(tokens: Any) -> str:
        if not loaded:
            from transformers import AutoTokenizer

            from humanward.models.loading import resolve
            from humanward.rounds import LoopConfig

            loaded.append(AutoTokenizer.from_pretrained(resolve(LoopConfig.load(folder.config).model)))
        if max(tokens) >= len(loaded[0]):
            raise ValueError("no such token")
        return loaded[0].decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode


def _write(store: Store, file: IO[bytes], format: str, container: str, part: Any, with_names: bool, shown: Bar) -> dict[str, Any]:
    from humanward.data.formats import WRITERS, write_labels
    from humanward.feedback import exchange

    names = exchange.names(store) if with_names else None
    shown.total = exchange.label_count(store, part)
    if format == EXACT:
        questions, events = exchange.write_exact(file, store, part, names=names, progress=shown.to)
        return {"questions": questions, "events": events}
    name = ALIASES.get(format, (format,))[0]
    labels = exchange.each_label(store, part, training=name != "table")
    most = exchange.most_responses(store, part) if container == "csv" else 0
    done = write_labels(file, labels, name, container, most_responses=most, names=names, progress=shown.to)
    told: dict[str, Any] = {"labels": done.labels, "rows": done.rows}
    if done.left_out:
        told["left_out"] = f"{done.left_out} {WRITERS[name].left_out}"
    apart = exchange.left_out(store, part)
    return told | ({"gold_and_repeats": apart} if apart else {})


def _told(told: dict[str, Any], file: str) -> str:
    if "events" in told:
        return f"{told['questions']} questions and {told['events']} events -> {file}"
    left = f"; left out: {told['left_out']}" if "left_out" in told else ""
    apart = (
        f"; {told['gold_and_repeats']} answers to gold questions and repeats are only in the exact format"
        if "gold_and_repeats" in told
        else ""
    )
    return f"{told['labels']} labels, {told['rows']} rows -> {file}{left}{apart}"


def _store(run: Path) -> Store:
    address = store_address(run)
    if isinstance(address, Path) and not address.exists():
        raise UserError(f"{run}: no labels in it ({address.name} is missing)" if run.is_dir() else f"{run}: no such run folder")
    from humanward.feedback import Store

    return Store(address)


def _container(format: str, out: Path | None) -> str:
    """What the file is made of; UserError where its name says something else."""
    from humanward.data.formats import WRITERS

    if format in ALIASES:
        return container_for(format, ALIASES[format][1:], out)
    return container_for(format, ("jsonl",) if format == EXACT else WRITERS[format].containers, out)
