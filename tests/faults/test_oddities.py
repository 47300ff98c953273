"""What other programs leave in a database: each verb ends soon and within bounds, and what is not ours is named."""

import hashlib
import json
import marshal
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from backup_helpers import content_of, taken
from damage import ROWS, run_sql
from oddities import ODD, ODD_TABLES
from sampling import sampled
from situations import edited, gone
from troubleshoot_helpers import check_of, failed

import abathur_nb as nb
from abathur_nb.backups.replacement import read_source
from abathur_nb.backups.taking import read_content
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical
from abathur_nb.runbook.validate import show_schema
from abathur_nb.store import connection
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import expected_tables

EVERY = ODD | ODD_TABLES
# The words for what is not a table.
NOT_OURS = {name: "view v" if "view" in name else "virtual table f" for name in ODD} | dict.fromkeys(ODD_TABLES, "")
NOT_OURS |= {"a trigger": "trigger t", "a module that is absent": "virtual table alien", "rtree": "virtual table r"}
SAMPLE = ("fts5", "a trigger", "a view without end", "a module that is absent", "columns that cost")


@pytest.fixture
def odd(request: pytest.FixtureRequest, database: Settings) -> Settings:
    run_sql(database.db_path, *ROWS, *EVERY[request.param])
    return database


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.node.callspec.params["odd"]
    return found


@pytest.mark.parametrize("odd", sampled(EVERY, *SAMPLE), indirect=True)
async def test_a_backup_of_it_is_good_and_comes_back(odd: Settings, name: str) -> None:
    assert failed(await nb.validate_database(odd)) == ({"other objects"} if name in ODD else set())
    backup, wanted, before = await taken(odd), await content_of(odd), odd.db_path.stat().st_size
    (await nb.restore_database(odd, backup=backup.path, drill=True)).raise_for_failures()
    for spoil in (edited("DELETE FROM metrics"), gone):
        spoil(odd)
        plan = await nb.restore_database(odd, backup=backup.path)
        assert NOT_OURS[name] in check_of(plan, "backup").observed
        (await nb.restore_database(odd, backup=backup.path, apply=True)).raise_for_failures()
        assert await content_of(odd) == wanted
        assert odd.db_path.stat().st_size == before
    assert failed(await nb.validate_database(odd)) == ({"other objects"} if name in ODD else set())
    (await nb.roll_back(odd, to="fresh", apply=True)).raise_for_failures()


@pytest.mark.parametrize("odd", sampled(EVERY, *SAMPLE[:4]), indirect=True)
async def test_every_look_and_a_repair_leave_what_is_not_ours(odd: Settings, name: str) -> None:
    assert (await show_schema(odd)).note == ""
    for look in (nb.explore, nb.monitor, nb.explain_queries):
        result: Any = await look(odd)
        assert result.report.ok, str(result.report)
    report = await nb.troubleshoot(odd)
    assert report.refused == (name == "a trigger"), "a repair would set a trigger off"
    assert failed(report) <= {"other objects", "database file"}
    if name in ("a trigger", "a view"):
        with pytest.raises(nb.RefusedError, match=f"holds {NOT_OURS[name]}"):
            async with nb.Database.open(odd):
                pass
    if name != "a trigger":
        before = (await content_of(odd)).rows
        run_sql(odd.db_path, "DROP INDEX idx_tasks_parent", "UPDATE tasks SET input_data = 'x'")
        for report in (await nb.troubleshoot(odd, repair=True), await nb.validate_database(odd)):
            assert failed(report) <= {"other objects"}
        assert (await content_of(odd)).rows == before


async def test_the_digest_of_an_ordinary_database_is_that_of_older_manifests(database: Settings) -> None:
    """Written out as it was before columns that SQLite computes, virtual tables and wide tables were thought of."""
    run_sql(database.db_path, *ROWS, "ANALYZE")
    digest = hashlib.sha256()
    async with connect(database.db_path, database.busy_timeout_ms) as conn:
        conn.text_factory = bytes
        for table in sorted([*expected_tables(), "sqlite_sequence"]):
            rows = await conn.execute_fetchall(f"SELECT * FROM {table} NOT INDEXED")
            info = await conn.execute_fetchall("SELECT name FROM pragma_table_xinfo(?) ORDER BY cid", (table,))
            digest.update(canonical({"table": table, "columns": [column.decode() for (column,) in info]}))
            kinds = [f"typeof({column.decode()}) = 'text'" for (column,) in info]
            texts = await conn.execute_fetchall(f"SELECT {', '.join(kinds)} FROM {table} NOT INDEXED")
            for row, text in zip(rows, texts, strict=True):
                digest.update(marshal.dumps(("".join(map(str, text)), *row), 2))
    async with connect(database.db_path, database.busy_timeout_ms) as conn:
        assert (await read_content(conn)).digest == digest.hexdigest()


