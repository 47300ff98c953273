"""sql/: its files say what they do, and the database refuses what the schema forbids, on both SQLite libraries."""

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from math import isnan
from typing import Any

import pytest
from engines import ERRORS, LIBRARIES, REFUSALS, Run, build, opened

from abathur_nb.expected import column_checks, expected_objects, expected_seeds, expected_tables
from abathur_nb.sql import (
    DATA,
    DDL_FILES,
    SEED_FILE,
    SqlFileError,
    load_queries,
    normalized,
    parse_queries,
    split,
    statements,
    tokens,
)

INDEXES = [found.name for found in expected_objects().values() if found.type == "index"]

# The runbook's section 2.6.
SEEDS = {
    ("app:abathur:agent_instructions", "default_workflow", "procedural"): {
        "steps": [
            "Read and analyze task requirements",
            "Retrieve relevant context from memory",
            "Execute task with best practices",
            "Update session state and memory",
            "Log comprehensive audit trail",
        ],
        "error_handling": "Always provide detailed error messages and rollback on failure",
        "logging": "Comprehensive audit logging enabled",
    },
    ("app:abathur:config", "memory_lifecycle_policies", "procedural"): {
        "episodic_ttl_days": 90,
        "semantic_permanent": True,
        "procedural_versioned": True,
        "consolidation_frequency": "weekly",
        "archival_after_days": 365,
    },
    ("app:abathur:defaults", "user_preference_template", "semantic"): {
        "communication_style": "balanced",
        "technical_level": "intermediate",
        "response_length": "moderate",
        "code_comments": True,
    },
}

# The least that each table takes, parents first.
GOOD: dict[str, dict[str, Any]] = {
    "sessions": {"id": "s", "app_name": "app", "user_id": "alice"},
    "memory_entries": {"namespace": "a:b", "key": "k", "value": "{}", "memory_type": "semantic"},
    "document_index": {"file_path": "/a", "title": "a", "content_hash": "00"},
    "tasks": {"id": "t", "prompt": "do", "session_id": "s"},
    "agents": {"id": "a", "name": "a", "specialization": "b", "task_id": "t", "model": "m", "session_id": "s"},
    "state": {"task_id": "t", "key": "k", "value": "[]"},
    "audit": {"action_type": "x", "agent_id": "a", "task_id": "no such task", "memory_entry_id": 1},
    "metrics": {"metric_name": "m", "metric_value": 1.5},
    "checkpoints": {"task_id": "t", "iteration": 0, "state": "{}", "session_id": "s"},
}
_NO_JSON = ("", "{", "null", "1", '"x"', "{'a': 1}", b"{}", b"[]", 1, 1.5)
_NO_OBJECT, _NO_ARRAY = (*_NO_JSON, None, "[]"), (*_NO_JSON, None, "{}")
_NO_COUNT = (1.5, "x", "", b"1", None, -1)
BAD: dict[tuple[str, str], tuple[Any, ...]] = {
    ("sessions", "id"): (None,),
    ("sessions", "app_name"): (None,),
    ("sessions", "user_id"): (None,),
    ("sessions", "status"): ("WHATEVER", "Active", "", None, 1, b"active"),
    ("sessions", "events"): _NO_ARRAY,
    ("sessions", "state"): _NO_OBJECT,
    ("sessions", "metadata"): _NO_OBJECT,
    ("sessions", "created_at"): (None,),
    ("sessions", "last_update_time"): (None,),
    ("memory_entries", "namespace"): (None, "", "nocolon", ":" * 513, b"a:b"),
    ("memory_entries", "key"): (None, "", "k" * 513, b"k"),
    ("memory_entries", "value"): (*_NO_JSON, None),
    ("memory_entries", "memory_type"): ("factual", "", None, 1),
    ("memory_entries", "version"): (*_NO_COUNT, 0),
    ("memory_entries", "is_deleted"): (*_NO_COUNT, 2, "true"),
    ("memory_entries", "metadata"): _NO_OBJECT,
    ("document_index", "file_path"): (None,),
    ("document_index", "chunk_count"): (*_NO_COUNT, 0),
    ("document_index", "metadata"): _NO_OBJECT,
    ("document_index", "sync_status"): ("done", None),
    ("tasks", "id"): (None,),
    ("tasks", "prompt"): (None,),
    ("tasks", "priority"): (*_NO_COUNT, 11, 999),
    ("tasks", "status"): ("WHATEVER", None),
    ("tasks", "input_data"): (*_NO_JSON, None),
    ("tasks", "result_data"): _NO_JSON,
    ("tasks", "retry_count"): _NO_COUNT,
    ("tasks", "max_retries"): _NO_COUNT,
    ("tasks", "max_execution_timeout_seconds"): (*_NO_COUNT, 0),
    ("tasks", "dependencies"): (*_NO_JSON, "{}"),
    ("tasks", "parent_task_id"): ("no such task",),
    ("tasks", "session_id"): ("no such session",),
    ("agents", "id"): (None,),
    ("agents", "task_id"): (None, "no such task"),
    ("agents", "state"): ("busy", None),
    ("agents", "resource_usage"): _NO_JSON,
    ("agents", "session_id"): ("no such session",),
    ("state", "task_id"): (None, "no such task"),
    ("state", "key"): (None,),
    ("state", "value"): (*_NO_JSON, None),
    ("audit", "agent_id"): ("no such agent",),
    ("audit", "action_type"): (None,),
    ("audit", "action_data"): _NO_JSON,
    ("audit", "memory_operation_type"): ("read", ""),
    ("audit", "memory_entry_id"): (999,),
    ("metrics", "metric_name"): (None,),
    ("metrics", "metric_value"): (-1, "abc", float("inf"), float("nan"), b"1", None),
    ("metrics", "labels"): (*_NO_JSON, "[]"),
    ("checkpoints", "task_id"): (None, "no such task"),
    ("checkpoints", "iteration"): _NO_COUNT,
    ("checkpoints", "state"): (*_NO_JSON, None),
    ("checkpoints", "session_id"): ("no such session",),
}


