"""Measure a live database in many short reads; keep the values in the table metrics, or print them for Prometheus."""

import argparse
import asyncio
import json
import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle, islice, takewhile
from math import inf
from time import monotonic
from typing import TypeVar

import aiosqlite

from abathur_nb.backups.manifest import list_backups, newest_fit, of_database
from abathur_nb.config.settings import Settings, absolute_path, resolve
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
from abathur_nb.store.guarded import Connection
from abathur_nb.store.sessions import STATUSES
from abathur_nb.store.sql import load_queries
from abathur_nb.store.target import refusal
from abathur_nb.store.values import MAX_BYTES, decoded
from abathur_nb.text import MB, counted, moment_of, printable, shown, timestamp

T = TypeVar("T")

_NAME = "snapshot"
_GREEN = ("validate", "pass")


async def take_snapshot(settings: Settings) -> tuple[Snapshot, Report]:
    """Measure the database in many short reads, within 2 seconds, and its files, disk, backups and runs. Read-only.

    Returns the samples and a report. If the database cannot be read, the report fails; its size, disk, backups and
    validations are still measured. The report lists the figures that are estimates from part of the rows.
    """
    now, measured = datetime.now(UTC), list[Sample]()
    report = await refusal(_NAME, settings)
    if report is None:
        try:
            with one_cpu():  # as in the benchmark, so that the figures can be compared
                measured = await measure(settings, now)
        except (sqlite3.Error, OSError, AbathurError) as error:
            fault = explain_error(settings.db_path, error)
            failed = Check(_NAME, "error", "the database can be read", fault.observed, fault.remedy)
            report = Report(_NAME, (failed,))
    up = (Sample(alerts.UP, float(report is None)), Sample(alerts.TAKEN, now.timestamp()))
    snapshot = Snapshot(now, alerts.place_of(settings), (*up, *_around(settings), *measured))
    took = (datetime.now(UTC) - now).total_seconds()
    observed = f"{counted(len(snapshot.samples), 'value')} of {settings.db_path}, in {took:.2f} s"
    if part := [s for s in measured if s.name == alerts.READ and s.value < 1]:
        observed += "; estimates: " + ", ".join(f"{s.labels['of']} from {s.value:.2%} of the rows" for s in part)
    return snapshot, report or Report(_NAME, (Check(_NAME, "pass", "the database is measured", observed),))


def _around(settings: Settings) -> Iterator[Sample]:
    """Yield the samples that need no read of the database. Read-only."""
    for name, suffix in {"abathur_database_bytes": "", alerts.WAL_BYTES: "-wal"}.items():
        size = 0
        with suppress(OSError):
            size = os.lstat(f"{settings.db_path}{suffix}").st_size
        yield Sample(name, size)
    with suppress(OSError):
        yield Sample(alerts.DISK_FREE, free_mb(nearest_existing(settings.db_path.parent)) * MB)
    last = None
    with suppress(OSError, RefusedError):
        last = newest_fit(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path))
    yield Sample(alerts.LAST_BACKUP, last.taken_at.timestamp() if last else 0)
    yield Sample(alerts.LAST_VALIDATION, _last_validation(settings))


def _last_validation(settings: Settings) -> float:
    """Return the start of the newest validation of this database that passed; 0 for none. Read-only."""
    archive, found = settings.archive_dir, [0.0]
    with suppress(RefusedError):
        lines, ids = read_ledger(archive).runs, run_ids(archive)
        # Of the runs in the ledger, only these are read, in its order: the order of ids depends on a clock.
        green = [i for i in ids & lines.keys() if (lines[i].data["notebook"], lines[i].data["verdict"]) == _GREEN]
        for oldest_first in (sorted(green, key=lambda i: lines[i].number), sorted(ids - lines.keys())):
            runs = (read_entry(archive, i, lines.get(i)) for i in reversed(oldest_first))
            fit = (run for run in runs if (run.notebook, run.verdict) == _GREEN and run.is_of(settings))
            found += [run.started_at.timestamp() for run in islice(fit, 1)]
    return max(found)


