"""Measuring a live database in many short reads that end in time: what it holds and how fast it answers."""

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import count, cycle, takewhile
from math import gcd, inf
from random import randrange
from time import monotonic
from typing import Any, TypeVar

import aiosqlite

from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.measure.alerts import READ, RETRIEVAL, SESSION_BYTES, Sample
from abathur_nb.measure.workloads import time_reads
from abathur_nb.percentiles import LEVELS
from abathur_nb.store.connection import connect, pragma
from abathur_nb.store.sessions import STATUSES
from abathur_nb.store.sql import load_queries
from abathur_nb.store.values import MAX_BYTES, decoded
from abathur_nb.text import printable, timestamp

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

    They are in a row's header: of a value of 16 MB not a page is read.
    """
    # Such a handle is the one way to that before SQLite 3.43, and aiosqlite has no call for it.
    run: Any = conn._execute  # noqa: SLF001
    return await run(_blob_sizes, conn._conn, until, table, columns, rowids)  # type: ignore[no-any-return]  # noqa: SLF001


def _blob_sizes(
    conn: sqlite3.Connection, until: float, table: str, columns: Sequence[str], rowids: Iterable[int]
) -> dict[int, dict[str, int]]:
    found = {}
    for rowid in takewhile(lambda _: monotonic() < until, rowids):
        sizes = {}
        with suppress(sqlite3.OperationalError):  # removed meanwhile, or not text
            for column in columns:
                with conn.blobopen(table, column, rowid, readonly=True) as blob:
                    sizes[column] = len(blob)
            found[rowid] = sizes
    return found


# Seconds that the measurements may take, each and all together, whatever the database holds.
_SECONDS, _ALL_S = {"sizes": 0.3, "rows": 0.4, "sessions": 0.2, "memories": 0.2, "namespaces": 0.3}, 1.7
_AT_LEAST_S = 0.05  # for a table: on a machine under load, even a small one takes a while
_DRAWN = 1000  # sessions and memories at random; of the newest sessions as many
_RETRIEVALS = 1000  # of sessions, and of memories
_NAMESPACES = 20  # the largest, counted one by one: Prometheus keeps a series for each
_OTHERS = "others"  # the rest: without a colon, so not a namespace
_ENOUGH = 5000  # rows, of which to say how many are of the last day
_SPARSE = 0.01  # rows per rowid; where there are fewer, a sample of rowids is no estimate of the rows
_COLUMNS = {"sessions": ("events", "state", "metadata"), "memory_entries": ("value", "metadata")}
_EVERY = {"after": -(2**63), "last": 2**63 - 1}
_Tables = dict[str, tuple[int, int]]  # the rows of each, and how many came in the last day


async def measure(settings: Settings, now: datetime) -> list[Sample]:
    """Return the samples of what is inside of the database. Read-only, in many short transactions."""
    since, latest = {"since": timestamp(now - timedelta(days=1))}, monotonic() + _ALL_S

    def until(step: str) -> float:
        return min(monotonic() + _SECONDS[step], latest)

    async with connect(settings.db_path, settings=settings) as conn:
        page, pages, free = [await pragma(conn, name) for name in ("page_size", "page_count", "freelist_count")]
        last: dict[str, int] = {table: n or 0 for table, n in await _ask(conn, latest, "last_ids")}
        drawn = await _ask(conn, latest, "some_sessions", limit=_DRAWN)
        largest, sizes = await _sizes(conn, until("sizes"), drawn)
        tables, read, sure = await _tables(conn, until("rows"), since, last)
        share = sum(recent for _, recent in tables.values()) / max(1, sum(rows for rows, _ in tables.values()))
        growth = [Sample("abathur_database_growth_bytes_per_day", page * (pages - free) * share)] if sure else []
        others = await _ask(conn, latest, "some_memories", limit=_DRAWN)
        return [
            Sample("abathur_database_free_bytes", page * free),
            *growth,
            *largest,
            Sample(READ, read, {"of": "rows"}),
            Sample(READ, min(1.0, sizes / max(1, tables.get("sessions", (sizes,))[0])), {"of": "sizes of sessions"}),
            *await _retrieved(conn, until("sessions"), "session", "get_session", "sessions", drawn),
            *await _retrieved(conn, until("memories"), "memory", "get_memory", "memory_entries", others),
            *await _memories(conn, until("namespaces"), since, last.get("memory_entries", 0), tables),
            *(Sample("abathur_rows", rows, {"table": table}) for table, (rows, _) in tables.items()),
            *(Sample("abathur_rows_of_last_day", recent, {"table": table}) for table, (_, recent) in tables.items()),
        ]


async def _ask(conn: aiosqlite.Connection, until: float, name: str, **given: object) -> list[sqlite3.Row]:
    return await rows_within(conn, until, load_queries("monitor.sql")[name].sql, given) or []


async def _tables(
    conn: aiosqlite.Connection, until: float, since: Mapping[str, object], last: Mapping[str, int]
) -> tuple[_Tables, float, bool]:
    """Count the rows of each table, the smallest first.

    Return also the smallest share of a table that was read, and whether that suffices to estimate the growth: the rows
    of one day lie together, in few windows.
    """
    ask = load_queries("monitor.sql")
    tables, shares, sure = _Tables(), list[float](), bool(last)
    for n, table in enumerate(sorted(last, key=lambda table: last[table])):
        given, half = {**since, "table": table}, (until - monotonic()) / (len(last) - n) / 2
        rows, share = await rows_within(conn, monotonic() + max(half, _AT_LEAST_S), ask["growth"].sql, given), 1.0
        if rows is None:
            sql = ask["growth_between"].sql
            rows, share = await read_some(conn, monotonic() + half, sql, given, last[table])
        found, recent = (sum(row[name] for row in rows) for name in ("rows", "recent"))
        sure = sure and (share == 1 or found >= _ENOUGH)
        if share == 1 or found > _SPARSE * share * last[table]:
            tables[table] = round(found / share), round(recent / share)
            shares.append(share)
        else:
            shares.append(0)
    return tables, min(shares, default=0.0), sure


async def _sizes(conn: aiosqlite.Connection, until: float, drawn: list[sqlite3.Row]) -> tuple[list[Sample], int]:
    """Return the largest size of each column of the newest sessions and of those drawn, and how many those are."""
    listed = (monotonic() + until) / 2  # on a machine under load the lists must leave time to look at those listed
    rows = [*await _ask(conn, listed, "last_begun_sessions", limit=_DRAWN), *drawn]
    for status in STATUSES:
        rows += await _ask(conn, listed, "last_used_sessions", status=status, limit=_DRAWN // len(STATUSES))
    ids = {rowid: printable(str(session_id)) for rowid, session_id in reversed(rows)}
    sizes = await blob_sizes(conn, until, "sessions", _COLUMNS["sessions"], ids)
    largest = {column: max(sizes, key=lambda rowid: sizes[rowid][column]) for column in _COLUMNS["sessions"] if sizes}
    samples = [
        Sample(SESSION_BYTES, sizes[rowid][column], {"column": column, "session": ids[rowid]})
        for column, rowid in largest.items()
    ]
    return samples, len(sizes)


async def _retrieved(
    conn: aiosqlite.Connection, until: float, what: str, query: str, table: str, drawn: list[sqlite3.Row]
) -> list[Sample]:
    """Time one of the store's retrievals, of rows drawn at random; no sample without a row."""
    sql, columns = load_queries()[query].sql, _COLUMNS[table]
    # A value that another program has made larger than the store would could take minutes.
    sizes = await blob_sizes(conn, (monotonic() + until) / 2, table, columns, [row["rowid"] for row in drawn])
    drawn = [row for row in drawn if 0 < sum(sizes.get(row["rowid"], {}).values()) <= len(columns) * MAX_BYTES]
    if not drawn:
        return []

    async def retrieve(row: sqlite3.Row) -> object:
        found = list(await conn.execute_fetchall(sql, dict(row)))
        with suppress(RefusedError):  # that a value is spoiled is what validate reports
            return [decoded(row, columns) for row in found]
        return found

    reads = takewhile(lambda _: monotonic() < until, (partial(retrieve, row) for row in cycle(drawn)))
    ordered = sorted(await time_reads(reads, _RETRIEVALS, warm_up=0))
    found = {f"p{level * 100:g}": ordered[round(level * (len(ordered) - 1))] for level in LEVELS if ordered}
    return [Sample(RETRIEVAL, ns / 1e9, {"retrieval": what, "percentile": level}) for level, ns in found.items()]


