"""The rules of the rows: each is read from the DDL, and a row that breaks it is named by column and key."""

import re

import pytest
from damage import ROWS, edit_schema, run_sql, untouched
from validate_helpers import failing, validated

from abathur_nb.config.settings import Settings
from abathur_nb.health.rows import row_checks
from abathur_nb.report import Check
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.connection import connect
from abathur_nb.store.expected import column_checks, expected_columns, expected_objects, expected_tables
from abathur_nb.store.values import add_functions
from abathur_nb.text import printable

KINDS = ("JSON columns", "values", "required values", "timestamps", "moments", "readable text", "JSON limits")


async def checked(settings: Settings) -> dict[str, Check]:
    """Hold the rules against every row, and return the checks by name."""
    async with connect(settings.db_path, settings=settings) as conn:
        await add_functions(conn)
        checks = {check.name: check for check in await row_checks(conn)}
    assert tuple(checks) == KINDS
    return checks


async def test_each_kind_says_how_many_rules_hold_for_how_many_rows(database: Settings) -> None:
    run_sql(database.db_path, *ROWS)
    checks = await checked(database)
    assert {check.status for check in checks.values()} == {"pass"}
    every = [found for table in expected_tables() for found in column_checks(table)]
    json_rules = sum(found.kind == "json" for found in every)
    assert checks["JSON columns"].observed == f"{json_rules} rules hold for {len(ROWS) + 3} rows"
    assert checks["values"].observed == f"{len(every) - json_rules} rules hold for {len(ROWS) + 3} rows"


