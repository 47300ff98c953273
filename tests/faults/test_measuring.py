"""A live database is measured in time and in short reads, whatever it holds; sessions near their limit are named."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from itertools import count
from math import inf
from time import monotonic

import aiosqlite
import pytest
from damage import run_sql
from exposition_helpers import metrics, parsed

from abathur_nb.config.settings import Settings
from abathur_nb.measure import synthetic
from abathur_nb.measure.alerts import READ, RETRIEVAL, SESSION_BYTES
from abathur_nb.measure.sampling import read_some, rows_within
from abathur_nb.report import Check
from abathur_nb.runbook.monitor import monitor
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.connection import connect
from abathur_nb.store.database import Database
from abathur_nb.store.sql import load_queries
from abathur_nb.store.values import MAX_BYTES

COLUMNS = {"events": '["', "state": '{"x":"', "metadata": '{"x":"'}
LARGE = f"(SELECT replace(hex(zeroblob({MAX_BYTES // 2 - 50})), '0', 'x'))"  # nearly as large as can be
HUNG_S = 20  # ten times what it takes


@pytest.fixture
async def filled(database: Settings) -> Settings:
    """Return the settings of a database with 2,000 synthetic sessions and memories."""
    async with connect(database.db_path, settings=database, mode="rw") as writer:
        await synthetic.fill(writer, 2000)
    return database


@pytest.fixture
async def conn(filled: Settings) -> AsyncIterator[aiosqlite.Connection]:
    """Return a connection to that database."""
    async with connect(filled.db_path, settings=filled) as reader:
        yield reader


def fill_column(settings: Settings, session_id: str, column: str, size: int) -> None:
    beginning = COLUMNS[column]
    ending = {"[": '"]', "{": '"}'}[beginning[0]]
    value = beginning + "x" * (size - len(beginning) - len(ending)) + ending
    with closing(sqlite3.connect(settings.db_path)) as conn:
        conn.execute(f"UPDATE sessions SET {column} = ? WHERE id = ?", (value, session_id))
        conn.commit()


async def warned(settings: Settings) -> dict[str, Check]:
    """Return what monitor and validate warn of about sessions, by the name of the check."""
    checks = [*(await monitor(settings)).report.checks, *(await validate_database(settings)).checks]
    assert all(check.remedy for check in checks if check.status == "warn")
    return {check.name: check for check in checks if "session" in check.name and check.status == "warn"}


# --- the size of a session


HALF = {"largest session, 50 %", "session sizes"}


@pytest.mark.parametrize(
    ("column", "percent", "names"),
    [
        ("events", 49.99, set()),
        ("state", 50.01, HALF),
        ("metadata", 79.99, HALF),
        ("events", 80.01, HALF | {"largest session, 80 %"}),
    ],
)
async def test_a_session_that_nears_its_limit_is_named_by_monitor_metrics_and_validate(
    database: Settings, column: str, percent: float, names: set[str]
) -> None:
    async with Database.open(database) as db:
        for name in ("small", "it's", "other"):
            await db.sessions.create_session(name, "app", "alice")
    size = int(MAX_BYTES * percent / 100)
    fill_column(database, "it's", column, size)
    found = {name: check for name, check in (await warned(database)).items() if "retrieval" not in name}
    assert found.keys() == names
    assert all("it's" in check.observed and column in check.observed for check in found.values())
    assert all("trim_events" in check.remedy for check in found.values())
    if names:
        assert f"{int('80 %' in ' '.join(names))} over 80 %" in found["session sizes"].observed
    assert parsed(metrics(database))[SESSION_BYTES][f"{column}, it's"] == size


async def test_validate_reads_every_session_and_monitor_says_how_many_it_looked_at(filled: Settings) -> None:
    """The large one is neither new nor used lately: monitor sees it by chance."""
    oldest = "SELECT id FROM sessions WHERE status = 'archived' ORDER BY last_update_time"
    with closing(sqlite3.connect(filled.db_path)) as conn:
        (name,) = conn.execute(oldest).fetchone()
    fill_column(filled, name, "events", int(MAX_BYTES * 0.9))
    assert name in (await warned(filled))["session sizes"].observed
    found = await monitor(filled)
    share = found.snapshot.value(READ, {"of": "sizes of sessions"})
    assert share is not None
    assert 0.5 <= share < 1
    assert f"sizes of sessions from {share:.2%} of the rows" in found.report.checks[0].observed


# --- in time


async def test_rows_of_sixteen_megabytes_are_measured_in_time_and_no_figure_is_missing(database: Settings) -> None:
    numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 12)"
    value = f"'[\"' || {LARGE} || '\"]'"
    run_sql(
        database.db_path,
        f"INSERT INTO sessions (id, app_name, user_id, events) {numbers} SELECT n, 'a', 'u', {value} FROM n",
        "INSERT INTO memory_entries (namespace, key, value, memory_type) "
        f"{numbers} SELECT 'n:' || n, 'k', {value}, 'semantic' FROM n",
        f"INSERT INTO state (task_id, key, value) {numbers} SELECT n, 'k', {value} FROM n",  # no index has its times
    )
    async with asyncio.timeout(HUNG_S):
        found = (await monitor(database)).snapshot
    assert found.value("abathur_rows", {"table": "sessions"}) == 12
    assert found.value("abathur_rows", {"table": "memory_entries"}) == 15
    assert 0 < (found.value("abathur_rows", {"table": "state"}) or 12) <= 12
    for what in ("session", "memory"):
        assert found.value(RETRIEVAL, {"retrieval": what, "percentile": "p99"})


CHECKPOINT = """
import signal, sqlite3, sys, time
conn = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("ready", flush=True)
n = 0
while True:
    n += 1
    try:
        conn.execute("INSERT INTO metrics (metric_name, metric_value) VALUES ('w', ?)", (n,))
        ((busy, _, _),) = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError:
        busy = 1
    if not busy:
        print(time.monotonic())
        time.sleep(0.001)  # what nobody reads yet must find room in the pipe
