"""Validate names each damage by its check, its place and what repairs it; nothing else fails, and no byte changes."""

import json
import os
import random
import re
import shlex
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from damage import ROWS, SESSION, drop_check, edit_schema, grant_by_acl, held, query, run_sql
from validate_helpers import failing, validated
from values_helpers import BEYOND, nested, within

from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.runbook.validate import show_schema
from abathur_nb.store.database import Database
from abathur_nb.store.schema import column_checks, expected_columns, expected_objects, expected_tables
from abathur_nb.store.target import repair_command
from abathur_nb.store.values import MAX_BYTES, _json_fault, _suspicious, json_fault
from abathur_nb.text import printable, user_name


@pytest.fixture
def filled(database: Settings) -> Settings:
    run_sql(database.db_path, *ROWS)
    return database


async def test_a_sound_database_passes_and_says_how_much_was_looked_at(filled: Settings) -> None:
    checks = await validated(filled)
    assert {check.status for check in checks.values()} == {"pass"}
    every = [found for table in expected_tables() for found in column_checks(table)]
    json_rules = sum(found.kind == "json" for found in every)
    assert checks["JSON columns"].observed == f"{json_rules} rules hold for {len(ROWS) + 3} rows"
    assert checks["values"].observed == f"{len(every) - json_rules} rules hold for {len(ROWS) + 3} rows"


async def test_of_each_table_the_rows_the_size_and_that_of_its_indexes_are_shown(filled: Settings) -> None:
    run_sql(filled.db_path, f"UPDATE audit SET action_data = '\"{'x' * 200_000}\"'")
    schema = await show_schema(filled)
    frame = schema.by_size().to_frame()
    assert dict(zip(frame["table"], frame["rows"], strict=True)) == schema.rows
    kb = frame["kB of rows"] + frame["kB of indexes"]
    assert 0 <= sum(schema.sizes.values()) / 1000 - sum(kb) < 40, "only SQLite's own tables are left out"
    assert list(kb) == sorted(kb, reverse=True)
    bars = list(frame.iloc[:, -1])
    assert (frame["table"][0], bars[0].strip("░"), len(bars[0])) == ("audit", bars[0][:21], 24)
    assert str(schema.by_size()).startswith("audit · rows 1 · kB of rows 2")
    bare = replace(schema, sizes={}).by_size()  # this SQLite has no dbstat
    assert (bare.heads, bare.rows[0]) == (("table", "rows", "█ rows"), ("memory_entries", 4, "█" * 24))
    assert str(replace(schema, rows={}).by_size()) == "no table could be read: the report says why"


LAST = "rowid = (SELECT max(rowid) FROM {0})"
KEYS = {"tasks": "'t1'", "sessions": "'s1'", "agents": "'a1'", "memory_entries": "4", "checkpoints": "'t1', 0"}
BAD_VALUES = {  # what breaks a CHECK, and test_expected tries all such values; a time has a rule of its own
    ("JSON columns", "tasks.input_data"): ("'{broken'", "x'7b7d'", "7", "'null'"),
    ("JSON columns", "sessions.events"): ("'{}'",),
    ("values", "tasks.priority"): ("999", "1.5", "'high'"),
    ("values", "memory_entries.namespace"): ("'plain'",),
    ("values", "metrics.metric_value"): ("9e999", "-1"),
    ("values", "checkpoints.iteration"): ("-1",),
    ("timestamps", "tasks.submitted_at"): (
        *("'not a time'", "''", "1700000000", "x'00'", "'2026-01-01T00:00:00'", "'2026-01-01 00:00:00 UTC'"),
        *("'2026-01-01 30:00:00'", "'2026-02-30 00:00:00'", "'2026-13-01 00:00:00.000'", "'2026-01-01 24:00:00'"),
        *("'2026-01-01 00:00:00.1x3'", "'2026-01-01 00:00:00   Z'", "'2026-01-01 00:00:00  '"),
        "'2026-01-01 00:00:00.12Z'",
    ),
    ("timestamps", "audit.timestamp"): ("'now'",),
}