BAD_ROWS = [  # (the check, the column, what it is made to hold)
    ("JSON columns", "tasks.input_data", "'{broken'"),
    ("JSON columns", "tasks.input_data", "x'7b7d'"),
    ("JSON columns", "tasks.input_data", "7"),
    ("JSON columns", "tasks.input_data", "'null'"),
    ("JSON columns", "tasks.input_data", "'7'"),
    ("JSON columns", "tasks.input_data", "''"),
    ("JSON columns", "tasks.dependencies", "'{}'"),
    ("JSON columns", "sessions.events", "'{}'"),
    ("JSON columns", "sessions.state", "'[]'"),
    ("JSON columns", "memory_entries.metadata", "'[]'"),
    ("JSON columns", "document_index.metadata", "'x'"),
    ("values", "tasks.status", "'WHATEVER'"),
    ("values", "tasks.priority", "999"),
    ("values", "tasks.priority", "1.5"),
    ("values", "tasks.priority", "'high'"),
    ("values", "tasks.retry_count", "-1"),
    ("values", "tasks.max_execution_timeout_seconds", "0"),
    ("values", "agents.state", "'dead'"),
    ("values", "sessions.status", "''"),
    ("values", "memory_entries.namespace", "'plain'"),
    ("values", "memory_entries.key", "''"),
    ("values", "memory_entries.version", "0"),
    ("values", "memory_entries.is_deleted", "2"),
    ("values", "memory_entries.memory_type", "'x'"),
    ("values", "document_index.sync_status", "'x'"),
    ("values", "metrics.metric_value", "'abc'"),
    ("values", "metrics.metric_value", "9e999"),
    ("values", "metrics.metric_value", "-1"),
    ("values", "audit.memory_operation_type", "'x'"),
    ("values", "checkpoints.iteration", "-1"),
    ("timestamps", "tasks.submitted_at", "'not a time'"),
    ("timestamps", "tasks.started_at", "''"),
    ("timestamps", "tasks.submitted_at", "1700000000"),
    ("timestamps", "tasks.submitted_at", "x'00'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01T00:00:00'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00 UTC'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 30:00:00'"),
    ("timestamps", "tasks.submitted_at", "'2026-02-30 00:00:00'"),
    ("timestamps", "tasks.submitted_at", "'2026-13-01 00:00:00.000'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00.1x3'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00   Z'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00    '"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 00:00:00.12Z'"),
    ("timestamps", "tasks.submitted_at", "'2026-01-01 24:00:00'"),
    ("timestamps", "audit.timestamp", "'now'"),
    ("timestamps", "sessions.last_update_time", "'now'"),
]


MOMENTS = [
    f"{table}.{column.name}"
    for table in expected_tables()
    for column in expected_columns(table)
    if column.name.endswith(("_at", "_time")) or column.name == "timestamp"
]


@pytest.mark.parametrize("column", MOMENTS)
async def test_a_moment_in_the_future_is_named_by_column_and_key(column: str, database: Settings) -> None:
    table, name = column.split(".")
    run_sql(database.db_path, *ROWS)
    for moment, ahead in {
        "'9999-01-01 00:00:00.000'": True,
        "strftime('%Y-%m-%d %H:%M:%f', 'now', '+10 minutes')": True,
        "datetime('now', '+1 day')": True,
        "strftime('%Y-%m-%d %H:%M:%f', 'now', '+4 minutes')": False,
        "'1970-01-01 00:00:00'": False,
    }.items():
        run_sql(database.db_path, f"UPDATE {table} SET {name} = {moment}")
        found = (await checked(database))["moments"]
        assert found.status == ("fail" if ahead else "pass"), moment
        assert (column in found.observed) is ahead
        assert ("timedatectl" in found.remedy) is ahead


KEYS = {"tasks": "'t1'", "sessions": "'s1'", "agents": "'a1'", "memory_entries": "4", "checkpoints": "'t1', 0"}


@pytest.mark.parametrize(("check", "column", "value"), BAD_ROWS, ids=[f"{c} = {value}" for _, c, value in BAD_ROWS])
async def test_a_value_that_does_not_belong_is_named_by_column_and_key(
    database: Settings, check: str, column: str, value: str
) -> None:
    table, name = column.split(".")
    last = f"rowid = (SELECT max(rowid) FROM {table})"
    run_sql(database.db_path, *ROWS, f"UPDATE {table} SET {name} = {value} WHERE {last}")
    checks = await validated(database)
    assert failing(checks) == {check}  # a fault of the row, not of the file
    assert checks[check].observed == f"broken: {column} × 1"
    key = "'t1', -1" if name == "iteration" else KEYS.get(table, "1")
    assert checks[check].evidence == (f"{column}: 1 row, by key: {key}",)


def test_every_rule_of_the_schema_has_its_kind_among_the_bad_rows() -> None:
    """Each table with a CHECK on JSON, and each with another one, stands in the table above or in the next test."""
    assert {kind for table in expected_tables() for _, kind, _ in column_checks(table)} == {"json", "value"}
    assert {check for check, _, _ in BAD_ROWS} == {"JSON columns", "values", "timestamps"}


EACH_JSON = [
    (table, found.column) for table in expected_tables() for found in column_checks(table) if found.kind == "json"
]


@pytest.mark.parametrize(("table", "column"), EACH_JSON)
async def test_each_json_column_is_looked_at(database: Settings, table: str, column: str) -> None:
    run_sql(database.db_path, *ROWS, f"UPDATE {table} SET {column} = '{{broken'")
    checks = await checked(database)
    rows = 4 if table == "memory_entries" else 1  # the seeds too
    assert checks["JSON columns"].observed == f"broken: {table}.{column} × {rows}"


EACH_REQUIRED = [
    (table, found.name) for table in expected_tables() for found in expected_columns(table) if found.required
]


@pytest.mark.parametrize(
    ("table", "column"),
    [pair for pair in EACH_REQUIRED if pair[1] != "id" or pair[0] in ("tasks", "sessions", "agents")],
)
async def test_each_null_where_a_value_is_required_is_named(database: Settings, table: str, column: str) -> None:
    """Also in a primary key: the rule is taken out of the schema, broken, and put back."""
    path = database.db_path
    run_sql(path, *ROWS)
    sql = expected_objects()[table].sql
    start = sql.index(f"\n    {column} ") + 1
    line = sql[start : sql.index("\n", start)]
    lax = line.replace(" NOT NULL", "")
    assert lax != line
    edit_schema(path, table, line, lax)
    run_sql(path, f"UPDATE {table} SET {column} = NULL WHERE rowid = (SELECT max(rowid) FROM {table})")
    edit_schema(path, table, lax, line)
    checks = await validated(database)
    assert checks["required values"].observed == f"broken: {table}.{column} × 1"
    assert re.fullmatch(rf"{table}\.{column}: 1 row, by key: \S.*", checks["required values"].evidence[0])
    assert "integrity" in failing(checks)


NUMBERED = ("memory_entries", "document_index", "state", "audit", "metrics")  # by an id that can't be text


@pytest.mark.parametrize("table", expected_tables())
async def test_text_that_is_no_utf_8_is_found_in_each_column(database: Settings, table: str) -> None:
    path = database.db_path
    run_sql(path, *ROWS)
    original = path.read_bytes()
    for column in (found.name for found in expected_columns(table) if found.name != "id" or table not in NUMBERED):
        path.write_bytes(original)
        last = f"rowid = (SELECT max(rowid) FROM {table})"
        run_sql(path, f"UPDATE {table} SET {column} = CAST(x'613a7b7dff' AS TEXT) WHERE {last}")
        check = (await checked(database))["readable text"]
        assert (check.status, check.observed) == ("fail", f"broken: {table}.{column} × 1")
        assert check.evidence[0].startswith(f"{table}.{column}: 1 row, by key: ")


NOT_UTF_8 = ["ff", "80", "e9", "c3", "c3a9c3", "e282", "c0af", "eda080", "f4908080", "61ff62", "e9746574"]


@pytest.mark.parametrize("text", NOT_UTF_8)
async def test_what_python_cannot_decode_is_named_with_whatever_key_it_has(database: Settings, text: str) -> None:
    """Latin-1, a broken-off character, an overlong one, a surrogate: a listing that meets one of them fails."""
    bad = f"CAST(x'{text}' AS TEXT)"
    run_sql(
        database.db_path,
        f"INSERT INTO sessions (id, app_name, user_id) VALUES ({bad}, 'app', {bad}), ('ok', 'é', '漢😀')",
    )
    checks = await validated(database)
    assert failing(checks) == {"readable text"}
    key = f"{bytes.fromhex(text)!r} (rowid 1)"
    assert checks["readable text"].evidence == (
        f"sessions.id: 1 row, by key: {printable(key)}",
        f"sessions.user_id: 1 row, by key: {printable(key)}",
    )
    run_sql(database.db_path, "DELETE FROM sessions WHERE rowid = 1")
    assert failing(await validated(database)) == set()


async def test_a_broken_rule_and_text_that_is_no_utf_8_do_not_hide_each_other(database: Settings) -> None:
    run_sql(
        database.db_path,
        "INSERT INTO tasks (id, prompt, status) VALUES (CAST(x'74ff' AS TEXT), 'p', 'WHATEVER')",
        "INSERT INTO tasks (id, prompt, input_data) VALUES ('t2', 'p', '[1e999]')",
        "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', -1)",
        "ALTER TABLE audit RENAME COLUMN result TO outcome",
    )
    checks = await validated(database)
    assert failing(checks) >= {"values", "readable text", "JSON limits", "tables"}
    unread = "audit: no such column: result"
    assert checks["values"].evidence == (
        r"tasks.status: 1 row, by key: b't\xff' (rowid 1)",
        "metrics.metric_value: 1 row, by key: 1",
        unread,
    )
    assert checks["readable text"].evidence == (r"tasks.id: 1 row, by key: b't\xff' (rowid 1)", unread)
    assert checks["JSON limits"].evidence[0].startswith("tasks.input_data: 1 row, by key: 't2' (not JSON: ")


@pytest.mark.parametrize(("table", "column"), EACH_JSON)
async def test_json_beyond_the_stores_limits_is_found_in_each_column(
    database: Settings, table: str, column: str
) -> None:
    (condition,) = (found.expression for found in column_checks(table) if found.column == column)
    json = "[1e999]" if "'array'" in condition else '{"a":1e999}'
    last = f"rowid = (SELECT max(rowid) FROM {table})"
    run_sql(database.db_path, *ROWS, f"UPDATE {table} SET {column} = '{json}' WHERE {last}")
    checks = await checked(database)
    assert failing(checks) == {"JSON limits"}
    assert checks["JSON limits"].observed == f"broken: {table}.{column} × 1"
    (told,) = checks["JSON limits"].evidence
    assert told.startswith(f"{table}.{column}: 1 row, by key: ")
    assert " (not JSON: Out of range float values are not JSON compliant" in told


async def test_many_offending_rows_are_counted_and_twenty_are_named(database: Settings) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
    insert = f"{many} INSERT INTO tasks (id, prompt, status) SELECT printf('t%04d', i), 'p', 'WHATEVER' FROM n"
    run_sql(database.db_path, insert)
    (told,) = (await validated(database))["values"].evidence
    assert told.startswith("tasks.status: 1,000 rows, by key: 't0001'; 't0002'; ")
    assert told.endswith("'t0020'; …")


async def test_a_hostile_key_is_shown_escaped(database: Settings) -> None:
    run_sql(
        database.db_path, "INSERT INTO tasks (id, prompt, status) VALUES ('<script>' || char(10, 0, 8238), 'p', 'x')"
    )
    with untouched(database.db_path):
        report = await validate_database(database)
    assert "<script>" not in report.to_html()
    assert "\u202e" not in report.to_json()
    assert "&lt;script&gt;" in report.to_html()


async def test_rows_of_a_table_that_cannot_be_read_could_not_be_asked(database: Settings) -> None:
    run_sql(database.db_path, "ALTER TABLE metrics RENAME COLUMN metric_value TO amount")
    checks = await validated(database)
    assert checks["tables"].status == "fail"
    for name in ("values", "required values"):
        assert checks[name].status == "error"
        assert "could not run: metrics: no such column" in checks[name].observed
