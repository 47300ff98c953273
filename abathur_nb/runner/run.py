"""One run of a notebook: what it is, and how it is concluded: sealed, and archived."""

import os
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import AbathurError
from abathur_nb.evidence.archive import ADDED, cell_id, keep
from abathur_nb.evidence.canonical import unsealed
from abathur_nb.evidence.ledger import require_no_line
from abathur_nb.evidence.record import NOTEBOOK, PAGE, RECORD, STARTED, VERDICTS, Record, Verdict, read_run
from abathur_nb.evidence.run import (
    LAUNCH,
    database_identity,
    new_run_id,
    unrecorded,
    verdict_of,
    write_record,
    write_started,
)
from abathur_nb.files import UNFINISHED, in_words, read_regular
from abathur_nb.runner.execution import Ending
from abathur_nb.text import printable

if TYPE_CHECKING:
    pass

_PATHS = ("db_path", "backup_dir", "archive_dir")


@dataclass(frozen=True, slots=True)
class Job:
    """Hold one run of a notebook, with its effective ``parameters``.

    ``template`` is the name and the SHA-256 of the notebook's file, None if no file is known; ``as_template`` says
    whether the executed cells are those of the file.
    """

    name: str
    template: tuple[str, str] | None
    settings: Settings
    parameters: Mapping[str, object]
    as_template: bool = True
    fleet: str = ""
    run_id: str = field(default_factory=new_run_id)

    @property
    def what(self) -> str:
        """Return the name of the run in a log."""
        return f"{self.name} of {self.settings.env}"

    @property
    def folder(self) -> Path:
        """Return the folder for the record of the run."""
        return self.settings.archive_dir / self.run_id

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variable that tells the kernel which run it executes."""
        name, digest = self.template or ("", "")
        return {LAUNCH: f"{self.run_id}:{self.fleet}:{digest}:{name}"}


def settings_for(values: Mapping[str, Any], env: str) -> Settings:
    """Return the settings of a notebook with these values; raise ConfigurationError if they are invalid."""
    return resolve(values.get("env", env), **{name: values[name] for name in _PATHS if name in values})


# --- the conclusion of a run


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold the verdict on a run, the reason, the archived file to look at, and the hash of its line in the ledger.

    The last two are None and an empty text if nothing was archived.
    """

    verdict: Verdict
    message: str = ""
    archived: Path | None = None
    head: str = ""


def conclude(job: Job, ending: Ending, notebook: Mapping[str, Any], *, page: str = "always") -> Outcome:
    """Archive a run that has ended, with its notebook; first seal its record, unless the notebook sealed it correctly.

    ``page`` says when to make a page: ``always``, at ``failures`` or ``never``. Raises nothing: if the record or the
    archive cannot be written, the outcome is an error that says why.
    """
    try:
        if not (job.folder / STARTED).exists():
            verdict = _verdict(ending)
            if reason := unrecorded(job.settings, job.name, job.parameters):
                why = _reason(verdict, _error(ending, notebook), ending.message)
                return Outcome(verdict, "; ".join(filter(None, (why, f"not recorded: {reason}"))))
            if verdict == "refused":
                return Outcome(verdict, ending.message)
        record = _settled(job, ending, notebook)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run must be reported as an error
        return Outcome("error", f"no evidence: record not sealed: {in_words(error, job.folder)}")
    html = page == "always" or (page == "failures" and record.verdict != "pass")
    try:
        head = keep(job.folder, job.settings, _marked(notebook, record, ending), html=html, as_template=job.as_template)
    except Exception as error:  # noqa: BLE001 - also if an output cannot be shown on the page
        words = in_words(error, job.folder)
        _withdraw(job, record, type(error).__name__, f"it could not be archived: {words}")
        return Outcome("error", f"no evidence: not archived: {words}")
    reason = _reason(record.verdict, record.error or _error(ending, notebook), ending.message)
    return Outcome(record.verdict, reason, job.folder / (PAGE if html else NOTEBOOK), head)


