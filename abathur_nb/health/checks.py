"""Validate: whether a database is sound, is ours, and holds what it must (the runbook's sections 2.7 and 4)."""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, bound_reached
from abathur_nb.health.objects import OTHERS, indexes_check, others_check, seeds_check, sequences_check, tables_check
from abathur_nb.health.path_on_disk import FILE_MODES, file_modes, file_names, log_check, wal_size
from abathur_nb.health.rows import NAMED, named_row, names_check, row_checks, sizes_check
from abathur_nb.report import Check, run_check
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import connect, connection_pragmas, pragma, read_pragmas
from abathur_nb.store.guarded import Connection, strays_check
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION, SchemaObject, expected_tables, quoted, read_schema
from abathur_nb.store.sql import load_queries
from abathur_nb.store.target import explain_unopened, mounted_files, repair_command, restore_command
from abathur_nb.store.values import add_functions, stored
from abathur_nb.text import counted, shown, some

HEADER = "header"
_LOG_S = 2  # for a look at the log, which grows while this reads
# What an index or a generated column may end a check with, though each page is sound.
_OF_AN_EXPRESSION = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG)
_MESSAGES = 100  # of integrity_check, which looks at all pages before it compares indexes with their tables
_COMPUTED = 3  # values for one index, each as long as one may be
_CORRUPT = "CORRUPT, so that no other result can be relied on: "

# What integrity_check says of a row that breaks a rule, which is a fault of the row and not of the file; and of an
# index whose entries are not those of its table.
_OF_ROW = re.compile(r"ok$|CHECK constraint failed|(?:NULL|NUMERIC|TEXT) value in|non-unique entry")
_OF_INDEX = re.compile(r"(?:row \S+ (?:missing from|values differ from)|wrong # of entries in) index (.+)")


async def database_checks(
    conn: Connection, path: Path, settings: Settings, *, beside: Connection | None = None
) -> tuple[Check, ...]:
    """Return every check of the database at ``path``, all of one snapshot. Read-only.

    ``beside`` is a second connection to it, by which the rows are read while ``conn`` checks the pages.
    """
    reader = await _begin(conn, beside)
    rows = asyncio.create_task(_of_rows(reader))
    try:
        checks = [*_identity(await read_pragmas(conn), settings)]
        live = await read_schema(conn)
        checks += [await asked for asked in _questions(conn, live, path, settings)]
    finally:
        found = await rows  # nobody else would wait for it
    await conn.rollback()
    return (*checks, *found)


async def _of_rows(reader: Connection) -> tuple[Check, ...]:
    remedy = "first repair the table sessions; then validate again"
    sizes = await run_check("session_sizes", lambda: sizes_check(reader), remedy=remedy)
    return (*await row_checks(reader), sizes)


async def _begin(conn: Connection, beside: Connection | None) -> Connection:
    """Begin a transaction on each, and return ``beside`` if it sees the snapshot that ``conn`` sees, else ``conn``."""
    await add_functions(conn)
    if beside is None:
        await conn.execute_fetchall("BEGIN")
        return conn
    await add_functions(beside)
    version = await pragma(conn, "data_version")
    await beside.execute_fetchall("BEGIN")
    await pragma(beside, "schema_version")  # the first read takes the snapshot
    await conn.execute_fetchall("BEGIN")
    # A commit of anybody else, between the two snapshots as well, changes the version.
    return beside if await pragma(conn, "data_version") == version else conn


async def file_checks(settings: Settings, *, unrepaired: str | None = None) -> tuple[Check, ...]:
    """Return every check of the database file, or one that says why it could not be opened. Read-only.

    ``unrepaired`` is the remedy where the repair is: by default the command that shows its plan.
    """
    remedy = repair_command(settings) if unrepaired is None else unrepaired
    found = await _file_checks(settings)
    return tuple(c if c.remedy or c.status == "pass" else replace(c, remedy=remedy) for c in found)


async def _file_checks(settings: Settings) -> tuple[Check, ...]:
    path = settings.db_path
    lost = await asyncio.to_thread(strays_check, path)
    if lost.failed:  # what is read meanwhile is a part of it, and SQLite may call that damaged
        return (lost,)
    try:
        async with connect(path, settings=settings) as conn, connect(path, settings=settings) as beside:
            # It reads each page once: a map and a cache of them would only take memory.
            await beside.executescript("PRAGMA mmap_size = 0; PRAGMA cache_size = -4000;")
            # No SQL returns that byte, nor what is behind the part of a log that SQLite reads.
            asked = (asyncio.to_thread(ask, "header", path), asyncio.to_thread(log_check, path, _LOG_S))
            checks, fault, log = await asyncio.gather(database_checks(conn, path, settings, beside=beside), *asked)
            return (*checks, log, *_header(fault, settings), *mounted_files(path), lost)
    except (sqlite3.Error, OSError, AbathurError) as error:
        _, found = await explain_unopened(path, error)
        observed = f"could not run: {found.observed}"
        return (Check("database_file", "error", expected="opens read-only", observed=observed, remedy=found.remedy),)


