"""Benchmark: how fast a copy of the database answers, compared with limits (the runbook's section 5)."""

import os
import platform
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abathur_nb.backups.change import check_arguments
from abathur_nb.backups.taking import copy_out
from abathur_nb.config.parameters import Parameter
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ConfigurationError, RefusedError
from abathur_nb.evidence.ledger import newest_lines
from abathur_nb.evidence.record import Entry, find_run, read_entry
from abathur_nb.evidence.run import versions_of
from abathur_nb.files import scratch_directory, sweep
from abathur_nb.health.path_on_disk import file_system, free_mb
from abathur_nb.measure import synthetic
from abathur_nb.measure.synthetic import memory_reads, one_cpu, session_reads, time_reads, together, writing
from abathur_nb.percentiles import above, percentiles, verdict
from abathur_nb.report import Check, Report, id_of
from abathur_nb.store.connection import connect, explain_error, read_pragmas
from abathur_nb.store.database import Database
from abathur_nb.store.sql import statements
from abathur_nb.store.target import refusal
from abathur_nb.text import MB, counted, shown

if TYPE_CHECKING:
    import pandas as pd


_TITLE = "benchmark"
_BYTES_A_ROW = 2_000  # a synthetic memory and session with their indexes take about 1,300
_ROUNDS = 100  # the fewest rounds of concurrent reads; a verdict on a p95 needs 59
_REPETITIONS = 1000  # the default; more repetitions also add rounds
_MOST_REPETITIONS = 100_000
_CURVE_ROUNDS = 368  # the fewest that give a p99 both bounds: 0.99**368 < 0.025
_CONCURRENCY = (1, 2, 5, 10, 20, 50, 100, 200)
_SESSION, _MEMORY, _CONCURRENT = "session retrieval", "memory retrieval", "50 concurrent reads"

Samples = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Hold what a benchmark measured: ``samples`` in ns by measurement, and the ``machine`` that they depend on.

    The points of a curve are named like ``concurrency/50`` or ``growth/1000``. ``limits`` holds, for each
    measurement that has one, a percentile (0.99) and its limit in milliseconds.
    """

    report: Report
    samples: Mapping[str, Sequence[int]]
    machine: Mapping[str, Any]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def curve(self, name: str) -> dict[str, Sequence[int]]:
        """Return the samples of the curve ``growth`` or ``concurrency``, by number, in measured order."""
        return {key.partition("/")[2]: found for key, found in self.samples.items() if key.startswith(f"{name}/")}

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each measurement: samples; p50, p95 and p99 in ms with intervals, rounded to 1 µs."""
        import pandas as pd

        rows = []
        for name, nanoseconds in self.samples.items():
            row: dict[str, Any] = {"measurement": name, "samples": len(nanoseconds)}
            for found in percentiles(nanoseconds):
                row |= {f"{found.name} {what}": getattr(found, what) for what in ("value", "low", "high")}
            rows.append(row)
        return pd.DataFrame(rows).round(3).rename(columns=lambda name: name.replace("value", "ms"))

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: percentiles with intervals, their limits, the machine; not the samples."""
        return {
            "machine": dict(self.machine),
            "percentiles_ms": {
                name: {p.name: [p.low, p.value, p.high] for p in percentiles(nanoseconds)}
                for name, nanoseconds in self.samples.items()
            },
            "limits_ms": {name: [f"p{level * 100:g}", limit] for name, (level, limit) in self.limits.items()},
        }


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
    read, once, for the copy. ``full`` adds the reads beside a busy writer, 1 to 200 concurrent reads, and the growth
    from 1,000 to ``rows``. ``compare_with`` is the id of an archived run to compare with; the default is the newest of
    the same machine, versions, rows and settings, if there is one. Raises ConfigurationError for a wrong argument.
    """
    earlier = _checked_arguments(settings, rows, repetitions, full, compare_with)
    samples: Samples = {}
    # By measurement: the percentile that has a limit, and the limit in milliseconds.
    limits = {
        _SESSION: (0.99, settings.session_p99_ms),
        _MEMORY: (0.99, settings.memory_p99_ms),
        _CONCURRENT: (0.95, settings.concurrent_reads_s * 1000),
    }
    machine = describe_machine(settings, rows, repetitions)
    subject = str(settings.db_path)
    report = await refusal(_TITLE, settings)
    if report is None:
        try:
            async with Database.open(settings):  # so that an error names the path of the database, not of the copy
                pass
            if lack := _lack_of_room(settings, rows):
                return BenchmarkResult(Report(_TITLE, (lack,), subject, refused=True), samples, machine, limits)
            with scratch_directory(settings.db_path.parent, _TITLE) as scratch:
                pragmas = await _measure(settings, scratch, rows, repetitions, full, samples)
            machine |= {f"PRAGMA {name}": value for name, value in pragmas.items()}
            checks = [*_verdicts(limits, samples, repetitions)]
            if earlier := earlier or _newest_comparable(settings, machine):
                checks += compare(samples, machine, earlier)
            report = Report(_TITLE, tuple(checks), subject)
        except (sqlite3.Error, OSError, AbathurError) as error:
            words = explain_error(settings.db_path, error)
            remedy = words.remedy or "run validate.ipynb; when it passes, run this again"
            check = Check(_TITLE, "error", "the benchmark completes", f"could not run: {words.observed}", remedy)
            report = Report(_TITLE, (check,), subject)
    return BenchmarkResult(report, samples, machine, limits)


