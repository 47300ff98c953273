"""Every check of validate, each in a database in which it fails: and in none is a byte of the main file changed."""

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from damage import (
    ROWS,
    SESSION,
    TASK,
    drop_check,
    drop_index,
    edit_schema,
    fingerprint,
    flip_bits,
    held,
    run_as_other,
    run_sql,
    spoil_json,
    untouched,
)

from abathur_nb.expected import EXPECTED_TABLES, column_checks, expected_columns, expected_objects
from abathur_nb.report import Check, Report
from abathur_nb.settings import Settings
from abathur_nb.sql import statements
from abathur_nb.validate import file_checks, validate_database

INDEXES = sorted(name for name, found in expected_objects().items() if found.type == "index")
CHECKS = (
    *(
        "application_id",
        "user_version",
        "journal mode",
        "PRAGMA settings",
        "integrity",
        "foreign keys",
        "tables",
        "indexes",
    ),
    *("seed memories", "file modes", "WAL size", "JSON columns", "values", "required values", "timestamps"),
)


async def validated(settings: Settings) -> dict[str, Check]:
    """Validate without a byte changed, and return the checks by name."""
    with untouched(settings.db_path):
        report = await validate_database(settings)
    assert not report.refused
    checks = {check.name: check for check in report.checks}
    assert tuple(checks) == CHECKS
    for check in checks.values():
        assert check.expected
        assert check.observed
        assert bool(check.remedy) == (check.status in ("fail", "error", "warn"))
    return checks


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.failed}


async def test_a_fresh_database_passes_and_each_check_keeps_what_it_observed(database: Settings) -> None:
    checks = await validated(database)
    assert {check.status for check in checks.values()} == {"pass"}
    assert checks["application_id"].observed == "1094861140"
    assert checks["indexes"].observed == "33 indexes, each as in sql/"
    assert checks["tables"].observed == "9 tables, each as in sql/"
    assert "busy_timeout = 5000, foreign_keys = 1" in checks["PRAGMA settings"].observed
    assert checks["seed memories"].observed == "3 of 3"
    assert "abathur.db 0600" in checks["file modes"].observed
    assert "for 3 rows" in checks["values"].observed


async def test_a_filled_database_passes(database: Settings) -> None:
    run_sql(database.db_path, *ROWS, "ANALYZE")
    assert failing(await validated(database)) == set()


# --- the schema


def _run(path: Path, statements: tuple[str, ...]) -> None:
    run_sql(path, *statements)


EXTRA = (
    ("CREATE TABLE extra (x)", "tables", "extra: extra"),
    ("CREATE TABLE 'odd \"name' (x)", "tables", 'extra: odd "name'),
    ("CREATE INDEX idx_extra ON audit (result)", "indexes", "extra: idx_extra"),
)
EDITS = (  # (an object, a piece of its SQL, what stands there instead)
    ("idx_audit_task", "timestamp DESC", "timestamp ASC"),
    ("tasks", "BETWEEN 0 AND 10", "BETWEEN 0 AND 99"),
    ("tasks", "prompt TEXT NOT NULL", "prompt TEXT"),
    ("tasks", "DEFAULT 'general'", "DEFAULT 'General'"),
    ("agents", " REFERENCES tasks (id)", ""),
    ("agents", "ON DELETE SET NULL", "ON DELETE CASCADE"),
)
DROP = ("DROP INDEX idx_tasks_parent",)
SQL: list[tuple[tuple[str, ...], str, str]] = [
    *(((statement,), check, told) for statement, check, told in EXTRA),
    (DROP, "indexes", "missing: idx_tasks_parent"),
    ((*DROP, "CREATE INDEX idx_tasks_parent ON tasks (prompt)"), "indexes", "altered: idx_tasks_parent"),
    ((*DROP, "CREATE INDEX idx_tasks_parent ON tasks (parent_task_id)"), "indexes", "altered: idx_tasks_parent"),
    ((*DROP, "CREATE INDEX idx_tasks_parent ON sessions (status, id)"), "indexes", "altered: idx_tasks_parent"),
    (
        (*DROP, "CREATE INDEX idx_parent ON tasks (parent_task_id) WHERE parent_task_id IS NOT NULL"),
        *("indexes", "missing: idx_tasks_parent; extra: idx_parent"),
    ),
    (("ALTER TABLE audit ADD extra TEXT",), "tables", "altered: audit"),
    (("ALTER TABLE document_index RENAME COLUMN title TO name",), "tables", "altered: document_index"),
    (
        ("ALTER TABLE sessions RENAME COLUMN id TO session_id",),
        *("tables", "altered: agents, checkpoints, sessions, tasks"),
    ),
    (("DROP TABLE metrics",), "tables", "missing: metrics"),
]
SCHEMA: list[tuple[Callable[[Path], None], str, str]] = [
    *((partial(_run, statements=lines), check, told) for lines, check, told in SQL),
    *(
        (
            partial(edit_schema, name=name, old=old, new=new),
            f"{'indexes' if '_' in name else 'tables'}",
            f"altered: {name}",
        )
        for name, old, new in EDITS
    ),
    (drop_check, "tables", "altered: tasks"),
]


