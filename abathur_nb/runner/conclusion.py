"""The conclusion of a run: its record agrees with how its execution ended, its notebook says so, both are archived."""

import os
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError
from abathur_nb.evidence.canonical import unsealed
from abathur_nb.evidence.ledger import require_no_line
from abathur_nb.evidence.notebook import ADDED, cell_id
from abathur_nb.evidence.record import (
    EXIT_CODES,
    RECORD,
    STARTED,
    Record,
    Verdict,
    database_identity,
    read_run,
    summary,
    write_record,
    write_started,
)
from abathur_nb.evidence.run import MIME, RUN_ID, TEMPLATE, unrecorded
from abathur_nb.files import UNFINISHED, in_words, read_regular
from abathur_nb.runner.execution import Ending
from abathur_nb.text import printable

# What the error that a cell raised says of its run; any other is an error of the notebook.
_BY_ERROR: Mapping[str, Verdict] = {
    "ChecksFailedError": "fail",
    **dict.fromkeys(("RefusedError", "BusyError", "ConfigurationError", "RejectedParametersError"), "refused"),
    **dict.fromkeys(("KeyboardInterrupt", "CancelledError"), "interrupted"),
}
_WORDS: Mapping[Verdict, str] = {
    "fail": "a check failed, or could not run",
    "refused": "something forbade it",
    "error": "it broke",
    "timeout": "it was out of time, and was ended",
    "interrupted": "it was interrupted",
}
_ENDED_HERE = "abathur-ended-here"


@dataclass(frozen=True, slots=True)
class Job:
    """Hold what is to be run, and where its record goes. ``parameters`` are the effective ones.

    ``template`` is the name and the SHA-256 of the notebook, None where no file of it is known. ``records`` tells
    whether the notebook starts its record itself.
    """

    name: str
    template: tuple[str, str] | None
    settings: Settings
    parameters: Mapping[str, object]
    run_id: str
    records: bool

    @property
    def folder(self) -> Path:
        """Return where the record of the run is, or is to be."""
        return self.settings.archive_dir / self.run_id


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say what became of a run: the verdict, why, and the file to look at (None where nothing was archived)."""

    verdict: Verdict
    message: str = ""
    archived: Path | None = None

    @property
    def code(self) -> int:
        """Return the exit code of a process that ran it."""
        return EXIT_CODES[self.verdict]


def environment(job: Job) -> dict[str, str]:
    """Return what the kernel of a run is given by its environment."""
    return {RUN_ID: job.run_id, **({TEMPLATE: ":".join(job.template)} if job.template else {})}


def begin(job: Job) -> bytes:
    """Write down that a run has started, for a notebook that does not do so itself, and return what was written.

    Empty where the notebook does, or where nothing may be written. Raises RefusedError where it can't be written.
    """
    if job.records or unrecorded(job.settings, job.name, job.parameters):
        return b""
    return (_started(job) / STARTED).read_bytes()


def _started(job: Job) -> Path:
    return write_started(job.settings, job.name, job.parameters, run_id=job.run_id, template=job.template)


def conclude(
    job: Job,
    ending: Ending,
    notebook: Mapping[str, Any],
    *,
    begun: bytes = b"",
    html: bool = True,
    as_template: bool,
) -> Outcome:
    """Seal the record of a run that has ended, unless its notebook did so rightly, and archive both.

    ``begun`` is what ``begin`` wrote. What can't be written, or must not, makes the run an error and is reported in the
    outcome: nothing is raised.
    """
    try:
        if not (job.folder / STARTED).exists() and (words := _without_record(job, ending)):
            return words
        record = _settled(job, ending, notebook, begun)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run must be reported as no evidence
        return Outcome("error", f"no evidence, its record is not sealed: {in_words(error, job.folder)}")
    # Imported here, and not while the kernel starts: what makes the page takes a while.
    from abathur_nb.evidence.archive import keep
    from abathur_nb.evidence.record import NOTEBOOK, PAGE

    try:
        marked = _marked(notebook, record, ending)
        keep(job.folder, job.settings, marked, html=html, as_template=as_template)
    except Exception as error:  # noqa: BLE001 - and whatever a cell has shown, the page may fail on it
        _withdraw(job, record, error)
        return Outcome("error", f"no evidence, it is not archived: {in_words(error, job.folder)}")
    message = ending.message or str((record.error or {}).get("message", ""))
    return Outcome(record.verdict, message, job.folder / (PAGE if html else NOTEBOOK))


def _withdraw(job: Job, record: Record, error: Exception) -> None:
    """Take back the record of a run that could not be archived, and say so in its place, if that can be written."""
    from abathur_nb.evidence.record import NOTEBOOK, PAGE, STATEMENT

    words = {
        "cell": None,
        "id": None,
        "name": type(error).__name__,
        "message": f"it could not be archived: {in_words(error, job.folder)}",
    }
    archived = True  # where that can't be known, what a line may name stays
    with suppress(AbathurError):
        require_no_line(job.folder.parent, job.run_id)
        archived = False
    if archived or not (job.folder / RECORD).exists():  # the latter because of a secret
        return
    with suppress(AbathurError, OSError, ValueError):
        for name in (STATEMENT, PAGE, NOTEBOOK, RECORD):
            (job.folder / name).unlink(missing_ok=True)
        _sealed_here(job, "error", words, record)


def _without_record(job: Job, ending: Ending) -> Outcome | None:
    """Return what became of a run that has no record and must have none, or None."""
    verdict = _verdict(ending)
    if reason := unrecorded(job.settings, job.name, job.parameters):
        return Outcome(verdict, "; ".join(filter(None, (ending.message, f"not recorded: {reason}"))))
    return Outcome(verdict, ending.message) if job.records and verdict == "refused" else None


def _verdict(ending: Ending) -> Verdict:
    if ending.how == "raised":
        return _BY_ERROR.get(ending.name, "error")
    return {"completed": "pass", "died": "error"}.get(ending.how, ending.how)  # type: ignore[return-value]


def _settled(job: Job, ending: Ending, notebook: Mapping[str, Any], begun: bytes) -> Record:
    """Return the record of a run, sealed here unless the notebook has sealed it in accordance with how it ended."""
    for draft in job.folder.glob(f"{UNFINISHED}*"):  # of a kernel that was killed as it wrote
        with suppress(FileNotFoundError):
            draft.unlink()
    own = (
        read_run(Record, unsealed(read_regular(job.folder / RECORD))) if os.path.lexists(job.folder / RECORD) else None
    )
    if own and _agree(own.verdict, ending):
        return own
    if not (job.folder / STARTED).exists():
        _started(job)
    verdict = _verdict(ending)
    name, message = ending.name, ending.message
    if own is None and verdict in ("pass", "fail", "refused") and read_regular(job.folder / STARTED) != begun:
        verdict, name = "error", name or "UnsealedError"
        message = f"the notebook did not seal its run{f': {message}' if message else ''}"
    cell = {} if ending.cell is None else notebook["cells"][ending.cell]
    error = {"cell": cell.get("execution_count"), "id": cell.get("id"), "name": name, "message": message}
    return _sealed_here(job, verdict, None if verdict == "pass" else error, own)


def _sealed_here(job: Job, verdict: Verdict, error: Mapping[str, Any] | None, own: Record | None) -> Record:
    """Seal the record of a run in its notebook's place, whose own verdict and findings, if it had any, stand in it."""
    more: dict[str, Any] = {"database": {"before": None, "after": database_identity(job.settings)}}
    more |= {key: getattr(own, key) for key in ("reports", "facts", "database")} if own else {}
    more |= {"sealed_by": "runner", "notebook_verdict": own.verdict if own else None}
    return write_record(job.folder, job.settings, verdict, error=error, **more)


