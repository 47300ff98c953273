"""What a database must be is read from the DDL alone: its tables, columns, checks and seeds."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from math import isnan

import pytest
from engines import LIBRARIES, Run, build, opened
from rows import BAD, GOOD, insert

from abathur_nb.config.settings import Settings
from abathur_nb.store.schema import (
    APPLICATION_ID,
    SeedRow,
    column_checks,
    expected_columns,
    expected_objects,
    expected_seeds,
    expected_tables,
)
from abathur_nb.store.sql import DDL_FILES, SEED_FILE, load_queries, statements, tokens

# The runbook's section 2.6.
SEEDS = {
    ("app:abathur:agent_instructions", "default_workflow", "procedural"): {
        "steps": [
            "Read and analyze task requirements",
            "Retrieve relevant context from memory",
            "Execute task with best practices",
            "Update session state and memory",
            "Log comprehensive audit trail",
        ],
        "error_handling": "Always provide detailed error messages and rollback on failure",
        "logging": "Comprehensive audit logging enabled",
    },
    ("app:abathur:config", "memory_lifecycle_policies", "procedural"): {
        "episodic_ttl_days": 90,
        "semantic_permanent": True,
        "procedural_versioned": True,
        "consolidation_frequency": "weekly",
        "archival_after_days": 365,
    },
    ("app:abathur:defaults", "user_preference_template", "semantic"): {
        "communication_style": "balanced",
        "technical_level": "intermediate",
        "response_length": "moderate",
        "code_comments": True,
    },
}


@pytest.fixture(params=LIBRARIES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with opened(request.param) as run:
        build(run)
        yield run


def test_the_application_id_spells_the_name() -> None:
    assert APPLICATION_ID.to_bytes(4, "big") == b"ABAT"


def test_the_tables_are_those_of_the_ddl_in_its_order() -> None:
    made = [words[2] for name in DDL_FILES for words in map(str.split, statements(name)) if words[1] == "TABLE"]
    assert list(expected_tables()) == made
    assert len(made) == 9


def test_there_are_9_tables_and_33_indexes() -> None:
    assert {found.name for found in expected_objects().values() if found.type == "table"} == set(expected_tables())
    assert sum(found.type == "index" for found in expected_objects().values()) == 33
    assert set(GOOD) == set(expected_tables())


def test_sqlite_keeps_the_comments() -> None:
    for table in expected_tables():
        assert "-- " in expected_objects()[table].sql.splitlines()[1]


def test_every_index_belongs_to_one_of_the_tables_and_holds_no_comment() -> None:
    """A comment would hide the end of a statement that is written on one line, as validate does."""
    for found in expected_objects().values():
        assert found.table in expected_tables()
        assert found.type == "table" or "--" not in found.sql


def test_what_is_expected_can_be_shared_but_not_changed() -> None:
    assert expected_objects() is expected_objects()
    assert expected_tables() is expected_tables()
    with pytest.raises(TypeError):
        expected_objects()["tasks"] = expected_objects()["state"]  # type: ignore[index]


@pytest.mark.parametrize("table", expected_tables())
def test_columns_are_in_the_order_of_the_ddl_and_each_check_is_of_one(table: str) -> None:
    columns = expected_columns(table)
    assert all(column.required for column in columns if column.in_key)
    assert any(column.in_key for column in columns)
    places = [expected_objects()[table].sql.index(f"\n    {column.name} ") for column in columns]
    assert places == sorted(places)
    assert {check.column for check in column_checks(table)} <= {column.name for column in columns}


def test_an_unknown_table_has_no_columns() -> None:
    assert expected_columns("no such table") == ()


async def test_a_seed_is_the_whole_row_that_the_seed_file_writes(database: Settings) -> None:
    """All but its id, its times and that it is live: those are each database's own."""
    assert len(expected_seeds()) == len(statements(SEED_FILE)) == 3
    columns = {column.name for column in expected_columns("memory_entries")}
    assert columns - set(SeedRow._fields) == {"id", "is_deleted", "created_at", "updated_at"}
    with closing(sqlite3.connect(database.db_path)) as conn:
        conn.row_factory = sqlite3.Row
        for seed in expected_seeds():
            key = {"namespace": seed.namespace, "key": seed.key}
            (row,) = conn.execute(load_queries()["memory_history"].sql, key)
            assert {name: row[name] for name in SeedRow._fields} == seed._asdict()
            assert (json.loads(seed.metadata), seed.version) == ({}, 1)


def test_the_seeds_are_those_of_the_runbook() -> None:
    found = {(seed.namespace, seed.key, seed.memory_type): json.loads(seed.value) for seed in expected_seeds()}
    assert found == SEEDS
    assert {(s.created_by, s.updated_by, s.version) for s in expected_seeds()} == {("system", "system", 1)}


# --- the CHECKs as data


def test_every_check_of_the_ddl_is_found() -> None:
    for table in expected_tables():
        assert len(column_checks(table)) == tokens(expected_objects()[table].sql).count("CHECK")


@pytest.mark.parametrize(
    ("table", "column"), [key for key in BAD if key[1] in {c.column for c in column_checks(key[0])}]
)
def test_a_bad_value_breaks_the_condition_of_its_column_and_no_other(run: Run, table: str, column: str) -> None:
    run("PRAGMA ignore_check_constraints = ON")
    run("PRAGMA foreign_keys = OFF")
    for value in (value for value in BAD[table, column] if value is not None and not _is_nan(value)):
        run(f"DELETE FROM {table}")
        insert(run, table, {**GOOD[table], column: value})
        broken = [c for c in column_checks(table) if run(f"SELECT 1 FROM {table} WHERE NOT ({c.expression})")]
        assert [c.column for c in broken] == [column], value


def test_good_rows_break_none(run: Run) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
        for check in column_checks(table):
            assert run(f"SELECT 1 FROM {table} WHERE NOT ({check.expression})") == []


def test_json_and_other_values_are_told_apart() -> None:
    kinds = {(check.column, check.kind) for check in column_checks("tasks")}
    assert {("input_data", "json"), ("dependencies", "json"), ("priority", "value"), ("status", "value")} <= kinds


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and isnan(value)  # SQLite stores it as NULL
