"""Write every row that a repair will change to a quarantine file, and put rows of such a file back."""

import hashlib
import math
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import aiosqlite

from abathur_nb.backups.change import Change, make_change
from abathur_nb.backups.manifest import list_backups, of_database
from abathur_nb.backups.taking import copy_out, open_copy, publish
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.evidence.canonical import canonical, misfits, moment, printable_text, sha256, uncanonical, whole_number
from abathur_nb.files import at, make_private_file, open_regular, private_directory, scratch_directory, sweep
from abathur_nb.repair.statements import RowChange
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import connect, open_for_change, run_to_end
from abathur_nb.store.guarded import Connection
from abathur_nb.store.schema import expected_columns, expected_tables, quoted
from abathur_nb.store.target import refusal, shell_command
from abathur_nb.store.values import add_functions, stored
from abathur_nb.text import counted, file_stamp, shown, timestamp

_TITLE = "put back"
_FORMAT = 1
_NAMED = 5  # how many faults an error names, and how many rows a command shows


async def affected(conn: aiosqlite.Connection, changes: Iterable[tuple[RowChange, int]]) -> AsyncIterator[bytes]:
    """Yield a line with the present content of each row that will change. Read-only; needs `add_functions`."""
    for change, _ in changes:
        keys = [column.name for column in expected_columns(change.table) if column.in_key]
        done: dict[str, Any] = {"column": change.column, "becomes": change.empty} if change.column else {}
        async with conn.execute(f"{change.selecting('rowid, *')} ORDER BY rowid") as cursor:
            names = [column[0] for column in cursor.description][1:]
            async for rowid, *values in cursor:
                row = {name: plain(value) for name, value in zip(names, values, strict=True)}
                key = {name: row[name] for name in keys}
                yield canonical({"table": change.table, "rowid": rowid, "key": key, "change": done, "row": row})


async def kept_values(conn: aiosqlite.Connection, settings: Settings, changes: Iterable[tuple[RowChange, int]]) -> str:
    """Return a command that shows values that ``changes`` would empty, in the newest backup with any. Read-only."""
    queries = []
    for change, _ in changes:
        rows = await conn.execute_fetchall(f"{change.selecting('rowid')} LIMIT {_NAMED}")
        these = f"json_valid({change.column}) AND rowid IN ({', '.join(str(row[0]) for row in rows)})"
        keys = ", ".join(column.name for column in expected_columns(change.table) if column.in_key)
        queries.append(f"SELECT {keys}, {change.column} FROM {change.table} WHERE {these};")
    with suppress(sqlite3.Error, OSError, AbathurError):  # a damaged backup must not prevent a repair
        for backup in reversed(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path)):
            if backup.unfit or backup.path.suffix != ".db" or not queries:
                continue
            async with open_copy(backup.path) as copy:
                found = [query for query in queries if await copy.execute_fetchall(query)]
            if found:
                shows = shell_command(Path(f"{backup.path.as_uri()}?immutable=1"), found)
                return f"; it empties values that {backup.path.name} still has; to see them: {shows}"
    return ""


def quarantine_dir(settings: Settings) -> Path:
    """Return the directory of an environment's quarantine files."""
    return settings.backup_dir / "quarantine"


async def write_quarantine(settings: Settings, lines: AsyncIterator[bytes]) -> tuple[Path, str]:
    """Write the lines durably to a new file, 0600, and return its path and the SHA-256 of the lines. Raises OSError."""
    folder, now, count = quarantine_dir(settings), datetime.now(UTC), 0
    head = {"format": _FORMAT, "env": settings.env, "database": str(settings.db_path), "taken_at": timestamp(now)}
    # A killed repair leaves no partial file. The draft is here because this directory may be its own mount.
    sweep(folder)
    with private_directory(folder, owned_as=settings.db_path.parent), scratch_directory(folder, "backup") as scratch:
        draft = scratch / "quarantine"
        make_private_file(draft, owned_as=folder)
        digest, whole = hashlib.sha256(), hashlib.sha256(canonical(head))
        with at(draft), draft.open("wb") as file:
            file.write(canonical(head))
            async for line in lines:
                file.write(line)
                digest.update(line)
                whole.update(line)
                count += 1
            file.write(canonical({"rows": count, "sha256": whole.hexdigest()}))
        path = folder / f"quarantine_{file_stamp(now)}_{digest.hexdigest()[:12]}.jsonl"
        publish(draft, path)
    return path, digest.hexdigest()


