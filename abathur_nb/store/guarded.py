"""A connection that refuses to lose data: after a fork, or once its files are no longer those at its path."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiosqlite

from abathur_nb.errors import BOUND_SQL, MisuseError, RefusedError
from abathur_nb.store.sql import Parameters

_HARMLESS = ("rollback", "close")  # they write nothing
_FORKED = "the store was opened before this process was forked, and SQLite's locks do not outlive a fork"
_NO_FORK = "open a store in each process after its start; with multiprocessing, use the start method spawn"
Identity = tuple[int, int] | None
T = TypeVar("T")
_UNKNOWN = (0, 0)  # of a file that may not be looked at, such as in a directory without permissions
_open: set["_Handle"] = set()


class _Handle(sqlite3.Connection):
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

    def watch(self, path: Path, patience: float, keep: bool) -> None:
        """Remember which files are open."""
        if keep:
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
        """Return which files at the path are no longer those that are open; empty if none. Final. Read-only."""
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
        kept = self._kept() if lost else []
        if lost:
            super().close()
        if self.keeper:
            self.keeper.close()
        super().close()
        for descriptor in kept:
            # SQLite's locks ended with its connections. Of what bears no lock, troubleshoot thinks a fork inherited it.
            fcntl.lockf(descriptor, fcntl.LOCK_SH, 1)

    def _kept(self) -> list[int]:
        """Hold all files until this process ends, so that troubleshoot can save them: a log needs its database."""
        ours = _descriptors()
        return [os.dup(ours[file]) for file in self.files if file in ours]


class Connection(aiosqlite.Connection):
    """Serve what ``uri`` names, in autocommit mode, as long as that loses no data.

    Every use raises MisuseError in a forked process, and RefusedError once the files at a watched path are others.
    """

    _connection: _Handle | None

    def __init__(self, uri: str, cached_statements: int) -> None:
        given = {"uri": True, "isolation_level": None, "cached_statements": cached_statements, "factory": _Handle}
        super().__init__(partial(sqlite3.connect, uri, **given), 64)
        self._checked = False  # in this turn of the event loop

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle = self._connection
        # Of a transaction that writes the beginning and the end are checked: each check takes several microseconds.
        if (handle is not None and handle.keeper and handle.in_transaction) or self._checked:
            self.require_own()
        else:
            self.check(fn)
            if handle is not None and handle.names and not handle.keeper:
                # The reads of one turn share a check: each look at a file lets the other threads run first.
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

    async def watch(self, path: Path, patience: float, keep: bool) -> None:
        """Refuse from now on once the files at ``path`` are no longer the open ones; ``keep`` if it may write."""
        if self._connection is not None:
            await self._execute(self._connection.watch, path, patience, keep)
            self.check()

    async def apply(self, work: Callable[[sqlite3.Connection], T]) -> T:
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
    names = _names(path)
    for handle in tuple(_open):
        if handle.names == names and handle.forked:
            raise MisuseError(_FORKED, _NO_FORK)
        if handle.names == names and handle.changed():
            raise _split(handle, "nothing was done")


def open_files(path: Path) -> dict[Identity, str]:
    """Return the files that this process has open for the database at ``path``, each with its suffix. Read-only."""
    names = _names(path)
    return {
        file: name.removeprefix(str(path))
        for handle in tuple(_open)
        if handle.names == names
        for file, name in zip(handle.files, names, strict=True)
    }


def _split(handle: _Handle, outcome: str) -> RefusedError:
    return RefusedError(
        f"{handle.names[0]} is no longer the database that PID {os.getpid()} has open ({handle.lost}); {outcome}",
        "leave this process running, run troubleshoot.ipynb in another, which can save its rows, then stop this one",
    )


def _names(path: Path) -> tuple[str, ...]:
    return (f"{path}", f"{path}-wal", f"{path}-shm")


def _identities(names: Sequence[str]) -> tuple[Identity, ...]:
    """Return device and inode of each file: None of what is missing, zeros of what may not be looked at. Read-only."""
    try:
        # Not what a link leads to: SQLite looks for the log beside that.
        return tuple([((found := os.lstat(name)).st_dev, found.st_ino) for name in names])
    except OSError:
        return tuple(map(_identity, names))


def _identity(name: str | int) -> Identity:
    try:
        found = os.fstat(name) if isinstance(name, int) else os.lstat(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNKNOWN
    return found.st_dev, found.st_ino


def _descriptors() -> dict[Identity, int]:
    """Return a descriptor of each file that this process has open. Linux only; else none. Read-only."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - a third of the time
    except OSError:
        return {}
    return {_identity(number): number for number in numbers}


def _keep_forever() -> None:
    import ctypes  # not for each import of this package: 3 ms

    # To close SQLite's connection in the child would wait for locks of threads that it does not have.
    for handle in _open:
        handle.forked = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


os.register_at_fork(after_in_child=_keep_forever)


class Serving(Protocol):
    """Run the named statements of ``sql/queries.sql``; implemented by ``Database``."""

    async def fetch(self, name: str, parameters: Parameters) -> list[sqlite3.Row]:
        """Run a query on a reader and return its rows. Read-only."""

    def write(self) -> AbstractAsyncContextManager[Connection]:
        """Lend the writer inside ``BEGIN IMMEDIATE`` … ``COMMIT``."""

    def changing(self) -> AbstractAsyncContextManager[Connection]:
        """Lend the writer, whose transaction begins with the first change."""

    async def change(
        self, writer: Connection, name: str, parameters: Parameters, *, last: bool = False
    ) -> list[sqlite3.Row]:
        """Run a statement on the lent writer, commit if it is the ``last``, and return its rows."""

    async def change_many(self, writer: Connection, name: str, rows: Iterable[Parameters]) -> None:
        """Run a statement on the lent writer once for each of ``rows``."""
