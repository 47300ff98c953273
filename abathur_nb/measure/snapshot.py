"""The snapshot: one look at what is watched of a database, kept in its table metrics, or printed for Prometheus."""

import argparse
import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from abathur_nb.backups.manifest import list_backups, newest_fit, of_database
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import AbathurError, ConfigurationError, RefusedError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.record import past_runs, read_entry, run_ids
from abathur_nb.files import nearest_existing, os_cause, write_durably
from abathur_nb.health.path_on_disk import free_mb
from abathur_nb.measure.alerts import (
    DISK_FREE,
    GAUGES,
    LAST_BACKUP,
    LAST_VALIDATION,
    READ,
    TAKEN,
    UP,
    WAL_BYTES,
    Sample,
    Snapshot,
    place_of,
)
from abathur_nb.measure.sampling import measure
from abathur_nb.measure.workloads import one_cpu
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.database import Database
from abathur_nb.store.sql import load_queries
from abathur_nb.store.target import refusal
from abathur_nb.text import MB, counted, moment_of, printable, shown, timestamp

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
    around = [*_of_files(settings), Sample(LAST_BACKUP, _last_backup(settings))]
    around.append(Sample(LAST_VALIDATION, _last_validation(settings)))
    up = (Sample(UP, float(report is None)), Sample(TAKEN, now.timestamp()))
    snapshot = Snapshot(now, place_of(settings), (*up, *around, *samples))
    took = (datetime.now(UTC) - now).total_seconds()
    observed = f"{counted(len(snapshot.samples), 'value')} of {settings.db_path}, in {took:.2f} s"
    part = [f"{s.labels['of']} from {s.value:.2%} of the rows" for s in samples if s.name == READ and s.value < 1]
    observed += f"; estimates: {', '.join(part)}" if part else ""
    return snapshot, report or Report(_NAME, (Check(_NAME, "pass", "the database is measured", observed),))


def _of_files(settings: Settings) -> Iterator[Sample]:
    for name, suffix in {"abathur_database_bytes": "", WAL_BYTES: "-wal"}.items():
        size = 0
        with suppress(OSError):
            size = os.lstat(f"{settings.db_path}{suffix}").st_size
        yield Sample(name, size)
    with suppress(OSError):
        yield Sample(DISK_FREE, free_mb(nearest_existing(settings.db_path.parent)) * MB)


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
            for run in past_runs([read_entry(archive, run_id, lines.get(run_id))]):
                if (run.notebook, run.verdict) == _GREEN and run.is_of(settings):
                    return run.started_at.timestamp()
        return 0.0

    with suppress(RefusedError):
        lines, ids = read_ledger(archive).runs, run_ids(archive)
        # Of thousands of runs, those that the ledger says are something else are not read.
        green = [i for i in ids & lines.keys() if (lines[i].data["notebook"], lines[i].data["verdict"]) == _GREEN]
        # The order of the ledger, which no clock turns; the ids of runs that it does not know are times.
        green.sort(key=lambda run_id: lines[run_id].number, reverse=True)
        return max(newest(green), newest(sorted(ids - lines.keys(), reverse=True)))
    return 0.0


def registry_of(snapshot: Snapshot) -> CollectorRegistry:
    """Return what was measured as Prometheus has it: the environment and the database are labels of each sample."""
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for sample in snapshot.samples:
        labels = {**snapshot.place, **sample.labels}
        if sample.name not in gauges:
            gauges[sample.name] = Gauge(sample.name, GAUGES[sample.name], tuple(labels), registry=registry)
        gauges[sample.name].labels(**labels).set(sample.value)
    return registry


def command(arguments: argparse.Namespace) -> int:
    """Measure the database and write what was measured; return 1 if it could not be read, which is written too."""
    settings = resolve(arguments.env, db_path=arguments.db_path)
    output = None if arguments.output is None else _output(arguments.output)
    snapshot, report = asyncio.run(take_snapshot(settings))
    if output is None:
        sys.stdout.write(generate_latest(registry_of(snapshot)).decode())
    else:
        try:
            write_durably(output, generate_latest(registry_of(snapshot)), mode=0o644)  # the collector is another user
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
            cursors = [await conn.execute(ask["delete_metrics"].sql, {"name": n, "before": before}) for n in GAUGES]
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
    async with connect(settings.db_path, settings=settings) as conn:
        given = {"name": UP, "since": timestamp(since)}
        every = [text for (text,) in await conn.execute_fetchall(ask["recorded_moments"].sql, given)]
        moments = json.dumps(every[:: len(every) // SNAPSHOTS + 1])
        for name in GAUGES:
            rows = await conn.execute_fetchall(ask["metrics_at"].sql, {"name": name, "moments": moments})
            for moment, value, text in rows:
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    labels = {str(key): str(of) for key, of in json.loads(text or "{}").items()}
                    found.append((moment_of(moment), Sample(name, float(value), labels)))
    return found, len(every)