def _checked_arguments(
    settings: Settings, rows: object, repetitions: object, full: object, compare_with: object
) -> Entry | None:
    """Return the run to compare with, if one is named; raise ConfigurationError naming every wrong argument."""
    faults = [Parameter("rows", int, 0).fault(rows), Parameter("repetitions", int, 0).fault(repetitions)]
    faults.append(Parameter("compare_with", str, None).fault(compare_with))
    earlier = None
    if isinstance(compare_with, str) and not faults[-1]:
        try:
            earlier = find_run(settings.archive_dir, compare_with)
            if earlier.notebook != _TITLE or not earlier.found("percentiles_ms"):
                faults.append(f"compare_with: expected a benchmark with measurements, found {shown(compare_with)}")
        except (ConfigurationError, RefusedError) as error:
            faults.append(f"compare_with: {error}")
    check_arguments(*faults, full=full)
    return earlier


def _lack_of_room(settings: Settings, rows: int) -> Check | None:
    free = max(0, free_mb(settings.db_path.parent) - settings.min_free_mb)
    needed = (settings.db_path.stat().st_size * 2 + rows * _BYTES_A_ROW) / MB
    if free >= needed:
        sweep(settings.db_path.parent)
        return None
    observed = f"{free:,.0f} MB beyond the {settings.min_free_mb:,} MB that must stay free"
    remedy = "make room, or ask for fewer rows: -p rows 1000"
    return Check("free_disk", "fail", f"{needed:,.0f} MB for the copy", observed, remedy)


async def _measure(
    settings: Settings, scratch: Path, rows: int, repetitions: int, full: bool, samples: Samples
) -> dict[str, Any]:
    """Fill ``samples`` from a copy in ``scratch``, and return the PRAGMAs of the connections that read it."""
    copy = replace(settings, db_path=scratch / "copy.db")
    await _snapshot(settings, copy)
    async with connect(copy.db_path, copy.busy_timeout_ms, synchronous=copy.synchronous) as conn:
        pragmas = await conn.apply(read_pragmas)
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
                async with writing(db):
                    samples[f"{_SESSION} beside a writer"] = await time_reads(session_reads(db, rows), repetitions)
                    samples[f"{_MEMORY} beside a writer"] = await time_reads(memory_reads(db, rows), repetitions)
                for tasks in _CONCURRENCY:
                    reads = together(memory_reads(db, rows), tasks)
                    samples[f"concurrency/{tasks}"] = await time_reads(reads, _CURVE_ROUNDS)
    return pragmas


async def _snapshot(settings: Settings, copy: Settings) -> None:
    async with connect(settings.db_path, settings.busy_timeout_ms) as live:
        await copy_out(live, copy.db_path, owned_as=copy.db_path.parent)
    async with connect(copy.db_path, copy.busy_timeout_ms, mode="rw") as target:
        await target.execute_fetchall("PRAGMA foreign_keys = OFF")
        await target.executescript(";\n".join(statements("benchmark.sql")))
        await target.execute_fetchall("PRAGMA journal_mode = WAL")


