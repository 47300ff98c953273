"""The command ``run``: check every argument, run notebooks in order within time limits, and archive them."""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from itertools import product
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from abathur_nb.config.parameters import Given, faults_of_names, read_given, values_for
from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.archive import Source, prepared, read_source
from abathur_nb.evidence.canonical import masked, secret_values, tilde
from abathur_nb.evidence.ledger import RUN_ID
from abathur_nb.evidence.record import EXIT_CODES, WORST, Entry, begun_at, newest_entries
from abathur_nb.evidence.run import new_run_id, refused_before
from abathur_nb.evidence.statement import signer
from abathur_nb.runner.batch import Result, databases_of, not_run, run_all, worst
from abathur_nb.runner.execution import Ending, Stop, execute, signals_noted
from abathur_nb.runner.processes import DRAWING, fork_server, is_forked
from abathur_nb.runner.run import Job, Outcome, conclude, settings_for
from abathur_nb.text import counted, moment_of, printable, shown, timestamp

if TYPE_CHECKING:
    from nbclient import NotebookClient

_LONGEST_REASON = 300  # characters, in a line of a log
_WORTH_A_SERVER = 3  # notebooks: to start a fork server takes as long as to start two kernels
_CLOCKS = timedelta(days=1)  # the clocks of two hosts differ by less


def command(arguments: argparse.Namespace) -> int:
    """Run the notebooks in order, stop at the first that does not pass, and return its exit code.

    With ``--each`` this is done for each of several databases, and the worst exit code is returned. Raises
    ConfigurationError with every fault of the arguments, before any notebook starts.
    """
    faults: list[str] = []
    limits = {name: _number(name, arguments, faults) for name in ("timeout", "cell_timeout", "start_timeout")}
    jobs = _number("jobs", arguments, faults) or len(os.sched_getaffinity(0))
    if arguments.since is not None and not _begun(arguments.since):
        expected = "a moment, such as 2026-11-30T02:30 in UTC, or the id of a batch"
        faults.append(f"--since: expected {expected}, found {shown(arguments.since)}")
    databases = databases_of(arguments.each, faults) if arguments.each else []
    work = _checked(arguments, databases, faults)
    with signals_noted() as stop:
        if databases:
            return _run_each(arguments, databases, round(jobs), limits["timeout"] or inf, stop)
        if not arguments.stream:
            return _run_in_order(arguments, work, stop=stop, **limits)
        for line in sys.stdin:
            try:
                _run_in_order(arguments, _checked(arguments, [json.loads(line)], faults), stop=stop, **limits)
            except ConfigurationError as error:
                _print(json.dumps(not_run(json.loads(line), "refused", str(error))))
            _print("")  # the results of this database are whole
    return 0


def _run_in_order(
    arguments: argparse.Namespace, work: Sequence[tuple[Source, dict[str, Any], Settings]], **options: Any
) -> int:
    """Run notebooks until one does not pass, and return the exit code of the last."""
    server = fork_server() if is_forked() or len(work) >= _WORTH_A_SERVER else None
    for source, values, settings in work:
        defaults = {name: parameter.default for name, parameter in source.declared.items()}
        fleet = arguments.since if RUN_ID.fullmatch(arguments.since or "") else ""
        job = Job(source.name, source.template, settings, defaults | values, fleet=fleet)
        verdict = _run(job, source, values, arguments, server=server, **options)
        if verdict != "pass":
            return EXIT_CODES[verdict]
    return 0


def _number(name: str, arguments: argparse.Namespace, faults: list[str]) -> float | None:
    """Return the number of an option, None if it is not given; an invalid one is added to ``faults``."""
    if (text := getattr(arguments, name)) is None:
        return None
    pattern, words = (r"[0-9]{1,3}", "processes") if name == "jobs" else (r"[0-9]+(?:\.[0-9]+)?", "seconds")
    if re.fullmatch(pattern, text) and 0 < float(text) < inf:
        return float(text)
    faults.append(f"--{name.replace('_', '-')}: expected a number of {words} above 0, found {shown(text)}")
    return None


def _begun(since: str) -> datetime | None:
    """Return the moment that ``--since`` names, or when the batch began whose id it is; None for other text."""
    if RUN_ID.fullmatch(since):
        return begun_at(since)
    try:
        return moment_of(since)
    except ValueError:
        return None


def _checked(
    arguments: argparse.Namespace, databases: Sequence[str], faults: list[str]
) -> list[tuple[Source, dict[str, Any], Settings]]:
    """Return each notebook with its given values and its settings, for each of the databases, if there are any.

    Raises ConfigurationError with every fault.
    """
    sources = []
    for name in arguments.notebooks:
        try:
            sources.append(read_source(name))
        except ConfigurationError as error:
            faults += error.faults
    given = read_given(arguments, faults)
    if len(sources) == len(arguments.notebooks):  # otherwise some declared names are unknown
        faults += faults_of_names(given, {name: None for source in sources for name in source.declared})
    if databases:
        faults += ["--each: expected no db_path beside it" for one in given if one.name == "db_path"]
        for source in sources:
            if "db_path" not in source.declared:
                faults.append(f"--each: notebook {source.name} has no parameter db_path")
    each = [[Given("db_path", path, "--each")] for path in databases] or [[]]
    env = next((one.text for one in given if one.name == "env"), None)
    work = []
    for source, database in product(sources, each):
        values = values_for(source.declared, [*given, *database], faults)
        try:
            # The runner needs an environment even if the notebook declares none.
            default = getattr(source.declared.get("env"), "default", "development")
            settings = settings_for(values, env or default)
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


