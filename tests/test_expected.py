"""What a database must be is read from the DDL alone: its tables, columns, checks and seeds."""

import json
import sqlite3
from contextlib import closing

import pytest

from abathur_nb.expected import (
    APPLICATION_ID,
    SeedRow,
    column_checks,
    expected_columns,
    expected_objects,
    expected_seeds,
    expected_tables,
)
from abathur_nb.settings import Settings
from abathur_nb.sql import DDL_FILES, SEED_FILE, load_queries, statements


def test_the_application_id_spells_the_name() -> None:
    assert APPLICATION_ID.to_bytes(4, "big") == b"ABAT"


def test_the_tables_are_those_of_the_ddl_in_its_order() -> None:
    made = [words[2] for name in DDL_FILES for words in map(str.split, statements(name)) if words[1] == "TABLE"]
    assert list(expected_tables()) == made
    assert len(made) == 9


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
