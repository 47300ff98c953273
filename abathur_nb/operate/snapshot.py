"""The snapshot: one look at what is watched of a database, of its disk, its backups and its validations."""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle

import aiosqlite

from abathur_nb.connection import connect, explain_error, pragma
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.past import past_runs
from abathur_nb.evidence.reading import read_entry, run_ids
from abathur_nb.location import free_mb
from abathur_nb.operate.gauges import LAST_BACKUP, LAST_VALIDATION, RETRIEVAL, TAKEN, UP, Sample, Snapshot, place_of
from abathur_nb.operate.manifest import list_backups, newest_fit, of_database
from abathur_nb.percentiles import percentiles
from abathur_nb.report import Check, Report
from abathur_nb.scratch import nearest_existing
from abathur_nb.settings import Settings
from abathur_nb.sql import Query, load_queries
from abathur_nb.target import refusal
from abathur_nb.values import decoded
from abathur_nb.wording import MB, printable, timestamp
from abathur_nb.workloads import one_cpu, time_reads

__all__ = ["take_snapshot"]

_NAME = "snapshot"
_NAMESPACES = 20  # that are counted by themselves: each is a series of its own for as long as anybody keeps it
_KEYS = 500  # distinct rows that are retrieved
_RETRIEVALS = 1000  # of sessions, and of memories
_OTHERS = "others"  # what the query calls the rest
# The retrievals that have a limit: the query, what draws rows for it, the columns that the store decodes.
_RETRIEVED = {
    "session": ("get_session", "some_sessions", ("events", "state", "metadata")),
    "memory": ("get_memory", "some_memories", ("value", "metadata")),
}


async def take_snapshot(settings: Settings) -> tuple[Snapshot, Report]:
    """Measure the database at one moment, in one read transaction, and what is around it. Read-only.

    Returns what could be measured, and a report that fails where the database itself could not be read: its size, its
    disk, its backups and validations are told all the same.
    """
    now, samples = datetime.now(UTC), list[Sample]()
    report = await refusal(_NAME, settings)
    if report is None:
        try:
            # Pinned as the benchmark is, so that both can be compared.
            with one_cpu():
                samples = await _of_database(settings, now)
        except (sqlite3.Error, AbathurError) as error:
            fault = explain_error(settings.db_path, error)
            failed = Check(_NAME, "error", "the database can be read", fault.observed, fault.remedy)
            report = Report(_NAME, (failed,))
    around = [*_of_files(settings), Sample(LAST_BACKUP, _last_backup(settings))]
    around.append(Sample(LAST_VALIDATION, _last_validation(settings)))
    up = (Sample(UP, float(report is None)), Sample(TAKEN, now.timestamp()))
    snapshot = Snapshot(now, place_of(settings), (*up, *around, *samples))
    took = (datetime.now(UTC) - now).total_seconds()
    observed = f"{len(snapshot.samples)} values of {settings.db_path}, in {took:.2f} s"
    return snapshot, report or Report(_NAME, (Check(_NAME, "pass", "one moment of the database, read", observed),))


def _of_files(settings: Settings) -> Iterator[Sample]:
    for name, suffix in {"abathur_database_bytes": "", "abathur_wal_bytes": "-wal"}.items():
        size = 0
        with suppress(OSError):
            size = os.lstat(f"{settings.db_path}{suffix}").st_size
        yield Sample(name, size)
    with suppress(OSError):
        yield Sample("abathur_disk_free_bytes", free_mb(nearest_existing(settings.db_path.parent)) * MB)


def _last_backup(settings: Settings) -> float:
    """Return when the newest backup of this database was taken that can serve, 0 if there is none. Read-only."""
    with suppress(OSError, RefusedError):
        found = newest_fit(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path))
        return found.taken_at.timestamp() if found else 0.0
    return 0.0


def _last_validation(settings: Settings) -> float:
    """Return when the newest validation of this database began that passed, 0 if there is none. Read-only."""
    archive = settings.archive_dir
    with suppress(RefusedError):
        lines = read_ledger(archive).runs
        for run_id in sorted(run_ids(archive), reverse=True):
            for run in past_runs([read_entry(archive, run_id, lines.get(run_id))]):
                if (run.notebook, run.verdict) == ("validate", "pass") and run.is_of(settings):
                    return run.started_at.timestamp()
    return 0.0


async def _of_database(settings: Settings, now: datetime) -> list[Sample]:
    ask = load_queries("monitor.sql")
    since = {"since": timestamp(now - timedelta(days=1))}
    async with connect(settings.db_path, settings=settings) as conn:
        await conn.execute_fetchall("BEGIN")
        page, pages, free = [await pragma(conn, name) for name in ("page_size", "page_count", "freelist_count")]
        samples = [Sample("abathur_database_free_bytes", page * free)]
        tables = await conn.execute_fetchall(ask["growth"].sql, since)
        share = sum(recent for _, _, recent in tables) / max(1, sum(rows for _, rows, _ in tables))
        samples.append(Sample("abathur_database_growth_bytes_per_day", page * (pages - free) * share))
        for what, names in _RETRIEVED.items():
            samples += await _retrieved(conn, what, *names)
        ((versions, deleted, current),) = await conn.execute_fetchall(ask["memory_versions"].sql)
        states = {"current": current, "superseded": versions - deleted - current, "deleted": deleted}
        samples += [Sample("abathur_memory_versions", n, {"state": state}) for state, n in states.items()]
        samples += [Sample("abathur_rows", rows, {"table": table}) for table, rows, _ in tables]
        samples += [Sample("abathur_rows_of_last_day", recent, {"table": table}) for table, _, recent in tables]
        samples += await _of_namespaces(conn, ask, since)
    return samples


async def _of_namespaces(
    conn: aiosqlite.Connection, ask: Mapping[str, Query], since: Mapping[str, str]
) -> list[Sample]:
    rows = await conn.execute_fetchall(ask["namespaces"].sql, {"limit": _NAMESPACES})
    largest = {str(namespace): int(number) for namespace, number in rows}
    recent = Counter[str]()
    for namespace, number in await conn.execute_fetchall(ask["recent_namespaces"].sql, since):
        recent[namespace if namespace in largest else _OTHERS] += number
    found = {namespace: {"namespace": printable(namespace)} for namespace in largest}
    return [
        *(Sample("abathur_namespace_rows", largest[namespace], of) for namespace, of in found.items()),
        *(Sample("abathur_namespace_rows_of_last_day", recent[namespace], of) for namespace, of in found.items()),
    ]


async def _retrieved(
    conn: aiosqlite.Connection, what: str, query: str, drawing: str, columns: Iterable[str]
) -> list[Sample]:
    """Time one of the store's retrievals, of rows drawn at random; no sample where there is no row."""
    drawn = await conn.execute_fetchall(load_queries("monitor.sql")[drawing].sql, {"draws": _KEYS})
    if not drawn:
        return []
    sql = load_queries()[query].sql

    async def retrieve(row: sqlite3.Row) -> object:
        (found,) = await conn.execute_fetchall(sql, dict(row))
        return decoded(found, columns)

    reads = (partial(retrieve, row) for row in cycle(drawn))
    found = percentiles(await time_reads(reads, _RETRIEVALS))
    labels = ({"retrieval": what, "percentile": f"p{p.level * 100:g}"} for p in found)
    return [Sample(RETRIEVAL, p.value / 1000, of) for p, of in zip(found, labels, strict=True)]
