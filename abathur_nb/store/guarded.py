"""Files that are no longer those at the path: a connection that refuses to use them, and who else has them open."""

import asyncio
import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple, Protocol, TypeVar

import aiosqlite

from abathur_nb.errors import BOUND_SQL, MisuseError, RefusedError
from abathur_nb.files import posix_locks
from abathur_nb.report import Check
from abathur_nb.store.sql import Parameters
from abathur_nb.text import process_name

_HARMLESS = ("rollback", "close")  # they write nothing
_FORKED = "the store was opened before this process was forked, and SQLite's locks do not outlive a fork"
_NO_FORK = "open a store in each process after its start; with multiprocessing, use the start method spawn"
Identity = tuple[int, int] | None
T = TypeVar("T")
_SUFFIXES = ("", "-wal", "-shm")
_DELETED = " (deleted)"
_ASIDE = re.compile(r"/abathur_aside_[^/]+(?=/[^/]+$)")
_LOOKS, _PAUSE_S = 7, 0.03  # the last process to close a database deletes its log a moment before
_UNKNOWN = (0, 0)  # of a file in a directory without permissions
_open: set["Handle"] = set()


class Handle(sqlite3.Connection):
    """Close without a checkpoint once the files are no longer those at the path."""

    forked = False
    names: tuple[str, ...] = ()  # of the database, its log and the log's index, once they are watched
    files: tuple[Identity, ...] = ()
    lost = ""  # what became of them
    keeper: sqlite3.Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, BOUND_SQL)  # of the schema, too, when SQLite parses it
        _open.add(self)

    def watch(self, path: Path, *, patience: float, writes: bool) -> None:
        """Remember which files are open, so that each use is refused once the files at ``path`` are others."""
        if writes:
            # A connection that can only read makes no checkpoint and removes no log: closed last, it prevents both.
            self.keeper = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=patience)
            self.keeper.execute("PRAGMA schema_version").fetchall()
        names = _names(path)
        # Without WAL mode, a log that lies beside the database is not open.
        in_wal_mode = self.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        self.files = _identities(names) if in_wal_mode else (*_identities(names[:1]), None, None)
        if (ours := _descriptors()) and not {*self.files} - {None, _UNKNOWN} <= ours.keys():
            self.lost = "replaced while it was opened"
        self.names = names  # last: another thread may look meanwhile, when the opening is cancelled

    def changed(self) -> str:
        """Return which files at the path are no longer the open ones; empty if none. Final. Read-only."""
        if not self.names or self.lost or (found := _identities(self.names)) == self.files:
            return self.lost
        lost = ", ".join(
            f"{Path(name).name} is {'another file' if now else 'missing'}"
            for name, before, now in zip(self.names, self.files, found, strict=True)
            if before not in (None, now) and now != _UNKNOWN  # None: as of a database that is not in WAL mode
        )
        for handle in tuple(_open) if lost else ():
            if handle.files == self.files:
                handle.lost = lost
        return lost

    def close(self) -> None:
        """Close; without a checkpoint where the files have changed, and so that they can still be saved."""
        if self.forked:
            return
        _open.discard(self)
        lost = self.keeper is not None and self.changed()
        ours = _descriptors() if lost else {}
        # Held until this process ends, so that troubleshoot can save them: a log needs its database.
        kept = [os.dup(ours[file]) for file in self.files if file in ours]
        if lost:
            super().close()
        if self.keeper:
            self.keeper.close()
        super().close()
        for descriptor in kept:
            # SQLite's locks ended with its connections; troubleshoot takes a file without a lock for a fork's.
            fcntl.lockf(descriptor, fcntl.LOCK_SH, 1)


