"""What a benchmark needs: synthetic rows, percentiles and their intervals, its result and its comparison."""

import json
import os
import sqlite3
from collections.abc import AsyncIterator
from math import log
from pathlib import Path
from typing import Any

import aiosqlite
import numpy as np
import pytest
from archives import record_with

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import Entry
from abathur_nb.measure.synthetic import fill, memory_keys, session_ids
from abathur_nb.percentiles import LEVELS, Percentile, percentiles, verdict
from abathur_nb.report import Check, Report
from abathur_nb.runbook.benchmark import BenchmarkResult, compare, describe_machine
from abathur_nb.store.connection import connect
from abathur_nb.store.sql import load_queries

MS = 1_000_000


def samples_of(rng: np.random.Generator, count: int) -> list[int]:
    """Return times in nanoseconds whose true quantiles are known: exponential, 1 ms in the mean."""
    return [int(value) for value in rng.exponential(MS, count)]


@pytest.mark.parametrize(
    ("fast", "slow", "level", "said"),
    [
        (299, 0, 0.99, "met"),  # 0.99**299 < 0.05
        (298, 0, 0.99, "not enough samples"),  # 0.99**298 >= 0.05
        (471, 1, 0.99, "not enough samples"),
        (472, 1, 0.99, "met"),
        (985, 15, 0.99, "not enough samples"),
        (984, 16, 0.99, "not met"),
        (0, 1, 0.99, "not met"),
        (59, 0, 0.95, "met"),
        (58, 0, 0.95, "not enough samples"),
    ],
)
def test_a_limit_is_met_not_met_or_not_proven(fast: int, slow: int, level: float, said: str) -> None:
    assert verdict([MS] * fast + [20 * MS] * slow, level, 10) == said


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (10, 2, 9), (20, 6, 15), (25, 8, 18), (50, 18, 33), (100, 40, 61)]
)
def test_the_interval_of_a_median_is_that_of_the_published_tables(count: int, low: int, high: int) -> None:
    """By order statistics: the table of the sign test's 95 % intervals (Conover; Dixon and Massey)."""
    median = percentiles([number * MS for number in range(1, count + 1)])[0]
    assert (median.low, median.high) == (low, high)


def test_few_samples_bound_and_prove_nothing() -> None:
    for count in (1, 2, 5):
        for found in percentiles([5 * MS] * count):
            assert (found.value, found.high) == (5, None)
    *_, p99 = percentiles([MS] * 100)
    assert (p99.high, str(p99)) == (None, "p99 1 ms (1–?)")
    assert str(Percentile(0.5, 0.12345, 0.1, 0.2)) == "p50 0.123 ms (0.1–0.2)"
    assert verdict([], 0.99, 10) == "not enough samples"
    assert verdict([10 * MS] * 299, 0.99, 10) == "not met", "a sample at the limit does not lie under it"


def test_the_interval_holds_the_true_percentile_at_least_95_times_in_100() -> None:
    """Tried on 400 draws: a two-sided 95 % interval may miss 20 of them, and by chance hardly more than 33."""
    rng = np.random.default_rng(3)
    missed = dict.fromkeys(LEVELS, 0)
    for _ in range(400):
        samples = samples_of(rng, 700)
        for found in percentiles(samples):
            assert found.value == pytest.approx(np.quantile(samples, found.level) / MS)
            true = -log(1 - found.level)
            low = -np.inf if found.low is None else found.low
            high = np.inf if found.high is None else found.high
            missed[found.level] += not low <= true <= high
    assert all(2 <= count <= 33 for count in missed.values()), missed  # never missed, it would be needlessly wide


SAMPLES = {
    "session retrieval": [MS + n for n in range(1000)],
    "growth/1000": [2 * MS + n for n in range(300)],
    "growth/10000": [3 * MS + n for n in range(300)],
    "writer/50": [MS],
}


@pytest.fixture
def result() -> BenchmarkResult:
    report = Report("benchmark", (Check("session retrieval", "pass", "p99 < 10 ms", "p99 1 ms"),), subject="/x/é.db")
    return BenchmarkResult(report, SAMPLES, {"SQLite": "3.40.1", "PRAGMA journal_mode": "wal"})