@pytest.fixture(params=LIBRARIES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with opened(request.param) as run:
        build(run)
        yield run


def insert(run: Run, table: str, row: dict[str, Any]) -> None:
    run(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))


def query(run: Run, name: str, **parameters: object) -> list[tuple[Any, ...]]:
    return run(load_queries()[name].sql, parameters)


# The files.


def test_a_semicolon_in_a_comment_or_string_ends_no_statement() -> None:
    script = "-- a; b\nSELECT ';' -- c; d\n/* e; */ ;\n-- f\n SELECT 2; -- the end;"
    assert list(split(script)) == [("-- a; b", "SELECT ';' -- c; d\n/* e; */"), ("-- f", "SELECT 2")]


@pytest.mark.parametrize("script", ["SELECT 1; SELECT 2", "SELECT 'a;", "SELECT 1;;", ";", "SELECT /* 1;"])
def test_a_script_that_breaks_off_or_holds_an_empty_statement_is_refused(script: str) -> None:
    with pytest.raises(SqlFileError):
        list(split(script))


def test_the_runbooks_own_loader_executes_nothing_of_a_commented_file_and_this_one_all() -> None:
    script = "-- The users.\nCREATE TABLE u (id);\n\n-- Found by id.\nCREATE INDEX i ON u (id);\n"
    assert [part for part in map(str.strip, script.split(";")) if part and not part.startswith("--")] == []  # trap 11
    assert len(list(split(script))) == 2
    assert [len(statements(name)) for name in (*DDL_FILES, SEED_FILE)] == [3, 6, 33, 3]


def test_no_file_drops_or_skips_what_exists() -> None:
    for name in (*DDL_FILES, SEED_FILE):
        words = {token.upper() for statement in statements(name) for token in tokens(statement)}
        assert not words & {"DROP", "EXISTS", "IF", "STRICT", "REPLACE", "IGNORE"}, name


def test_each_file_says_what_it_does_to_existing_data() -> None:
    for path in (DATA / "sql").glob("*.sql"):
        header = path.read_text().split("\n\n")[0]
        assert "-- To existing data: " in header, path.name


