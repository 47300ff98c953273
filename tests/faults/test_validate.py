"""Every check of validate, each in a database in which it fails: and in none is a byte of the main file changed."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from damage import TASK, empty_index, flip_bits, held, run_as_other, run_sql, untouched
from validate_helpers import failing, validated

from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.health.checks import _begin
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.connection import connect
from abathur_nb.store.database import Database
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.store.sql import DDL_FILES, SEED_FILE, statements
from abathur_nb.store.target import repair_command

# --- all of it


# --- references


async def test_a_reference_without_its_row_is_named_by_key_column_and_value(database: Settings) -> None:
    agent = "INSERT INTO agents (id, name, specialization, task_id, model) VALUES"
    run_sql(
        database.db_path,
        f"{agent} ('a', 'n', 's', 'none', 'm')",
        f"{agent} (CAST(x'61ff' AS TEXT), 'n', 's', CAST(x'ff' AS TEXT), 'm')",
        "INSERT INTO audit (action_type, memory_entry_id) VALUES ('x', 99)",
        "INSERT INTO audit (action_type, task_id) VALUES ('x', 'none')",  # no reference: it outlives its task
        "INSERT INTO checkpoints (task_id, iteration, state, session_id) VALUES ('t', 7, '{}', NULL)",
        "CREATE TABLE other (x REFERENCES tasks)",  # whose rows are not ours to judge
        "INSERT INTO other VALUES ('none')",
    )
    checks = await validated(database)
    assert failing(checks) == {"foreign keys", "readable text"}
    assert checks["foreign keys"].observed == "4 references without a row"
    assert set(checks["foreign keys"].evidence) == {
        "agents.task_id: 'none' is not in tasks.id, by key: 'a'",
        r"agents.task_id: b'\xff' is not in tasks.id, by key: b'a\xff' (rowid 2)",
        "audit.memory_entry_id: 99 is not in memory_entries.id, by key: 1",
        "checkpoints.task_id: 't' is not in tasks.id, by key: 't', 7",
    }


# --- the file


async def test_a_database_that_is_not_in_wal_mode_fails(database: Settings) -> None:
    run_sql(database.db_path, "PRAGMA journal_mode = DELETE")
    check = (await validated(database))["journal mode"]
    assert (check.status, check.observed) == ("fail", "delete")
    assert check.remedy.startswith(shlex.join(database.command("troubleshoot")))


async def test_any_flipped_or_missing_page_is_found_and_the_file_left(database: Settings) -> None:
    original = database.db_path.read_bytes()
    for page in range(1, len(original) // 4096, 5):
        database.db_path.write_bytes(original)
        flip_bits(database.db_path, 4096 * page, 16)
        assert await corrupt(database), page
    for kept in (100, 512, 4096, 5000, 100_000):
        database.db_path.write_bytes(original[:kept])
        assert await corrupt(database), kept


async def corrupt(settings: Settings) -> bool:
    with untouched(settings.db_path):
        report = await validate_database(settings)
    failed = [check for check in report.checks if check.failed]
    assert not [check for check in failed if not check.remedy]
    return any("CORRUPT" in check.observed or "not SQLite" in check.observed for check in failed)


async def test_an_index_that_lacks_entries_can_be_rebuilt_and_says_so(database: Settings) -> None:
    run_sql(database.db_path, TASK)
    empty_index(database.db_path, "idx_tasks_submitted_at")
    checks = await validated(database)
    assert failing(checks) == {"integrity"}
    assert "idx_tasks_submitted_at" in checks["integrity"].observed
    assert checks["integrity"].remedy == repair_command(database)
    run_sql(database.db_path, "REINDEX")
    assert failing(await validated(database)) == set()


class Interrupted:
    """Stand for a connection, with somebody who commits before or after its snapshot is taken."""

    def __init__(self, conn: aiosqlite.Connection, path: Path, moment: str) -> None:
        self.conn, self.path, self.moment = conn, path, moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self.conn, name)

    async def execute_fetchall(self, sql: str) -> Any:
        """Run a statement, and perhaps somebody else's."""
        if sql == self.moment:
            run_sql(self.path, TASK)
        found = await self.conn.execute_fetchall(sql)
        if f"after {sql}" == self.moment:
            run_sql(self.path, TASK)
        return found


@pytest.mark.parametrize("moment", ["", "BEGIN", "PRAGMA schema_version", "after PRAGMA schema_version"])
async def test_the_rows_are_read_by_a_second_connection_only_if_it_sees_the_same_snapshot(
    database: Settings, moment: str
) -> None:
    path, count = database.db_path, "SELECT count(*) FROM tasks"
    async with connect(path, database.busy_timeout_ms) as conn, connect(path, database.busy_timeout_ms) as other:
        beside: Any = Interrupted(other, path, moment)
        reader = await _begin(conn, beside)
        assert reader is (conn if moment else beside)
        (seen,), (seen_beside,) = [list(await each.execute_fetchall(count)) for each in (conn, other)]
    assert (seen[0], seen_beside[0]) == (bool(moment), moment in ("BEGIN", "PRAGMA schema_version"))


async def test_beside_a_busy_writer_it_sees_one_snapshot_and_passes(database: Settings) -> None:
    with held(database.db_path, "BEGIN IMMEDIATE", "DELETE FROM memory_entries"):
        assert failing(await validated(database)) == set()


def test_without_write_access_to_the_directory_it_says_so_and_does_not_raise(public: Path) -> None:
    """SQLite then cannot make the -shm that it needs to read."""
    program = (
        "report = asyncio.run(nb.validate_database(nb.resolve('development', db_path=sys.argv[1])))\n"
        "print(report.ok, report.refused, report.checks[0].observed, report.checks[0].remedy)\n"
    )
    path = public / "x.db"
    run_as_root = (
        "import asyncio, sys, abathur_nb as nb\nasyncio.run(nb.initialize_database(nb.resolve(db_path=sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", run_as_root, str(path)], check=True)
    path.chmod(0o644)
    with untouched(path):
        told = run_as_other(program, path)
    assert told.startswith("False True ")
    assert "may not be written to" in told


async def test_text_in_another_encoding_is_named_and_not_opened(settings: Settings) -> None:
    settings.db_path.parent.mkdir(mode=0o700)
    settings.db_path.touch(mode=0o600)
    ddl = [line for name in (*DDL_FILES, SEED_FILE) for line in statements(name)]
    identity = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}")
    run_sql(settings.db_path, "PRAGMA encoding = 'UTF-16le'", "PRAGMA journal_mode = WAL", *identity, *ddl)
    assert failing(await validated(settings)) == {"encoding"}
    with pytest.raises(RefusedError, match="encoded in UTF-16le"):
        async with Database.open(settings):
            pass
