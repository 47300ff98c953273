"""The store as an application uses it: one writer, a few readers, the sessions and the memories."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle
from typing import Any

import aiosqlite

from abathur_nb.connection import connect, explain_error, pragma, run_to_end
from abathur_nb.errors import AbathurError, InvalidValueError, RefusedError
from abathur_nb.memory import Memory
from abathur_nb.plan import read_plan, require_single_select, tree_lines
from abathur_nb.schema import Differences, read_schema
from abathur_nb.sessions import Sessions
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.target import require_present

__all__ = ["Database"]

Parameters = Sequence[object] | Mapping[str, object]
_NONE: tuple[object, ...] = ()
_LENT_MOST = 8  # connections that read() lends at a time; further ones wait


class Database:
    """Serve one Abathur database to one event loop; made by ``Database.open``.

    Single-statement reads go to the next reader in turn; ``read()`` lends a connection of its own. Writes are one
    at a time: ``BEGIN IMMEDIATE``, the work, ``COMMIT``.
    """

    def __init__(
        self,
        settings: Settings,
        writer: aiosqlite.Connection,
        readers: Sequence[aiosqlite.Connection],
        stack: AsyncExitStack,
    ) -> None:
        self.settings = settings
        self.sessions = Sessions(self)
        self.memory = Memory(self)
        self._queries = load_queries()
        self._writer = writer
        self._write_lock = asyncio.Lock()
        self._write_owner: asyncio.Task[Any] | None = None
        self._readers = cycle(readers)
        self._stack = stack  # closes what read() opens
        self._idle: list[aiosqlite.Connection] = []
        self._lendable = asyncio.Semaphore(_LENT_MOST)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["Database"]:
        """Open an existing, valid database and close it at the end.

        Raises RefusedError for what is no SQLite file, another application's, newer, no regular file, not in WAL
        mode, or lacks or alters an object of the schema; BusyError if it stays locked. Runs no integrity_check.
        """
        await _require_valid(settings)
        async with AsyncExitStack() as stack:
            try:
                # The writer is opened first and so closed last: the one connection that checkpoints.
                writer = await stack.enter_async_context(connect(settings.db_path, settings=settings, mode="rw"))
                writer.isolation_level = "IMMEDIATE"  # sqlite3 begins so before a change outside of a transaction
                readers = [await stack.enter_async_context(_reader(settings)) for _ in range(settings.readers)]
            except sqlite3.Error as error:
                raise explain_error(settings.db_path, error) from None
            yield cls(settings, writer, readers, stack)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[aiosqlite.Connection]:
        """Lend a connection, query_only, to this task alone: for several reads, or a snapshot after ``BEGIN``."""
        async with self._lendable:
            try:
                lent = self._idle.pop() if self._idle else await self._stack.enter_async_context(_reader(self.settings))
            except sqlite3.Error as error:
                raise explain_error(self.settings.db_path, error) from None
            try:
                yield lent
            except asyncio.CancelledError:
                await lent.interrupt()  # nobody else waits for this connection's statement
                raise
            finally:
                await run_to_end(lent.rollback())
                self._idle.append(lent)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[aiosqlite.Connection]:
        """Lend the writer inside ``BEGIN IMMEDIATE`` … ``COMMIT``; roll back on an exception or a cancellation.

        A write that is cancelled once its COMMIT is queued commits all the same. Raises BusyError if another
        process holds the lock for longer than ``busy_timeout_ms``, AbathurError if this task is writing already.
        """
        async with self.changing() as writer:
            await self._run(writer, "BEGIN IMMEDIATE")
            yield writer

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[aiosqlite.Connection]:
        """Lend the writer as `write` does, but begin with the first change: one hop to its thread less."""
        if self._write_owner is asyncio.current_task():
            raise AbathurError("this task is inside write() already: end that block first, or use its connection")
        async with self._write_lock:
            self._write_owner = asyncio.current_task()
            try:
                # What begins the transaction stands inside: a cancelled one may still begin, and is rolled back.
                yield self._writer
                await self._run(self._writer, "COMMIT")
            except BaseException:
                # Queued behind whatever the thread still runs, and without effect where nothing is open.
                await run_to_end(self._writer.rollback())
                raise
            finally:
                self._write_owner = None

    async def fetch(self, name: str, parameters: Parameters) -> list[sqlite3.Row]:
        """Run the named query on the next reader in turn and return its rows. Read-only."""
        return await self._run(next(self._readers), self._queries[name].sql, parameters)

    async def change(self, writer: aiosqlite.Connection, name: str, parameters: Parameters) -> list[sqlite3.Row]:
        """Run the named statement on the connection that ``write()`` lent, and return the rows it returns."""
        return await self._run(writer, self._queries[name].sql, parameters)

    async def _run(self, conn: aiosqlite.Connection, sql: str, parameters: Parameters = _NONE) -> list[sqlite3.Row]:
        try:
            # One hop to the connection's thread; a cursor of one's own would take two or three.
            return await conn.execute_fetchall(sql, parameters)  # type: ignore[return-value]
        except (
            sqlite3.ProgrammingError,
            sqlite3.InterfaceError,
            sqlite3.IntegrityError,
            OverflowError,
            UnicodeError,
        ) as error:
            raise InvalidValueError(f"{self.settings.db_path} does not take this: {error}") from None
        except sqlite3.Error as error:
            raise explain_error(self.settings.db_path, error) from None

    async def explain_query_plan(self, sql: str, params: Sequence[object] | Mapping[str, object] = ()) -> list[str]:
        """Return the plan of one SELECT as indented lines. Read-only; the statement itself is not run.

        Raises InvalidValueError for anything but one SELECT.
        """
        require_single_select(sql)
        # A fresh connection without a cache: a cached statement keeps the plan of an index dropped since.
        async with connect(self.settings.db_path, settings=self.settings, cached_statements=0) as conn:
            return tree_lines(await read_plan(partial(self._run, conn), sql, params))

    async def validate_foreign_keys(self) -> list[dict[str, Any]]:
        """Return each row that names a parent which does not exist: table, rowid, parent, fkid. Read-only."""
        async with self.read() as conn:
            return [dict(row) for row in await conn.execute_fetchall("PRAGMA foreign_key_check")]

    async def get_index_usage(self) -> dict[str, Any]:
        """Return how many named indexes there are, and each one's name and table. Read-only."""
        async with self.read() as conn:
            rows = await conn.execute_fetchall(load_queries("inspect.sql")["indexes"].sql)
        indexes = [dict(row) for row in rows]
        return {"index_count": len(indexes), "indexes": indexes}


def _reader(settings: Settings) -> AbstractAsyncContextManager[aiosqlite.Connection]:
    return connect(settings.db_path, settings=settings)


async def _require_valid(settings: Settings) -> None:
    path = settings.db_path
    await require_present(settings)
    try:
        async with connect(path, settings=settings) as conn:
            mode = await pragma(conn, "journal_mode")
            differences = Differences.between(await read_schema(conn))
    except sqlite3.Error as error:
        raise explain_error(path, error) from None
    if mode != "wal":
        raise RefusedError(f"database {path} is in journal mode {mode}, expected wal. Run validate.ipynb")
    # What is extra does no harm to those who read and write the rest; validate reports it.
    harmful = Differences(differences.missing, differences.altered, ())
    if str(harmful):
        raise RefusedError(f"database {path} does not have the schema of this package: {harmful}. Run validate.ipynb")
