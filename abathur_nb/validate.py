"""Validate: whether a database is sound, is ours, and holds what it must (the runbook's sections 2.7 and 4)."""

import json
import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import unified_diff
from pathlib import Path
from shlex import quote
from typing import Any

import aiosqlite

from abathur_nb.connection import SIDE_FILES, connect, connection_pragmas, explain_error, pragma, read_pragmas
from abathur_nb.errors import AbathurError
from abathur_nb.expected import APPLICATION_ID, SCHEMA_VERSION, SchemaObject, SeedRow, expected_objects, expected_seeds
from abathur_nb.location import writable_by_others
from abathur_nb.report import Check, Report, run_check
from abathur_nb.rules import NAMED, row_checks
from abathur_nb.schema import Differences, read_schema
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.target import refusal
from abathur_nb.wording import shown

__all__ = ["FILE_MODES", "database_checks", "file_checks", "file_modes", "validate_database"]

_MB = 1_000_000
_LAST_ID = 2**63 - 1
FILE_MODES = "file modes"
_REWRITE = "with the sqlite3 shell, .dump it into a new database after PRAGMA encoding = 'UTF-8', and take that one"
_RESTORE = "stop the writers and restore a backup"

# What integrity_check says of a row that breaks a rule, which is a fault of the row and not of the file.
_ROW_FAULTS = ("CHECK constraint failed", "NULL value in", "NUMERIC value in", "TEXT value in", "non-unique entry")


async def validate_database(settings: Settings) -> Report:
    """Report whether the database is sound, ours, complete and well-filled. Read-only.

    All checks see one snapshot; each tells what it expected and observed. SQLite may leave an empty ``-wal`` and a
    ``-shm`` beside the file.
    """
    if found := await refusal("validate", settings):
        return found
    return Report("validate", await file_checks(settings), subject=str(settings.db_path))


async def database_checks(conn: aiosqlite.Connection, path: Path, settings: Settings) -> tuple[Check, ...]:
    """Return every check of the database at ``path``, all of one snapshot. Read-only."""
    await conn.execute_fetchall("BEGIN")
    remedy = (
        f"if integrity failed, begin there; else see who uses it: fuser {quote(str(path))}; then run validate again"
    )
    mode = await pragma(conn, "journal_mode")
    checks = [*_identity(await read_pragmas(conn), mode, path, settings)]
    live = await read_schema(conn)
    checks += [await run_check(name, ask, remedy=remedy) for name, ask in _questions(conn, live, path, settings)]
    checks += await row_checks(conn)
    await conn.rollback()
    return tuple(checks)


async def file_checks(settings: Settings) -> tuple[Check, ...]:
    """Return every check of the database file, or one that says why it could not be opened. Read-only."""
    path = settings.db_path
    try:
        async with connect(path, settings=settings) as conn:
            return await database_checks(conn, path, settings)
    except (sqlite3.Error, AbathurError) as error:
        found = explain_error(path, error)
        observed = f"could not run: {found.observed}"
        return (Check("database file", "error", expected="opens read-only", observed=observed, remedy=found.remedy),)


def _questions(
    conn: aiosqlite.Connection, live: Mapping[str, SchemaObject], path: Path, settings: Settings
) -> Iterable[tuple[str, Callable[[], Awaitable[Check]]]]:
    yield "integrity", lambda: _integrity(conn, path)
    yield "foreign keys", lambda: _foreign_keys(conn)
    yield "tables", lambda: _tables(live, path)
    yield "indexes", lambda: _indexes(live, path)
    yield "sequences", lambda: _sequences(conn, path)
    yield "seed memories", lambda: _seeds(conn)
    yield FILE_MODES, lambda: file_modes(path)
    yield "WAL size", lambda: _wal_size(path, settings)


def _identity(found: Mapping[str, Any], mode: str, path: Path, settings: Settings) -> Iterable[Check]:
    """Yield a check of each PRAGMA that the file keeps."""
    another = "db_path: name Abathur's own database; leave this one, which is another application's, as it is"
    for name, expected, remedy in (
        ("application_id", APPLICATION_ID, another),
        ("user_version", SCHEMA_VERSION, "update abathur_nb"),
        ("encoding", "UTF-8", _REWRITE),
    ):
        holds = found[name] == expected
        yield Check.that(name, holds, expected=str(expected), observed=str(found[name]), remedy=remedy)
    # The rest each connection sets for itself, as this one did.
    names = (*connection_pragmas(settings), "query_only", "trusted_schema")
    told = ", ".join(f"{name} = {found[name]}" for name in names)
    yield Check.that(
        "journal mode",
        mode == "wal",
        expected="wal",
        observed=mode,
        remedy=f"stop its writers, then: sqlite3 {quote(str(path))} 'PRAGMA journal_mode = WAL'",
        evidence=(f"read back on this connection: {told}",),
    )