def _error(ending: Ending, notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error that ended an execution, as a record has it."""
    cell = {} if ending.cell is None else notebook["cells"][ending.cell]
    return {"cell": cell.get("execution_count"), "id": cell.get("id"), "name": ending.name, "message": ending.message}


def _reason(verdict: Verdict, error: Mapping[str, Any], message: str) -> str:
    """Return why a run ended as it did; if it broke, in which cell and by which error."""
    message = message or error["message"]
    if verdict in ("pass", "fail", "refused"):
        return message
    where = f"In [{error['cell']}]" if error.get("cell") else ""
    return ": ".join(filter(None, (where, error["name"], message)))


def _withdraw(job: Job, record: Record, name: str, message: str) -> None:
    """Replace the record of a run that could not be archived by one that says so, if that can be written."""
    with suppress(AbathurError, OSError, ValueError):
        require_no_line(job.folder.parent, job.run_id)  # raises, and the files stay, if the run is or may be archived
        if (job.folder / RECORD).exists():  # it is missing if it was removed, because a file would hold a secret
            for file in job.folder.iterdir():
                if file.name != STARTED:
                    file.unlink()
            _sealed_here(job, "error", {"cell": None, "id": None, "name": name, "message": message}, record)


def _verdict(ending: Ending) -> Verdict:
    if ending.how == "raised":
        return verdict_of(ending.name)
    return {"completed": "pass", "died": "error"}.get(ending.how, ending.how)  # type: ignore[return-value]


def _settled(job: Job, ending: Ending, notebook: Mapping[str, Any]) -> Record:
    """Return the notebook's own record if it agrees with how the run ended, else one that is sealed here."""
    for draft in job.folder.glob(f"{UNFINISHED}*"):  # left by a kernel that was killed while it wrote
        draft.unlink(missing_ok=True)
    own, verdict, name, message = None, _verdict(ending), ending.name, ending.message
    if os.path.lexists(job.folder / RECORD):
        own = read_run(Record, unsealed(read_regular(job.folder / RECORD)))
        # The notebook saw the error that the cell raised; here only its name is known.
        knew = ending.how == "raised" and own.verdict not in ("pass", "fail")
        if ending.how == "completed" or knew or own.verdict == verdict:
            return own
    elif verdict in ("pass", "fail", "refused"):
        message = f"the notebook did not seal its run{f': {message}' if message else ''}"
        verdict, name = "error", name or "UnsealedError"
    if not (job.folder / STARTED).exists():
        write_started(job.settings, job.name, job.parameters, run_id=job.run_id, template=job.template, fleet=job.fleet)
    return _sealed_here(job, verdict, _error(ending, notebook) | {"name": name, "message": message}, own)


def _sealed_here(job: Job, verdict: Verdict, error: Mapping[str, Any], own: Record | None) -> Record:
    """Seal the record in place of the notebook, with the verdict and the findings that the notebook had recorded."""
    found: dict[str, Any] = {"database": {"before": None, "after": database_identity(job.settings)}}
    if own:
        found = {"reports": own.reports, "facts": own.facts, "database": own.database, "notebook_verdict": own.verdict}
    return write_record(job.folder, job.settings, verdict, error=error, sealed_by="runner", **found)


def _marked(notebook: Mapping[str, Any], record: Record, ending: Ending) -> dict[str, Any]:
    """Return a copy of an executed notebook; unless the run passed, its first cell says what happened."""
    marked = deepcopy(dict(notebook))
    marked["metadata"].setdefault("abathur", {}).update(run_id=record.run_id, verdict=record.verdict)
    if record.verdict == "pass":
        return marked

    cells = marked["cells"]
    where = f" It ended at In [{cells[ending.cell].get('execution_count') or ' '}]." if ending.cell is not None else ""
    error = record.error or _error(ending, notebook)
    words = printable(f"{error['name']}: {error['message']}").splitlines() if error["name"] else []
    lines = [
        f"**{record.verdict.upper()}: this run did not pass ({VERDICTS[record.verdict][1]}).**{where}",
        "",
        *(f"    {line}" for line in words),  # as code, so that Markdown in a message has no effect
        "",
        f"Run `{record.run_id}`; see `record.json` beside this notebook for details.",
    ]
    added = {"cell_type": "markdown", "metadata": {"tags": [ADDED]}, "source": "\n".join(lines)}
    cells.insert(0, added | cell_id(notebook, ADDED))
    return marked
