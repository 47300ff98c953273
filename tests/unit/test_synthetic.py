"""synthetic.py: its rows are valid, skewed, the same each time, and leave the live ones alone."""

from collections.abc import AsyncIterator
from typing import Any

import aiosqlite
import pytest

from abathur_nb.config.settings import Settings
from abathur_nb.measure.synthetic import fill, memory_keys, session_ids
from abathur_nb.store.connection import connect
from abathur_nb.store.sql import load_queries

ROWS = 1_000
TABLES = ("sessions", "memory_entries")


@pytest.fixture
async def conn(database: Settings) -> AsyncIterator[aiosqlite.Connection]:
    async with connect(database.db_path, database.busy_timeout_ms, mode="rw") as conn:
        yield conn


async def rows_of(conn: aiosqlite.Connection, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await conn.execute_fetchall(sql)]


async def contents(conn: aiosqlite.Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {table: await rows_of(conn, f"SELECT * FROM {table} ORDER BY rowid") for table in TABLES}


async def test_sessions_and_memories_get_their_rows_and_the_database_stays_sound(conn: aiosqlite.Connection) -> None:
    told: list[int] = []
    await fill(conn, ROWS, progress=told.append)
    assert [len(rows) for rows in (await contents(conn)).values()] == [ROWS, 3 + ROWS]
    assert sum(told) == 2 * ROWS
    assert await rows_of(conn, "PRAGMA foreign_key_check") == []
    assert await rows_of(conn, "PRAGMA integrity_check") == [("ok",)]


async def test_the_live_rows_stay_as_they_are(conn: aiosqlite.Connection) -> None:
    before = await contents(conn)
    assert len(before["memory_entries"]) == 3
    await fill(conn, ROWS)
    after = await contents(conn)
    for table, rows in before.items():
        assert after[table][: len(rows)] == rows
    strange = "SELECT 1 FROM memory_entries WHERE id > 3 AND namespace NOT LIKE 'synthetic:%'"
    assert await rows_of(conn, strange) == []
    assert await rows_of(conn, "SELECT 1 FROM sessions WHERE id NOT LIKE 'synthetic-%'") == []


@pytest.mark.parametrize("rows", [0, 1, 7, 20, 33, ROWS])
async def test_the_sample_keys_are_live_and_different(conn: aiosqlite.Connection, rows: int) -> None:
    await fill(conn, rows)
    keys, sessions = memory_keys(rows, 100), session_ids(rows, 100)
    assert len(set(sessions)) == min(rows, 100)
    assert (len(set(keys)), bool(keys)) == (len(keys), bool(rows))
    queries = load_queries()
    for namespace, key in keys:
        assert list(await conn.execute_fetchall(queries["get_memory"].sql, {"namespace": namespace, "key": key}))
    for session_id in sessions:
        assert list(await conn.execute_fetchall(queries["get_session"].sql, {"session_id": session_id}))
