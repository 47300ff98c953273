"""Record a run: its start before it accesses the database, and at the end its verdict and what its cells showed."""

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
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from abathur_nb.config.notebooks import notebook_named
from abathur_nb.config.parameters import effective_parameters, notebook_shell
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ChecksFailedError, MisuseError, RefusedError
from abathur_nb.evidence.canonical import canonical, refuse_secrets, sealed, sha256, tilde, unsealed
from abathur_nb.evidence.ledger import RUN_ID, require_no_line
from abathur_nb.evidence.record import FORMAT, RECORD, STARTED, Record, Started, Verdict, read_run, summary
from abathur_nb.evidence.statement import signer
from abathur_nb.files import locked, nearest_existing, os_cause, private_directory, read_regular, write_durably
from abathur_nb.health.path_on_disk import forbids, location_checks, writable_by_others
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import connect, explain_error, pragma
from abathur_nb.store.schema import read_schema
from abathur_nb.store.sql import DATA, normalized
from abathur_nb.store.target import examine, wanted
from abathur_nb.text import printable, shown, user_name, utc_now

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult

MIME = "application/vnd.abathur.run+json"  # MIME type of the record in a notebook's output
# Environment variable that tells the kernel which run it executes: RUN_ID:FLEET:SHA256:NAME of the notebook.
LAUNCH = "ABATHUR_RUN"
# The verdict on a run by the class of the error that a cell raised; any other class gives ``error``.
_BY_ERROR: Mapping[str, Verdict] = {
    "ChecksFailedError": "fail",
    **dict.fromkeys(("RefusedError", "BusyError", "ConfigurationError", "RejectedParametersError"), "refused"),
    **dict.fromkeys(("KeyboardInterrupt", "CancelledError"), "interrupted"),
}
Template = tuple[str, str] | None  # the name and the SHA-256 of a notebook
_PACKAGES = ("abathur_nb", "aiosqlite", "papermill", "nbclient", "ipykernel")
_LONGEST_WAIT = 1000  # ms to wait for a lock when the database's identity is read
LONGEST_MESSAGE = 2000  # characters of an error in a record


def new_run_id() -> str:
    """Return a new run id, which sorts by time: ``20261123T101500123Z-9f3ac1``."""
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
        with suppress(PackageNotFoundError):  # papermill is not needed in JupyterLab
            found[name] = version(name)
    return found


def shipped_notebook(name: str) -> bytes | None:
    """Return the content of the shipped notebook of this name, or None."""
    path = DATA / "notebooks" / f"{name}.ipynb"
    return path.read_bytes() if re.fullmatch(r"[a-z_]+", name) and path.is_file() else None


def database_identity(settings: Settings) -> dict[str, Any] | None:
    """Return the database's file name, size, ids and the hash of its schema, None where it is missing. Read-only.

    ``unread`` says why it can't be read. Follows no link, and waits at most a second for a lock.
    """
    # In a thread, because the calling cell occupies the notebook's event loop.
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(_identity(settings))).result()
    except OSError as error:  # no file descriptor is left for an event loop
        return {"path": settings.db_path.name, "unread": os_cause(error, settings.db_path).observed}


async def _identity(settings: Settings) -> dict[str, Any] | None:
    path = settings.db_path
    try:
        entry = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return {"path": path.name, "unread": f"{path} cannot be accessed: {error.strerror}"}
    found: dict[str, Any] = {"path": path.name, "size": entry.st_size}
    if not stat.S_ISREG(entry.st_mode) or not entry.st_size:
        return found
    try:
        async with connect(path, min(settings.busy_timeout_ms, _LONGEST_WAIT)) as conn:
            ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
            schema = {name: normalized(entry.sql) for name, entry in (await read_schema(conn)).items()}
            return {**found, **ids, "schema_sha256": sha256(canonical(schema))}
    # Names in a schema that was edited by hand may not be text.
    except (sqlite3.Error, OSError, AbathurError, TypeError, ValueError) as error:
        return {**found, "unread": str(explain_error(path, error))}


def refused_before(settings: Settings, notebook: str) -> tuple[Check, ...]:
    """Return the checks of the path and file system that forbid a notebook to run. Read-only."""
    target, known = examine(settings), notebook_named(notebook)
    if not known.judges_place:
        return (wanted(target, settings),) if target.state in known.refused_at else ()
    location = location_checks(settings)
    refused = (target.check,) if target.state in known.refused_at else ()
    return (*refused, *(check for check in location if forbids(location) and check.failed))


