"""A private PostgreSQL server in a temporary folder, for tests and benches. It speaks through a unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_USERS = ("postgres", "nobody")


class UnavailableError(Exception):
    """Why there can be no server here."""


class Cluster:
    """initdb, pg_ctl, and an address for each store. ``with Cluster() as cluster: Store(cluster.address("name"))``."""

    def __init__(self, *, fsync: bool = False) -> None:
        """fsync: False is faster, and safe for everything but a crash of the whole machine."""
        self._bin, self._user = find_programs(), run_as()
        self.folder = Path(tempfile.mkdtemp(prefix="humanward-pg-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", self.data, "-U", "humanward", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8")
        settings = {"listen_addresses": "''", "unix_socket_directories": f"'{self.folder}'", "max_connections": 200}
        if not fsync:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "start")

    def stop(self, mode: str = "immediate") -> None:
        """mode: fast says goodbye to the clients; immediate leaves a recovery to the next start."""
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """kill -9 of the whole server."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        pids = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while any(_runs(pid) for pid in pids):
            time.sleep(0.01)
        for lock in (self.data / "postmaster.pid", *self.folder.glob(".s.PGSQL.*")):
            lock.unlink()  # the pid in it looks alive as long as nobody has collected it

    def address(self, schema: str = "public") -> str:
        """A database URL whose tables live in a schema of their own, which is made when it is not there."""
        self._run("psql", "-h", self.folder, "-U", "humanward", "-qc", f"CREATE SCHEMA IF NOT EXISTS {schema}", "postgres")
        return f"postgresql://humanward@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"

    def _run(self, program: str, *arguments: Any) -> None:
        command = [str(self._bin / program), *map(str, arguments)]
        if self._user:
            command = ["runuser", "-u", self._user, "--", *command]
        # A file, not a pipe: the server inherits it and would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd="/", check=False)
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{program}: {output.read().decode(errors='replace')}")


def _runs(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def find_programs() -> Path:
    """The folder of the newest initdb."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    usual = shutil.which("pg_ctl") and shutil.which("initdb")
    if not found and not usual:
        raise UnavailableError("no PostgreSQL is installed: initdb was not found (Debian: apt-get install postgresql)")
    return found[-1].parent if found else Path(str(usual)).resolve().parent


def run_as() -> str | None:
    """PostgreSQL refuses to run as root: a system user then, else whoever we are."""
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        if shutil.which("runuser"):
            return name
    raise UnavailableError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
