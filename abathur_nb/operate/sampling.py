"""Reads of a live database that end in time: all of a table if that is quick, else some of it, spread over the whole.

Each read is a transaction of its own and a short one: SQLite cannot reset the WAL before a read of it ends.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from math import gcd, inf
from random import randrange
from time import monotonic
from typing import Any, TypeVar

import aiosqlite

from abathur_nb.errors import RefusedError

__all__ = ["blob_sizes", "in_time", "read_some", "rows_within"]

T = TypeVar("T")

_WIDTH = 256  # rowids of one read
_LONGEST_S = 0.1  # of one read
_AGAIN_S = 0.02  # an interrupt before the statement has begun has no effect


async def in_time(conn: aiosqlite.Connection, seconds: float, work: Awaitable[T]) -> T:
    """Return what ``work`` does on a connection; interrupt it, and raise RefusedError, when the time is up."""
    task, left = asyncio.ensure_future(work), seconds
    while not (await asyncio.wait([task], timeout=left))[0]:
        await conn.interrupt()
        left = _AGAIN_S
    try:
        return task.result()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
    raise RefusedError(f"not read within {seconds:g} s")


async def rows_within(
    conn: aiosqlite.Connection, until: float, sql: str, given: Mapping[str, object]
) -> list[sqlite3.Row] | None:
    """Return the rows of a statement, or None if it had to be interrupted: a read may last 0.1 s. Read-only."""
    seconds = max(0, min(until - monotonic(), _LONGEST_S))
    with suppress(RefusedError):
        return list(await in_time(conn, seconds, conn.execute_fetchall(sql, given)))
    return None


async def read_some(
    conn: aiosqlite.Connection, until: float, sql: str, given: Mapping[str, object], last: int
) -> tuple[list[sqlite3.Row], float]:
    """Return the rows of ``sql`` for windows of rowids, and which share of 1 to ``last`` they are. Read-only.

    ``:after`` and ``:last`` are the bounds of a window. They are spread evenly; at least one is read.
    """
    width = _WIDTH
    while True:
        windows = -(-last // width)
        # About the golden section, and without a common divisor: wherever it ends, the windows read are spread evenly.
        step = next(n for n in count(max(1, round(windows * 0.618))) if gcd(n, windows) == 1)
        start, found = randrange(max(1, windows)), list[sqlite3.Row]()  # noqa: S311 - not a secret
        for done in range(windows):
            if done and monotonic() >= until:
                return found, done / windows
            after = (start + done * step) % windows * width
            rows = await rows_within(conn, inf, sql, {**given, "after": after, "last": after + width})
            if rows is None and width > 1:
                width //= 16
                break
            found += rows or ()
        else:
            return found, 1.0


async def blob_sizes(
    conn: aiosqlite.Connection, until: float, table: str, columns: Sequence[str], rowids: Iterable[int]
) -> dict[int, dict[str, int]]:
    """Return the bytes of columns by rowid, of as many rows as the time allows. Read-only.

    A row's header tells them: of a value of 16 MB not a page is read.
    """
    # Such a handle is the one way to that before SQLite 3.43, and aiosqlite has no call for it.
    measure: Any = conn._execute  # noqa: SLF001
    return await measure(_blob_sizes, conn._conn, until, table, columns, rowids)  # type: ignore[no-any-return]  # noqa: SLF001


def _blob_sizes(
    conn: sqlite3.Connection, until: float, table: str, columns: Sequence[str], rowids: Iterable[int]
) -> dict[int, dict[str, int]]:
    found = {}
    for rowid in rowids:
        if monotonic() >= until:
            break
        with suppress(sqlite3.OperationalError):  # removed meanwhile, or not text
            found[rowid] = {column: _blob_size(conn, table, column, rowid) for column in columns}
    return found


def _blob_size(conn: sqlite3.Connection, table: str, column: str, rowid: int) -> int:
    with conn.blobopen(table, column, rowid, readonly=True) as blob:
        return len(blob)