def _header(fault: str, settings: Settings) -> Iterable[Check]:
    """Yield a check where the header has what SQLite never writes, and reads past, or the file is too short for it."""
    if fault:
        remedy = f"stop its writers and restore a backup: {restore_command(settings)}"
        yield Check(HEADER, "fail", "what SQLite writes", f"CORRUPT: {fault}", remedy)


def _questions(
    conn: Connection, live: Mapping[str, SchemaObject], path: Path, settings: Settings
) -> Iterator[Awaitable[Check]]:
    restore = f"stop its writers and restore a backup: {restore_command(settings)}"
    busy = f"if integrity failed, begin there; else see who uses it: fuser {quote(str(path))}; then validate again"
    run = partial(run_check, remedy=busy)
    yield run("integrity", lambda: integrity_check(conn, restore))
    yield run("foreign_keys", lambda: _foreign_keys(conn))
    yield run("tables", lambda: tables_check(live))
    yield run("indexes", lambda: indexes_check(live))
    yield run(OTHERS, lambda: others_check(live, path))
    yield run("sequences", lambda: sequences_check(conn))
    yield run("seed_memories", lambda: seeds_check(conn))
    yield run("names", lambda: names_check(conn))
    yield run(FILE_MODES, lambda: file_modes(path))
    yield run("file_names", lambda: file_names(path))
    yield run("wal_size", lambda: wal_size(path, settings), name="WAL size")


def _identity(found: Mapping[str, Any], settings: Settings) -> Iterable[Check]:
    """Yield a check of each PRAGMA that the file keeps."""
    another = "db_path: name Abathur's own database; leave this one, which is another application's, as it is"
    for name, expected, remedy in (
        ("application_id", APPLICATION_ID, another),
        ("user_version", SCHEMA_VERSION, ""),
        ("encoding", "UTF-8", ""),
    ):
        holds = found[name] == expected
        yield Check.that(name, holds, expected=str(expected), observed=str(found[name]), remedy=remedy, name=name)
    # The rest each connection sets for itself, as this one did.
    names = (*connection_pragmas(settings), "query_only", "trusted_schema")
    words = ", ".join(f"{name} = {found[name]}" for name in names)
    yield Check.that(
        "journal_mode",
        found["journal_mode"] == "wal",
        expected="wal",
        observed=found["journal_mode"],
        evidence=(f"read back on this connection: {words}",),
    )


async def integrity_check(conn: Connection, restore: str) -> Check:
    """Check the pages and indexes of a database; damage has the remedy ``restore``. Read-only."""
    try:
        # Each CHECK is a rule of `row_checks`, which looks at the length of a value before it parses it.
        messages = [str(row[0]) for row in await conn.apply(_check_pages)]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _OF_AN_EXPRESSION:
            return await _integrity_by_table(conn, restore)
        # What could not be read is not known to be damaged: the disk, or who removed the log, is the cause.
        if bound_reached(error) or error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
            raise
        messages = [str(error)]
    if messages != ["ok"] and all(_of_others(message) for message in messages):
        observed = f"ok, but for rows of other tables: {messages[0]}"
        return Check("integrity", "warn", "integrity_check says ok", observed, "repair that table", tuple(messages))
    corrupt, indexes = _damage(messages)
    if indexes and len(messages) >= _MESSAGES:  # more indexes may be damaged than are named, but no page is
        indexes += expected_tables()
    observed = "ok" if messages == ["ok"] else f"{_CORRUPT if corrupt else ''}{(corrupt or messages)[0]}"
    if len(messages) > 1:
        observed += f" (and {len(messages) - 1} more)"
    remedy = "" if indexes else restore if corrupt else "repair the rows named below"
    return Check.that(
        "integrity",
        messages == ["ok"],
        expected="integrity_check says ok",
        observed=observed,
        remedy=remedy,
        evidence=() if messages == ["ok"] else messages,
        data={"is_corrupt": bool(corrupt), "indexes": indexes},
    )


