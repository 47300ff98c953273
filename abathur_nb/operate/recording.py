"""What monitor keeps: its samples in the table metrics of the database itself, for so many days."""

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import aiosqlite

from abathur_nb.connection import connect, explain_error
from abathur_nb.database import Database
from abathur_nb.errors import AbathurError
from abathur_nb.operate.gauges import GAUGES, Sample, Snapshot
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.wording import timestamp

__all__ = ["Moment", "read_recorded", "record_snapshot"]

_NAME = "record"
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
    except (sqlite3.Error, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        return Check(_NAME, "error", expected, f"nothing was written: {fault.observed}", fault.remedy)
    return Check(
        _NAME, "pass", expected, f"{len(rows):,} rows written to the table metrics, {removed:,} old ones removed"
    )


async def read_recorded(settings: Settings, since: datetime) -> list[Moment]:
    """Return what was recorded since a moment, by gauge and then by time. Read-only.

    What another program wrote under the name of a gauge and is none of its samples is left out.
    """
    found: list[Moment] = []
    async with connect(settings.db_path, settings=settings) as conn:
        for name in GAUGES:
            found += await _of_gauge(conn, name, since)
    return found


async def _of_gauge(conn: aiosqlite.Connection, name: str, since: datetime) -> list[Moment]:
    given = {"name": name, "since": timestamp(since)}
    moments = []
    for moment, value, text in await conn.execute_fetchall(load_queries("monitor.sql")["metrics_since"].sql, given):
        try:
            at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
            labels = json.loads(text or "{}")
            moments.append((at, Sample(name, float(value), {str(k): str(v) for k, v in labels.items()})))
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
    return moments


def _text(labels: Mapping[str, str]) -> str | None:
    return json.dumps(dict(labels), ensure_ascii=False) if labels else None
