"""What a measurement depends on: the machine, the versions, the settings; told, and held against another's."""

import os
import platform
import sqlite3
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiosqlite

from abathur_nb.filesystems import file_system
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.wording import shown

__all__ = ["compare_machines", "describe_machine"]


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
    """Name all in which the machine of a baseline was another: then a difference in time says little."""
    was, found = dict(_flat(then)), dict(_flat(now))
    differences = [
        f"{name}: was {shown(was.get(name))}, is {shown(found.get(name))}"
        for name in dict.fromkeys((*found, *was))
        if was.get(name) != found.get(name)
    ]
    return Check.that(
        "baseline_machine",
        not differences,
        expected="the same processor, versions, settings, rows and repetitions",
        observed="; ".join(differences) or "the same",
        remedy="compare with a baseline that differs in nothing but what you want to know of",
        otherwise="warn",
        name="the baseline's machine",
    )


def _flat(machine: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in machine.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", found) for inner, found in value.items())
        else:
            yield name, value