async def _memories(
    conn: aiosqlite.Connection, until: float, since: Mapping[str, object], last: int, tables: _Tables
) -> list[Sample]:
    """Return the versions of memories by their state, and the rows of the largest namespaces and of all others."""
    sql, share = load_queries("monitor.sql")["memories_between"].sql, 1.0
    rows = await rows_within(conn, until, sql, {**since, **_EVERY})
    if rows is None:
        rows, share = await read_some(conn, until, sql, since, last)
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for namespace, *numbers in rows:
        found[str(namespace)].update(dict(zip(("rows", "recent", "deleted", "superseded"), numbers, strict=True)))
    total = sum(found.values(), Counter[str]())
    scale = tables.get("memory_entries", (0, 0))[0] / max(1, total["rows"]) if share < 1 else 1.0
    total["current"] = total["rows"] - total["deleted"] - total["superseded"]
    largest = {name: printable(name) for name in sorted(found, key=lambda name: (-found[name]["rows"], name))}
    largest = dict([*largest.items()][:_NAMESPACES])
    if rest := found.keys() - largest.keys():
        found[_OTHERS] = sum((found[name] for name in rest), Counter())
        largest[_OTHERS] = _OTHERS
    kinds = {"abathur_namespace_rows": "rows", "abathur_namespace_rows_of_last_day": "recent"}
    states = ("current", "superseded", "deleted")
    return [
        Sample(READ, share, {"of": "namespaces and versions"}),
        *(Sample("abathur_memory_versions", round(total[s] * scale), {"state": s}) for s in states if total["rows"]),
        *(
            Sample(gauge, round(found[name][kind] * scale), {"namespace": words})
            for gauge, kind in kinds.items()
            for name, words in largest.items()
        ),
    ]
