"""The record of a run: written down as started before the database is touched, sealed at the end with the verdict."""

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from abathur_nb.causes import os_cause
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.canonical import sealed, sha256, unsealed
from abathur_nb.evidence.identity import new_run_id, person_and_host, shipped_notebook, versions_of
from abathur_nb.evidence.keys import signer
from abathur_nb.evidence.ledger import RUN_ID, ledger_head, require_no_line
from abathur_nb.evidence.privacy import refuse_secrets, tilde
from abathur_nb.files import make_private_directory, nearest_existing, read_regular, write_durably
from abathur_nb.location import location_checks, writable_by_others
from abathur_nb.notebooks import notebook_named
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.target import examine, wanted
from abathur_nb.wording import as_user, counted, shown, utc_now

__all__ = [
    "EXIT_CODES",
    "NOTEBOOK",
    "PAGE",
    "PDF",
    "RECORD",
    "STARTED",
    "STATEMENT",
    "Verdict",
    "read_started",
    "refused_before",
    "summary",
    "write_record",
    "write_started",
]

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
_FORMAT = 1


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
        raise RefusedError(f"{shown(run_id)} is no run id", "leave it to the runner: unset ABATHUR_RUN_ID")
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
        raise RefusedError(f"the archive {archive} is no directory", "archive_dir: name another one")
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


def read_started(folder: Path) -> dict[str, Any]:
    """Return what was written down when a run started; raise ValueError if it is not as it was written. Read-only."""
    return unsealed(read_regular(folder / STARTED))


def write_record(
    folder: Path,
    settings: Settings,
    verdict: Verdict,
    *,
    reports: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    database: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Seal the record of a run with its verdict, durably, and return it.

    ``reports`` are Reports as plain data, ``facts`` what else was found (plans, percentiles, sizes), ``database``
    its identity before and after, ``error`` the cell that broke the run. Raises RefusedError where it would hold
    a secret, or can't be written.
    """
    record: dict[str, Any] = {
        **read_started(folder),
        "started_sha256": sha256(read_regular(folder / STARTED)),
        "ended_at": utc_now(),
        "verdict": verdict,
        "reports": list(reports),
        "facts": dict(facts or {}),
        "database": dict(database or {}),
        "error": error,
        **more,
    }
    record = tilde(record)
    content = sealed(record)
    refuse_secrets(settings, {RECORD: content})
    try:
        write_durably(folder / RECORD, content)
    except OSError as failure:
        raise _unwritable(folder.parent, failure) from None
    return record


def summary(record: Mapping[str, Any]) -> str:
    """Return the short text of a record, for people."""
    checks = [check for report in record["reports"] for check in report["checks"]]
    failed = [f"{check['name']}: {check['observed']}" for check in checks if check["status"] in ("fail", "error")]
    error = record["error"] or {}
    lines = [
        f"{record['verdict'].upper()} {record['notebook']} of {record['env']}, run {record['run_id']}",
        f"{record['started_at']} to {record['ended_at']} UTC, {record['user']} on {record['host']}",
        f"{counted(len(checks), 'check')}, {len(failed)} failed or could not run",
        *failed,
        *([f"broke in cell {error['cell']}: {error['name']}: {error['message']}"] if error else []),
    ]
    return "\n".join(lines)