async def _integrity(conn: aiosqlite.Connection, path: Path) -> Check:
    try:
        messages = [str(row[0]) for row in await conn.execute_fetchall("PRAGMA integrity_check(100)")]
    except sqlite3.DatabaseError as error:
        messages = [str(error)]
    corrupt = [message for message in messages if message != "ok" and not message.startswith(_ROW_FAULTS)]
    missing_entries = all("missing from index" in m or "entries in index" in m for m in corrupt)
    observed = "ok" if messages == ["ok"] else f"{'CORRUPT: ' if corrupt else ''}{(corrupt or messages)[0]}"
    if len(messages) > 1:
        observed += f" (and {len(messages) - 1} more)"
    remedy = "mend the rows named below"
    if corrupt:
        remedy = f"sqlite3 {quote(str(path))} REINDEX" if missing_entries else _RESTORE
    return Check.that(
        "integrity",
        messages == ["ok"],
        expected="integrity_check says ok",
        observed=observed,
        remedy=remedy,
        evidence=() if messages == ["ok"] else messages,
    )


async def _foreign_keys(conn: aiosqlite.Connection) -> Check:
    rows = list(await conn.execute_fetchall("PRAGMA foreign_key_check"))
    named = [
        f"{row['table']} row {row['rowid']} names a row of {row['parent']} that does not exist" for row in rows[:NAMED]
    ]
    return Check.that(
        "foreign keys",
        not rows,
        expected="every reference has its row",
        observed=f"{len(rows):,} references without a row",
        remedy="keep a copy of these rows, then clear the reference or delete them (section 6.2 of the prose runbook)",
        evidence=named,
    )


async def _tables(live: Mapping[str, SchemaObject], path: Path) -> Check:
    differences = Differences.between(live, ("table", "view", "trigger"))
    evidence = [
        *(f"expected: {expected_objects()[name].sql};" for name in differences.missing),
        *(_difference(expected_objects()[name].sql, live[name].sql) for name in differences.altered),
        *_drops(differences, live),
    ]
    remedy = "restore a backup, or make the table again as in sql/ and copy its rows"
    if not (differences.missing or differences.altered):
        remedy = f"find out who made it; if nobody needs it: sqlite3 {quote(str(path))}, and run the DROP below"
    return _objects_check("tables", live, differences, ("table", "view", "trigger"), remedy, evidence)


async def _indexes(live: Mapping[str, SchemaObject], path: Path) -> Check:
    differences = Differences.between(live, ("index",))
    evidence = [
        *(f"{_one_line(expected_objects()[name].sql)};" for name in differences.missing),
        *(
            line
            for name in differences.altered
            for line in (
                f"-- found: {_one_line(live[name].sql)};",
                f"DROP INDEX {name}; {_one_line(expected_objects()[name].sql)};",
            )
        ),
        *_drops(differences, live),
    ]
    remedy = f"sqlite3 {quote(str(path))}, and run the statements of the evidence"
    if differences.extra:
        remedy += "; of a DROP behind --, only what nobody needs"
    return _objects_check("indexes", live, differences, ("index",), remedy, evidence)


def _objects_check(
    name: str,
    live: Mapping[str, SchemaObject],
    differences: Differences,
    kinds: tuple[str, ...],
    remedy: str,
    evidence: Iterable[str],
) -> Check:
    expected = sum(found.type in kinds for found in expected_objects().values())
    count = sum(found.type in kinds for found in live.values())
    told = str(differences)
    return Check.that(
        name,
        not told,
        expected=f"the {expected} of sql/, each with the same SQL, and no other",
        observed=f"{count} {name}" + (f"; {told}" if told else ", each as in sql/"),
        remedy=remedy,
        evidence=evidence,
    )


def _drops(differences: Differences, live: Mapping[str, SchemaObject]) -> Iterable[str]:
    """Yield what is extra and the statement that would drop it, as comments: to run it is somebody's decision."""
    for name in differences.extra:
        quoted = name.replace('"', '""')
        yield f"-- extra: {_one_line(live[name].sql)};"
        yield f'-- DROP {live[name].type.upper()} "{_one_line(quoted)}";'


def _one_line(sql: str) -> str:
    # Behind a -- nothing may begin a line of its own. The DDL of an index holds no comment, which would hide its end.
    return " ".join(sql.split())