def test_run_a_second_time_each_statement_fails_and_changes_nothing(run: Run) -> None:
    before = run("SELECT * FROM sqlite_master"), run("SELECT * FROM memory_entries")
    for name in (*DDL_FILES, SEED_FILE):
        for statement in statements(name):
            with pytest.raises(ERRORS):
                run(statement)
    assert (run("SELECT * FROM sqlite_master"), run("SELECT * FROM memory_entries")) == before


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("-- name: a\nSELECT 1;", "no sentence"),
        ("-- It answers.\nSELECT 1;", "no name"),
        ("-- name: a\n-- It.\nSELECT 1;\n-- name: a\n-- It.\nSELECT 1;", "two queries"),
        ("-- name: a\n-- name: b\n-- It.\nSELECT 1;", "name twice"),
        ("-- name: a\n-- It.\n-- parameters: {\nSELECT 1;", "no JSON"),
    ],
)
def test_a_faulty_header_is_refused(script: str, fault: str) -> None:
    with pytest.raises(SqlFileError, match=fault):
        parse_queries(script)


def test_the_named_queries_name_their_parameters_and_an_index_that_exists(run: Run) -> None:
    every = {row[0] for row in run("SELECT name FROM sqlite_master WHERE type = 'index'")}
    for name, found in load_queries().items():
        assert found.name == name
        assert found.doc.endswith(".") or ":" in found.doc
        assert found.index is None or found.index in every, name
        used = {token[1:] for token in tokens(found.sql) if token.startswith(":")}
        assert used == set(found.parameters), name


def test_every_index_is_the_index_of_a_query() -> None:
    assert set(INDEXES) <= {found.index for found in load_queries().values()}


def test_every_named_query_runs_with_its_example(run: Run) -> None:
    for found in load_queries().values():
        if found.name != "insert_audit":  # its memory entry must exist
            run(found.sql, found.parameters)


def test_a_query_can_be_shared_but_not_changed() -> None:
    assert load_queries() is load_queries()
    with pytest.raises(TypeError):
        load_queries()["get_session"] = load_queries()["get_memory"]  # type: ignore[index]


# The schema.


def test_there_are_9_tables_and_33_indexes() -> None:
    assert {found.name for found in expected_objects().values() if found.type == "table"} == set(expected_tables())
    assert len(INDEXES) == 33
    assert set(GOOD) == set(expected_tables())


def test_sqlite_keeps_the_comments() -> None:
    for table in expected_tables():
        assert "-- " in expected_objects()[table].sql.splitlines()[1]


def test_every_primary_key_is_declared_not_null(run: Run) -> None:
    for table in expected_tables():
        keys = [column for column in run(f"PRAGMA table_info({table})") if column[5]]
        assert keys, table
        assert all(column[3] == 1 for column in keys), table


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


def test_a_deleted_session_leaves_its_tasks_agents_and_checkpoints(run: Run) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
    run("DELETE FROM sessions")
    for table in ("tasks", "agents", "checkpoints"):
        assert run(f"SELECT session_id FROM {table}") == [(None,)]


@pytest.mark.parametrize("name", ["delete_task", "delete_agent"])
def test_what_has_children_cannot_be_deleted(run: Run, name: str) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
    with pytest.raises(REFUSALS):
        query(run, name, **({"task_id": "t"} if name == "delete_task" else {"agent_id": "a"}))


def test_an_audit_row_outlives_its_memory_and_needs_no_task(run: Run) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
    query(run, "delete_memory_entry", id=1)
    assert run("SELECT task_id, memory_entry_id FROM audit") == [("no such task", None)]


def test_the_seeds_are_those_of_the_runbook() -> None:
    found = {(seed.namespace, seed.key, seed.memory_type): json.loads(seed.value) for seed in expected_seeds()}
    assert found == SEEDS
    assert {(s.created_by, s.updated_by, s.version) for s in expected_seeds()} == {("system", "system", 1)}


# The CHECKs as data.


def test_every_check_of_the_ddl_is_found() -> None:
    for table in expected_tables():
        assert len(column_checks(table)) == tokens(expected_objects()[table].sql).count("CHECK")


