"""Benchmark: real reads of a real copy; the live database keeps every byte, and nothing is left beside it."""

import asyncio
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import run
from damage import SESSION, drop_index, held, untouched
from patience import HANGING_S
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.percentiles import percentiles
from abathur_nb.store.connection import connection_pragmas

LIMITED = ("session retrieval", "memory retrieval", "50 concurrent reads")
QUICK: dict[str, Any] = {"rows": 200, "repetitions": 299}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
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
    with held(database.db_path, "BEGIN IMMEDIATE", SESSION), nothing_changes(database):
        result = await nb.run_benchmark(database, **QUICK)
    result.report.raise_for_failures()
    counts = {name: len(samples) for name, samples in result.samples.items()}
    assert counts == {**dict.fromkeys(LIMITED, 299), "50 concurrent reads": 100}
    assert all(isinstance(sample, int) and sample > 1000 for samples in result.samples.values() for sample in samples)
    assert [check.name for check in result.report.checks] == list(LIMITED) == list(result.limits)
    assert result.limits["session retrieval"] == (0.99, database.session_p99_ms)
    assert result.limits["50 concurrent reads"] == (0.95, database.concurrent_reads_s * 1000)
    for check in result.report.checks:
        assert check.expected.endswith(", with 95 % confidence, on one CPU")
        assert check.observed.endswith("samples: met")
    own = connection_pragmas(database.busy_timeout_ms, database.synchronous)
    read_back = {"journal_mode": "wal", **own, "query_only": 1, "trusted_schema": 0}
    assert {f"PRAGMA {name}": value for name, value in read_back.items()}.items() <= result.machine.items()


async def test_the_verdict_is_one_of_three_and_only_a_limit_that_is_met_passes(database: Settings) -> None:
    """298 samples can't prove a p99 however fast, 100 rounds can prove a p95; and no read takes a nanosecond."""
    settings = replace(database, session_p99_ms=60_000, memory_p99_ms=1e-6, concurrent_reads_s=60)
    with nothing_changes(settings):
        result = await nb.run_benchmark(settings, rows=200, repetitions=298)
    assert [(check.status, check.observed.split(", ")[-1], check.remedy) for check in result.report.checks] == [
        ("fail", "298 samples: not enough samples", "take more samples: -p repetitions 10000"),
        ("fail", "298 samples: not met", "run explain.ipynb, and check the disk"),
        ("pass", "100 samples: met", ""),
    ]
    with pytest.raises(nb.AbathurError, match=r"2 of 3 checks failed: session retrieval: .* \| memory retrieval: "):
        result.report.raise_for_failures()


async def test_a_full_run_adds_the_writer_and_the_curves(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abathur_nb.runbook.benchmark._CONCURRENCY", (1, 9))
    with nothing_changes(database):
        result = await nb.run_benchmark(database, rows=1200, repetitions=299, full=True)
    assert {*LIMITED, "session retrieval beside a writer", "memory retrieval beside a writer"} <= set(result.samples)
    assert {rows: len(samples) for rows, samples in result.curve("growth").items()} == {"1000": 299, "1200": 299}
    assert list(result.curve("concurrency")) == ["1", "9"]
    p99s = [percentiles(samples)[-1] for samples in result.curve("concurrency").values()]
    assert all(p99.low is not None and p99.high is not None for p99 in p99s), "each p99 has its interval"
    assert all(status(result)[name] == "pass" for name in result.samples if name not in LIMITED)


def archived(settings: Settings, result: nb.BenchmarkResult, **machine: object) -> str:
    """Archive what a benchmark found, on another machine if ``machine`` says so; return the id of the run."""
    facts = result.to_record()
    facts["machine"] = {**facts["machine"], **machine}
    return run(settings, name="benchmark", reports=(result.report,), facts=facts).name


async def test_it_is_compared_with_the_newest_comparable_run_or_with_the_one_named(database: Settings) -> None:
    result = await nb.run_benchmark(database, **QUICK)
    assert not [name for name in status(result) if "earlier" in name], "there was none"
    fast = replace(result, samples={name: [max(1, n // 50) for n in found] for name, found in result.samples.items()})
    comparable, other = archived(database, fast), archived(database, result, rows=7)
    run(database, name="validate")
    by_default = await nb.run_benchmark(database, **QUICK)
    assert [status(by_default)[f"{name} against the earlier run"] for name in LIMITED] == ["warn"] * 3
    assert by_default.report.ok
    assert {check.evidence for check in by_default.report.checks if "earlier" in check.id} == {(f"run {comparable}",)}
    assert status(by_default)["machine"] == "pass"
    machine = check_of((await nb.run_benchmark(database, **QUICK, compare_with=other)).report, "machine")
    assert (machine.status, machine.observed) == ("warn", "rows: was 7, is 200")


async def test_what_names_no_benchmark_is_refused_before_anything_is_measured(database: Settings) -> None:
    with (
        nothing_changes(database),
        pytest.raises(nb.ConfigurationError, match=r"^compare_with: the archive .* cannot"),
    ):
        await nb.run_benchmark(database, compare_with="20010101")
    validated = run(database).name
    for value, words in (
        ("20010101", "^compare_with: run '20010101': expected the beginning of one run id, found none"),
        ("", "^compare_with: run '': expected the beginning of one run id"),
        (7, "^compare_with: expected str, found 7"),
        (validated, "^compare_with: expected a benchmark with measurements"),
    ):
        with nothing_changes(database), pytest.raises(nb.ConfigurationError, match=words):
            await nb.run_benchmark(database, compare_with=value)  # type: ignore[arg-type]


async def test_all_kinds_of_wrong_arguments_are_named_at_once(database: Settings) -> None:
    for number in (0, 10**9, 1.5, "100", None, True):
        wrong: dict[str, Any] = {"rows": number, "repetitions": number, "compare_with": 7, "full": "false"}
        with nothing_changes(database), pytest.raises(nb.ConfigurationError) as caught:
            await nb.run_benchmark(database, **wrong)
        assert [fault.partition(":")[0] for fault in caught.value.faults] == [*wrong]
        assert "full: expected True or False, found 'false' (str)" in caught.value.faults


async def test_without_a_database_it_is_refused_and_makes_none(settings: Settings) -> None:
    result = await nb.run_benchmark(settings, **QUICK)
    assert result.report.refused
    assert shlex.join(settings.command("init")) in result.report.checks[0].remedy
    assert result.samples == {}
    assert not settings.db_path.parent.exists()


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
    assert (check.status, "could not run: " in check.observed, bool(check.remedy)) == ("error", True, True)
    assert "idx_audit_task" in check.observed
    assert result.samples == {}


async def scratch_of(settings: Settings) -> Path:
    while True:
        copies = settings.db_path.parent.glob(".abathur-benchmark-*/copy.db")
        if found := [path for path in copies if "0123456789ab" not in str(path)]:
            return found[0]
        await asyncio.sleep(0)


async def test_a_cancelled_run_removes_the_copy_and_a_killed_one_is_swept(database: Settings) -> None:
    left = database.db_path.parent / ".abathur-benchmark-0123456789ab"
    left.mkdir(mode=0o700)
    (left / "copy.db").write_bytes(b"x" * 4096)
    running = asyncio.create_task(nb.run_benchmark(database, rows=100_000, repetitions=100_000, full=True))
    copy = await asyncio.wait_for(scratch_of(database), HANGING_S)
    assert not left.exists()
    assert [path.stat().st_mode & 0o777 for path in (copy, copy.parent)] == [0o600, 0o700]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not copy.parent.exists()