async def _fill(copy: Settings, start: int, stop: int) -> None:
    from tqdm import tqdm

    added, words = 2 * (stop - start), f"filling to {stop:,}"
    async with connect(copy.db_path, copy.busy_timeout_ms, mode="rw", synchronous=copy.synchronous) as conn:
        with tqdm(total=added, desc=words, unit=" rows", mininterval=1, delay=1, file=sys.stdout) as bar:
            await synthetic.fill(conn, stop - start, start=start, progress=bar.update)


def _verdicts(limits: Mapping[str, tuple[float, float]], samples: Samples, repetitions: int) -> Iterator[Check]:
    """Compare samples with the limits of the environment; a check passes only if its limit is proven met."""
    more = min(_MOST_REPETITIONS, 10 * max(repetitions, _REPETITIONS))
    ask = f"take more samples: -p repetitions {more}"
    if repetitions >= _MOST_REPETITIONS:
        ask = "find out what else keeps the machine busy, then run this again"
    for name in sorted(samples, key=lambda name: name not in limits):
        nanoseconds = samples[name]
        found, number = percentiles(nanoseconds), counted(len(nanoseconds), "sample")
        if name not in limits:
            yield Check(id_of(name), "pass", "no limit", f"{'; '.join(map(str, found))}, {number}", name=name)
            continue
        level, limit_ms = limits[name]
        said, words = verdict(nanoseconds, level, limit_ms), next(p for p in found if p.level == level)
        expected = f"{words.name} < {limit_ms:g} ms, with 95 % confidence, on one CPU"
        remedy = ask if said == "not enough samples" else "run explain.ipynb, and check the disk"
        yield Check.that(id_of(name), said == "met", expected, f"{words}, {number}: {said}", remedy, name=name)


def describe_machine(settings: Settings, rows: int, repetitions: int) -> dict[str, Any]:
    """Return what the figures of a benchmark depend on, such as processor and versions. Read-only."""
    model = platform.processor()
    with suppress(OSError, StopIteration):  # not Linux, or a processor without a name
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        model = cpu.partition(":")[2].strip()
    versions = versions_of()
    # Only Linux can pin a process to some of its CPUs.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": f"{model}, {cpus} of {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "file system": file_system(settings.db_path.parent),
        **{name: versions[name] for name in ("Python", "SQLite", "aiosqlite", "abathur_nb")},
        "readers": settings.readers,
        "rows": rows,
        "repetitions": repetitions,
    }


def _newest_comparable(settings: Settings, machine: Mapping[str, Any]) -> Entry | None:
    """Return the newest archived benchmark of the same machine, versions, rows and settings, if any."""
    with suppress(RefusedError):  # no archive yet, or its ledger was altered, which verify reports
        for line in newest_lines(settings.archive_dir):
            if line.data.get("notebook") == _TITLE:
                run = read_entry(settings.archive_dir, line.data["run_id"], line)
                if run.found("percentiles_ms") and not _differences(machine, run.found("machine")):
                    return run
    return None


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: was {shown(then.get(name))}, is {shown(now.get(name))}"
        for name in {**now, **then}
        if then.get(name) != now.get(name)
    ]


def compare(samples: Mapping[str, Sequence[int]], machine: Mapping[str, Any], earlier: Entry) -> Iterator[Check]:
    """Compare the machine, then each measurement; it is slower if a percentile's interval is above the earlier one."""
    differences = _differences(machine, earlier.found("machine"))
    expected = "the same processor, versions, settings, rows and repetitions as in the earlier run"
    remedy = "compare with a run that differs only in what you want to test: -p compare_with RUN_ID"
    yield Check.that("machine", not differences, expected, "; ".join(differences) or "the same", remedy, "warn")
    measured = earlier.found("percentiles_ms")
    for name in (name for name in samples if name in measured):
        words, slower = [], False
        for now in percentiles(samples[name]):
            if was := measured[name].get(now.name):
                words.append(f"{now}, was {was[1]:.3g} ms ({now.value / was[1]:.2f} times)")
                slower |= above(now.low, was[2])
        check_id, title = f"{id_of(name)}_against_the_earlier_run", f"{name} against the earlier run"
        expected = "no percentile's interval is more than a tenth above the earlier one"
        remedy = "see the check *machine*; if the machine is the same, run explain.ipynb"
        evidence = (f"run {earlier.run_id}",)
        yield Check.that(check_id, not slower, expected, "; ".join(words), remedy, "warn", evidence, name=title)
