"""Every check of validate, each in a database in which it fails: and in none is a byte of the main file changed."""

import os
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

from abathur_nb.database import Database
from abathur_nb.errors import RefusedError
from abathur_nb.expected import APPLICATION_ID, SCHEMA_VERSION, expected_objects
from abathur_nb.report import Check, Report
from abathur_nb.settings import Settings
from abathur_nb.sql import DDL_FILES, SEED_FILE, statements
from abathur_nb.validate import file_checks, validate_database

INDEXES = sorted(name for name, found in expected_objects().items() if found.type == "index")
CHECKS = (
    *("application_id", "user_version", "encoding", "journal mode", "integrity", "foreign keys", "tables", "indexes"),
    *(
        "sequences",
        "seed memories",
        "file modes",
        "WAL size",
        "JSON columns",
        "values",
        "required values",
        "timestamps",
    ),
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
    assert checks["journal mode"].observed == "wal"
    (told,) = checks["journal mode"].evidence
    assert told.startswith("read back on this connection: busy_timeout = 5000, foreign_keys = 1, synchronous = 1, ")
    assert told.endswith(", query_only = 1, trusted_schema = 0")
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
    if "altered" in told and check == "tables":
        assert any("expected" in line and "found" in line for line in checks[check].evidence)


INDEX_FAULTS = [
    DROP,
    (*DROP, "CREATE INDEX idx_tasks_parent ON tasks (prompt)"),
    (*DROP, "CREATE INDEX\n-- hidden;\nidx_tasks_parent ON tasks (prompt) -- DROP TABLE tasks;\n"),
    (*DROP, "CREATE INDEX idx_tasks_parent ON sessions (status, id)", "DROP INDEX idx_audit_task"),
    ("CREATE INDEX idx_extra ON audit (result)", *DROP),
    ('CREATE INDEX "odd ""name\nDROP TABLE tasks;" ON audit (result)', *DROP),
]


@pytest.mark.parametrize("spoil", INDEX_FAULTS, ids=range(len(INDEX_FAULTS)))
async def test_the_evidence_of_a_missing_or_altered_index_is_what_mends_it(
    database: Settings, spoil: tuple[str, ...]
) -> None:
    """Each line is a whole statement or a comment; what is extra stays until somebody decides."""
    run_sql(database.db_path, *spoil)
    check = (await validated(database))["indexes"]
    assert check.status == "fail"
    assert check.remedy.startswith(f"sqlite3 {database.db_path}, and run the statements of the evidence")
    assert all(line.endswith(";") and "\n" not in line for line in check.evidence)
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:
        conn.executescript("\n".join(check.evidence))
    mended = (await validated(database))["indexes"]
    extra = any("idx_extra" in statement or "odd" in statement for statement in spoil)
    assert mended.status == ("fail" if extra else "pass")
    assert "missing" not in mended.observed
    assert "altered" not in mended.observed


async def test_what_an_altered_index_was_is_shown_as_a_comment(database: Settings) -> None:
    run_sql(database.db_path, *DROP, "CREATE INDEX idx_tasks_parent ON tasks (prompt)")
    found, mending = (await validated(database))["indexes"].evidence
    assert found == "-- found: CREATE INDEX idx_tasks_parent ON tasks (prompt);"
    assert mending.startswith("DROP INDEX idx_tasks_parent; CREATE INDEX idx_tasks_parent ON tasks (parent_task_id)")


@pytest.mark.parametrize(
    ("statement", "check"),
    [("CREATE TABLE 'odd \"name' (x)", "tables"), ("CREATE INDEX 'odd \"name' ON audit (result)", "indexes")],
)
async def test_what_is_extra_can_be_dropped_by_the_line_behind_the_dashes(
    database: Settings, statement: str, check: str
) -> None:
    run_sql(database.db_path, statement)
    told, drop = (await validated(database))[check].evidence
    assert told == f"-- extra: {statement};"
    run_sql(database.db_path, drop.removeprefix("-- "))
    assert failing(await validated(database)) == set()


async def test_a_check_that_could_not_run_says_what_to_do(database: Settings) -> None:
    run_sql(database.db_path, "DROP TABLE memory_entries")
    checks = await validated(database)
    assert checks["seed memories"].status == "error"
    assert f"fuser {database.db_path}" in checks["seed memories"].remedy


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


# --- all of it


async def test_all_faults_are_found_in_one_run(database: Settings) -> None:
    drop_index(database.db_path)
    drop_check(database.db_path)
    spoil_json(database.db_path)
    assert failing(await validated(database)) == {"indexes", "tables", "JSON columns"}


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
    assert checks["application_id"].remedy.startswith("db_path: name Abathur's own database")


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
    assert checks["integrity"].remedy == f"sqlite3 {path} REINDEX"
    run_sql(path, "REINDEX")
    assert failing(await validated(database)) == set()


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
    assert "may not be written to" in told


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


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'memory_entries'",
        "UPDATE sqlite_sequence SET seq = 'abc' WHERE name = 'memory_entries'",
        "UPDATE sqlite_sequence SET seq = -5 WHERE name = 'memory_entries'",
        "DELETE FROM sqlite_sequence",
    ],
)
async def test_a_spoiled_counter_of_ids_is_named_and_mended_by_what_the_check_says(
    database: Settings, spoil: str
) -> None:
    run_sql(database.db_path, spoil)
    with untouched(database.db_path):
        check = (await validated(database))["sequences"]
    assert check.status == "fail"
    assert "memory_entries" in check.observed
    run_sql(database.db_path, *(part for line in check.evidence for part in line.split("; ")))
    assert failing(await validated(database)) == set()


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


async def test_a_no_break_space_is_no_layout(database: Settings) -> None:
    """SQLite takes it for a letter: TEXT⍽NOT is the name of a type, and NULL is allowed."""
    table = [found.sql for found in expected_objects().values() if found.table == "metrics"]
    spoiled = [sql.replace("metric_name TEXT NOT NULL", "metric_name TEXT\u00a0NOT NULL") for sql in table]
    assert spoiled != table
    run_sql(database.db_path, "DROP TABLE metrics", *spoiled)
    assert "tables" in failing(await validated(database))
