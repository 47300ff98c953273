"""The result of a benchmark: its samples, the machine they were taken on, and the comparison with an earlier run."""

import json
import os
import platform
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.past import PastRun, past_runs
from abathur_nb.evidence.reading import find_run, read_entry
from abathur_nb.percentiles import above, percentiles
from abathur_nb.report import Check, Report, id_of
from abathur_nb.store.target import file_system
from abathur_nb.text import shown, url_fault


def describe_machine(settings: Settings, rows: int, repetitions: int) -> dict[str, Any]:
    """Return what the figures of a benchmark depend on, by its name. Read-only."""
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        model = cpu.partition(":")[2].strip()
    except (OSError, StopIteration):  # not Linux, or a processor that tells no name
        model = platform.processor()
    return {
        "processor": f"{model}, {_cpus()} of {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "file system": file_system(settings.db_path.parent),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "aiosqlite": aiosqlite.__version__,
        "abathur_nb": version("abathur_nb"),
        "readers": settings.readers,
        "rows": rows,
        "repetitions": repetitions,
    }


def _cpus() -> int | None:
    # Linux alone can pin a process to some of its CPUs.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def compare_machines(now: Mapping[str, Any], then: Mapping[str, Any]) -> Check:
    """Name all in which the machine of an earlier run was another: then a difference in time says little."""
    differences = _differences(now, then)
    return Check.that(
        "machine",
        not differences,
        expected="the same processor, versions, settings, rows and repetitions as in the earlier run",
        observed="; ".join(differences) or "the same",
        remedy="compare with a run that differs in nothing but what you want to know of: -p compare_with RUN_ID",
        otherwise="warn",
    )


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    was, found = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name}: was {shown(was.get(name))}, is {shown(found.get(name))}"
        for name in dict.fromkeys((*found, *was))
        if was.get(name) != found.get(name)
    ]


def _flat(machine: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in machine.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", found) for inner, found in value.items())
        else:
            yield name, value


if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Hold what a benchmark measured: ``samples`` are nanoseconds by measurement, ``machine`` what they depend on.

    Measurements that make a curve are named ``concurrency/50``, ``growth/1000``, ``share/SQLite``. ``limits`` holds,
    for each measurement that has one, a percentile (0.99) and the milliseconds that it must lie under.
    """

    report: Report
    samples: Mapping[str, Sequence[int]]
    machine: Mapping[str, Any]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def curve(self, name: str) -> dict[str, Sequence[int]]:
        """Return the samples of ``growth``, ``concurrency`` or ``share`` by what follows the ``/``, in that order."""
        return {key.partition("/")[2]: found for key, found in self.samples.items() if key.startswith(f"{name}/")}

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a measurement: samples, then p50, p95 and p99 in ms, each with its interval.

        To three significant digits, which is more than two runs agree in; the JSON has them all.
        """
        import pandas as pd

        rows = []
        for name, nanoseconds in self.samples.items():
            row: dict[str, Any] = {"measurement": name, "samples": len(nanoseconds)}
            for found in percentiles(nanoseconds):
                label = f"p{found.level * 100:g}"
                for what, value in (("ms", found.value), ("low", found.low), ("high", found.high)):
                    row[f"{label} {what}"] = None if value is None else float(f"{value:.3g}")
            rows.append(row)
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """Return the result as JSON text: report, machine, percentiles with intervals, and every sample."""
        samples = {name: list(nanoseconds) for name, nanoseconds in self.samples.items()}
        return json.dumps({"report": self.report.to_dict(), **self.to_record(), "samples_ns": samples})

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: percentiles with intervals, their limits, the machine; not the samples."""
        return {
            "machine": dict(self.machine),
            "percentiles_ms": {
                name: {f"p{p.level * 100:g}": [p.low, p.value, p.high] for p in percentiles(nanoseconds)}
                for name, nanoseconds in self.samples.items()
            },
            "limits_ms": {name: [f"p{level * 100:g}", limit] for name, (level, limit) in self.limits.items()},
        }


def named_run(settings: Settings, compare_with: object) -> PastRun | None:
    """Return the archived benchmark that ``compare_with`` names, None for None. Read-only.

    Raises ConfigurationError where no run has that id, or none that was measured.
    """
    if compare_with is None:
        return None
    if not isinstance(compare_with, str):
        raise ConfigurationError(f"compare_with: expected the id of an archived run, found {shown(compare_with)}")
    if fault := url_fault("compare_with", compare_with):
        raise ConfigurationError(fault)
    try:
        found = past_runs([find_run(settings.archive_dir, compare_with)])
    except RefusedError as error:
        raise ConfigurationError(f"compare_with: {error.observed}") from None
    if not found or found[0].notebook != "benchmark" or not found[0].facts.percentiles:
        raise ConfigurationError(f"compare_with: expected a benchmark that was measured, found {shown(compare_with)}")
    return found[0]


def newest_comparable(settings: Settings, machine: Mapping[str, Any]) -> PastRun | None:
    """Return the newest archived benchmark of the same machine, versions, rows and settings, if any. Read-only."""
    try:
        lines = read_ledger(settings.archive_dir).runs
    except RefusedError:  # no archive yet
        return None
    for run_id in sorted((i for i, line in lines.items() if line.data["notebook"] == "benchmark"), reverse=True):
        for run in past_runs([read_entry(settings.archive_dir, run_id, lines[run_id])]):
            if run.facts.percentiles and not _differences(machine, machine_of(run)):
                return run
    return None


def machine_of(run: PastRun) -> Mapping[str, Any]:
    """Return the machine that an archived benchmark was measured on."""
    found = run.entry.record.facts.get("machine") if run.entry.record else None
    return found if isinstance(found, Mapping) else {}


def compare(samples: Mapping[str, Sequence[int]], machine: Mapping[str, Any], earlier: PastRun) -> Iterator[Check]:
    """Compare the machine, then each measurement: slower where the interval of a percentile lies above the other."""
    yield compare_machines(machine, machine_of(earlier))
    for name in (name for name in samples if name in earlier.facts.percentiles):
        words, slower = [], False
        for now in percentiles(samples[name]):
            was = earlier.facts.percentiles[name].get(f"p{now.level * 100:g}")
            if was:
                words.append(f"{now}, was {was[1]:.3g} ms ({now.value / was[1]:.2f} times)")
                slower |= above(now.low, was[2])
        yield Check.that(
            f"{id_of(name)}_against_the_earlier_run",
            not slower,
            expected="no percentile more than a tenth above the earlier run's interval",
            observed="; ".join(words),
            remedy="see the check *machine*; if that is the same, look at explain.ipynb",
            otherwise="warn",
            evidence=(f"run {earlier.run_id}",),
            name=f"{name} against the earlier run",
        )