def exposition(snapshot: Snapshot) -> bytes:
    """Return a snapshot in Prometheus's text format; each sample has the environment and the database as labels."""
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
    """Measure the database and write the values; return 1, with ``abathur_up`` 0, if it could not be read."""
    settings, output = resolve(arguments.env, db_path=arguments.db_path), arguments.output
    if output is not None and not output.endswith(".prom"):
        raise ConfigurationError(f"--output: {shown(output)}: the collector reads only files that end with .prom")
    path = None if output is None else absolute_path("--output", output, "argument", relative=True)
    if path and os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise ConfigurationError(f"--output: {shown(output)}: it is not a regular file")
    snapshot, report = asyncio.run(take_snapshot(settings))
    if path is None:
        sys.stdout.write(exposition(snapshot).decode())
    else:
        try:
            write_durably(path, exposition(snapshot), mode=0o644)  # the collector runs as another user
        except OSError as error:
            raise ConfigurationError(f"--output: {shown(output)}: {os_cause(error, path)}") from None
    for check in (check for check in report.checks if check.failed):
        sys.stderr.write(f"abathur_nb metrics: {check.observed}: {check.remedy}\n")
    return int(not report.ok)


_CHECK = "record"
_FORMER = ("abathur_namespace_rows_of_last_day",)  # gauges that earlier versions recorded
SNAPSHOTS = 500  # the most that are read: a chart shows no more points
Moment = tuple[datetime, Sample]


async def record_snapshot(settings: Settings, snapshot: Snapshot, keep_days: int) -> Check:
    """Insert the samples of a snapshot into the table metrics and delete old samples, in one transaction."""
    ask, taken_at = load_queries("monitor.sql"), timestamp(snapshot.taken_at)
    before = timestamp(snapshot.taken_at - timedelta(days=keep_days))
    expected = f"measurements are kept for {keep_days:,} days"
    texts = [json.dumps(dict(s.labels), ensure_ascii=False) if s.labels else None for s in snapshot.samples]
    rows = [(taken_at, s.name, s.value, labels) for s, labels in zip(snapshot.samples, texts, strict=True)]
    try:
        async with Database.open(settings) as db, db.write() as conn:
            await conn.executemany(ask["insert_metric"].sql, rows)
            old = [{"name": name, "before": before} for name in (*alerts.GAUGES, *_FORMER)]
            removed = (await conn.executemany(ask["delete_metrics"].sql, old)).rowcount
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        return Check(_CHECK, "error", expected, f"nothing was written: {fault.observed}", fault.remedy)
    observed = f"{counted(len(rows), 'row')} written to the table metrics, {removed:,} old ones removed"
    return Check(_CHECK, "pass", expected, observed)


