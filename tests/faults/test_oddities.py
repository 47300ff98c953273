"""What other programs leave in a database: each verb ends soon, a backup is good, and what is not ours is named."""

import hashlib
import marshal
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from backup_helpers import content_of
from damage import ROWS, run_sql
from oddities import ODD, ODD_TABLES
from sampling import sampled

import abathur_nb as nb
from abathur_nb.backups.copying import read_content
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical
from abathur_nb.report import Report
from abathur_nb.runbook.validate import show_schema
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import expected_tables

EVERY = ODD | ODD_TABLES
# The words for what is not a table.
NAMES = {"a trigger": "trigger t", "a module that is absent": "virtual table alien", "rtree": "virtual table r"}


def not_ours(name: str) -> str:
    return NAMES.get(name, "view v" if "view" in name else "virtual table f") if name in ODD else ""


def findings(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.failed}


async def taken(settings: Settings) -> Backup:
    report = await nb.backup_database(settings)
    assert report.ok, str(report)
    return list_backups(settings.backup_dir)[0][-1]


SAMPLE = ("fts5", "a trigger", "a view without end", "a module that is absent", "columns that cost", "without rowid")


@pytest.fixture
def odd(request: pytest.FixtureRequest, database: Settings) -> Settings:
    run_sql(database.db_path, *ROWS, *EVERY[request.param])
    return database


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.node.callspec.params["odd"]
    return found


@pytest.mark.parametrize("odd", sampled(EVERY, *SAMPLE), indirect=True)
async def test_a_backup_of_it_is_good_and_comes_back(odd: Settings, name: str) -> None:
    validated = await nb.validate_database(odd)
    assert findings(validated) == ({"other objects"} if name in ODD else set())
    backup, before = await taken(odd), odd.db_path.stat().st_size
    report = await nb.backup_database(odd)
    assert not_ours(name) in str(report)
    wanted = await content_of(odd)
    drill = await nb.restore_database(odd, backup=backup.path, drill=True)
    assert drill.ok, str(drill)
    for state in ("a changed database", "none"):
        if state == "none":
            odd.db_path.unlink()
            for suffix in ("-wal", "-shm"):
                odd.db_path.with_name(odd.db_path.name + suffix).unlink()
        else:
            run_sql(odd.db_path, "DELETE FROM metrics")
        plan = await nb.restore_database(odd, backup=backup.path)
        report = await nb.restore_database(odd, backup=backup.path, apply=True)
        assert report.ok, str(report)
        assert not_ours(name) in next(check.observed for check in plan.checks if check.name == "backup")
        assert await content_of(odd) == wanted
        assert odd.db_path.stat().st_size == before
        if name in ODD:
            assert findings(await nb.validate_database(odd)) == {"other objects"}
    report = await nb.roll_back(odd, to="fresh", apply=True)
    assert report.ok, str(report)


async def test_what_a_module_keeps_is_restored_whole(database: Settings) -> None:
    run_sql(database.db_path, *ODD["fts5 of another table's content"], *ODD["rtree"])
    backup = await taken(database)
    run_sql(database.db_path, "DROP TABLE f", "DROP TABLE r")
    assert (await nb.restore_database(database, backup=backup.path, apply=True)).ok
    with closing(sqlite3.connect(database.db_path)) as conn:
        assert conn.execute("SELECT id FROM r WHERE low > 1").fetchall() == [(1,)]
        assert conn.execute("SELECT count(*) FROM f WHERE f MATCH 'true OR enabled'").fetchone() is not None
        conn.execute("INSERT INTO f (f) VALUES ('integrity-check')")


@pytest.mark.parametrize("odd", sampled(EVERY, *SAMPLE), indirect=True)
async def test_every_verb_that_looks_reads_what_is_ours_and_a_repair_of_it_leaves_the_rest(
    odd: Settings, name: str
) -> None:
    assert (await show_schema(odd)).note == ""
    for look in (nb.explore, nb.monitor, nb.explain_queries):
        result: Any = await look(odd)
        assert result.report.ok, str(result.report)
    report = await nb.troubleshoot(odd)
    assert report.refused == (name == "a trigger"), "a repair would set a trigger off"
    assert findings(report) <= {"other objects", "database file"}
    if name in ("a trigger", "a view"):
        with pytest.raises(nb.RefusedError, match=f"holds {not_ours(name)}"):
            async with nb.Database.open(odd):
                pass
    if name != "a trigger":
        before = (await content_of(odd)).rows
        run_sql(odd.db_path, "DROP INDEX idx_tasks_parent", "UPDATE tasks SET input_data = 'x'")
        assert findings(await nb.troubleshoot(odd, repair=True)) <= {"other objects"}
        assert findings(await nb.validate_database(odd)) <= {"other objects"}
        assert (await content_of(odd)).rows == before


