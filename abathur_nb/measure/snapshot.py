"""The snapshot: what is watched of a live database, measured in many short reads that end in time.

It is kept in the table metrics, or printed for Prometheus.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, cycle, takewhile
from math import gcd, inf
from pathlib import Path
from random import randrange
from time import monotonic
from typing import Any, TypeVar

import aiosqlite

from abathur_nb.backups.manifest import list_backups, newest_fit, of_database
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import AbathurError, ConfigurationError, RefusedError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.record import read_entry, run_ids
from abathur_nb.files import nearest_existing, os_cause, write_durably
from abathur_nb.health.path_on_disk import free_mb
from abathur_nb.measure import alerts
from abathur_nb.measure.alerts import Sample, Snapshot
from abathur_nb.measure.synthetic import one_cpu, time_reads
from abathur_nb.percentiles import LEVELS
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import connect, explain_error, pragma
from abathur_nb.store.database import Database
from abathur_nb.store.sessions import STATUSES
from abathur_nb.store.sql import load_queries
from abathur_nb.store.target import refusal
from abathur_nb.store.values import MAX_BYTES, decoded
from abathur_nb.text import MB, counted, moment_of, printable, shown, timestamp

T = TypeVar("T")

_NAME = "snapshot"
_GREEN = ("validate", "pass")


async def take_snapshot(settings: Settings) -> tuple[Snapshot, Report]:
    """Measure the database in many short reads, within 2 seconds, and what is around it. Read-only.

    Returns what could be measured, and a report that fails where the database itself could not be read: its size, its
    disk, its backups and validations are reported all the same. Figures of part of the rows are named as estimates.
    """
    now, samples = datetime.now(UTC), list[Sample]()
    report = await refusal(_NAME, settings)
    if report is None:
        try:
            # Pinned as the benchmark is, so that both can be compared.
            with one_cpu():
                samples = await measure(settings, now)
        except (sqlite3.Error, OSError, AbathurError) as error:
            fault = explain_error(settings.db_path, error)
            failed = Check(_NAME, "error", "the database can be read", fault.observed, fault.remedy)
            report = Report(_NAME, (failed,))
    around = [*_of_files(settings), Sample(alerts.LAST_BACKUP, _last_backup(settings))]
    around.append(Sample(alerts.LAST_VALIDATION, _last_validation(settings)))
    up = (Sample(alerts.UP, float(report is None)), Sample(alerts.TAKEN, now.timestamp()))
    snapshot = Snapshot(now, alerts.place_of(settings), (*up, *around, *samples))
    took = (datetime.now(UTC) - now).total_seconds()
    observed = f"{counted(len(snapshot.samples), 'value')} of {settings.db_path}, in {took:.2f} s"
    part = [s for s in samples if s.name == alerts.READ and s.value < 1]
    if part:
        observed += "; estimates: " + ", ".join(f"{s.labels['of']} from {s.value:.2%} of the rows" for s in part)
    return snapshot, report or Report(_NAME, (Check(_NAME, "pass", "the database is measured", observed),))


def _of_files(settings: Settings) -> Iterator[Sample]:
    for name, suffix in {"abathur_database_bytes": "", alerts.WAL_BYTES: "-wal"}.items():
        size = 0
        with suppress(OSError):
            size = os.lstat(f"{settings.db_path}{suffix}").st_size
        yield Sample(name, size)
    with suppress(OSError):
        yield Sample(alerts.DISK_FREE, free_mb(nearest_existing(settings.db_path.parent)) * MB)


def _last_backup(settings: Settings) -> float:
    """Return when the newest backup of this database that can serve was taken; 0 without one. Read-only."""
    with suppress(OSError, RefusedError):
        found = newest_fit(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path))
        return found.taken_at.timestamp() if found else 0.0
    return 0.0


def _last_validation(settings: Settings) -> float:
    """Return when the newest validation of this database that passed began; 0 without one. Read-only."""
    archive = settings.archive_dir

    def newest(ids: Iterable[str]) -> float:
        for run_id in ids:
            run = read_entry(archive, run_id, lines.get(run_id))
            if (run.notebook, run.verdict) == _GREEN and run.is_of(settings):
                return run.started_at.timestamp()
        return 0.0

    with suppress(RefusedError):
        lines, ids = read_ledger(archive).runs, run_ids(archive)
        # Of thousands of runs, those that the ledger says are something else are not read.
        green = [i for i in ids & lines.keys() if (lines[i].data["notebook"], lines[i].data["verdict"]) == _GREEN]
        # The order of the ledger does not depend on a clock; the ids of runs that it does not list are times.
        green.sort(key=lambda run_id: lines[run_id].number, reverse=True)
        return max(newest(green), newest(sorted(ids - lines.keys(), reverse=True)))
    return 0.0


def exposition(snapshot: Snapshot) -> bytes:
    """Return a snapshot as Prometheus reads it: the environment and the database are labels of each sample."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for sample in snapshot.samples:
        labels = {**snapshot.place, **sample.labels}
        if sample.name not in gauges:
            gauges[sample.name] = Gauge(sample.name, alerts.GAUGES[sample.name], tuple(labels), registry=registry)
        gauges[sample.name].labels(**labels).set(sample.value)
    return generate_latest(registry)


