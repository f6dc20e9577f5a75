"""``humanward label``, ``invite`` and ``labels``: people answer the questions of a run on a page."""

from __future__ import annotations

import json
import socket
import sys
import webbrowser
from asyncio import CancelledError
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from humanward.cli.options import AsJson, Run, example
from humanward.cli.terminal import note
from humanward.errors import UserError
from humanward.storage import RunFolder, write_json

if TYPE_CHECKING:
    from humanward.feedback import Store

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::", "")
ADDRESS = "web.json"
"""Where the page was served last: a file of the run's folder, so that ``invite`` knows what to put before its links."""
PORT = 8000


def register(app: typer.Typer) -> None:
    """Add the commands that go with ``label``, which stands among the stages."""
    app.command("invite", epilog=example("humanward invite runs/own --name Ann"))(invite)
    labels = typer.Typer(
        help="Look after the labels of a run: verify, backup, forget-labeler.", rich_markup_mode=None,
        epilog=example("humanward labels verify runs/own"),
    )  # fmt: skip
    labels.command("verify", epilog=example("humanward labels verify runs/own"))(verify)
    labels.command("backup", epilog=example("humanward labels backup runs/own labels-copy.db"))(backup)
    labels.command("forget-labeler", epilog=example("humanward labels forget-labeler runs/own labeler-7"))(forget_labeler)
    app.add_typer(labels, name="labels")


def register_label(app: typer.Typer) -> None:
    """Add the command itself."""
    app.command("label", epilog=example("humanward label runs/own"))(label)


