"""The one way to open a connection: set, read back, closed whatever happens, and errors that say what to do."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from damage import held, untouched
from patience import HANGING_S

from abathur_nb.config.settings import Settings
from abathur_nb.errors import BusyError, MisuseError, RefusedError
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import connect, connection_pragmas, explain_error, lock_owners, pragma


def assert_no_connection_is_left() -> None:
    for thread in threading.enumerate():
        if "connection_worker" in thread.name:
            thread.join(HANGING_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("mode", ["ro", "rw"])
@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
async def test_every_pragma_is_set_and_reads_back(database: Settings, mode: str, synchronous: str) -> None:
    async with connect(database.db_path, 77, mode=mode, synchronous=synchronous) as conn:  # type: ignore[arg-type]
        found = {name: await pragma(conn, name) for name in connection_pragmas(77, "FULL")}
        assert found == {
            "busy_timeout": 77,
            "foreign_keys": 1,
            "synchronous": {"NORMAL": 1, "FULL": 2}[synchronous],
            "wal_autocheckpoint": 1000,
            "cache_size": -64_000,
            "temp_store": 2,
            "mmap_size": 268_435_456,
        }
        assert await pragma(conn, "query_only") == (mode == "ro")
        assert await pragma(conn, "journal_mode") == "wal"
        # Before 3.41 no CHECK could call json_valid without it; a database that is read-only has none for SQLite.
        assert await pragma(conn, "trusted_schema") == (mode == "rw" and sqlite3.sqlite_version_info < (3, 41))
        assert await pragma(conn, "integrity_check") == "ok"
        assert not conn.in_transaction


async def test_a_read_only_connection_cannot_write_and_leaves_the_file_as_it_is(database: Settings) -> None:
    with untouched(database.db_path):
        async with connect(database.db_path, database.busy_timeout_ms) as conn:
            for statement in (
                "DELETE FROM audit",
                "PRAGMA user_version = 9",
                "CREATE TABLE x (y)",
                "PRAGMA journal_mode=DELETE",
            ):
                with pytest.raises(sqlite3.OperationalError):
                    await conn.execute_fetchall(statement)
            await conn.execute_fetchall("PRAGMA query_only = OFF")  # it is read-only even so
            with pytest.raises(sqlite3.OperationalError):
                await conn.execute_fetchall("DELETE FROM audit")


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_no_connection_makes_a_file(settings: Settings, mode: str) -> None:
    settings.db_path.parent.mkdir()
    with pytest.raises(sqlite3.OperationalError):
        async with connect(settings.db_path, settings.busy_timeout_ms, mode=mode):  # type: ignore[arg-type]
            pass
    assert list(settings.db_path.parent.iterdir()) == []


async def test_a_connection_whose_opening_is_cancelled_at_any_moment_is_closed(database: Settings) -> None:
    async def use() -> None:
        async with connect(database.db_path, database.busy_timeout_ms) as conn:
            await conn.execute_fetchall("SELECT 1")

    cut = turns = whole = 0
    while whole < 3:  # a little later each time, until it is over before it can be cancelled
        task = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        whole, cut = whole + (result is None), cut + isinstance(result, asyncio.CancelledError)
        turns += 5
    assert cut > 10
    assert_no_connection_is_left()
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:  # nobody is left who holds it
        conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        conn.execute("BEGIN EXCLUSIVE")


async def test_the_holder_of_a_lock_is_named_with_its_command_unless_it_is_this_process(database: Settings) -> None:
    async with connect(database.db_path, database.busy_timeout_ms, mode="rw") as conn:
        await conn.execute_fetchall("BEGIN IMMEDIATE")
        assert lock_owners(ask("look", database.db_path)[0]) == []
        await conn.rollback()
    with held(database.db_path, "BEGIN IMMEDIATE") as process:
        (found,) = lock_owners(ask("look", database.db_path)[0])
        assert found.startswith(f"PID {process.pid} (")
        assert "python" in found
    assert lock_owners(ask("look", "/none/such")[0]) == []


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (sqlite3.SQLITE_BUSY, BusyError, "is locked by"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, BusyError, "is locked by"),
        (sqlite3.SQLITE_LOCKED, BusyError, "is locked by"),
        (sqlite3.SQLITE_NOTADB, RefusedError, "is not SQLite or is encrypted"),
        (sqlite3.SQLITE_CORRUPT, RefusedError, "is CORRUPT"),
        (sqlite3.SQLITE_FULL, RefusedError, "is full, or a table of that database has used its last id: make room"),
        (sqlite3.SQLITE_IOERR_WRITE, RefusedError, "could not be read or written"),
        (None, RefusedError, "could not be used"),
    ],
)
def test_an_error_of_sqlite_says_what_to_do(code: int | None, kind: type[Exception], told: str, tmp_path: Path) -> None:
    error = sqlite3.OperationalError("as SQLite says")
    if code is not None:
        error.sqlite_errorcode = code
    explained = explain_error(tmp_path / "x.db", error)
    assert type(explained) is kind
    assert str(explained).startswith(str(tmp_path / "x.db") if code != sqlite3.SQLITE_FULL else "the disk of")
    assert told in str(explained)


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT"])
async def test_a_transaction_begun_or_ended_twice_is_no_wrong_schema(database: Settings, statement: str) -> None:
    async with connect(database.db_path, database.busy_timeout_ms, mode="rw") as conn:
        if statement == "BEGIN":
            await conn.execute_fetchall("BEGIN")
        with pytest.raises(sqlite3.OperationalError) as caught:
            await conn.execute_fetchall(statement)
    explained = explain_error(database.db_path, caught.value)
    assert isinstance(explained, MisuseError)
    assert "leave BEGIN and COMMIT to db.write()" in str(explained)
    other = sqlite3.OperationalError("no such table: transactions")
    other.sqlite_errorcode = sqlite3.SQLITE_ERROR
    assert isinstance(explain_error(database.db_path, other), RefusedError)
