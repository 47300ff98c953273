"""Backup and restore in one process: whatever was lost comes back, a plan changes nothing, and all are listed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from backup_helpers import taken
from damage import ROWS, fingerprint, run_sql, untouched
from manifests import rewritten
from troubleshoot_helpers import rows_of

import abathur_nb as nb
from abathur_nb.backups import manifest
from abathur_nb.config.settings import Settings
from abathur_nb.health import checks

# In place, and by another file; what else may have been lost is tried in the tests of restore.
LOST: dict[str, Callable[[Path], object]] = {
    "rows and a table": lambda path: run_sql(path, "DELETE FROM memory_entries", "DROP TABLE metrics"),
    "its schema": lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(3996) + path.read_bytes()[4096:]),
}


@pytest.mark.parametrize("lost", LOST)
async def test_what_was_lost_comes_back_as_it_was(database: Settings, lost: str) -> None:
    run_sql(database.db_path, *ROWS)
    before = rows_of(database.db_path)
    with untouched(database.db_path):
        (await nb.backup_database(database, compress=True)).raise_for_failures()
    LOST[lost](database.db_path)
    for suffix in ("-wal", "-shm"):
        Path(f"{database.db_path}{suffix}").unlink(missing_ok=True)
    spoiled = fingerprint(database.db_path)
    plan = await nb.restore_database(database)
    assert (plan.ok, fingerprint(database.db_path)) == (True, spoiled)
    (await nb.restore_database(database, apply=True)).raise_for_failures()
    assert rows_of(database.db_path) == before
    assert (await nb.validate_database(database)).ok


async def test_backups_are_listed_newest_first_with_what_they_hold_and_damaged_ones_as_such(database: Settings) -> None:
    assert str(nb.show_backups(database)) == "no backup"
    assert not database.backup_dir.exists()
    for reason in ("first", "second"):
        (await nb.backup_database(database, reason=reason)).raise_for_failures()
    found = nb.show_backups(database).to_frame()
    assert list(found["reason"]) == ["second", "first"]
    assert [found[name].dtype.kind for name in ("taken at", "age", "rows", "MB", "restored in")] == list("Mfiff")
    assert list(found["rows"]) == [3, 3], "the seeds, without SQLite's own table"
    assert set(found["its database"]) == {"sound"}
    assert set(found["environment"]) == {"development"}
    assert all(found["restored in"] > 0)
    (manifest,) = database.backup_dir.glob("abathur_second_*.manifest.json")
    manifest.write_text("{}")
    told = nb.show_backups(database).to_frame()["its database"]
    assert [("not a backup" in text, "damaged" in text) for text in told] == [(False, False), (True, True)]


async def test_what_makes_a_backup_unfit_are_ids_of_checks_and_titles_in_an_older_manifest(database: Settings) -> None:
    ids = {check.id for check in (await nb.validate_database(database)).checks}
    source = Path(checks.__file__).read_text(encoding="utf-8")
    assert [name for name in manifest._UNFIT if name not in ids and f'"{name}"' not in source] == []
    run_sql(database.db_path, "DROP INDEX idx_audit_task", "UPDATE memory_entries SET value = '{' WHERE id = 1")
    backup = await taken(database)
    assert set(backup.findings) == {"indexes", "json_columns", "seed_memories"}
    assert backup.unfit == "its database failed indexes"
    rewritten(backup, proof={"restored_s": 1, "validated_s": 1, "findings": ["database file", "JSON columns"]})
    older = manifest.read_backup(backup.path)
    assert (older.findings, older.unfit) == (("database_file", "json_columns"), "its database failed database_file")