def label(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen on. Others than this machine's own need TLS or a proxy.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = PORT,
    name: Annotated[list[str] | None, typer.Option("--public-name", help="A name under which browsers reach the page.")] = None,
    certificate: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate, for https.")] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy of your own in front of it speaks https.")] = False,
    goal: Annotated[int, typer.Option(help="Labels that a labeler is asked for in one sitting.", min=1)] = 50,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser, signed in as admin.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Serve the page whoever the run's labeler is.")] = False,
    stage: Annotated[bool, typer.Option("--stage", help="Do the stage: ask a round's questions and wait; serve no page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a run's questions to its labelers: people get a page, which this command serves until it is stopped.

    For a run whose labeler is people, or with a comparison that asks people, it can run all the time: before the first questions are there
    and beside `humanward loop`, or beside `humanward label --stage`, which puts the questions on the page and waits. For any other
    labeler it does the next stage of the run, which must be this one.
    """
    if stage or not (page or asks_people(run)):
        from humanward.cli.running import run_loop

        if not stage:
            note(f"{run}: its labeler is no person: its questions are answered without a page (--page serves one all the same)")
        run_loop(run, None, only="label", as_json=as_json)
        return
    if (certificate is None) != (key is None):
        raise UserError("--tls-cert and --tls-key belong together; give both")
    if host not in LOOPBACK and certificate is None and not behind_proxy:
        raise UserError(
            f"--host {host}: others could read along: give --tls-cert and --tls-key, or --behind-proxy where a proxy speaks https"
        )
    if (behind_proxy or host in ANYWHERE) and not name:
        raise UserError("--public-name is missing: the name under which browsers reach the page; requests by other names are refused")
    with closing(open_store(run)) as store:
        serve(run, store, Address(host, port, name or [], certificate, key, behind_proxy), goal, open_page=open_page, as_json=as_json)


def invite(
    run: Run,
    role: Annotated[str, typer.Option(help="labeler, researcher or admin.")] = "labeler",
    name: Annotated[str, typer.Option(help="For the eyes of researchers; labels and exports carry a pseudonym.")] = "",
    person: Annotated[str | None, typer.Option(help="A pseudonym: a new link for somebody who is known.", show_default=False)] = None,
    hours: Annotated[float, typer.Option(help="How long the link can be used.", min=0.01)] = 72.0,
    url: Annotated[str | None, typer.Option(help="How browsers reach the page.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Make a link that signs somebody in on the page of `humanward label`, once."""
    with closing(open_store(run)) as store:
        known = store.people.person(person) if person else None
        if known is not None:
            role, name = known.role, known.name
        who, token = store.people.invite(role, name, person, hours)
        store.people.audit("command line", "invite", {"person": who.id, "role": who.role})
    link = f"{(url or served_at(run)).rstrip('/')}/join/{token}"
    if as_json:
        print(json.dumps({"run": str(run), "person": who.id, "role": who.role, "link": link}))
        return
    note(f"{who.id}: the link works once, within {hours:g} hours; an older one of theirs works no more")
    print(link)


def verify(run: Run, as_json: AsJson = False) -> None:
    """Check that no label was changed, lost or added behind the store's back."""
    with closing(open_store(run)) as store:
        faults = store.verify()
        labels = store.counts().labels
    if as_json:
        print(json.dumps({"run": str(run), "labels": labels, "faults": faults}))
    else:
        for fault in faults:
            print(fault)
        note(f"{run}: {labels} labels, {len(faults)} faults")
    if faults:
        raise typer.Exit(3)


def backup(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Copy the label store while others work with it."""
    with closing(open_store(run)) as store:
        store.backup(file)
    print(json.dumps({"run": str(run), "backup": str(file)}) if as_json else file)


def forget_labeler(
    run: Run, person: Annotated[str, typer.Argument(metavar="PSEUDONYM", help="Such as labeler-7.")], as_json: AsJson = False
) -> None:
    """Drop a person's name, sessions and invites for good. Their labels stay, under the pseudonym."""
    with closing(open_store(run)) as store:
        store.people.forget(person)
        store.people.audit("command line", "forget", {"person": person})
        kept = store.labels_by([person])[person]
    if as_json:
        print(json.dumps({"run": str(run), "forgotten": person, "labels": kept}))
    else:
        note(f"{person}: forgotten; {kept} labels stay")


def settings_of(run: Path) -> dict[str, Any]:
    """config.yaml of a run as plain values."""
    from humanward.config.yaml_text import read_layer

    folder = RunFolder(run)
    if not folder.started:
        raise UserError(f"{run}: no run here yet; make one with `humanward init {run} --labeler people` or `humanward loop {run} …`")
    return read_layer(folder.config).values


def asks_people(run: Path) -> bool:
    """Whether somebody may be needed: the run's labeler is people, or a comparison without a result asks them."""
    if settings_of(run).get("labeler") == "people":
        return True
    return any(_asks_people(folder) for folder in run.glob("comparisons/*") if not (folder / "results.json").exists())


def _asks_people(comparison: Path) -> bool:
    from humanward.errors import RunError
    from humanward.storage import read_json

    try:
        return read_json(comparison / "settings.json")["labeler"] == "people"
    except (RunError, KeyError, TypeError):
        return False


def open_store(run: Path) -> Store:
    """The label store of a run."""
    from humanward.feedback import Store

    settings = settings_of(run)
    labels = settings.get("labels")
    share = labels.get("repeat_share", 0.0) if isinstance(labels, dict) else 0.0
    return Store(store_address(run), repeat_share=share if settings.get("labeler") == "people" else 0.0)


def store_address(run: Path) -> str | Path:
    """Where the labels of a folder are, or would be: a file, or a database that its settings name."""
    folder = RunFolder(run)
    return (settings_of(run).get("label_store") if folder.started else None) or folder.labels


class Address:
    """Where the page is served, and how browsers reach it."""

    def __init__(
        self, host: str, port: int, names: list[str], certificate: Path | None = None, key: Path | None = None, behind_proxy: bool = False
    ) -> None:  # fmt: skip
        self.host, self.names, self.certificate, self.key, self.behind_proxy = host, names, certificate, key, behind_proxy
        for file in (certificate, key):
            if file is not None and not file.is_file():
                raise UserError(f"{file}: no such file")
        self.socket = bind(host, port)
        self.port: int = self.socket.getsockname()[1]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names that a request may call the server by."""
        own = [] if self.host in ANYWHERE else [f"[{self.host}]" if ":" in self.host else self.host]
        return tuple(dict.fromkeys(name.lower() for name in ("127.0.0.1", "localhost", "[::1]", *own, *self.names)))

    @property
    def url(self) -> str:
        """What to put before a path."""
        if self.behind_proxy and self.names:
            return f"https://{self.names[0]}"
        name = self.names[0] if self.names else self.hosts[-1] if self.host not in (*LOOPBACK, *ANYWHERE) else "127.0.0.1"
        return f"{'https' if self.certificate else 'http'}://{name}:{self.port}"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a link is printed only when it works."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another, or --port 0 for any free one") from None
    return made


def serve(run: Path, store: Store, address: Address, goal: int, *, open_page: bool = False, as_json: bool = False) -> None:
    """Serve the page of a run until a signal comes."""
    import logging

    import uvicorn

    from humanward.web import WebSettings, create_app, read_secret

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    settings = WebSettings(
        run=run, title=f"Humanward · {run.resolve().name}", goal=goal, hosts=address.hosts, behind_proxy=address.behind_proxy,
        tls=address.certificate is not None, secret=read_secret(run),
    )  # fmt: skip
    app = create_app(store, settings)
    write_json(run / ADDRESS, {"url": address.url})
    link = admin_link(store, address.url, fresh=open_page)
    say_where(run, store, address.url, link, as_json=as_json)
    if open_page and link:
        webbrowser.open(link)
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, proxy_headers=False, ws="none",
        ssl_certfile=address.certificate, ssl_keyfile=address.key, timeout_graceful_shutdown=4,
    )  # fmt: skip
    # Requests that hang are cut off when the server leaves, which uvicorn says in one line; the traceback of each says nothing more.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], CancelledError)))
    uvicorn.Server(config).run(sockets=[address.socket])


def admin_link(store: Store, url: str, *, fresh: bool) -> str | None:
    """A sign-in link for the admin, as long as none has ever signed in, or where one is asked for."""
    admins = [person.id for person in store.people.all() if person.role == "admin" and not person.disabled]
    came_in = any(line.action == "sign-in" and line.who in admins for line in store.people.audit_log(100_000))
    if came_in and not fresh:
        return None
    person, token = store.people.invite("admin", "", admins[0] if admins else None)
    store.people.audit("command line", "invite", {"person": person.id, "role": person.role})
    return f"{url}/join/{token}"


def say_where(run: Path, store: Store, url: str, link: str | None, *, as_json: bool) -> None:
    """What to open, and how others come in."""
    if as_json:
        print(json.dumps({"run": str(run), "url": url, "link": link}), flush=True)
        return
    counts = store.counts()
    waiting = f"{counts.labels} of {counts.wanted} labels" if counts.questions else "no questions yet: they come with round 1"
    note(f"{run}: {url} ({waiting})")
    if link:
        note("sign in as admin, once, with:")
        print(link, flush=True)
    note(f"invite a labeler: humanward invite {run} --name Ann")


def served_at(run: Path) -> str:
    """Where the page of a run was served last."""
    from humanward.errors import RunError
    from humanward.storage import read_json

    try:
        return str(read_json(run / ADDRESS)["url"])
    except (RunError, KeyError, TypeError):
        return f"http://127.0.0.1:{PORT}"
