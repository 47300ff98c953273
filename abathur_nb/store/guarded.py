"""Refuse to use database files that were deleted, renamed or replaced; find processes that have them open."""

import asyncio
import fcntl
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from copy import copy
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple, TypeVar, cast

import aiosqlite

from abathur_nb.errors import BOUND_SQL, MisuseError, RefusedError
from abathur_nb.files import posix_locks
from abathur_nb.report import Check
from abathur_nb.text import process_name

_HARMLESS = ("rollback", "close")  # they write nothing
Identity = tuple[int, int] | None
T = TypeVar("T")
Run = Callable[..., Awaitable[list[sqlite3.Row]]]  # runs a named query
Write = Callable[[], AbstractAsyncContextManager["Connection"]]  # lends the writer
_SUFFIXES = ("", "-wal", "-shm")
_DELETED = " (deleted)"
_LOOKS, _PAUSE_S = 7, 0.03  # several looks: a process that closes the database has its deleted log open for a moment
_UNKNOWN = (0, 0)  # of a file that cannot be examined, as in a directory without access
_open: set["Handle"] = set()


class Handle(sqlite3.Connection):
    """A connection of sqlite3 that closes without a checkpoint after its files were deleted, renamed or replaced."""

    forked = False
    names: tuple[str, ...] = ()  # of the database, its log and the log's index, once they are watched
    files: tuple[Identity, ...] = ()
    lost = ""  # what happened to the files
    keeper: sqlite3.Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, BOUND_SQL)  # also limits the SQL of the schema
        _open.add(self)

    def watch(self, path: Path, *, writes: bool) -> None:
        """Record which files are open; each later use is refused if other files are at ``path``."""
        if writes:
            # A connection that can only read makes no checkpoint and removes no log: closed last, it prevents both.
            self.keeper = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
            self.keeper.execute("PRAGMA schema_version").fetchall()
        names = _names(path)
        # Outside WAL mode, SQLite does not open a log beside the database.
        in_wal_mode = self.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        self.files = _identities(names) if in_wal_mode else (*_identities(names[:1]), None, None)
        if (ours := _descriptors()) and not {*self.files} - {None, _UNKNOWN} <= ours.keys():
            self.lost = "replaced while it was opened"
        self.names = names  # set last: another thread that sees the names also sees the files

    def changed(self) -> str:
        """Return which open files are no longer at the path; once lost, a file stays lost. Read-only."""
        if not self.names or self.lost or (found := _identities(self.names)) == self.files:
            return self.lost
        lost = ", ".join(
            f"{Path(name).name} is {'another file' if now else 'missing'}"
            for name, before, now in zip(self.names, self.files, found, strict=True)
            if before not in (None, now) and now != _UNKNOWN  # None: a database that is not in WAL mode has no log
        )
        for handle in tuple(_open) if lost else ():
            if handle.files == self.files:
                handle.lost = lost
        return lost

    def require_own(self) -> None:
        """Raise MisuseError in a process that was forked since this connection was opened."""
        if self.forked:
            raise MisuseError(
                "the store was opened before this process was forked, and a fork does not inherit SQLite's locks",
                "open a store in each process after its start; with multiprocessing, use the start method spawn",
            )

    def check(self, outcome: str = "nothing was done") -> None:
        """Raise MisuseError in a forked process, RefusedError if other files are at the path. Read-only."""
        self.require_own()
        if self.changed():
            path, pid = self.names[0], os.getpid()
            raise RefusedError(
                f"{path} is no longer the database that PID {pid} has open ({self.lost}); {outcome}",
                "leave this process running; to save its rows, run troubleshoot.ipynb in another; then stop this one",
            )

    def close(self) -> None:
        """Close the connection; if its files have changed, make no checkpoint and keep them open for troubleshoot."""
        if self.forked:
            return
        _open.discard(self)
        lost = self.keeper is not None and self.changed()
        ours = _descriptors() if lost else {}
        # Kept open until this process ends: a log cannot be read without its database.
        kept = [os.dup(ours[file]) for file in self.files if file in ours]
        if lost:
            super().close()
        if self.keeper:
            self.keeper.close()
        super().close()
        for descriptor in kept:
            # SQLite's locks are gone, and troubleshoot ignores a file without a lock, such as a fork's.
            fcntl.lockf(descriptor, fcntl.LOCK_SH, 1)


