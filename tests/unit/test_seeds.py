"""The seed memories: what is wrong with one is named, and repaired by the evidence."""

import asyncio
import sqlite3
import subprocess
from contextlib import closing

import pytest
from damage import run_sql
from validate_helpers import validated

from abathur_nb.config.settings import Settings
from abathur_nb.store.target import repair_command

CONFIG = "WHERE namespace = 'app:abathur:config'"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (f"DELETE FROM memory_entries {CONFIG}", "version 1 is missing"),
        (f"UPDATE memory_entries SET value = '{{}}' {CONFIG}", "version 1 holds '{}'"),
        (f"UPDATE memory_entries SET value = '{{broken' {CONFIG}", "version 1 holds '{broken'"),
        (f"UPDATE memory_entries SET value = x'00' {CONFIG}", "version 1 holds b'\\x00'"),
        (f"UPDATE memory_entries SET version = 2 {CONFIG}", "version 1 is missing"),
        (f"UPDATE memory_entries SET version = 'x' {CONFIG}", "version 1 is missing"),
        (f"UPDATE memory_entries SET value = CAST(x'ff' AS TEXT) {CONFIG}", r"version 1 holds '\udcff'"),
        (f"UPDATE memory_entries SET value = replace(value, '365', '365.0') {CONFIG}", "version 1 holds '{\"episodic"),
        (
            f"UPDATE memory_entries SET memory_type = 'episodic' {CONFIG}",
            "version 1 is episodic, created by system, updated by system",
        ),
        (
            f"UPDATE memory_entries SET created_by = NULL {CONFIG}",
            "version 1 is procedural, created by None, updated by system",
        ),
        (
            f"UPDATE memory_entries SET updated_by = 'x' {CONFIG}",
            "version 1 is procedural, created by system, updated by x",
        ),
        (f"UPDATE memory_entries SET metadata = '{{\"a\":1}}' {CONFIG}", "version 1 holds '{\"a\":1}' as its metadata"),
    ],
)
def test_a_seed_whose_version_1_is_altered_or_missing_is_named_and_repaired_by_the_evidence(
    database: Settings, spoil: str, told: str
) -> None:
    """The evidence is what a sqlite3 shell reads; what refers to the row keeps on doing so."""
    path = database.db_path
    run_sql(path, f"INSERT INTO audit (action_type, memory_entry_id) SELECT 'x', id FROM memory_entries {CONFIG}")
    run_sql(path, spoil)
    check = asyncio.run(validated(database))["seed memories"]
    assert check.status == "fail"
    assert check.observed.startswith("2 of 3")
    named, repairing = check.evidence
    assert named.startswith(f"-- app:abathur:config / memory_lifecycle_policies: {told}")
    assert check.remedy == repair_command(database)
    subprocess.run(["sqlite3", "-bail", path], input=f"{named}\n{repairing}\n", text=True, check=True)
    assert asyncio.run(validated(database))["seed memories"].observed.startswith("3 of 3")
    kept = "SELECT count(*) FROM audit JOIN memory_entries ON memory_entry_id = memory_entries.id"
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute(kept).fetchone() == (0 if spoil.startswith("DELETE") else 1,)


@pytest.mark.parametrize("deleted", [0, 1])
async def test_a_version_1_that_is_put_back_does_not_revive_what_a_user_deleted(
    database: Settings, deleted: int
) -> None:
    run_sql(database.db_path, f"UPDATE memory_entries SET version = 2, is_deleted = {deleted} {CONFIG}")
    check = (await validated(database))["seed memories"]
    run_sql(database.db_path, check.evidence[1])
    with closing(sqlite3.connect(database.db_path)) as conn:
        found = conn.execute(f"SELECT version, is_deleted FROM memory_entries {CONFIG} ORDER BY version").fetchall()
    assert found == [(1, deleted), (2, deleted)]


async def test_later_versions_of_a_seed_are_the_users_own_and_only_reported(database: Settings) -> None:
    run_sql(
        database.db_path,
        "INSERT INTO memory_entries (namespace, key, value, memory_type, version)"
        f" SELECT namespace, key, '{{}}', memory_type, 2 FROM memory_entries {CONFIG}",
        "UPDATE memory_entries SET is_deleted = 1 WHERE namespace = 'app:abathur:defaults'",
        f"UPDATE memory_entries SET value = json(value) {CONFIG} AND version = 1",  # in another layout
    )
    check = (await validated(database))["seed memories"]
    assert (check.status, check.observed) == ("pass", "3 of 3; 1 with later versions")