@pytest.mark.parametrize(("check", "column"), BAD_VALUES)
async def test_a_bad_value_is_named_by_column_and_key_alone(filled: Settings, check: str, column: str) -> None:
    table, name = column.split(".")
    for value in BAD_VALUES[check, column]:
        run_sql(filled.db_path, f"UPDATE {table} SET {name} = {value} WHERE {LAST.format(table)}")
        checks = await validated(filled)
        assert failing(checks) == {check}, value
        assert checks[check].observed == f"broken: {column} × 1"
        key = "'t1', -1" if name == "iteration" else KEYS.get(table, "1")
        assert checks[check].evidence == (f"{column}: 1 row, by key: {key}",)


NUMBERED = ("memory_entries", "document_index", "state", "audit", "metrics")  # an id of theirs is neither NULL nor text
COLUMNS = [(t, c) for t in expected_tables() for c in expected_columns(t) if c.name != "id" or t not in NUMBERED]
JSON = [(table, found) for table in expected_tables() for found in column_checks(table) if found.kind == "json"]
BEYOND_LIMITS = {True: "'[1e999]'", False: "'{\"a\":1e999}'"}  # whether the column holds an array
EACH = {  # the check, and what it must find in each of its columns
    "JSON columns": [(table, found.column, "'{broken'") for table, found in JSON],
    "JSON limits": [(table, found.column, BEYOND_LIMITS["'array'" in found.expression]) for table, found in JSON],
    "moments": [
        (t, c.name, "datetime('now', '+10 minutes')")
        for t, c in COLUMNS
        if c.name.endswith(("_at", "_time", "timestamp"))
    ],
    "readable text": [(table, column.name, "CAST(x'613a7b7dff' AS TEXT)") for table, column in COLUMNS],
    "required values": [(table, column.name, "NULL") for table, column in COLUMNS if column.required],
}


@pytest.mark.parametrize("name", EACH)
async def test_a_fault_is_named_in_each_column(filled: Settings, name: str) -> None:
    """Also NULL in a primary key: the rule is taken out of the schema, broken, and put back."""
    path, strict = filled.db_path, list[tuple[str, str]]()
    for table, column, value in EACH[name]:
        if value == "NULL":
            (line,) = (x for x in expected_objects()[table].sql.splitlines() if x.startswith(f"    {column} "))
            edit_schema(path, table, line, line.replace(" NOT NULL", ""))
            strict.append((table, line))
        run_sql(path, f"UPDATE {table} SET {column} = {value} WHERE {LAST.format(table)}")
    for table, line in strict:
        edit_schema(path, table, line.replace(" NOT NULL", ""), line)
    checks = await validated(filled)
    assert checks[name].status == "fail"
    told = checks[name].observed.removeprefix("broken: ").split(", ")
    assert sorted(told) == sorted(f"{table}.{column} × 1" for table, column, _ in EACH[name])
    assert name.startswith(("readable", "required")) or failing(checks) == {name}
    assert ("timedatectl" in checks[name].remedy) is (name == "moments")


async def test_what_python_cannot_decode_is_named_with_whatever_key_it_has(database: Settings) -> None:
    """Latin-1, a broken-off character, an overlong one, a surrogate: a listing that meets one of them fails."""
    texts = ("61ff62", "80", "c0af", "c3", "c3a9c3", "e282", "e9", "e9746574", "eda080", "f4908080", "ff")
    rows = ", ".join(f"(CAST(x'{text}' AS TEXT), 'app', 'u')" for text in texts)
    run_sql(database.db_path, f"INSERT INTO sessions (id, app_name, user_id) VALUES {rows}, ('ok', 'é', '漢😀')")
    checks = await validated(database)
    assert failing(checks) == {"readable text"}
    (evidence,) = checks["readable text"].evidence
    keys = [printable(f"{bytes.fromhex(text)!r} (rowid {n})") for n, text in enumerate(texts, 1)]
    assert evidence == f"sessions.id: {len(texts)} rows, by key: {'; '.join(keys)}"


