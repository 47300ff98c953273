"""Putting back what a repair took out: the rows of a quarantine file, as far as the rules of the schema let them."""

import os
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from abathur_nb.connection import connect, explain_error, kept_open, run_to_end
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.files import scratch_directory, sweep
from abathur_nb.guarded import Connection
from abathur_nb.limits import add_functions
from abathur_nb.operate.backup import kept_before
from abathur_nb.operate.plan import Plan
from abathur_nb.operate.quarantine import plain, quarantine_dir, read_quarantine, value_of
from abathur_nb.operate.transfer import copy_out
from abathur_nb.report import Check, Report
from abathur_nb.schema import quoted
from abathur_nb.settings import Settings
from abathur_nb.target import refusal
from abathur_nb.validate import file_checks
from abathur_nb.wording import counted, shown

__all__ = ["put_back_rows"]

_TITLE = "put back"


@dataclass(slots=True)
class _Outcome:
    """Hold what becomes of the entries of a quarantine file, as lines that name table and key."""

    put: list[str] = field(default_factory=list)
    tables: Counter[str] = field(default_factory=Counter)  # of what is put
    already: list[str] = field(default_factory=list)
    in_the_way: list[str] = field(default_factory=list)


async def put_back_rows(
    settings: Settings, name: str | os.PathLike[str], *, apply: bool, confirm: str | None
) -> Report:
    """Show which rows of a quarantine file would stand where they stood; with ``apply``, put them there.

    Read-only without ``apply``: it is tried on a copy. A row that would break a rule again, whose place is taken, or
    which was changed since, stays in the file, and is named.
    """
    title, subject, checks = _TITLE if apply else f"{_TITLE} (plan)", str(settings.db_path), list[Check]()
    done = list[Check]()
    if refused := await refusal(_TITLE, settings, refuses=("trigger",)):
        return replace(refused, refused=True)
    try:
        path = quarantine_dir(settings) / name  # a path that is absolute stays what it is
        head, entries = read_quarantine(path)
        if head["env"] != settings.env:
            raise RefusedError(f"{path} is of {head['env']}, not of {settings.env}", "name one of this environment")
        outcome = await _try(settings, entries)
        checks.append(_check(path, outcome, len(entries)))
        if not outcome.put:
            return Report(title, tuple(checks), subject=subject)
        put_back = ", ".join(f"{counted(number, 'row')} of {table}" for table, number in outcome.tables.items())
        steps = (
            f"back up {settings.db_path} as abathur_pre_put_back_… in {settings.backup_dir}, and prove that backup",
            f"in one transaction, put back {put_back}",
            f"validate {settings.db_path}",
        )
        facts = {
            "quarantine": sha256(b"".join(map(canonical, entries))),
            "rows": sha256(canonical({"put": outcome.put})),
        }
        checks.append(Plan(_TITLE, settings, steps, facts, "repair").approval(apply=apply, confirm=confirm))
        if not apply or checks[-1].failed:
            return Report(title, tuple(checks), subject=subject, refused=checks[-1].failed)
        async with kept_before(settings, "pre_put_back", "backup", done) as written, kept_open(settings):
            async with connect(settings.db_path, settings=settings, mode="rw") as conn:
                if await _put(conn, entries) != outcome:
                    raise RefusedError(f"{settings.db_path} has changed since it was looked at", "look at it again")
                await run_to_end(conn.execute_fetchall("COMMIT"))
            written()
            done.append(Check("put_back", "pass", "in one transaction", f"put back: {put_back}"))
        sweep(settings.db_path.parent)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        failed = Check("put_back", "error", "all that can be put back, or nothing of it", fault.observed, fault.remedy)
        return Report(title, (*checks, *done, failed), subject=subject, refused=not done)
    return Report(title, (*checks, *done, *await file_checks(settings)), subject=subject)