async def _seeds(conn: aiosqlite.Connection) -> Check:
    faults, newer = [], 0
    seeds = expected_seeds()
    for seed in seeds:
        key = {"namespace": seed.namespace, "key": seed.key}
        rows = {row["version"]: row for row in await conn.execute_fetchall(load_queries()["memory_history"].sql, key)}
        newer += any(version > seed.version for version in rows)
        if fault := _seed_fault(seed, rows.get(seed.version)):
            faults.append(f"{seed.namespace} / {seed.key}: version {seed.version} {fault}")
    return Check.that(
        "seed memories",
        not faults,
        expected=f"version 1 of each of the {len(seeds)}, with its content",
        observed=f"{len(seeds) - len(faults)} of {len(seeds)}" + (f"; {newer} with later versions" if newer else ""),
        remedy="restore the row from a backup, or from sql/seed-memories.sql",
        evidence=faults,
    )


def _seed_fault(seed: SeedRow, found: sqlite3.Row | None) -> str:
    """Say what is wrong with the row of a seed, nothing if it is as the seed file made it."""
    if found is None:
        return "is missing"
    for column in ("value", "metadata"):
        if not _same_json(found[column], getattr(seed, column)):
            return f"holds {shown(found[column])}" + (" as its metadata" if column == "metadata" else "")
    if (found["memory_type"], found["created_by"], found["updated_by"]) != (
        seed.memory_type,
        seed.created_by,
        seed.updated_by,
    ):
        return f"is {found['memory_type']}, created by {found['created_by']}, updated by {found['updated_by']}"
    return ""


def _difference(expected: str, found: str) -> str:
    """Return the lines in which two statements differ, with one line around them."""
    return "\n".join(unified_diff(expected.splitlines(), found.splitlines(), "expected", "found", n=1, lineterm=""))


def _same_json(found: object, expected: str) -> bool:
    try:
        return isinstance(found, str) and json.loads(found) == json.loads(expected)
    except (ValueError, RecursionError):
        return False


async def _sequences(conn: aiosqlite.Connection, path: Path) -> Check:
    rows = await conn.execute_fetchall(load_queries("inspect.sql")["sequences"].sql)
    # An id below the largest would be given out twice, and after the last one every insert fails.
    wrong = [row for row in rows if row["kind"] != "integer" or not (row["largest"] or 0) <= row["seq"] < _LAST_ID // 2]
    return Check.that(
        "sequences",
        not wrong,
        expected="the last id given out, of each table that counts its ids, is a number not below the largest there",
        observed=", ".join(f"{row['name']} {shown(row['seq'])}, largest {row['largest']}" for row in wrong) or "right",
        remedy=f"sqlite3 {quote(str(path))}, and run the statements of the evidence",
        evidence=(
            f"DELETE FROM sqlite_sequence WHERE name = '{row['name']}'; "
            f"INSERT INTO sqlite_sequence VALUES ('{row['name']}', {row['largest'] or 0});"
            for row in wrong
        ),
    )


async def file_modes(path: Path) -> Check:
    """Check who may read and write a database, its side files and its directory. Read-only."""
    found = {}
    for name in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)):
        try:
            found[name] = stat.S_IMODE(os.lstat(name).st_mode)
        except FileNotFoundError:  # side files come and go
            continue
    open_to_others = [name for name, mode in found.items() if mode & 0o177]
    folder = os.stat(path.parent)
    remedies = [f"chmod 600 {' '.join(map(quote, open_to_others))}"] if open_to_others else []
    if writable_by_others(folder):
        remedies.append(f"chmod 700 {quote(str(path.parent))}")
    return Check.that(
        FILE_MODES,
        not remedies,
        expected="0600 for the database and its side files, in a directory that only its owner writes to",
        observed=", ".join(f"{Path(name).name} {mode:04o}" for name, mode in found.items())
        + f"; directory {stat.S_IMODE(folder.st_mode):04o}",
        remedy="; ".join(remedies),
    )


async def _wal_size(path: Path, settings: Settings) -> Check:
    try:
        size = os.lstat(f"{path}-wal").st_size / _MB
    except FileNotFoundError:
        size = 0.0
    return Check.that(
        "WAL size",
        size <= settings.max_wal_mb,
        expected=f"at most {settings.max_wal_mb} MB",
        observed=f"{size:.1f} MB",
        remedy=f"find the reader that holds it back (fuser {quote(str(path))}), end it, then let a writer checkpoint",
        otherwise="warn",
    )
