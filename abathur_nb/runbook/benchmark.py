"""Benchmark: how fast a copy of the database answers, held against limits (the runbook's section 5)."""

import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from abathur_nb.config.parameters import check_ranges
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.past import PastRun
from abathur_nb.files import scratch_directory, sweep
from abathur_nb.health.path_on_disk import free_mb
from abathur_nb.measure import synthetic
from abathur_nb.measure.measurements import (
    BenchmarkResult,
    compare,
    describe_machine,
    named_run,
    newest_comparable,
)
from abathur_nb.measure.workloads import (
    memory_reads,
    one_cpu,
    session_reads,
    time_plainly,
    time_reads,
    together,
    writing,
)
from abathur_nb.percentiles import percentiles, verdict
from abathur_nb.report import Check, Report, id_of
from abathur_nb.store.connection import connect, explain_error, read_pragmas
from abathur_nb.store.database import Database
from abathur_nb.store.sql import statements
from abathur_nb.store.target import refusal
from abathur_nb.text import MB, counted, shown

_TITLE = "benchmark"
_BYTES_A_ROW = 4_000  # a synthetic memory and session with their indexes and related rows take about 2,600
_ROUNDS = 100  # the fewest of concurrent reads; to claim a p95 takes 59
_REPETITIONS = 1000  # the default, and the most that stay at so few rounds
_MOST_REPETITIONS = 100_000
_CURVE_ROUNDS = 368  # the fewest that give a p99 both bounds: 0.99**368 < 0.025
_CONCURRENCY = (1, 2, 5, 10, 20, 50, 100, 200)
_SESSION, _MEMORY, _CONCURRENT = "session retrieval", "memory retrieval", "50 concurrent reads"

Samples = dict[str, list[int]]


async def run_benchmark(
    settings: Settings,
    *,
    rows: int = 10_000,
    repetitions: int = _REPETITIONS,
    full: bool = False,
    compare_with: str | None = None,
) -> BenchmarkResult:
    """Time the store on a snapshot of the database, filled up with ``rows`` synthetic memories and sessions.

    The snapshot lies in a scratch directory beside the database and is removed at the end; the live rows are only
    read, once, for the copy. ``full`` adds the reads beside a busy writer, 1 to 200 concurrent reads, the growth
    from 1,000 to ``rows``, and the share of the driver. ``compare_with`` is the id of an archived run to compare with;
    by default it is the newest of the same machine, versions, rows and settings, if there is one. Raises
    ConfigurationError for a wrong argument.
    """
    earlier = _checked_arguments(settings, rows, repetitions, full, compare_with)
    samples: Samples = {}
    limits = _limits(settings)
    machine = describe_machine(settings, rows, repetitions)
    report = await refusal(_TITLE, settings)
    if report is None:
        try:
            async with Database.open(settings):  # what it refuses is named by the live path, and not by the copy's
                pass
            if lacking := _lack_of_room(settings, rows):
                return BenchmarkResult(lacking, samples, machine, limits)
            with scratch_directory(settings.db_path.parent, _TITLE) as scratch:
                machine["PRAGMAs"] = await _measure(settings, scratch, rows, repetitions, full, samples)
            checks = [*_verdicts(limits, samples, repetitions), *_readings(limits, samples)]
            if earlier := earlier or newest_comparable(settings, machine):
                checks += compare(samples, machine, earlier)
            report = Report(_TITLE, tuple(checks), subject=str(settings.db_path))
        except (sqlite3.Error, OSError, AbathurError) as error:
            words = explain_error(settings.db_path, error)
            observed = f"could not run: {words.observed}"
            remedy = words.remedy or "run validate.ipynb, and when it passes this again"
            check = Check(_TITLE, "error", expected="runs to its end", observed=observed, remedy=remedy)
            report = Report(_TITLE, (check,), subject=str(settings.db_path))
    return BenchmarkResult(report, samples, machine, limits)


def _checked_arguments(
    settings: Settings, rows: object, repetitions: object, full: object, compare_with: object
) -> PastRun | None:
    """Return the run to compare with, if one is named; raise ConfigurationError naming every wrong argument."""
    faults, earlier = list[str](), None
    try:
        check_ranges(rows=rows, repetitions=repetitions)
    except ConfigurationError as error:
        faults += error.faults
    if not isinstance(full, bool):
        faults.append(f"full: expected True or False, found {shown(full)} ({type(full).__name__})")
    try:
        earlier = named_run(settings, compare_with)
    except ConfigurationError as error:
        faults += error.faults
    if faults:
        raise ConfigurationError(faults)
    return earlier


def _lack_of_room(settings: Settings, rows: int) -> Report | None:
    free = free_mb(settings.db_path.parent) - settings.min_free_mb
    needed = (settings.db_path.stat().st_size * 2 + rows * _BYTES_A_ROW) / MB
    if free >= needed:
        sweep(settings.db_path.parent)
        return None
    observed = f"{free:,.0f} MB beyond the {settings.min_free_mb:,} MB that must stay free"
    remedy = "make room, or ask for fewer rows: -p rows 1000"
    check = Check("free_disk", "fail", expected=f"{needed:,.0f} MB for the copy", observed=observed, remedy=remedy)
    return Report(_TITLE, (check,), subject=str(settings.db_path), refused=True)