@pytest.mark.parametrize(("spoil", "check", "told"), SCHEMA, ids=[told for _, _, told in SCHEMA])
async def test_what_is_missing_extra_or_altered_is_named(
    database: Settings, spoil: Callable[[Path], None], check: str, told: str
) -> None:
    spoil(database.db_path)
    checks = await validated(database)
    assert checks[check].status == "fail"
    assert told in checks[check].observed
    if "altered" in told:
        assert any("expected" in line and "found" in line for line in checks[check].evidence)


@pytest.mark.parametrize("name", INDEXES)
async def test_any_of_the_33_that_is_missing_is_named(database: Settings, name: str) -> None:
    drop_index(database.db_path, name)
    checks = {check.name: check for check in await file_checks(database)}
    assert failing(checks) == {"indexes"}
    assert checks["indexes"].observed == f"32 indexes; missing: {name}"


async def test_layout_and_comments_alone_are_no_difference(database: Settings) -> None:
    edit_schema(
        database.db_path,
        "idx_audit_task",
        "(task_id, timestamp DESC)",
        "( task_id,\n\ttimestamp /* newest first */ DESC)",
    )
    assert failing(await validated(database)) == set()


@pytest.mark.parametrize(
    "kind", ["TRIGGER evil AFTER INSERT ON audit BEGIN DELETE FROM tasks; END", "VIEW evil AS SELECT 1"]
)
async def test_a_trigger_or_a_view_is_refused(database: Settings, kind: str) -> None:
    run_sql(database.db_path, f"CREATE {kind}")
    with untouched(database.db_path):
        report = await validate_database(database)
    assert report.refused
    assert f"holds {kind.split(maxsplit=1)[0].lower()} evil" in report.checks[0].observed
    # Whoever validates a copy sees it as a finding.
    tables = {check.name: check for check in await file_checks(database)}["tables"]
    assert "extra: evil" in tables.observed


# --- the rows: (what spoils them, the check, the column, the key)

BAD_ROWS = [  # (the check, the column, what it is made to hold)
    ("JSON columns", "tasks.input_data", "'{broken'"),
    ("JSON columns", "tasks.input_data", "x'7b7d'"),
    ("JSON columns", "tasks.input_data", "7"),
    ("JSON columns", "tasks.input_data", "'null'"),
    ("JSON columns", "tasks.input_data", "'7'"),
    ("JSON columns", "tasks.input_data", "''"),
    ("JSON columns", "tasks.dependencies", "'{}'"),
    ("JSON columns", "sessions.events", "'{}'"),
    ("JSON columns", "sessions.state", "'[]'"),
    ("JSON columns", "memory_entries.metadata", "'[]'"),
    ("JSON columns", "document_index.metadata", "'x'"),
    ("values", "tasks.status", "'WHATEVER'"),
    ("values", "tasks.priority", "999"),
    ("values", "tasks.priority", "1.5"),
    ("values", "tasks.priority", "'high'"),
    ("values", "tasks.retry_count", "-1"),
    ("values", "tasks.max_execution_timeout_seconds", "0"),
    ("values", "agents.state", "'dead'"),
    ("values", "sessions.status", "''"),
    ("values", "memory_entries.namespace", "'plain'"),
    ("values", "memory_entries.key", "''"),
    ("values", "memory_entries.version", "0"),
    ("values", "memory_entries.is_deleted", "2"),
    ("values", "memory_entries.memory_type", "'x'"),
    ("values", "document_index.sync_status", "'x'"),
    ("values", "metrics.metric_value", "'abc'"),
    ("values", "metrics.metric_value", "9e999"),
    ("values", "metrics.metric_value", "-1"),
    ("values", "audit.memory_operation_type", "'x'"),
    ("values", "checkpoints.iteration", "-1"),
    ("timestamps", "tasks.submitted_at", "'not a time'"),
    ("timestamps", "tasks.started_at", "''"),
    ("timestamps", "tasks.submitted_at", "1700000000"),
    ("timestamps", "tasks.submitted_at", "x'00'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01T00:00:00'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00 UTC'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 30:00:00'"),
    ("timestamps", "tasks.submitted_at", "'2026-02-30 00:00:00'"),
    ("timestamps", "tasks.submitted_at", "'2026-13-01 00:00:00.000'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00.1x3'"),
    ("timestamps", "audit.timestamp", "'now'"),
    ("timestamps", "sessions.last_update_time", "'now'"),
]


