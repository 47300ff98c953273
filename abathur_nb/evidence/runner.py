"""The runner: notebooks run in order, each checked before a kernel starts, limited in time, recorded and archived."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.archive import lapses
from abathur_nb.evidence.arguments import (
    Given,
    faults_of_names,
    read_given,
    read_seconds,
    values_for,
)
from abathur_nb.evidence.conclusion import Job, Outcome, begin, conclude, environment
from abathur_nb.evidence.execution import Around, Stop, execute, signals_noted
from abathur_nb.evidence.identity import new_run_id
from abathur_nb.evidence.keys import signer
from abathur_nb.evidence.privacy import masked, secret_values
from abathur_nb.evidence.record import EXIT_CODES, refused_before
from abathur_nb.evidence.source import Source, prepared, read_source
from abathur_nb.settings import Settings, resolve
from abathur_nb.wording import printable

if TYPE_CHECKING:
    from nbclient import NotebookClient

__all__ = ["command"]

_OUTPUT_S = 60  # for the outputs of a cell that is done to come in
_PATHS = ("db_path", "backup_dir", "archive_dir")
_LONGEST_REASON = 300  # characters, in a line of a log


def command(arguments: argparse.Namespace) -> int:
    """Run the notebooks in order, stop at the first that fails, and return its exit code.

    Raises ConfigurationError with every fault of the arguments, before anything is begun.
    """
    faults: list[str] = []
    timeout = read_seconds("--timeout", arguments.timeout, faults)
    cell_timeout = read_seconds("--cell-timeout", arguments.cell_timeout, faults)
    work = _checked(arguments, faults)
    with signals_noted() as stop:
        for source, values, settings in work:
            if stop.signals:
                _say(f"{source.name} of {settings.env}: not begun, because a signal asked to stop")
                return EXIT_CODES["interrupted"]
            if forbidden := refused_before(settings, source.name):
                for check in forbidden:
                    _say(f"{source.name} of {settings.env}: {check.observed}: {check.remedy}", aside=True)
                return EXIT_CODES["refused"]
            outcome = _run(source, values, settings, (timeout, cell_timeout), stop, not arguments.no_html)
            if outcome.code:
                return outcome.code
    return 0


def _checked(arguments: argparse.Namespace, faults: list[str]) -> list[tuple[Source, dict[str, object], Settings]]:
    """Return each notebook with its given values and its settings; raise ConfigurationError with every fault."""
    sources = []
    for name in arguments.notebooks:
        try:
            sources.append(read_source(name))
        except ConfigurationError as error:
            faults += error.faults
    given = read_given(arguments, faults)
    if len(sources) == len(arguments.notebooks):  # else nobody knows what the others would have declared
        faults += faults_of_names(given, sources)
    work = []
    for source in sources:
        values = values_for(source.declared, given, faults)
        try:
            work.append((source, values, _settings(values, given)))
        except ConfigurationError as error:
            faults += error.faults
    try:
        os.getcwd()  # noqa: PTH109 - the kernel starts there
    except OSError as error:
        faults.append(f"the working directory cannot be used: {error.strerror}")
    if faults:
        raise ConfigurationError(list(dict.fromkeys(faults)))
    return work


def _settings(values: dict[str, object], given: Sequence[Given]) -> Settings:
    """Return the settings that hold for a notebook with these values; raise ConfigurationError if they can't."""
    # Where a notebook declares no environment, it is told to the runner all the same.
    env: Any = values.get("env", next((one.text for one in given if one.name == "env"), "development"))
    paths: dict[str, Any] = {name: values[name] for name in _PATHS if name in values}
    settings = resolve(env, **paths)
    signer(settings)
    secret_values(settings)
    return settings


def _run(
    source: Source,
    values: dict[str, object],
    settings: Settings,
    limits: tuple[float | None, float | None],
    stop: Stop,
    html: bool,
) -> Outcome:
    effective = {name: parameter.default for name, parameter in source.declared.items()} | values
    job = Job(source.name, source.template, settings, effective, new_run_id(), source.records)
    if lapses(settings):
        _say(f"{job.name} of {settings.env}: this run will not be signed, as earlier ones are: set signing_key")
    begun = begin(job)
    _say(f"{job.name} of {settings.env}: run {job.run_id} begins")
    since = monotonic()
    template = {"name": source.template[0], "sha256": source.template[1]}
    executed: list[Any] = []

    def make_client() -> "NotebookClient":
        import nbformat
        from nbclient import NotebookClient

        executed.append(nbformat.from_dict(prepared(source, values, run_id=job.run_id, template=template)))
        return NotebookClient(
            executed[0], force_raise_errors=True, iopub_timeout=_OUTPUT_S, raise_on_iopub_timeout=True
        )

    with _progress(job.name, len(source.notebook["cells"]) + bool(values)) as around:
        ending = execute(
            make_client,
            environment=environment(job),
            timeout=limits[0],
            cell_timeout=limits[1],
            stop=stop,
            around=around,
        )
    notebook = executed[0] if executed else prepared(source, values, run_id=job.run_id, template=template)
    outcome = conclude(job, ending, notebook, begun=begun, html=html, as_template=True)
    reason = masked(outcome.message, settings).partition("\n")[0].rstrip(".")
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
    told = [f"{outcome.verdict.upper()} in {monotonic() - since:.1f} s", reason, f"{outcome.archived or ''}"]
    _say(f"{job.name} of {settings.env}: {': '.join(filter(None, told))}")
    return outcome


@contextmanager
def _progress(name: str, cells: int) -> Iterator[Around | None]:
    """Show on a terminal how many cells are done."""
    if not sys.stderr.isatty():
        yield None
        return
    # Imported here: a log has no use for it.
    from tqdm import tqdm

    with tqdm(total=cells, desc=name, unit="cell", leave=False) as bar:

        @contextmanager
        def around(_cell: Any, _index: int) -> Iterator[None]:
            yield
            bar.update()

        yield around


def _say(line: str, *, aside: bool = False) -> None:
    """Print a line for a log; who reads it may have left, which must not end a run."""
    stream = sys.stderr if aside else sys.stdout
    try:
        stream.write(printable(f"abathur_nb run: {line}") + "\n")
        stream.flush()
    except OSError:
        # Else Python tries once more when it exits, and exits with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