class Connection(aiosqlite.Connection):
    """Serve what ``uri`` names, in autocommit mode, as long as that loses no data.

    Every use raises MisuseError in a forked process, and RefusedError once the files at a watched path are others.
    """

    _connection: Handle | None

    def __init__(self, uri: str, cached_statements: int) -> None:
        given = {"uri": True, "isolation_level": None, "cached_statements": cached_statements, "factory": Handle}
        super().__init__(partial(sqlite3.connect, uri, **given), 64)
        self._checked = False  # in this turn of the event loop

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle = self._connection
        # A check takes several microseconds: a transaction that writes is checked where it begins and ends.
        if (handle is not None and handle.keeper and handle.in_transaction) or self._checked:
            self.require_own()
        else:
            self.check(fn)
            if handle is not None and handle.names and not handle.keeper:
                # The reads of one turn of the loop share a check: each look at a file lets other threads run first.
                self._checked = True
                asyncio.get_running_loop().call_soon(setattr, self, "_checked", False)
        return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]

    async def execute_and_commit(self, sql: str, parameters: Any) -> list[sqlite3.Row]:
        """Run the last statement of a transaction, commit, and return its rows."""

        def both(conn: sqlite3.Connection) -> list[sqlite3.Row]:
            rows = conn.execute(sql, parameters).fetchall()
            conn.execute("COMMIT")
            return rows

        return await self.apply(both)

    @property
    def forked(self) -> bool:
        """Say whether this process was forked since the connection was opened."""
        return self._connection is not None and self._connection.forked

    def require_own(self) -> None:
        """Raise MisuseError in a process that was forked since the connection was opened."""
        if self.forked:
            raise MisuseError(_FORKED, _NO_FORK)

    def check(self, fn: object = None, *, outcome: str = "nothing was done") -> None:
        """Raise MisuseError in a forked process, RefusedError once the watched files are others. Read-only."""
        self.require_own()
        handle = self._connection
        if handle is not None and handle.changed() and getattr(fn, "__name__", "") not in _HARMLESS:
            raise _split(handle, outcome)

    async def apply(self, work: Callable[[Handle], T]) -> T:
        """Return what ``work`` does with SQLite's own connection, in one hop to its thread."""
        return await self._execute(work, self._conn)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the connection and end its thread, which a forked process does not have."""
        self.require_own()
        await super().close()


def refuse_mixing(path: Path) -> None:
    """Raise MisuseError or RefusedError if this process must not open the database at ``path``. Read-only.

    SQLite shares the index of the log among the connections of a process: one more would read the new log by the
    index of the old one.
    """
    for handle in _handles(path):
        if handle.forked:
            raise MisuseError(_FORKED, _NO_FORK)
        if handle.changed():
            raise _split(handle, "nothing was done")


def _handles(path: Path) -> list[Handle]:
    return [handle for handle in tuple(_open) if handle.names == _names(path)]


def _split(handle: Handle, outcome: str) -> RefusedError:
    return RefusedError(
        f"{handle.names[0]} is no longer the database that PID {os.getpid()} has open ({handle.lost}); {outcome}",
        "leave this process running, run troubleshoot.ipynb in another, which can save its rows, then stop this one",
    )


def _names(path: Path) -> tuple[str, ...]:
    return tuple(f"{path}{suffix}" for suffix in _SUFFIXES)


def _identity(name: str | int) -> Identity:
    """Return device and inode of a file, or of an open one by its number; None if missing. Read-only."""
    try:
        # Not what a link leads to: SQLite looks for the log beside that.
        found = os.stat(name, follow_symlinks=isinstance(name, int))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNKNOWN
    return found.st_dev, found.st_ino


def _identities(names: Sequence[str]) -> tuple[Identity, ...]:
    return tuple(map(_identity, names))


def _descriptors() -> dict[Identity, int]:
    """Return a descriptor of each file that this process has open. Linux only; else none. Read-only."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - a third of the time
    except OSError:
        return {}
    return {_identity(number): number for number in numbers}


def _keep_forever() -> None:
    import ctypes  # not for each import of this package: 3 ms

    # Closing SQLite's connection in the child would wait for locks of threads that the child does not have.
    for handle in _open:
        handle.forked = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


