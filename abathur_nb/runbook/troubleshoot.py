"""Troubleshoot: find what is wrong with a database, why, and what repairs it; carry out the repair when asked."""

import os
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from abathur_nb.backups.aside import move_aside, require_movable, set_log_aside, users_of
from abathur_nb.backups.change import Change, check_arguments, make_change
from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.repair.diagnosis import Diagnosis, diagnose
from abathur_nb.repair.quarantine import affected, put_back_rows, write_quarantine
from abathur_nb.repair.salvage import once_salvaged, rescue, salvage
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import SIDE_FILES, bound, connect, explain_error, open_for_change, pragma, run_to_end
from abathur_nb.store.target import identify, wanted
from abathur_nb.store.values import add_functions
from abathur_nb.text import counted

_TITLE = "troubleshoot"
_COPIED = "copy {path} and its log, byte for byte, into a new directory abathur_aside_… beside it"
# Each of these is the only step of its plan: the database must be diagnosed again after it.
_ALONE = {
    "rescue": "write the data that each of these processes holds to a backup abathur_rescued_… in {backups}; prove it",
    "complete": "complete the unfinished replacement of {path}",
    "move aside": "move the side files of {path} into a new directory abathur_aside_… beside it",
    "set log aside": f"{_COPIED}; then move the log there, and leave {{path}} as it is",
    "write log": f"{_COPIED}; then write what SQLite reads of the log into {{path}}, and move the log there",
    "roll back": "roll back the unfinished transaction of a killed writer in {path}, from its journal",
    "salvage": "write all readable rows of {path} to a backup abathur_salvaged_… in {backups}; keep {path}",
}
# All repairs, in the order in which they are done.
_DEEDS = _ALONE | {
    "wal": "switch {path} to WAL mode",
    "checkpoint": "write the log of {path} into it, and empty the log",
    "chmod": "set {path} and its side files to mode 0600",
    "sweep": "remove the scratch directories of dead processes beside {path} and in {backups}",
}
# While a table is rebuilt, references to it are neither enforced nor renamed; while one fault of a row is repaired,
# CHECKs on its other faults are not enforced.
_REPAIRING = ("foreign_keys = OFF", "legacy_alter_table = ON", "ignore_check_constraints = ON", "synchronous = FULL")


async def troubleshoot(
    settings: Settings,
    *,
    repair: bool = False,
    put_back: str | os.PathLike[str] | None = None,
    confirm: str | None = None,
) -> Report:
    """Report what is wrong with the database, why, and what repairs it; carry that out with ``repair``.

    Read-only without ``repair``. With it: take a proven backup; write each row that will change to a file in
    ``backup_dir``/quarantine; run the statements of the plan in one transaction; repair what no transaction can hold
    (WAL mode, a large log, file modes, leftovers); run ``validate``. Damaged pages are never repaired in place, but
    salvaged into a backup. ``put_back`` names a quarantine file; with ``repair``, its rows are put back if the rules
    of the schema allow them. If the settings require it, ``confirm`` must be the hash of the plan. Raises
    ConfigurationError for a wrong argument.
    """
    check_arguments(confirm=confirm, file=("put_back", put_back, "quarantine file"), repair=repair)
    if put_back is not None:
        return await put_back_rows(settings, put_back, apply=repair, confirm=confirm)
    return await make_change(settings, _TITLE, _find(settings), apply=repair, confirm=confirm)


@asynccontextmanager
async def _find(settings: Settings) -> AsyncIterator[Change]:
    """Yield the change that repairs the database."""
    found = await diagnose(settings)
    deeds = {*found.deeds}
    if found.refused:
        yield Change(found.checks, forbidden=True)
        return
    yield Change(
        found.checks,
        "repair",
        _steps(found, settings),
        {"rows": found.changed, "schema": str(found.schema)},
        partial(_repair, found, settings),
        begun=_ALONE["complete"].format(path=settings.db_path) if "complete" in deeds else "",
        backup="" if _ALONE.keys() & deeds else "pre_repair",
        switch="repair",
        pending="warn",
        validates=not {"rescue", "move aside"} & deeds,
        past=_past,
        judged=once_salvaged if "salvage" in deeds else tuple,
    )


def _steps(found: Diagnosis, settings: Settings) -> tuple[str, ...]:
    """Return, in words and in SQL, what ``_repair`` will do; empty if there is nothing to repair."""
    path, backups = settings.db_path, settings.backup_dir
    planned = {*found.deeds} - {"complete"}
    deeds = [words.format(path=path, backups=backups) for name, words in _DEEDS.items() if name in planned]
    if _ALONE.keys() & {*found.deeds}:
        return tuple(deeds)
    steps = []
    if found.changes:
        rows = counted(sum(count for _, count in found.changes), "row")
        steps.append(f"write the {rows} that will change, as they are now, to {backups}/quarantine")
    if found.steps:
        steps.append("in one transaction:\n" + "\n".join(f"     {step}" for step in found.steps))
    return (*steps, *deeds)


def _past(checks: Iterable[Check]) -> Iterable[Check]:
    """Yield each fault as a warning ``found: …``: the later checks say whether it is repaired."""
    for check in checks:
        if check.status != "pass":
            yield replace(check, id=f"found_{check.id}", name=f"found: {check.name}", status="warn", remedy="")


