"""What monitor keeps: its samples in the table metrics of the database itself, for so many days."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from abathur_nb.connection import connect, explain_error
from abathur_nb.database import Database
from abathur_nb.errors import AbathurError
from abathur_nb.operate.gauges import GAUGES, UP, Sample, Snapshot
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.wording import counted, moment_of, timestamp

__all__ = ["SNAPSHOTS", "Moment", "read_recorded", "record_snapshot"]

_NAME = "record"
SNAPSHOTS = 500  # that are read of what was recorded: a chart shows no more points than that
Moment = tuple[datetime, Sample]


async def record_snapshot(settings: Settings, snapshot: Snapshot, keep_days: int) -> Check:
    """Write a snapshot's samples into the table metrics, and remove its gauges' older ones; both, or neither."""
    ask, taken_at = load_queries("monitor.sql"), timestamp(snapshot.taken_at)
    before = timestamp(snapshot.taken_at - timedelta(days=keep_days))
    expected = f"what was measured is kept for {keep_days:,} days"
    rows = [
        {"timestamp": taken_at, "name": s.name, "value": s.value, "labels": _text(s.labels)} for s in snapshot.samples
    ]
    try:
        async with Database.open(settings) as db, db.write() as conn:
            await conn.executemany(ask["insert_metric"].sql, rows)
            cursors = [await conn.execute(ask["delete_metrics"].sql, {"name": n, "before": before}) for n in GAUGES]
            removed = sum(cursor.rowcount for cursor in cursors)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        return Check(_NAME, "error", expected, f"nothing was written: {fault.observed}", fault.remedy)
    return Check(
        _NAME,
        "pass",
        expected,
        f"{counted(len(rows), 'row')} written to the table metrics, {removed:,} old ones removed",
    )


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
            found += _samples(name, rows)
    return found, len(every)


def _samples(name: str, rows: Iterable[sqlite3.Row]) -> Iterator[Moment]:
    for moment, value, text in rows:
        try:
            at = moment_of(moment)
            labels = json.loads(text or "{}")
            yield at, Sample(name, float(value), {str(k): str(v) for k, v in labels.items()})
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue


def _text(labels: Mapping[str, str]) -> str | None:
    return json.dumps(dict(labels), ensure_ascii=False) if labels else None
