"""Records of runs: their fields and shape, and reading them from an archive."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import misfits, moment, number, sha256, tilde, unsealed
from abathur_nb.evidence.ledger import LEDGER, RUN_ID, Ledger, Line, newest_lines, read_ledger
from abathur_nb.files import read_regular
from abathur_nb.report import Check, Report, Status
from abathur_nb.text import counted, moment_of, shown, some

Verdict = Literal["pass", "fail", "refused", "error", "timeout", "interrupted"]
# A symbol, so that a verdict is recognised without colour, and the meaning.
VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    "pass": ("✓", "no check failed"),
    "fail": ("✗", "a check failed, or could not run"),
    "refused": ("⊘", "it was refused, and nothing was done"),
    "error": ("!", "a cell raised, the kernel died, or the run could not be archived"),
    "timeout": ("◷", "it reached its time limit"),
    "interrupted": ("■", "it was interrupted"),
}
# Of many databases, from the worst; the first two are not of a run: the newest records of an altered one do not match.
WORST = ("unreachable", "altered", "error", "timeout", "interrupted", "fail", "refused", "pass")
EXIT_CODES: Mapping[str, int] = {"pass": 0, "fail": 1, "refused": 2, "error": 3, "timeout": 4, "interrupted": 5}
# The files of a run.
STARTED, RECORD = "started.json", "record.json"
NOTEBOOK, PAGE, STATEMENT = "notebook.ipynb", "page.html", "statement.json"
PDF = "page.pdf"  # written by earlier versions
IN_LINE = ("run_id", "notebook", "env", "verdict", "started_at", "ended_at")  # the fields that the ledger repeats
FORMAT = 2  # since format 2 each check has an id and data
Kind = TypeVar("Kind", bound="Started")
_MARKS = {"pass": "✓ pass", "unsealed": "? unsealed"}  # every other verdict has a cross
_NAMED = 5  # runs that an error names


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Hold what a run recorded before it accessed the database."""

    run_id: str
    notebook: str
    template: Mapping[str, Any]  # name, sha256 or None, and where both come from
    env: str
    parameters: Mapping[str, Any]
    settings: Mapping[str, Any]
    user: str
    host: str
    versions: Mapping[str, Any]
    started_at: str
    ledger_head: str  # the last hash at the start: shows later whether lines were removed
    fleet: str = ""  # the id of the fleet run that it is a part of
    format: int = FORMAT

    @property
    def who(self) -> str:
        """Return the user and the host."""
        return f"{self.user} on {self.host}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, which JSON can hold."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Started):
    """Hold the sealed record of a run: how it started, its verdict, and what it found.

    ``facts`` are findings besides the reports, such as plans and sizes; ``error`` names the cell that broke the run.
    If the runner sealed it, ``notebook_verdict`` is the verdict that the notebook had sealed.
    """

    started_sha256: str
    ended_at: str
    verdict: Verdict
    reports: tuple[Report, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    database: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    sealed_by: str | None = None
    notebook_verdict: str | None = None

    @property
    def checks(self) -> tuple[Check, ...]:
        """Return the checks of all reports."""
        return tuple(check for report in self.reports for check in report.checks)

    @property
    def seconds(self) -> float:
        """Return the duration of the run."""
        return (moment_of(self.ended_at) - moment_of(self.started_at)).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, which JSON can hold."""
        return Started.to_dict(self) | {"reports": [report.to_dict() for report in self.reports]}


_BOUND = (number, type(None))
_SHAPE_STARTED = {
    **dict.fromkeys(("run_id", "notebook", "env", "user", "host", "ledger_head"), str),
    **dict.fromkeys(("parameters", "settings", "versions"), dict),
    "started_at": moment,
    "fleet?": str,
    "template": {"name": str, "sha256": (str, type(None))},
}
_SHAPE_CHECK = {
    **dict.fromkeys(("id?", "name", "expected", "observed", "remedy"), str),  # a check of format 1 has no id
    "status": frozenset(get_args(Status)),
    "evidence": [str],
    "data?": dict,
}
_SHAPE_ROW = dict.fromkeys(("host", "database", "verdict", "archive", "head", "collected?"), str) | {"state": dict}
_SHAPES = {
    Started: _SHAPE_STARTED,
    Record: {
        **_SHAPE_STARTED,
        "started_sha256": str,
        "ended_at": moment,
        "verdict": frozenset(EXIT_CODES),
        "reports": [{"title": str, "subject": str, "refused": bool, "finished_at": moment, "checks": [_SHAPE_CHECK]}],
        "facts": {
            **dict.fromkeys(("rows?", "machine?"), dict),
            "schema?": {str: str},
            "plans?": {str: [str]},
            "sizes?": {str: number},
            "percentiles_ms?": {str: {str: [_BOUND, number, _BOUND]}},
            "limits_ms?": {str: [str, number]},
            "fleet?": {
                **dict.fromkeys(("id", "inventory", "notebook"), str),
                "databases": [_SHAPE_ROW],
            },
        },
        "database": dict.fromkeys(("before?", "after?"), ({"size?": number}, type(None))),
        "error": ({"name": str, "message": str}, type(None)),
    },
}


def read_run(kind: type[Kind], data: Mapping[str, Any]) -> Kind:
    """Return the Started or the Record that ``data`` holds; raise ValueError, naming each fault. Read-only."""
    if data.get("format") not in (1, 2):
        raise ValueError(f"its format is {shown(data.get('format'))}, the newest known is {FORMAT}: update abathur_nb")
    if faults := misfits(data, _SHAPES[kind]):
        raise ValueError(f"not a record of a run: {'; '.join(faults)}")
    known = {each.name: data[each.name] for each in fields(kind) if each.name in data}
    if kind is Record:
        known["reports"] = tuple(Report.from_dict(report) for report in data["reports"])
    return kind(**known)


def summary(record: Record) -> str:
    """Return a record as a short text for people."""
    failed = [f"{check.name}: {check.observed}" for check in record.checks if check.failed]
    error = record.error
    lines = [
        f"{record.verdict.upper()} {record.notebook} of {record.env}, run {record.run_id}",
        f"{record.started_at} to {record.ended_at} UTC, {record.who}",
        f"{counted(len(record.checks), 'check')}, {len(failed)} failed or could not run",
        *failed,
        *([f"broke in cell {error.get('cell', '?')}: {error['name']}: {error['message']}"] if error else []),
    ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Entry:
    """Hold what an archive has of one run. ``started`` and ``record`` are None if missing or altered.

    ``line`` is the run's line in the ledger, None if the executed notebook was not archived; ``faults`` names what was
    altered in the two files; ``of_several`` says whether the archive holds runs of several databases.
    """

    run_id: str
    folder: Path
    started: Started | None
    record: Record | None
    line: Line | None
    faults: tuple[str, ...] = ()
    of_several: bool = False

    @property
    def verdict(self) -> str:
        """Return the verdict of the sealed record; ``unsealed`` if it is missing, ``altered`` if there are faults."""
        if self.faults:
            return "altered"
        return self.record.verdict if self.record else "unsealed"

    @property
    def known(self) -> Record | Started | None:
        """Return the record; if it is missing, the data of the start."""
        return self.record or self.started

    @property
    def sealed(self) -> Record | None:
        """Return the record, whatever its verdict, if nothing was altered."""
        return None if self.faults else self.record

    @property
    def started_at(self) -> datetime:
        """Return the time in the run's id."""
        return begun_at(self.run_id)

    @property
    def when(self) -> str:
        """Return the start of the run in UTC, to the second."""
        return f"{self.started_at:%Y-%m-%d %H:%M:%S}"

    @property
    def seconds(self) -> float | None:
        """Return the duration of the run; None unless it is sealed."""
        return self.sealed.seconds if self.sealed else None

    @property
    def notebook(self) -> str:
        """Return the name of the run's notebook."""
        if self.known:
            return self.known.notebook
        return str(self.line.data["notebook"]) if self.line else "?"

    @property
    def database(self) -> str:
        """Return the path of the run's database, an empty text if unknown."""
        return str(self.known.settings.get("db_path", "")) if self.known else ""

    @property
    def label(self) -> str:
        """Return the notebook's name; in an archive of several databases, also the database."""
        return f"{self.notebook} of {self.database}" if self.of_several else self.notebook

    @property
    def who(self) -> str:
        """Return the user and the host, an empty text if unknown."""
        return self.known.who if self.known else ""

    @property
    def mark(self) -> str:
        """Return the verdict after a symbol, so that it is recognised without colour."""
        return _MARKS.get(self.verdict, f"✗ {self.verdict}")

    @property
    def failed(self) -> tuple[str, ...]:
        """Return the names of the checks that failed or could not run."""
        return tuple(check.name for check in self.sealed.checks if check.failed) if self.sealed else ()

    @property
    def ending(self) -> str:
        """Return the verdict, followed by the names of the checks that failed."""
        return ": ".join(filter(None, (self.verdict, ", ".join(self.failed))))

    @property
    def artifact(self) -> Path:
        """Return the archived page; if it was not made, the executed notebook."""
        return self.folder / (PAGE if self.line and PAGE in self.line.data["files"] else NOTEBOOK)

    @property
    def size(self) -> int | None:
        """Return the size of the database file after the run, in bytes."""
        return (self.sealed.database.get("after") or {}).get("size") if self.sealed else None

    def found(self, fact: str) -> Mapping[str, Any]:
        """Return one of the ``facts`` of the sealed record, empty if it is missing."""
        return self.sealed.facts.get(fact, {}) if self.sealed else {}

    def is_of(self, settings: Settings) -> bool:
        """Return whether the run used the environment and database of ``settings``."""
        own = (settings.env, tilde(str(settings.db_path)))
        return self.known is not None and (self.known.env, self.database) == own


def begun_at(run_id: str) -> datetime:
    """Return the time in the id of a run."""
    month, day, time = run_id[:6], run_id[6:8], run_id[8:18]
    # Counted from the first of the month, because a forged id may name the 31st of February.
    return datetime.strptime(f"{month}01{time}+0000", "%Y%m%dT%H%M%S%f%z") + timedelta(days=int(day) - 1)


def run_ids(archive: Path) -> frozenset[str]:
    """Return the names in an archive that are run ids; raise RefusedError if it can't be read. Read-only."""
    try:
        return frozenset(path.name for path in archive.iterdir() if RUN_ID.fullmatch(path.name))
    except OSError as error:
        raise RefusedError(f"the archive {archive} cannot be read: {error.strerror}") from None


def read_archive(archive: Path) -> tuple[Entry, ...]:
    """Return the runs in the folders and the ledger of an archive, oldest first. Read-only.

    Raises RefusedError for an archive that can't be read.
    """
    return read_with_ledger(archive)[1]


def read_with_ledger(archive: Path) -> tuple[Ledger, tuple[Entry, ...]]:
    """Return the ledger of an archive, and its runs as `read_archive` does. Read-only; raises the same RefusedError."""
    found = run_ids(archive)  # before the ledger, so that a run that ends in between has a line
    ledger = read_ledger(archive)
    ids = sorted(found | ledger.runs.keys())
    runs = [read_entry(archive, run_id, ledger.runs.get(run_id)) for run_id in ids]
    several = len({run.database for run in runs if run.database}) > 1
    return ledger, tuple(replace(run, of_several=several and bool(run.database)) for run in runs)


def find_run(archive: Path, beginning: str) -> Entry:
    """Return the one run whose id starts with this; raise ConfigurationError for none or several. Read-only."""
    lines = read_ledger(archive).runs
    found = [one for one in sorted(run_ids(archive) | lines.keys()) if beginning and one.startswith(beginning)]
    if len(found) == 1:
        return read_entry(archive, found[0], lines.get(found[0]))
    expected = f"expected the beginning of one run id, found {some(found, _NAMED) or 'none'} in {archive}"
    raise ConfigurationError(f"run {shown(beginning)}: {expected}")


def newest_entries(archive: Path, notebook: str = "") -> Iterator[Entry]:
    """Yield the runs in the ledger of an archive, newest first, of all notebooks or of one; read no more than asked.

    Read-only. Raises RefusedError as `newest_lines` does.
    """
    for line in newest_lines(archive):
        if line.data["kind"] == "run" and notebook in ("", line.data["notebook"]):
            yield read_entry(archive, line.data["run_id"], line)


def is_folder(path: Path) -> bool:
    """Return whether a path is a directory, and not a link to one; False if it can't be accessed. Read-only."""
    return os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH114 - Path raises in a closed directory


def read_entry(archive: Path, run_id: str, line: Line | None) -> Entry:
    """Return one run of an archive, whose line in the ledger is ``line``. Read-only; follows no link."""
    folder = archive / run_id
    if not is_folder(folder):
        words = "it is not a readable directory" if os.path.lexists(folder) else "its folder is missing"
        return Entry(run_id, folder, None, None, line, (f"{run_id}: {words}",))
    faults: list[str] = []
    started, digest = _read(folder, STARTED, Started, line, faults)
    record, _ = _read(folder, RECORD, Record, line, faults)
    if record:
        if digest not in ("", record.started_sha256):
            faults.append(f"{run_id}/{RECORD}: it does not belong to this {STARTED}")
        listed = {name: line.data[name] for name in IN_LINE} if line else {}
        for source, data in ((STARTED, started.to_dict() if started else {}), (LEDGER, listed)):
            if other := sorted(name for name in data if getattr(record, name) != data[name]):
                faults.append(f"{run_id}/{RECORD}: {', '.join(other)} differs from {source}")
    return Entry(run_id, folder, started, record, line, tuple(faults))


def _read(folder: Path, name: str, kind: type[Kind], line: Line | None, faults: list[str]) -> tuple[Kind | None, str]:
    """Return one of a run's two files and its SHA-256, or add its fault to ``faults``."""
    where = f"{folder.name}/{name}"
    try:
        content = read_regular(folder / name)
        digest = sha256(content)
        if line and digest != line.data["files"].get(name):
            raise ValueError("its hash is not the one in the ledger")
        data = read_run(kind, unsealed(content))
        if data.run_id != folder.name:
            raise ValueError(f"it belongs to run {shown(data.run_id)}")
        return data, digest
    except FileNotFoundError:
        if line or (name == STARTED and os.path.lexists(folder / RECORD)):
            faults.append(f"{where}: it is missing")
    except OSError as error:
        faults.append(f"{where}: it cannot be read: {error.strerror}")
    except ValueError as error:
        faults.append(f"{where}: {error}")
    return None, ""
