"""Opening the label database: which SQLite library, which journal, and how its errors read on one line."""

from __future__ import annotations

import functools
import importlib.util
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from humanward.errors import RunError, UserError
from humanward.feedback import schema

P = ParamSpec("P")
T = TypeVar("T")

SAFE_WAL = (3, 51, 3)
"""Older SQLite libraries can corrupt a database in WAL mode when two connections write and checkpoint at once."""
BUSY_SECONDS = 30
RETRY_SECONDS = 10
"""How long a lost database server is waited for."""
_ADVISORY_LOCK = 0x68756D77
# Of a few rows among millions PostgreSQL expects too few, with fresh or without statistics, and would read and sort whole tables for them.
_BY_INDEX = "; ".join(
    f"SET LOCAL {name} = off"
    for name in ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin", "enable_material", "enable_sort", "jit")
)
_LOST = ("08", "57P01", "57P02", "57P03")  # SQLSTATEs of connections that fail or are ended by the server


def sqlite_module() -> ModuleType:
    """The newest SQLite binding at hand: the standard one when it is safe in WAL mode, else pysqlite3 when that is installed."""
    if sqlite3.sqlite_version_info >= SAFE_WAL:
        return sqlite3
    try:
        import pysqlite3
    except ImportError:
        return sqlite3
    return pysqlite3


class LostConnectionError(RunError):
    """The database server went away; whether the transaction was kept is unknown."""


def retried(method: Callable[P, T]) -> Callable[P, T]:
    """Do it again when the connection is lost. Only for what may be done twice: a client_event_id makes the second time a no-op."""

    @functools.wraps(method)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return method(*args, **kwargs)
            except LostConnectionError:
                if time.monotonic() > deadline:
                    raise

    return again