"""


async def test_a_checkpoint_of_a_writer_gets_through_while_monitor_runs(database: Settings) -> None:
    async with Database.open(database) as db:
        for n in range(30):
            await db.sessions.create_session(f"s{n}", "app", "alice")
            await db.sessions.append_event(f"s{n}", {"x": "x" * 4_000_000})
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHECKPOINT, str(database.db_path)), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    try:
        assert await worker.stdout.readline() == b"ready\n"
        async with asyncio.timeout(HUNG_S):
            looks = []
            for _ in range(3):  # beside other work the writer may not run at all during one
                begun = monotonic()
                assert (await monitor(database)).report.ok
                looks.append((begun, monotonic()))
    finally:
        worker.terminate()
    moments = [float(line) for line in (await worker.stdout.read()).splitlines()]
    await worker.wait()
    middle = [(begun + (ended - begun) / 5, ended - (ended - begun) / 5) for begun, ended in looks]
    assert any(begun < moment < ended for begun, ended in middle for moment in moments), (looks, moments)


async def test_a_read_that_does_not_end_is_interrupted_and_the_next_one_runs(conn: aiosqlite.Connection) -> None:
    endless = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n"
    async with asyncio.timeout(HUNG_S):
        for until in (-inf, monotonic(), monotonic() + 0.05, inf):
            assert await rows_within(conn, until, endless, {}) is None
            assert len(await rows_within(conn, inf, "SELECT 1 AS one", {}) or ()) == 1
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await rows_within(conn, inf, "SELECT * FROM none", {})


# --- estimates


async def test_all_windows_give_what_one_read_gives_and_some_give_about_as_much(conn: aiosqlite.Connection) -> None:
    ask, given = load_queries("monitor.sql"), {"since": "2025-06-01", "table": "memory_entries"}
    (exact,) = [row for row in await conn.execute_fetchall(ask["growth"].sql, given) if row["rows"]]
    rows, share = await read_some(conn, inf, ask["growth_between"].sql, given, 2003)
    assert share == 1
    assert [sum(row[n] for row in rows) for n in (0, 1)] == [*exact]
    versions, share = await read_some(conn, inf, ask["memories_between"].sql, given, 2003)
    whole = await conn.execute_fetchall(ask["memories_between"].sql, {**given, "after": 0, "last": 9999})
    assert share == 1
    assert [sum(row[n] for row in versions) for n in range(1, 5)] == [sum(row[n] for row in whole) for n in range(1, 5)]
    ((versions_of_all, deleted, current),) = await conn.execute_fetchall(
        "SELECT (SELECT count(*) FROM memory_entries), (SELECT count(*) FROM memory_entries WHERE is_deleted),"
        " (SELECT count(*) FROM (SELECT 1 FROM memory_entries WHERE NOT is_deleted GROUP BY namespace, key))"
    )
    assert [sum(row[n] for row in whole) for n in (1, 3)] == [versions_of_all, deleted]
    assert sum(row["rows"] - row["deleted"] - row["superseded"] for row in whole) == current
    rows, share = await read_some(conn, -inf, ask["growth_between"].sql, given, 2003)
    assert 0 < share < 1
    assert 0.8 < sum(row["rows"] for row in rows) / share / 2003 < 1.3


async def test_windows_are_read_whatever_the_last_rowid_is(conn: aiosqlite.Connection, filled: Settings) -> None:
    given = {"since": "2025-06-01", "table": "memory_entries"}
    sql = load_queries("monitor.sql")["growth_between"].sql
    for last in (0, 1, 255, 256, 257, 2003, 10**12):
        rows, share = await read_some(conn, monotonic() + (0.1 if last == 10**12 else 60), sql, given, last)
        assert (share == 1) == (last < 10**12)
        assert share < 1 or min(last, 2003) <= sum(row["rows"] for row in rows) < last + 256
    row = "(id, timestamp, metric_name, metric_value) VALUES ({}, '2020-01-01 00:00:00.000', 'm', 1)"
    ids = (2**62, 2**63 - 2, 2**63 - 1)
    run_sql(filled.db_path, "DELETE FROM metrics", *(f"INSERT INTO metrics {row.format(n)}" for n in ids))
    assert (await monitor(filled)).snapshot.value("abathur_rows", {"table": "metrics"}) == 3, "no gap multiplies a row"


# --- what one bad row may not do


async def test_a_row_that_cannot_be_read_leaves_the_rest_measured(database: Settings) -> None:
    """It is a fault of the row, and validate's to find: the database can be read."""
    async with Database.open(database) as db:
        for n in range(5):
            await db.sessions.create_session(f"s{n}", "app", "alice")
    spoiled = ("events = '[broken'", "state = x'00'", "metadata = 7", "status = 5", "last_update_time = NULL")
    for n, change in enumerate(spoiled):
        with suppress(sqlite3.IntegrityError):  # a NULL is refused whatever is set
            run_sql(database.db_path, f"UPDATE sessions SET {change} WHERE id = 's{n}'")
    found = (await monitor(database)).snapshot
    assert found.value("abathur_up") == 1
    assert found.value("abathur_rows", {"table": "sessions"}) == 5


async def test_rows_that_vanish_meanwhile_stop_no_measurement(database: Settings) -> None:
    async with Database.open(database) as db:
        ended = asyncio.Event()

        async def come_and_go() -> None:
            for n in count():
                await db.sessions.create_session(f"s{n}", "app", "alice")
                async with db.write() as writer:
                    await writer.execute_fetchall("DELETE FROM sessions WHERE id < ?", (f"s{n}",))
                if ended.is_set():
                    return

        churn = asyncio.create_task(come_and_go())
        for _ in range(3):
            found = (await monitor(database)).snapshot
            assert found.value("abathur_up") == 1
        ended.set()
        await churn