os.register_at_fork(after_in_child=_keep_forever)


class Serving(Protocol):
    """Run the named statements of ``sql/queries.sql``; implemented by ``Database``."""

    def write(self, *, at_once: bool = True) -> AbstractAsyncContextManager[Connection]:
        """Lend the writer for one transaction, which begins ``at_once`` or with the first change."""

    async def run(
        self, name: str, parameters: Parameters, writer: Connection | None = None, *, last: bool = False
    ) -> list[sqlite3.Row]:
        """Run a statement on a reader, or on the lent writer, commit if it is the ``last``, and return its rows."""


class Stray(NamedTuple):
    """Name a process, the ``lost`` files of its database, and where /proc shows each of the ``files`` it has open."""

    pid: int
    lost: dict[str, str]
    files: dict[str, str]

    def __str__(self) -> str:
        return f"{process_name(self.pid)} has open: {', '.join(self.lost[suffix] for suffix in sorted(self.lost))}"


def strays(path: Path, *, own: bool = False) -> list[Stray]:
    """Return the processes that have a file of the database open that was deleted or moved. Read-only; Linux only.

    Of all processes, or with ``own`` of this one. What another user has open, root alone sees.
    """
    pids = {lock.pid for lock in posix_locks()}  # a fork inherits the files and not the locks, and writes nothing
    pids &= {os.getpid()} if own else pids
    found = list[Stray]()
    for look in range(_LOOKS if pids else 0):
        sleep(_PAUSE_S if look else 0)
        found = [stray for pid in pids if (stray := _stray(pid, path))]
        pids = {stray.pid for stray in found}
        if not pids:
            break
    return found


def _stray(pid: int, given: Path) -> Stray | None:
    path = Path(os.path.realpath(given.parent), given.name)
    is_named = re.compile(rf"{re.escape(str(path))}(?:(-wal|-shm)[^/]*)?").fullmatch  # renamed in place, too
    current = dict(zip(_SUFFIXES, _identities(_names(given)), strict=True))
    # Where the directory was moved away, this process alone knows by which path it has the files open.
    handles = _handles(given) if pid == os.getpid() else []
    ours = {file: s for handle in handles for file, s in zip(handle.files, _SUFFIXES, strict=True) if file}
    files, lost, inodes = dict[str, str](), dict[str, str](), set[int]()
    try:
        device, descriptors = os.stat(path.parent).st_dev, os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except OSError:  # gone meanwhile, another user's, or no directory of the database
        return None
    for where in (f"/proc/{pid}/fd/{descriptor}" for descriptor in descriptors):
        with suppress(OSError):  # closed meanwhile
            link, at = os.readlink(where), os.stat(where)  # noqa: PTH115 - as text
            found, name = (at.st_dev, at.st_ino), is_named(_ASIDE.sub("", link.removesuffix(_DELETED)))
            if found in ours:
                suffix = ours[found]
            elif name and at.st_dev == device:
                suffix = name[1] or ""
            else:
                continue
            inodes.add(at.st_ino)
            if found == current[suffix]:
                files.setdefault(suffix, where)
            elif link != f"{path}{suffix}" or not current[suffix]:  # else it is of another mount namespace
                files[suffix], lost[suffix] = where, link
    is_used = bool(lost) and any(lock.pid == pid and lock.inode in inodes for lock in posix_locks())
    return Stray(pid, lost, files) if is_used else None


def strays_check(path: Path) -> Check:
    """Check that no process has a deleted or moved file of the database open. Read-only."""
    found = strays(path)
    return Check.that(
        "open_files",
        not found,
        expected="no process has a file of it open that was deleted or moved",
        observed="; ".join(map(str, found)) or "none",
        remedy="before you end any of them, save what it alone holds: run troubleshoot.ipynb, which shows a plan and "
        "names the parameters that carry it out",
    )
