"""The database as an application uses it: one writer, a few readers, the sessions and the memories."""

import asyncio
import sqlite3
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from itertools import cycle
from time import monotonic
from typing import Any, Literal

import aiosqlite

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, BusyError, ConfigurationError, InvalidValueError, MisuseError, RefusedError
from abathur_nb.store.connection import connect, explain_error, pragma, run_to_end
from abathur_nb.store.guarded import Connection
from abathur_nb.store.memory import Memory
from abathur_nb.store.schema import Differences, read_schema
from abathur_nb.store.sessions import Sessions
from abathur_nb.store.sql import Parameters, load_queries, plan_apart, tokens, verb
from abathur_nb.store.target import identify, wanted
from abathur_nb.text import did_you_mean, shown

# The open write of this task or of its parent.
_inside: ContextVar[object | None] = ContextVar("_inside", default=None)
# The errors of SQLite and sqlite3 about a value.
_OF_A_VALUE = (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError, OverflowError, UnicodeError)
_CLOSED = "{} is closed: use it inside of `async with Database.open`"
_PATIENCE = 0.02  # seconds between interrupts of statements on a lent connection


class Database:
    """Serve one Abathur database to one event loop; made by ``Database.open``.

    Single reading statements use the readers in turn; writes run one at a time.
    """

    def __init__(self, settings: Settings, writer: Connection, readers: Sequence[Connection]) -> None:
        self.settings = settings
        self.sessions = Sessions(self._query, self._transaction, self.write)
        self.memory = Memory(self._query, self._transaction)
        self._queries = load_queries()
        self._writer = writer
        self._write_lock = asyncio.Lock()
        self._open_write: object | None = None
        self._locked: BusyError | None = None  # raised by the last write, if it found the database locked
        self._readers = cycle(readers)
        self._is_closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["Database"]:
        """Open an existing, valid database and close it at the end.

        Raises BusyError if it stays locked; RefusedError if it is missing, not a SQLite file, another application's, of
        another version, not in WAL mode, not in UTF-8, or if an object of the schema is missing or altered. Runs no
        integrity_check. Warns at the end if the files were removed or replaced meanwhile. Raises ConfigurationError for
        settings without a reader.
        """
        if settings.readers < 1:
            raise ConfigurationError(f"readers: expected at least 1, found {settings.readers}")
        await _require_valid(settings)
        async with AsyncExitStack() as stack:
            # The writer is opened first and so closed last: it is the only connection that checkpoints.
            writer = await _enter(stack, settings, "rw")
            db = cls(settings, writer, [await _enter(stack, settings) for _ in range(settings.readers)])
            try:
                yield db
                try:
                    writer.handle.check("later writes may be missing at the path")
                except RefusedError as lost:  # the block itself has raised no error
                    warnings.warn(str(lost), RuntimeWarning, stacklevel=3)
            finally:
                db._is_closed = True

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """Lend a new query_only connection to this task: for several reads, or a snapshot after ``BEGIN``.

        Opening it takes a millisecond. A statement that still runs at the end of the block is interrupted.
        """
        self._require_open()
        async with AsyncExitStack() as stack:
            # Not a shared reader: a BEGIN, a PRAGMA or a temporary view would affect the next read.
            lent = await _enter(stack, self.settings)
            try:
                yield lent
                lent.handle.check("what was read may be wrong")
            finally:
                if not lent.forked:
                    await run_to_end(_quiet(lent))

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        """Lend the writer inside ``BEGIN IMMEDIATE`` … ``COMMIT``; roll back on an exception or a cancellation.

        A write that is cancelled after its COMMIT is queued still commits. Raises BusyError if another process holds
        the lock longer than ``busy_timeout_ms``, and MisuseError if this task or its parent is writing already, if the
        block ended its transaction, or if the connection is used after the block.
        """
        async with self._transaction() as writer:  # a cancelled BEGIN may still run, and is rolled back
            await self._run(writer, "BEGIN IMMEDIATE")
            with writer.lent() as lent:
                yield lent
            self._require_open()
            writer.handle.check()
            if not writer.in_transaction:
                raise MisuseError("the block ended its transaction by itself: leave COMMIT and ROLLBACK to write()")

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        """Lend the writer to this package, for a transaction that begins with its first change."""
        self._require_open()
        if _inside.get() is self._open_write is not None:
            raise MisuseError("write() is open already, in this task or its parent: use its connection")
        asked, writer = monotonic(), self._writer
        async with self._write_lock:
            self._require_open()  # it may have been closed while this task waited
            # Otherwise the waits of all queued writes for another process's lock would add up.
            if self._locked and monotonic() - asked >= self.settings.busy_timeout_ms / 1000:
                raise BusyError(self._locked.observed, self._locked.remedy)
            self._open_write = object()
            # A previous block may have changed them. At this level, a change outside a transaction begins one.
            handle = writer.handle
            handle.isolation_level, handle.row_factory, handle.text_factory = "IMMEDIATE", sqlite3.Row, str
            _inside.set(self._open_write)
            try:
                yield writer
                if writer.in_transaction:  # else its last statement has committed
                    await self._run(writer, "COMMIT")
                writer.handle.check("the write is not acknowledged but may be stored")
                self._locked = None
            except BaseException as error:
                self._locked = error if isinstance(error, BusyError) else None
                # The rollback waits for the running statement, and does nothing if no transaction is open.
                if not writer.forked:
                    with suppress(ValueError):  # closed meanwhile, which rolls back as well
                        await run_to_end(writer.rollback())
                raise
            finally:
                self._open_write = None

    def _require_open(self) -> None:
        if self._is_closed:
            raise MisuseError(_CLOSED.format(self.settings.db_path))
        self._writer.handle.require_own()

    async def run(self, name: str, parameters: Parameters, writer: Connection | None = None) -> list[sqlite3.Row]:
        """Run the named query on a reader, or on the connection that ``write()`` lent, and return its rows.

        Raises MisuseError for an unknown name, and for a query that writes if no ``writer`` is given.
        """
        return await self._query(name, parameters, writer)

    async def _query(
        self, name: str, parameters: Parameters, writer: Connection | None = None, *, last: bool = False
    ) -> list[sqlite3.Row]:
        """Run a named query as ``run()`` does; ``last`` also commits, in the same call to the writer's thread."""
        if name not in self._queries:
            found = f"no query is named {shown(name)}{did_you_mean(str(name), self._queries)}"
            raise MisuseError(found, "see nb.load_queries(); for other SQL, use db.read()")
        sql = self._queries[name].sql
        try:
            return await self._run(writer or next(self._readers), sql, parameters, last=last)
        except RefusedError:  # SQLite says only that a reader may not write to the file
            if writer is None and verb(tokens(sql)) != "SELECT":
                remedy = f"async with db.write() as conn: await db.run({name!r}, …, conn)"
                raise MisuseError(f"the query {name} writes, and readers only read", remedy) from None
            raise

    async def _run(
        self, conn: Connection, sql: str, parameters: Parameters = (), *, last: bool = False
    ) -> list[sqlite3.Row]:
        try:
            if last:
                return await conn.execute_and_commit(sql, parameters)
            # One hop to the connection's thread; a cursor would take two or three.
            return await conn.execute_fetchall(sql, parameters)  # type: ignore[return-value]
        except (sqlite3.Error, OverflowError, ValueError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> AbathurError:
        """Return the error of this package for an error of SQLite, sqlite3 or aiosqlite."""
        if isinstance(error, _OF_A_VALUE):
            return InvalidValueError(f"{self.settings.db_path} does not accept this value: {error}")
        if isinstance(error, ValueError):  # aiosqlite raises it for a closed connection
            return MisuseError(_CLOSED.format(self.settings.db_path))
        return explain_error(self.settings.db_path, error)

    async def explain_query_plan(self, sql: str, params: Sequence[object] | Mapping[str, object] = ()) -> list[str]:
        """Return the plan of one SELECT as indented lines, without running it. Read-only.

        Raises InvalidValueError for anything but one SELECT that SQLite accepts and plans in time.
        """
        self._require_open()
        self._writer.handle.check()
        try:
            return await plan_apart(self.settings.db_path, self.settings.busy_timeout_ms / 1000, sql, params)
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            # The schema was compared when the store was opened, so the fault is in the statement.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_ERROR:
                raise InvalidValueError(f"SQLite does not accept this SELECT: {error}") from None
            raise self._explained(error) from None

    async def validate_foreign_keys(self) -> list[dict[str, Any]]:
        """Return table, rowid, parent and fkid of each row whose parent is missing. Read-only."""
        async with self.read() as conn:
            return [dict(row) for row in await self._run(conn, "PRAGMA foreign_key_check")]

    async def get_index_usage(self) -> dict[str, Any]:
        """Return the number of indexes made by CREATE INDEX, and the name and table of each. Read-only."""
        rows = await self._run(next(self._readers), load_queries("inspect.sql")["indexes"].sql)
        indexes = [dict(row) for row in rows]
        return {"index_count": len(indexes), "indexes": indexes}


async def _quiet(lent: aiosqlite.Connection) -> None:
    """Interrupt each statement that runs or waits on a connection, and roll back its transaction."""
    rollback = asyncio.ensure_future(lent.rollback())
    while not (await asyncio.wait([rollback], timeout=_PATIENCE))[0]:
        await lent.interrupt()
    with suppress(sqlite3.OperationalError):  # the rollback was interrupted: there was nothing to roll back
        rollback.result()


async def _enter(stack: AsyncExitStack, settings: Settings, mode: Literal["ro", "rw"] = "ro") -> Connection:
    path, busy_ms, synchronous = settings.db_path, settings.busy_timeout_ms, settings.synchronous
    try:
        conn = connect(path, busy_ms, mode=mode, synchronous=synchronous, bounded=False)
        return await stack.enter_async_context(conn)
    except (sqlite3.Error, OSError) as error:
        raise explain_error(path, error) from None


async def _require_valid(settings: Settings) -> None:
    path = settings.db_path
    target = await identify(settings)
    if target.state != "present":
        check = wanted(target, settings)
        raise target.error(check.data.get("error", check.observed), check.remedy)
    try:
        async with connect(path, settings.busy_timeout_ms) as conn:
            mode, encoding = await pragma(conn, "journal_mode"), await pragma(conn, "encoding")
            differences = Differences.between(await read_schema(conn))
    except (sqlite3.Error, OSError, AbathurError) as error:
        raise explain_error(path, error) from None
    harmful = replace(differences, extra=())  # extra objects do no harm; validate reports them
    if mode != "wal":
        fault = f"is in journal mode {mode}, expected wal"
    elif encoding != "UTF-8":  # text would be compared in another order, and a search by prefix would be wrong
        fault = f"is encoded in {encoding}, expected UTF-8"
    elif str(harmful):
        fault = f"does not have the schema of this package: {harmful}"
    else:
        return
    raise RefusedError(f"database {path} {fault}", "run validate.ipynb")