def unrecorded(settings: Settings, notebook: str, parameters: Mapping[str, object]) -> str:
    """Return why a run of ``notebook`` is not recorded, or an empty text. Read-only."""
    if forbidden := refused_before(settings, notebook):
        return "; ".join(f"{check.name}: {check.observed}" for check in forbidden)
    data = settings.db_path.parent  # a run that only reads must not create it
    missing = not data.is_dir() and settings.archive_dir.is_relative_to(data)
    looks = missing and notebook_named(notebook).only_looks(parameters)
    return f"{data} is missing, and this run creates nothing" if looks else ""


def write_started(
    settings: Settings,
    notebook: str,
    parameters: Mapping[str, object],
    *,
    run_id: str = "",
    template: Template = None,
    fleet: str = "",
) -> Path:
    """Record the start of a run, and return its folder; creates the folder and the archive, mode 0700.

    ``template`` is the notebook's, by default that of the shipped notebook of this name. Raises RefusedError if the
    start can't be recorded, ConfigurationError if the signing key can't sign.
    """
    signer(settings)
    shipped = shipped_notebook(notebook)
    name, digest = template or (f"{notebook}.ipynb", sha256(shipped) if shipped else None)
    origin = "the notebook that ran" if template else "the package, by the notebook's name"
    archive = settings.archive_dir
    run_id = run_id or new_run_id()
    if not RUN_ID.fullmatch(run_id):
        raise RefusedError(f"{shown(run_id)} is not a run id", f"only the runner sets it: unset {LAUNCH}")
    started = {
        "format": FORMAT,
        "run_id": run_id,
        "notebook": notebook,
        "template": {"name": name, "sha256": digest, "from": origin},
        "env": settings.env,
        "parameters": dict(parameters),
        "settings": settings.shown(),
        **person_and_host(),
        "versions": versions_of(),
        "started_at": utc_now(),
        "fleet": fleet,
    }
    refuse_secrets(settings, {STARTED: sealed(tilde(started))})  # before anything is created
    folder = archive / run_id
    try:
        _make_archive(archive)
        with locked(archive, shared=True):  # a writer whose disk is full takes back what it has appended
            started["ledger_head"], _ = require_no_line(archive, run_id)
        if os.path.lexists(folder / RECORD):
            raise RefusedError(f"run {run_id} is sealed already", f"see {folder}; unset {LAUNCH}")
        with private_directory(folder, owned_as=archive):
            write_durably(folder / STARTED, sealed(tilde(started)))
    except OSError as error:
        raise _unwritable(archive, error) from None
    return folder


def _make_archive(archive: Path) -> None:
    with private_directory(archive, owned_as=nearest_existing(archive)):
        found = os.lstat(archive)
    if not stat.S_ISDIR(found.st_mode):
        raise RefusedError(f"the archive {archive} is not a directory", "set archive_dir to a directory")
    if writable_by_others(archive):
        raise RefusedError(
            f"others may write to the archive {archive}, mode {stat.S_IMODE(found.st_mode):04o}",
            f"see what they changed, then: chmod 700 {quote(str(archive))}",
        )


def _unwritable(archive: Path, error: OSError) -> RefusedError:
    cause = os_cause(error, archive)
    observed = f"the record of this run cannot be written to {archive}: {cause.observed}"
    return RefusedError(observed, f"{cause.remedy}; or name another archive: ABATHUR_ARCHIVE_DIR")


def write_record(folder: Path, settings: Settings, verdict: Verdict, **found: Any) -> Record:
    """Write the sealed record of a run with its verdict, durably, and return it. ``found`` are fields of Record.

    Raises RefusedError if it would hold a secret or can't be written, ValueError if started.json was altered.
    """
    begun = read_regular(folder / STARTED)
    found |= {"started_sha256": sha256(begun), "ended_at": utc_now(), "verdict": verdict}
    content = sealed(tilde(Record(**read_run(Started, unsealed(begun)).to_dict(), **found).to_dict()))
    record = read_run(Record, unsealed(content))  # raises if it could not be read back
    refuse_secrets(settings, {RECORD: content})
    try:
        write_durably(folder / RECORD, content)
    except OSError as failure:
        raise _unwritable(folder.parent, failure) from None
    return record


def start_run(settings: Settings, notebook: str) -> "Run":
    """Record the start of a run of ``notebook``, before it accesses the database, and return the run.

    Creates the archive's directory, mode 0700. Nothing is created or recorded if the path or file system forbids the
    run, or if a run that only reads finds no data directory. In a notebook, what the cells show is added to the record,
    and a cell that raises seals it. Raises RefusedError if the archive can't be written.
    """
    return Run(settings, notebook)


