"""Open a connection, set its PRAGMAs and read them back, close it in any case, and explain its errors."""

import asyncio
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import aiosqlite

from abathur_nb.errors import (
    BOUND_BYTES,
    BOUND_S,
    BOUND_SCHEMA,
    AbathurError,
    BusyError,
    MisuseError,
    RefusedError,
    bound_reached,
)
from abathur_nb.files import OTHER_CAUSE, ask_system, os_cause
from abathur_nb.store.apart import ask
from abathur_nb.store.guarded import Connection, Handle, refuse_mixing, strays_check
from abathur_nb.store.sql import load_queries
from abathur_nb.text import MB, SHELL, process_name

_STEPS = 100_000  # instructions of SQLite's virtual machine between two checks of the clock: some milliseconds
SIDE_FILES = ("-wal", "-shm", "-journal")
Synchronous = Literal["NORMAL", "FULL"]
T = TypeVar("T")

# SQLite before 3.41 does not compile this with trusted_schema=OFF, because the table's CHECKs call json_valid.
_TRUST_PROBE = "EXPLAIN INSERT INTO sessions (id, app_name, user_id) VALUES ('', '', '')"


def connection_pragmas(busy_ms: int, synchronous: Synchronous) -> dict[str, int]:
    """Return the PRAGMAs that each connection sets and reads back; journal_mode is stored in the file."""
    return {
        "busy_timeout": busy_ms,
        "foreign_keys": 1,
        "synchronous": {"NORMAL": 1, "FULL": 2}[synchronous],
        "wal_autocheckpoint": 1000,  # pages
        "cache_size": -64_000,  # KiB, when negative
        "temp_store": 2,  # MEMORY
        "mmap_size": 268_435_456,  # bytes
    }


@asynccontextmanager
async def connect(
    path: Path,
    busy_ms: int,
    *,
    mode: Literal["ro", "rw"] = "ro",
    synchronous: Synchronous = "FULL",
    bounded: bool = True,
    watched: bool = True,
) -> AsyncIterator[Connection]:
    """Open the existing file ``path`` in autocommit mode and close it at the end, cancelled or not.

    ``ro`` never writes to the main file (SQLite may leave an empty ``-wal`` and a ``-shm``). `bound` limits a
    ``bounded`` reader; a ``watched`` connection refuses each use after its files were moved or deleted. Raises
    sqlite3.Error, RefusedError if a PRAGMA was not set or the files were replaced, MisuseError after a fork.
    """
    refuse_mixing(path)
    async with opened(f"{path.as_uri()}?mode={mode}") as conn:
        await conn.apply(partial(_configure, path, mode, watched, connection_pragmas(busy_ms, synchronous)))
        conn.handle.check()
        if bounded and mode == "ro":
            await bound(conn, path)
        yield conn


async def bound(conn: Connection, path: Path, *, timed: bool = True) -> None:
    """Limit the length of a value and, if ``timed``, the time to read ``path``, according to the size of its files."""
    size = os.stat(path).st_size
    with suppress(OSError):
        size += os.stat(f"{path}-wal").st_size
    deadline = monotonic() + BOUND_S + size / MB

    def limit(of: sqlite3.Connection) -> None:
        of.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(size + BOUND_BYTES, 2**31 - 1))
        if timed:
            of.set_progress_handler(lambda: monotonic() > deadline, _STEPS)

    await conn.apply(limit)


@asynccontextmanager
async def open_for_change(path: Path, busy_ms: int) -> AsyncIterator[Connection]:
    """Open ``path`` for writing as `connect` does; a refused change leaves the file and its log as they are."""
    # The last connection to close checkpoints the log unless it is read-only: so a reader is closed last.
    async with connect(path, busy_ms), connect(path, busy_ms, mode="rw") as writer:
        yield writer


@asynccontextmanager
async def opened(uri: str) -> AsyncIterator[Connection]:
    """Open the database at ``uri`` in autocommit mode and close it at the end, cancelled or not."""
    conn = Connection(uri)
    try:
        await run_to_end(conn)  # a cancelled opening would leave an open connection
        yield conn
    except sqlite3.Error as error:
        # Find the cause now: later, the scratch file that filled the disk is gone.
        error.__cause__ = error.__cause__ or ask_system(Path(unquote(urlsplit(uri).path)), error)
        raise
    finally:
        if not conn.forked:  # in a fork the loop is the parent's: running it would take the parent's events
            try:
                await run_to_end(conn.close())
            finally:
                # aiosqlite does not wait for its thread, which could call a loop that is already closed.
                conn._thread.join()  # noqa: SLF001


def _configure(path: Path, mode: str, watched: bool, wanted: dict[str, int], conn: Handle) -> None:
    conn.row_factory = sqlite3.Row
    if mode == "ro":
        wanted["query_only"] = 1
    # Before the schema is read: SQLite applies trusted_schema when it parses the schema.
    conn.executescript(f"PRAGMA busy_timeout = {wanted['busy_timeout']}; PRAGMA trusted_schema = OFF;")
    script = "".join(f"PRAGMA {name} = {value};" for name, value in wanted.items())
    try:
        conn.execute(_TRUST_PROBE).fetchall()
    except sqlite3.DatabaseError as error:
        # Another application's database has no such table.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR and "unsafe use" not in str(error):
            raise
        script = f"PRAGMA trusted_schema = ON; {script}"
    except UnicodeDecodeError:  # SQLite's message quotes the damaged schema
        damaged = sqlite3.DatabaseError("malformed database schema")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged from None
    conn.executescript(script)
    require_short_schema(path, conn)
    found = read_pragmas(conn)
    wrong = [f"{name} = {found[name]}, expected {value}" for name, value in wanted.items() if found[name] != value]
    if wrong:
        observed = f"SQLite {sqlite3.sqlite_version} did not set all PRAGMAs: {'; '.join(wrong)}"
        raise RefusedError(observed, "use another SQLite: conda env create -f environment.yml")
    if watched:
        conn.watch(path, writes=mode == "rw")


