"""Run notebooks for many databases of this host, by commands ``run`` in forked processes."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob, has_magic
from threading import Event, Lock, Timer
from typing import IO, Any

from abathur_nb.evidence.record import WORST
from abathur_nb.runner.execution import Stop
from abathur_nb.runner.processes import Child, ForkServer, fork_server, start
from abathur_nb.text import shown

_COMMAND = "abathur_nb.cli:script"
Result = dict[str, Any]  # what `run --json` prints for one run
_TO_END_S = 60  # for a command whose run has reached its time limit
_LONGEST_S = 10**6  # a timer can't wait for ever
_TO_STOP_S = 9  # for a command that was interrupted: its kernel has 5 s


def worst(results: Iterable[Result]) -> str:
    """Return the worst verdict of some results."""
    return min((result["verdict"] for result in results), key=WORST.index, default="pass")


def databases_of(given: Sequence[str], faults: list[str]) -> list[str]:
    """Return the absolute paths that paths, globs, and with ``-`` the lines of standard input name. Read-only.

    A glob without a file, and a file that is named twice, are added to ``faults``.
    """
    lines = (line for word in given for line in (sys.stdin.read().splitlines() if word == "-" else [word]))
    found, empty, twice = matching(filter(None, lines))
    faults += [f"--each: expected a file that matches {shown(one)}, found none" for one in empty]
    faults += [f"--each: {fault}" for fault in twice]
    if not found and not faults:
        faults.append("--each: expected the path of a database, found none")
    return found


def matching(given: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the absolute paths that paths and globs name, the globs without a file, and which files are named twice.

    Read-only.
    """
    found: dict[str, str] = {}
    empty, twice = list[str](), list[str]()
    for one in given:
        is_glob = has_magic(one) and not os.path.lexists(one)
        paths = sorted(glob(os.path.expanduser(one))) if is_glob else [one]  # noqa: PTH207
        empty += [] if paths else [one]
        for path in (os.path.abspath(os.path.expanduser(path)) for path in paths):
            known = found.setdefault(os.path.realpath(path), path)
            twice += [f"{shown(path)} is the same file as {shown(known)}"] * (known is not path)
    return [*found.values()], empty, twice


@dataclass(frozen=True, eq=False)
class _Process:
    """Hold a process that runs one command for one database after another; it ends with its standard input."""

    words: Sequence[str]
    server: ForkServer
    child: Child
    given: IO[str]
    output: IO[str]
    errors: IO[bytes]

    def close(self) -> None:
        """Let the process end, and wait for that."""
        for file in (self.given, self.output, self.errors):
            with suppress(BrokenPipeError):
                file.close()
        self.child.wait()


_idle: list[_Process] = []
_lock = Lock()


def _process(words: Sequence[str]) -> _Process:
    """Return an idle process of a command, or a new one; end idle ones of other commands, or of a replaced server."""
    server = fork_server()
    with _lock:
        for one in [*_idle]:
            _idle.remove(one)
            if one.words == words and one.server is server and one.child.poll() is None:
                return one
            one.close()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    (given, to), (from_, output) = os.pipe(), os.pipe()
    try:
        files = {"given": given, "output": output, "errors": errors.fileno()}
        child = start(_COMMAND, [*words, "--stream"], {}, **files, server=server)
    finally:
        os.close(given)
        os.close(output)
    return _Process(words, server, child, os.fdopen(to, "w"), os.fdopen(from_, errors="replace"), errors)


def run_one(database: str, words: Sequence[str], *, limit: float, stop: Stop) -> list[Result]:
    """Run the command for a database in a forked process, and return its results, at least one.

    The process is killed if it has not ended 60 s after ``limit``; while it runs, it is among ``stop.running``.
    """
    process = _process(words)
    child, results, late = process.child, list[Result](), Event()

    def kill() -> None:
        late.set()
        child.send_signal(signal.SIGKILL)

    timer = Timer(min(limit + _TO_END_S, _LONGEST_S), kill)
    timer.daemon = True
    timer.start()
    stop.running.add(child)
    try:
        if stop.signals:  # it came before the child could be sent it
            child.send_signal(signal.SIGINT)
        with suppress(BrokenPipeError):
            process.given.write(json.dumps(database) + "\n")
            process.given.flush()
        for line in iter(process.output.readline, "\n"):
            if not line:
                break
            results += [json.loads(line)] if line.startswith("{") else []
        else:
            with _lock:
                _idle.append(process)
            return results
        code = child.wait()
    finally:
        timer.cancel()
        stop.running.discard(child)
    if not results:
        process.errors.seek(0)
        said = process.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        results = [not_run(database, *_ended_by(None if late.is_set() else code, bool(stop.signals), said))]
    process.close()
    return results


def run_all(
    databases: Sequence[str], words: Sequence[str], *, jobs: int, limit: float, stop: Stop
) -> Iterator[list[Result]]:
    """Run a command for each database, ``jobs`` at a time, and yield the results of each as it ends.

    After a signal no command is begun, and those that run are interrupted, and seal their records.
    """

    def one(database: str) -> list[Result]:
        if stop.signals:
            return [not_run(database, "interrupted", "not begun, because a signal asked to stop")]
        return run_one(database, words, limit=limit, stop=stop)

    with interrupting(stop), ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, database) for database in databases]):
            yield done.result()
    end_idle()


def end_idle() -> None:
    """End the processes that wait for a further database."""
    with _lock:
        while _idle:
            _idle.pop().close()


@contextmanager
def interrupting(stop: Stop) -> Iterator[None]:
    """Interrupt the running processes when a signal asks to stop, and kill them 9 s later."""

    def send(number: int = signal.SIGINT) -> None:
        for child in [*stop.running]:
            child.send_signal(number)

    def tell() -> None:
        if len(stop.signals) == 1:
            killing.start()
        send()

    killing = Timer(_TO_STOP_S, send, [signal.SIGKILL])
    killing.daemon = True
    stop.tell = tell
    try:
        yield
    finally:
        stop.tell = bool
        killing.cancel()


def _ended_by(code: int | None, stopped: bool, said: str) -> tuple[str, str]:
    """Return the verdict on a command that printed no result, and the reason."""
    if code is None:
        return "timeout", "the runner did not end within its limit, and was killed"
    if stopped:
        return "interrupted", said or "it was interrupted"
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    return "error", f"the runner {how}: {said}".rstrip(": ")


def not_run(database: str, verdict: str, reason: str) -> Result:
    """Return the result of a database of which there is no run."""
    known = {"database": database, "verdict": verdict, "reason": reason}
    return {
        "run": None,
        "notebook": "",
        "env": "",
        "seconds": None,
        "archived": None,
        "head": "",
        "earlier": False,
    } | known