class Run:
    """Hold a run that has started; made by ``start_run``, ended by ``seal``.

    ``folder`` holds the record; it is None if the run is not recorded, and ``reason`` says why.
    """

    def __init__(self, settings: Settings, notebook: str) -> None:
        self.settings = settings
        self.notebook = notebook
        self.folder: Path | None = None
        self.record: Record | None = None
        self._shell = notebook_shell()
        self._results: dict[int, Any] = {}  # by id()
        self._since = utc_now()
        self._before: dict[str, Any] | None = None
        parameters = effective_parameters()
        self.reason = unrecorded(settings, notebook, parameters)
        if self.reason:
            return
        run_id, fleet, digest, name = (*os.environ.pop(LAUNCH, "").split(":", 3), "", "", "")[:4]
        template = (name, digest) if digest else None
        self.folder = write_started(settings, notebook, parameters, run_id=run_id, template=template, fleet=fleet)
        self._before = database_identity(settings)
        if self._shell:
            for watch in [*self._shell.events.callbacks["post_run_cell"]]:
                if isinstance(getattr(watch, "__self__", None), Run):  # an earlier run that was never sealed
                    self._shell.events.unregister("post_run_cell", watch)
            self._shell.events.register("post_run_cell", self._watch)

    def seal(self, *results: Any) -> None:
        """Write the record of this run with its verdict, show it, and end the run. Writes nothing if unrecorded.

        ``results`` are Reports, or objects with a ``report``. What the cells have shown is recorded too.
        """
        if self.record:
            raise MisuseError(f"this run is sealed already, as {self.record.verdict}: run the notebook from its top")
        self._keep(*results)
        reports = self._reports()
        if not any(report.checks for report in reports):
            raise MisuseError("a run without a check proves nothing", "give its report to seal()")
        if stale := [report.title for report in reports if report.finished_at < self._since]:
            remedy = "run the notebook from its top"
            raise MisuseError(f"reports from before this run began: {', '.join(stale)}", remedy)
        verdict: Verdict = "pass"
        if any(not report.ok for report in reports):
            verdict = "refused" if any(report.refused for report in reports) else "fail"
        self._seal(verdict, None)

    def _keep(self, *results: Any) -> None:
        self._results |= {id(one): one for one in results if isinstance(one, Report) or hasattr(one, "to_record")}

    def _reports(self) -> tuple[Report, ...]:
        reports = (getattr(result, "report", result) for result in self._results.values())
        return tuple({id(report): report for report in reports if isinstance(report, Report)}.values())

    def _watch(self, result: "ExecutionResult") -> None:
        """Keep the result of a cell, and seal the run if the cell raised. IPython calls this after each cell."""
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            self._keep(result.result)
            return
        try:
            if isinstance(error, ChecksFailedError) and error.report is not None:
                self.seal(error.report)
            else:
                words = {
                    "cell": result.execution_count,
                    "id": getattr(result.info, "cell_id", None),
                    "name": type(error).__name__,
                    "message": printable(str(error))[:LONGEST_MESSAGE],
                }
                self._seal(verdict_of(*(kind.__name__ for kind in type(error).__mro__)), words)
        except AbathurError as failure:  # raised here, it would hide the cell's own error
            self._show({"text/plain": str(failure)})

    def _seal(self, verdict: Verdict, error: dict[str, Any] | None) -> None:
        if self.folder is None:
            return
        holding = [result.to_record() for result in self._results.values() if hasattr(result, "to_record")]
        facts = {name: fact for found in holding for name, fact in found.items()}
        database = {"before": self._before, "after": database_identity(self.settings)}
        found = {"reports": self._reports(), "facts": facts, "database": database, "error": error}
        try:
            self.record = write_record(self.folder, self.settings, verdict, **found)
        finally:
            if self._shell:
                self._shell.events.unregister("post_run_cell", self._watch)
        text = summary(self.record)
        self._show({MIME: self.record.to_dict(), "text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"})

    def _show(self, bundle: dict[str, Any]) -> None:
        if self._shell:
            from IPython.display import publish_display_data

            publish_display_data(bundle)

    def __str__(self) -> str:
        if self.folder is None:
            return f"not recorded: {self.reason}"
        return f"run {self.folder.name}, recorded in {self.folder.parent}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        html = f"<p><b>{escape(printable(str(self)))}</b></p>{self.settings._repr_html_()}"
        return {"text/html": html, "text/plain": f"{self}\n{self.settings}"}


def verdict_of(*names: str) -> Verdict:
    """Return the verdict on a run whose cell raised an error, by the names of its class and of its bases."""
    return next((_BY_ERROR[name] for name in names if name in _BY_ERROR), "error")
