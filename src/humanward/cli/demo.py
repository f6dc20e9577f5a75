"""``humanward demo``: the whole loop with what ships inside the package, labelled by a program or by whoever sits in front of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from humanward.cli.label import open_store
from humanward.cli.options import AsJson, Asked, Seed, example
from humanward.cli.running import run_loop
from humanward.cli.terminal import is_main_process, note
from humanward.errors import RunError, UserError
from humanward.storage import RunFolder

if TYPE_CHECKING:
    from humanward.rounds import LoopConfig

FOLDER = Path("runs/demo")
PEOPLE_FOLDER = Path("runs/demo-people")
PAGE_LOG = "page.log"
"""What the page's server says, in the run's folder."""
SHOWN = 4
_PARENT_DEATH_SIGNAL = 1
HONESTLY = (
    "Sixty labels teach a model of this size what stands on the surface: length, punctuation, some words. It takes hundreds until it "
    "learns what a text says."
)
YOU = "you"
"""The name of the one labeler."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", epilog=example("humanward demo runs/demo --quick"))(demo)


def demo(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER] [NAME=VALUE]...", help=f"The run's folder ({FOLDER}), and settings.", show_default=False),
    ] = None,
    labeler: Annotated[str | None, typer.Option(help="people: you, on a page; else a mock labeler.", show_default=False)] = None,
    check: Annotated[int, typer.Option(min=0, help="With people: blind pairs, old against new, at the end at most.")] = 20,
    seed: Seed = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest run: does it work here? It learns nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop with the embedded model and prompts, labelled by a mock labeler, and write a report.

    With --labeler people a page opens, asks about sixty questions, and shows what the model made of your taste.
    The same command again goes on with an unfinished run.
    """
    given = list(words or [])
    people = labeler == "people"
    folder = Path(given.pop(0)) if given and "=" not in given[0] else PEOPLE_FOLDER if people else FOLDER
    preset = "demo_quick" if quick else "demo_people" if people else "demo"
    config = Asked(preset=preset, labeler=labeler, seed=seed, overrides=given).config()
    if not people or not is_main_process():
        run_loop(folder, config, as_json=as_json)
        return
    _write_settings(folder, config)
    with page(folder) as link:
        note(f"your page; the link works once, give the command again for another: {link}")
        if not as_json and _has_screen():
            webbrowser.open(link)
        run_loop(folder, config, as_json=as_json)
        if not as_json:
            show_samples(folder)
        if check:
            blind_check(folder, check)


def _write_settings(folder: Path, config: LoopConfig) -> None:
    """The page needs them before the loop begins."""
    from humanward.config import dump_yaml
    from humanward.rounds import Loop
    from humanward.rounds.stages import check_inputs
    from humanward.storage.files import write_bytes

    run = RunFolder(folder)
    if not run.started:
        loop = Loop(folder, config)
        check_inputs(loop.context)
        run.create()
        write_bytes(run.config, dump_yaml(loop.config).encode())


@contextmanager
def page(folder: Path) -> Iterator[str]:
    """The page of a run in a process of its own while the block runs; gives a link that signs its first user in."""
    import json

    command = [sys.executable, "-m", "humanward", "label", str(folder), "--port", "0", "--json"]
    with open(folder / PAGE_LOG, "ab") as log:
        # careful: a session of its own, so that Ctrl-C reaches the loop alone, which stops it in the end.
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, preexec_fn=_end_with_parent)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            said = (folder / PAGE_LOG).read_text(errors="replace").splitlines()
            raise RunError(f"the page did not start: {said[-1] if said else 'it said nothing'} ({folder / PAGE_LOG})")
        with closing(open_store(folder)) as store:
            known = next((one.id for one in store.people.all() if one.name == YOU and not one.disabled), None)
            _, token = store.people.invite("labeler", YOU, known)
        yield f"{json.loads(line)['url']}/join/{token}"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if server.stdout is not None:
            server.stdout.close()


def _end_with_parent() -> None:
    """Where the system can (Linux): the child gets SIGTERM when its parent dies, however it dies."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _has_screen() -> bool:
    """Whether a browser could be opened that does not take over the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def show_samples(folder: Path) -> None:
    """Some prompts with what the model wrote before and after, drawn by lot."""
    from humanward.records import read_jsonl
    from humanward.rounds import LoopConfig

    tuned = LoopConfig.load(folder / "config.yaml").method
    print("\nWhat it wrote before (-) and writes now (+), prompts drawn by lot:")
    for number, (_, row) in enumerate(read_jsonl(folder / "evaluation/samples.jsonl")):
        if number < SHOWN:
            print(f"\n  {row['prompt']}\n  - {row['reference'].strip()}\n  + {row[tuned].strip()}")
    note(HONESTLY)


def blind_check(folder: Path, pairs: int) -> None:
    """Ask which of both is better, without saying which is which, and say what came out."""
    from humanward.cli.compare import in_words
    from humanward.cli.progress import Bars
    from humanward.report import build_report
    from humanward.rounds import CompareConfig, HeadToHead, Loop
    from humanward.storage import StopFlag

    note(f"on the page: at most {pairs} blind pairs, old against new")
    bars = Bars(lambda: None)
    with StopFlag() as stop, bars:
        loop = Loop(folder, progress=bars, stop=stop, tell=bars.tell)
        try:
            config = CompareConfig(maximum=pairs, precise=0.0)
            results = HeadToHead(loop.context, config).run()
        except UserError as error:
            note(f"no blind check: {error}")
            return
    build_report(folder)
    note("\n".join(in_words(results)))
