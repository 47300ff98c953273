"""The record of a run: who, where, which versions and database; written at the start, sealed with the verdict."""

import asyncio
import os
import platform
import re
import secrets
import sqlite3
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypeVar, get_args

from abathur_nb.config.notebooks import notebook_named
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.evidence.canonical import canonical, misfits, moment, sealed, sha256, unsealed
from abathur_nb.evidence.keys import signer
from abathur_nb.evidence.ledger import RUN_ID, ledger_head, require_no_line
from abathur_nb.evidence.privacy import refuse_secrets, tilde
from abathur_nb.files import make_private_directory, nearest_existing, os_cause, read_regular, write_durably
from abathur_nb.health.path_on_disk import location_checks, writable_by_others
from abathur_nb.report import Check, Report, Status
from abathur_nb.store.connection import connect, explain_error, pragma
from abathur_nb.store.schema import read_schema
from abathur_nb.store.sql import DATA, normalized
from abathur_nb.store.target import examine, wanted
from abathur_nb.text import as_user, counted, moment_of, shown, user_name, utc_now

_LONGEST_WAIT = 1000  # ms: who the database is matters less than what the notebook came for
Kind = TypeVar("Kind", bound="Started")
_PACKAGES = ("abathur_nb", "aiosqlite", "papermill", "nbclient", "ipykernel")