async def _repair(found: Diagnosis, settings: Settings, done: list[Check]) -> None:
    """Do what the plan says; add to ``done`` the check of each step, so that it is reported if a later step fails."""
    path, deeds = settings.db_path, found.deeds
    if "rescue" in deeds:
        there = wanted(await identify(settings), settings)
        done += [*await rescue(settings), *([] if there.id == "open_files" else [there])]
    if "move aside" in deeds:
        require_movable(path)  # a process that has the database open would write to the moved files
        observed = f"in {move_aside(path, SIDE_FILES)}; {path} is missing now"
        remedy = wanted(await identify(settings), settings).remedy
        done.append(Check("moved_aside", "warn", "a database", observed, remedy))
    if {"set log aside", "write log"} & {*deeds}:
        done.append(await set_log_aside(settings, write="write log" in deeds))
    if "roll back" in deeds:
        async with connect(path, settings.busy_timeout_ms, mode="rw"):  # SQLite rolls back at the first read
            observed = f"{path} is as it was before the unfinished transaction"
        done.append(Check("rolled_back", "pass", "no hot journal", observed))
    if "salvage" in deeds:
        done.append(await salvage(settings))
    if found.steps and not _ALONE.keys() & {*deeds}:
        done += await _run(found, settings)
    if "wal" in deeds:
        done += await _switch_to_wal(settings)
    if "checkpoint" in deeds:
        done += await _empty_the_log(settings)
    if "chmod" in deeds:
        _make_private(path)


async def _run(found: Diagnosis, settings: Settings) -> list[Check]:
    """Run the statements of the plan, all or none; raise RefusedError if the rows changed since it was shown."""
    kept: Path | None = None
    path = settings.db_path
    async with open_for_change(path, settings.busy_timeout_ms) as conn:
        await conn.apply(add_functions)
        await bound(conn, path, timed=False)  # no time limit, or a long repair would never succeed
        for setting in _REPAIRING:
            await conn.execute_fetchall(f"PRAGMA {setting}")
        try:
            await conn.execute_fetchall("BEGIN IMMEDIATE")
            same = await pragma(conn, "schema_version") == found.schema
            if found.changes:
                kept, digest = await write_quarantine(settings, affected(conn, found.changes))
                same &= digest == found.changed
            if not same:
                raise RefusedError(f"{path} has changed since the plan was made", "run this again")
            for step in found.steps:
                cursor = await conn.execute(step.sql)
                if step.rows not in (None, cursor.rowcount):
                    changed = f"{step.sql} changed {counted(cursor.rowcount, 'row')}, not {step.rows:,}"
                    raise RefusedError(f"{changed}: nothing was repaired", "run this again")
                await cursor.close()
            await run_to_end(conn.execute_fetchall("COMMIT"))
        except BaseException:
            if conn.in_transaction and kept:
                kept.unlink()  # its rows were not changed
            raise
    committed = f"{counted(len(found.steps), 'statement')} committed"
    checks = [Check("transaction", "pass", "all statements of the plan", committed)]
    if kept:
        observed = f"{kept}: {counted(sum(count for _, count in found.changes), 'row')}, each as it was before"
        lost = tuple(f"{change.sql}; -- {counted(count, 'row')}" for change, count in found.changes)
        remedy = f"to put back the rows that the schema allows: -p put_back {kept.name}"
        checks.append(Check("quarantine", "warn", "every changed row is in a quarantine file", observed, remedy, lost))
    return checks


async def _switch_to_wal(settings: Settings) -> list[Check]:
    """Switch the database to WAL mode; return a check, which fails if another process uses it."""
    expected, title = "no other process uses the database", "switch to WAL"
    try:
        async with connect(settings.db_path, settings.busy_timeout_ms, mode="rw") as conn:
            await conn.execute_fetchall("PRAGMA journal_mode = WAL")
    except sqlite3.Error as error:
        fault = explain_error(settings.db_path, error)
        return [Check("switch_to_wal", "fail", expected, fault.observed, fault.remedy, name=title)]
    return [Check("switch_to_wal", "pass", expected, f"{settings.db_path} is in WAL mode", name=title)]


async def _empty_the_log(settings: Settings) -> list[Check]:
    """Checkpoint the WAL and empty it; return a check, which names the processes that prevent it."""
    expected = "no process uses the database for a moment"
    async with connect(settings.db_path, settings.busy_timeout_ms, mode="rw") as conn:
        (done,) = await conn.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    if not done["busy"]:
        return [Check("empty_log", "pass", expected, "the log is written into the database, and is empty")]
    users = ", ".join(users_of(settings.db_path)) or "another process"
    observed, remedy = f"{users} used it for more than {settings.busy_timeout_ms} ms", "end them, then run this again"
    return [Check("empty_log", "warn", expected, observed, remedy)]


def _make_private(path: Path) -> None:
    """Make the database and its side files 0600, so that access control lists grant nothing. Raises OSError."""
    for name in (f"{path}{suffix}" for suffix in ("", *SIDE_FILES)):
        with suppress(FileNotFoundError):
            # By an O_PATH descriptor: closing any other would drop the locks of this process's connections.
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW)
            try:
                os.chmod(f"/proc/self/fd/{descriptor}", 0o600)  # noqa: PTH101
            finally:
                os.close(descriptor)