async def _measure(
    settings: Settings, scratch: Path, rows: int, repetitions: int, full: bool, samples: Samples
) -> dict[str, Any]:
    """Fill ``samples`` from a copy in ``scratch``, and return the PRAGMAs of the connections that read it."""
    copy = replace(settings, db_path=scratch / "copy.db")
    await _snapshot(settings, copy)
    async with connect(copy.db_path, settings=copy) as conn:
        pragmas = await read_pragmas(conn)
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size < rows] if full else []
    with one_cpu():  # so that two runs can be compared
        for start, size in pairwise((0, *sizes, rows)):
            await _fill(copy, start, size)
            if full:
                async with Database.open(copy) as db:
                    samples[f"growth/{size}"] = await time_reads(memory_reads(db, size), repetitions)
        async with Database.open(copy) as db:
            samples[_SESSION] = await time_reads(session_reads(db, rows), repetitions)
            samples[_MEMORY] = await time_reads(memory_reads(db, rows), repetitions)
            rounds = max(_ROUNDS, repetitions * _ROUNDS // _REPETITIONS)
            samples[_CONCURRENT] = await time_reads(together(session_reads(db, rows), 50), rounds)
            if full:
                await _measure_fully(db, rows, repetitions, samples)
    return pragmas


async def _measure_fully(db: Database, rows: int, repetitions: int, samples: Samples) -> None:
    async with writing(db):
        samples[f"{_SESSION} beside a writer"] = await time_reads(session_reads(db, rows), repetitions)
        samples[f"{_MEMORY} beside a writer"] = await time_reads(memory_reads(db, rows), repetitions)
    for tasks in _CONCURRENCY:
        samples[f"concurrency/{tasks}"] = await time_reads(together(memory_reads(db, rows), tasks), _CURVE_ROUNDS)
    alone, decoded = time_plainly(db, rows, repetitions)
    samples["share/SQLite"], samples["share/SQLite and decoding"] = alone, decoded
    samples["share/SQLite, decoding and driver"] = await time_reads(memory_reads(db, rows), repetitions)


async def _snapshot(settings: Settings, copy: Settings) -> None:
    copy.db_path.touch(mode=0o600)
    async with (
        connect(settings.db_path, settings=settings) as live,
        connect(copy.db_path, settings=copy, mode="rw") as target,
    ):
        await live.backup(target)  # in one step: in several it may never end beside a writer
        await target.execute_fetchall("PRAGMA foreign_keys = OFF")
        await target.executescript(";\n".join(statements("benchmark.sql")))
        await target.execute_fetchall("PRAGMA journal_mode = WAL")


async def _fill(copy: Settings, start: int, stop: int) -> None:
    from tqdm import tqdm

    added = sum(synthetic.row_counts(stop).values()) - sum(synthetic.row_counts(start).values())
    async with connect(copy.db_path, settings=copy, mode="rw") as conn:
        with tqdm(
            total=added, desc=f"filling to {stop:,}", unit=" rows", mininterval=1, delay=1, file=sys.stdout
        ) as bar:
            await synthetic.fill(conn, stop - start, start=start, progress=bar.update)


def _limits(settings: Settings) -> dict[str, tuple[float, float]]:
    """Return, for each measurement that has a limit, the percentile and the milliseconds that it must lie under."""
    return {
        _SESSION: (0.99, settings.session_p99_ms),
        _MEMORY: (0.99, settings.memory_p99_ms),
        _CONCURRENT: (0.95, settings.concurrent_reads_s * 1000),
    }


def _verdicts(limits: Mapping[str, tuple[float, float]], samples: Samples, repetitions: int) -> Iterator[Check]:
    """Hold each limit of the environment against its samples; only a limit that is proven met passes."""
    for name, (level, limit_ms) in limits.items():
        found = verdict(samples[name], level, limit_ms)
        words = next(p for p in percentiles(samples[name]) if p.level == level)
        remedy = "see explain.ipynb, and the disk"
        if found == "not enough samples":
            remedy = _ask_for_more(repetitions, rounds=name == _CONCURRENT)
        yield Check.that(
            id_of(name),
            found == "met",
            expected=f"p{level * 100:g} < {limit_ms:g} ms, with 95 % confidence, on one CPU",
            observed=f"{words}, {counted(len(samples[name]), 'sample')}: {found}",
            remedy=remedy,
            name=name,
        )


def _ask_for_more(repetitions: int, *, rounds: bool) -> str:
    """Return the parameter that brings more samples than there were, where there is one."""
    if repetitions >= _MOST_REPETITIONS:
        return "see what else keeps the machine busy, and run it again"
    more = _REPETITIONS
    if rounds or repetitions >= _REPETITIONS:
        more = min(_MOST_REPETITIONS, 10 * max(repetitions, _REPETITIONS))
    return f"ask for more: -p repetitions {more}"


def _readings(limits: Mapping[str, tuple[float, float]], samples: Samples) -> Iterator[Check]:
    """Show what has no limit of its own."""
    for name, nanoseconds in samples.items():
        if name not in limits:
            observed = f"{'; '.join(map(str, percentiles(nanoseconds)))}, {counted(len(nanoseconds), 'sample')}"
            yield Check(id_of(name), "pass", "shown, no limit", observed, name=name)
