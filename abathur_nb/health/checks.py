"""Checks of a database: pages, identity, the objects and seeds of ``sql/``, references (sections 2.7 and 4)."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, bound_reached
from abathur_nb.health.path_on_disk import FILE_MODES, file_modes, file_names, log_check, mounted_files, wal_size
from abathur_nb.health.rows import NAMED, named_row, names_check, row_checks, sizes_check
from abathur_nb.report import Check, Status, run_check
from abathur_nb.store import schema, target
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import connect, connection_pragmas, pragma, read_pragmas
from abathur_nb.store.guarded import Connection, strays_check
from abathur_nb.store.sql import load_queries
from abathur_nb.store.values import add_functions, stored
from abathur_nb.text import counted, shown, some

HEADER, OTHERS = "header", "other_objects"
_LOG_S = 2  # seconds for the check of the log, which can grow meanwhile
# SQLite's errors for the expression of an index or generated column; the pages may be sound.
_OF_AN_EXPRESSION = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG)
_MESSAGES = 100  # most messages of integrity_check; it reads all pages before it compares indexes with tables
_COMPUTED = 3  # values of full length that one index may hold in memory
_SOUND = "integrity_check says ok"
_MOST = 1000  # extra objects that a check lists
_CONTENT = ("value", "metadata", "memory_type", "created_by", "updated_by")  # compared columns of a seed
_CORRUPT = "CORRUPT, so no other result is reliable: "

# Messages of integrity_check: a row breaks a constraint, though the file is sound; an index does not match its table.
_OF_ROW = re.compile(r"(?:NULL|NUMERIC|TEXT) value in (.+)\.[^.]+$|CHECK constraint failed|non-unique entry")
_OF_INDEX = re.compile(r"(?:row \S+ (?:missing from|values differ from)|wrong # of entries in) index (.+)")


async def database_checks(
    conn: Connection, path: Path, settings: Settings, *, beside: Connection | None = None
) -> tuple[Check, ...]:
    """Return every check of the database at ``path``, all from one snapshot. Read-only.

    ``beside`` is a second connection, which reads the rows while ``conn`` checks the pages.
    """
    restore = f"stop its writers and restore a backup: {target.restore_command(settings)}"
    busy = f"if integrity failed, repair that first; else see who uses it: fuser {quote(str(path))}, and validate again"
    reader = await _begin(conn, beside)
    rows = asyncio.create_task(_of_rows(reader))
    try:
        checks = [*_identity(await conn.apply(read_pragmas))]
        live = await schema.read_schema(conn)
        questions = {
            "integrity": lambda: integrity_check(conn, restore),
            "foreign_keys": lambda: _foreign_keys(conn),
            "tables": lambda: objects_check(live, "tables", "table"),
            "indexes": lambda: objects_check(live, "indexes", "index"),
            OTHERS: lambda: others_check(live, path),
            "sequences": lambda: sequences_check(conn),
            "seed_memories": lambda: seeds_check(conn),
            "names": lambda: names_check(conn),
            FILE_MODES: lambda: file_modes(path),
            "file_names": lambda: file_names(path),
            "wal_size": lambda: wal_size(path, settings.max_wal_mb),
        }
        checks += [await run_check(name, question, remedy=busy) for name, question in questions.items()]
    finally:
        found = await rows  # also after an error: the task must end before its connection closes
    await conn.rollback()
    return (*checks, *found)


async def _of_rows(reader: Connection) -> tuple[Check, ...]:
    remedy = "first repair the table sessions; then validate again"
    sizes = await run_check("session_sizes", lambda: sizes_check(reader), remedy=remedy)
    return (*await row_checks(reader), sizes)


async def _begin(conn: Connection, beside: Connection | None) -> Connection:
    """Begin a transaction on both connections, and return ``beside`` if both have the same snapshot, else ``conn``."""
    await conn.apply(add_functions)
    if beside is None:
        await conn.execute_fetchall("BEGIN")
        return conn
    await beside.apply(add_functions)
    version = await pragma(conn, "data_version")
    await beside.execute_fetchall("BEGIN")
    await pragma(beside, "schema_version")  # the first read takes the snapshot
    await conn.execute_fetchall("BEGIN")
    # Each commit of another connection changes data_version.
    return beside if await pragma(conn, "data_version") == version else conn


async def file_checks(settings: Settings, *, unrepaired: str | None = None) -> tuple[Check, ...]:
    """Return every check of the database file, or one that says why it cannot be opened. Read-only.

    ``unrepaired`` is the remedy of checks that have none; the default is the command that plans a repair.
    """
    path, remedy = settings.db_path, target.repair_command(settings) if unrepaired is None else unrepaired
    lost = await asyncio.to_thread(strays_check, path)
    if lost.failed:  # a deleted or renamed file holds a part of the database, and SQLite may report damage
        return (lost,)
    try:
        busy_ms, sync = settings.busy_timeout_ms, settings.synchronous
        async with connect(path, busy_ms, synchronous=sync) as conn, connect(path, busy_ms) as beside:
            # ``beside`` reads each page once: a cache would only take memory.
            await beside.executescript("PRAGMA mmap_size = 0; PRAGMA cache_size = -4000;")
            # SQL shows neither the header nor the frames of the log that SQLite ignores.
            asked = (asyncio.to_thread(ask, "header", path), asyncio.to_thread(log_check, path, _LOG_S))
            checks, fault, log = await asyncio.gather(database_checks(conn, path, settings, beside=beside), *asked)
    except (sqlite3.Error, OSError, AbathurError) as error:
        _, found = await target.explain_unopened(path, error)
        observed, remedy = f"could not run: {found.observed}", found.remedy or remedy
        return (Check("database_file", "error", "opens read-only", observed, remedy),)
    header = []
    if fault:  # SQLite never writes such a header, but may accept it
        restore = f"stop its writers and restore a backup: {target.restore_command(settings)}"
        header = [Check(HEADER, "fail", "what SQLite writes", f"CORRUPT: {fault}", restore)]
    checks = (*checks, log, *header, *mounted_files(path), lost)
    return tuple(c if c.remedy or c.status == "pass" else replace(c, remedy=remedy) for c in checks)


def _identity(found: Mapping[str, Any]) -> Iterable[Check]:
    """Yield a check of each PRAGMA that is stored in the file."""
    another = "set db_path to Abathur's database; this one belongs to another application"
    for name, expected, remedy in (
        ("application_id", schema.APPLICATION_ID, another),
        ("user_version", schema.SCHEMA_VERSION, ""),
        ("encoding", "UTF-8", ""),
    ):
        holds = found[name] == expected
        yield Check.that(name, holds, str(expected), str(found[name]), remedy, name=name)
    # The other PRAGMAs are not stored: each connection sets them.
    names = (*connection_pragmas(0, "FULL"), "query_only", "trusted_schema")
    evidence = f"read back on this connection: {', '.join(f'{name} = {found[name]}' for name in names)}"
    mode = found["journal_mode"]
    yield Check.that("journal_mode", mode == "wal", "wal", mode, evidence=[evidence])


async def integrity_check(conn: Connection, restore: str) -> Check:
    """Check the pages and indexes of a database; damage has the remedy ``restore``. Read-only."""
    aside = list[str]()  # messages about rows of other tables, and checks that could not be made
    try:
        messages = await conn.apply(lambda of: _checked(of, f"integrity_check({_MESSAGES})", _longest(of)))
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _OF_AN_EXPRESSION:
            messages, aside = await conn.apply(_check_by_table)
        # After an I/O error the pages may be sound: the disk failed, or the log was removed.
        elif bound_reached(error) or code == sqlite3.SQLITE_IOERR:
            raise
        else:
            messages = [str(error)]
    ours = (None, *schema.expected_tables())

    def of_others(found: list[str]) -> list[str]:
        return list(dict.fromkeys(one for one in found if (row := _OF_ROW.match(one)) and row[1] not in ours))

    if len(messages) >= _MESSAGES and of_others(messages):  # these may have used up the limit
        found, aside = await conn.apply(_check_by_table)
        messages = [*messages, *found]
    aside += of_others(messages)
    messages = [message for message in dict.fromkeys(messages) if message not in aside]
    if not messages:
        observed = f"ok, except for {some(aside)}" if aside else "ok"
        remedy = "find out who made that table or index; *other objects* names it"
        data: dict[str, Any] = {"is_corrupt": False, "indexes": []}
        return Check.that("integrity", not aside, _SOUND, observed, remedy, "warn", aside, data=data)
    corrupt = [message for message in messages if not _OF_ROW.match(message)]
    # The indexes to rebuild, if nothing else is damaged.
    matches = [match and match[1] for match in map(_OF_INDEX.fullmatch, corrupt)]
    indexes = sorted({index for index in matches if index}) if all(matches) else []
    if indexes and len(messages) >= _MESSAGES:  # the messages may not name every damaged index
        indexes += schema.expected_tables()
    observed = f"{_CORRUPT if corrupt else ''}{(corrupt or messages)[0]}"
    observed += f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    remedy = "" if indexes else restore if corrupt else "repair the rows named below"
    data = {"is_corrupt": bool(corrupt), "indexes": indexes}
    return Check("integrity", "fail", _SOUND, observed, remedy, (*messages, *aside), data=data)


def _checked(conn: sqlite3.Connection, check: str, longest: int) -> list[str]:
    """Run an integrity PRAGMA with values of at most ``longest`` bytes, and return its messages."""
    # `row_checks` tests each CHECK, and the length of a value before it parses the value.
    conn.execute("PRAGMA ignore_check_constraints = ON")
    limit = conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
    try:
        return [str(row[0]) for row in conn.execute(f"PRAGMA {check}") if row[0] != "ok"]
    finally:
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)


def _longest(conn: sqlite3.Connection, table: str = "") -> int:
    """Return the length limit that keeps all computed values of one index in the memory of three full values."""
    computed = dict(conn.execute(load_queries("inspect.sql")["computed"].sql).fetchall())
    values = computed.get(table, 0) if table else max(computed.values(), default=0)
    return conn.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) * _COMPUTED // max(values, _COMPUTED)


def _check_by_table(conn: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Check each table by itself, so that faults of one table do not hide those of another.

    Return the messages, and the checks that could not be made.
    """
    found, unknown = list[str](), list[str]()
    for (table,) in conn.execute(load_queries("inspect.sql")["tables"].sql).fetchall():
        longest = _longest(conn, table)
        for check in ("integrity_check", "quick_check"):  # quick_check computes no index
            try:
                found += _checked(conn, f"{check}({schema.quoted(table)})", longest)
                break
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _OF_AN_EXPRESSION:
                    raise
                unknown.append(f"{table}, {check}: {bound_reached(error, f'{longest:,} bytes') or error}")
    return found, unknown


