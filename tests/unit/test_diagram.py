"""The diagram of the live schema: every table, column and reference; another schema has no picture."""

from xml.etree import ElementTree as ET

import pytest
from damage import run_sql

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.page import picture_of
from abathur_nb.runbook.explore import Diagram, read_diagram
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import expected_columns, expected_tables

SVG = "image/svg+xml"


async def diagram(settings: Settings) -> Diagram:
    async with connect(settings.db_path, settings=settings) as conn:
        return await read_diagram(conn)


async def test_every_table_column_and_reference_of_sql_is_in_it(database: Settings) -> None:
    """The picture is drawn anew by hand when the schema changes: this fails until it is."""
    found = await diagram(database)
    frame = found.to_frame()
    columns = {(table, column.name) for table in expected_tables() for column in expected_columns(table)}
    assert list(frame["table"].unique()) == list(expected_tables())
    assert {*zip(frame["table"], frame["column"], strict=True)} == columns
    tasks = frame[frame["table"] == "tasks"].set_index("column")
    assert tasks.loc["parent_task_id", "refers_to"] == "tasks.id"
    assert bool(tasks.loc["id", "primary_key"])
    texts = [element.text for element in ET.fromstring(found.svg).iter() if element.tag.endswith("}text")]  # noqa: S314 - our own
    assert all(texts.count(name) >= [column for _, column in columns].count(name) for _, name in columns)
    assert {*expected_tables()} <= {*texts}
    assert "agents.task_id refers to tasks.id" in found.alt
    assert picture_of(SVG, found.svg), "the page shows it"


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE other (id INTEGER PRIMARY KEY, task TEXT REFERENCES tasks)",
        "ALTER TABLE tasks ADD COLUMN other TEXT",
        "ALTER TABLE tasks RENAME COLUMN prompt TO other",
        "DROP TABLE metrics",
    ],
)
async def test_another_schema_has_its_columns_and_no_picture(database: Settings, change: str) -> None:
    run_sql(database.db_path, change)
    found = await diagram(database)
    assert found.svg == ""
    assert ("metrics" in {*found.to_frame()["table"]}) is ("DROP" not in change)
    assert found._repr_mimebundle_().keys() == {"text/plain"}


async def test_names_that_differ_by_case_alone_are_one(database: Settings) -> None:
    run_sql(database.db_path, "CREATE TABLE other (id INTEGER PRIMARY KEY, s TEXT REFERENCES SESSIONS (id))")
    frame = (await diagram(database)).to_frame().set_index(["table", "column"])
    assert frame.loc[("other", "s"), "refers_to"] == "sessions.id"
