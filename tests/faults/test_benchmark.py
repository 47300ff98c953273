"""Benchmark: real reads of a real copy; the live database keeps every byte, and nothing is left beside it."""

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from archives import run
from damage import drop_index, held, run_sql, untouched
from patience import HANGING_S

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.measure import synthetic
from abathur_nb.percentiles import percentiles
from abathur_nb.runbook.benchmark import _snapshot, _verdicts
from abathur_nb.store.connection import connection_pragmas

LIMITED = ("session retrieval", "memory retrieval", "50 concurrent reads")
QUICK: dict[str, Any] = {"rows": 200, "repetitions": 299}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no progress bars."""
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture
def database(database: Settings) -> Settings:
    """Let a machine that is busy with other tests meet the limits too."""
    return replace(database, session_p99_ms=60_000, memory_p99_ms=60_000, concurrent_reads_s=600)


@contextmanager
def nothing_changes(settings: Settings) -> Iterator[None]:
    """Assert that the live file keeps its bytes, its rows are as they were, and nothing new stands beside it."""
    before = {path.name for path in settings.db_path.parent.iterdir()} | {"abathur.db-wal", "abathur.db-shm"}
    with untouched(settings.db_path):
        yield
    assert {path.name for path in settings.db_path.parent.iterdir()} <= before


def status(result: nb.BenchmarkResult) -> dict[str, str]:
    return {check.name: check.status for check in result.report.checks}


async def test_a_plain_run_measures_the_three_limits_and_leaves_the_live_database_alone(database: Settings) -> None:
    run_sql(database.db_path, "INSERT INTO sessions (id, app_name, user_id) VALUES ('live', 'a', 'u')")
    with nothing_changes(database):
        result = await nb.run_benchmark(database, **QUICK)
    result.report.raise_for_failures()
    assert tuple(result.samples) == LIMITED
    assert [len(samples) for samples in result.samples.values()] == [299, 299, 100]
    assert all(isinstance(sample, int) and sample > 1000 for samples in result.samples.values() for sample in samples)
    assert [check.name for check in result.report.checks] == list(LIMITED) == list(result.limits)
    assert result.limits["session retrieval"] == (0.99, database.session_p99_ms)
    assert result.limits["50 concurrent reads"] == (0.95, database.concurrent_reads_s * 1000)
    for check in result.report.checks:
        assert check.expected.endswith(", with 95 % confidence, on one CPU")
        assert check.observed.endswith("samples: met")
    with closing(sqlite3.connect(database.db_path)) as conn:
        assert conn.execute("SELECT count(*) FROM memory_entries WHERE namespace GLOB 'synthetic*'").fetchone() == (0,)
        assert conn.execute("SELECT id FROM sessions").fetchall() == [("live",)]


async def test_the_machine_the_versions_and_the_pragmas_are_in_the_result(database: Settings) -> None:
    result = await nb.run_benchmark(database, **QUICK)
    machine = result.machine
    assert (machine["rows"], machine["repetitions"]) == (200, 299)
    assert machine["SQLite"] == sqlite3.sqlite_version
    assert machine["abathur_nb"] == version("abathur_nb")
    read_back = {"journal_mode": "wal", **connection_pragmas(database), "query_only": 1, "trusted_schema": 0}
    assert read_back.items() <= machine["PRAGMAs"].items()
    assert f"of {os.cpu_count()} CPUs" in machine["processor"]
    assert json.loads(result.to_json())["machine"] == dict(machine)


async def test_the_verdict_is_one_of_three_and_only_a_limit_that_is_met_passes(database: Settings) -> None:
    """298 samples can't prove a p99 however fast, 100 rounds can prove a p95; and no read takes a nanosecond."""
    settings = replace(database, session_p99_ms=60_000, memory_p99_ms=1e-6, concurrent_reads_s=60)
    with nothing_changes(settings):
        result = await nb.run_benchmark(settings, rows=200, repetitions=298)
    session, memory, concurrent = result.report.checks
    assert (session.status, session.observed.endswith("298 samples: not enough samples")) == ("fail", True)
    assert (memory.status, memory.observed.endswith("298 samples: not met")) == ("fail", True)
    assert (concurrent.status, concurrent.observed.endswith("100 samples: met")) == ("pass", True)
    assert session.remedy == "ask for more: -p repetitions 10000"
    assert "explain.ipynb" in memory.remedy
    assert not result.report.ok
    with pytest.raises(nb.AbathurError, match=r"2 of 3 checks failed: session retrieval: .* \| memory retrieval: "):
        result.report.raise_for_failures()


