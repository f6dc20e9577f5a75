"""Opening the label database: which SQLite library, which journal, and how its errors read on one line."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from humanward.errors import RunError, UserError
from humanward.feedback import schema

SAFE_WAL = (3, 51, 3)
"""Older SQLite libraries can corrupt a database in WAL mode when two connections write and checkpoint at once."""
BUSY_SECONDS = 30
_ADVISORY_LOCK = 0x68756D77


def sqlite_module() -> ModuleType:
    """The newest SQLite binding at hand: the standard one when it is safe in WAL mode, else pysqlite3 when that is installed."""
    if sqlite3.sqlite_version_info >= SAFE_WAL:
        return sqlite3
    try:
        import pysqlite3
    except ImportError:
        return sqlite3
    return pysqlite3


class Database:
    """An engine with two kinds of transaction: ``read`` sees one state throughout, ``write`` is alone, short and durable when it ends."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        """address: a file, or a database URL (sqlite:///…, postgresql+psycopg://…); ":memory:" is a store that dies with the process."""
        self.address = os.fspath(address)
        self._writing = threading.RLock()
        self._pid = os.getpid()
        self.engine = self._make_engine()
        with self.write() as connection:
            schema.metadata.create_all(connection)
            self._check_version(connection)

    @property
    def in_memory(self) -> bool:
        return self.address == ":memory:"

    @contextmanager
    def read(self) -> Generator[Connection]:
        """One consistent state, however many statements."""
        with self._alone_if_in_memory(), self._own_engine().connect() as connection, self._one_line_errors():
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One serial, durable transaction: committed and on disk when the block ends, undone when it raises."""
        engine = self._own_engine().execution_options(humanward_write=True)
        with self._writing, self._one_line_errors(), engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self._own_engine().dispose()

    def _own_engine(self) -> Engine:
        if os.getpid() != self._pid:  # careful: a connection of SQLite must not cross a fork
            self.engine.dispose(close=False)
            self._writing, self._pid = threading.RLock(), os.getpid()
        return self.engine

    @contextmanager
    def _alone_if_in_memory(self) -> Generator[None]:
        if not self.in_memory:
            yield
            return
        with self._writing:
            yield

    def _make_engine(self) -> Engine:
        try:
            url = make_url("sqlite://" if self.in_memory else self.address if "://" in self.address else f"sqlite:///{self.address}")
        except ArgumentError:
            raise UserError(f"{self.address}: not a database address; give a file name or a URL such as sqlite:///labels.db") from None
        if url.get_backend_name() != "sqlite":
            engine = create_engine(url, pool_pre_ping=True)
            event.listen(engine, "begin", _begin_postgresql)
            return engine
        if url.database and not Path(url.database).parent.is_dir():
            raise UserError(f"{url.database}: the folder does not exist; create it or choose another place for the labels")
        module = sqlite_module()
        options: dict[str, Any] = {"poolclass": StaticPool} if self.in_memory else {"pool_size": 8, "max_overflow": 56}
        engine = create_engine(url, module=module, connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS}, **options)
        event.listen(engine, "connect", _Pragmas(wal=module.sqlite_version_info >= SAFE_WAL))
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _check_version(self, connection: Connection) -> None:
        about = schema.about
        found = connection.scalar(select(about.c.value).where(about.c.key == "schema"))
        if found is None:
            connection.execute(about.insert(), {"key": "schema", "value": str(schema.SCHEMA_VERSION)})
        elif found != str(schema.SCHEMA_VERSION):
            raise UserError(f"{self.address}: made by schema {found}, this version reads {schema.SCHEMA_VERSION}: update humanward")

    @contextmanager
    def _one_line_errors(self) -> Generator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if "database or disk is full" in reason:
                free = _free_bytes(Path(self.engine.url.database or "."))
                raise RunError(
                    f"{self.address}: the disk is full: more than {free} bytes needed, {free} bytes free; free some space and start again"
                ) from None
            if "is locked" in reason:
                raise RunError(f"{self.address}: locked by another process for {BUSY_SECONDS} s; end it or try again") from None
            if "not a database" in reason or "unable to open" in reason:
                raise UserError(f"{self.address}: {reason}; name a label database or a new file") from None
            if any(sign in reason for sign in ("disk I/O error", "readonly", "malformed", "connection")):
                raise RunError(f"{self.address}: {reason}") from None
            raise


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path.absolute().parent)
    return disk.f_bavail * disk.f_frsize


class _Pragmas:
    """Run on every new SQLite connection."""

    def __init__(self, *, wal: bool) -> None:
        self.journal = "wal" if wal else "delete"

    def __call__(self, connection: Any, record: object) -> None:
        connection.isolation_level = None  # the transactions are begun below, not by the driver
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")
        mode = self._set_journal(cursor)
        if mode not in (self.journal, "memory"):
            raise RunError(f"the label database stays in journal mode {mode}, {self.journal} is needed; close other programs that use it")
        cursor.close()

    def _set_journal(self, cursor: Any) -> str:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return cursor.execute(f"PRAGMA journal_mode={self.journal}").fetchone()[0]
            except Exception as error:  # changing the journal does not wait for other processes by itself
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("humanward_write") else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # The hash chain is one total order, so writers take turns here as they do in SQLite.
    if connection.get_execution_options().get("humanward_write"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
