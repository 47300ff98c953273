"""Moving whole databases: out of a snapshot into a file of its own, and from such a file into the live one."""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic

import aiosqlite

from abathur_nb.connection import bound, connect, locked_by, opened, pragma, require_short_schema, run_to_end
from abathur_nb.files import fsync, make_private_file
from abathur_nb.guarded import Connection
from abathur_nb.operate.content import Content, read_content
from abathur_nb.settings import Settings

__all__ = ["copy_in", "copy_out", "open_copy", "publish"]

_RETRY_S = 0.05  # between two tries to write to a locked database


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
    progress: Callable[[int], object] | None = None,
    written: Callable[[], object] = bool,
) -> tuple[Content, bool]:
    """Replace the content of the live database by that of ``source``, in one transaction of SQLite's.

    At every moment either the old content stands there or the new one, for a reader that has it open too. Waits
    ``busy_timeout_ms`` for a writer, and calls ``written`` once the new content is committed. Returns what it reads
    back, and whether somebody else has written meanwhile. Raises BusyError, sqlite3.Error.
    """
    path = settings.db_path
    deadline = monotonic() + settings.busy_timeout_ms / 1000

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and monotonic() > deadline:
            raise TimeoutError

    async with open_copy(source) as copy, connect(path, settings=settings, mode="rw") as live:
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
