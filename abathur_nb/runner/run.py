"""The runner: check notebooks before a kernel starts, run them in order within time limits, and archive them."""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from abathur_nb.config.parameters import faults_of_names, read_given, values_for
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.archive import ADDED, Source, cell_id, keep, prepared, read_source
from abathur_nb.evidence.canonical import masked, secret_values, unsealed
from abathur_nb.evidence.ledger import require_no_line
from abathur_nb.evidence.record import EXIT_CODES, NOTEBOOK, PAGE, RECORD, STARTED, VERDICTS, Record, Verdict, read_run
from abathur_nb.evidence.run import (
    LAUNCH,
    database_identity,
    new_run_id,
    refused_before,
    unrecorded,
    verdict_of,
    write_record,
    write_started,
)
from abathur_nb.evidence.statement import signer
from abathur_nb.files import UNFINISHED, in_words, read_regular
from abathur_nb.runner.execution import Ending, execute, signals_noted
from abathur_nb.text import printable, shown

if TYPE_CHECKING:
    from nbclient import NotebookClient

_PATHS = ("db_path", "backup_dir", "archive_dir")
_LONGEST_REASON = 300  # characters, in a line of a log


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
        return {LAUNCH: f"{self.run_id}:{digest}:{name}"}


def command(arguments: argparse.Namespace) -> int:
    """Run the notebooks in order, stop at the first that fails, and return its exit code.

    Raises ConfigurationError with every fault of the arguments, before any notebook starts.
    """
    faults: list[str] = []
    limits = {name: _seconds(name, arguments, faults) for name in ("timeout", "cell_timeout", "start_timeout")}
    work = _checked(arguments, faults)
    with signals_noted() as stop:
        for source, values, settings in work:
            defaults = {name: parameter.default for name, parameter in source.declared.items()}
            job = Job(source.name, source.template, settings, defaults | values)
            if stop.signals:
                _say(f"{job.what}: not begun, because a signal asked to stop")
                return EXIT_CODES["interrupted"]
            if forbidden := refused_before(settings, source.name):
                for check in forbidden:
                    _say(f"{job.what}: {check.observed}: {check.remedy}", aside=True)
                return EXIT_CODES["refused"]
            verdict = _run(job, prepared(source, values), html=not arguments.no_html, stop=stop, **limits)
            if verdict != "pass":
                return EXIT_CODES[verdict]
    return 0


def _seconds(name: str, arguments: argparse.Namespace, faults: list[str]) -> float | None:
    """Return the number of seconds of an option, None if it is not given; an invalid one is added to ``faults``."""
    if (text := getattr(arguments, name)) is None:
        return None
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) and 0 < float(text) < inf:
        return float(text)
    faults.append(f"--{name.replace('_', '-')}: expected a number of seconds above 0, found {shown(text)}")
    return None


def _checked(arguments: argparse.Namespace, faults: list[str]) -> list[tuple[Source, dict[str, Any], Settings]]:
    """Return each notebook with its given values and its settings; raise ConfigurationError with every fault."""
    sources = []
    for name in arguments.notebooks:
        try:
            sources.append(read_source(name))
        except ConfigurationError as error:
            faults += error.faults
    given = read_given(arguments, faults)
    if len(sources) == len(arguments.notebooks):  # otherwise some declared names are unknown
        faults += faults_of_names(given, {name: None for source in sources for name in source.declared})
    work = []
    for source in sources:
        values = values_for(source.declared, given, faults)
        try:
            # The runner needs an environment even if the notebook declares none.
            default = getattr(source.declared.get("env"), "default", "development")
            settings = settings_for(values, next((one.text for one in given if one.name == "env"), default))
            signer(settings)
            secret_values(settings)
            work.append((source, values, settings))
        except ConfigurationError as error:
            faults += error.faults
    try:
        os.getcwd()  # noqa: PTH109 - the kernel starts there
    except OSError as error:
        faults.append(f"the working directory cannot be used: {error.strerror}")
    if faults:
        raise ConfigurationError(list(dict.fromkeys(faults)))
    return work


def settings_for(values: Mapping[str, Any], env: str) -> Settings:
    """Return the settings of a notebook with these values; raise ConfigurationError if they are invalid."""
    return resolve(values.get("env", env), **{name: values[name] for name in _PATHS if name in values})


def _run(job: Job, notebook: Any, *, html: bool, **options: Any) -> Verdict:
    """Execute a prepared notebook, archive it, and print the result; ``options`` are those of `execute`."""
    _say(f"{job.what}: run {job.run_id} begins")
    since = monotonic()
    with ExitStack() as stack:

        def make_client() -> "NotebookClient":
            import nbformat
            from nbclient import NotebookClient
            from tqdm import tqdm

            nonlocal notebook
            notebook = nbformat.from_dict(notebook)
            # None disables the bar where standard error is not a terminal.
            bar = tqdm(total=len(notebook.cells), desc=job.name, unit="cell", leave=False, disable=None)
            stack.enter_context(bar)
            return NotebookClient(notebook, on_cell_start=lambda **_: bar.update())

        ending = execute(make_client, environment=job.environment, **options)
    outcome = conclude(job, ending, notebook, html=html)
    reason = masked(outcome.message, job.settings).partition("\n")[0].rstrip(".")
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
    words = [f"{outcome.verdict.upper()} in {monotonic() - since:.1f} s", reason, f"{outcome.archived or ''}"]
    _say(f"{job.what}: {': '.join(filter(None, words))}")
    return outcome.verdict


def _say(line: str, *, aside: bool = False) -> None:
    """Print a line for a log; a closed stream does not end a run."""
    stream = sys.stderr if aside else sys.stdout
    try:
        stream.write(printable(f"abathur_nb run: {line}") + "\n")
        stream.flush()
    except OSError:
        # Otherwise Python flushes again at exit, fails, and changes the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- the conclusion of a run


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold the verdict on a run, the reason, and the archived file to look at (None if nothing was archived)."""

    verdict: Verdict
    message: str = ""
    archived: Path | None = None


def conclude(job: Job, ending: Ending, notebook: Mapping[str, Any], *, html: bool = True) -> Outcome:
    """Archive a run that has ended, with its notebook; first seal its record, unless the notebook sealed it correctly.

    Raises nothing: if the record or the archive cannot be written, the outcome is an error that says why.
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
    try:
        keep(job.folder, job.settings, _marked(notebook, record, ending), html=html, as_template=job.as_template)
    except Exception as error:  # noqa: BLE001 - also if an output cannot be shown on the page
        words = in_words(error, job.folder)
        _withdraw(job, record, type(error).__name__, f"it could not be archived: {words}")
        return Outcome("error", f"no evidence: not archived: {words}")
    reason = _reason(record.verdict, record.error or _error(ending, notebook), ending.message)
    return Outcome(record.verdict, reason, job.folder / (PAGE if html else NOTEBOOK))


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
        write_started(job.settings, job.name, job.parameters, run_id=job.run_id, template=job.template)
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
