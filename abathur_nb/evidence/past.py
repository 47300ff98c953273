"""What an archive tells of each of its runs, in the form in which a history shows it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.privacy import tilde
from abathur_nb.evidence.reading import Entry
from abathur_nb.evidence.record import Record
from abathur_nb.text import printable

Interval = tuple[float | None, float, float | None]  # the lower bound, the percentile, the upper bound; ms

# What a benchmark's figures depend on, apart from the versions, whose effect a history is to show.
_BASIS = ("processor", "file system", "readers", "rows")
_TIME = re.compile(r"(20\d{6}T\d{9})Z-")  # of another century, and a time axis would show nothing else
_MARKS = {"pass": "✓ pass", "unsealed": "? unsealed"}  # and a cross for each other verdict
_LARGEST = 1e15  # milliseconds, bytes
_LONGEST = 60  # characters of a name


@dataclass(frozen=True, slots=True)
class Facts:
    """Hold what a sealed record says besides its verdict; empty where its notebook found out nothing of the kind.

    ``failed`` names its checks that failed or could not run. ``percentiles`` are intervals in ms by measurement and
    level (``p99``), ``limits`` the level and the ms of each measurement that has a limit, ``basis`` what both depend
    on. ``size`` is the file's, ``sizes`` those of tables and indexes, in bytes.
    """

    failed: tuple[str, ...] = ()
    percentiles: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    limits: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    basis: tuple[str, ...] = ()
    schema: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None


@dataclass(frozen=True, slots=True)
class PastRun:
    """Hold one run of an archive: what, on which database, when, the verdict, how long, who.

    ``verdict`` is also ``unsealed`` where there is no record, and ``altered`` where a file is not as it was written.
    ``label`` is the notebook's name, and the database's too in an archive of several.
    """

    entry: Entry
    started_at: datetime
    notebook: str
    database: str
    label: str
    verdict: str
    seconds: float | None = None
    who: str = ""
    facts: Facts = field(default_factory=Facts)

    @property
    def run_id(self) -> str:
        """Return the id of the run."""
        return self.entry.run_id

    @property
    def sealed(self) -> bool:
        """Return whether its record stands, whatever the verdict."""
        return self.seconds is not None

    @property
    def mark(self) -> str:
        """Return the verdict with a shape before it, so that nothing hangs on colour alone."""
        return _MARKS.get(self.verdict, f"✗ {self.verdict}")

    @property
    def when(self) -> str:
        """Return when it began, in UTC, to the second."""
        return f"{self.started_at:%Y-%m-%d %H:%M:%S}"

    def is_of(self, settings: Settings) -> bool:
        """Return whether it is of the database of ``settings``, under the same environment."""
        run, own = self.entry.known, (settings.env, tilde(str(settings.db_path)))
        return run is not None and (run.env, run.settings.get("db_path")) == own


def past_runs(entries: Iterable[Entry]) -> tuple[PastRun, ...]:
    """Return these runs in the same order. Those whose id holds no time are left out."""
    runs = [_past(entry, moment) for entry in entries if (moment := _moment(entry.run_id))]
    if len({run.database for run in runs if run.database}) > 1:
        runs = [replace(run, label=f"{run.notebook} of {run.database}") for run in runs]
    return tuple(runs)


def _moment(run_id: str) -> datetime | None:
    found = _TIME.match(run_id)
    try:
        return datetime.strptime(f"{found[1]}+0000", "%Y%m%dT%H%M%S%f%z") if found else None
    except ValueError:  # the 31st of February
        return None


def _past(entry: Entry, started_at: datetime) -> PastRun:
    known = entry.known
    notebook = _short(known.notebook if known else entry.line.data["notebook"] if entry.line else "?")
    database = _short(known.settings.get("db_path", "") if known else "")
    who = _short(known.who) if known else ""
    run = PastRun(entry, started_at, notebook, database, notebook, entry.verdict, who=who)
    if entry.record is None or entry.verdict == "altered":
        return run
    try:
        return replace(run, seconds=entry.record.seconds, facts=_facts(entry.record))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return replace(run, verdict="altered")  # its hash is right, but no run of this package wrote it


def _facts(record: Record) -> Facts:
    """Read the facts of a record; raise what shows that they are none: no hash says who wrote it."""
    facts, machine = record.facts, record.facts.get("machine", {})
    after = record.database.get("after") or {}
    return Facts(
        failed=tuple(_short(check.name) for check in record.checks if check.failed),
        percentiles={
            _short(name): {str(level): _interval(*bounds) for level, bounds in levels.items()}
            for name, levels in facts.get("percentiles_ms", {}).items()
        },
        limits={
            _short(name): (str(level), _figure(limit)) for name, (level, limit) in facts.get("limits_ms", {}).items()
        },
        basis=(_short(record.settings.get("db_path", "")), *(str(machine.get(name)) for name in _BASIS)),
        # What a dry run of init shows is only planned, and of that no rows are counted.
        schema={str(name): str(sql) for name, sql in facts.get("schema", {}).items() if facts.get("rows")},
        plans={str(name): "\n".join(lines) for name, lines in facts.get("plans", {}).items()},
        sizes={_short(name): int(_figure(size)) for name, size in facts.get("sizes", {}).items()},
        size=int(_figure(after["size"])) if "size" in after else None,
    )


def _interval(low: float | None, value: float, high: float | None) -> Interval:
    low, high = (None if bound is None else _figure(bound) for bound in (low, high))
    return low, _figure(value), high


def _figure(value: float) -> float:
    if not 0 <= value < _LARGEST:
        raise ValueError("a figure that no run can have measured")
    return float(value)


def _short(text: object) -> str:
    words = printable(str(text)).replace("\n", "\\n")
    return words if len(words) <= _LONGEST else f"…{words[-_LONGEST:]}"