@pytest.mark.parametrize(
    ("table", "column"), [key for key in BAD if key[1] in {c.column for c in column_checks(key[0])}]
)
def test_a_bad_value_breaks_the_condition_of_its_column_and_no_other(run: Run, table: str, column: str) -> None:
    run("PRAGMA ignore_check_constraints = ON")
    run("PRAGMA foreign_keys = OFF")
    for value in (value for value in BAD[table, column] if value is not None and not _is_nan(value)):
        run(f"DELETE FROM {table}")
        insert(run, table, {**GOOD[table], column: value})
        broken = [c for c in column_checks(table) if run(f"SELECT 1 FROM {table} WHERE NOT ({c.expression})")]
        assert [c.column for c in broken] == [column], value


def test_good_rows_break_none(run: Run) -> None:
    for table, row in GOOD.items():
        insert(run, table, row)
        for check in column_checks(table):
            assert run(f"SELECT 1 FROM {table} WHERE NOT ({check.expression})") == []


def test_json_and_other_values_are_told_apart() -> None:
    kinds = {(check.column, check.kind) for check in column_checks("tasks")}
    assert {("input_data", "json"), ("dependencies", "json"), ("priority", "value"), ("status", "value")} <= kinds


# Comparing SQL.


def test_layout_and_comments_do_not_count() -> None:
    one = "CREATE TABLE t(a TEXT/* x */CHECK(a<>'--;'),b INT)"
    other = "CREATE  TABLE t (\n  a TEXT -- a; 'comment'\n  CHECK ( a <> '--;' ),\n  b INT\n)"
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    "other",
    [
        "CREATE TABLE t (a TEXT DEFAULT 'x  y')",
        "CREATE TABLE t (a TEXT DEFAULT 'x -- y')",
        "CREATE TABLE t (a TEXT DEFAULT 'X y')",
        'CREATE TABLE t (a TEXT DEFAULT "x y")',
        "CREATE TABLE t (a TEXT NOT NULL DEFAULT 'x y')",
        "create table t (a TEXT DEFAULT 'x y')",
    ],
)
def test_all_else_does(other: str) -> None:
    assert normalized(other) != normalized("CREATE TABLE t (a TEXT DEFAULT 'x y')")


def test_two_tokens_are_not_one() -> None:
    assert normalized("a < = b") != normalized("a <= b")
    assert normalized("x '00'") != normalized("x'00'")


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and isnan(value)  # SQLite stores it as NULL


EVENT = '{"n":1.10,"big":123456789012345678901234567890,"none":null,"quote":"\\"é\\u00e9\\\\"}'


def replace_keys(run: Run, state: str, delta: str, max_bytes: int = 1000) -> tuple[bool, str, str]:
    """Append an event with a state delta, and return whether it was done, and the texts that are then stored."""
    run("DELETE FROM sessions")
    insert(run, "sessions", {**GOOD["sessions"], "state": state})
    keys = json.loads(delta)
    spelt = {json.dumps(key, ensure_ascii=ascii_only) for key in keys for ascii_only in (True, False)}
    cleared = "{" + ",".join(f"{key}:null" for key in spelt) + "}"
    parameters = {"session_id": "s", "delta": delta, "cleared": cleared, "max_bytes": max_bytes}
    done = query(run, "append_event_with_delta", event=EVENT, **parameters)
    ((events, after),) = run("SELECT events, state FROM sessions")
    if done:
        run("UPDATE sessions SET state = ?", (state,))
        assert query(run, "set_state", **parameters) == done
        assert run("SELECT state FROM sessions") == [(after,)]
    return bool(done), events, after


# Sessions.


def test_an_event_is_appended_without_loss(run: Run) -> None:
    insert(run, "sessions", {**GOOD["sessions"], "events": "[ 1.10 ]"})
    assert query(run, "append_event", session_id="s", event=EVENT, max_bytes=1000) == [("s",)]
    assert run("SELECT events FROM sessions") == [(f"[1.10,{EVENT}]",)]