async def _foreign_keys(conn: Connection) -> Check:
    given = {"tables": json.dumps(schema.expected_tables()), "limit": NAMED}
    rows = list(await conn.execute_fetchall(load_queries("inspect.sql")["references"].sql, given))
    evidence = [await _reference(conn, row) for row in rows]
    observed = f"{counted(rows[0]['total'] if rows else 0, 'reference')} to a missing row"
    return Check.that("foreign_keys", not rows, "each foreign key refers to a row", observed, evidence=evidence)


async def _reference(conn: Connection, found: sqlite3.Row) -> str:
    """Return text that names a row, its column that refers, and the missing row."""
    of = f"FROM {schema.quoted(found['table'])} WHERE rowid = {found['number']}"
    ((*values,),) = await conn.execute_fetchall(f"SELECT {found['refers']} {of}")
    ((*key,),) = await conn.execute_fetchall(f"SELECT {found['keys']} {of}")
    referring = ", ".join(shown(stored(value)) for value in values)
    told = f"{found['table']}.{found['columns']}: {referring} is not in {found['parent']}.{found['targets']}"
    return f"{told}, by key: {named_row(found['number'], *key)}"


async def objects_check(live: Mapping[str, schema.SchemaObject], check_id: str, kind: str) -> Check:
    """Compare the live tables or indexes with those of ``sql/``; the evidence is SQL that repairs an index."""
    ours, found = schema.expected_objects(), schema.Differences.between(live, (kind,))
    count = sum(one.type == kind for one in ours.values())
    words = str(replace(found, extra=()))
    if kind == "table":
        evidence = [f"expected: {ours[name].sql};" for name in found.missing]
        for name in found.altered:
            lines = (ours[name].sql.splitlines(), live[name].sql.splitlines())
            evidence.append("\n".join(unified_diff(*lines, "expected", "found", n=1, lineterm="")))
    else:
        evidence = [f"{_one_line(ours[name].sql)};" for name in found.missing]
        for name in found.altered:
            evidence += [f"-- found: {_one_line(live[name].sql)};", f"DROP INDEX {name}; {_one_line(ours[name].sql)};"]
    observed = f"{count - len(found.missing)} {check_id}" + (f"; {words}" if words else ", each as in sql/")
    remedy = "restore a backup, or create the table as in sql/ and copy its rows" if kind == "table" else ""
    expected = f"the {count} of sql/, each with the same SQL"
    data = {"missing": found.missing, "altered": found.altered}
    return Check.that(check_id, not words, expected, observed, remedy, evidence=evidence, data=data)


