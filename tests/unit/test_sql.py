"""sql/: its files say what they do, the database refuses what the schema forbids, and plans are read."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from engines import BAD, GOOD, LIBRARIES, REFUSALS, Run, as_fetch, build, insert, opened

from abathur_nb.errors import InvalidValueError
from abathur_nb.store.schema import expected_objects
from abathur_nb.store.sql import (
    DATA,
    DDL_FILES,
    SEED_FILE,
    Step,
    load_queries,
    normalized,
    plan_steps,
    read_plan,
    require_single_select,
    split,
    statements,
    tokens,
)

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
    with pytest.raises(ValueError, match="is incomplete"):
        list(split(script))


def test_every_statement_of_a_commented_file_is_executed() -> None:
    assert len(list(split("-- The users.\nCREATE TABLE u (id);\n\n-- Found by id.\nCREATE INDEX i ON u (id);\n"))) == 2
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


SCAN, SORT = Step("table scan", "tasks"), Step("sort", "")


def search(table: str, index: str | None) -> Step:
    return Step("search", table, index)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("sql", "steps"),
    [
        ("SELECT * FROM tasks WHERE id = 'x'", [search("tasks", "sqlite_autoindex_tasks_1")]),
        ("SELECT * FROM metrics WHERE id = 1", [search("metrics", None)]),
        ("SELECT * FROM tasks", [SCAN]),
        ("SELECT * FROM tasks AS x", [Step("table scan", "x")]),
        ("SELECT count(*) FROM state", [Step("index scan", "state", "sqlite_autoindex_state_1")]),
        ("SELECT * FROM tasks ORDER BY prompt", [SCAN, SORT]),
        ("SELECT DISTINCT prompt FROM tasks", [SCAN, SORT]),
        ("SELECT prompt FROM tasks GROUP BY prompt", [SCAN, SORT]),
        ("SELECT * FROM tasks WHERE status = 'a' ORDER BY id", [search("tasks", "idx_tasks_status_priority"), SORT]),
        ("SELECT * FROM (SELECT * FROM tasks LIMIT 9) LIMIT 5", [SCAN]),
        ("SELECT value FROM json_each('[1]')", []),
        ("VALUES (1), (2)", []),
        ("SELECT 1", []),
        ("WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT i FROM n", []),
        (
            # A table's name inside the subquery of the same name is the table's.
            "WITH tasks AS MATERIALIZED (SELECT * FROM main.tasks) SELECT * FROM tasks",
            [Step("table scan", "main.tasks")],
        ),
        (
            "WITH RECURSIVE n (i) AS (SELECT '' UNION ALL SELECT id FROM n JOIN tasks t ON prompt > i) SELECT 1 FROM n",
            [Step("table scan", "t")],
        ),
        (
            "SELECT * FROM tasks WHERE status = 'a' OR session_id = 'x'",
            [search("tasks", "idx_tasks_status_priority"), search("tasks", "idx_tasks_session")],
        ),
        (
            "DELETE FROM agents WHERE id = 'a'",
            [search("agents", "sqlite_autoindex_agents_1"), search("audit", "idx_audit_agent")],
        ),
        ("INSERT INTO metrics (metric_name, metric_value) VALUES ('a', 1)", []),
    ],
)
async def test_each_kind_of_step_is_told_apart(library: str, sql: str, steps: list[Step]) -> None:
    with opened(library) as run:
        build(run)
        assert plan_steps(await read_plan(as_fetch(run), sql)) == steps


@pytest.mark.parametrize(
    ("detail", "step"),
    [
        ("SCAN TABLE tasks", SCAN),
        ("SCAN TABLE tasks AS t", SCAN),
        ("SCAN TABLE state USING COVERING INDEX i", Step("index scan", "state", "i")),
        ("SEARCH TABLE tasks AS t USING INDEX i (id=?)", search("tasks", "i")),
        ("SEARCH TABLE tasks USING INDEX an odd name (id=?)", search("tasks", "an odd name")),
        ("SEARCH TABLE tasks USING AUTOMATIC COVERING INDEX (a=?)", Step("automatic index", "tasks")),
        ("SEARCH tasks USING AUTOMATIC PARTIAL COVERING INDEX (a=?)", Step("automatic index", "tasks")),
        ("SEARCH TABLE metrics USING INTEGER PRIMARY KEY (rowid=?)", search("metrics", None)),
        ("USE TEMP B-TREE FOR RIGHT PART OF ORDER BY", SORT),
        ("USING INDEX i FOR IN-OPERATOR", search("", "i")),
        ("SCAN SUBQUERY 1 AS t", None),
        ("SCAN TABLE json_each VIRTUAL TABLE INDEX 1:", None),
        ("SCAN CONSTANT ROW", None),
        ("SCAN 2 CONSTANT ROWS", None),
        ("SCAN 2-ROW VALUES CLAUSE", None),
        ("BLOOM FILTER ON t (id=?)", None),
    ],
)
def test_the_wordings_of_all_versions_are_read(detail: str, step: Step | None) -> None:
    assert plan_steps([detail]) == ([step] if step else [])


async def test_a_plan_is_shown_with_each_level_further_in() -> None:
    rows = [(2, 0, 0, "A"), (3, 2, 0, "B"), (5, 3, 0, "C"), (7, 2, 0, "D"), (9, 0, 0, "E")]
    assert await read_plan(as_fetch(lambda *_: rows), "SELECT 1") == ["A", "  B", "    C", "  D", "E"]


SELECTS = (
    *("SELECT 1", "select 1;", "-- why\nSELECT ';' /* ; */ -- ;", "WITH a AS (SELECT 1) SELECT * FROM a"),
    'WITH "delete" AS (SELECT 1) SELECT * FROM "delete"',
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
)
OTHERS: tuple[Any, ...] = (
    *("", " ", ";", "-- SELECT 1", "/* SELECT 1 */", "/* SELECT 1", "SELECT 1; SELECT 2", "SELECT 1;;", "not sql"),
    *("SELECT 1; -- a\n DELETE FROM tasks", "DELETE FROM tasks", "/* SELECT */ DELETE FROM tasks", "WITH", "BEGIN"),
    *("WITH a AS (SELECT 1) DELETE FROM tasks", "WITH a AS (SELECT 1) INSERT INTO tasks SELECT * FROM a"),
    *("PRAGMA journal_mode = DELETE", "ATTACH '/tmp/x' AS x", "VACUUM INTO '/tmp/x'", "EXPLAIN SELECT 1"),
    *("QUERY PLAN SELECT 1", "SELECT 1\0", "SELECT '\ud800'", b"SELECT 1", None),
)


def test_one_select_is_let_through_and_all_else_is_refused() -> None:
    for sql in SELECTS:
        require_single_select(sql)
    for sql in OTHERS:
        with pytest.raises(InvalidValueError, match="one SELECT"):
            require_single_select(sql)
