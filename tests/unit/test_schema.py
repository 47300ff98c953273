"""The schema of a live database: how it differs from sql/, and what is shown of it."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from damage import drop_index, run_sql

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.page import picture_of
from abathur_nb.runbook.explore import explore
from abathur_nb.runbook.validate import Schema
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import (
    Differences,
    SchemaObject,
    expected_columns,
    expected_objects,
    expected_tables,
    read_schema,
)


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
    assert "<b>tasks</b> — 0 rows, 8 KiB, " in replace(schema, sizes={"tasks": 8192}).to_html()
    assert "KiB" not in replace(schema, sizes={}).to_html()
    assert Schema({}).to_html() == ""


async def test_the_picture_shows_every_table_and_column_of_sql(database: Settings) -> None:
    """The picture is drawn anew by hand when the schema changes: this fails until it is."""
    found = (await explore(database)).diagram
    columns = [column.name for table in expected_tables() for column in expected_columns(table)]
    texts = [element.text for element in ET.fromstring(found.svg).iter() if element.tag.endswith("}text")]  # noqa: S314 - our own
    assert all(texts.count(name) >= columns.count(name) for name in columns)
    assert {*expected_tables()} <= {*texts}
    with closing(sqlite3.connect(database.db_path)) as conn:
        for table in expected_tables():
            for _, _, parent, column, to, *_ in conn.execute(f"PRAGMA foreign_key_list({table})"):
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
