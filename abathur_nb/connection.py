"""The one way to open a connection: its PRAGMAs set and read back, and closed whatever happens."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypeVar

import aiosqlite

from abathur_nb.errors import AbathurError, BusyError, RefusedError
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries

__all__ = ["SIDE_FILES", "connect", "connection_pragmas", "explain_error", "lock_holders", "pragma", "run_to_end"]

SIDE_FILES = ("-wal", "-shm", "-journal")
T = TypeVar("T")

# Fails to compile where the CHECKs of a table may not call json_valid under trusted_schema=OFF (SQLite before 3.41).
_TRUST_PROBE = "EXPLAIN INSERT INTO sessions (id, app_name, user_id) VALUES ('', '', '')"


def connection_pragmas(settings: Settings) -> dict[str, int]:
    """Return the PRAGMAs that every connection sets for itself, with the values that must be read back.

    Together with journal_mode, which the file itself keeps, they are the eight of the runbook's section 2.2.
    """
    return {
        "busy_timeout": settings.busy_timeout_ms,
        "foreign_keys": 1,
        "synchronous": {"NORMAL": 1, "FULL": 2}[settings.synchronous],
        "wal_autocheckpoint": 1000,  # pages
        "cache_size": -64_000,  # KiB, when negative
        "temp_store": 2,  # MEMORY
        "mmap_size": 268_435_456,  # bytes
    }


@asynccontextmanager
async def connect(
    path: Path, *, settings: Settings, mode: Literal["ro", "rw"] = "ro", cached_statements: int = 128
) -> AsyncIterator[aiosqlite.Connection]:
    """Open the existing file ``path`` in autocommit mode and close it at the end, cancelled or not.

    ``ro`` never writes to the main file (SQLite may leave an empty ``-wal`` and a ``-shm``). Rows are sqlite3.Row.
    ``trusted_schema`` is OFF where this SQLite's CHECKs work with it. Raises sqlite3.Error as SQLite does, and
    AbathurError if a PRAGMA does not read back.
    """
    # as_uri() quotes what SQLite would read as the end of the file's name.
    conn = aiosqlite.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, cached_statements=cached_statements
    )
    try:
        await run_to_end(conn)  # a cancelled opening would leave a connection that nobody closes
        conn.row_factory = sqlite3.Row
        await _configure(conn, settings, mode)
        yield conn
    finally:
        await run_to_end(conn.close())
        # aiosqlite does not wait for its thread, whose last word could reach a loop closed by then: a bare traceback.
        conn._thread.join()  # noqa: SLF001


async def _configure(conn: aiosqlite.Connection, settings: Settings, mode: str) -> None:
    wanted = connection_pragmas(settings) | ({"query_only": 1} if mode == "ro" else {})
    await _distrust_schema(conn, settings)
    await conn.executescript("".join(f"PRAGMA {name} = {value};" for name, value in wanted.items()))
    (row,) = await conn.execute_fetchall(load_queries("inspect.sql")["connection_pragmas"].sql)
    found = {**row, **{name: await pragma(conn, name) for name in wanted if name not in row.keys()}}  # noqa: SIM118
    if wrong := [
        f"{name} = {found[name]} where {wanted[name]} was set" for name in wanted if found[name] != wanted[name]
    ]:
        raise AbathurError(f"SQLite {sqlite3.sqlite_version} did not keep what was set: {'; '.join(wrong)}")


async def _distrust_schema(conn: aiosqlite.Connection, settings: Settings) -> None:
    # Before anything has read the schema: one that is read already works on until another process changes it.
    await conn.executescript(f"PRAGMA busy_timeout = {settings.busy_timeout_ms}; PRAGMA trusted_schema = OFF;")
    try:
        await conn.execute_fetchall(_TRUST_PROBE)
    except sqlite3.DatabaseError as error:
        # A database without the table, or with another one of its name, has nothing to try it on.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR and "unsafe use" not in str(error):
            raise
        await conn.execute_fetchall("PRAGMA trusted_schema = ON")


async def pragma(conn: aiosqlite.Connection, name: str) -> Any:
    """Return the value of one PRAGMA. Read-only."""
    return next(iter(await conn.execute_fetchall(f"PRAGMA {name}")))[0]


async def run_to_end(work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Await ``work`` to its end even if this task is cancelled meanwhile; then let the cancellation go on.

    Cancelling a call of aiosqlite does not stop its statement: who cleans up must wait for the thread.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            cancelled = True
        except BaseException:  # noqa: BLE001 - the task's own failure: raised by result() below
            break
    if cancelled:
        task.exception()
        raise asyncio.CancelledError
    return task.result()


def explain_error(path: Path, error: sqlite3.Error) -> AbathurError:
    """Return the error of this package that says what an SQLite error means for the operator."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        holders = lock_holders(path) or "a process that cannot be named"
        return BusyError(f"{path} is locked by {holders}", "let it finish or end it, then try again")
    if code & 0xFF == sqlite3.SQLITE_NOTADB:
        return RefusedError(f"{path} is not SQLite or is encrypted", "name another db_path, or restore a backup")
    if code & 0xFF == sqlite3.SQLITE_CORRUPT:
        return RefusedError(f"{path} is CORRUPT ({error})", "stop its writers and restore a backup")
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        recover = f"let a writer recover it: sqlite3 {quote(str(path))} 'PRAGMA user_version'"
        return RefusedError(f"{path} has a hot journal, left by a killed writer", recover)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return RefusedError(f"the disk of {path} is full", "make room, then try again")
    return RefusedError(f"{path} could not be used ({error})", "see that its directory exists and is yours")


def lock_holders(path: Path) -> str:
    """Name the other processes that hold a lock on the database, as ``PID 12 (command)``. Linux only; else empty."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    inodes = set()
    for suffix in ("", *SIDE_FILES):
        try:
            inodes.add(os.stat(f"{path}{suffix}").st_ino)
        except OSError:
            continue
    # "1: POSIX  ADVISORY  WRITE 1234 fd:00:2531 120 120": the owner and major:minor:inode.
    owners = {
        f[4] for f in map(str.split, lines) if f[1] != "->" and f[3] == "WRITE" and int(f[5].split(":")[-1]) in inodes
    }
    return ", ".join(f"PID {pid} ({_command(pid)})" for pid in sorted(owners - {str(os.getpid())}))


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "its command cannot be read"
