"""The diagram of the live schema: every table, column and reference, safe whatever they are called, in the page too."""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from browser import CANARY, sung
from damage import run_sql
from test_page import HOSTILE, code, hostile, page_of, without_the_policy

from abathur_nb.connection import connect
from abathur_nb.evidence.sanitizer import picture_of
from abathur_nb.expected import expected_columns, expected_tables
from abathur_nb.operate.arrangement import Box, Link, levels
from abathur_nb.operate.diagram import Diagram, read_diagram
from abathur_nb.operate.drawing import draw
from abathur_nb.settings import Settings

SVG = "image/svg+xml"
ODD = "<script>alert(1)</script>'\"&\u202ecod\x1b\n]]>"


async def diagram(settings: Settings, **rows: int) -> Diagram:
    async with connect(settings.db_path, settings=settings) as conn:
        return await read_diagram(conn, rows)


def words(svg: str) -> list[str]:
    """Return what is written in a picture; that it can be read is half of the matter."""
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]  # noqa: S314 - our own


def output(svg: str) -> dict[str, object]:
    return {"output_type": "display_data", "data": {SVG: svg, "text/plain": "a diagram"}, "metadata": {}}


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def test_every_table_column_and_reference_of_sql_is_in_it(database: Settings) -> None:
    found = await diagram(database, tasks=1234)
    frame = found.to_frame()
    assert list(frame["table"].unique()) == list(expected_tables())
    assert {*zip(frame["table"], frame["column"], strict=True)} == {
        (table, column.name) for table in expected_tables() for column in expected_columns(table)
    }
    tasks = frame[frame["table"] == "tasks"].set_index("column")
    assert tasks.loc["parent_task_id", "refers_to"] == "tasks.id"
    assert bool(tasks.loc["id", "primary_key"])
    written = words(found.svg)
    assert {*expected_tables(), "1,234 rows", "parent_task_id"} <= {*written}
    assert found.alt.startswith(f"Diagram of {len(expected_tables())} tables: ")
    assert "agents.task_id refers to tasks.id" in found.alt


async def test_a_table_of_somebody_elses_shows_in_it(database: Settings) -> None:
    run_sql(
        database.db_path,
        "CREATE TABLE Extra (own INTEGER PRIMARY KEY, task TEXT REFERENCES TASKS, lost REFERENCES nowhere (x))",
    )
    found = await diagram(database)
    assert {"Extra", "own", "task"} <= {*words(found.svg)}
    refers = {column.column: column.refers_to for column in found.columns if column.table == "Extra"}
    assert refers == {"own": "", "task": "tasks.id", "lost": "nowhere.x"}
    assert any("nowhere" in text for text in words(found.svg)), "what no line can show is written"


async def test_a_hostile_name_is_written_and_does_nothing(database: Settings) -> None:
    names = ", ".join(quoted(f"{ODD}{n}") for n in range(3))
    run_sql(database.db_path, f"CREATE TABLE {quoted(ODD)} ({names}, x {quoted(ODD)} REFERENCES {quoted(ODD)})")
    found = await diagram(database)
    assert ODD in {column.table for column in found.columns}, "the frame has it as it is"
    assert not {"\u202e", "\x1b", "\n"} & {*found.svg, *found.alt}
    assert "<script" not in found.svg
    assert any(text.startswith("<script>alert(1)") for text in words(found.svg))
    assert picture_of(SVG, found.svg)


async def test_it_is_in_the_archived_page(database: Settings) -> None:
    run_sql(database.db_path, f"CREATE TABLE {quoted(ODD)} (x)")
    found = await diagram(database)
    page = page_of(code(output(found.svg)))
    assert page.count(f'src="data:{SVG};base64,') == 1
    assert f"base64,{picture_of(SVG, found.svg)}" in page


@pytest.mark.parametrize(
    "part",
    [
        "<script>x</script>",
        "<SCRIPT>x</SCRIPT>",
        "<g onload='x'></g>",
        '<g onload="x"></g>',
        '<a href="javascript:x"><text>a</text></a>',
        '<image href="https://example.invalid/x"/>',
        '<use href="#x"/>',
        "<style>@import 'x'</style>",
        '<g style="background:url(x)"></g>',
        '<rect fill="url(https://example.invalid/x)"/>',
        '<animate attributeName="x"/>',
        "<foreignObject><p>x</p></foreignObject>",
        "<!DOCTYPE svg [<!ENTITY x 'y'>]>",
        "<?xml-stylesheet href='x'?>",
        "<![CDATA[<script>]]>",
        "&x;",
        "<!-- -->",
    ],
)
def test_a_picture_of_more_than_shapes_and_words_is_left_out_of_the_page(part: str) -> None:
    begin = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">'
    assert picture_of(SVG, f"{begin}<text>a</text></svg>"), "the control: it is only the part"
    assert picture_of(SVG, f"{begin}{part}</svg>") == ""
    assert "data:image/svg" not in page_of(code(output(f"{begin}{part}</svg>")))


