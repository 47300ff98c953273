"""Initialize: create the database, whole and durable, or not at all (the runbook's section 2)."""

import os
import sqlite3
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

import aiosqlite

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.files import fsync, make_private_file, os_cause, private_directory, scratch_directory, sweep
from abathur_nb.health.checks import database_checks, file_checks
from abathur_nb.health.path_on_disk import FILE_MODES, directory_checks, file_modes, forbids, location_checks
from abathur_nb.report import Check, Report, run_check
from abathur_nb.runbook.preflight import behaviour
from abathur_nb.store.connection import connect, connection_pragmas, explain_error, pragma
from abathur_nb.store.guarded import strays_check
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.store.sql import SEED_FILE, statements
from abathur_nb.store.target import identify, repair_command
from abathur_nb.text import counted

_TITLE = "initialize"

# The steps of section 2 that run in one transaction, in order.
_STEPS = (
    ("make_memory_tables", "2.3 memory tables", "ddl-memory-tables.sql"),
    ("make_core_tables", "2.4 core tables", "ddl-core-tables.sql"),
    ("make_indexes", "2.5 indexes", "ddl-indexes.sql"),
    ("make_seed_memories", "2.6 seed memories", SEED_FILE),
)
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"


def _script() -> list[str]:
    """Return the statements of the one transaction that makes schema and seeds."""
    ids = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}")
    lines = (line for *_, filename in _STEPS for line in statements(filename))
    return ["BEGIN IMMEDIATE", *ids, *lines, "COMMIT"]


async def initialize_database(settings: Settings, *, dry_run: bool = False) -> Report:
    """Create the database at ``settings.db_path``, or report that a valid one exists.

    All or nothing: it is built and validated under another name in the same directory, synced to the disk, and then
    linked to its own name. Of several racing processes only one succeeds. An existing database is never changed.
    ``dry_run`` shows the statements and changes nothing.
    """
    checks: list[Check] = []  # shown also if a later step fails
    try:
        target = await identify(settings)
        if target.state == "present":
            refused = await _is_not_valid(settings, dry_run, checks)
        else:
            checks.append(target.check)
            refused = target.state != "absent" or await _is_forbidden(settings, dry_run, checks)
            if not refused:
                checks += _plan(settings) if dry_run else await _create(settings)
    except FileExistsError:  # another process created it first: check that one
        return await initialize_database(settings)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault, refused = explain_error(settings.db_path, error), True
        remedy = fault.remedy or "correct that, then try again"
        checks.append(Check("create", "error", "a new database", f"no database was made: {fault.observed}", remedy))
    title = f"{_TITLE} (dry run)" if dry_run else _TITLE
    return Report(title, tuple(checks), subject=str(settings.db_path), refused=refused)


async def _is_forbidden(settings: Settings, dry_run: bool, checks: list[Check]) -> bool:
    """Check the location of a new database, and return whether a check forbids it."""
    location = location_checks(settings)
    checks += location
    if (lost := strays_check(settings.db_path)).failed:  # a process has a deleted or renamed file of this path open
        checks.append(replace(lost, status="warn"))
    if dry_run or forbids(location):
        return forbids(location)
    # If the type of the file system only causes a warning, its behaviour is tested.
    if any(check.id == "file_system" and check.status == "warn" for check in location):
        checks.append(await behaviour(settings))
        return checks[-1].failed
    return False


async def _is_not_valid(settings: Settings, dry_run: bool, checks: list[Check]) -> bool:
    """Check the existing database, and return whether init refuses it. Changes no byte of it."""
    place = directory_checks(settings)
    if forbids(place):
        checks += place
        return True
    found = await file_checks(settings)
    # A wrong mode is reported, but does not make the database invalid.
    broken = any(check.failed for check in found if check.id != FILE_MODES)
    done, swept = list[Check](), list[str]()
    if not broken and not dry_run:
        # The run that made it may have been killed before its name was durable or its scratch directory removed.
        done = [_force_name(settings.db_path, " existed already; its name was synced to the disk again")]
        swept = sweep(settings.db_path.parent)
    observed = f"{'a database that is not valid' if broken else 'already initialized'}: left as it is"
    expected, remedy = "no database yet, or a valid one", repair_command(settings)
    found_there = Check.that("create", not broken, expected, observed, remedy, evidence=swept)
    checks += [found_there, *place, *done, *found]
    return broken