async def test_faults_do_not_hide_each_other_nor_does_a_table_that_cannot_be_read(database: Settings) -> None:
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
    run_sql(database.db_path, "DELETE FROM tasks", "DELETE FROM metrics")
    checks = await validated(database)
    for name in ("values", "required values"):
        assert (checks[name].status, unread in checks[name].observed) == ("error", True)


def event_row(text: str, key: object) -> str:
    """Return the statement of somebody who writes whatever SQLite takes for JSON."""
    literal = text.replace("'", "''").replace("\0", "' || char(0) || '")
    return f"INSERT INTO sessions (id, app_name, user_id, events) VALUES ('{key}', 'a', 'u', '{literal}')"


async def test_what_the_store_would_not_write_is_named_with_the_reason(database: Settings) -> None:
    run_sql(database.db_path, *(event_row(text, f"{number:02}") for number, (text, _) in enumerate(BEYOND)))
    own = query(database.db_path, "SELECT DISTINCT json_valid(events), json_type(events) FROM sessions")
    assert own == [(1, "array")], "SQLite's own check passes it"
    checks = await validated(database)
    assert failing(checks) == {"JSON limits"}
    (evidence,) = checks["JSON limits"].evidence
    head, *reasons = re.split(r"(?:; |key: )'\d+' ", evidence)
    assert head.startswith(f"sessions.events: {len(BEYOND)} rows, by ")
    assert [told in reason for reason, (_, told) in zip(reasons, BEYOND, strict=True)] == [True] * len(BEYOND)
    assert all(len(reason) < 250 for reason in reasons)
    async with Database.open(database) as db:
        with pytest.raises(RefusedError, match="run validate"):
            await db.sessions.get_session(f"{[len(text) for text, _ in BEYOND].index(4303):02}")


async def test_what_the_store_writes_or_what_only_looks_suspicious_passes(database: Settings) -> None:
    run_sql(database.db_path, *(event_row(text, n) for n, text in enumerate(within()) if len(text) < MAX_BYTES / 2))
    assert failing(await validated(database)) == set()
    async with Database.open(database) as db:
        await db.memory.add_memory("user:a", "k", {"a": "x" * (MAX_BYTES - 8)}, "semantic", "me")
        await db.memory.add_memory("user:a", "l", nested(100), "semantic", "me")
    assert failing(await validated(database)) == set()


def test_a_closer_look_is_taken_at_all_that_is_beyond_the_limits_and_at_no_usual_row() -> None:
    random.seed(1)
    pieces = [*'10.eE+-[],"u', "9" * 100, "9" * 300, "99", "400", "\\", "d8", "D8", "00"]
    found = 0
    for _ in range(20_000):
        text = "[" + "".join(random.choices(pieces, k=random.randint(1, 9))) + "]"  # noqa: S311 - not a secret
        with suppress(ValueError):
            json.loads(text)
            found += bool(json_fault(text))
            assert _json_fault(text) == json_fault(text), text
    assert found > 20
    usual = {"text": "An event, 'quoted' \"twice\"\nand \\ escaped: 2026-11-23", "n": [1, 2.5, -3, 1e6, True, None]}
    assert not _suspicious(json.dumps([usual] * 20).encode())


INDEXES = sorted(name for name, found in expected_objects().items() if found.type == "index")
DROP = ("DROP INDEX idx_tasks_parent",)


def sql(*statements: str) -> Callable[[Path], None]:
    return lambda path: run_sql(path, *statements)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    return partial(edit_schema, name=name, old=old, new=new)