def _run(job: Job, source: Source, values: Mapping[str, object], arguments: argparse.Namespace, **options: Any) -> str:
    """Run a notebook, unless it is refused or has been run before, and print the result; return its verdict."""
    began, run_id, outcome, earlier = monotonic(), None, Outcome("refused"), False
    if options["stop"].signals:
        outcome = Outcome("interrupted", "not begun, because a signal asked to stop")
    elif forbidden := refused_before(job.settings, job.name):
        outcome = Outcome("refused", "\n".join(f"{check.observed}: {check.remedy}" for check in forbidden))
    elif entry := arguments.since and _sealed_since(job, arguments.since):
        run_id, earlier, head = entry.run_id, True, entry.line.sha256 if entry.line else ""
        outcome = Outcome(entry.verdict, ", ".join(entry.failed), entry.artifact, head)  # type: ignore[arg-type]
    else:
        run_id = job.run_id
        if not arguments.json:
            _say(f"{job.what}: run {run_id} begins")
        notebook, ending = _executed(prepared(source, values), job, **options)
        outcome = conclude(job, ending, notebook, page=arguments.page or "always")
    result = {
        "run": run_id,
        "notebook": job.name,
        "env": job.settings.env,
        "database": str(job.settings.db_path),
        "verdict": outcome.verdict,
        "reason": masked(outcome.message, job.settings),
        "seconds": round(monotonic() - began, 3),
        "archived": outcome.archived and str(outcome.archived),
        "head": outcome.head,
        "earlier": earlier,
    }
    _tell(result, arguments)
    return outcome.verdict


def _sealed_since(job: Job, since: str) -> Entry | None:
    """Return the newest sealed run of the same notebook, parameters and database since ``since``, if there is one.

    An interrupted run does not count.
    """
    batch, begun, parameters = RUN_ID.fullmatch(since), _begun(since), tilde(dict(job.parameters))
    earliest = timestamp(begun - (_CLOCKS if batch else timedelta())) if begun else ""
    with suppress(RefusedError):  # a ledger that was altered proves nothing
        for entry in newest_entries(job.settings.archive_dir, job.name):
            if not entry.line or entry.line.data["ended_at"] < earliest:
                break
            if (record := entry.sealed) and (not batch or record.fleet == since) and record.verdict != "interrupted":
                same = record.parameters == parameters and record.template["sha256"] == (job.template or ("", ""))[1]
                if same and entry.is_of(job.settings):
                    return entry
    return None


def _executed(notebook: Any, job: Job, **options: Any) -> tuple[Any, Ending]:
    """Execute a prepared notebook; return it and how that ended. ``options`` are those of `execute`."""
    if options["server"] and any("charts" in cell["source"] for cell in notebook["cells"]):
        options["server"].preload(*DRAWING)
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

            class Client(NotebookClient):
                def process_message(self, message: Any, cell: Any, cell_index: int) -> Any:
                    # The progress that a cell prints as one line that moves.
                    if message["msg_type"] == "stream" and "\r" in message["content"]["text"]:
                        bar.set_postfix_str(message["content"]["text"].rpartition("\r")[2].strip())
                    return super().process_message(message, cell, cell_index)

            return Client(notebook, on_cell_start=lambda **_: bar.update())

        ending = execute(make_client, environment=job.environment, **options)
    return notebook, ending


def _run_each(arguments: argparse.Namespace, databases: Sequence[str], jobs: int, limit: float, stop: Stop) -> int:
    """Run the notebooks for each database, and return the exit code of the worst verdict."""
    from tqdm import tqdm

    batch = arguments.since or new_run_id()
    words = ["run", *arguments.notebooks, "--json", "--since", batch, "--page", arguments.page or "failures"]
    for option, given in (("--env", arguments.env), ("-p", arguments.parameters), ("-f", arguments.files)):
        words += [word for one in given for word in (option, *([one] if isinstance(one, str) else one))]
    for name in ("timeout", "cell_timeout", "start_timeout"):
        words += [f"--{name.replace('_', '-')}={value}"] if (value := getattr(arguments, name)) else []
    found: Counter[str] = Counter()
    with tqdm(total=len(databases), unit="database", leave=False, disable=None) as bar:
        for results in run_all(databases, words, jobs=jobs, limit=limit, stop=stop):
            with bar.external_write_mode():
                for result in results:
                    _tell(result, arguments)
            found[worst(results)] += 1
            bar.set_postfix_str(_counts(found), refresh=False)
            bar.update()
    if not arguments.json:
        _say(f"{counted(len(databases), 'database')}: {_counts(found)}; to do what is left: --since {batch}")
    return EXIT_CODES["interrupted" if stop.signals else min(found, key=WORST.index)]


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in WORST if verdict in found)


def _tell(result: Result, arguments: argparse.Namespace) -> None:
    """Print a result as a line for a log, or for programs as JSON."""
    if arguments.json:
        _print(json.dumps(result))
        return
    what = f"{result['notebook']} of {result['env']}" if result["notebook"] else ""
    what = ", ".join(filter(None, (what, result["database"] if arguments.each else "")))
    if result["run"] is None:
        for line in result["reason"].splitlines():
            _say(f"{what}: {line}", aside=True)
        return
    reason = result["reason"].partition("\n")[0].rstrip(".")
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
    took = "earlier" if result["earlier"] else f"in {result['seconds']:.1f} s"
    words = [f"{result['verdict'].upper()} {took}", reason, result["archived"] or ""]
    _say(f"{what}: {': '.join(filter(None, words))}")


def _say(line: str, *, aside: bool = False) -> None:
    """Print a line for a log; a closed stream does not end a run."""
    _print(f"abathur_nb run: {line}", aside=aside)


def _print(line: str, *, aside: bool = False) -> None:
    stream = sys.stderr if aside else sys.stdout
    try:
        stream.write(printable(line) + "\n")
        stream.flush()
    except OSError:
        # Otherwise Python flushes again at exit, fails, and changes the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