async def test_more_repetitions_are_more_rounds_of_concurrent_reads(database: Settings) -> None:
    result = await nb.run_benchmark(database, rows=100, repetitions=1500)
    assert [len(samples) for samples in result.samples.values()] == [1500, 1500, 150]


@pytest.mark.parametrize(("repetitions", "more"), [(298, 10_000), (1000, 10_000), (2000, 20_000), (50_000, 100_000)])
def test_the_remedy_of_too_few_samples_brings_more(repetitions: int, more: int) -> None:
    """Whatever was asked for, what the remedy asks for gives more samples of that very measurement."""
    undecided = [1_000_000] * 95 + [10**9] * 5  # 5 of 100 above the limit say nothing about a p95
    limits = {name: (level, 10.0) for name, level in zip(LIMITED, (0.99, 0.99, 0.95), strict=True)}
    samples = dict(zip(LIMITED, ([1_000_000] * 298, [1_000_000] * 298, undecided), strict=True))
    told = [check.remedy for check in _verdicts(limits, samples, repetitions)]
    assert told == [f"ask for more: -p repetitions {more}"] * 3
    told = [check.remedy for check in _verdicts(limits, samples, 100_000)]
    assert told == ["see what else keeps the machine busy, and run it again"] * 3


async def test_a_full_run_adds_the_writer_and_the_curves(database: Settings) -> None:
    with nothing_changes(database):
        result = await nb.run_benchmark(database, rows=1200, repetitions=299, full=True)
    assert {*LIMITED, "session retrieval beside a writer", "memory retrieval beside a writer"} <= set(result.samples)
    assert list(result.curve("growth")) == ["1000", "1200"]
    assert list(result.curve("concurrency")) == ["1", "2", "5", "10", "20", "50", "100", "200"]
    p99s = [percentiles(samples)[-1] for samples in result.curve("concurrency").values()]
    assert all(p99.low is not None and p99.high is not None for p99 in p99s), "each p99 has its interval"
    told = status(result)
    assert all(told[name] == "pass" for name in result.samples if name not in LIMITED)
    assert [len(samples) for samples in result.curve("growth").values()] == [299, 299]


async def test_a_live_row_is_never_in_the_way(database: Settings) -> None:
    with held(database.db_path, "INSERT INTO sessions (id, app_name, user_id) VALUES ('in the log', 'a', 'u')"):
        with nothing_changes(database):
            result = await nb.run_benchmark(database, **QUICK)
        result.report.raise_for_failures()


SYNTHETIC = (
    "INSERT INTO sessions (id, app_name, user_id) VALUES ('{session}', 'a', 'u')",
    """INSERT INTO memory_entries (namespace, key, value, memory_type, version)
    VALUES ('{namespace}', '{key}', '{{}}', 'semantic', 1)""",
    "INSERT INTO document_index (file_path, title, content_hash) VALUES ('synthetic/0.md', 't', 'h')",
    "INSERT INTO tasks (id, prompt, session_id) VALUES ('synthetic-task-0', 'p', '{session}')",
    """INSERT INTO agents (id, name, specialization, task_id, state, model)
    VALUES ('synthetic-agent-0', 'n', 's', 'synthetic-task-0', 'idle', 'm')""",
    "INSERT INTO state (task_id, key, value) VALUES ('synthetic-task-0', 'key-0', '{{}}')",
    "INSERT INTO checkpoints (task_id, iteration, state) VALUES ('synthetic-task-0', 0, '{{}}')",
)


@pytest.mark.parametrize("statements", [*((one,) for one in SYNTHETIC), SYNTHETIC], ids=range(8))
async def test_a_live_row_named_like_a_synthetic_one_is_not_in_the_way_either(
    database: Settings, statements: tuple[str, ...]
) -> None:
    ((namespace, key),) = synthetic.memory_keys(QUICK["rows"], 1)
    names = {"session": synthetic.session_ids(QUICK["rows"], 1)[0], "namespace": namespace, "key": key}
    run_sql(database.db_path, *(statement.format(**names) for statement in statements))
    with nothing_changes(database):
        result = await nb.run_benchmark(database, **QUICK)
    result.report.raise_for_failures()