async def test_the_digest_of_an_ordinary_database_is_that_of_older_manifests(database: Settings) -> None:
    """Written out as it was before columns that SQLite computes, virtual tables and wide tables were thought of."""
    run_sql(database.db_path, *ROWS, "ANALYZE")
    digest = hashlib.sha256()
    async with connect(database.db_path, settings=database) as conn:
        conn.text_factory = bytes
        for table in sorted([*expected_tables(), "sqlite_sequence"]):
            rows = await conn.execute_fetchall(f"SELECT * FROM {table} NOT INDEXED")
            info = await conn.execute_fetchall("SELECT name FROM pragma_table_xinfo(?) ORDER BY cid", (table,))
            digest.update(canonical({"table": table, "columns": [column.decode() for (column,) in info]}))
            kinds = [f"typeof({column.decode()}) = 'text'" for (column,) in info]
            texts = await conn.execute_fetchall(f"SELECT {', '.join(kinds)} FROM {table} NOT INDEXED")
            for row, text in zip(rows, texts, strict=True):
                digest.update(marshal.dumps(("".join(map(str, text)), *row), 2))
    async with connect(database.db_path, settings=database) as conn:
        assert (await read_content(conn)).digest == digest.hexdigest()


# Ordinary tables and indexes of others that this process can't use, or whose rows break their own rules.
UNUSABLE = {
    "an index by another collation": "CREATE INDEX o ON memory_entries (key COLLATE theirs)",
    "an index by another function": "CREATE INDEX o ON tasks (theirs(status))",
    "a key by another collation": "CREATE TABLE o (k TEXT COLLATE theirs PRIMARY KEY); INSERT INTO o VALUES ('x')",
    "a table kept by another collation": (
        "CREATE TABLE o (k TEXT COLLATE theirs PRIMARY KEY) WITHOUT ROWID; INSERT INTO o VALUES ('x'), ('y')"
    ),
    "a reference that can lead nowhere": (
        "CREATE TABLE p (x); CREATE TABLE o (k REFERENCES p (x)); INSERT INTO o VALUES (1)"
    ),
    "a reference that leads nowhere": "CREATE TABLE o (k REFERENCES sessions); INSERT INTO o VALUES ('none')",
    "a NULL where they forbid it": (
        "CREATE TABLE o (k); INSERT INTO o VALUES (NULL); PRAGMA writable_schema = ON;"
        "UPDATE sqlite_master SET sql = 'CREATE TABLE o (k NOT NULL)' WHERE name = 'o'"
    ),
}


@pytest.mark.parametrize("name", sampled(UNUSABLE, *list(UNUSABLE)[::2]))
async def test_what_is_wrong_with_the_tables_of_others_makes_nothing_of_ours_unsound(
    name: str, database: Settings
) -> None:
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:
        conn.create_collation("theirs", lambda one, two: (one > two) - (one < two))
        conn.create_function("theirs", 1, str, deterministic=True)
        conn.executescript(UNUSABLE[name])
    before = await content_of(database)
    report = await nb.validate_database(database)
    assert findings(report) == set(), str(report)
    assert "warn" in {check.status for check in report.checks if check.name == "other objects"}
    await taken(database)
    for apply in (False, True):
        report = await nb.restore_database(database, apply=apply, drill=not apply)
        assert report.ok, str(report)
    assert await content_of(database) == before


async def test_a_reference_of_another_table_hides_none_of_ours(database: Settings) -> None:
    run_sql(database.db_path, *UNUSABLE["a reference that can lead nowhere"].split(";"))
    run_sql(database.db_path, "INSERT INTO audit (action_type, agent_id) VALUES ('x', 'none')")
    (check,) = [check for check in (await nb.validate_database(database)).checks if check.failed]
    assert check.name == "foreign keys"
    assert "audit.agent_id: 'none'" in check.evidence[0]
