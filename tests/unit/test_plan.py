"""plan.py: plans are read as trees, whatever the wording, and each kind of step is told from the others."""

from typing import Any

import pytest
from engines import LIBRARIES, as_fetch, build, opened

from abathur_nb.errors import InvalidValueError
from abathur_nb.store.sql import PlanNode, Step, plan_steps, read_plan, require_single_select, tree_lines

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
    assert plan_steps([PlanNode(detail)]) == ([step] if step else [])


def test_a_tree_is_shown_with_each_level_further_in() -> None:
    tree = [PlanNode("A", [PlanNode("B", [PlanNode("C")]), PlanNode("D")]), PlanNode("E")]
    assert tree_lines(tree) == ["A", "  B", "    C", "  D", "E"]


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
