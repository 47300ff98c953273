"""One look tells what matters, changes nothing unless it is to be kept, and what is kept is kept for so long."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from damage import ROWS, held, query, run_sql, untouched
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.measure.alerts import GAUGES, LAST_BACKUP, LAST_VALIDATION, RETRIEVAL, UP
from abathur_nb.measure.snapshot import take_snapshot
from abathur_nb.runbook.monitor import Monitoring, monitor
from abathur_nb.text import timestamp


def value(monitoring: Monitoring, name: str, **labels: str) -> float:
    found = monitoring.snapshot.value(name, labels)
    assert found is not None, f"{name} was not measured"
    return found


def add_metric(settings: Settings, moment: datetime, name: str, of: str = "NULL") -> None:
    given = f"'{timestamp(moment)}', '{name}', 7, {of}"
    run_sql(settings.db_path, f"INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES ({given})")


async def fill(settings: Settings) -> None:
    """Make a session, three versions of one memory, and another one that is deleted."""
    async with nb.Database.open(settings) as db:
        await db.sessions.create_session("s1", "app", "alice")
        await db.memory.add_memory("user:alice", "a", {}, "semantic", "session:s1")
        await db.memory.update_memory("user:alice", "a", {"x": 1}, "session:s1")
        await db.memory.update_memory("user:alice", "a", {"x": 2}, "session:s1")
        await db.memory.add_memory("user:bob", "b", {}, "semantic", "session:s1")
        await db.memory.delete_memory("user:bob", "b")


async def test_what_is_counted_is_what_there_is(database: Settings) -> None:
    await fill(database)
    found = await monitor(database)
    assert value(found, "abathur_rows", table="memory_entries") == 3 + 3 + 1
    assert value(found, "abathur_rows_of_last_day", table="sessions") == 1
    assert [value(found, "abathur_memory_versions", state=s) for s in ("current", "superseded", "deleted")] == [4, 2, 1]
    assert value(found, "abathur_namespace_rows", namespace="user:alice") == 3
    assert value(found, "abathur_database_bytes") == database.db_path.stat().st_size
    ((pages,),) = query(database.db_path, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    assert value(found, "abathur_database_growth_bytes_per_day") == pages, "every row is of today"
    assert 0 < value(found, RETRIEVAL, retrieval="session", percentile="p50") < 1
    assert {sample.name for sample in found.snapshot.samples} == set(GAUGES), "each gauge is measured"


async def test_a_look_changes_nothing_and_what_it_measured_is_kept_in_the_record(database: Settings) -> None:
    snapshot, report = await take_snapshot(database)
    assert report.ok
    timed = [snapshot.value(RETRIEVAL, {"retrieval": name, "percentile": "p99"}) for name in ("session", "memory")]
    assert [value is None for value in timed] == [True, False], "there is no session to retrieve"
    run_sql(database.db_path, *ROWS)
    with untouched(database.db_path):
        found = await monitor(database)
    assert found.report.ok
    assert [UP, {}, 1.0] in json.loads(json.dumps(found.to_record()))["metrics"]["samples"]


async def test_what_is_recorded_is_read_back_and_old_measurements_go(database: Settings) -> None:
    now = datetime.now(UTC)
    add_metric(database, now - timedelta(days=40), UP)
    add_metric(database, now - timedelta(days=40), "abathur_namespace_rows_of_last_day")  # of an earlier version
    add_metric(database, now - timedelta(days=20), UP)
    add_metric(database, now - timedelta(days=40), "an_application_s_own")
    first = await monitor(database, record=True, keep_days=30)
    assert first.report.ok
    names = [name for (name,) in query(database.db_path, "SELECT metric_name FROM metrics ORDER BY timestamp")]
    assert names[:2] == ["an_application_s_own", UP], "only what is the monitor's own and too old is removed"
    assert len(names) == len(first.snapshot.samples) + 2
    again = await monitor(database)
    assert [sample.value for _, sample in again.moments if sample.name == UP] == [7, 1, 1]
    assert len({at for at, _ in again.moments}) == 3
    assert (await nb.validate_database(database)).ok
    assert set(again.to_frame()["of"]) >= {"memory, p99", "memory_entries", ""}


async def test_of_many_recorded_snapshots_some_are_read_spread_over_all_the_time(database: Settings) -> None:
    now = datetime.now(UTC)
    moments = [now - timedelta(minutes=minutes) for minutes in range(1, 5_001)]
    labels = '{"table":"tasks"}'
    rows = [(timestamp(at), name, 7, of) for at in moments for name, of in ((UP, None), ("abathur_rows", labels))]
    with closing(sqlite3.connect(database.db_path)) as conn:
        conn.executemany("INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (?, ?, ?, ?)", rows)
        conn.commit()
    found = await monitor(database)
    for name in (UP, "abathur_rows"):
        read = [at for at, sample in found.moments if sample.name == name and sample.value == 7]
        assert 400 < len(read) <= 500
        assert read[-1] - read[0] > timedelta(minutes=4_900)
        assert max(after - before for before, after in pairwise(read)) < timedelta(minutes=60)
    check = check_of(found.report, "what was recorded")
    assert "5,000 snapshots" in check.observed


async def test_what_cannot_be_recorded_fails_and_leaves_nothing_behind(database: Settings) -> None:
    impatient = replace(database, busy_timeout_ms=1)
    with held(database.db_path, "BEGIN IMMEDIATE"):
        found = await monitor(impatient, record=True)
    check = check_of(found.report, "record")
    assert check.status == "error"
    assert "locked" in check.observed
    assert query(database.db_path, "SELECT * FROM metrics") == []


async def test_measurements_of_the_future_are_named_and_left_out(database: Settings) -> None:
    now = datetime.now(UTC)
    for ahead in (-60, 240, 3600, 366 * 86_400):
        add_metric(database, now + timedelta(seconds=ahead), UP)
    found = await monitor(database)
    check = check_of(found.report, "future samples")
    assert (check.status, check.observed) == ("warn", "2 samples, the last one 366.0 days in the future: left out")
    assert len([sample for _, sample in found.moments if sample.name == UP]) == 3
    run_sql(database.db_path, "DELETE FROM metrics WHERE timestamp > datetime('now', '+5 minutes')")
    assert "future samples" not in {check.name for check in (await monitor(database)).report.checks}


async def test_the_last_backup_and_the_last_green_validation_are_told(database: Settings, tmp_path: Path) -> None:
    begun = datetime.now(UTC).timestamp()
    assert value(await monitor(database), LAST_BACKUP) == 0
    (await nb.backup_database(database)).raise_for_failures()
    run = nb.start_run(database, "validate")
    run.seal(await nb.validate_database(database))
    found = await monitor(database)
    assert begun < value(found, LAST_BACKUP) < value(found, LAST_VALIDATION)
    # Neither is another database's, nor is a validation that failed a green one.
    other = nb.resolve("development", db_path=tmp_path / "other" / "x.db", backup_dir=database.backup_dir)
    other = replace(other, archive_dir=database.archive_dir)
    (await nb.initialize_database(other)).raise_for_failures()
    run_sql(other.db_path, "DROP INDEX idx_audit_task")
    nb.start_run(other, "validate").seal(await nb.validate_database(other))
    (await nb.backup_database(other)).raise_for_failures()
    found = await monitor(other)
    assert (value(found, LAST_BACKUP), value(found, LAST_VALIDATION)) == (0, 0)


async def test_a_database_that_is_not_there_is_told_and_not_made_and_so_is_a_wrong_argument(settings: Settings) -> None:
    found = await monitor(settings, record=True)
    assert found.report.refused
    assert not settings.db_path.parent.exists()
    wrong: list[dict[str, Any]] = [{"record": 1}, {"keep_days": 0}, {"keep_days": True}, {"keep_days": 10**6}]
    for given in wrong:
        with pytest.raises(nb.ConfigurationError, match=next(iter(given))):
            await monitor(settings, **given)