async def test_the_snapshot_holds_a_row_that_the_log_alone_holds(database: Settings, tmp_path: Path) -> None:
    find = "SELECT count(*) FROM sessions WHERE id = 'in the log'"
    copy = replace(database, db_path=tmp_path / "copy.db")
    with held(database.db_path, "INSERT INTO sessions (id, app_name, user_id) VALUES ('in the log', 'a', 'u')"):
        with nothing_changes(database):
            await _snapshot(database, copy)
        # The control: the main file alone does not hold it.
        shutil.copy(database.db_path, tmp_path / "main-file.db")
    for name, count in (("copy.db", 1), ("main-file.db", 0)):
        with closing(sqlite3.connect(tmp_path / name)) as conn:
            assert conn.execute(find).fetchone() == (count,), name


async def test_a_busy_writer_on_the_live_database_disturbs_nothing(database: Settings) -> None:
    with held(
        database.db_path, "BEGIN IMMEDIATE", "INSERT INTO sessions (id, app_name, user_id) VALUES ('x', 'a', 'u')"
    ):
        with nothing_changes(database):
            result = await nb.run_benchmark(database, **QUICK)
        result.report.raise_for_failures()


# --- the comparison with an earlier run


def archived(settings: Settings, result: nb.BenchmarkResult, **machine: object) -> str:
    """Archive what a benchmark found, on another machine if ``machine`` says so; return the id of the run."""
    facts = result.to_record()
    facts["machine"] = {**facts["machine"], **machine}
    return run(settings, name="benchmark", reports=(result.report,), facts=facts).name


