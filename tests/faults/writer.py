"""A process that writes to a database as fast as it can, and says of each commit that it was acknowledged."""

import mmap
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

from faults.tracing import BrokenHarnessError

__all__ = ["Writer", "torn", "writing"]

_KEYS, _EACH = 400, 10  # rows that are written over in turn, so many a commit, each on a page of its own
_INSERT = """
    INSERT INTO memory_entries (namespace, key, value, memory_type)
    VALUES ('hot:a', :number, json_object('n', 0, 'padding', printf('%.1000c', 'x')), 'semantic')
"""
_UPDATE = """
    UPDATE memory_entries SET value = json_set(value, '$.n', :commit) WHERE namespace = 'hot:a' AND key = :number
"""
_COUNT = "INSERT INTO metrics (metric_name, metric_value) VALUES ('hot', ?)"


def _written(commit: int) -> list[int]:
    """Return the rows that a commit writes over."""
    return [(commit + n * _KEYS // _EACH) % _KEYS for n in range(_EACH)]


class Writer:
    """Tell how many commits were acknowledged, by a number that the process shares."""

    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared

    @property
    def acknowledged(self) -> int:
        """The number of the last commit that returned."""
        return int.from_bytes(self._shared[:8], "little")


@contextmanager
def writing(db: Path) -> Iterator[Writer]:
    """Let a process write to a database during the block; then kill it."""
    with closing(sqlite3.connect(db, isolation_level=None)) as conn:
        conn.execute("BEGIN")
        conn.executemany(_INSERT, ({"number": n} for n in range(_KEYS)))
        conn.execute("COMMIT")
    with mmap.mmap(-1, 8) as shared:
        pid = os.fork()
        if pid == 0:
            # _exit whatever happens: the rest of the parent's stack is not this process's to run.
            try:
                _write(db, shared)
            finally:
                os._exit(70)
        try:
            writer = Writer(shared)
            while not writer.acknowledged:
                if os.waitpid(pid, os.WNOHANG) != (0, 0):
                    raise BrokenHarnessError("the writer died")
            yield writer
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _write(db: Path, shared: mmap.mmap) -> None:
    conn = sqlite3.connect(db, timeout=60, isolation_level=None)
    conn.execute("PRAGMA synchronous = NORMAL")
    for commit in count(1):
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(_UPDATE, ({"commit": commit, "number": number} for number in _written(commit)))
        conn.execute(_COUNT, (commit,))
        conn.execute("COMMIT")
        shared[:8] = commit.to_bytes(8, "little")


def torn(db: Path, acknowledged: int) -> str:
    """Say in what a copy is not one moment of the database that such a process wrote to; empty if it is one."""
    try:
        with closing(sqlite3.connect(db)) as conn:
            ((integrity,),) = conn.execute("PRAGMA integrity_check(1)").fetchall()
            counted = [
                int(n)
                for (n,) in conn.execute("SELECT metric_value FROM metrics WHERE metric_name = 'hot' ORDER BY id")
            ]
            ask = "SELECT CAST(key AS INTEGER), value ->> 'n' FROM memory_entries WHERE namespace = 'hot:a'"
            found = dict(conn.execute(ask).fetchall())
    except sqlite3.Error as error:
        return f"it can't be read: {error}"
    last = len(counted)
    wanted = dict.fromkeys(range(_KEYS), 0)
    for commit in range(1, last + 1):
        wanted |= dict.fromkeys(_written(commit), commit)
    if integrity != "ok":
        return f"integrity_check: {integrity}"
    if counted != list(range(1, last + 1)):
        return f"of {max(counted, default=0)} commits it holds {last}"
    if found != wanted:
        return f"it holds half of a commit: {len(wanted.items() - found.items())} rows are of another moment"
    return "" if last >= acknowledged else f"it lacks {acknowledged - last} commits that were acknowledged before"