def test_the_record_holds_machine_and_percentiles_as_json(result: BenchmarkResult) -> None:
    told = json.loads(json.dumps(result.to_record(), allow_nan=False))
    assert told["machine"] == {"SQLite": "3.40.1", "PRAGMA journal_mode": "wal"}
    low, value, high = told["percentiles_ms"]["session retrieval"]["p99"]
    assert low <= value <= high
    assert told["percentiles_ms"]["writer/50"]["p99"] == [1.0, 1.0, None]


def test_the_frame_has_a_row_a_measurement(result: BenchmarkResult) -> None:
    frame = result.to_frame()
    assert list(frame["measurement"]) == list(SAMPLES)
    assert list(frame["samples"]) == [1000, 300, 300, 1]
    assert {"p50 ms", "p50 low", "p50 high", "p95 ms", "p99 ms", "p99 low", "p99 high"} <= set(frame.columns)
    digits = BenchmarkResult(Report("benchmark", ()), {"a": [123_456] * 300}, {}).to_frame()
    assert list(digits.iloc[0, 2:5]) == [0.123] * 3
    assert digits["p50 ms"].dtype == float  # a figure still, not a text
    assert {label: len(found) for label, found in result.curve("growth").items()} == {"1000": 300, "10000": 300}


def earlier_run(samples: dict[str, list[int]], machine: dict[str, Any]) -> Entry:
    facts = BenchmarkResult(Report("benchmark", ()), samples, machine).to_record()
    record = record_with(notebook="benchmark", facts=facts)
    return Entry(record.run_id, Path(), None, record, None)


def against(samples: dict[str, list[int]], earlier: dict[str, list[int]]) -> list[Check]:
    """Compare with an earlier run of the same machine, and return what is said of the samples."""
    machine, *checks = compare(samples, {"rows": 1}, earlier_run(earlier, {"rows": 1}))
    assert (machine.name, machine.status) == ("machine", "pass")
    return checks


def test_slower_beyond_both_intervals_is_a_warning_with_the_ratio() -> None:
    (check,) = against({"reads": [2 * MS + n for n in range(1000)]}, {"reads": [MS + n for n in range(1000)]})
    assert (check.name, check.status) == ("reads against the earlier run", "warn")
    assert "was 1 ms (2.00 times)" in check.observed
    assert check.remedy
    assert not check.failed, "another machine is no failure of the database"


@pytest.mark.parametrize(
    ("now", "before", "status"),
    [
        ([MS + n for n in range(1000)], [MS + n for n in range(1000)], "pass"),
        ([MS // 2 + n for n in range(1000)], [MS + n for n in range(1000)], "pass"),
        ([MS + n * 10_000 + 50_000 for n in range(300)], [MS + n * 10_000 for n in range(300)], "pass"),
        ([MS] * 900 + [9 * MS] * 100, [MS] * 1000, "warn"),  # a slower tail, though the median stands
        ([9 * MS], [MS], "pass"),  # one sample against one says nothing
    ],
)
def test_only_a_difference_beyond_the_intervals_is_one(now: list[int], before: list[int], status: str) -> None:
    (check,) = against({"reads": now}, {"reads": before})
    assert (check.status, bool(check.remedy)) == (status, status == "warn")


def test_the_machine_is_told_by_name(settings: Settings) -> None:
    told = describe_machine(settings, 10, 20)
    assert (told["rows"], told["repetitions"], told["readers"]) == (10, 20, settings.readers)
    assert told["SQLite"] == sqlite3.sqlite_version
    assert told["processor"].endswith(f"of {os.cpu_count()} CPUs")
    assert told["file system"] != "unknown"
    assert told == describe_machine(settings, 10, 20)


@pytest.mark.parametrize(
    ("now", "then", "told"),
    [
        ({"SQLite": "3.51.3"}, {"SQLite": "3.40.1"}, "SQLite: was '3.40.1', is '3.51.3'"),
        ({"rows": 10, "x": 1}, {"rows": 20, "x": 2}, "rows: was 20, is 10; x: was 2, is 1"),
        ({"rows": 10}, {}, "rows: was None, is 10"),
        ({}, {"rows": 10}, "rows: was 10, is None"),
        ({"rows": 10}, {"rows": [{"\n": 1}]}, r"rows: was [{'\n': 1}], is 10"),
    ],
)
def test_each_difference_is_named_as_it_was_and_is(now: dict[str, object], then: dict[str, object], told: str) -> None:
    (check,) = compare({}, now, earlier_run({}, then))
    assert (check.status, check.observed) == ("warn", told)
    assert check.remedy


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