def test_no_hostile_name_runs_in_the_notebook_nor_in_the_page(tmp_path: Path) -> None:
    """The picture stands in a document by itself, as JupyterLab shows it, and in the page without its policy."""
    pages = []
    for number in range(len(HOSTILE)):
        name = hostile(number)
        boxes = [Box(name, name, (("P", name, name, True),)), Box("b", "", (("F", name, name, False),))]
        svg = draw(boxes, [Link("b", name, name, name), Link(name, name, "nowhere", name)], name)
        pages += [f"<!DOCTYPE html><title>x</title>{svg}", without_the_policy(page_of(code(output(svg))))]
    script = f"<script>{CANARY.format(number=4000)}</script>"
    control = draw([Box("a", "", ())], [], "x").replace("<title>", f"{script}<title>")
    assert sung(tmp_path, [*pages, f"<!DOCTYPE html><title>x</title>{control}"]) == {4000}


# --- how it is drawn


def ring(*names: str) -> list[Link]:
    return [Link(a, "x", b, "x") for a, b in zip(names, [*names[1:], names[0]], strict=True)]


def boxes(names: Sequence[str], lines: int = 1) -> list[Box]:
    return [Box(name, "", tuple(("", f"c{n}" if n else "x", "TEXT", True) for n in range(lines))) for name in names]


def test_each_table_stands_behind_those_that_it_refers_to() -> None:
    links = [Link("c", "x", "b", "x"), Link("b", "x", "a", "x"), Link("c", "x", "a", "x"), Link("c", "x", "c", "x")]
    assert levels("abcd", links) == {"a": 0, "b": 1, "c": 2, "d": 0}


@pytest.mark.parametrize(
    ("names", "links"),
    [
        ("", []),
        ("a", ring("a")),
        ("ab", ring("a", "b")),
        ("abc", ring("a", "b", "c")),
        ("a", [Link("a", "x", "nowhere", "x"), Link("nobody", "x", "a", "x")]),
        ("abcdef", [Link("f", "x", parent, "x") for parent in "abcde"]),
        ("abcd", [*(Link(b, "x", a, "x") for a, b in zip("abc", "bcd", strict=True)), Link("d", "c1", "a", "x")]),
    ],
)
def test_any_schema_is_drawn_within_its_frame(names: str, links: list[Link]) -> None:
    svg = draw(boxes(names, 2), links, "words")
    assert picture_of(SVG, svg)
    root = ET.fromstring(svg)  # noqa: S314 - our own
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    assert {*names} <= {*words(svg)}
    for element in root.iter():
        if "x" in element.attrib:
            assert 0 <= float(element.attrib["x"]) + float(element.attrib.get("width", 0)) <= width
            assert 0 <= float(element.attrib["y"]) + float(element.attrib.get("height", 0)) <= height
        for x in re.findall(r"H(-?[\d.]+)", element.attrib.get("d", "")):
            assert 0 <= float(x) <= width


def test_of_many_tables_and_columns_the_first_are_drawn_and_the_others_counted() -> None:
    names = [f"t{n}" for n in range(45)]
    svg = draw(boxes(names, 60), [Link(name, "c59", "t0", "x") for name in names[1:]], "words")
    assert {"t0", "t39", "and 20 more"} <= {*words(svg)}
    assert "t40" not in words(svg)
    assert "5 more tables are not drawn" in words(svg)[-1]


async def test_a_long_chain_of_references_is_read(database: Settings) -> None:
    with closing(sqlite3.connect(database.db_path)) as conn:
        for n in range(300, 0, -1):
            conn.execute(f"CREATE TABLE chain_{n} (x REFERENCES chain_{n - 1})")
    found = await diagram(database)
    assert picture_of(SVG, found.svg)
    assert len({column.table for column in found.columns}) == 300 + len(expected_tables())
