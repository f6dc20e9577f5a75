"""Databases that an older version made."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect

from humanward.feedback import Store
from humanward.feedback.database import sqlite_module

DATA = Path(__file__).parent / "data"
SNAPSHOT = "171ef9dfec7f9c29ff13fb2f2cdc6c9376b9176a2a5fc855b3201df573c526b4"  # what the older version said


def old_database(folder: Path) -> Path:
    path = folder / "labels.db"
    path.write_bytes(gzip.decompress((DATA / "schema1.db.gz").read_bytes()))
    return path


def shape(engine: Engine) -> dict[str, Any]:
    """Tables, columns in the order of their names, constraints, indexes; in the database's own words where it has them."""
    found = inspect(engine)
    shape: dict[str, Any] = {"views": found.get_view_names()}
    for name in found.get_table_names():
        columns = sorted((c["name"], str(c["type"]), c["nullable"], c["default"], str(c.get("computed"))) for c in found.get_columns(name))
        indexes = sorted(
            (i["name"], i["column_names"], i["unique"], *map(str, i.get("dialect_options", {}).values())) for i in found.get_indexes(name)
        )
        unique = sorted(c["column_names"] for c in found.get_unique_constraints(name))
        checks = sorted(c["sqltext"] for c in found.get_check_constraints(name))
        shape[name] = (columns, found.get_pk_constraint(name)["constrained_columns"], unique, checks, indexes)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            rest = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('trigger', 'view') ORDER BY name"
        else:
            rest = (
                "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal "
                "AND c.relnamespace = current_schema()::regnamespace UNION SELECT pg_get_viewdef('current_events'::regclass)"
            )
        words = [" ".join(" ".join(row).split()) for row in connection.exec_driver_sql(rest)]
        shape["guards"] = sorted(re.sub(r'store_\d+\.|[" ]', "", line) for line in words)
    return shape


def check_upgraded(store: Store) -> None:
    assert store.verify() == []
    assert store.snapshot().sha256 == SNAPSHOT
    assert (store.counts().labels, store.counts().missing, store.counts().leased) == (8, 4, 2)
    assert (store.counts().skipped, store.counts().flagged, store.counts(round=1).skipped) == (2, 1, 2)
    assert [d.question.id for d in store.disputed()] == ["q0"]
    assert [e.seq for e in store.inbox()] == [13, 10, 6, 5]
    assert store.labeler_rows("cy")[0].lengths == (5, 5, 5)
    assert [a.question.id for a in store.held("eve", 9)] == ["q3", "q5", "q6", "q7"]
    assert store.people.invite("labeler", "Ann")
    undone = store.undo("ann", "new")
    assert undone
    assert undone.question.id == "q2"
    assert store.verify() == []


def test_a_database_of_schema_1_is_upgraded_to_what_a_new_one_is(tmp_path: Path) -> None:
    upgraded, new = Store(old_database(tmp_path)), Store(tmp_path / "new.db")
    assert shape(upgraded._database.engine) == shape(new._database.engine)
    check_upgraded(upgraded)
    upgraded.close()
    again = Store(tmp_path / "labels.db")
    assert again.verify() == []
    again.close()
    new.close()


def test_a_postgresql_database_of_schema_1_is_upgraded_too(new_address: Callable[[], str]) -> None:
    address = new_address()
    engine = create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql((DATA / "schema1_postgresql.sql").read_text())
    engine.dispose()
    upgraded, new = Store(address), Store(new_address())
    assert shape(upgraded._database.engine) == shape(new._database.engine)
    check_upgraded(upgraded)
    upgraded.close()
    new.close()


def open_and_die(path: Path, statement: int) -> int:
    """Open a database in a child that kills itself before its n-th statement; returns the child's status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = [statement]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        Store(path)
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_in_mid_migration_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    died = 0
    for statement in range(2, 500, 5):
        path = old_database(tmp_path)
        status = open_and_die(path, statement)
        connection = sqlite_module().connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        version = connection.execute("SELECT value FROM about").fetchone()[0]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        connection.close()
        assert ("tallies" in tables, "old_questions" in tables) == (version == "2", False)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        died += 1
        if died % 4 == 1:
            store = Store(path)
            assert store.snapshot().sha256 == SNAPSHOT
            assert store.verify() == []
            store.close()
        for left in tmp_path.iterdir():
            left.unlink()
    else:
        pytest.fail("the migration has more statements than this test kills")
    assert died >= 10


def test_alembic_is_imported_for_old_databases_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from humanward.feedback import Store; Store(sys.argv[1]).close(); "
        "print('alembic' in sys.modules, 'fastapi' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    for path, expected in ((tmp_path / "new.db", "False False"), (old_database(tmp_path), "True False")):
        said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment, check=True)
        assert said.stdout.strip() == expected