def require_short_schema(path: Path, conn: sqlite3.Connection) -> None:
    """Raise RefusedError if the SQL of all objects is longer than its bound. Read-only."""
    (size,) = conn.execute(load_queries("inspect.sql")["schema_size"].sql).fetchone()
    if size > BOUND_SCHEMA:
        raise _too_long(path, f"its SQL has {size:,} bytes, the bound is {BOUND_SCHEMA:,} bytes")


def _too_long(path: Path, found: str) -> RefusedError:
    remedy = f"find out who made objects that are not in sql/; drop those that nobody needs {SHELL} {quote(str(path))}"
    return RefusedError(f"the schema of {path} is too long to be read: {found}", remedy)


def read_pragmas(conn: sqlite3.Connection) -> dict[str, Any]:
    """Return the PRAGMAs of the file and of this connection, by name. Read-only."""
    (row,) = conn.execute(load_queries("inspect.sql")["pragmas"].sql)
    rest = ("journal_mode", "wal_autocheckpoint", "mmap_size")
    return {**row, **{name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in rest}}


async def pragma(conn: aiosqlite.Connection, name: str) -> Any:
    """Return the value of one PRAGMA. Read-only."""
    return next(iter(await conn.execute_fetchall(f"PRAGMA {name}")))[0]


async def run_to_end(work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Await ``work`` to its end even if this task is cancelled meanwhile; then raise CancelledError."""
    # Cancelling a call of aiosqlite does not stop its statement: a clean-up must wait for the thread.
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not task.cancelled():
        task.exception()  # else asyncio logs that nobody retrieved it
        raise asyncio.CancelledError
    return task.result()


# What SQLite's primary result codes mean for an operator (https://sqlite.org/rescode.html): observed, remedy.
_MEANINGS = {
    sqlite3.SQLITE_ERROR: ("{path} does not match the expected schema ({error})", "run validate.ipynb"),
    sqlite3.SQLITE_NOTADB: (
        "{path} is not SQLite or is encrypted",
        "db_path: name another path; to replace the file by a backup: mv -n {quoted} {aside}, then restore it",
    ),
    sqlite3.SQLITE_CORRUPT: ("{path} is CORRUPT ({error})", "stop its writers and restore a backup"),
    sqlite3.SQLITE_FULL: (
        "the disk of {path} is full, or a table of that database has used its last id",
        "make room: df -h {folder}; if there is room, run validate.ipynb",
    ),
    sqlite3.SQLITE_IOERR: ("{path} could not be read or written ({error})", "check the disk: dmesg | tail"),
    sqlite3.SQLITE_READONLY: ("{path} may not be written to", "see who owns it: namei -l {quoted}"),
}


def explain_error(path: Path, error: Exception) -> AbathurError:
    """Return an error of this package that explains an error of SQLite or of the system, with a remedy."""
    if isinstance(error, AbathurError):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    primary = code & 0xFF
    if words := bound_reached(error):
        if code == sqlite3.SQLITE_CORRUPT:
            return _too_long(path, words)
        return RefusedError(f"{path} was not read to its end: {words}", "run validate.ipynb, which names the table")
    if primary == sqlite3.SQLITE_ERROR and re.match("cannot .*transaction", str(error)):
        return MisuseError(
            f"a transaction was begun or ended at the wrong time: {error}", "leave BEGIN and COMMIT to db.write()"
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return locked_by(path)
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return RefusedError(
            f"{path} has a hot journal of a killed writer", "run troubleshoot.ipynb, which rolls it back"
        )
    # If only the log was deleted, SQLite reports an I/O error.
    if primary == sqlite3.SQLITE_IOERR and (lost := strays_check(path)).failed:
        return RefusedError(lost.observed, lost.remedy)
    found = error.__cause__ or (ask_system(path, error) if isinstance(error, sqlite3.Error) else error)
    if isinstance(found, OSError):
        return os_cause(found, path)
    names = {"quoted": quote(str(path)), "folder": quote(str(path.parent)), "aside": quote(f"{path}.not-sqlite")}
    observed, remedy = _MEANINGS.get(primary, OTHER_CAUSE)
    return RefusedError(observed.format(path=path, error=error), remedy.format(**names))


def lock_owners(locks: Iterable[tuple[str, int, bool, int]], *, exclusive: bool = True) -> list[str]:
    """Return the names of the other processes that hold an exclusive lock of ``locks``; if not ``exclusive``, any."""
    pids = {pid for _, _, is_exclusive, pid in locks if is_exclusive or not exclusive}
    return [process_name(pid) for pid in sorted(pids - {os.getpid()})]


def locked_by(path: Path) -> BusyError:
    """Return the error that names the processes that have the database locked."""
    holders = ", ".join(lock_owners(ask("look", path)[0])) or "a process that cannot be named"
    return BusyError(f"{path} is locked by {holders}", "let it finish or end it, then try again")