SCHEMA: list[tuple[Callable[[Path], None], str, str]] = [
    (sql(*DROP, "CREATE INDEX idx_tasks_parent ON tasks (prompt)"), "indexes", "altered: idx_tasks_parent"),
    (sql(*DROP, "CREATE INDEX idx_tasks_parent ON tasks (parent_task_id)"), "indexes", "altered: idx_tasks_parent"),
    (sql(*DROP, "CREATE INDEX idx_parent ON tasks (parent_task_id)"), "indexes", "missing: idx_tasks_parent"),
    (sql("ALTER TABLE audit ADD extra TEXT"), "tables", "altered: audit"),
    (sql("ALTER TABLE sessions RENAME COLUMN id TO sid"), "tables", "altered: agents, checkpoints, sessions, tasks"),
    (edit("idx_audit_task", "timestamp DESC", "timestamp ASC"), "indexes", "altered: idx_audit_task"),
    (edit("tasks", "BETWEEN 0 AND 10", "BETWEEN 0 AND 99"), "tables", "altered: tasks"),
    (edit("tasks", "prompt TEXT NOT NULL", "prompt TEXT\u00a0NOT NULL"), "tables", "altered: tasks"),  # a type's name
    (edit("tasks", "DEFAULT 'general'", "DEFAULT 'General'"), "tables", "altered: tasks"),
    (edit("agents", " REFERENCES tasks (id)", ""), "tables", "altered: agents"),
    (drop_check, "tables", "altered: tasks"),
]


@pytest.mark.parametrize(("spoil", "check", "told"), SCHEMA)
async def test_what_is_missing_or_altered_is_named(
    database: Settings, spoil: Callable[[Path], None], check: str, told: str
) -> None:
    spoil(database.db_path)
    checks = await validated(database)
    assert checks[check].status == "fail"
    assert told in checks[check].observed
    if "altered" in told and check == "tables":
        assert any("expected" in line and "found" in line for line in checks[check].evidence)


async def test_each_of_the_33_indexes_that_is_missing_is_named(database: Settings) -> None:
    assert len(INDEXES) == 33
    run_sql(database.db_path, *(f"DROP INDEX {name}" for name in INDEXES))
    checks = await validated(database)
    assert failing(checks) == {"indexes"}
    assert checks["indexes"].observed == f"0 indexes; missing: {', '.join(INDEXES)}"


INDEX_FAULTS = [
    (*DROP, "CREATE INDEX\n-- hidden;\nidx_tasks_parent ON tasks (prompt) -- DROP TABLE tasks;\n"),
    (*DROP, "CREATE INDEX idx_tasks_parent ON sessions (status, id)", "DROP INDEX idx_audit_task"),
    ("DROP INDEX idx_audit_task", "CREATE INDEX idx_audit_task ON audit (result)", *DROP),
    ('CREATE INDEX "odd ""name\nDROP TABLE tasks;" ON audit (result)', *DROP),
]


@pytest.mark.parametrize("spoil", INDEX_FAULTS, ids=range(len(INDEX_FAULTS)))
async def test_the_evidence_of_a_faulty_index_repairs_it(database: Settings, spoil: tuple[str, ...]) -> None:
    """Each line is a whole statement or a comment; what is extra stays, and is not a fault of an index."""
    run_sql(database.db_path, *spoil)
    check = (await validated(database))["indexes"]
    assert (check.status, check.remedy) == ("fail", repair_command(database))
    assert all(line.endswith(";") and "\n" not in line for line in check.evidence)
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:
        conn.executescript("\n".join(check.evidence))
    assert (await validated(database))["indexes"].observed == "33 indexes, each as in sql/"