def _damage(messages: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the messages of damaged pages, and the indexes to be made anew where these are all that is damaged."""
    corrupt = [message for message in messages if not _OF_ROW.match(message)]
    indexes = [match and match[1] for match in map(_OF_INDEX.fullmatch, corrupt)]
    return corrupt, sorted({index for index in indexes if index}) if all(indexes) else []


def _computed(conn: sqlite3.Connection) -> dict[str, int]:
    """Return how many values SQLite may hold at once for an index, by its table."""
    return dict(conn.execute(load_queries("inspect.sql")["computed"].sql).fetchall())


def _check_pages(conn: sqlite3.Connection) -> list[Any]:
    conn.execute("PRAGMA ignore_check_constraints = ON")
    return _checked(f"integrity_check({_MESSAGES})", max(_computed(conn).values(), default=0), conn)


def _checked(check: str, values: int, conn: sqlite3.Connection) -> list[Any]:
    """Run a check in the memory that a few values of the greatest length take, however many an index computes."""
    limit = conn.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _longest(limit, values))
    try:
        return conn.execute(f"PRAGMA {check}").fetchall()
    finally:
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)


def _longest(limit: int, values: int) -> int:
    return limit * _COMPUTED // max(values, _COMPUTED)


def _of_others(message: str) -> bool:
    """Return whether a message of integrity_check is about a row of a table that is not ours."""
    match = re.match(r"(?:NULL|NUMERIC|TEXT) value in (.+)\.[^.]+$", message)
    return match is not None and match[1] not in expected_tables()


async def _integrity_by_table(conn: Connection, restore: str) -> Check:
    """Check each table by itself, where an index computes what this process does not know, or beyond its bound."""
    expected, faults, unknown = "integrity_check says ok of each table", list[str](), list[str]()
    computed = await conn.apply(_computed)
    limit = await conn.apply(lambda of: of.getlimit(sqlite3.SQLITE_LIMIT_LENGTH))
    for (table,) in await conn.execute_fetchall(load_queries("inspect.sql")["tables"].sql):
        for check in ("integrity_check", "quick_check"):  # which computes no index
            try:
                rows = await conn.apply(partial(_checked, f"{check}({quoted(table)})", computed.get(table, 0)))
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in _OF_AN_EXPRESSION:
                    raise
                longest = f"{_longest(limit, computed.get(table, 0)):,} bytes"
                unknown.append(f"{table}, {check}: {bound_reached(error, longest) or error}")
            else:
                faults += [f"{table}: {row[0]}" for row in rows if row[0] != "ok" and not _of_others(row[0])]
                break
    if faults:
        data = {"is_corrupt": True, "indexes": []}
        return Check("integrity", "fail", expected, f"{_CORRUPT}{faults[0]}", restore, (*faults, *unknown), data=data)
    observed = f"ok, but for what could not be checked: {some(unknown)}"
    remedy = "see who made the index or the table that needs it: *other objects* names it"
    return Check("integrity", "warn", expected, observed, remedy, tuple(unknown))


async def _foreign_keys(conn: Connection) -> Check:
    ours = ", ".join(f"'{name}'" for name in expected_tables())
    found = (
        'SELECT f."table", f.rowid, f.parent, f.fkid, count(*) OVER () AS total FROM {} AS f'
        f' ORDER BY f."table" NOT IN ({ours}) LIMIT {NAMED}'
    )
    try:
        rows = list(await conn.execute_fetchall(found.format("pragma_foreign_key_check")))
    except sqlite3.OperationalError as error:
        if bound_reached(error):
            raise
        # A reference of another table to columns that can't be referred to ends the check of all.
        tables = f"(SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ({ours}))"
        of_ours = f"{tables}, pragma_foreign_key_check(name)"
        rows = list(await conn.execute_fetchall(found.format(of_ours)))
    return Check.that(
        "foreign_keys",
        not rows,
        expected="every reference has its row",
        observed=f"{counted(rows[0]['total'] if rows else 0, 'reference')} without a row",
        otherwise="fail" if rows and rows[0]["table"] in expected_tables() else "warn",
        evidence=[await _reference(conn, *row[:-1]) for row in rows],
    )


async def _reference(conn: Connection, table: str, rowid: int, parent: str, fkid: int) -> str:
    """Say which row refers by which column to what, for a row of foreign_key_check."""
    refers = 'SELECT "from", ifnull("to", \'key\') FROM pragma_foreign_key_list(?) WHERE id = ? ORDER BY seq'
    keys = "SELECT name FROM pragma_table_info(?) WHERE pk ORDER BY pk"
    try:
        columns, targets = zip(*await conn.execute_fetchall(refers, (table, fkid)), strict=True)
        wanted = [*columns, *(name for (name,) in await conn.execute_fetchall(keys, (table,)))]
        row = f"SELECT {', '.join(map(quoted, wanted))} FROM {quoted(table)} WHERE rowid = ?"
        ((*values,),) = await conn.execute_fetchall(row, (rowid,))
    except UnicodeEncodeError:  # somebody else's table, whose name is not text
        return f"{table}, by key: (rowid {rowid}), to {parent}"
    referring = ", ".join(shown(stored(value)) for value in values[: len(columns)])
    key = named_row(rowid, *values[len(columns) :])
    return f"{table}.{', '.join(columns)}: {referring} is no {', '.join(targets)} of {parent}, by key: {key}"
