"""Copying whole databases, out of a snapshot and into the live one, and the digest by which two are the same."""

import hashlib
import marshal
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import aiosqlite

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.files import fsync, make_private_file
from abathur_nb.store.connection import bound, connect, locked_by, opened, pragma, require_short_schema, run_to_end
from abathur_nb.store.guarded import Connection
from abathur_nb.store.schema import expected_tables, quoted
from abathur_nb.store.sql import load_queries, normalized

_STEP = 1000  # rows from one report of progress to the next
_COLUMNS = 100  # that one call of a function takes: SQLite allows 127 arguments
_RETRY_S = 0.05  # between two tries to write to a locked database


@dataclass(frozen=True, slots=True)
class Content:
    """Hold what a snapshot contains: the SHA-256 of all rows, that of the schema, the rows of each table."""

    digest: str
    schema: str
    rows: Mapping[str, int]

    @property
    def total(self) -> int:
        """The rows of all tables."""
        return sum(self.rows.values())


async def read_content(conn: Connection, *, progress: Callable[[int], object] = bool) -> Content:
    """Read every row of every table, SQLite's own sequences too, in the transaction that ``conn`` is in. Read-only.

    Statistics (``sqlite_stat…``), virtual tables and the columns that SQLite computes are left out. Rows are taken in
    the order of the table, each as its values in the second format of ``marshal``, which all versions of Python share;
    a text counts as its bytes, whether they are UTF-8 or not. ``progress`` gets the number of rows since its last call,
    from the connection's thread. Raises sqlite3.Error.
    """
    # In one hop to that thread: with several for each table, 20,000 tables took as long as their rows take once.
    return await conn.apply(partial(_read, progress))


def _read(progress: Callable[[int], object], conn: sqlite3.Connection) -> Content:
    digest, done, rows = hashlib.sha256(), 0, dict[str, int]()

    def feed(*values: Any) -> int:
        nonlocal done
        digest.update(marshal.dumps(values, 2))
        done += 1
        if done % _STEP == 0:
            progress(_STEP)
        return 1

    # A function that SQLite calls holds one row at a time, where a cursor would hold a batch of rows of any size.
    conn.create_function("abathur_digest", -1, feed)
    for (name,) in conn.execute(load_queries("inspect.sql")["tables"].sql).fetchall():
        found = conn.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", (name,)).fetchall()
        columns = [quoted(column) for (column,) in found]
        calls = [_call(columns[start : start + _COLUMNS]) for start in range(0, len(columns), _COLUMNS)]
        # NOT INDEXED: in the order of the table, which a copy shares.
        select = f"SELECT {', '.join(calls)} FROM {quoted(name)} NOT INDEXED"
        try:
            conn.execute(f"EXPLAIN {select}").close()
        except sqlite3.OperationalError as error:
            if name in expected_tables() or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
                raise
            continue  # a table of others whose order this process does not know, such as by a collation of theirs
        digest.update(canonical({"table": name, "columns": [column for (column,) in found]}))
        ((rows[name], *_),) = conn.execute(select).fetchall()
    found = conn.execute(load_queries("inspect.sql")["schema"].sql).fetchall()
    progress(done % _STEP)
    schema = {name: normalized(sql or "") for _, name, _, sql in found}
    return Content(digest.hexdigest(), sha256(canonical(schema)), rows)


def _call(columns: Sequence[str]) -> str:
    texts = " || ".join(f"(typeof({column}) = 'text')" for column in columns)
    values = ", ".join(f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns)
    return f"count(abathur_digest({texts}, {values}))"


def difference(wanted: Content, found: Content) -> str:
    """Say in what two contents differ, the second one being what was found."""
    counts = {name: (found.rows.get(name), wanted.rows.get(name)) for name in sorted({*wanted.rows, *found.rows})}
    if tables := [f"{name}: {now} rows of {then}" for name, (now, then) in counts.items() if now != then]:
        return ", ".join(tables)
    return "another schema" if wanted.schema != found.schema else "as many rows, but other ones"


async def copy_out(conn: aiosqlite.Connection, path: Path, *, owned_as: Path) -> None:
    """Write the snapshot that ``conn`` sees to a new file, 0600, in WAL mode; ``publish`` forces it to the disk.

    In one step: with more, a copy beside a busy writer begins anew at each of its commits. Made by root, it belongs to
    whom ``owned_as`` belongs to. Raises FileExistsError.
    """
    make_private_file(path, owned_as=owned_as)
    async with opened(f"{path.as_uri()}?mode=rw") as target:
        # The file is new: what is half written is thrown away, and needs no journal.
        await target.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        await run_to_end(conn.backup(target))


@asynccontextmanager
async def open_copy(path: Path) -> AsyncIterator[Connection]:
    """Open a file that nobody changes, and make nothing beside it, as a reader of a WAL database would. Read-only."""
    async with opened(f"{path.as_uri()}?mode=ro&immutable=1") as conn:
        conn.row_factory = sqlite3.Row
        await bound(conn, path)
        await conn.apply(partial(require_short_schema, path))
        yield conn


async def copy_in(
    source: Path,
    settings: Settings,
    *,
    progress: Callable[[int], object] = bool,
    written: Callable[[], object] = bool,
) -> tuple[Content, bool]:
    """Replace the content of the live database by that of ``source``, in one transaction of SQLite's.

    At every moment either the old content is there or the new one, for a reader that has it open too. Waits
    ``busy_timeout_ms`` for a writer, and calls ``written`` once the new content is committed. Returns what it reads
    back, and whether somebody else has written meanwhile. Raises BusyError, sqlite3.Error.
    """
    path = settings.db_path
    deadline = monotonic() + settings.busy_timeout_ms / 1000

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and monotonic() > deadline:
            raise TimeoutError

    async with open_copy(source) as copy, connect(path, settings.busy_timeout_ms, mode="rw") as live:
        await live.execute_fetchall("PRAGMA synchronous = FULL")
        version = await pragma(live, "data_version")
        try:
            await run_to_end(copy.backup(live, progress=give_up, sleep=_RETRY_S))
        except TimeoutError:
            raise locked_by(path) from None
        written()
        await live.execute_fetchall("BEGIN")
        found = await read_content(live, progress=progress)
        # Own commits leave it as it is.
        return found, await pragma(live, "data_version") != version


def publish(draft: Path, path: Path) -> None:
    """Give a finished file its name, durably; raise FileExistsError if the name is taken, and leave what has it."""
    fsync(draft)
    os.link(draft, path)  # refuses a name that exists, where rename would replace it
    try:
        fsync(path.parent)
    except OSError:
        path.unlink()
        raise