EXTRA = {  # what is not of sql/, how it is named, and its status
    "CREATE TABLE 'odd \"name' (x)": ('table odd "name', "warn"),
    "CREATE TABLE 'two  blanks' (x)": ("table two  blanks", "warn"),
    "CREATE TABLE 'two\nlines' (x)": ("table two\nlines", "warn"),
    "CREATE TABLE child (task_id TEXT REFERENCES tasks (id)) STRICT": ("table child", "warn"),
    "CREATE UNIQUE INDEX 'odd \"name' ON audit (id, result) WHERE result IS NOT NULL": ('index odd "name', "warn"),
    "CREATE VIRTUAL TABLE seen USING fts5(value)": ("table seen", "fail"),
    "create  virtual table seen using rtree(id, low, high)": ("table seen", "fail"),
    "CREATE VIEW seen AS SELECT 1": ("view seen", "fail"),
    "CREATE TRIGGER seen AFTER INSERT ON audit BEGIN DELETE FROM tasks; END": ("trigger seen", "fail"),
}


@pytest.mark.parametrize("statement", EXTRA)
async def test_what_is_extra_is_named_and_fails_only_where_it_can_run_code(database: Settings, statement: str) -> None:
    named, status = EXTRA[statement]
    run_sql(database.db_path, statement)
    checks = await validated(database)
    assert failing(checks) == ({"other objects"} if status == "fail" else set())
    found = checks["other objects"]
    assert found.status == status
    assert named in found.observed
    drops = [drop.replace("\n-- ", "\n").removeprefix("-- ") for drop in found.evidence[1::2]]
    if status == "warn":
        assert shlex.split(found.remedy.partition(": sqlite3 ")[2])[-1] == " ".join(drops)
    for drop in drops:
        with suppress(sqlite3.OperationalError):  # a shadow table goes with its virtual one
            run_sql(database.db_path, drop.rstrip(";"))
    assert (await validated(database))["other objects"].observed == "none"


CONFIG = "WHERE namespace = 'app:abathur:config'"
COUNTER = "UPDATE sqlite_sequence SET seq = {} WHERE name = 'memory_entries'"
REPAIRED = {
    f"DELETE FROM memory_entries {CONFIG}": "version 1 is missing",
    f"UPDATE memory_entries SET value = '{{}}' {CONFIG}": "version 1 holds '{}'",
    f"UPDATE memory_entries SET value = CAST(x'ff' AS TEXT) {CONFIG}": r"version 1 holds '\udcff'",
    f"UPDATE memory_entries SET version = 'x' {CONFIG}": "version 1 is missing",
    f"UPDATE memory_entries SET memory_type = 'episodic' {CONFIG}": "version 1 holds 'episodic' as its memory_type",
    f"UPDATE memory_entries SET created_by = NULL {CONFIG}": "version 1 holds None as its created_by",
    f"UPDATE memory_entries SET metadata = '{{\"a\":1}}' {CONFIG}": "version 1 holds '{\"a\":1}' as its metadata",
    COUNTER.format("9223372036854775807"): "",
    COUNTER.format("'abc'"): "",
    "DELETE FROM sqlite_sequence": "",
}


@pytest.mark.parametrize("spoil", REPAIRED)
async def test_a_spoiled_seed_or_counter_is_named_and_repaired_by_the_evidence(database: Settings, spoil: str) -> None:
    """The evidence is what a sqlite3 shell reads; what refers to the row keeps on doing so."""
    path, told = database.db_path, REPAIRED[spoil]
    run_sql(path, f"INSERT INTO audit (action_type, memory_entry_id) SELECT 'x', id FROM memory_entries {CONFIG}")
    run_sql(path, spoil)
    name = "seed memories" if told else "sequences"
    check = (await validated(database))[name]
    assert check.status == "fail"
    if told:
        assert check.observed.startswith("2 of 3")
        assert check.evidence[0].startswith(f"-- app:abathur:config / memory_lifecycle_policies: {told}")
    run_sql(path, *(part for line in check.evidence for part in line.split("; ") if not line.startswith("--")))
    assert (await validated(database))[name].status == "pass"
    kept = "SELECT count(*) FROM audit JOIN memory_entries ON memory_entry_id = memory_entries.id"
    assert query(path, kept) == [(0 if spoil.startswith("DELETE FROM memory") else 1,)]


