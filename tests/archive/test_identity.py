"""What identifies a run: ids that sort, versions, and a database that is looked at, whatever is there."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import drop_index, edit_schema, fingerprint, flip_bits, held, run_sql, untouched

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical
from abathur_nb.evidence.run import database_identity
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION


def identity(settings: Settings) -> dict[str, Any]:
    """Return the identity, after seeing that it can stand in a record and that the main file is as it was."""
    with untouched(settings.db_path):
        found = database_identity(settings)
    assert found is not None
    assert canonical(found)
    assert found["path"] == settings.db_path.name
    return found


async def test_a_database_is_known_by_its_ids_its_size_and_the_meaning_of_its_schema(database: Settings) -> None:
    found = identity(database)
    assert found.keys() == {"path", "size", "application_id", "user_version", "schema_sha256"}
    assert (found["application_id"], found["user_version"]) == (APPLICATION_ID, SCHEMA_VERSION)
    assert found["size"] == database.db_path.stat().st_size
    assert identity(database) == found
    # Rows do not change who it is, nor does layout; what an object says does.
    run_sql(database.db_path, "INSERT INTO audit (action_type) VALUES ('x')")
    edit_schema(database.db_path, "tasks", "\n", "\n\n  ")
    assert identity(database)["schema_sha256"] == found["schema_sha256"]
    drop_index(database.db_path)
    assert identity(database)["schema_sha256"] != found["schema_sha256"]


def test_where_there_is_no_database_there_is_no_identity(settings: Settings, tmp_path: Path) -> None:
    assert database_identity(settings) is None
    (tmp_path / "file").write_text("")
    assert database_identity(replace(settings, db_path=tmp_path / "file" / "x.db")) is None
    assert not settings.db_path.parent.exists()


def renamed(changes: str) -> Callable[[Path], object]:
    """Return what gives an index a name and SQL that no CREATE could."""
    return lambda path: run_sql(
        path, "PRAGMA writable_schema = ON", f"UPDATE sqlite_master SET {changes} WHERE name = 'idx_audit_task'"
    )


DAMAGED: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("no database, but long enough to be taken for one" * 20),
    "cut off": lambda path: os.truncate(path, 5000),
    "a spoilt schema": lambda path: flip_bits(path, 100, 300),
    "names that are no text": renamed("name = x'ff00', sql = x'fe'"),
    "names that are none": renamed("name = NULL, sql = 7"),
    "broken SQL": lambda path: edit_schema(path, "idx_audit_task", "CREATE", "'"),
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_what_cannot_be_read_is_told_and_raises_nothing(kind: str, database: Settings) -> None:
    DAMAGED[kind](database.db_path)
    found = identity(database)
    assert found["size"] == database.db_path.stat().st_size
    assert str(database.db_path) in found["unread"]
    assert "schema_sha256" not in found


async def test_a_locked_database_is_said_to_be_so(database: Settings) -> None:
    with held(database.db_path, "PRAGMA journal_mode = DELETE", "BEGIN EXCLUSIVE") as holder:
        found = identity(replace(database, busy_timeout_ms=600_000))
        assert f"is locked by PID {holder.pid} " in found["unread"]
    assert "unread" not in identity(database)


async def test_a_hot_journal_is_left_to_a_writer(database: Settings) -> None:
    journal = Path(f"{database.db_path}-journal")
    run_sql(database.db_path, "PRAGMA journal_mode = DELETE")
    statements = ("PRAGMA cache_spill = 1", "PRAGMA cache_size = 1", "BEGIN", "DELETE FROM sqlite_sequence")
    grow = (
        "INSERT INTO audit (action_type) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9999) "
        "SELECT 'x' || i FROM n"
    )
    with held(database.db_path, *statements, grow):
        assert journal.stat().st_size > 0  # its owner is killed here, and nobody rolls back
    before = fingerprint(journal)
    found = identity(database)
    assert "has a hot journal" in found["unread"]
    assert fingerprint(journal) == before
