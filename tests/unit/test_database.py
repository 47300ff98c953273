"""The store: one writer at a time, readers that only read, and nothing broken by a cancellation."""

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from damage import drop_check, drop_index, edit_schema, held, query, run_sql, untouched
from patience import HANGING_S

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.errors import BusyError, ConfigurationError, InvalidValueError, MisuseError, RefusedError
from abathur_nb.store.database import Database
from abathur_nb.store.guarded import Connection
from abathur_nb.store.sql import load_queries

INSERT = "INSERT INTO metrics (metric_name, metric_value) VALUES (?, 1)"


def metrics(settings: Settings) -> list[str]:
    return [name for (name,) in query(settings.db_path, "SELECT metric_name FROM metrics ORDER BY id")]


def side_files(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.db_path.parent.glob("abathur.db-*"))


async def test_after_the_store_is_closed_no_log_and_no_thread_is_left(database: Settings) -> None:
    async with Database.open(database) as db:
        async with db.write() as conn:
            await conn.execute_fetchall(INSERT, ("a",))
        async with db.read():
            await db.sessions.list_sessions()
        assert side_files(database) == ["abathur.db-shm", "abathur.db-wal"]
    assert side_files(database) == []
    assert metrics(database) == ["a"]
    assert not [thread for thread in threading.enumerate() if "connection_worker" in thread.name]