def test_an_event_that_would_not_fit_changes_nothing(run: Run) -> None:
    insert(run, "sessions", {**GOOD["sessions"], "events": f"[{EVENT}]"})
    full = 2 * len(EVENT.encode()) + len("[,]")
    before = run("SELECT * FROM sessions")
    assert query(run, "append_event", session_id="s", event=EVENT, max_bytes=full - 1) == []
    assert run("SELECT * FROM sessions") == before
    assert query(run, "append_event", session_id="s", event=EVENT, max_bytes=full) == [("s",)]
    assert run("SELECT length(CAST(events AS BLOB)) FROM sessions") == [(full,)]


@pytest.mark.parametrize(
    ("state", "delta", "after"),
    [
        ("{}", '{"a":null}', '{"a":null}'),
        ('{"a":1}', '{"a":2}', '{"a":2}'),
        ('{"a":{"x":1,"y":2},"b":{"z":null}}', '{"a":{"x":null}}', '{"b":{"z":null},"a":{"x":null}}'),
        ('{"f":1.10,"i":123456789012345678901234567890}', '{"g":2.50}', None),
        ('{ "a" : [ {"b":null} ] }', '{"c":"}"}', '{"a":[{"b":null}],"c":"}"}'),
        ('{"\\u00e9":1,"é2":1}', '{"é":2}', '{"é2":1,"é":2}'),
        ('{"é":1}', '{"\\u00e9":2}', '{"\\u00e9":2}'),
        (
            '{"q\\"\\\\":1,"":2,"$.a":3,"😀":4}',
            '{"q\\"\\\\":5,"":6,"$.a":7,"😀":8}',
            '{"q\\"\\\\":5,"":6,"$.a":7,"😀":8}',
        ),
    ],
)
def test_a_deltas_keys_replace_those_of_the_state_and_the_rest_stays(
    run: Run, state: str, delta: str, after: str | None
) -> None:
    done, events, found = replace_keys(run, state, delta)
    assert done
    assert events == f"[{EVENT}]"
    assert found == (after or f"{state[:-1]},{delta[1:]}")


def test_json_patch_alone_would_merge_and_drop(run: Run) -> None:
    """The control: the plain function loses what the statement keeps."""
    merged = run("""SELECT json_patch('{"a":{"x":1,"y":2}}', '{"a":{"x":null},"b":null}')""")
    assert merged == [('{"a":{"y":2}}',)]


def test_a_state_that_would_not_fit_changes_neither_state_nor_events(run: Run) -> None:
    delta = '{"b":"' + "x" * 200 + '"}'
    full = len(delta) + len('{"a":1}') - 1
    assert replace_keys(run, '{"a":1}', delta, full - 1) == (False, "[]", '{"a":1}')
    assert replace_keys(run, '{"a":1}', delta, full)[0]


def test_an_empty_delta_is_refused_whole(run: Run) -> None:
    with pytest.raises(REFUSALS):
        replace_keys(run, '{"a":1}', "{}")
    assert run("SELECT events, state FROM sessions") == [("[]", '{"a":1}')]


def test_the_first_termination_keeps_its_time(run: Run) -> None:
    insert(run, "sessions", {**GOOD["sessions"], "terminated_at": "2025-01-01 00:00:00.000"})
    assert query(run, "update_session_status", session_id="s", status="terminated") == [("s",)]
    assert query(run, "update_session_status", session_id="s", status="archived") == [("s",)]
    ((status, terminated, archived),) = run("SELECT status, terminated_at, archived_at FROM sessions")
    assert (status, terminated) == ("archived", "2025-01-01 00:00:00.000")
    assert archived > terminated
    assert query(run, "update_session_status", session_id="nobody", status="active") == []


# Memories.


def add_memory(run: Run, namespace: str = "user:a:p", key: str = "k", kind: str = "semantic") -> list[tuple[Any, ...]]:
    return query(
        run,
        "insert_memory",
        namespace=namespace, key=key, value='{"v":1}', memory_type=kind, created_by="me", metadata='{"m":1}',
    )  # fmt: skip


def update_memory(run: Run, value: str = '{"v":2}') -> list[tuple[Any, ...]]:
    return query(run, "insert_memory_version", namespace="user:a:p", key="k", value=value, updated_by="you")