# Ordinary tables and indexes of others that this process can't use, or whose rows break their own rules.
UNUSABLE = {
    "an index by another function": "CREATE INDEX o ON tasks (theirs(status))",
    "a table kept by another collation": (
        "CREATE TABLE o (k TEXT COLLATE theirs PRIMARY KEY) WITHOUT ROWID; INSERT INTO o VALUES ('x'), ('y')"
    ),
    "a reference that leads nowhere": "CREATE TABLE o (k REFERENCES sessions); INSERT INTO o VALUES ('none')",
    "a NULL where they forbid it": (
        "CREATE TABLE o (k); INSERT INTO o VALUES (NULL); PRAGMA writable_schema = ON;"
        "UPDATE sqlite_master SET sql = 'CREATE TABLE o (k NOT NULL)' WHERE name = 'o'"
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_faults_in_tables_of_others_make_nothing_unsound(name: str, database: Settings) -> None:
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:
        conn.create_collation("theirs", lambda one, two: (one > two) - (one < two))
        conn.create_function("theirs", 1, str, deterministic=True)
        conn.executescript(UNUSABLE[name])
    before = await content_of(database)
    report = await nb.validate_database(database)
    assert failed(report) == set(), str(report)
    assert check_of(report, "other objects").status == "warn"
    await taken(database)
    for drill in (True, False):
        (await nb.restore_database(database, drill=drill, apply=not drill)).raise_for_failures()
    assert await content_of(database) == before
    run_sql(database.db_path, "INSERT INTO audit (action_type, agent_id) VALUES ('x', 'none')")
    report = await nb.validate_database(database)
    assert failed(report) == {"foreign keys"}
    assert "audit.agent_id: 'none'" in check_of(report, "foreign keys").evidence[0], "and hides nothing of ours"


SIZE = 40_000_000  # over what malloc keeps for itself
# Text of JSON, by what it costs to parse it.
VALUES = {
    "one text": "json_object('a', printf('%.*c', {size}, 'x'))",
    "many numbers": "'[' || replace(hex(zeroblob({size} / 4)), '00', '1,') || '1]'",
    "no JSON": "replace(hex(zeroblob({size} / 2)), '00', '{{{{')",
}
# Prints what each verb has added to the memory that this process has needed at most, in bytes.
PROGRAM = """
import asyncio, json, sys
import abathur_nb as nb
from situations import VERBS
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
async def measured(verb, settings):
    open("/proc/self/clear_refs", "w").write("5")
    before, shown = most(), await VERBS[verb](settings)
    report = getattr(shown, "report", shown)
    return [most() - before, report.refused, [f"{c.status} {c.name}: {c.observed}" for c in report.checks]]
verbs, *paths = sys.argv[1:]
for path in paths:
    settings = nb.resolve("development", db_path=path)
    for verb in verbs.split(","):
        print(json.dumps([verb, *asyncio.run(measured(verb, settings))]), flush=True)
"""
EACH_VERB = (
    *("validate", "troubleshoot", "backup", "monitor", "explore"),
    *("plan of a fresh start", "drill", "restore", "repair"),
)


@pytest.fixture
def usual(tmp_path: Path, pristine: bytes) -> Path:
    """Return another database, on which all modules are loaded first."""
    path = tmp_path / "usual" / "abathur.db"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(pristine)
    path.chmod(0o600)
    return path


Measured = tuple[str, int, bool, list[str]]


def measured(usual: Path, *hostile: Path, verbs: tuple[str, ...] = EACH_VERB) -> Iterator[Measured]:
    """Yield what each verb adds to the memory on hostile databases, whether it was refused, and its checks."""
    command = [sys.executable, "-c", PROGRAM, ",".join(verbs), *map(str, (usual, *hostile))]
    path = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **path})
    # The bar of a slow backup may come before a line.
    lines = [line[line.index('["') :] for line in done.stdout.splitlines() if '["' in line]
    for line in lines[len(verbs) :]:
        yield tuple(json.loads(line))


INSERTS = (
    "INSERT INTO tasks (id, prompt, input_data) VALUES ('t', 'p', {})",
    "INSERT INTO sessions (id, app_name, user_id, events) VALUES ('s', 'a', 'u', {})",
)


@pytest.mark.parametrize(
    "at", sampled(product(VALUES, INSERTS), ("many numbers", INSERTS[0]), ("one text", INSERTS[1])), ids=str
)
def test_a_large_value_costs_at_most_three_times_its_size(at: tuple[str, str], database: Settings, usual: Path) -> None:
    kind, insert = at
    run_sql(database.db_path, insert.format(VALUES[kind].format(size=SIZE)))
    # The value, a copy of it, the pages of the file that are mapped; and the row in the form in which it would be kept.
    most = {"validate": 3, "troubleshoot": 5}
    for verb, used, _, told in measured(usual, database.db_path, verbs=tuple(most)):
        assert [line.partition(":")[0] for line in told if line.startswith(("fail", "error"))] == ["fail JSON limits"]
        assert used < most[verb] * SIZE, verb