async def others_check(live: Mapping[str, schema.SchemaObject], path: Path) -> Check:
    """Check for objects that are not in ``sql/``: a table or an index warns, anything else fails."""
    ours, missing = schema.expected_objects(), schema.Differences.between(live, ("table",)).missing
    found = [one for name, one in live.items() if name not in ours or one.type != ours[name].type]
    # Extra tables and indexes, such as those of a replication tool, are harmless; others run code and come first.
    found.sort(key=lambda one: (one.type in ("table", "index"), one.name))
    harmful = [one for one in found if one.type not in ("table", "index")]
    renamed = [one.name for one in found if missing and one.type == "table"]  # each may be a missing table, renamed
    # These prevent renaming a table back: views, triggers, and objects with the name of a missing table.
    in_the_way = [one for one in live.values() if one.type in ("view", "trigger") or one.name in missing]
    drops = in_the_way if renamed else harmful or found
    # An extra unique index, reference or collation may make a write of the store fail.
    remedy = target.FIND_OUT if harmful else "find out who made it; drop it if nobody uses it, or if a write fails:"
    remedy += f" {target.shell_command(path, [_drop(one) for one in drops])}"
    if renamed:
        others = f"; {_names(drops)}: {remedy}" if drops else ""
        remedy = f"do not drop a table: {some(renamed)} may be {' or '.join(missing)} under another name{others}"
    evidence = []
    for one in found[:_MOST]:  # as comments: a person decides on each DROP
        evidence.append(f"-- extra: {_one_line(one.sql)};")
        if one in drops or not renamed:
            evidence.append("-- " + _drop(one).replace("\n", "\n-- "))
    observed = f"extra: {_names(found)}" if found else "none"
    otherwise: Status = "fail" if harmful else "warn"
    data = {"extra": [one.name for one in found[:_MOST]]}
    return Check.that(OTHERS, not found, "no others than in sql/", observed, remedy, otherwise, evidence, data=data)


