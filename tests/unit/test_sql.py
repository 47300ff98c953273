"""sql/: its files say what they do, and the database refuses what the schema forbids, on both SQLite libraries."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from engines import LIBRARIES, REFUSALS, Run, build, opened
from rows import BAD, GOOD, insert

from abathur_nb.store.schema import expected_objects
from abathur_nb.store.sql import DATA, DDL_FILES, SEED_FILE, load_queries, normalized, split, statements, tokens

INDEXES = [found.name for found in expected_objects().values() if found.type == "index"]


@pytest.fixture(params=LIBRARIES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with opened(request.param) as run:
        build(run)
        yield run


def query(run: Run, name: str, **parameters: object) -> list[tuple[Any, ...]]:
    return run(load_queries()[name].sql, parameters)


def test_a_semicolon_in_a_comment_or_string_ends_no_statement() -> None:
    script = "-- a; b\nSELECT ';' -- c; d\n/* e; */ ;\n-- f\n SELECT 2; -- the end;"
    assert list(split(script)) == [("-- a; b", "SELECT ';' -- c; d\n/* e; */"), ("-- f", "SELECT 2")]


@pytest.mark.parametrize("script", ["SELECT 1; SELECT 2", "SELECT 'a;", "SELECT /* 1;"])
def test_a_script_that_breaks_off_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match="breaks off"):
        list(split(script))


def test_the_runbooks_own_loader_executes_nothing_of_a_commented_file_and_this_one_all() -> None:
    script = "-- The users.\nCREATE TABLE u (id);\n\n-- Found by id.\nCREATE INDEX i ON u (id);\n"
    assert [part for part in map(str.strip, script.split(";")) if part and not part.startswith("--")] == []  # trap 11
    assert len(list(split(script))) == 2
    assert [len(statements(name)) for name in (*DDL_FILES, SEED_FILE)] == [3, 6, 33, 3]


def test_the_files_say_what_they_do_to_existing_data_and_neither_drop_nor_skip_what_exists() -> None:
    for path in (DATA / "sql").glob("*.sql"):
        assert "-- To existing data: " in path.read_text().split("\n\n")[0], path.name
    for name in (*DDL_FILES, SEED_FILE):
        words = {token.upper() for statement in statements(name) for token in tokens(statement)}
        assert not words & {"DROP", "EXISTS", "IF", "STRICT", "REPLACE", "IGNORE"}, name


def test_every_query_has_a_name_of_its_own_and_a_sentence() -> None:
    for path in (DATA / "sql").glob("*.sql"):
        script = path.read_text()
        if "-- name: " in script:
            queries = load_queries(path.name)
            assert len(queries) == len(list(split(script))), path.name
            assert all(query.sql and query.doc for query in queries.values()), path.name


def test_each_named_query_runs_with_its_example_and_together_they_use_every_index(run: Run) -> None:
    every = {row[0] for row in run("SELECT name FROM sqlite_master WHERE type = 'index'")}
    for name, found in load_queries().items():
        assert found.name == name
        assert found.doc.endswith(".") or ":" in found.doc
        assert found.index is None or found.index in every, name
        assert {token[1:] for token in tokens(found.sql) if token.startswith(":")} == set(found.parameters), name
        if name != "insert_audit":  # its memory entry must exist
            run(found.sql, found.parameters)
    assert set(INDEXES) <= {found.index for found in load_queries().values()}
    with pytest.raises(TypeError):
        load_queries()["get_session"] = load_queries()["get_memory"]  # type: ignore[index]


def test_the_good_rows_are_taken_and_their_times_sort_as_text(run: Run) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
    for table, column in (("sessions", "last_update_time"), ("audit", "timestamp"), ("tasks", "submitted_at")):
        ((time,),) = run(f"SELECT {column} FROM {table}")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", time)


@pytest.mark.parametrize(("table", "column"), BAD)
def test_bad_values_are_refused(run: Run, table: str, column: str) -> None:
    for parent, row in GOOD.items():
        if parent == table:
            break
        insert(run, parent, row)
    before = run(f"SELECT count(*) FROM {table}")
    for value in BAD[table, column]:
        with pytest.raises(REFUSALS):
            insert(run, table, {**GOOD[table], column: value})
    assert run(f"SELECT count(*) FROM {table}") == before
    insert(run, table, GOOD[table])  # the control: it was the value that was refused


def test_what_refers_to_a_row_outlives_it_or_keeps_it(run: Run) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
    query(run, "delete_memory_entry", id=1)
    assert run("SELECT task_id, memory_entry_id FROM audit") == [("no such task", None)]
    run("DELETE FROM sessions")
    for table in ("tasks", "agents", "checkpoints"):
        assert run(f"SELECT session_id FROM {table}") == [(None,)]
    for name, given in (("delete_task", {"task_id": "t"}), ("delete_agent", {"agent_id": "a"})):
        with pytest.raises(REFUSALS):
            query(run, name, **given)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a TEXT/* x */CHECK(a<>'--;'),b INT", "a TEXT -- a; 'comment'\n  CHECK ( a <> '--;' ),\n  b INT", True),
        ("a TEXT DEFAULT 'x y'", "a TEXT DEFAULT 'x  y'", False),
        ("a TEXT DEFAULT 'x y'", "a TEXT DEFAULT 'X y'", False),
        ("a TEXT DEFAULT 'x y'", 'a TEXT DEFAULT "x y"', False),
        ("a TEXT", "a text", False),
        ("a < = b", "a <= b", False),
        ("x '00'", "x'00'", False),
    ],
)
def test_only_layout_and_comments_do_not_count(one: str, other: str, same: bool) -> None:
    assert (normalized(one) == normalized(other)) is same


def test_what_makes_a_version_the_current_one_is_said_alike_in_each_query() -> None:
    """SQL cannot share a clause: a copy that was changed alone would find other versions than the rest."""
    clause = re.compile(r"NOT EXISTS \( SELECT 1 FROM memory_entries AS newer .*? \)")
    queries = [normalized(found.sql) for found in load_queries().values()]
    current = [sql for sql in queries if "newer" in sql or sql.startswith("SELECT * FROM memory_entries AS m ")]
    copies = [found for sql in current for found in clause.findall(sql)]
    assert len(current) == len(copies) == 4
    assert len({*copies}) == 1
