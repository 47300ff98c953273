"""Runs of a notebook that are killed at random moments: what they leave may be torn nowhere, and lie nowhere."""

import asyncio
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import nbformat
from patience import HANGING_S

from abathur_nb.evidence.record import EXIT_CODES, Entry, read_archive
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.files import sweep
from faults.experiments import BrokenHarnessError, Experiment, Outcome, Place, initialize

_RUNS = 100
_ATTEMPTS = 50
_TEMPLATE = Path(__file__).parents[2] / "notebooks" / "validate.ipynb"
# Who is struck, and with what; the runner may die without a word, or be asked to end.
_STRIKES = (("runner", signal.SIGKILL), ("kernel", signal.SIGKILL), ("runner", signal.SIGTERM))


class _Run:
    """Hold a run of ``validate`` on a fresh database: by the runner, or, as the control, by plain papermill."""

    def __init__(self, name: str, place: Place) -> None:
        asyncio.run(initialize(place.db))
        self.place = place
        self.output = place.root / "out.ipynb"
        self.before = place.db.read_bytes()
        db_path = ("-p", "db_path", str(place.db))
        command = [sys.executable, "-m", "abathur_nb", "run", "validate", "--env", "development", *db_path]
        if name == "naive":
            papermill = str(Path(sys.executable).with_name("papermill"))
            command = [papermill, "--no-progress-bar", str(_TEMPLATE), str(self.output), *db_path]
        # Papermill leaves the connection file of each kernel that it can't end itself.
        scratch = place.root / "tmp"
        scratch.mkdir()
        pipe, env = subprocess.PIPE, {**os.environ, "TMPDIR": str(scratch)}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        self.began = time.monotonic()

    def kernel(self) -> int | None:
        """Return the process id of the run's kernel, its only child."""
        with suppress(OSError):
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            return int(text.split()[0]) if text.split() else None
        return None

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and all that was printed."""
        told, _ = self.process.communicate(timeout=HANGING_S)
        return self.process.returncode, told


def kills_of_runs(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each strikes one run at a moment drawn from the usual lifetime of one."""
    lifetimes = []
    for n in range(3 if every == 1 else 1):
        run = _Run(name, Place(folder / f"calibrate-{name}-{n}"))
        code, told = run.end()
        if code:
            raise BrokenHarnessError(f"{name}: undisturbed it fails: {told}")
        lifetimes.append(time.monotonic() - run.began)
    lifetime = statistics.median(lifetimes)
    return [partial(_strike, name, lifetime, f"{seed}-{n}") for n in range(0, _RUNS, every)]


def _strike(name: str, lifetime: float, seed: str, folder: Path) -> Outcome:
    """Strike a run; one that has ended before its moment, or has no kernel to be struck, is replaced by another."""
    random = Random(seed)  # noqa: S311 - to be repeatable
    whom, number = random.choice(_STRIKES)
    for attempt in range(_ATTEMPTS):
        moment = random.uniform(0, lifetime)
        run = _Run(name, Place(folder / str(attempt)))
        try:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(moment)
            kernel = run.kernel()
            pid = kernel if whom == "kernel" else run.process.pid
            # Before its kernel lives, papermill has written nothing: a control that is struck then shows nothing.
            if run.process.poll() is not None or pid is None or (name == "naive" and kernel is None):
                continue
            watched = os.pidfd_open(kernel) if kernel else None
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            code, told = run.end()
            harm = _lives(watched) or (_lie(run) if name == "naive" else _harm(run, whom, number, code, told))
        finally:
            run.process.kill()
            run.process.wait()
        sweep(Path("/tmp"))  # noqa: S108 - where a killed runner leaves its sockets, if its own place is too deep
        return Outcome(1, 1, f"{number.name} to the {whom} after {moment:.3f} s: {harm}" if harm else "")
    raise BrokenHarnessError(f"{_ATTEMPTS} of {_ATTEMPTS} ended before they could be struck")


def _lives(watched: int | None) -> str:
    """Wait until a kernel is dead; say so if it is not."""
    if watched is None:
        return ""
    try:
        return "" if select.select([watched], [], [], HANGING_S)[0] else "its kernel lives"
    finally:
        os.close(watched)


def _lie(run: _Run) -> str:
    """Say what is wrong with papermill's output: torn, or silent about a run that did not come to its end."""
    if not run.output.exists():
        return ""
    notebook = _notebook(run.output)
    if notebook is None:
        return "its output is torn"
    unfinished = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count is None]
    return "its output says nothing of it" if unfinished and not notebook.metadata.papermill.exception else ""


def _notebook(path: Path) -> Any:
    try:
        notebook = nbformat.from_dict(json.loads(path.read_bytes()))
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError):
        return None
    return notebook


def _harm(run: _Run, whom: str, number: int, code: int, told: str) -> str:
    if "Traceback" in told and code >= 0:
        return f"a bare traceback: {told}"
    if run.place.db.read_bytes() != run.before:
        return "the database was changed"
    archive = run.place.db.parent / "runs"
    entries = read_archive(archive) if archive.exists() else ()
    if len(entries) > 1:
        return f"{len(entries)} runs where one was begun"
    if entries and not (report := verify_archive(archive)).ok:
        return f"verify finds {report.summary}"
    for entry in entries:
        if harm := _torn(entry):
            return harm
    verdict = entries[0].verdict if entries else "none"
    archived = bool(entries and entries[0].line)
    if code < 0:  # of SIGKILL; or of SIGTERM before Python handles signals, or, with the run archived, after it did
        allowed = {"none", "unsealed", "pass"} if number == signal.SIGKILL else {"pass" if archived else "none"}
        return "" if verdict in allowed else f"killed, and its verdict is {verdict}"
    expected = {"error"} if whom == "kernel" else {"interrupted", "none"}
    if verdict not in expected | {"pass"}:
        return f"its verdict is {verdict}"
    if code != (EXIT_CODES["interrupted"] if verdict == "none" else EXIT_CODES[verdict]):
        return f"its verdict is {verdict}, its exit code {code}: {told}"
    if entries and not archived:
        return f"it ended with {code}, and is not in the ledger: {told}"
    return ""


def _torn(entry: Entry) -> str:
    notebook, page = entry.folder / "notebook.ipynb", entry.folder / "page.html"
    if notebook.exists() and _notebook(notebook) is None:
        return "the archived notebook is torn"
    if page.exists() and not page.read_text().rstrip().endswith("</html>"):
        return "the page is torn"
    top = _notebook(notebook).cells[0].source if entry.line else "**PASS"
    if entry.line and entry.verdict != "pass" and not top.startswith(f"**{entry.verdict.upper()}: "):
        return "the archived notebook does not say at its top what happened"
    return ""
