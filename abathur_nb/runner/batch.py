"""Run notebooks for many databases of this host: for each a command ``run`` in a process of its own."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from glob import glob, has_magic
from threading import Timer
from typing import Any

from abathur_nb.runner.execution import Stop
from abathur_nb.runner.processes import Child, fork_server, start
from abathur_nb.text import shown

_COMMAND = "abathur_nb.cli:script"
Result = dict[str, Any]  # what `run --json` prints for one run
# From the worst to the best.
WORST = ("unreachable", "altered", "error", "timeout", "interrupted", "fail", "refused", "pass")
_TO_END_S = 60  # for a command whose run has reached its time limit
_TO_STOP_S = 9  # for a command that was interrupted: its kernel has 5 s


def worst(results: Iterable[Result]) -> str:
    """Return the worst verdict of some results."""
    return min((result["verdict"] for result in results), key=WORST.index, default="pass")


def databases_of(given: Sequence[str], faults: list[str]) -> list[str]:
    """Return the absolute paths that paths, globs, and with ``-`` the lines of standard input name. Read-only.

    A glob without a file, and a file that is named twice, are added to ``faults``.
    """
    lines = (line for word in given for line in (sys.stdin.read().splitlines() if word == "-" else [word]))
    found: dict[str, str] = {}
    for line in filter(None, lines):
        is_glob = has_magic(line) and not os.path.lexists(line)
        paths = sorted(glob(os.path.expanduser(line))) if is_glob else [line]  # noqa: PTH207
        if not paths:
            faults.append(f"--each: expected a file that matches {shown(line)}, found none")
        for path in (os.path.abspath(os.path.expanduser(path)) for path in paths):
            known = found.setdefault(os.path.realpath(path), path)
            faults += [f"--each: {shown(path)} is the same file as {shown(known)}"] * (known is not path)
    if not found and not faults:
        faults.append("--each: expected the path of a database, found none")
    return [*found.values()]


def run_one(
    database: str, words: Sequence[str], *, limit: float, stop: Stop, running: set[Child] | None = None
) -> list[Result]:
    """Run the command of one database in a forked process, and return its results, at least one.

    The process is killed if it has not ended 60 s after ``limit``; while it lives, it is among ``running``.
    """
    running = set() if running is None else running
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        files = {"output": output.fileno(), "errors": errors.fileno()}
        child = start(_COMMAND, words, {}, **files, server=fork_server())
        running.add(child)
        if stop.signals:  # it came before the child could be sent it
            child.send_signal(signal.SIGINT)
        code = child.wait(limit + _TO_END_S)
        if code is None:
            child.send_signal(signal.SIGKILL)
            child.wait()
        running.discard(child)
        output.seek(0)
        errors.seek(0)
        results = [json.loads(line) for line in output.read().splitlines() if line.startswith(b"{")]
        if not results:
            said = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            results = [not_run(database, *_ended_by(code, bool(stop.signals), said))]
    return results


def run_all(commands: Mapping[str, Sequence[str]], *, jobs: int, limit: float, stop: Stop) -> Iterator[list[Result]]:
    """Run the commands, each of one database, ``jobs`` at a time, and yield the results of each as it ends.

    After a signal no command is begun, and those that run are interrupted, and seal their records.
    """
    running: set[Child] = set()

    def one(database: str, words: Sequence[str]) -> list[Result]:
        if stop.signals:
            return [not_run(database, "interrupted", "not begun, because a signal asked to stop")]
        return run_one(database, words, limit=limit, stop=stop, running=running)

    with interrupting(stop, running), ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, *item) for item in commands.items()]):
            yield done.result()


@contextmanager
def interrupting(stop: Stop, running: set[Child]) -> Iterator[None]:
    """Interrupt the processes among ``running`` when a signal asks to stop, and kill them 9 s later."""

    def send(number: int = signal.SIGINT) -> None:
        for child in [*running]:
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
    return {"run": None, "database": database, "verdict": verdict, "reason": reason, "archived": None}