class Connection(aiosqlite.Connection):
    """Connect to ``uri`` in autocommit mode, and check at each use that its files are those at the path.

    A use raises RefusedError if they are not, and MisuseError in a forked process.
    """

    _connection: Handle | None

    def __init__(self, uri: str) -> None:
        super().__init__(partial(sqlite3.connect, uri, uri=True, isolation_level=None, factory=Handle), 64)
        self._thread.daemon = True  # else a connection that is never closed keeps its process from ending
        self._checked = False  # in this turn of the event loop
        self.lender: Connection | None = None

    @contextmanager
    def lent(self) -> Iterator["Connection"]:
        """Lend this connection for a block, as an object that raises MisuseError after the block."""
        lent = copy(self)
        lent.lender = self
        try:
            yield lent
        finally:
            lent._connection = None  # noqa: SLF001

    @property
    def handle(self) -> Handle:
        """Return the connection of sqlite3; raise MisuseError after the block that lent it, ValueError if closed."""
        if self.lender and self._connection is None:
            raise MisuseError(
                "the block of write() that lent this connection is over",
                "open another block: async with db.write() as conn",
            )
        return cast("Handle", super()._conn)

    _conn = handle  # the name that aiosqlite uses

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle = self.handle
        if self.lender:
            return await self.lender._execute(fn, *args, **kwargs)  # noqa: SLF001
        # A check takes some microseconds, so a write is checked only at its start and end.
        if (handle.keeper and handle.in_transaction) or self._checked or getattr(fn, "__name__", "") in _HARMLESS:
            handle.require_own()
        else:
            handle.check()
            if handle.names and not handle.keeper:
                # The reads of one turn of the event loop share a check.
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
        """Return whether this process was forked since the connection was opened."""
        return self._connection is not None and self._connection.forked

    async def apply(self, work: Callable[[Handle], T]) -> T:
        """Run ``work`` with the sqlite3 connection, in one hop to its thread, and return its result."""
        return await self._execute(work, self.handle)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the connection and end its thread, which a forked process does not have."""
        if self.lender:
            raise MisuseError("a block of write() does not close its connection", "leave the block")
        if self._connection:
            self._connection.require_own()
        await super().close()


def refuse_mixing(path: Path) -> None:
    """Raise MisuseError or RefusedError if this process must not open the database at ``path``. Read-only."""
    # The connections of a process share the log's index: a new connection would read a new log through the old index.
    for handle in tuple(_open):
        if handle.names == _names(path):
            handle.check()


def _names(path: Path) -> tuple[str, ...]:
    return tuple(f"{path}{suffix}" for suffix in _SUFFIXES)


def _identity(name: str | int) -> Identity:
    """Return device and inode of a file, or of a descriptor; None if there is no such file. Read-only."""
    try:
        # Links are not followed: SQLite looks for the log beside the link's target.
        found = os.stat(name, follow_symlinks=isinstance(name, int))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNKNOWN
    return found.st_dev, found.st_ino


def _identities(names: Sequence[str]) -> tuple[Identity, ...]:
    return tuple(map(_identity, names))


def _descriptors() -> dict[Identity, int]:
    """Return one descriptor for each file that this process has open. Read-only; empty if not on Linux."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - a third of the time
    except OSError:
        return {}
    return {_identity(number): number for number in numbers}


def _keep_forever() -> None:
    import ctypes  # imported late, because it takes 3 ms

    # Closing SQLite's connection in the child would wait for locks of threads that the child does not have.
    for handle in _open:
        handle.forked = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


os.register_at_fork(after_in_child=_keep_forever)


class Stray(NamedTuple):
    """Hold a process that has ``lost`` files open: their names, and the /proc paths of all its ``files``."""

    pid: int
    lost: dict[str, str]
    files: dict[str, str]

    def __str__(self) -> str:
        return f"{process_name(self.pid)} has open: {', '.join(self.lost[suffix] for suffix in sorted(self.lost))}"


def strays(path: Path) -> list[Stray]:
    """Return the processes that have a deleted, renamed or replaced file of the database open. Read-only; Linux only.

    Only root sees what the processes of other users have open.
    """
    found = list[Stray]()
    # In a directory that is missing `_stray` finds nothing, and the first reading of /proc/locks takes 10 ms.
    for look in range(_LOOKS if os.path.isdir(path.parent) else 0):
        sleep(_PAUSE_S if look else 0)
        locked = defaultdict[int, set[int]](set)  # by process: a fork inherits the files without the locks
        for lock in posix_locks():
            locked[lock.pid].add(lock.inode)
        pids = {stray.pid for stray in found} if look else locked.keys()
        found = [stray for pid in pids if (stray := _stray(pid, path, locked[pid]))]
        if not found:
            break
    return found


def _stray(pid: int, given: Path, locked: set[int]) -> Stray | None:
    path = Path(os.path.realpath(given.parent), given.name)
    is_named = re.compile(rf"{re.escape(str(path))}(?:(-wal|-shm)[^/]*)?").fullmatch  # matches a renamed log too
    current = dict(zip(_SUFFIXES, _identities(_names(path)), strict=True))
    files, lost, others, inodes = dict[str, str](), dict[str, str](), dict[str, str](), dict[str, int]()
    try:
        device, descriptors = os.stat(path.parent).st_dev, os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except OSError:  # the process is gone or another user's, or the directory is missing
        return None
    for where in (f"/proc/{pid}/fd/{descriptor}" for descriptor in descriptors):
        with suppress(OSError):  # closed meanwhile
            link, at = os.readlink(where), os.stat(where)  # noqa: PTH115 - as text
            plain = link.removesuffix(_DELETED)
            if at.st_dev != device or os.path.dirname(plain) != str(path.parent):  # noqa: PTH120 - text
                continue
            inodes[where] = at.st_ino
            if not (name := is_named(plain)):
                others[plain] = where
                continue
            suffix = name[1] or ""
            if (at.st_dev, at.st_ino) == current[suffix]:
                files.setdefault(suffix, where)
            elif link != f"{path}{suffix}" or not current[suffix]:  # else the process is in another mount namespace
                files[suffix], lost[suffix] = where, link
    if files and "" not in files:  # the database was renamed: its log keeps the old name
        for plain, where in others.items():
            if inodes[where] in locked and f"{plain}-wal" not in others:
                files[""], lost[""] = where, plain
    return Stray(pid, lost, files) if lost and any(inodes[where] in locked for where in files.values()) else None


def strays_check(path: Path) -> Check:
    """Check that no process has a deleted, renamed or replaced file of the database open. Read-only."""
    found = strays(path)
    return Check.that(
        "open_files",
        not found,
        expected="no process has a deleted, renamed or replaced file of this database open",
        observed="; ".join(map(str, found)) or "none",
        remedy="before you end such a process, save the rows that only it holds: run troubleshoot.ipynb, which shows a "
        "plan and names the parameters that carry it out",
    )