# What a schema may compute, by its table; of 4e8 it would take 1.2 GB.
COMPUTED = {
    "tasks": "CREATE INDEX i1 ON tasks (prompt, length(hex(zeroblob(4e8))))",
    "metrics": "CREATE INDEX i2 ON metrics (metric_name) WHERE length(hex(zeroblob(4e8))) > 1",
    "audit": "CREATE INDEX i3 ON audit (replace(hex(zeroblob(4e8)), '0', action_type) > 'x')",
    "generated": "CREATE TABLE generated (a, b AS (length(hex(zeroblob(4e8)))) NOT NULL)",
    # Each of the hundred values is short enough, and together they are 800 MB.
    "together": f"CREATE INDEX i4 ON together ({', '.join(['hex(zeroblob(5e1))'] * 100)})",
}
UNREAD = (
    "CREATE TABLE checked (a, CHECK (length(hex(zeroblob(4e8))) > 1))",
    "CREATE VIEW shown AS SELECT length(hex(zeroblob(4e8)))",
    "INSERT INTO generated VALUES (1)",
    "INSERT INTO checked VALUES (1)",
    "INSERT INTO together VALUES (1)",
)


def test_no_verb_takes_the_memory_that_a_schema_asks_for(database: Settings, usual: Path) -> None:
    small = [statement.replace("4e8", "4e1") for statement in (*COMPUTED.values(), *UNREAD)]
    in_full = "UPDATE sqlite_schema SET sql = replace(replace(sql, '4e1', '4e8'), '5e1', '4e6')"
    made = (*ROWS, "CREATE TABLE together (a)", *small)
    run_sql(database.db_path, *made, "PRAGMA writable_schema = ON", in_full)
    ran = [*measured(usual, database.db_path)]
    for name, used, refused, told in ran:
        assert (used < 20_000_000, refused) == (True, False), (name, used, told)
        assert not [line for line in told if line.startswith(("error", "fail integrity"))], (name, told)
    for table in COMPUTED:
        assert f"{table}, integrity_check: the bound of" in str(ran[0][-1])


# Schemas that are too long. To parse a list, SQLite needs 20 times its size.
SCHEMAS = {
    "list": [f"CREATE TABLE evil (a CHECK (a IN ({'1,' * 4_000_000}1)))"],
    "name": ['CREATE TABLE "evil{}" (a)'.format("n" * 8_000_000)],
    "many": ["CREATE TABLE evil{} (a DEFAULT '{}')".format(n, "x" * 900_000) for n in range(9)],
}


@pytest.mark.parametrize("kinds", sampled((tuple(SCHEMAS), ("list",)), ("list",)), ids="+".join)
async def test_a_schema_that_is_too_long_is_refused(kinds: tuple[str, ...], usual: Path, tmp_path: Path) -> None:
    hostile = [tmp_path / kind / "abathur.db" for kind in kinds]
    for path, kind in zip(hostile, kinds, strict=True):
        path.parent.mkdir(mode=0o700)
        shutil.copy(usual, path)
        run_sql(path, *SCHEMAS[kind])
    for name, used, refused, told in measured(usual, *hostile):
        assert refused, name
        assert "CORRUPT" not in str(told)
        assert name in ("drill", "restore") or "is too long to be read: " in str(told), (name, told)
        assert used < 3 * 8_000_000 + 60_000_000, name  # as much as SQLite needs for a list until its bound
    words = r"evil.*the bound of 1,048,576|its SQL has .* the bound is 2,097,152"
    for path in hostile:
        with pytest.raises(nb.RefusedError, match=words):
            async with nb.Database.open(nb.resolve("development", db_path=path)):
                pass
    with pytest.raises((nb.RefusedError, sqlite3.DatabaseError), match=r"too long|too big"):
        await read_source(hostile[0], "a backup")


async def test_a_check_that_reaches_its_bound_is_no_damage(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # So many that each check takes longer than SQLite lets pass between two looks at the clock.
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
    run_sql(database.db_path, f"{many} INSERT INTO metrics (metric_name, metric_value) SELECT 'm' || i, 1 FROM n")
    monkeypatch.setattr(connection, "BOUND_S", -60)
    report = await nb.validate_database(database)
    stopped = {check.name for check in report.checks if check.status == "error" and "the bound of" in check.observed}
    assert {"integrity", "values"} <= stopped
    assert "CORRUPT" not in str(report)
    assert not any(check.status == "fail" for check in report.checks), str(report)
    for refused in (await nb.backup_database(database), await nb.troubleshoot(database, repair=True)):
        assert refused.refused
        assert "the bound of 30 s" in str(refused)
    assert not database.backup_dir.exists()


async def test_of_hundreds_of_tables_that_are_not_ours_each_verb_names_some(database: Settings) -> None:
    run_sql(database.db_path, "BEGIN", *(f"CREATE TABLE other_{n} (a)" for n in range(300)), "COMMIT")
    reports = [await verb(database) for verb in (nb.validate_database, nb.troubleshoot, nb.backup_database)]
    reports += [await nb.restore_database(database, apply=True), (await nb.explore(database)).report]
    for report in reports:
        report.raise_for_failures()
        assert max(len(check.observed) for check in report.checks) < 1000, report.title
    assert " and 280 more" in check_of(reports[0], "other objects").observed
    assert (await nb.show_schema(database)).to_html().endswith("<p>and 109 more tables</p>")