KEYS = {"tasks": "'t1'", "sessions": "'s1'", "agents": "'a1'", "memory_entries": "4", "checkpoints": "'t1', 0"}


@pytest.mark.parametrize(("check", "column", "value"), BAD_ROWS, ids=[f"{c} = {value}" for _, c, value in BAD_ROWS])
async def test_a_value_that_does_not_belong_is_named_by_column_and_key(
    database: Settings, check: str, column: str, value: str
) -> None:
    table, name = column.split(".")
    last = f"rowid = (SELECT max(rowid) FROM {table})"
    run_sql(database.db_path, *ROWS, f"UPDATE {table} SET {name} = {value} WHERE {last}")
    checks = await validated(database)
    assert failing(checks) == {check}  # a fault of the row, not of the file
    assert checks[check].observed == f"broken: {column}"
    key = "'t1', -1" if name == "iteration" else KEYS.get(table, "1")
    assert checks[check].evidence == (f"{column}: 1 rows, by key: {key}",)


def test_every_rule_of_the_schema_has_its_kind_among_the_bad_rows() -> None:
    """Each table with a CHECK on JSON, and each with another one, stands in the table above or in the next test."""
    assert {kind for table in EXPECTED_TABLES for _, kind, _ in column_checks(table)} == {"json", "value"}
    assert {check for check, _, _ in BAD_ROWS} | {"required values"} == set(CHECKS[11:])


EACH_JSON = [
    (table, found.column) for table in EXPECTED_TABLES for found in column_checks(table) if found.kind == "json"
]


@pytest.mark.parametrize(("table", "column"), EACH_JSON)
async def test_each_json_column_is_looked_at(database: Settings, table: str, column: str) -> None:
    run_sql(database.db_path, *ROWS, f"UPDATE {table} SET {column} = '{{broken'")
    checks = {check.name: check for check in await file_checks(database)}
    assert checks["JSON columns"].observed == f"broken: {table}.{column}"


EACH_REQUIRED = [
    (table, found.name) for table in EXPECTED_TABLES for found in expected_columns(table) if found.required
]


@pytest.mark.parametrize(
    ("table", "column"),
    [pair for pair in EACH_REQUIRED if pair[1] != "id" or pair[0] in ("tasks", "sessions", "agents")],
)
async def test_each_null_where_a_value_is_required_is_named(database: Settings, table: str, column: str) -> None:
    """Also in a primary key: the rule is taken out of the schema, broken, and put back."""
    path = database.db_path
    run_sql(path, *ROWS)
    sql = expected_objects()[table].sql
    start = sql.index(f"\n    {column} ") + 1
    line = sql[start : sql.index("\n", start)]
    lax = line.replace(" NOT NULL", "")
    assert lax != line
    edit_schema(path, table, line, lax)
    run_sql(path, f"UPDATE {table} SET {column} = NULL WHERE rowid = (SELECT max(rowid) FROM {table})")
    edit_schema(path, table, lax, line)
    checks = await validated(database)
    assert checks["required values"].observed == f"broken: {table}.{column}"
    assert re.fullmatch(rf"{table}\.{column}: 1 rows, by key: \S.*", checks["required values"].evidence[0])
    assert "integrity" in failing(checks)


async def test_many_offending_rows_are_counted_and_twenty_are_named(database: Settings) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
    insert = f"{many} INSERT INTO tasks (id, prompt, status) SELECT printf('t%04d', i), 'p', 'WHATEVER' FROM n"
    run_sql(database.db_path, insert)
    (told,) = (await validated(database))["values"].evidence
    assert told.startswith("tasks.status: 1,000 rows, by key: 't0001'; 't0002'; ")
    assert told.endswith("'t0020'; …")


async def test_a_hostile_key_is_shown_escaped(database: Settings) -> None:
    run_sql(
        database.db_path, "INSERT INTO tasks (id, prompt, status) VALUES ('<script>' || char(10, 0, 8238), 'p', 'x')"
    )
    with untouched(database.db_path):
        report = await validate_database(database)
    assert "<script>" not in report.to_html()
    assert "\u202e" not in report.to_json()
    assert "&lt;script&gt;" in report.to_html()