def test_a_live_memory_is_not_added_again_and_a_deleted_one_goes_on_counting(run: Run) -> None:
    assert add_memory(run)[0][1] == 1
    assert add_memory(run) == []
    assert update_memory(run)[0][1] == 2
    assert sorted(version for _, version in query(run, "soft_delete_memory", namespace="user:a:p", key="k")) == [
        1,
        2,
    ]
    assert query(run, "get_memory", namespace="user:a:p", key="k") == []
    assert update_memory(run) == []
    assert add_memory(run)[0][1] == 3
    history = query(run, "memory_history", namespace="user:a:p", key="k")
    assert [row[5] for row in history] == [3, 2, 1]


def test_a_new_version_keeps_type_metadata_and_origin(run: Run) -> None:
    add_memory(run, kind="episodic")
    run("UPDATE memory_entries SET created_at = '2025-01-01 00:00:00.000' WHERE key = 'k'")
    update_memory(run)
    columns = "memory_type, metadata, created_by, created_at, updated_by"
    found = run(f"SELECT {columns} FROM memory_entries WHERE key = 'k' ORDER BY version DESC LIMIT 1")
    assert found == [("episodic", '{"m":1}', "me", "2025-01-01 00:00:00.000", "you")]


def test_a_search_takes_the_prefix_literally_and_gives_current_versions_only(run: Run) -> None:
    add_memory(run)
    update_memory(run)
    add_memory(run, "user_x:a", "other")
    add_memory(run, "userzx:a", "other")
    rows = query(run, "search_memories", prefix="user:", prefix_end="user;", limit=9)
    assert [(row[1], row[5]) for row in rows] == [("user:a:p", 2)]
    rows = query(run, "search_memories_of_type", prefix="user_", prefix_end="user`", memory_type="semantic", limit=9)
    assert [row[1] for row in rows] == ["user_x:a"]
    for name, parameters in (
        ("newest_memories_of_namespace", {"namespace": "user:a:p"}),
        ("newest_memories_of_type", {"memory_type": "semantic"}),
    ):
        assert 1 not in [row[5] for row in query(run, name, limit=9, **parameters) if row[1] == "user:a:p"]


def test_only_namespaces_with_a_live_memory_are_listed_in_order(run: Run) -> None:
    for namespace in ("z:z", "b:b", "dead:x"):
        add_memory(run, namespace)
    query(run, "soft_delete_memory", namespace="dead:x", key="k")
    seeds = ["app:abathur:agent_instructions", "app:abathur:config", "app:abathur:defaults"]
    assert query(run, "list_namespaces") == [(name,) for name in (*seeds, "b:b", "z:z")]
    run("UPDATE memory_entries SET is_deleted = 1")
    assert query(run, "list_namespaces") == []


def test_only_old_episodic_memories_expire(run: Run) -> None:
    for key, kind in (("old", "episodic"), ("new", "episodic"), ("fact", "semantic")):
        add_memory(run, "n:s", key, kind)
    run("UPDATE memory_entries SET created_at = '2025-01-01 00:00:00.000' WHERE key <> 'new'")
    found = query(run, "expired_memories", before="2025-06-01")
    assert [row[2] for row in found] == ["old"]
    assert [row[2] for row in query(run, "expire_memories", before="2025-06-01")] == ["old"]
    assert query(run, "expired_memories", before="2025-06-01") == []
    ((updated,),) = run("SELECT updated_at FROM memory_entries WHERE key = 'old'")
    assert [row[2] for row in query(run, "deleted_memories", before="9999")] == ["old"]
    assert query(run, "deleted_memories", before=updated) == []


def test_importing_reads_no_file() -> None:
    code = (
        "from abathur_nb import expected, sql\n"
        "print([f.cache_info().currsize for f in (sql.statements, sql.load_queries, expected.expected_objects)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 0, 0]"


def test_python_and_apsw_bring_different_sqlites() -> None:
    with closing(sqlite3.connect(":memory:")) as conn, opened("apsw") as run:
        assert conn.execute("SELECT sqlite_version()").fetchone() != run("SELECT sqlite_version()")[0]
