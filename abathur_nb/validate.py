"""Validate: whether a database is sound, is ours, and holds what it must (the runbook's sections 2.7 and 4)."""

import json
import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from shlex import quote

import aiosqlite

from abathur_nb.connection import SIDE_FILES, connect, connection_pragmas, explain_error, pragma
from abathur_nb.expected import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    expected_objects,
    expected_seeds,
)
from abathur_nb.report import Check, Report, run_check
from abathur_nb.rules import row_checks
from abathur_nb.schema import Differences, read_schema
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.target import refusal
from abathur_nb.wording import shown

__all__ = ["database_checks", "file_checks", "validate_database"]

_MB = 1_000_000
_NAMED = 20  # offending keys that a check names; it counts them all
_TROUBLESHOOT = "stop the writers and restore a backup"

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
    checks = [await run_check(name, ask) for name, ask in _questions(conn, path, settings)]
    checks += await row_checks(conn)
    await conn.rollback()
    return tuple(checks)


async def file_checks(settings: Settings) -> tuple[Check, ...]:
    """Return every check of the database file, or one that says why it could not be opened. Read-only."""
    path = settings.db_path
    try:
        async with connect(path, settings=settings) as conn:
            return await database_checks(conn, path, settings)
    except sqlite3.Error as error:
        found = explain_error(path, error)
        observed = f"could not run: {found.observed}"
        return (Check("database file", "error", expected="opens read-only", observed=observed, remedy=found.remedy),)


def _questions(
    conn: aiosqlite.Connection, path: Path, settings: Settings
) -> Iterable[tuple[str, Callable[[], Awaitable[Check]]]]:
    yield "application_id", lambda: _pragma(conn, "application_id", APPLICATION_ID, "it is another application's")
    yield "user_version", lambda: _pragma(conn, "user_version", SCHEMA_VERSION, "update abathur_nb")
    yield "journal mode", lambda: _journal_mode(conn, path)
    yield "PRAGMA settings", lambda: _connection(conn, settings)
    yield "integrity", lambda: _integrity(conn)
    yield "foreign keys", lambda: _foreign_keys(conn)
    yield "tables", lambda: _objects(conn, "tables", ("table", "view", "trigger"))
    yield "indexes", lambda: _objects(conn, "indexes", ("index",))
    yield "seed memories", lambda: _seeds(conn)
    yield "file modes", lambda: _file_modes(path)
    yield "WAL size", lambda: _wal_size(path, settings)


async def _pragma(conn: aiosqlite.Connection, name: str, expected: int, remedy: str) -> Check:
    found = await pragma(conn, name)
    return Check.that(name, found == expected, expected=str(expected), observed=str(found), remedy=remedy)


async def _journal_mode(conn: aiosqlite.Connection, path: Path) -> Check:
    mode = await pragma(conn, "journal_mode")
    remedy = f"stop its writers, then: sqlite3 {quote(str(path))} 'PRAGMA journal_mode = WAL'"
    return Check.that("journal mode", mode == "wal", expected="wal", observed=mode, remedy=remedy)


async def _connection(conn: aiosqlite.Connection, settings: Settings) -> Check:
    # Opening a connection sets these and reads them back, or fails.
    told = ", ".join(f"{name} = {value}" for name, value in connection_pragmas(settings).items())
    trusted = "ON, since this SQLite's CHECKs need it" if await pragma(conn, "trusted_schema") else "OFF"
    return Check("PRAGMA settings", "pass", expected="read back as set", observed=f"{told}; trusted_schema {trusted}")


async def _integrity(conn: aiosqlite.Connection) -> Check:
    try:
        messages = [str(row[0]) for row in await conn.execute_fetchall("PRAGMA integrity_check(100)")]
    except sqlite3.DatabaseError as error:
        messages = [str(error)]
    corrupt = [message for message in messages if message != "ok" and not message.startswith(_ROW_FAULTS)]
    missing_entries = all("missing from index" in m or "entries in index" in m for m in corrupt)
    observed = "ok" if messages == ["ok"] else f"{'CORRUPT: ' if corrupt else ''}{(corrupt or messages)[0]}"
    if len(messages) > 1:
        observed += f" (and {len(messages) - 1} more)"
    return Check.that(
        "integrity",
        messages == ["ok"],
        expected="integrity_check says ok",
        observed=observed,
        remedy="REINDEX" if corrupt and missing_entries else _TROUBLESHOOT if corrupt else "mend the rows named below",
        evidence=() if messages == ["ok"] else messages,
    )


