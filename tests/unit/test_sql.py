"""sql/: its files say what they do, and the database refuses what the schema forbids, on both SQLite libraries."""

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from engines import ERRORS, LIBRARIES, REFUSALS, Run, build, opened
from rows import BAD, GOOD, insert

from abathur_nb.store.schema import expected_objects, expected_tables
from abathur_nb.store.sql import (
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


@pytest.fixture(params=LIBRARIES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with opened(request.param) as run:
        build(run)
        yield run


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


@pytest.mark.parametrize("removed", [0, 1, 3, 7, 9])
def test_the_events_that_stay_keep_their_order_and_their_text(run: Run, removed: int) -> None:
    events = [EVENT, '{"n":0}', '[1.10,{"é":"\\u00e9"}]', "true", "null", "7", '"a\\"b"', '{"n":1e-7}']
    insert(run, "sessions", {**GOOD["sessions"], "id": "other", "events": '[{"n":1}]'})
    insert(run, "sessions", {**GOOD["sessions"], "events": f"[ {', '.join(events)} ]"})
    assert query(run, "trim_events", session_id="s", removed=removed) == [("s",)]
    assert run("SELECT events FROM sessions ORDER BY id") == [('[{"n":1}]',), (f"[{','.join(events[removed:])}]",)]


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
    assert sorted(version for _, version in query(run, "soft_delete_memory", namespace="user:a:p", key="k")) == [1, 2]
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


def test_what_makes_a_version_the_current_one_is_said_alike_in_each_query() -> None:
    """SQL cannot share a clause: a copy that was changed alone would find other versions than the rest."""
    clause = re.compile(r"NOT EXISTS \( SELECT 1 FROM memory_entries AS newer .*? \)")
    queries = [normalized(found.sql) for found in load_queries().values()]
    current = [sql for sql in queries if "newer" in sql or sql.startswith("SELECT * FROM memory_entries AS m ")]
    copies = [found for sql in current for found in clause.findall(sql)]
    assert len(current) == len(copies) == 4
    assert len({*copies}) == 1


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
        "from abathur_nb.store import schema; from abathur_nb.store import sql\n"
        "print([f.cache_info().currsize for f in (sql.statements, sql.load_queries, schema.expected_objects)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 0, 0]"


def test_python_and_apsw_bring_different_sqlites() -> None:
    with closing(sqlite3.connect(":memory:")) as conn, opened("apsw") as run:
        assert conn.execute("SELECT sqlite_version()").fetchone() != run("SELECT sqlite_version()")[0]
