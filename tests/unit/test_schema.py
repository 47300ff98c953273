"""What a database must be is read from the DDL alone; how a live one differs from it, and what is shown of it."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from damage import drop_index, query, run_sql
from engines import BAD, GOOD, LIBRARIES, build, insert, opened

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.page import picture_of
from abathur_nb.runbook.explore import explore
from abathur_nb.runbook.validate import Schema
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import (
    APPLICATION_ID,
    Differences,
    SchemaObject,
    SeedRow,
    column_checks,
    expected_columns,
    expected_objects,
    expected_seeds,
    expected_tables,
    read_schema,
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


async def live_schema(settings: Settings) -> dict[str, SchemaObject]:
    async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
        return await read_schema(conn)


async def test_a_fresh_database_has_the_very_objects_of_the_ddl(database: Settings) -> None:
    live = await live_schema(database)
    assert live == expected_objects()
    assert str(Differences.between(live)) == ""


INDEX = expected_objects()["idx_audit_task"]


@pytest.mark.parametrize(
    ("live", "altered"),
    [
        (INDEX._replace(sql=INDEX.sql.replace(" (", "  /* a comment */ (\n")), False),
        (INDEX._replace(sql=INDEX.sql.replace("task_id", '"task_id"')), False),
        (INDEX._replace(sql=INDEX.sql.replace("DESC", '"DESC"')), True),
        (INDEX._replace(sql=INDEX.sql.replace("DESC", "ASC")), True),
        (INDEX._replace(table="tasks"), True),
    ],
    ids=["layout", "a quoted name", "a quoted keyword", "order", "another table"],
)
def test_only_layout_comments_and_quotes_around_names_do_not_count(live: SchemaObject, altered: bool) -> None:
    assert live != INDEX
    found = Differences.between({**expected_objects(), INDEX.name: live})
    assert found == Differences((), (INDEX.name,) if altered else (), ())


async def test_without_a_database_the_note_says_so_and_what_is_planned_can_be_shown(settings: Settings) -> None:
    planned, schema = await nb.show_schema(settings, planned=True), await nb.show_schema(settings)
    assert (planned.objects, planned.rows, planned.to_record()) == (expected_objects(), {}, {})
    assert planned.note.startswith("not made yet")
    assert schema.objects == {}
    assert schema.note.startswith("no database")
    assert not settings.db_path.parent.exists()


async def test_what_is_shown_and_recorded_is_the_live_schema_and_not_the_expected_one(database: Settings) -> None:
    drop_index(database.db_path)
    schema = await nb.show_schema(database)
    html, facts = schema.to_html(), schema.to_record()
    assert "idx_audit_task" not in html
    assert html.count("CREATE INDEX") == 32
    assert facts["rows"]["memory_entries"] == 3
    assert facts["schema"]["idx_tasks_parent"].startswith("CREATE INDEX idx_tasks_parent ON tasks (")
    assert "idx_audit_task" not in facts["schema"]
    assert "<b>tasks</b> — 0 rows, 8 kB, " in replace(schema, sizes={"tasks": 8192}).to_html()
    assert " kB" not in replace(schema, sizes={}).to_html()
    assert Schema({}).to_html() == ""


async def test_the_picture_shows_every_table_and_column_of_sql(database: Settings) -> None:
    """The picture is drawn anew by hand when the schema changes: this fails until it is."""
    found = (await explore(database)).diagram
    columns = [column.name for table in expected_tables() for column in expected_columns(table)]
    texts = [element.text for element in ET.fromstring(found.svg).iter() if element.tag.endswith("}text")]  # noqa: S314 - our own
    assert all(texts.count(name) >= columns.count(name) for name in columns)
    assert {*expected_tables()} <= {*texts}
    for table in expected_tables():
        for _, _, parent, column, to, *_ in query(database.db_path, f"PRAGMA foreign_key_list({table})"):
            assert f"{table}.{column} refers to {parent}.{to}" in found.alt
    assert picture_of("image/svg+xml", found.svg), "the page shows it"


@pytest.mark.parametrize(
    "change", ["CREATE TABLE other (id)", "ALTER TABLE tasks RENAME COLUMN prompt TO other", "DROP TABLE metrics"]
)
async def test_another_schema_has_no_picture(change: str, database: Settings) -> None:
    run_sql(database.db_path, change)
    found = (await explore(database)).diagram
    assert found._repr_mimebundle_() == {"text/plain": found.alt}
    assert found.alt.startswith("no picture, because the tables differ from those of sql/: ")
