"""What a database must be is read from the DDL alone: its tables, columns, checks and seeds."""

import json
import sqlite3
from contextlib import closing

import pytest
from engines import LIBRARIES, build, opened
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
from abathur_nb.store.sql import DDL_FILES, SEED_FILE, load_queries, statements

SEEDS = {  # of the runbook's section 2.6, with what each value holds
    ("app:abathur:agent_instructions", "default_workflow"): {"steps", "error_handling", "logging"},
    ("app:abathur:config", "memory_lifecycle_policies"): {
        *("episodic_ttl_days", "semantic_permanent", "procedural_versioned", "consolidation_frequency"),
        "archival_after_days",
    },
    ("app:abathur:defaults", "user_preference_template"): {
        *("communication_style", "technical_level", "response_length", "code_comments")
    },
}


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
    assert {(seed.namespace, seed.key): set(json.loads(seed.value)) for seed in expected_seeds()} == SEEDS
    assert {(s.created_by, s.updated_by, s.version) for s in expected_seeds()} == {("system", "system", 1)}


def test_there_are_9_tables_in_the_order_of_the_ddl_and_33_indexes() -> None:
    """A comment in an index would hide the end of a statement that is written on one line, as validate does."""
    made = [words[2] for name in DDL_FILES for words in map(str.split, statements(name)) if words[1] == "TABLE"]
    assert list(expected_tables()) == made == list(dict.fromkeys(made))
    assert (len(made), set(GOOD)) == (9, set(made))
    indexes = [found for found in expected_objects().values() if found.type == "index"]
    assert len(indexes) == 33
    assert all(found.table in made and "--" not in found.sql for found in indexes)
    with pytest.raises(TypeError):
        expected_objects()["tasks"] = expected_objects()["state"]  # type: ignore[index]
    assert APPLICATION_ID.to_bytes(4, "big") == b"ABAT"
    assert expected_columns("no such table") == ()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_bad_value_breaks_the_check_of_its_column_and_no_other_and_good_ones_break_none(library: str) -> None:
    checked = [key for key in BAD if key[1] in {check.column for check in column_checks(key[0])}]
    with opened(library) as run:
        build(run)
        run("PRAGMA ignore_check_constraints = ON")
        run("PRAGMA foreign_keys = OFF")
        for table, column in checked:
            for value in (None, *BAD[table, column]):
                if value is None or value != value:  # noqa: PLR0124 - NaN, which SQLite stores as NULL
                    row, expected = GOOD[table], []
                else:
                    row, expected = {**GOOD[table], column: value}, [column]
                run(f"DELETE FROM {table}")
                insert(run, table, row)
                broken = [c for c in column_checks(table) if run(f"SELECT 1 FROM {table} WHERE NOT ({c.expression})")]
                assert [c.column for c in broken] == expected, value