def _check(path: Path, outcome: _Outcome, count: int) -> Check:
    observed = f"{path}: {len(outcome.put):,} can be put back, {len(outcome.already):,} stand there already"
    return Check.that(
        "quarantine",
        not outcome.in_the_way,
        expected=f"all of its {counted(count, 'row')} can stand where they stood",
        observed=f"{observed}, {len(outcome.in_the_way):,} stay in the file" if outcome.in_the_way else observed,
        remedy="see the evidence; what these rows held stands in the file: write by hand what belongs there",
        otherwise="warn",
        evidence=[*outcome.in_the_way, *(f"can be put back: {line}" for line in outcome.put)],
    )


async def _try(settings: Settings, entries: list[dict[str, Any]]) -> _Outcome:
    """Find out on a copy what can be put back."""
    parent = settings.db_path.parent
    with scratch_directory(parent, "restore") as scratch:
        copy = scratch / "copy.db"
        async with connect(settings.db_path, settings=settings) as conn:
            await copy_out(conn, copy, owned_as=parent)
        async with connect(copy, settings=settings, mode="rw") as conn:
            return await _put(conn, entries)


async def _put(conn: Connection, entries: list[dict[str, Any]]) -> _Outcome:
    """Put back what can be put back, in a transaction that is begun and left open."""
    await add_functions(conn)
    await conn.execute_fetchall("PRAGMA synchronous = FULL")
    await conn.execute_fetchall("BEGIN IMMEDIATE")
    outcome, waiting, faults = _Outcome(), list(enumerate(entries)), dict[int, str]()
    while waiting:
        failed = []
        for number, entry in waiting:
            try:
                done = await _put_one(conn, entry)
                (outcome.put if done else outcome.already).append(_named(entry))
                outcome.tables[entry["table"]] += done
            except (sqlite3.IntegrityError, RefusedError) as error:
                faults[number] = f"{_named(entry)}: {getattr(error, 'observed', error)}"
                failed.append((number, entry))
        # What one refers to may have come behind it.
        if len(failed) == len(waiting):
            break
        waiting = failed
    outcome.in_the_way += [faults[number] for number, _ in waiting]
    return outcome


def _named(entry: Mapping[str, Any]) -> str:
    key = ", ".join(shown(value) for value in entry["key"].values())
    return f"{entry['table']}: {key}" + (f", {entry['change']['column']}" if entry["change"] else "")


async def _put_one(conn: Connection, entry: Mapping[str, Any]) -> bool:
    """Put back one row, or one value; tell whether it did not stand there already.

    Raises IntegrityError where a rule forbids it, RefusedError where something else stands there.
    """
    table, row = quoted(entry["table"]), entry["row"]
    keys = {name: value_of(value) for name, value in entry["key"].items()}
    where = " AND ".join(f"{quoted(name)} IS {sql}" for name, (sql, _) in keys.items())
    key = [value for _, value in keys.values()]
    found = list(await conn.execute_fetchall(f"SELECT * FROM {table} WHERE {where}", key))
    there = {name: plain(value) for name, value in dict(found[0]).items()} if found else {}
    if not entry["change"]:
        if there == row:
            return False
        if there:
            raise RefusedError("another row has its key now", "see which one is right")
        values = {name: value_of(value) for name, value in row.items()}
        names, marks = ", ".join(map(quoted, values)), ", ".join(sql for sql, _ in values.values())
        await conn.execute_fetchall(
            f"INSERT INTO {table} ({names}) VALUES ({marks})", [value for _, value in values.values()]
        )
        return True
    column = entry["change"]["column"]
    if there and there[column] == row[column]:
        return False
    is_as_left = f"SELECT 1 FROM {table} WHERE {where} AND {quoted(column)} IS ({entry['change']['becomes']})"
    if not there or not list(await conn.execute_fetchall(is_as_left, key)):
        raise RefusedError("changed since" if there else "its row is gone", "see which one is right")
    sql, value = value_of(row[column])
    await conn.execute_fetchall(f"UPDATE {table} SET {quoted(column)} = {sql} WHERE {where}", [value, *key])
    return True