async def read_recorded(settings: Settings, since: datetime) -> tuple[list[Moment], int]:
    """Return the samples recorded since a time, by gauge and then by time, and the number of snapshots. Read-only.

    If there are more than ``SNAPSHOTS``, evenly spaced ones are read. Invalid samples are left out.
    """
    ask, found = load_queries("monitor.sql"), list[Moment]()
    async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
        given = {"name": alerts.UP, "since": timestamp(since)}
        every = [text for (text,) in await conn.execute_fetchall(ask["recorded_moments"].sql, given)]
        moments = json.dumps(every[:: -(-len(every) // SNAPSHOTS) or 1])
        for name in alerts.GAUGES:
            rows = await conn.execute_fetchall(ask["metrics_at"].sql, {"name": name, "moments": moments})
            for moment, value, text in rows:
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    labels = {str(key): str(of) for key, of in json.loads(text or "{}").items()}
                    found.append((moment_of(moment), Sample(name, float(value), labels)))
    return found, len(every)


_AT_ONCE = 100  # rowids for one read
_LONGEST_S = 0.1  # seconds for one read
_AGAIN_S = 0.02  # seconds to the next interrupt: one before the statement begins has no effect


# Text that is not UTF-8 is shown escaped; validate reports it.
any_text = partial(str, encoding="utf-8", errors="backslashreplace")


async def in_time(conn: aiosqlite.Connection, seconds: float, work: Awaitable[T]) -> T:
    """Return the result of ``work`` on a connection; interrupt it and raise RefusedError when the time is up."""
    task, left = asyncio.ensure_future(work), seconds
    while not (await asyncio.wait([task], timeout=left))[0]:
        await conn.interrupt()
        left = _AGAIN_S
    try:
        return task.result()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:  # a decoding error has no code
            raise
    raise RefusedError(f"not read within {seconds:g} s")


async def rows_within(
    conn: aiosqlite.Connection, until: float, sql: str, given: Mapping[str, object]
) -> list[sqlite3.Row] | None:
    """Return the rows of a statement, or None if it takes more than 0.1 s or the time is up. Read-only."""
    seconds = max(0, min(until - monotonic(), _LONGEST_S))
    with suppress(RefusedError):
        return list(await in_time(conn, seconds, conn.execute_fetchall(sql, given)))
    return None


async def read_some(
    conn: aiosqlite.Connection, until: float, sql: str, given: Mapping[str, object], last: int, most: int
) -> tuple[list[sqlite3.Row], float]:
    """Return the rows of ``sql`` for up to ``most`` random rowids from 1 to ``last``, and the share of rowids read.

    Read-only. ``sql`` runs for one batch of rowids (``:ids``) after another until the time is up, at least once.
    """
    ids, found, done, at_once = random.sample(range(1, last + 1), min(last, most)), list[sqlite3.Row](), 0, _AT_ONCE
    read = 0
    while done < len(ids) and (not done or monotonic() < until):
        batch = ids[done : done + at_once]
        rows = await rows_within(conn, inf, sql, {**given, "ids": json.dumps(batch)})
        if rows is None and at_once > 1:
            at_once = 1  # the rows are large: read them one by one
            continue
        if rows is not None:
            found += rows
            read += len(batch)
        done += at_once
    return found, read / last if last else 1.0


# Seconds that one step may take, and all steps together, whatever the database holds.
_STEP_S, _ALL_S = 0.3, 1.7
_SAMPLE_S = 0.05  # for the sample of one table
_DRAWN = 1000  # at most, of random sessions, of random memories, and of newest sessions
_RETRIEVALS = 1000  # timed retrievals of sessions, and as many of memories
_NAMESPACES = 20  # largest namespaces with a value of their own: Prometheus keeps a series for each
_OTHERS = "others"  # all other namespaces; a namespace has a colon, so none has this name
_ROWS, _ENOUGH = 5000, 1000  # rowids in a table's sample, and the fewest rows in it for an estimate
_VERSIONS = 20_000  # versions of memories in the sample that is counted by namespace
_COLUMNS = {"sessions": ("events", "state", "metadata"), "memory_entries": ("value", "metadata")}
_Sizes = dict[int, dict[str, int]]  # bytes by rowid and column


async def measure(settings: Settings, now: datetime) -> list[Sample]:
    """Return the samples of the database's contents. Read-only, in many short transactions."""
    since, latest = {"since": timestamp(now - timedelta(days=1))}, monotonic() + _ALL_S

    def until() -> float:
        return min(monotonic() + _STEP_S, latest)

    async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
        conn.text_factory = any_text
        page, pages, free = [await pragma(conn, name) for name in ("page_size", "page_count", "freelist_count")]
        ask = load_queries("monitor.sql")
        last = {table: max(0, n or 0) for table, n in await conn.execute_fetchall(ask["last_ids"].sql)}
        drawn, _ = await read_some(conn, latest, ask["some_sessions"].sql, {}, last["sessions"], _DRAWN)
        others, _ = await read_some(conn, latest, ask["some_memories"].sql, {}, last["memory_entries"], _DRAWN)
        largest, sizes = await _largest(conn, until(), drawn)
        tables, read = await _tables(conn, until(), since, last)
        sessions = tables.get("sessions", (len(sizes), 0))[0]
        share = sum(recent for _, recent in tables.values()) / max(1, sum(rows for rows, _ in tables.values()))
        return [
            Sample("abathur_database_free_bytes", page * free),
            *([Sample(alerts.GROWTH, page * (pages - free) * share)] if tables.keys() == last.keys() else ()),
            *largest,
            Sample(alerts.READ, read, {"of": "rows"}),
            Sample(alerts.READ, min(1.0, len(sizes) / max(1, sessions)), {"of": "sizes of sessions"}),
            *await _retrieved(conn, until(), "session", "sessions", drawn),
            *await _retrieved(conn, until(), "memory", "memory_entries", others),
            *await _memories(conn, until(), last["memory_entries"]),
            *(Sample("abathur_rows", rows, {"table": table}) for table, (rows, _) in tables.items()),
            *(Sample("abathur_rows_of_last_day", recent, {"table": table}) for table, (_, recent) in tables.items()),
        ]


async def _tables(
    conn: aiosqlite.Connection, until: float, since: Mapping[str, object], last: Mapping[str, int]
) -> tuple[dict[str, tuple[int, int]], float]:
    """Return each table's number of rows, in all and of the last day, and the smallest share of a table that was read.

    If there is no time to count a table, a sample gives an estimate; without enough rows in it, the table is left out.
    """
    ask, tables, shares = load_queries("monitor.sql"), dict[str, tuple[int, int]](), [1.0]
    for table in sorted(last, key=lambda table: last[table]):
        given = {**since, "table": table}
        rows, share = await rows_within(conn, until, ask["growth"].sql, given), 1.0
        if rows is None:
            sql = ask["growth_of_some"].sql
            rows, share = await read_some(conn, monotonic() + _SAMPLE_S, sql, given, last[table], _ROWS)
        found, recent = (sum(row[name] for row in rows) for name in ("rows", "recent"))
        if share == 1 or found >= _ENOUGH:
            tables[table] = round(found / share), round(recent / share)
        shares.append(share)
    return tables, min(shares)


async def _largest(conn: Connection, until: float, drawn: list[sqlite3.Row]) -> tuple[list[Sample], _Sizes]:
    """Return the largest size of each column in the newest and the ``drawn`` sessions, and all measured sizes."""
    listed = (monotonic() + until) / 2  # on a loaded machine the lists must leave time to measure the sessions
    ask = load_queries("monitor.sql")
    rows = [*(await rows_within(conn, listed, ask["last_begun_sessions"].sql, {"limit": _DRAWN}) or ()), *drawn]
    for status in STATUSES:
        given = {"status": status, "limit": _DRAWN // len(STATUSES)}
        rows += await rows_within(conn, listed, ask["last_used_sessions"].sql, given) or ()
    ids = {rowid: printable(str(session_id)) for rowid, session_id in reversed(rows)}
    sizes = await conn.apply(partial(_sizes, until, "sessions", ids))
    largest = {column: max(sizes, key=lambda rowid: sizes[rowid][column]) for column in _COLUMNS["sessions"] if sizes}
    samples = [
        Sample(alerts.SESSION_BYTES, sizes[rowid][column], {"column": column, "session": ids[rowid]})
        for column, rowid in largest.items()
    ]
    return samples, sizes


def _sizes(until: float, table: str, rowids: Iterable[int], conn: sqlite3.Connection) -> _Sizes:
    """Return the size of each column of these rows, as far as the time allows."""
    sizes, columns = _Sizes(), _COLUMNS[table]
    for rowid in takewhile(lambda _: monotonic() < until, rowids):
        with suppress(sqlite3.OperationalError), ExitStack() as blobs:  # the row is gone, or the value is a number
            # A blob handle takes the size from the row's header and reads no page of the value.
            found = [blobs.enter_context(conn.blobopen(table, name, rowid, readonly=True)) for name in columns]
            sizes[rowid] = dict(zip(columns, map(len, found), strict=True))
    return sizes


async def _retrieved(conn: Connection, until: float, what: str, table: str, drawn: list[sqlite3.Row]) -> list[Sample]:
    """Time the store's retrieval of the ``drawn`` rows; return no samples if there are no rows."""
    sql, columns = load_queries()[f"get_{what}"].sql, _COLUMNS[table]
    # Values longer than the store writes are left out: to retrieve one can take minutes.
    sizes = await conn.apply(partial(_sizes, (monotonic() + until) / 2, table, [row["rowid"] for row in drawn]))
    drawn = [row for row in drawn if max(sizes.get(row["rowid"], {"": inf}).values()) <= MAX_BYTES]

    async def retrieve(row: sqlite3.Row) -> object:
        found = list(await conn.execute_fetchall(sql, dict(row)))
        with suppress(RefusedError):  # validate reports an invalid value
            return [decoded(row, columns) for row in found]
        return found

    reads = takewhile(lambda _: monotonic() < until, (partial(retrieve, row) for row in cycle(drawn)))
    ordered = sorted(await time_reads(reads, _RETRIEVALS, warm_up=0))
    found = {f"p{level * 100:g}": ordered[round(level * (len(ordered) - 1))] for level in LEVELS if ordered}
    return [Sample(alerts.RETRIEVAL, ns / 1e9, {"retrieval": what, "percentile": level}) for level, ns in found.items()]


async def _memories(conn: aiosqlite.Connection, until: float, last: int) -> list[Sample]:
    """Return the versions of memories by state, and the rows of the largest namespaces and of all others together."""
    rows, share = await read_some(conn, until, load_queries("monitor.sql")["some_versions"].sql, {}, last, _VERSIONS)
    states, sizes = Counter[str](), Counter[str]()
    for namespace, number, deleted, superseded in rows:
        states.update(current=number - deleted - superseded, superseded=superseded, deleted=deleted)
        sizes[printable(str(namespace))] += number
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    largest = {name: sizes[name] for name in names[:_NAMESPACES]}
    if rest := names[_NAMESPACES:]:
        largest[_OTHERS] = sum(sizes[name] for name in rest)
    return [
        Sample(alerts.READ, share, {"of": "namespaces and versions"}),
        *(Sample("abathur_memory_versions", round(n / share), {"state": state}) for state, n in states.items()),
        *(Sample("abathur_namespace_rows", round(n / share), {"namespace": name}) for name, n in largest.items()),
    ]