async def _foreign_keys(conn: aiosqlite.Connection) -> Check:
    rows = list(await conn.execute_fetchall("PRAGMA foreign_key_check"))
    named = [
        f"{row['table']} row {row['rowid']} names a row of {row['parent']} that does not exist" for row in rows[:_NAMED]
    ]
    return Check.that(
        "foreign keys",
        not rows,
        expected="every reference has its row",
        observed=f"{len(rows):,} references without a row",
        remedy="keep a copy of these rows, then clear the reference or delete them (the runbook's section 6.2)",
        evidence=named,
    )


async def _objects(conn: aiosqlite.Connection, name: str, kinds: tuple[str, ...]) -> Check:
    live = await read_schema(conn)
    differences = Differences.between(live, kinds)
    expected = {found.name: found.sql for found in expected_objects().values() if found.type in kinds}
    count = sum(found.type in kinds for found in live.values())
    remedy = "restore a backup: what a table lacks can't be made again"
    if kinds == ("index",) or not (differences.missing or differences.altered):
        remedy = (
            "with the sqlite3 shell, drop what is altered, or extra and needed by nobody, and run each statement below"
        )
    return Check.that(
        name,
        not str(differences),
        expected=f"the {len(expected)} of sql/, each with the same SQL, and no other",
        observed=f"{count} {name}" + (f"; {differences}" if str(differences) else ", each as in sql/"),
        remedy=remedy,
        evidence=(
            *(f"{expected[missing]};" for missing in differences.missing),
            *(f"expected: {expected[altered]};\nfound: {live[altered].sql};" for altered in differences.altered),
            *(f"extra: {live[extra].sql};" for extra in differences.extra),
        ),
    )


async def _seeds(conn: aiosqlite.Connection) -> Check:
    faults, newer = [], 0
    seeds = expected_seeds()
    for seed in seeds:
        key = {"namespace": seed.namespace, "key": seed.key}
        rows = list(await conn.execute_fetchall(load_queries("inspect.sql")["seed_versions"].sql, key))
        first = rows[0] if rows and rows[0]["version"] == 1 else None
        newer += len(rows) > 1
        if first is None:
            faults.append(f"{seed.namespace} / {seed.key}: version 1 is missing")
        elif not _same_json(first["value"], seed.value):
            faults.append(f"{seed.namespace} / {seed.key}: version 1 holds {shown(first['value'])}")
        elif (first["memory_type"], first["created_by"]) != (seed.memory_type, seed.created_by):
            faults.append(
                f"{seed.namespace} / {seed.key}: version 1 is {first['memory_type']}, by {first['created_by']}"
            )
    return Check.that(
        "seed memories",
        not faults,
        expected=f"version 1 of each of the {len(seeds)}, with its content",
        observed=f"{len(seeds) - len(faults)} of {len(seeds)}" + (f"; {newer} with later versions" if newer else ""),
        remedy="restore the row from a backup, or from sql/seed-memories.sql",
        evidence=faults,
    )


def _same_json(found: object, expected: str) -> bool:
    try:
        return isinstance(found, str) and json.loads(found) == json.loads(expected)
    except ValueError:
        return False


async def _file_modes(path: Path) -> Check:
    found = {}
    for name in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)):
        try:
            found[name] = stat.S_IMODE(os.lstat(name).st_mode)
        except FileNotFoundError:  # side files come and go
            continue
    open_to_others = [name for name, mode in found.items() if mode & 0o177]
    folder_mode = stat.S_IMODE(os.stat(path.parent).st_mode)
    remedies = [f"chmod 600 {' '.join(map(quote, open_to_others))}"] if open_to_others else []
    if folder_mode & stat.S_IWOTH:
        remedies.append(f"chmod 700 {quote(str(path.parent))}")
    return Check.that(
        "file modes",
        not remedies,
        expected="0600 for the database and its side files, in a directory that only its owner writes to",
        observed=", ".join(f"{Path(name).name} {mode:04o}" for name, mode in found.items())
        + f"; directory {folder_mode:04o}",
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