def read_quarantine(path: Path) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """Return the head of a quarantine file and its entries; raise RefusedError if any byte changed. Read-only."""
    try:
        with open_regular(path) as file:
            content = file.read()
        lines = content.splitlines(keepends=True)
        if len(lines) < 2 or not content.endswith(b"\n"):
            raise ValueError("the file is empty or cut off")
        head, *entries, last = map(uncanonical, lines)
        faults = misfits(head, _HEAD)
        if last != {"rows": len(entries), "sha256": sha256(b"".join(lines[:-1]))}:
            faults.append("its hash differs from the one in its last line")
        for line, entry in enumerate(entries, 2):
            faults += [f"line {line}: {fault}" for fault in misfits(entry, _ENTRY) or _strange_columns(entry)]
        if faults:
            raise ValueError("; ".join(faults[:_NAMED]))
    except (OSError, ValueError) as error:
        remedy = f"name another file: ls {quote(str(path.parent))}"
        raise RefusedError(f"{path} is not an unchanged quarantine file: {error}", remedy) from None
    return head, entries


def _strange_columns(entry: Mapping[str, Any]) -> list[str]:
    """Return a fault if an entry lacks a column; it may have more, because the table may have been altered."""
    keys = {column.name for column in expected_columns(entry["table"]) if column.in_key}
    change, row = entry["change"], entry["row"]
    is_row = entry["key"].keys() == keys <= row.keys() and all(map(_value, row))
    is_change = not change or (change.keys() == {"column", "becomes"} and change["column"] in row)
    return [] if is_row and is_change else [f"not a row of {entry['table']}, or not a change of one of its columns"]


def plain(value: object) -> object:
    """Return an SQLite value as JSON; a blob, an infinite real or a text that is not UTF-8 as an object."""
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"real": repr(value)}
    kept = stored(value)
    return {"text": kept.hex()} if isinstance(kept, bytes) else kept


def value_of(found: Any) -> tuple[str, object]:
    """Return the SQL and the bound value for JSON as ``plain`` writes it; raise for other JSON."""
    if isinstance(found, dict):
        ((kind, text),) = found.items()
        if kind == "real":
            return "?", float(text)
        return {"text": "CAST(? AS TEXT)", "blob": "?"}[kind], bytes.fromhex(text)
    too_large = isinstance(found, int) and not -(2**63) <= found < 2**63
    if isinstance(found, list | bool) or plain(found) != found or too_large:
        raise ValueError(f"not an SQLite value: {shown(found)}")
    return "?", found


def _bindings(row: Mapping[str, Any]) -> tuple[list[str], list[str], list[Any]]:
    """Return the quoted columns of a row, the SQL for each value, and the values to bind."""
    values = [value_of(value) for value in row.values()]
    return [*map(quoted, row)], [sql for sql, _ in values], [value for _, value in values]


