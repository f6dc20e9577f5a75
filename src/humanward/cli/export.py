"""``humanward export`` and ``humanward import``: labels out of a run and into one, in our format and in those of others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from humanward.cli.label import store_address
from humanward.cli.options import AsJson, Run, example
from humanward.cli.terminal import is_main_process, note, talk
from humanward.errors import UserError
from humanward.storage import RunFolder

if TYPE_CHECKING:
    from humanward.feedback import Store

EXACT = "labels"
"""Our own format."""
ALIASES = {"csv": ("table", "csv"), "parquet": ("table", "parquet")}
"""The table, by the name of its container."""
SUFFIXES = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


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
            "unpaired (prompt, completion, label), ziegler2019 or stiennon2020 (as released by OpenAI).",
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

    suffix = "" if out is None else SUFFIXES.get(Path(out.name.removesuffix(".gz")).suffix, "")
    name = format or (suffix if suffix in ALIASES else EXACT)
    names = [EXACT, *ALIASES, *(writer for writer in WRITERS if writer != "table")]
    if name not in names:
        raise UserError(f"--format {name}: there are {', '.join(names)}")
    if split not in (None, "train", "validation"):
        raise UserError(f"--split {split}: there are train and validation")
    if as_json and out is None:
        raise UserError("--json tells what was written; name the file with --out")
    container = _container(name, suffix)
    store = _store(run)
    try:
        with _destination(out) as file, _bar("export") as bar:
            told = _write(store, file, name, container, Part(round, split), with_names, bar)
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of labels: .jsonl, .json, .csv or .parquet, also .gz.")],
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
    with _bar("check") as bar, Spool(bar.through(_records(folder, file, format, round, labeler, faults))) as spool:
        faults.check()
        folder.create()
        from humanward.feedback import Store

        store = Store(store_address(run))
        try:
            with _bar("import", spool.events) as writing:
                done = import_file(store, spool, source=file.name, faults=faults, progress=writing.to)
        finally:
            store.close()
    told = {"questions": done.questions, "labels": done.labels, "other_events": done.others, "known": done.known}
    if as_json:
        print(json.dumps({"run": str(run), "file": str(file), "format": format or FORMAT} | told))
        return
    known = f"; {done.known} events were there already" if done.known else ""
    others = f" and {done.others} other events" if done.others else ""
    note(f"{file}: {done.labels} labels{others}, {done.questions} new questions{known}")


def _records(folder: RunFolder, file: Path, format: str | None, round: int | None, labeler: str, faults: Any) -> Iterator[Any]:
    from humanward.data.formats import READERS, LabelFile
    from humanward.feedback.exchange import foreign_records, is_exact, read_exact
    from humanward.records.files import InputFile

    names = [EXACT, *ALIASES, *READERS]
    if format is not None and format not in names:
        raise UserError(f"--format {format}: there are {', '.join(names)}")
    if format == EXACT or (format is None and is_exact(InputFile(file))):
        if round is not None:
            raise UserError("--round: a file of our own format says which round each question belongs to")
        return read_exact(InputFile(file, faults))
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


def _write(store: Store, file: IO[bytes], format: str, container: str, part: Any, with_names: bool, bar: _Bar) -> dict[str, Any]:
    from humanward.data.formats import WRITERS, write_labels
    from humanward.feedback import exchange

    names = exchange.names(store) if with_names else None
    bar.total = exchange.label_count(store, part)
    if format == EXACT:
        questions, events = exchange.write_exact(file, store, part, names=names, progress=bar.to)
        return {"questions": questions, "events": events}
    name = ALIASES.get(format, (format,))[0]
    labels = exchange.each_label(store, part, training=name != "table")
    most = exchange.most_responses(store, part) if container == "csv" else 0
    done = write_labels(file, labels, name, container, most_responses=most, names=names, progress=bar.to)
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


def _container(format: str, suffix: str) -> str:
    """What the file is made of; UserError where its name says something else."""
    if format in ALIASES:
        usual = ALIASES[format][1]
    elif format in ("pairs", "unpaired"):
        return suffix if suffix in ("csv", "parquet") else "jsonl"
    else:
        usual = "json" if format == "ziegler2019" else "jsonl"
    if suffix in ("csv", "parquet") and suffix != usual:
        raise UserError(f"--format {format}: is written as {usual}; name the file so, or take --format {suffix}")
    return usual


@contextmanager
def _destination(out: Path | None) -> Iterator[IO[bytes]]:
    """stdout, or a file that appears whole or not at all."""
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from humanward.records.files import whole_file
    from humanward.storage.files import disk_faults

    if out.is_dir():
        raise UserError(f"{out}: this is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it or choose another place")
    with disk_faults(out), whole_file(out) as file:
        yield file


class _Bar:
    """Progress on a terminal, nothing elsewhere: the last line says what was done."""

    def __init__(self, title: str, total: int | None) -> None:
        self.total, self._bars = total, None
        console = talk()
        if console.is_terminal and is_main_process():
            from rich.progress import Progress

            self._bars = Progress(console=console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task(title, total=total)

    def to(self, done: int) -> None:
        """So many are done."""
        if self._bars is not None and done % 500 == 0:
            self._bars.update(self._task, completed=done, total=self.total)

    def through(self, records: Iterator[Any]) -> Iterator[Any]:
        """The records, counted."""
        for number, record in enumerate(records, start=1):
            self.to(number)
            yield record

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()


@contextmanager
def _bar(title: str, total: int | None = None) -> Iterator[_Bar]:
    bar = _Bar(title, total)
    try:
        yield bar
    finally:
        bar.stop()