def _agree(own: str, ending: Ending) -> bool:
    """Return whether the verdict that a notebook has sealed is in accordance with how its execution ended."""
    if ending.how == "completed":
        return True
    if ending.how == "raised" and own not in ("pass", "fail"):  # the notebook knew the error, and not only its name
        return True
    return own == _verdict(ending)


def _marked(notebook: Mapping[str, Any], record: Record, ending: Ending) -> dict[str, Any]:
    """Return a copy of an executed notebook that says at its top what happened, unless the run passed."""
    marked = deepcopy(dict(notebook))
    marked["metadata"].setdefault("abathur", {}).update(run_id=record.run_id, verdict=record.verdict)
    if record.verdict == "pass":
        return marked
    cells = marked["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    if record.sealed_by and code:  # the notebook itself has shown no record, or another one
        shown = code[-1] if ending.cell is None else cells[ending.cell]
        bundle = {MIME: record.to_dict(), "text/plain": summary(record)}
        shown.setdefault("outputs", []).append({"output_type": "display_data", "data": bundle, "metadata": {}})
    ran = sum(cell["execution_count"] is not None for cell in code)
    where = f"{ran} of {len(code)} code cells were begun."
    if ending.cell is not None:
        count = cells[ending.cell].get("execution_count") or " "
        where = f"It ended at [In [{count}]](#{_ENDED_HERE}); {where}"
        cells.insert(ending.cell, _added(notebook, _ENDED_HERE, f'<a id="{_ENDED_HERE}"></a>**The run ended here.**'))
    error = record.error or {"name": ending.name, "message": ending.message}
    words = printable(f"{error['name']}: {error['message']}").splitlines() if error["name"] else []
    lines = [
        f"**{record.verdict.upper()}: this run did not pass, {_WORDS[record.verdict]}.** {where}",
        "",
        *(f"    {line}" for line in words),  # as code: whatever a message holds is text
        "",
        f"Run `{record.run_id}`; `record.json` beside this notebook says the rest.",
    ]
    cells.insert(0, _added(notebook, ADDED, "\n".join(lines)))
    return marked


def _added(notebook: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {"tags": [ADDED]}, "source": text} | cell_id(notebook, name)
