"""A backup is one moment of the database, whoever writes; proven, private, never replacing; what is none is refused."""

import asyncio
import json
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from backup_helpers import content_of, run_sql, taken
from damage import untouched

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, expired, list_backups
from abathur_nb.backups.taking import unpack
from abathur_nb.config.settings import Settings
from abathur_nb.report import Report
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION


def named(report: Report, name: str) -> str:
    return next(check.observed for check in report.checks if check.name == name)


@pytest.mark.parametrize("compress", [False, True])
async def test_it_holds_what_the_database_held_in_private_files_and_the_database_is_not_touched(
    compress: bool, database: Settings, tmp_path: Path
) -> None:
    run_sql(database.db_path, "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1.5)")
    with untouched(database.db_path):
        backup = await taken(database, compress=compress)
    assert sorted(database.backup_dir.iterdir()) == [backup.path, backup.manifest]
    assert {stat.S_IMODE(path.stat().st_mode) for path in database.backup_dir.iterdir()} == {0o600}
    assert stat.S_IMODE(database.backup_dir.stat().st_mode) == 0o700
    assert backup.content == await content_of(database)
    assert backup.path.name.endswith(".db.zst" if compress else ".db")
    copy = unpack(backup, tmp_path)
    assert copy.read_bytes()[18:20] == b"\2\2", "in WAL mode"
    with closing(sqlite3.connect(copy)) as conn:
        assert conn.execute("SELECT metric_value FROM metrics").fetchall() == [(1.5,)]


async def test_of_one_millisecond_there_are_two_names(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Stopped":
            return cls(2026, 11, 23, 10, 0, 0, 999_000, tzinfo=tz)

    monkeypatch.setattr("abathur_nb.backups.taking.datetime", Stopped)
    first, second = await taken(database), await taken(database)
    names = sorted(backup.path.name for backup in list_backups(database.backup_dir)[0])
    assert names == ["abathur_manual_20261123_100000_999.db", "abathur_manual_20261123_100001_000.db"]
    assert first.content == second.content


async def test_the_digest_is_another_for_each_single_change(database: Settings) -> None:
    path = database.db_path
    run_sql(path, "INSERT INTO metrics (metric_name, metric_value, labels) VALUES ('1', 1, '{\"a\":1}')")
    digests = {(await content_of(database)).digest for _ in range(2)}
    for number, change in enumerate(
        (
            "UPDATE metrics SET metric_value = 2",
            "UPDATE metrics SET labels = '{}'",
            "UPDATE metrics SET labels = CAST('{\"a\":1}' AS BLOB)",
            "UPDATE metrics SET metric_name = CAST(metric_name AS BLOB)",
            "UPDATE sqlite_sequence SET seq = 9 WHERE name = 'metrics'",
            "ALTER TABLE metrics ADD COLUMN more",
            "DELETE FROM metrics",
        ),
        1,
    ):
        assert len(digests) == number
        run_sql(path, "PRAGMA ignore_check_constraints = ON", change)
        digests.add((await content_of(database)).digest)
    assert len(digests) == 8


async def test_a_broken_database_is_backed_up_too_and_that_is_told(database: Settings) -> None:
    run_sql(database.db_path, "DROP INDEX idx_audit_task")
    report = await nb.backup_database(database)
    assert report.ok
    assert named(report, "what it holds") == "one that fails: indexes"
    assert list_backups(database.backup_dir)[0][0].findings == ("indexes",)


async def test_a_wrong_argument_is_refused_before_anything_is_made(database: Settings) -> None:
    for arguments in ({"reason": "../x"}, {"reason": "A"}, {"reason": ""}, {"compress": "yes"}):
        with pytest.raises(nb.ConfigurationError):
            await nb.backup_database(database, **arguments)  # type: ignore[arg-type]
    for keep in ({"last": -1}, {"daily": 1.5}, {"weekly": True}, dict.fromkeys(("last", "daily", "weekly"), 0)):
        with pytest.raises(nb.ConfigurationError, match="keep_"):
            nb.Retention(**{"monthly": 0, **keep})  # type: ignore[arg-type]
    assert not database.backup_dir.exists()


async def test_where_there_is_no_database_or_no_room_or_no_directory_it_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    assert (await nb.backup_database(settings)).refused
    (await nb.initialize_database(settings)).raise_for_failures()
    assert (await nb.backup_database(replace(settings, min_free_mb=10**9))).refused
    (tmp_path / "file").touch()
    assert (await nb.backup_database(replace(settings, backup_dir=tmp_path / "file"))).refused
    (tmp_path / "link").symlink_to(tmp_path)
    assert (await nb.backup_database(replace(settings, backup_dir=tmp_path / "link"))).refused


async def test_two_at_once_are_two_backups(database: Settings) -> None:
    reports = await asyncio.gather(*(nb.backup_database(database) for _ in range(4)))
    assert all(report.ok for report in reports), str(reports[0])
    assert len(list_backups(database.backup_dir)[0]) == 4


def made(days: float, *, findings: tuple[str, ...] = (), reason: str = "nightly") -> Backup:
    """Return a backup, of which there is no file, taken so many days before a certain moment."""
    taken_at = f"2026-11-{23 - int(days):02} {12 - int(days % 1 * 24):02}:00:00.000"
    ids = {"application_id": APPLICATION_ID, "user_version": SCHEMA_VERSION}
    facts = {"taken_at": taken_at, "proof": {"findings": list(findings)}, "reason": reason, **ids}
    return Backup(Path(f"/nowhere/{reason}-{days}"), facts)


def test_retention_keeps_the_newest_and_the_newest_of_each_period() -> None:
    backups = [made(days) for days in (20, 10, 9, 2.25, 2, 1, 0.25, 0)]
    gone = expired(backups, nb.Retention(last=1, daily=2, weekly=0, monthly=0))
    assert [backup.path.name for backup in gone] == [f"nightly-{days}" for days in (20, 10, 9, 2.25, 2, 0.25)]
    assert expired(backups, nb.Retention(last=8, daily=0, weekly=0, monthly=0)) == []


def test_retention_never_lets_go_of_the_newest_sound_one() -> None:
    backups = [made(9), made(8), *(made(days, findings=("indexes",)) for days in (3, 2, 1))]
    gone = expired(backups, nb.Retention(last=1, daily=0, weekly=0, monthly=0))
    assert [backup.path.name for backup in gone] == ["nightly-9", "nightly-3", "nightly-2"]


def test_what_was_taken_before_changes_does_not_push_out_the_others() -> None:
    backups = [made(9), *(made(days, reason="pre_repair") for days in (3, 2, 1))]
    gone = expired(backups, nb.Retention(last=2, daily=0, weekly=0, monthly=0))
    assert [backup.path.name for backup in gone] == ["pre_repair-3"]


async def test_retention_leaves_another_database_s_backups_alone(database: Settings, tmp_path: Path) -> None:
    other = nb.resolve("development", db_path=tmp_path / "other" / "abathur.db", backup_dir=database.backup_dir)
    (await nb.initialize_database(other)).raise_for_failures()
    kept = await taken(other)
    one = nb.Retention(last=1, daily=0, weekly=0, monthly=0)
    for _ in range(3):
        (await nb.backup_database(database, keep=one)).raise_for_failures()
    assert [b.facts["database"] for b in list_backups(database.backup_dir)[0]] == [
        str(other.db_path),
        str(database.db_path),
    ]
    assert kept.path.exists()
    assert json.loads(kept.manifest.read_text())["file"] == kept.path.name