def new_run_id() -> str:
    """Return a name for a run that sorts by the time of its making: ``20261123T101500123Z-9f3ac1``."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}Z-{secrets.token_hex(3)}"


def person_and_host() -> dict[str, str]:
    """Return the user's name and the host's."""
    return {"user": user_name(os.geteuid()), "host": platform.node()}


def versions_of() -> dict[str, str]:
    """Return the versions of Python, of SQLite with its source id, and of the packages that a run depends on."""
    conn = sqlite3.connect(":memory:")
    (source_id,) = conn.execute("SELECT sqlite_source_id()").fetchone()
    conn.close()
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version, "SQLite source": source_id}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a notebook needs no papermill in JupyterLab
            continue
    return found


def shipped_notebook(name: str) -> bytes | None:
    """Return the template of this package that has this name, or None."""
    path = DATA / "notebooks" / f"{name}.ipynb"
    return path.read_bytes() if re.fullmatch(r"[a-z_]+", name) and path.is_file() else None


def database_identity(settings: Settings) -> dict[str, Any] | None:
    """Return what identifies the database: its name in its directory, size, ids, the hash of its schema. Read-only.

    None where there is none. What can't be read stands under ``unread``, and is not an error here; a link is not
    followed, and a lock waited for no longer than a second.
    """
    try:
        # A notebook's own event loop is busy with the cell that asks.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(_identity(settings))).result()
    except OSError as error:  # too many files open, for a loop of its own
        return {"path": settings.db_path.name, "unread": str(os_cause(error, settings.db_path))}


async def _identity(settings: Settings) -> dict[str, Any] | None:
    path = settings.db_path
    try:
        entry = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return {"path": path.name, "unread": f"{path} cannot be looked at: {error.strerror}"}
    found: dict[str, Any] = {"path": path.name, "size": entry.st_size}
    if not stat.S_ISREG(entry.st_mode) or not entry.st_size:
        return found
    brief = replace(settings, busy_timeout_ms=min(settings.busy_timeout_ms, _LONGEST_WAIT))
    try:
        async with connect(path, settings=brief) as conn:
            ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
            schema = {name: normalized(entry.sql) for name, entry in (await read_schema(conn)).items()}
            digest = sha256(canonical(schema))
    # A schema that was written by hand can have names that are no text.
    except (sqlite3.Error, OSError, AbathurError, TypeError, ValueError) as error:
        return {**found, "unread": str(explain_error(path, error))}
    return {**found, **ids, "schema_sha256": digest}


Verdict = Literal["pass", "fail", "refused", "error", "timeout", "interrupted"]
EXIT_CODES: Mapping[Verdict, int] = {
    "pass": 0,
    "fail": 1,  # a check failed, or could not run
    "refused": 2,  # before it started, or by a look into the database
    "error": 3,  # the run broke: a cell raised, the kernel died, the disk is full
    "timeout": 4,
    "interrupted": 5,
}
# The files of one run.
STARTED, RECORD = "started.json", "record.json"
NOTEBOOK, PAGE, STATEMENT = "notebook.ipynb", "page.html", "statement.json"
PDF = "page.pdf"  # that earlier versions made of the page
_FORMAT = 2  # since then each check has its id and its data


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Hold what a run wrote down before it touched the database."""

    run_id: str
    notebook: str
    template: Mapping[str, Any]  # its name, its sha256 or None, and from where that is known
    env: str
    parameters: Mapping[str, Any]
    settings: Mapping[str, Any]
    user: str
    host: str
    versions: Mapping[str, Any]
    started_at: str
    ledger_head: str
    format: int = _FORMAT

    @property
    def who(self) -> str:
        """Return the user and the host."""
        return f"{self.user} on {self.host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Started):
    """Hold the sealed record of a run: how it started, its verdict, and what it found.

    ``facts`` is what was found besides the reports (plans, percentiles, sizes), ``database`` its identity ``before``
    and ``after``, ``error`` the cell that broke the run. Where the runner sealed it, ``notebook_verdict`` is the one
    to which the notebook had come.
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
        """Return how long the run took."""
        return (moment_of(self.ended_at) - moment_of(self.started_at)).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, which JSON can hold."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {"reports": [report.to_dict() for report in self.reports]}


_CHECK_1 = {
    **dict.fromkeys(("name", "expected", "observed", "remedy"), str),
    "status": frozenset(get_args(Status)),
    "evidence": [str],
}
_CHECKS = {1: {**_CHECK_1, "id?": str, "data?": dict}, 2: {**_CHECK_1, "id": str, "data": dict}}
_STARTED = {
    **dict.fromkeys(("run_id", "notebook", "env", "user", "host", "ledger_head"), str),
    **dict.fromkeys(("parameters", "settings", "versions"), dict),
    "started_at": moment,
    "template": {"name": str, "sha256": (str, type(None))},
}


def _shape(kind: type[Started], number: int) -> Mapping[str, Any]:
    report = {**dict.fromkeys(("title", "subject"), str), "refused": bool, "finished_at": moment}
    sealed_shape = {
        "started_sha256": str,
        "verdict": frozenset(EXIT_CODES),
        "ended_at": moment,
        "reports": [{**report, "checks": [_CHECKS[number]]}],
        "facts": {},
        "database": {},
        "error": (dict, type(None)),
    }
    return {**_STARTED, **sealed_shape} if kind is Record else _STARTED


def read_run(kind: type[Kind], data: Mapping[str, Any]) -> Kind:
    """Return the Started or the Record that ``data`` holds; raise ValueError, naming each fault. Read-only."""
    number = data.get("format")
    if not isinstance(number, int) or number not in _CHECKS:
        raise ValueError(f"its format is {shown(number)}, known is {_FORMAT}: update abathur_nb")
    if faults := misfits(data, _shape(kind, number)):
        raise ValueError(f"not a record of a run: {'; '.join(faults)}")
    known = {each.name: data[each.name] for each in fields(kind) if each.name in data}
    if kind is Record:
        known["reports"] = tuple(Report.from_dict(report) for report in data["reports"])
    return kind(**known)


def refused_before(settings: Settings, notebook: str) -> tuple[Check, ...]:
    """Return what forbids a notebook before the database is looked into: the path, the file system. Read-only."""
    target, known = examine(settings), notebook_named(notebook)
    if not known.judges_place:
        return (wanted(target, settings),) if target.state in known.refused_at else ()
    location, forbidden = location_checks(settings)
    refused = (target.check,) if target.state in known.refused_at else ()
    return (*refused, *(check for check in location if forbidden and check.failed))


def write_started(
    settings: Settings,
    notebook: str,
    parameters: Mapping[str, object],
    *,
    run_id: str = "",
    template: tuple[str, str] | None = None,
) -> Path:
    """Write down that a run has started, and return its folder in the archive, which is made 0700 if it is missing.

    ``template`` is the name and the SHA-256 of the notebook; by default the one that this package ships by the name,
    which nobody has compared with what runs.
    Raises RefusedError where it can't be written, ConfigurationError where the signing key can't sign: what leaves no
    evidence does not begin.
    """
    signer(settings)
    shipped = shipped_notebook(notebook)
    name, digest = template or (f"{notebook}.ipynb", sha256(shipped) if shipped else None)
    origin = "the notebook that ran" if template else "the package, by the notebook's name"
    archive = settings.archive_dir
    run_id = run_id or new_run_id()
    if not RUN_ID.fullmatch(run_id):
        raise RefusedError(f"{shown(run_id)} is not a run id", "leave it to the runner: unset ABATHUR_RUN_ID")
    started = {
        "format": _FORMAT,
        "run_id": run_id,
        "notebook": notebook,
        "template": {"name": name, "sha256": digest, "from": origin},
        "env": settings.env,
        "parameters": dict(parameters),
        "settings": settings.shown(),
        **person_and_host(),
        "versions": versions_of(),
        "started_at": utc_now(),
    }
    refuse_secrets(settings, {STARTED: sealed(tilde(started))})  # before anything is made
    try:
        _make_archive(archive)
        # A later run proves by its ledger_head that the ledger was not cut off since.
        content = sealed(tilde({**started, "ledger_head": ledger_head(archive)}))
        folder = archive / run_id
        require_no_line(archive, run_id)
        if os.path.lexists(folder / RECORD):
            raise RefusedError(f"run {run_id} is sealed already", f"see {folder}; unset ABATHUR_RUN_ID")
        make_private_directory(folder, owned_as=archive)
        write_durably(folder / STARTED, content)
    except OSError as error:
        with suppress(OSError):
            (archive / run_id).rmdir()  # made, and nothing could be written into it
        raise _unwritable(archive, error) from None
    return folder


def _make_archive(archive: Path) -> None:
    make_private_directory(archive, owned_as=nearest_existing(archive))
    found = os.lstat(archive)
    if not stat.S_ISDIR(found.st_mode):
        raise RefusedError(f"the archive {archive} is not a directory", "archive_dir: name another one")
    if writable_by_others(archive):
        raise RefusedError(
            f"others may write to the archive {archive}, mode {stat.S_IMODE(found.st_mode):04o}",
            f"see what they changed, then: chmod 700 {quote(str(archive))}",
        )


def _unwritable(archive: Path, error: OSError) -> RefusedError:
    cause = os_cause(error, archive)
    remedy = f"{cause.remedy}; or name another archive: ABATHUR_ARCHIVE_DIR"
    if isinstance(error, PermissionError):
        with suppress(OSError):
            owner = as_user(os.stat(nearest_existing(archive)).st_uid)
            remedy = f"run it {owner}, or name another archive: ABATHUR_ARCHIVE_DIR"
    return RefusedError(f"the record of this run cannot be written to {archive}: {cause.observed}", remedy)


def write_record(folder: Path, settings: Settings, verdict: Verdict, **found: Any) -> Record:
    """Seal the record of a run with its verdict, durably, and return it.

    ``found`` are fields of Record. Raises RefusedError where it would hold a secret, or can't be written, ValueError
    where the run's beginning is not as it was written.
    """
    begun = read_regular(folder / STARTED)
    started = read_run(Started, unsealed(begun))
    words = {each.name: getattr(started, each.name) for each in fields(Started)}
    record = Record(**words, started_sha256=sha256(begun), ended_at=utc_now(), verdict=verdict, **found)
    data = tilde(record.to_dict())
    content = sealed(data)
    refuse_secrets(settings, {RECORD: content})
    try:
        write_durably(folder / RECORD, content)
    except OSError as failure:
        raise _unwritable(folder.parent, failure) from None
    return read_run(Record, unsealed(content))


def summary(record: Record) -> str:
    """Return the short text of a record, for people."""
    failed = [f"{check.name}: {check.observed}" for check in record.checks if check.failed]
    error = record.error
    lines = [
        f"{record.verdict.upper()} {record.notebook} of {record.env}, run {record.run_id}",
        f"{record.started_at} to {record.ended_at} UTC, {record.who}",
        f"{counted(len(record.checks), 'check')}, {len(failed)} failed or could not run",
        *failed,
        *([f"broke in cell {error['cell']}: {error['name']}: {error['message']}"] if error else []),
    ]
    return "\n".join(lines)