@pytest.mark.parametrize("deleted", [0, 1])
async def test_a_version_1_that_is_put_back_revives_nothing(database: Settings, deleted: int) -> None:
    run_sql(database.db_path, f"UPDATE memory_entries SET version = 2, is_deleted = {deleted} {CONFIG}")
    run_sql(database.db_path, (await validated(database))["seed memories"].evidence[1])
    versions = f"SELECT version, is_deleted FROM memory_entries {CONFIG} ORDER BY version"
    assert query(database.db_path, versions) == [(1, deleted), (2, deleted)]


async def test_a_file_of_any_mode_but_0600_is_named_with_the_command(database: Settings) -> None:
    for mode in (0o644, 0o666, 0o640, 0o700, 0o601, 0o400, 0o200):
        database.db_path.chmod(mode)
        check = (await validated(database))["file modes"]
        assert check.status == "fail"
        assert f"abathur.db {mode:04o}" in check.observed
        assert check.remedy.startswith(f"chmod 600 {database.db_path}")


async def test_side_files_and_the_directory_are_looked_at_too(database: Settings) -> None:
    with held(database.db_path, "BEGIN IMMEDIATE", SESSION, "COMMIT"):
        for suffix in ("-wal", "-shm"):
            Path(f"{database.db_path}{suffix}").chmod(0o644)
        database.db_path.parent.chmod(0o777)
        check = (await validated(database))["file modes"]
    assert "abathur.db 0600, abathur.db-wal 0644, abathur.db-shm 0644; directory 0777" in check.observed
    folder = database.db_path.parent
    assert check.remedy == f"chmod 600 {folder}/abathur.db-wal {folder}/abathur.db-shm; chmod 700 {folder}"


async def test_a_file_of_another_than_its_directorys_owner_is_named_with_the_command(database: Settings) -> None:
    folder, path = database.db_path.parent, database.db_path
    os.chown(path, 65534, 65534)
    check = (await validated(database))["file modes"]
    assert check.status == "fail"
    assert f"abathur.db 0600 of {user_name(65534)}" in check.observed
    assert check.observed.endswith(f"; directory 0700 of {user_name(os.geteuid())}")
    assert check.remedy.startswith(f"sudo chown --reference={folder} {path}")
    folder.chmod(0o777)  # like /tmp: its owner does not say whose the file should be
    assert "chown" not in (await validated(database))["file modes"].remedy


async def test_an_access_control_list_is_named_with_the_command_that_shows_it(database: Settings) -> None:
    path, folder = database.db_path, database.db_path.parent
    grant_by_acl(path, 65534, 7, mask=6)
    check = (await validated(database))["file modes"]
    assert (check.status, "abathur.db 0660" in check.observed) == ("fail", True)
    assert check.evidence == (f"{path} has an access control list; to see it: getfacl {path}",)
    assert check.remedy.startswith(f"chmod 600 {path} ")  # and what SQLite has just made beside it
    assert check.remedy.endswith(f"; setfacl -b {path}")
    first = check.remedy.partition(";")[0]  # alone shuts the list off
    subprocess.run(["sh", "-c", first], check=True)  # noqa: ASYNC221
    assert (await validated(database))["file modes"].status == "pass"
    grant_by_acl(folder, 65534, 7)
    remedy = (await validated(database))["file modes"].remedy
    assert remedy.startswith(f"chmod 700 {folder}; setfacl -b ")
    assert remedy.endswith(str(folder))


async def test_a_large_log_warns(database: Settings) -> None:
    """A reader that stays holds it back."""
    fill = "INSERT INTO metrics (metric_name, metric_value) VALUES (hex(randomblob(600000)), 1)"
    with held(database.db_path, "BEGIN", "SELECT count(*) FROM metrics"), held(database.db_path, fill):
        checks = await validated(replace(database, max_wal_mb=1))
    assert checks["WAL size"].status == "warn"
    assert float(checks["WAL size"].observed.removesuffix(" MB")) > 1
    assert failing(checks) == set()