def test_a_script_that_is_interrupted_in_the_middle_of_a_write_ends(database: Settings) -> None:
    """A connection left open would keep it from ever exiting."""
    program = (
        "import asyncio, sys, abathur_nb as nb\n"
        "async def main():\n"
        "    async with nb.Database.open(nb.resolve(db_path=sys.argv[1])) as db, db.write() as conn:\n"
        f"        await conn.execute_fetchall({INSERT!r}, ('a',))\n"
        "        print('writing', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(database.db_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) != 0
    assert (side_files(database), metrics(database)) == ([], [])


def test_a_process_that_never_closes_its_store_ends_with_a_warning(database: Settings) -> None:
    program = (
        "import asyncio, sys, abathur_nb as nb\n"
        "async def main():\n"
        "    opening = nb.Database.open(nb.resolve(db_path=sys.argv[1]))\n"
        "    db = await opening.__aenter__()\n"
        "    return opening, db, await db.memory.list_namespaces()\n"
        "kept = asyncio.new_event_loop().run_until_complete(main())\n"
    )
    command = [sys.executable, "-W", "always", "-c", program, str(database.db_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGING_S)
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning: " in done.stderr


DAMAGE: dict[str, Any] = {  # of triggers, views and later versions see test_target
    "missing: idx_audit_task": drop_index,
    "altered: tasks": drop_check,
    "altered: idx_audit_task": lambda path: edit_schema(path, "idx_audit_task", "timestamp DESC", "timestamp"),
    "missing: idx_metrics_name_timestamp, metrics": lambda path: run_sql(path, "DROP TABLE metrics"),
    "altered: audit": lambda path: run_sql(path, "ALTER TABLE audit ADD x"),
    "is in journal mode delete, expected wal": lambda path: run_sql(path, "PRAGMA journal_mode = DELETE"),
}


@pytest.mark.parametrize("told", DAMAGE)
async def test_what_lacks_or_alters_something_is_not_opened(database: Settings, told: str) -> None:
    DAMAGE[told](database.db_path)
    with untouched(database.db_path), pytest.raises(RefusedError) as caught:
        async with Database.open(database):
            pass
    assert told in str(caught.value)
    assert str(database.db_path) in str(caught.value)


async def test_a_database_made_with_other_comments_is_opened_and_valid(database: Settings) -> None:
    other = "UPDATE sqlite_schema SET sql = replace(sql, '-- ', '-- once: ') WHERE type = 'table'"
    run_sql(database.db_path, "PRAGMA writable_schema = ON", other)
    assert (await nb.validate_database(database)).ok
    assert (await nb.initialize_database(database)).ok
    async with Database.open(database) as db:
        assert await db.memory.list_namespaces()


async def test_an_extra_table_or_index_does_no_harm(database: Settings) -> None:
    run_sql(database.db_path, "CREATE TABLE extra (x)", "CREATE INDEX idx_extra ON audit (result)", "ANALYZE")
    async with Database.open(database) as db:
        await db.sessions.create_session("s", "a", "u")
        assert (await db.get_index_usage())["index_count"] == 34


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.mark.parametrize(("turns", "cancels"), [(0, 1), (1, 1), (1000, 1), (0, 2)])
async def test_an_endless_statement_of_a_reader_ends_with_its_task(db: Database, turns: int, cancels: int) -> None:
    """Cancelled before the thread has begun it, or after, or twice; and so where the block itself gives it up."""
    async with asyncio.timeout(HANGING_S):
        before, started = threading.active_count(), asyncio.Event()

        async def read() -> None:
            async with db.read() as conn:
                started.set()
                await conn.execute_fetchall(ENDLESS)

        task = asyncio.create_task(read())
        await started.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with db.read() as conn:
                await asyncio.wait_for(conn.execute_fetchall(ENDLESS), 0.01)
        async with db.read() as conn:
            assert len(list(await conn.execute_fetchall("SELECT 1"))) == 1
        assert threading.active_count() == before


async def test_what_one_reader_leaves_behind_does_not_strike_the_next(db: Database) -> None:
    async with db.read() as conn:
        await conn.execute_fetchall("PRAGMA query_only = OFF")
        await conn.execute_fetchall("CREATE TEMP VIEW memory_entries AS SELECT 1 AS id")
        await conn.execute_fetchall("BEGIN")
        conn.row_factory = None
    async with db.read() as conn:
        assert not conn.in_transaction
        (row,) = await conn.execute_fetchall("SELECT count(*) AS n FROM memory_entries")
        assert row["n"] == 3
        assert [tuple(r) for r in await conn.execute_fetchall("PRAGMA query_only")] == [(1,)]
    async with db.write() as conn:
        conn.row_factory, conn.text_factory = None, bytes
    with pytest.raises(sqlite3.ProgrammingError):
        async with db.write() as conn:
            conn.isolation_level = None  # which commits, in the wrong thread
    assert await db.memory.add_memory("user:alice:pref", "theme", {}, "semantic", "me")
    async with db.write() as conn:
        (row,) = await conn.execute_fetchall("SELECT 'text' AS t")
        assert row["t"] == "text"


@pytest.mark.parametrize("error", [KeyError("x"), sqlite3.OperationalError("x"), asyncio.CancelledError()])
async def test_a_failing_block_is_rolled_back(db: Database, database: Settings, error: BaseException) -> None:
    with pytest.raises(type(error)):  # noqa: PT012
        async with db.write() as conn:
            await conn.execute_fetchall(INSERT, ("lost",))
            raise error
    async with db.write() as conn:
        await conn.execute_fetchall(INSERT, ("kept",))
    assert metrics(database) == ["kept"]


async def test_concurrent_blocks_do_not_interleave(db: Database, database: Settings) -> None:
    async def write(name: str) -> None:
        async with db.write() as conn:
            for _ in range(3):
                await conn.execute_fetchall(INSERT, (name,))
                await asyncio.sleep(0)

    await asyncio.gather(*(write(f"m{n}") for n in range(30)))
    found = metrics(database)
    assert len(found) == 90
    assert all(len(set(found[n : n + 3])) == 1 for n in range(0, 90, 3))


async def test_a_write_within_a_write_is_an_error_and_not_a_deadlock(db: Database, database: Settings) -> None:
    """Of this task, or of one that it starts and waits for."""
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await db.sessions.create_session("s", "app", "alice")

    async with asyncio.timeout(HANGING_S):
        async with db.write() as conn:
            for work in (lambda: db.sessions.create_session("s", "a", "u"), lambda: db.write().__aenter__()):
                with pytest.raises(MisuseError, match="open already"):
                    await work()
            await conn.execute_fetchall(INSERT, ("kept",))
            with pytest.raises(MisuseError, match="open already"):
                await asyncio.gather(db.sessions.create_session("s", "app", "alice"))
            task = asyncio.create_task(later())
        over.set()
        await task  # after the block it may write
        with pytest.raises(MisuseError, match="ended its transaction by itself"):
            async with db.write() as conn:
                await conn.commit()
        assert await db.sessions.get_session("s")
    assert metrics(database) == ["kept"]


async def test_a_connection_that_is_used_after_its_write_block_is_a_misuse(db: Database, database: Settings) -> None:
    """Else the stray change would be committed, or rolled back, by the write that comes next."""

    async def leak(conn: Connection) -> None:
        with pytest.raises(MisuseError, match=r"is over: .*async with db\.write\(\)"):
            await conn.execute_fetchall(INSERT, ("stray",))

    async with db.write() as conn:
        cursor = await conn.execute(INSERT, ("kept",))
        task = asyncio.create_task(leak(conn))
    await task
    async with db.write() as other:
        await leak(conn)
        await other.execute_fetchall(INSERT, ("kept",))
    uses = (
        conn.commit,
        lambda: conn.execute("SELECT 1"),
        lambda: cursor.execute(INSERT, ("stray",)),
        lambda: db.run("list_namespaces", {}, conn),
    )
    for use in uses:
        with pytest.raises(MisuseError, match="is over"):
            await use()
    with pytest.raises(MisuseError, match="is over"):
        conn.row_factory = None
    assert not db._writer.in_transaction
    await db.sessions.create_session("s", "app", "alice")
    with pytest.raises(MisuseError, match="leave the block"):
        async with db.write() as conn:
            await conn.close()
    async with db.write() as conn:
        await conn.execute(INSERT, ("kept",))
    assert metrics(database) == ["kept", "kept", "kept"]


async def test_a_query_that_writes_is_refused_on_a_reader(db: Database) -> None:
    """The file is not to blame: the query needs the writer."""
    given = load_queries()["soft_delete_memory"].parameters
    with pytest.raises(MisuseError, match=r"soft_delete_memory writes.*db\.write\(\)"):
        await db.run("soft_delete_memory", given)
    with pytest.raises(MisuseError, match="did you mean"):
        await db.run("soft_delete_memori", given)
    async with db.write() as conn:
        await db.run("soft_delete_memory", given, conn)


async def test_ones_own_sql_raises_the_errors_of_sqlite3_and_rolls_back(db: Database, database: Settings) -> None:
    for fault, kind in (("SELEC", sqlite3.OperationalError), (INSERT, sqlite3.IntegrityError)):
        with pytest.raises(kind):  # noqa: PT012
            async with db.write() as conn:
                await conn.execute(INSERT, ("lost",))
                await conn.execute(fault, () if kind is sqlite3.OperationalError else (None,))
    async with db.read() as conn:
        with pytest.raises(sqlite3.OperationalError):
            await conn.execute(INSERT, ("lost",))
    assert metrics(database) == []


async def test_a_store_without_readers_is_not_opened(database: Settings) -> None:
    with untouched(database.db_path), pytest.raises(ConfigurationError, match="readers: expected at least 1, found 0"):
        async with Database.open(replace(database, readers=0)):
            pass


async def test_what_waits_to_write_or_writes_when_the_store_closes_is_told_so(database: Settings) -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def write(name: str) -> None:
        async with db.write() as conn:
            await conn.execute_fetchall(INSERT, (name,))
            begun.set()
            await closed.wait()

    async with asyncio.timeout(HANGING_S), Database.open(database) as db:
        tasks = [
            asyncio.create_task(work) for work in (write("a"), write("b"), db.sessions.create_session("s", "a", "u"))
        ]
        await begun.wait()
    closed.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [MisuseError] * 3, results
    assert all("is closed" in str(result) for result in results)
    assert metrics(database) == []
    for ask in (db.get_index_usage, db.sessions.list_sessions, lambda: db.run("list_namespaces", {})):
        with pytest.raises(MisuseError, match="is closed"):
            await ask()


async def test_the_waits_of_queued_writes_for_a_foreign_lock_do_not_add_up(database: Settings) -> None:
    tried: list[str] = []
    async with Database.open(replace(database, busy_timeout_ms=300)) as db:
        await db._writer.set_trace_callback(tried.append)
        with held(database.db_path, "BEGIN IMMEDIATE") as process:
            works = (db.sessions.create_session(f"s{n}", "a", "u") for n in range(8))
            results = await asyncio.gather(*works, return_exceptions=True)
            assert await db.sessions.get_session("s") is None  # reads go on
        assert [type(result) for result in results] == [BusyError] * 8
        assert all(f"is locked by PID {process.pid} (" in str(result) for result in results)
        # The second of them may have asked a moment after the first began to wait.
        assert 1 <= sum(statement.startswith("BEGIN") for statement in tried) <= 2
        await db.sessions.create_session("s", "a", "u")
        assert await db.sessions.get_session("s")


async def test_of_hundreds_of_cancelled_writes_none_fails_afterwards_and_each_is_whole_or_absent(
    db: Database,
    database: Settings,
) -> None:
    chance = random.Random(25)  # noqa: S311

    async def write(name: str) -> str:
        async with db.write() as conn:
            await conn.execute_fetchall(INSERT, (f"{name}-a",))
            await conn.execute_fetchall(INSERT, (f"{name}-b",))
        return name

    acknowledged, cancelled, n = [], 0, 0
    while cancelled < 300:
        n += 1
        assert n < 10_000
        tasks = [asyncio.create_task(write(f"m{n}.{k}")) for k in range(2)]
        for _ in range(chance.randrange(120)):
            await asyncio.sleep(0)
        for _ in range(chance.randrange(1, 4)):  # also while it cleans up after the first
            tasks[0].cancel()
            await asyncio.sleep(0)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, str):
                acknowledged.append(result)
            else:
                assert isinstance(result, asyncio.CancelledError), result
                cancelled += 1
        assert not db._writer.in_transaction
    found = metrics(database)
    assert {f"{name}-{half}" for name in acknowledged for half in "ab"} <= set(found)
    names = [name.removesuffix("-a") for name in found if name.endswith("-a")]
    assert found == [f"{name}-{half}" for name in names for half in "ab"]  # pairs, in order
    assert len(names) < 2 * n


async def test_a_write_cancelled_once_its_commit_is_queued_commits(db: Database, database: Settings) -> None:
    committing = asyncio.Event()

    async def write() -> None:
        async with db.write() as conn:
            await conn.execute_fetchall(INSERT, ("kept",))
            asyncio.get_running_loop().call_soon(committing.set)  # runs once this task waits, for its COMMIT

    task = asyncio.create_task(write())
    await committing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not db._writer.in_transaction
    assert metrics(database) == ["kept"]


async def test_a_write_cancelled_while_another_process_holds_the_lock_leaves_nothing_open(database: Settings) -> None:
    settings = replace(database, busy_timeout_ms=300)
    async with Database.open(settings) as db:
        with held(settings.db_path, "BEGIN IMMEDIATE"):
            task = asyncio.create_task(db.sessions.create_session("lost", "a", "u"))
            while not db._write_lock.locked():  # noqa: ASYNC110
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await db.sessions.create_session("kept", "a", "u")
        assert [session["id"] for session in await db.sessions.list_sessions()] == ["kept"]


async def test_named_indexes_and_violations_of_foreign_keys_are_listed(db: Database, database: Settings) -> None:
    usage = await db.get_index_usage()
    assert usage["index_count"] == len(usage["indexes"]) == 33
    assert {"name": "idx_audit_task", "table": "audit"} in usage["indexes"]
    assert not [index for index in usage["indexes"] if index["name"].startswith("sqlite_")]
    assert await db.validate_foreign_keys() == []
    run_sql(database.db_path, "INSERT INTO state (task_id, key, value) VALUES ('none', 'k', '{}')")
    assert await db.validate_foreign_keys() == [{"table": "state", "rowid": 1, "parent": "tasks", "fkid": 0}]


async def test_a_plan_is_read_and_the_statement_is_not_run(db: Database, database: Settings) -> None:
    by_status = "SELECT * FROM sessions WHERE status = ? ORDER BY last_update_time DESC"
    (line,) = await db.explain_query_plan(by_status, ("active",))
    assert line == "SEARCH sessions USING INDEX idx_sessions_status_updated (status=?)"
    assert await db.explain_query_plan("SELECT * FROM sessions WHERE id = :id", {"id": "s"})
    async with asyncio.timeout(HANGING_S):
        lines = await db.explain_query_plan(ENDLESS)
    assert any(line.startswith("  ") for line in lines)  # a tree
    with untouched(database.db_path), pytest.raises(InvalidValueError, match="one SELECT"):
        await db.explain_query_plan("SELECT 1; DELETE FROM audit")


async def test_a_faulty_select_is_an_invalid_value_in_sqlites_words(db: Database) -> None:
    """The database is not to blame, and validate would find nothing."""
    faulty = {
        "SELECT * FROM none": "no such table: none",
        "SELECT FROM": 'near "FROM": syntax error',
        "SELECT 1" + " UNION ALL SELECT 1" * 600: "too many terms in compound SELECT",
        "SELECT ?": "does not accept this",
        "SELECT :a": "does not accept this",
    }
    for statement, told in faulty.items():
        with pytest.raises(InvalidValueError, match=told) as caught:
            await db.explain_query_plan(statement)
        assert "validate" not in str(caught.value)


async def test_the_plan_of_a_dropped_index_is_not_remembered(db: Database, database: Settings) -> None:
    question = ("SELECT * FROM audit WHERE task_id = ?", ("t",))
    assert "idx_audit_task" in (await db.explain_query_plan(*question))[0]
    drop_index(database.db_path)
    assert (await db.explain_query_plan(*question))[0].startswith("SCAN")