async def test_it_is_compared_with_the_newest_comparable_run_or_with_the_one_named(database: Settings) -> None:
    result = await nb.run_benchmark(database, **QUICK)
    assert not [name for name in status(result) if "earlier" in name], "there was none"
    fast = replace(result, samples={name: [max(1, n // 50) for n in found] for name, found in result.samples.items()})
    comparable = archived(database, fast)
    other = archived(database, result, rows=7)
    run(database, name="validate")

    by_default = await nb.run_benchmark(database, **QUICK)
    assert [status(by_default)[f"{name} against the earlier run"] for name in LIMITED] == ["warn"] * 3
    assert by_default.report.ok
    assert {check.evidence for check in by_default.report.checks if "earlier" in check.id} == {(f"run {comparable}",)}
    assert status(by_default)["machine"] == "pass"

    named = await nb.run_benchmark(database, **QUICK, compare_with=other)
    (machine,) = (check for check in named.report.checks if check.id == "machine")
    assert (machine.status, machine.observed) == ("warn", "rows: was 7, is 200")


async def test_what_names_no_benchmark_is_refused_before_anything_is_measured(database: Settings) -> None:
    with nothing_changes(database), pytest.raises(ConfigurationError, match=r"^compare_with: the archive .* cannot be"):
        await nb.run_benchmark(database, compare_with="20010101")
    validated = run(database).name
    for value, words in (
        ("20010101", "^run '20010101': expected the beginning of one run id, found none"),
        ("", "^run '': expected the beginning of one run id"),
        (7, "^compare_with: expected the id of an archived run, found 7"),
        (validated, "^compare_with: expected a benchmark that was measured"),
    ):
        with nothing_changes(database), pytest.raises(ConfigurationError, match=words):
            await nb.run_benchmark(database, compare_with=value)  # type: ignore[arg-type]


# --- wrong arguments


@pytest.mark.parametrize("value", [0, -1, 10**9, 2**63, 1.5, "100", None, True])
async def test_wrong_numbers_are_all_named_at_once_before_anything_is_touched(value: Any, database: Settings) -> None:
    with nothing_changes(database), pytest.raises(ConfigurationError) as caught:
        await nb.run_benchmark(database, rows=value, repetitions=value)
    faults = caught.value.faults
    # Of rows, ten millions are allowed.
    assert {fault.partition(":")[0] for fault in faults} == {"rows", "repetitions"}
    assert all("expected a whole number" in fault for fault in faults)


async def test_all_kinds_of_wrong_arguments_are_named_at_once(database: Settings) -> None:
    wrong: dict[str, Any] = {"rows": 0, "repetitions": "many", "full": "false", "compare_with": 7}
    with nothing_changes(database), pytest.raises(ConfigurationError) as caught:
        await nb.run_benchmark(database, **wrong)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [*wrong]
    assert "full: expected True or False, found 'false' (str)" in caught.value.faults


# --- what forbids it, and what stops it


async def test_without_a_database_it_is_refused_and_makes_none(settings: Settings) -> None:
    result = await nb.run_benchmark(settings, **QUICK)
    assert result.report.refused
    assert "papermill init.ipynb out.ipynb" in result.report.checks[0].remedy
    assert result.samples == {}
    assert not settings.db_path.parent.exists()


@pytest.mark.parametrize(("content", "refused"), [(b"", False), (b"a text and no database", True)])
async def test_what_is_no_database_fails_or_refuses_it_and_stays(
    content: bytes, refused: bool, settings: Settings
) -> None:
    settings.db_path.parent.mkdir(mode=0o700)
    settings.db_path.write_bytes(content)
    with nothing_changes(settings):
        result = await nb.run_benchmark(settings, **QUICK)
    assert (result.report.ok, result.report.refused, result.samples) == (False, refused, {})


async def test_without_room_for_the_copy_it_is_refused_and_copies_nothing(database: Settings) -> None:
    with nothing_changes(database):
        result = await nb.run_benchmark(replace(database, min_free_mb=10**9), **QUICK)
    assert result.report.refused
    assert status(result) == {"free disk": "fail"}
    assert "-p rows 1000" in result.report.checks[0].remedy


async def test_a_failure_half_way_removes_the_copy_and_is_told(database: Settings) -> None:
    drop_index(database.db_path)  # the copy is filled, and then no store opens it
    with nothing_changes(database):
        result = await nb.run_benchmark(database, **QUICK)
    (check,) = result.report.checks
    assert check.status == "error"
    assert "could not run: " in check.observed
    assert "idx_audit_task" in check.observed
    assert check.remedy
    assert result.samples == {}


async def test_a_table_that_takes_no_row_fails_it_and_removes_the_copy(database: Settings) -> None:
    run_sql(database.db_path, "CREATE UNIQUE INDEX other ON sessions (app_name)")
    with nothing_changes(database):
        result = await nb.run_benchmark(database, **QUICK)
    (check,) = result.report.checks
    assert check.status == "error"
    assert "UNIQUE constraint failed" in check.observed
    assert check.remedy


async def scratch_of(settings: Settings) -> Path:
    """Wait until the copy is there, and return it."""
    while True:
        if found := list(settings.db_path.parent.glob(".abathur-benchmark-*/copy.db")):
            return found[0]
        await asyncio.sleep(0)


@pytest.mark.parametrize("full", [False, True])
async def test_a_cancelled_run_removes_the_copy_too(full: bool, database: Settings) -> None:
    with nothing_changes(database):
        running = asyncio.create_task(nb.run_benchmark(database, rows=100_000, repetitions=100_000, full=full))
        copy = await asyncio.wait_for(scratch_of(database), HANGING_S)
        assert copy.stat().st_mode & 0o777 == 0o600
        assert copy.parent.stat().st_mode & 0o777 == 0o700
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    # and the next one runs
    (await nb.run_benchmark(database, **QUICK)).report.raise_for_failures()


async def test_what_a_killed_run_left_is_swept_by_the_next(database: Settings) -> None:
    left = database.db_path.parent / ".abathur-benchmark-0123456789ab"
    left.mkdir(mode=0o700)
    (left / "copy.db").write_bytes(b"x" * 4096)
    (await nb.run_benchmark(database, **QUICK)).report.raise_for_failures()
    assert not left.exists()


async def test_what_is_timed_is_found_and_no_answer_of_nothing_counts(database: Settings) -> None:
    """The keys that are read are those that were filled in, at the smallest size and at others."""
    for rows in (1, 2, 7, 21, 100):
        assert len(synthetic.session_ids(rows, 1000)) == rows
        assert 1 <= len(synthetic.memory_keys(rows, 1000)) <= rows
    with nothing_changes(database):
        result = await nb.run_benchmark(database, rows=1, repetitions=1)
    assert len(result.samples["memory retrieval"]) == 1
    assert not result.report.ok
