"""The result of a benchmark: its samples, the machine they were taken on, and the comparison with an earlier run."""

import errno
import json
import os
import platform
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite

from abathur_nb.causes import in_words
from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.files import open_regular
from abathur_nb.percentiles import above, percentiles
from abathur_nb.report import Check, Report, id_of
from abathur_nb.store.filesystems import file_system
from abathur_nb.text import printable, shown

__all__ = [
    "Baseline",
    "BenchmarkResult",
    "check_savable",
    "compare",
    "compare_machines",
    "describe_machine",
    "load_baseline",
]


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


if TYPE_CHECKING:
    import pandas as pd


_MAX_BYTES = 64 * 1024 * 1024  # a baseline larger than this was not written by a benchmark
_MAX_NANOSECONDS = 10**18  # thirty years
_BEGINNING = b'{"report": {'  # of every saved result


@dataclass(frozen=True, slots=True)
class Baseline:
    """Hold what a comparison takes from an earlier result: its file, its samples, its machine; nothing by default."""

    path: Path | None = None
    samples: Mapping[str, Sequence[int]] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Hold what a benchmark measured: ``samples`` are nanoseconds by measurement, ``machine`` what they depend on.

    Measurements that make a curve are named ``concurrency/50``, ``growth/1000``, ``share/SQLite``. ``limits`` holds,
    for each measurement that has one, a percentile (0.99) and the milliseconds that it must lie under. ``saved`` says
    what became of the JSON.
    """

    report: Report
    samples: Mapping[str, Sequence[int]]
    machine: Mapping[str, Any]
    baseline: Mapping[str, Sequence[int]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    saved: str = "not saved: no path was given"

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

    def save(self, path: str | os.PathLike[str] | None) -> str:
        """Write ``to_json()`` to ``path``, whole or not at all, 0600, replacing an earlier result; say what was done.

        Nothing else is ever replaced. With None nothing is written. Raises ConfigurationError where it can't be.
        """
        target = check_savable(path)
        if target is None:
            return "not saved: no path was given"
        try:
            _write(target, self.to_json())
        except OSError as error:
            raise _not_savable(path, error) from None
        return f"saved as {printable(str(target))}"


def check_savable(path: str | os.PathLike[str] | None) -> Path | None:
    """Return the whole path to which a result can be saved; raise ConfigurationError where it can't. Read-only."""
    if path is None:
        return None
    try:
        target = Path(os.path.abspath(os.path.expanduser(path)))
        _require_replaceable(target)
        _require_writable(target)
    except (OSError, ValueError, TypeError) as error:  # a ValueError where the path holds what no path can
        raise _not_savable(path, error) from None
    return target


def _not_savable(path: object, error: Exception) -> ConfigurationError:
    name = shown(str(path) if isinstance(path, os.PathLike) else path)
    told = in_words(error, Path(str(path)))
    return ConfigurationError(f"the result cannot be saved as {name}: {printable(told)}")


def load_baseline(path: str | os.PathLike[str] | None) -> Baseline:
    """Read a saved result, an empty one for None; raise ConfigurationError if it is no saved result."""
    if path is None:
        return Baseline()
    name = shown(str(path) if isinstance(path, os.PathLike) else path)
    try:
        file = Path(os.path.expanduser(path))
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise ConfigurationError(f"baseline: expected a regular file of at most {_MAX_BYTES:,} bytes, found {name}")
        with open_regular(file, follow=True) as saved:
            content = json.loads(saved.read().decode())
        samples = {str(key): [_sample(value) for value in values] for key, values in content["samples_ns"].items()}
        machine = dict(content["machine"].items())
    except OSError as error:
        raise ConfigurationError(f"baseline: {name} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        told = printable(f"{type(error).__name__}: {error}".replace("\n", " "))
        raise ConfigurationError(f"baseline: {name} is no saved result of a benchmark ({told})") from None
    if not all(samples.values()):
        raise ConfigurationError(f"baseline: {name} holds a measurement without samples")
    return Baseline(file, samples, machine)


def _sample(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_NANOSECONDS:
        return value
    raise ValueError(f"expected nanoseconds, found {shown(value)}")


def _require_replaceable(target: Path) -> None:
    """Raise FileExistsError if ``target`` is anything but an earlier result: a database, a device, a link."""
    try:
        is_file = stat.S_ISREG(os.lstat(target).st_mode)
    except FileNotFoundError:
        return
    if is_file:
        with open_regular(target) as file:
            if file.read(len(_BEGINNING)) == _BEGINNING:
                return
    raise FileExistsError(errno.EEXIST, "it is no saved result, and is not replaced")


def _require_writable(target: Path) -> None:
    """Raise OSError if no file can be made beside ``target``."""
    os.stat(f"{target.parent}/.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "its directory may not be written to")
    with suppress(FileNotFoundError):
        os.lstat(_draft(target))  # whose name is longer than that of the file


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _write(target: Path, text: str) -> None:
    draft = _draft(target)
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        draft.replace(target)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(target)
        draft.unlink(missing_ok=True)
        raise


def compare(samples: Mapping[str, Sequence[int]], machine: Mapping[str, Any], baseline: Baseline) -> Iterator[Check]:
    """Compare the machine, then each measurement: slower where the interval of a percentile lies above the other."""
    if baseline.path:
        yield compare_machines(machine, baseline.machine)
    for name in (name for name in samples if name in baseline.samples):
        told, slower = [], False
        for now, then in zip(percentiles(samples[name]), percentiles(baseline.samples[name]), strict=True):
            told.append(f"{now}, was {then.value:.3g} ms ({now.value / then.value:.2f} times)")
            slower |= above(now.low, then.high)
        yield Check.that(
            f"{id_of(name)}_against_the_baseline",
            not slower,
            expected="no percentile more than a tenth above the baseline's interval",
            observed="; ".join(told),
            remedy="see the check of the baseline's machine; if that is the same, look at explain.ipynb",
            otherwise="warn",
            name=f"{name} against the baseline",
        )