async def test_all_faults_are_found_in_one_run(database: Settings) -> None:
    drop_index(database.db_path)
    drop_check(database.db_path)
    spoil_json(database.db_path)
    assert failing(await validated(database)) == {"indexes", "tables", "JSON columns"}


async def test_rows_of_a_table_that_cannot_be_read_could_not_be_asked(database: Settings) -> None:
    run_sql(database.db_path, "ALTER TABLE metrics RENAME COLUMN metric_value TO amount")
    checks = await validated(database)
    assert checks["tables"].status == "fail"
    for name in ("values", "required values"):
        assert checks[name].status == "error"
        assert "could not run: metrics: no such column" in checks[name].observed


# --- references, seeds


async def test_a_reference_without_its_row_is_named(database: Settings) -> None:
    run_sql(
        database.db_path,
        "INSERT INTO agents (id, name, specialization, task_id, model) VALUES ('a', 'n', 's', 'none', 'm')",
        "INSERT INTO audit (action_type, memory_entry_id) VALUES ('x', 99)",
        "INSERT INTO audit (action_type, task_id) VALUES ('x', 'none')",  # no reference: it outlives its task
    )
    checks = await validated(database)
    assert failing(checks) == {"foreign keys"}
    assert checks["foreign keys"].observed == "2 references without a row"
    assert set(checks["foreign keys"].evidence) == {
        "agents row 1 names a row of tasks that does not exist",
        "audit row 1 names a row of memory_entries that does not exist",
    }


CONFIG = "WHERE namespace = 'app:abathur:config'"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (f"DELETE FROM memory_entries {CONFIG}", "version 1 is missing"),
        (f"UPDATE memory_entries SET value = '{{}}' {CONFIG}", "version 1 holds '{}'"),
        (f"UPDATE memory_entries SET value = '{{broken' {CONFIG}", "version 1 holds '{broken'"),
        (f"UPDATE memory_entries SET value = x'00' {CONFIG}", "version 1 holds b'\\x00'"),
        (f"UPDATE memory_entries SET version = 2 {CONFIG}", "version 1 is missing"),
        (f"UPDATE memory_entries SET memory_type = 'episodic' {CONFIG}", "version 1 is episodic, by system"),
        (f"UPDATE memory_entries SET created_by = NULL {CONFIG}", "version 1 is procedural, by None"),
    ],
)
async def test_a_seed_whose_version_1_is_altered_or_missing_is_named(database: Settings, spoil: str, told: str) -> None:
    run_sql(database.db_path, spoil)
    check = (await validated(database))["seed memories"]
    assert check.status == "fail"
    assert check.observed.startswith("2 of 3")
    assert check.evidence == (f"app:abathur:config / memory_lifecycle_policies: {told}",)


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


# --- the file


async def test_a_wrong_identity_is_a_finding_in_a_copy_though_refused_in_place(database: Settings) -> None:
    run_sql(database.db_path, "PRAGMA application_id = 7", "PRAGMA user_version = 9")
    checks = {check.name: check for check in await file_checks(database)}
    assert failing(checks) == {"application_id", "user_version"}
    assert (checks["application_id"].observed, checks["user_version"].observed) == ("7", "9")


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory"])
async def test_a_database_that_is_not_in_wal_mode_fails(database: Settings, mode: str) -> None:
    run_sql(database.db_path, "PRAGMA journal_mode = DELETE")
    check = (await validated(replace(database, env=mode)))["journal mode"]  # the others do not stay in the file
    assert (check.status, check.observed) == ("fail", "delete")
    assert "PRAGMA journal_mode = WAL" in check.remedy


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o700, 0o601])
async def test_a_file_open_to_others_is_named_with_the_command(database: Settings, mode: int) -> None:
    database.db_path.chmod(mode)
    check = (await validated(database))["file modes"]
    assert check.status == "fail"
    assert f"abathur.db {mode:04o}" in check.observed
    assert check.remedy.startswith(f"chmod 600 {database.db_path}")