def insertion(table: str, row: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Return the statement that inserts a row of a quarantine file, and the values to bind."""
    names, marks, values = _bindings(row)
    return f"INSERT INTO {quoted(table)} ({', '.join(names)}) VALUES ({', '.join(marks)})", values


def _value(data: object) -> bool:
    """Return whether ``data`` is JSON that ``plain`` can write."""
    try:
        return bool(value_of(data))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # such as for a surrogate
        return False


_HEAD = {"format": whole_number, "env": str, "database": str, "taken_at": moment}
_ENTRY = {
    "table": frozenset(expected_tables()),
    "rowid": int,
    "key": {str: _value},
    "change": {str: printable_text},
    "row": {str: _value},
}


# The rows put back, the rows that already exist (each a table and a key), and the reasons for the other rows.
_Outcome = tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]


async def put_back_rows(
    settings: Settings, name: str | os.PathLike[str], *, apply: bool, confirm: str | None
) -> Report:
    """Show which rows of a quarantine file can be put back; with ``apply``, put them back.

    Read-only without ``apply``: it is tried on a copy. The report names each row that stays in the file, because it
    violates a constraint, its key is in use, or it was changed since.
    """
    if refused := await refusal(_TITLE, settings, refuses=("trigger",)):
        return replace(refused, refused=True)
    return await make_change(settings, _TITLE, _find(settings, name), apply=apply, confirm=confirm)


@asynccontextmanager
async def _find(settings: Settings, name: str | os.PathLike[str]) -> AsyncIterator[Change]:
    """Yield the change that puts rows of a quarantine file back."""
    path = quarantine_dir(settings) / name  # an absolute path stays as it is
    head, entries = read_quarantine(path)
    if head["env"] != settings.env:
        raise RefusedError(f"{path} is of {head['env']}, not of {settings.env}", "name a file of this environment")
    with scratch_directory(settings.db_path.parent, "restore") as scratch:
        copy = scratch / "copy.db"
        async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
            await copy_out(conn, copy, owned_as=settings.db_path.parent)
        async with connect(copy, settings.busy_timeout_ms, mode="rw") as conn:
            outcome = put, already, left = await _put(conn, entries)
    expected = f"all {counted(len(entries), 'row')} of the file can be put back"
    observed = f"{path}: {len(put):,} can be put back, {len(already):,} are there already"
    observed += f", {len(left):,} stay in the file" if left else ""
    remedy = "read the reasons in the evidence; write by hand the values of these rows in the file"
    evidence = [*left, *(f"can be put back: {table}: {key}" for table, key in put)]
    check = Check.that("quarantine", not left, expected, observed, remedy, "warn", evidence)
    if not put:
        yield Change((check,))
        return
    tables = Counter(table for table, _ in put)
    put_back = ", ".join(f"{counted(number, 'row')} of {table}" for table, number in tables.items())
    steps = (f"in one transaction, put back {put_back}",)
    facts = {"quarantine": sha256(b"".join(map(canonical, entries))), "rows": sha256(canonical({"put": put}))}

    async def do(done: list[Check]) -> None:
        async with open_for_change(settings.db_path, settings.busy_timeout_ms) as conn:
            if await _put(conn, entries) != outcome:
                raise RefusedError(f"{settings.db_path} has changed since the plan was made", "run this again")
            await run_to_end(conn.execute_fetchall("COMMIT"))
        done.append(Check("put_back", "pass", "in one transaction", f"put back: {put_back}"))

    yield Change((check,), _TITLE, steps, facts, do, backup="pre_put_back", switch="repair")


async def _put(conn: Connection, entries: list[dict[str, Any]]) -> _Outcome:
    """Begin a transaction, put back the rows that the schema allows, and leave the transaction open."""
    await conn.apply(add_functions)
    await conn.execute_fetchall("PRAGMA synchronous = FULL")
    await conn.execute_fetchall("BEGIN IMMEDIATE")
    put, already, waiting = list[tuple[str, str]](), list[tuple[str, str]](), entries
    faults, left = list[str](), len(entries) + 1
    while len(waiting) < left:  # an entry may refer to a later one
        left, failed, faults = len(waiting), [], []
        for entry in waiting:
            table, key = entry["table"], ", ".join(shown(value) for value in entry["key"].values())
            key += f", {entry['change']['column']}" if entry["change"] else ""
            try:
                (put if await _put_one(conn, entry) else already).append((table, key))
            except (sqlite3.IntegrityError, RefusedError) as error:
                faults.append(f"{table}: {key}: {getattr(error, 'observed', error)}")
                failed.append(entry)
        waiting = failed
    return put, already, faults


async def _put_one(conn: Connection, entry: Mapping[str, Any]) -> bool:
    """Put back one row or value; return whether it was missing. Raises IntegrityError or RefusedError."""
    table, row, change = quoted(entry["table"]), entry["row"], entry["change"]
    column = change.get("column", "")
    where, values = _where(entry["key"] | {column: row[column]} if change else row)
    if await conn.execute_fetchall(f"SELECT 1 FROM {table} WHERE {where}", values):
        return False
    if not change:
        await conn.execute_fetchall(*insertion(entry["table"], row))
        return True
    (sql, value), (where, key) = value_of(row[column]), _where(entry["key"])
    update = f"UPDATE {table} SET {quoted(column)} = {sql} WHERE {where} AND quote({quoted(column)}) = ?"
    if not (await conn.execute(update, [value, *key, change["becomes"]])).rowcount:
        raise RefusedError("its row was deleted or changed since", "check which value is right")
    return True


def _where(row: Mapping[str, Any]) -> tuple[str, list[Any]]:
    names, marks, values = _bindings(row)
    return " AND ".join(f"{name} IS {mark}" for name, mark in zip(names, marks, strict=True)), values
