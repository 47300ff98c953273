"""The objects of a live schema: what is missing, altered or extra is named, with what repairs it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest
from damage import drop_check, drop_index, edit_schema, run_sql, untouched
from validate_helpers import failing, validated

from abathur_nb.config.settings import Settings
from abathur_nb.health.checks import file_checks
from abathur_nb.store.expected import expected_objects
from abathur_nb.store.sql import statements
from abathur_nb.store.target import repair_command

INDEXES = sorted(name for name, found in expected_objects().items() if found.type == "index")


def _run(path: Path, statements: tuple[str, ...]) -> None:
    run_sql(path, *statements)


# What is not of sql/, how it is named, and its status.
EXTRA = (
    ("CREATE TABLE extra (x)", "table extra", "warn"),
    ("CREATE TABLE 'odd \"name' (x)", 'table odd "name', "warn"),
    ("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)", "table _litestream_seq", "warn"),
    ("CREATE TABLE child (task_id TEXT REFERENCES tasks (id)) STRICT", "table child", "warn"),
    ("CREATE INDEX idx_extra ON audit (result)", "index idx_extra", "warn"),
    ("CREATE INDEX 'odd \"name' ON audit (result)", 'index odd "name', "warn"),
    ("CREATE UNIQUE INDEX idx_unique ON audit (id, result) WHERE result IS NOT NULL", "index idx_unique", "warn"),
    ("CREATE VIRTUAL TABLE seen USING fts5(value)", "table seen", "fail"),
    ("create  virtual table seen using rtree(id, low, high)", "table seen", "fail"),
    ("CREATE VIEW seen AS SELECT 1", "view seen", "fail"),
    ("CREATE TRIGGER seen AFTER INSERT ON audit BEGIN DELETE FROM tasks; END", "trigger seen", "fail"),
)
EDITS = (  # (an object, a piece of its SQL, what is there instead)
    ("idx_audit_task", "timestamp DESC", "timestamp ASC"),
    ("tasks", "BETWEEN 0 AND 10", "BETWEEN 0 AND 99"),
    ("tasks", "prompt TEXT NOT NULL", "prompt TEXT"),
    ("tasks", "DEFAULT 'general'", "DEFAULT 'General'"),
    ("agents", " REFERENCES tasks (id)", ""),
    ("agents", "ON DELETE SET NULL", "ON DELETE CASCADE"),
)
DROP = ("DROP INDEX idx_tasks_parent",)
SQL: list[tuple[tuple[str, ...], str, str]] = [
    (DROP, "indexes", "missing: idx_tasks_parent"),
    ((*DROP, "CREATE INDEX idx_tasks_parent ON tasks (prompt)"), "indexes", "altered: idx_tasks_parent"),
    ((*DROP, "CREATE INDEX idx_tasks_parent ON tasks (parent_task_id)"), "indexes", "altered: idx_tasks_parent"),
    ((*DROP, "CREATE INDEX idx_tasks_parent ON sessions (status, id)"), "indexes", "altered: idx_tasks_parent"),
    (
        (*DROP, "CREATE INDEX idx_parent ON tasks (parent_task_id) WHERE parent_task_id IS NOT NULL"),
        *("indexes", "missing: idx_tasks_parent"),
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
async def test_what_is_missing_or_altered_is_named(
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
    ("DROP INDEX idx_audit_task", "CREATE INDEX IDX_Audit_task ON audit (result)", *DROP),
    ('CREATE INDEX "odd ""name\nDROP TABLE tasks;" ON audit (result)', *DROP),
]


@pytest.mark.parametrize("spoil", INDEX_FAULTS, ids=range(len(INDEX_FAULTS)))
async def test_the_evidence_of_a_missing_or_altered_index_is_what_repairs_it(
    database: Settings, spoil: tuple[str, ...]
) -> None:
    """Each line is a whole statement or a comment; what is extra stays, and is not a fault of an index."""
    run_sql(database.db_path, *spoil)
    check = (await validated(database))["indexes"]
    assert check.status == "fail"
    assert check.remedy == repair_command(database)
    assert all(line.endswith(";") and "\n" not in line for line in check.evidence)
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:
        conn.executescript("\n".join(check.evidence))
    repaired = (await validated(database))["indexes"]
    assert repaired.observed == "33 indexes, each as in sql/"


async def test_what_an_altered_index_was_is_shown_as_a_comment(database: Settings) -> None:
    run_sql(database.db_path, *DROP, "CREATE INDEX idx_tasks_parent ON tasks (prompt)")
    found, repairing = (await validated(database))["indexes"].evidence
    assert found == "-- found: CREATE INDEX idx_tasks_parent ON tasks (prompt);"
    assert repairing.startswith("DROP INDEX idx_tasks_parent; CREATE INDEX idx_tasks_parent ON tasks (parent_task_id)")


@pytest.mark.parametrize(("statement", "named", "status"), EXTRA, ids=[named for _, named, _ in EXTRA])
async def test_what_is_extra_is_named_and_fails_only_where_it_can_run_code(
    database: Settings, statement: str, named: str, status: str
) -> None:
    run_sql(database.db_path, statement)
    checks = {check.name: check for check in await file_checks(database)}
    assert failing(checks) == ({"other objects"} if status == "fail" else set())
    found = checks["other objects"]
    assert found.status == status
    assert named in found.observed
    for drop in found.evidence[1::2]:
        with suppress(sqlite3.OperationalError):  # a shadow table goes with its virtual one
            run_sql(database.db_path, drop.removeprefix("-- ").rstrip(";"))
    assert {check.name: check for check in await file_checks(database)}["other objects"].observed == "none"


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
async def test_a_trigger_or_a_view_is_a_finding(database: Settings, kind: str) -> None:
    run_sql(database.db_path, f"CREATE {kind}")
    with untouched(database.db_path):
        others = (await validated(database))["other objects"]
    assert (others.status, others.observed) == ("fail", f"extra: {kind.split(maxsplit=1)[0].lower()} evil")


async def test_a_no_break_space_is_no_layout(database: Settings) -> None:
    """SQLite takes it for a letter: TEXT⍽NOT is the name of a type, and NULL is allowed."""
    table = [found.sql for found in expected_objects().values() if found.table == "metrics"]
    spoiled = [sql.replace("metric_name TEXT NOT NULL", "metric_name TEXT\u00a0NOT NULL") for sql in table]
    assert spoiled != table
    run_sql(database.db_path, "DROP TABLE metrics", *spoiled)
    assert "tables" in failing(await validated(database))


def test_the_statements_of_the_schema_number_nine_and_thirty_three() -> None:
    made = [
        statement
        for name in ("ddl-memory-tables.sql", "ddl-core-tables.sql", "ddl-indexes.sql")
        for statement in statements(name)
    ]
    assert (len(made), len(INDEXES)) == (42, 33)


# --- the counters of ids


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'memory_entries'",
        "UPDATE sqlite_sequence SET seq = 'abc' WHERE name = 'memory_entries'",
        "UPDATE sqlite_sequence SET seq = -5 WHERE name = 'memory_entries'",
        "DELETE FROM sqlite_sequence",
    ],
)
async def test_a_spoiled_counter_of_ids_is_named_and_repaired_by_what_the_check_says(
    database: Settings, spoil: str
) -> None:
    run_sql(database.db_path, spoil)
    with untouched(database.db_path):
        check = (await validated(database))["sequences"]
    assert check.status == "fail"
    assert "memory_entries" in check.observed
    run_sql(database.db_path, *(part for line in check.evidence for part in line.split("; ")))
    assert failing(await validated(database)) == set()
