"""A process that does one thing to a database and may be killed at any moment, or struck at one of its calls by strace.

It is forked from a warm parent, since starting Python and importing the package takes ten times as long as the
initialization itself. What it does is what a script of three lines would do: run, print the report as JSON, exit with
0 if the report is ok.
"""

import asyncio
import ctypes
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faults.experiments import BrokenHarnessError, Deed, Place

_PATIENCE = 60  # seconds; a victim takes less than one
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)


class Victim:
    """Hold a forked process that waits at its gate, and what it said when it ended."""

    def __init__(
        self, act: Deed, place: Place, label: str, *, thread: int = 0, gate: "Gate | None" = None, nice: int = 0
    ) -> None:
        self.place, self.label = place, label
        self.gate = gate or Gate()
        self._ready, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # _exit whatever happens: the rest of the parent's stack is not this process's to run.
            try:
                os.close(self._ready)
                os.nice(nice)
                self._live(act, thread, ready)
            finally:
                os._exit(70)
        os.close(ready)
        self._pidfd = os.pidfd_open(self.pid)

    def _live(self, act: Deed, thread: int, ready: int) -> None:
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(self._file(stream), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.umask(0o077)
        _log_events(self.place.events)
        # Where Yama restricts ptrace, only an ancestor may attach, and strace is none.
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
        _pause_thread(thread, lambda: self.gate.wait(ready))
        code = 1
        try:
            result = asyncio.run(act(self.place.db))
            sys.stdout.write(json.dumps(result))
            code = not result["ok"]
            for thread_left in [thread for thread in threading.enumerate()[1:] if not thread.daemon]:
                thread_left.join(_PATIENCE / 2)  # as Python does at its exit, without end
                if thread_left.is_alive():
                    sys.stderr.write(f"would never have exited: {thread_left}")
        except BaseException:  # noqa: BLE001 - what a script would do with it
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _file(self, stream: str) -> Path:
        return self.place.root / f"{self.label}.{stream}"

    def fileno(self) -> int:
        """Return what select takes: readable once the process has ended."""
        return self._pidfd

    def at_gate(self) -> int:
        """Wait until the thread in question is at the gate; return its id, or 0 if there never was such a thread."""
        return int(os.read(self._ready, 20) or b"0")

    def ended_within(self, seconds: float) -> bool:
        """Wait until the process has ended, at most so long; tell whether it has."""
        return bool(select.select([self], [], [], max(0.0, seconds))[0])

    def kill(self) -> None:
        """Send SIGKILL, which is harmless after the end: its number is not given away until it is reaped."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def reap(self) -> "Ending":
        """Wait for the end; kill what hangs, and say so."""
        hung = not self.ended_within(_PATIENCE)
        if hung:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._ready)
        os.close(self._pidfd)
        said = f"hung for {_PATIENCE} s; " * hung + self._file("err").read_text()
        return _ending(os.waitstatus_to_exitcode(status), self._file("out").read_text(), said)


class Gate:
    """Hold back any number of processes until it opens, for all of them at once: a pipe that reads as ended."""

    def __init__(self) -> None:
        self._inside, self._outside = os.pipe()

    def wait(self, ready: int) -> None:
        """Wait in a victim, having told the parent which thread does so."""
        os.close(self._outside)  # else this very process would keep it shut
        os.write(ready, str(threading.get_native_id()).encode())
        os.read(self._inside, 1)

    def open(self) -> float:
        """Release all; return the moment."""
        os.close(self._outside)
        os.close(self._inside)
        return time.monotonic()


class Ending(NamedTuple):
    """Hold how a process ended: whether by SIGKILL, its report, and what is wrong with the way in which it answered.

    ``ok`` says that it claims success, ``created`` that it says it made the database, rather than found one.
    """

    killed: bool
    report: dict[str, Any]
    ok: bool
    created: bool
    fault: str


def _ending(code: int, out: str, err: str) -> Ending:
    try:
        # On a slow machine a progress bar stands before it.
        report: dict[str, Any] = json.loads(out.rpartition("\n")[2])
    except ValueError:
        report = {}
    checks, ok, fault = report.get("checks", []), bool(report.get("ok")), ""
    if err:
        fault = f"wrote to stderr: {err.strip().splitlines()[-1][:200]}"
    elif not report:
        fault = f"no report, exit code {code}"
    elif code != (not ok):
        fault = f"exit code {code} with ok = {ok}"
    elif not ok and not any(check["status"] in ("fail", "error") for check in checks):
        fault = "not ok, but no check says why"
    ok &= code == 0
    created = ok and any(check["name"] == "2.1 database file" for check in checks)
    return Ending(code == -signal.SIGKILL, report, ok, created, fault)


def _pause_thread(number: int, pause: Callable[[], None]) -> None:
    """Call ``pause`` at the start of the n-th thread, or now if it is the main thread (0)."""
    if number == 0:
        pause()
        return
    started, run = itertools.count(1), threading.Thread.run

    def paused_run(self: threading.Thread) -> None:
        if next(started) == number:
            pause()
        run(self)

    threading.Thread.run = paused_run  # type: ignore[method-assign]


def _log_events(path: Path) -> None:
    """Note each directory made, name linked and fsync done without error: the evidence that a success is durable."""
    log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def noted(name: str, subject: Callable[..., object]) -> None:
        function = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            os.write(log, f"{name} {subject(*args)}\n".encode())
            return result

        setattr(os, name, call)

    noted("mkdir", lambda path, *_: path)
    noted("link", lambda _, path, *__: path)
    noted("fsync", lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())


def run_undisturbed(act: Deed, place: Place, label: str) -> Ending:
    victim = Victim(act, place, label)
    victim.at_gate()
    victim.gate.open()
    return victim.reap()


# --- strace on one thread of a victim

# Those that change a file or a directory, or open one: its name does not say whether an open creates. `?`: not
# every machine has each of them.
_CALLS = (
    "creat open openat openat2 mkdir mkdirat write writev pwrite64 pwritev pwritev2 truncate ftruncate fallocate fsync "
    "fdatasync sync_file_range rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat rmdir chmod "
    "fchmod fchmodat chown lchown fchown fchownat utimensat copy_file_range sendfile"
)
_TRACED = ",".join(f"?{name}" for name in _CALLS.split())


class Call(NamedTuple):
    """Name one system call: the n-th of its kind in one thread."""

    thread: int
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} {self.number} of thread {self.thread}"


def traced(act: Deed, place: Place, thread: int, fault: str = "") -> tuple[Ending, str | None]:
    """Run one victim, one thread of it traced; return its end and the trace, None without such a thread.

    On that one alone, because `when=` counts for each thread anew: with `-f` a fault could not be aimed at the second.
    """
    victim, log = Victim(act, place, "traced", thread=thread), place.root / "strace"
    strace = None
    try:
        if thread_id := victim.at_gate():
            command = ["strace", "-y", "-p", str(thread_id), "-o", str(log), "-s", "0", "-e", f"trace={_TRACED}"]
            command += ["-e", f"inject={fault}"] if fault else []
            strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            _attached(strace)
    except BaseException:
        victim.kill()
        raise
    finally:
        victim.gate.open()
    ending = victim.reap()
    if strace is None:
        return ending, None
    strace.communicate()
    return ending, log.read_text()


def _attached(strace: subprocess.Popen[str]) -> None:
    assert strace.stderr is not None
    said = ""
    while not said.rstrip().endswith("attached"):
        if not (line := strace.stderr.readline()):
            raise BrokenHarnessError(f"strace did not attach: {said}")
        said += line


def calls_within(log: str, thread: int, folder: Path) -> list[Call]:
    """Return those calls of a trace of paths that change something in ``folder``, each with its number among all."""
    reads = re.compile(r"\bopen\w*\(.*O_RDONLY(?!.*O_CREAT)")
    seen, calls = Counter[str](), []
    for line in _lines(log):
        name = line.partition("(")[0]
        seen[name] += 1
        if str(folder) in line and not reads.search(line):
            calls.append(Call(thread, name, seen[name]))
    return calls


def injected_within(log: str, folder: Path) -> bool:
    """Return whether the one fault of a trace struck a call on ``folder``."""
    return [str(folder) in line for line in _lines(log) if line.endswith("(INJECTED)")] == [True]


def _lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if re.match(r"\w+\(", line)]