async def _create(settings: Settings) -> list[Check]:
    folder, path = settings.db_path.parent, settings.db_path
    with private_directory(folder):
        checked = os.lstat(folder)
        if not stat.S_ISDIR(checked.st_mode):
            raise RefusedError(f"{folder} was replaced by a link in the meantime")
        with scratch_directory(folder, "init") as scratch:
            draft = scratch / path.name
            make_private_file(draft, owned_as=folder)
            async with connect(
                draft, settings.busy_timeout_ms, mode="rw", synchronous=settings.synchronous, watched=False
            ) as conn:
                done = await _build(conn, settings)
                # The draft lies in another directory: the modes are checked once it is linked to its name.
                validation = [c for c in await database_checks(conn, draft, settings) if c.id != FILE_MODES]
            if failed := [check for check in validation if check.failed]:
                named = "; ".join(f"{check.name}: {check.observed}" for check in failed)
                raise RefusedError(f"the new database is not valid and was removed: {named}")
            if not os.path.samestat(os.lstat(folder), checked):
                raise RefusedError(f"{folder} was replaced by another directory or a link in the meantime")
            fsync(draft)
            os.link(draft, path)  # raises FileExistsError if the name is taken; a rename would replace the file
            # From here on the database exists: a failure is reported, not raised.
            published = _force_name(path)
            ask = partial(file_modes, path)
            validation.append(await run_check(FILE_MODES, ask, remedy=f"namei -l {quote(str(folder))}"))
        swept = sweep(folder)
    made = Check("make_file", "pass", observed=f"{path}, mode 0600", evidence=tuple(swept), name="2.1 database file")
    return [made, *done, *(replace(check, name=f"2.7 {check.name}") for check in validation), published]


async def _build(conn: aiosqlite.Connection, settings: Settings) -> list[Check]:
    """Make the tables, the indexes and the seeds in one transaction, and checkpoint the write-ahead log."""
    mode = await pragma(conn, "journal_mode = WAL")
    # `connect` has read back the other seven PRAGMAs.
    found = {"journal_mode": mode, **connection_pragmas(settings.busy_timeout_ms, settings.synchronous)}
    words = ", ".join(f"{name} = {value}" for name, value in found.items())
    if mode != "wal":
        raise RefusedError(f"SQLite did not switch to WAL mode: {words}")
    # One script takes one call to the connection's thread instead of fifty.
    await conn.executescript(";\n".join(_script()) + ";")
    # Closing would checkpoint as well, but would not report a failure.
    (emptied,) = await conn.execute_fetchall(_EMPTY_LOG)
    if tuple(emptied) != (0, 0, 0):
        raise RefusedError(f"the write-ahead log of the new database could not be emptied: {tuple(emptied)}")
    return [
        Check("set_pragmas", "pass", expected="all eight, as set", observed=words, name="2.2 PRAGMA settings"),
        *(
            Check(step, "pass", observed=f"{counted(len(statements(file)), 'statement')} of sql/{file}", name=name)
            for step, name, file in _STEPS
        ),
    ]


def _force_name(path: Path, done: str = "") -> Check:
    expected = "under its own name, forced to the disk"
    try:
        fsync(path.parent)
    except OSError as error:
        cause = os_cause(error, path.parent)
        observed = f"{path} is complete, but its name may not survive a power cut: {cause.observed}"
        return Check("published", "error", expected, observed, f"{cause.remedy}; then run init again")
    return Check("published", "pass", expected, f"{path}{done}")


def _plan(settings: Settings) -> list[Check]:
    """Return the steps with the exact statements that they would run."""
    folder, path = quote(str(settings.db_path.parent)), quote(str(settings.db_path))
    pragmas = {"journal_mode": "WAL", **connection_pragmas(settings.busy_timeout_ms, settings.synchronous)}
    checks = []
    for check_id, name, lines in (
        ("make_file", "2.1 database file", [f"mkdir -p -m 700 {folder}", f"install -m 600 /dev/null {path}"]),
        ("set_pragmas", "2.2 PRAGMA settings", [f"PRAGMA {name} = {value}" for name, value in pragmas.items()]),
        ("make_all", "2.3 to 2.6, one transaction", _script()),
        ("empty_log", "end of the transaction", [_EMPTY_LOG]),
    ):
        observed = f"would run {counted(len(lines), 'statement')}"
        checks.append(Check(check_id, "skip", "", observed, "", tuple(f"{line};" for line in lines), name=name))
    return checks