class Database:
    """An engine with two kinds of transaction: ``read`` sees one state throughout, ``write`` is alone, short and durable when it ends."""

    def __init__(self, address: str | os.PathLike[str], patience: float | None = None) -> None:
        """address: a file, or a URL (sqlite:///…, postgresql://…); ":memory:" is a store that dies with the process.

        patience: how long a transaction waits for a server that is away, seconds; None: RETRY_SECONDS.
        """
        self.address = os.fspath(address)
        self._writing = threading.RLock()
        self._pid, self._patience = os.getpid(), 0.0
        self.engine = self._make_engine()
        with self.read() as connection:
            version = _version(connection)
        if version != schema.SCHEMA_VERSION:
            with self.write() as connection:
                self._make_schema(connection)
        self._patience = RETRY_SECONDS if patience is None else patience

    @property
    def in_memory(self) -> bool:
        return self.address == ":memory:"

    @contextmanager
    def read(self, *, whole: bool = False) -> Generator[Connection]:
        """One consistent state, however many statements. ``whole``: they read most of a table, not some rows by an index."""
        engine = self._own_engine().execution_options(humanward_whole=whole)
        with self._alone_if_in_memory(), self._one_line_errors(), self._begun(engine) as connection:
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One serial, durable transaction: committed and on disk when the block ends, undone when it raises."""
        engine = self._own_engine().execution_options(humanward_write=True)
        with self._writing, self._one_line_errors(), self._begun(engine) as connection:
            yield connection

    @contextmanager
    def _begun(self, engine: Engine) -> Generator[Connection]:
        """A transaction, once there is a server to begin it."""
        deadline = time.monotonic() + self._patience
        while True:
            stack = ExitStack()
            try:
                connection = stack.enter_context(engine.connect())
                stack.enter_context(connection.begin())
                break
            except DBAPIError as error:
                stack.close()
                if not _is_lost(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        with stack:
            yield connection

    def close(self) -> None:
        """After what another thread is doing with the one connection of a database in memory: SQLite does not outlive that."""
        with self._alone_if_in_memory():
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
        if url.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
            self.address = url.render_as_string(hide_password=True)  # it stands in messages
            if importlib.util.find_spec("psycopg") is None:
                raise UserError(f"{self.address}: needs the package psycopg: pip install 'psycopg[binary]'")
            engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=8, max_overflow=56)
            event.listen(engine, "begin", _begin_postgresql)
            return engine
        if url.drivername != "sqlite":
            raise UserError(f"{url.drivername}: labels are kept in SQLite or PostgreSQL; give a file name or postgresql://user@host/name")
        if url.database and not Path(url.database).parent.is_dir():
            raise UserError(f"{url.database}: the folder does not exist; create it or choose another place for the labels")
        module = sqlite_module()
        options: dict[str, Any] = {"poolclass": StaticPool} if self.in_memory else {"pool_size": 8, "max_overflow": 56}
        engine = create_engine(url, module=module, connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS}, **options)
        event.listen(engine, "connect", _Pragmas(wal=module.sqlite_version_info >= SAFE_WAL))
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _make_schema(self, connection: Connection) -> None:
        """Create the tables, or bring those of an older version up to date; all of it or nothing."""
        found = _version(connection)
        if found is None:
            schema.metadata.create_all(connection)
            connection.execute(schema.about.insert(), {"key": "schema", "value": str(schema.SCHEMA_VERSION)})
            connection.execute(schema.alembic_version.insert(), {"version_num": str(schema.SCHEMA_VERSION)})
        elif found > schema.SCHEMA_VERSION:
            raise UserError(f"{self.address}: made by schema {found}, this version reads {schema.SCHEMA_VERSION}: update humanward")
        elif found < schema.SCHEMA_VERSION:
            from humanward.feedback.migrations import upgrade  # Alembic takes longer to import than the rest of the house

            upgrade(connection)

    def scrub(self) -> None:
        """Leave nothing in the files of what was deleted or overwritten."""
        if self.engine.dialect.name == "sqlite" and not self.in_memory:
            with self._writing, self._one_line_errors(), self._own_engine().connect() as connection:
                connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def backup(self, path: Path) -> None:
        """Copy one consistent state to a new file while others read and write; it appears whole, and on disk, or not at all."""
        if self.engine.dialect.name != "sqlite":
            raise UserError(f"{self.address}: back up a PostgreSQL database with pg_dump --format=custom --file {path}")
        if path.exists():
            raise UserError(f"{path}: is there already; choose a new name for the backup")
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            with self._alone_if_in_memory(), self._one_line_errors(), self._own_engine().connect() as connection:
                copy = sqlite_module().connect(temporary)
                try:
                    source: Any = connection.connection.driver_connection
                    source.backup(copy)
                    copy.execute("PRAGMA journal_mode=delete")  # one file, without a log beside it
                finally:
                    copy.close()
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        except (OSError, sqlite_module().Error) as error:
            raise RunError(f"{path}: cannot write the backup: {error}; free some space or choose another folder") from None
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _one_line_errors(self) -> Generator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if _is_lost(error):
                raise LostConnectionError(f"{self.address}: the database server does not answer: {reason}") from None
            if "database or disk is full" in reason:
                free = _free_bytes(Path(self.engine.url.database or "."))
                raise RunError(
                    f"{self.address}: the disk is full: more than {free} bytes needed, {free} bytes free; free some space and start again"
                ) from None
            if getattr(error.orig, "sqlstate", None) == "53100":
                raise RunError(f"{self.address}: the disk of the database server is full; free some space and try again") from None
            if getattr(error.orig, "sqlstate", None) == "55P03":
                raise RunError(f"{self.address}: locked for {BUSY_SECONDS} s by another program; end it or try again") from None
            if "is locked" in reason:
                raise RunError(f"{self.address}: locked by another process for {BUSY_SECONDS} s; end it or try again") from None
            if "not a database" in reason or "unable to open" in reason:
                raise UserError(f"{self.address}: {reason}; name a label database or a new file") from None
            if any(sign in reason for sign in ("disk I/O error", "readonly", "malformed", "connection")):
                raise RunError(f"{self.address}: {reason}") from None
            raise


def _is_lost(error: DBAPIError) -> bool:
    """Whether PostgreSQL's connection failed: a refusal has an SQLSTATE, a dead socket none."""
    if not type(error.orig).__module__.startswith("psycopg") or not isinstance(error, (OperationalError, InterfaceError)):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith(_LOST)


def _version(connection: Connection) -> int | None:
    """The schema of the database, None for a new one."""
    if not inspect(connection).has_table(schema.about.name):
        return None
    found = connection.scalar(select(schema.about.c.value).where(schema.about.c.key == "schema"))
    return int(found) if found else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        cursor.execute("PRAGMA secure_delete=ON")  # a name that is to be forgotten must not stay in a free page
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
    options = connection.get_execution_options()
    first = ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"]
    if options.get("humanward_write"):
        # The hash chain is one total order, so writers take turns here as they do in SQLite.
        first = [f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'", f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"]
    if not options.get("humanward_whole"):
        first.append(_BY_INDEX)
    connection.exec_driver_sql("; ".join(first))