async def test_side_files_and_the_directory_are_looked_at_too(database: Settings) -> None:
    with held(database.db_path, "BEGIN IMMEDIATE", SESSION, "COMMIT"):
        for suffix in ("-wal", "-shm"):
            Path(f"{database.db_path}{suffix}").chmod(0o644)
        database.db_path.parent.chmod(0o777)
        check = (await validated(database))["file modes"]
    assert "abathur.db 0600, abathur.db-wal 0644, abathur.db-shm 0644; directory 0777" in check.observed
    folder = database.db_path.parent
    assert check.remedy == f"chmod 600 {folder}/abathur.db-wal {folder}/abathur.db-shm; chmod 700 {folder}"


async def test_a_large_log_warns(database: Settings) -> None:
    """A reader that stays holds it back."""
    fill = "INSERT INTO metrics (metric_name, metric_value) VALUES (hex(randomblob(600000)), 1)"
    with held(database.db_path, "BEGIN", "SELECT count(*) FROM metrics"), held(database.db_path, fill):
        checks = await validated(replace(database, max_wal_mb=1))
        assert checks["WAL size"].status == "warn"
        assert float(checks["WAL size"].observed.removesuffix(" MB")) > 1
        assert failing(checks) == set()


@pytest.mark.parametrize("page", [3, 8, 20, 40])
async def test_flipped_bits_are_corrupt(database: Settings, page: int) -> None:
    """Each page holds a root of a table or an index, whose header is what is spoiled."""
    flip_bits(database.db_path, 4096 * (page - 1), 8)
    with untouched(database.db_path):
        report = await validate_database(database)
    assert not report.ok
    assert "CORRUPT" in " ".join(check.observed for check in report.checks if check.failed)
    assert "restore" in " ".join(check.remedy for check in report.checks if check.failed)


async def test_any_flipped_page_either_is_found_or_held_nothing(database: Settings) -> None:
    """No page makes the verb raise, or changes the file."""
    found, pages = 0, database.db_path.stat().st_size // 4096
    original = database.db_path.read_bytes()
    for page in range(1, pages, 3):
        database.db_path.write_bytes(original)
        flip_bits(database.db_path, 4096 * page, 16)
        with untouched(database.db_path):
            found += not (await validate_database(database)).ok
    assert found == len(range(1, pages, 3))


@pytest.mark.parametrize("kept", [100, 512, 4096, 5000, 8192, 100_000])
async def test_a_truncated_file_is_corrupt(database: Settings, kept: int) -> None:
    os.truncate(database.db_path, kept)
    with untouched(database.db_path):
        report = await validate_database(database)
    assert not report.ok
    told = " ".join(check.observed for check in report.checks if check.failed)
    assert "CORRUPT" in told or "not SQLite" in told


async def test_an_index_that_lacks_entries_can_be_rebuilt_and_says_so(database: Settings) -> None:
    path = database.db_path
    run_sql(path, TASK)
    kept = fingerprint(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:  # a row that the index never heard of
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET sql = NULL, rootpage = 0, name = name || '_' WHERE 0")
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'idx_tasks_submitted_at'").fetchone()
    assert fingerprint(path) == kept
    empty = bytes([10, 0, 0, 0, 0, 16, 0, 0])  # an index leaf without a cell
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(empty)
    checks = await validated(database)
    assert failing(checks) == {"integrity"}
    assert "idx_tasks_submitted_at" in checks["integrity"].observed
    assert checks["integrity"].remedy == "REINDEX"


async def test_beside_a_busy_writer_it_sees_one_snapshot_and_passes(database: Settings) -> None:
    with held(database.db_path, "BEGIN IMMEDIATE", "DELETE FROM memory_entries"):
        assert failing(await validated(database)) == set()


async def test_a_database_locked_whole_could_not_be_validated(database: Settings) -> None:
    settings = replace(database, busy_timeout_ms=50)
    with held(database.db_path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE", "COMMIT") as process:
        (check,) = await file_checks(settings)
    assert check.status == "error"
    assert f"could not run: {database.db_path} is locked by PID {process.pid}" in check.observed


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
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", run_as_root, str(path)], check=True)
    path.chmod(0o644)
    with untouched(path):
        told = run_as_other(program, path)
    assert told.startswith("False True ")
    assert "could not be used" in told


def test_the_statements_of_the_schema_number_nine_and_thirty_three() -> None:
    made = [
        statement
        for name in ("ddl-memory-tables.sql", "ddl-core-tables.sql", "ddl-indexes.sql")
        for statement in statements(name)
    ]
    assert (len(made), len(INDEXES)) == (42, 33)


def test_a_report_of_validate_is_a_report(database: Settings) -> None:
    import asyncio

    report = asyncio.run(validate_database(database))
    assert isinstance(report, Report)
    assert (report.title, report.subject) == ("validate", str(database.db_path))
