"""The snapshot: one look at what is watched of a database, of its disk, its backups and its validations."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

from abathur_nb.connection import explain_error
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.past import past_runs
from abathur_nb.evidence.reading import read_entry, run_ids
from abathur_nb.files import nearest_existing
from abathur_nb.location import free_mb
from abathur_nb.operate.gauges import LAST_BACKUP, LAST_VALIDATION, READ, TAKEN, UP, Sample, Snapshot, place_of
from abathur_nb.operate.manifest import list_backups, newest_fit, of_database
from abathur_nb.operate.measuring import measure
from abathur_nb.report import Check, Report
from abathur_nb.settings import Settings
from abathur_nb.target import refusal
from abathur_nb.wording import MB, counted
from abathur_nb.workloads import one_cpu

__all__ = ["take_snapshot"]

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
