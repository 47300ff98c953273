"""strace on one thread of a victim: which calls it makes on the database's paths, and a fault at one of them."""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

from faults.initializers import INITIALIZERS
from faults.judge import run_undisturbed, state
from faults.place import Place
from faults.victim import Ending, Victim

__all__ = ["BrokenHarnessError", "Call", "Tracer", "calls_within", "injected_within", "mutating_calls", "strike"]

# Those that change a file or a directory, or open one: its name does not say whether an open creates. `?`: not
# every machine has each of them.
_CALLS = (
    "creat open openat openat2 mkdir mkdirat write writev pwrite64 pwritev pwritev2 truncate ftruncate fallocate fsync "
    "fdatasync sync_file_range rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat rmdir chmod "
    "fchmod fchmodat chown lchown fchown fchownat utimensat copy_file_range sendfile"
)
_TRACED = ",".join(f"?{name}" for name in _CALLS.split())


class BrokenHarnessError(Exception):
    """Report that the experiment itself did not work, so that it proves nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """Name one system call of an initialization: the n-th of its kind on the database's paths in one thread.

    ``again``: of one that finds what a predecessor left that was killed right after it published its database.
    """

    again: bool
    thread: int
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} {self.number} of thread {self.thread}{' of a second run' if self.again else ''}"


class Tracer:
    """Run strace on the very thread that waits at the victim's gate.

    On that one alone, because `when=` counts for each thread anew: with `-f` a fault could not be aimed at the second.
    """

    def __init__(self, thread_id: int, place: Place, fault: str = "", *, everywhere: bool = False) -> None:
        self._log = place.root / "strace"
        # Where the paths are not known beforehand, each call tells them.
        filters = ["-y"] if everywhere else [option for path in place.paths for option in ("-P", str(path))]
        faults = ["-e", f"inject={fault}"] if fault else []
        self._process = subprocess.Popen(
            ["strace", "-p", str(thread_id), "-o", self._log, "-s", "0", "-e", f"trace={_TRACED}", *faults, *filters],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self._stderr: IO[str] = self._process.stderr
        said = []
        for line in self._stderr:
            said.append(line)
            if line.rstrip().endswith("attached"):
                return
        raise BrokenHarnessError(f"strace did not attach: {''.join(said)}")

    def log(self) -> str:
        """Return what was traced, once the thread has ended."""
        with self._process:
            self._stderr.read()
        return self._log.read_text()


def mutating_calls(name: str, folder: Path, *, again: bool = False) -> list[Call]:
    """Trace an initialization that nothing disturbs, once for each of its threads; return its calls in order."""
    calls: list[Call] = []
    for thread in count():
        place = Place(folder / f"traced-{name}-{again}-{thread}")
        ending, log = _traced(name, place, thread, again)
        if not ending.ok or state(place) != "complete":
            raise BrokenHarnessError(f"{name}: undisturbed it fails: {ending.out}{ending.err}")
        if log is None:  # no such thread
            break
        calls += _calls(log, thread, again)
    return calls


def strike(name: str, place: Place, call: Call, effect: str) -> tuple[Ending, bool]:
    """Initialize with a fault (`signal=KILL`, `error=EIO`) at one call; return the end, and whether it struck there."""
    ending, log = _traced(name, place, call.thread, call.again, f"{call.name}:{effect}:when={call.number}")
    if log is None:
        return ending, False
    calls = _calls(log, call.thread, call.again)
    if effect == "signal=KILL":
        return ending, calls[-1:] == [call] and ending.killed and log.endswith("+++ killed by SIGKILL +++\n")
    injected = [call for call, line in zip(calls, _lines(log), strict=True) if line.endswith("(INJECTED)")]
    return ending, injected == [call]


def calls_within(log: str, thread: int, folder: Path) -> list[Call]:
    """Return those calls of a trace of paths that change something in ``folder``, each with its number among all."""
    reads = re.compile(r"\bopen\w*\(.*O_RDONLY(?!.*O_CREAT)")
    pairs = zip(_calls(log, thread, again=False), _lines(log), strict=True)
    return [call for call, line in pairs if str(folder) in line and not reads.search(line)]


def injected_within(log: str, folder: Path) -> bool:
    """Return whether the one fault of a trace struck a call on ``folder``."""
    return [str(folder) in line for line in _lines(log) if line.endswith("(INJECTED)")] == [True]


def _traced(name: str, place: Place, thread: int, again: bool, fault: str = "") -> tuple[Ending, str | None]:
    """Run one initialization, one thread of it traced; return its end and the trace, None without such a thread."""
    if again:
        run_undisturbed(place, "predecessor")
        place.make_leftover()
    victim = Victim(INITIALIZERS[name], place, "first", thread=thread)
    try:
        thread_id = victim.at_gate()
        tracer = Tracer(thread_id, place, fault) if thread_id else None
    except BaseException:
        victim.kill()
        raise
    finally:
        victim.gate.open()
    ending = victim.reap()
    return ending, tracer.log() if tracer else None


def _lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if re.match(r"\w+\(", line)]


def _calls(log: str, thread: int, again: bool) -> list[Call]:
    seen: Counter[str] = Counter()
    calls = []
    for line in _lines(log):
        name = line.partition("(")[0]
        seen[name] += 1
        calls.append(Call(again, thread, name, seen[name]))
    return calls