def command(arguments: argparse.Namespace) -> int:
    """Measure the database and write what was measured; return 1 if it could not be read, which is written too."""
    settings = resolve(arguments.env, db_path=arguments.db_path)
    output = None if arguments.output is None else _output(arguments.output)
    snapshot, report = asyncio.run(take_snapshot(settings))
    if output is None:
        sys.stdout.write(exposition(snapshot).decode())
    else:
        try:
            write_durably(output, exposition(snapshot), mode=0o644)  # the collector is another user
        except OSError as error:
            cause = os_cause(error, output)
            raise ConfigurationError(f"--output: {shown(arguments.output)}: {cause}") from None
    for check in (check for check in report.checks if check.failed):
        sys.stderr.write(f"abathur_nb metrics: {check.observed}: {check.remedy}\n")
    return int(not report.ok)


def _output(name: str) -> Path:
    """Return the file that is to be replaced; raise ConfigurationError for one that the collector would not read."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if path.suffix != ".prom":
        fault = "the collector reads files that end with .prom"
    elif not os.access(f"{path.parent}/.", os.W_OK | os.X_OK):
        fault = f"{path.parent} is not a directory that this user may write to"
    elif os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        fault = "it is not a regular file"
    else:
        return path
    raise ConfigurationError(f"--output: {shown(name)}: {printable(fault)}")


_CHECK = "record"
SNAPSHOTS = 500  # that are read at most: a chart shows no more points
Moment = tuple[datetime, Sample]


async def record_snapshot(settings: Settings, snapshot: Snapshot, keep_days: int) -> Check:
    """Write a snapshot's samples into the table metrics, and remove its gauges' older ones; both, or neither."""
    ask, taken_at = load_queries("monitor.sql"), timestamp(snapshot.taken_at)
    before = timestamp(snapshot.taken_at - timedelta(days=keep_days))
    expected = f"what was measured is kept for {keep_days:,} days"
    rows = [
        (taken_at, s.name, s.value, json.dumps(dict(s.labels), ensure_ascii=False) if s.labels else None)
        for s in snapshot.samples
    ]
    try:
        async with Database.open(settings) as db, db.write() as conn:
            await conn.executemany(ask["insert_metric"].sql, rows)
            cursors = [
                await conn.execute(ask["delete_metrics"].sql, {"name": n, "before": before}) for n in alerts.GAUGES
            ]
            removed = sum(cursor.rowcount for cursor in cursors)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        return Check(_CHECK, "error", expected, f"nothing was written: {fault.observed}", fault.remedy)
    observed = f"{counted(len(rows), 'row')} written to the table metrics, {removed:,} old ones removed"
    return Check(_CHECK, "pass", expected, observed)


async def read_recorded(settings: Settings, since: datetime) -> tuple[list[Moment], int]:
    """Return what was recorded since a moment, by gauge and then by time, and how many snapshots that is. Read-only.

    Of more than so many snapshots as a chart can show, some are read, spread evenly. What another program wrote under
    the name of a gauge and is none of its samples is left out.
    """
    ask, found = load_queries("monitor.sql"), list[Moment]()
    async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
        given = {"name": alerts.UP, "since": timestamp(since)}
        every = [text for (text,) in await conn.execute_fetchall(ask["recorded_moments"].sql, given)]
        moments = json.dumps(every[:: len(every) // SNAPSHOTS + 1])
        for name in alerts.GAUGES:
            rows = await conn.execute_fetchall(ask["metrics_at"].sql, {"name": name, "moments": moments})
            for moment, value, text in rows:
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    labels = {str(key): str(of) for key, of in json.loads(text or "{}").items()}
                    found.append((moment_of(moment), Sample(name, float(value), labels)))
    return found, len(every)


_WIDTH = 256  # rowids of one read
_LONGEST_S = 0.1  # of one read
_AGAIN_S = 0.02  # an interrupt before the statement has begun has no effect


# What is not UTF-8 is shown and counted, and reported by validate.
any_text = partial(str, encoding="utf-8", errors="backslashreplace")


async def in_time(conn: aiosqlite.Connection, seconds: float, work: Awaitable[T]) -> T:
    """Return what ``work`` does on a connection; interrupt it, and raise RefusedError, when the time is up."""
    task, left = asyncio.ensure_future(work), seconds
    while not (await asyncio.wait([task], timeout=left))[0]:
        await conn.interrupt()
        left = _AGAIN_S
    try:
        return task.result()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:  # text that is not UTF-8 has none
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
    """Return the samples of the database's contents. Read-only, in many short transactions."""
    since, latest = {"since": timestamp(now - timedelta(days=1))}, monotonic() + _ALL_S

    def until(step: str) -> float:
        return min(monotonic() + _SECONDS[step], latest)

    async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
        conn.text_factory = any_text
        page, pages, free = [await pragma(conn, name) for name in ("page_size", "page_count", "freelist_count")]
        last: dict[str, int] = {table: n or 0 for table, n in await _ask(conn, latest, "last_ids")}
        drawn = await _ask(conn, latest, "some_sessions", limit=_DRAWN)
        largest, sizes = await _sizes(conn, until("sizes"), drawn)
        tables, read, sure = await _tables(conn, until("rows"), since, last)
        share = sum(recent for _, recent in tables.values()) / max(1, sum(rows for rows, _ in tables.values()))
        growth = [Sample(alerts.GROWTH, page * (pages - free) * share)] if sure else []
        others = await _ask(conn, latest, "some_memories", limit=_DRAWN)
        return [
            Sample("abathur_database_free_bytes", page * free),
            *growth,
            *largest,
            Sample(alerts.READ, read, {"of": "rows"}),
            Sample(
                alerts.READ, min(1.0, sizes / max(1, tables.get("sessions", (sizes,))[0])), {"of": "sizes of sessions"}
            ),
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
        Sample(alerts.SESSION_BYTES, sizes[rowid][column], {"column": column, "session": ids[rowid]})
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
        with suppress(RefusedError):  # validate reports an invalid value
            return [decoded(row, columns) for row in found]
        return found

    reads = takewhile(lambda _: monotonic() < until, (partial(retrieve, row) for row in cycle(drawn)))
    ordered = sorted(await time_reads(reads, _RETRIEVALS, warm_up=0))
    found = {f"p{level * 100:g}": ordered[round(level * (len(ordered) - 1))] for level in LEVELS if ordered}
    return [Sample(alerts.RETRIEVAL, ns / 1e9, {"retrieval": what, "percentile": level}) for level, ns in found.items()]


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
        Sample(alerts.READ, share, {"of": "namespaces and versions"}),
        *(Sample("abathur_memory_versions", round(total[s] * scale), {"state": s}) for s in states if total["rows"]),
        *(
            Sample(gauge, round(found[name][kind] * scale), {"namespace": words})
            for gauge, kind in kinds.items()
            for name, words in largest.items()
        ),
    ]