def _names(found: Sequence[schema.SchemaObject]) -> str:
    return some([f"{one.type} {one.name}" for one in found])


def _drop(one: schema.SchemaObject) -> str:
    return f"DROP {one.type.split()[-1].upper()} {schema.quoted(one.name)};"


def _one_line(sql: str) -> str:
    # A line break would end a comment after --. The DDL of an index has no comment.
    return " ".join(sql.split())


async def sequences_check(conn: Connection) -> Check:
    """Check the counters of AUTOINCREMENT against the largest ids. Read-only."""
    wrong = list(await conn.execute_fetchall(load_queries("inspect.sql")["sequences"].sql))
    repairs = [statement for row in wrong for statement in (row["clear"], row["repair"])]
    expected = "each AUTOINCREMENT counter is a number, at least the largest id of its table"
    observed = ", ".join(f"{row['name']} {shown(row['seq'])}, largest {row['largest']}" for row in wrong) or "ok"
    evidence, data = [f"{statement};" for statement in repairs], {"statements": repairs}
    return Check.that("sequences", not wrong, expected, observed, evidence=evidence, data=data)


async def seeds_check(conn: Connection) -> Check:
    """Check that version 1 of each seed is as in its file; the evidence is SQL that restores it. Read-only."""
    seeds, restoring, evidence, newer = schema.expected_seeds(), [], list[str](), 0
    keys = [{"namespace": seed.namespace, "key": seed.key} for seed in seeds]
    history, restore = load_queries()["memory_history"].sql, load_queries("inspect.sql")["restore_seed"].sql
    found = await conn.apply(lambda of: [of.execute(history, key).fetchall() for key in keys])
    for seed, versions in zip(seeds, found, strict=True):
        rows = {row["version"]: row for row in versions}
        newer += any(isinstance(version, int) and version > seed.version for version in rows)
        row = rows.get(seed.version)
        wrong = [name for name in _CONTENT if row and row[name] != getattr(seed, name)]
        if row and not wrong:
            continue
        fault = f"holds {shown(row[wrong[0]])} as its {wrong[0]}" if row else "is missing"
        ((sql,),) = await conn.execute_fetchall(restore, seed._asdict())
        evidence += [f"-- {seed.namespace} / {seed.key}: version {seed.version} {fault}", f"{sql};"]
        restoring.append({"namespace": seed.namespace, "key": seed.key, "version": seed.version, "sql": sql})
    expected = f"version 1 of each of the {len(seeds)} seeds, as in sql/"
    observed = f"{len(seeds) - len(restoring)} of {len(seeds)}" + (f"; {newer} with later versions" if newer else "")
    data = {"restored_by": restoring}
    return Check.that("seed_memories", not restoring, expected, observed, evidence=evidence, data=data)


# First and last SQLite version with the bug, and the repaired branches (https://sqlite.org/wal.html#walresetbug).
_RACE_FIRST, _RACE_LAST, _RACE_REPAIRED = (3, 7, 0), (3, 51, 2), ((3, 44, 6), (3, 50, 7))


def has_reset_race(version: tuple[int, ...]) -> bool:
    """Return whether this version of SQLite has the WAL-reset race."""
    repaired = any(version[:2] == branch[:2] and version >= branch for branch in _RACE_REPAIRED)
    return _RACE_FIRST <= version <= _RACE_LAST and not repaired
