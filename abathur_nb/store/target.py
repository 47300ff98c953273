"""Identify what is at the database path, and name the commands that repair it."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join, quote
from typing import Literal

from aiosqlite import Connection

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError, bound_reached
from abathur_nb.report import Check, Report
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import SIDE_FILES, connect, explain_error, pragma
from abathur_nb.store.guarded import strays_check
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION, Differences, expected_objects, read_schema
from abathur_nb.store.sql import load_queries
from abathur_nb.text import SHELL, did_you_mean, some, user_name

FIND_OUT = "it does not belong here: find out who made it; if nobody needs it, drop it"
_ANOTHER = "db_path: name another path, or move it away by hand"
_RESTORE = "stop its writers and restore a backup"
_MOST = 20  # statements in one command
_KINDS = {stat.S_IFDIR: "is a directory", stat.S_IFLNK: "is a symbolic link"}
State = Literal["absent", "empty", "damaged", "remains", "refused", "present"]


@dataclass(frozen=True, slots=True)
class Target:
    """Hold what is at the database path; ``check`` says why, ``error`` is the class to raise if not ``present``.

    ``absent``: a database can be made. ``empty``: a file of 0 bytes. ``damaged``: an Abathur database that SQLite
    cannot read. ``remains``: files without their database. ``refused``: not to be touched. ``present``: Abathur's.
    """

    state: State
    check: Check
    error: type[AbathurError] = RefusedError


def _target(state: State, observed: str, remedy: str = "", **data: int) -> Target:
    status: Literal["pass", "fail"] = "pass" if state in ("absent", "present") else "fail"
    expected = "an Abathur database, a regular file in a directory that is not a link"
    return Target(state, Check("database_file", status, expected, observed, remedy, data=data))


def examine(settings: Settings, *, journal: bool = True) -> Target:
    """Return what is at ``settings.db_path`` without opening it; with ``journal``, a replacement too. Read-only."""
    path = settings.db_path
    as_owner = f"see who owns it, and run this as that user: namei -l {quote(str(path))}"
    if path.name.endswith(SIDE_FILES):
        named = f"{path} has a name of SQLite's side files ({', '.join(SIDE_FILES)})"
        return _target("refused", named, "db_path: name another file, such as abathur.db")
    if journal and os.path.lexists(journal_of(path)):
        begun = f"a replacement of {path} was begun but not completed: see {journal_of(path).name}"
        return _target("remains", begun, "run troubleshoot.ipynb, restore.ipynb or rollback.ipynb, which complete it")
    try:
        if stat.S_ISLNK(os.lstat(path.parent).st_mode):
            real = os.path.realpath(path.parent)
            link = f"{path.parent} is a symbolic link to {real}"
            return _target("refused", link, f"db_path: name {real}/{path.name}")
        found = os.lstat(path)
    except FileNotFoundError:
        return _absent(settings)
    except OSError as error:
        return _target("refused", f"{path} cannot be examined: {error.strerror}", as_owner)
    for name in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)):
        try:
            mode = os.lstat(name).st_mode
        except FileNotFoundError:  # side files come and go
            continue
        if not stat.S_ISREG(mode):  # SQLite would wait for ever at a FIFO, even as a side file
            words = _KINDS.get(stat.S_IFMT(mode), "is not a regular file")
            remedy = "db_path: name a regular file, or a path where nothing is"
            if stat.S_ISLNK(found.st_mode) and os.path.lexists(f"{path}-wal"):  # SQLite uses the log beside the target
                rows = f"{path}-wal may hold committed rows of {os.path.realpath(path)}"
                remedy = f"{rows}: if so, stop its users and move that database back to {path}"
            return _target("refused", f"{name} {words}", remedy)
    if found.st_size == 0:
        remedy = f"if no process uses it: rm {quote(str(path))} && {_command('init', settings)}"
        return _target("empty", f"{path} is an empty file of 0 bytes", remedy)
    if not os.access(path, os.R_OK):
        remedy = f"chmod 600 {quote(str(path))}" if found.st_uid == os.geteuid() else as_owner
        return _target("refused", f"{path} may not be read by {user_name(os.geteuid())}", remedy)
    return _target("present", f"{path}, {found.st_size:,} bytes")


def _absent(settings: Settings) -> Target:
    path = settings.db_path
    stale = [f"{path}{suffix}" for suffix in SIDE_FILES if os.path.lexists(f"{path}{suffix}")]
    if stale and not os.path.lexists(path):  # else another process has just made the database
        # SQLite would read the rows of that log into a new database.
        remedy = f"they may hold committed rows of a lost database; to move them aside: {repair_command(settings)}"
        return _target("remains", f"no database, but side files of a former one: {', '.join(stale)}", remedy)
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    if not os.path.isdir(above):
        return _target("refused", f"{above} is not a directory", "db_path: name another path")
    return _target("absent", f"no database at {path}")


def journal_of(path: Path) -> Path:
    """Return the path of the journal of an unfinished replacement."""
    return path.with_name(f"{path.name}.replacing.json")


async def identify(
    settings: Settings, *, refuses: Collection[str] = ("trigger", "view"), seen: Target | None = None
) -> Target:
    """Return what is at ``settings.db_path``, by its application_id and schema version. Read-only.

    ``refuses`` names the kinds of objects that the caller does not accept. ``seen`` is a result of `examine`.
    """
    target = seen or examine(settings)
    if target.state != "present":
        return target
    path = settings.db_path
    try:
        async with connect(path, settings.busy_timeout_ms) as conn:
            alien = await conn.execute_fetchall(load_queries("inspect.sql")["triggers_and_views"].sql)
            fault = await identity_fault(conn, settings)
    except (sqlite3.Error, OSError, AbathurError) as error:
        return await _unopened(settings, error)
    if fault and "remade" not in fault.check.data:
        return fault
    if aliens := [row for row in alien if row["type"] in refuses]:
        names, drops = some([f"{row['type']} {row['name']}" for row in aliens]), [row["drops"] for row in aliens]
        return _target("refused", f"{path} holds {names}", f"{FIND_OUT} {shell_command(path, drops)}")
    return fault or target


async def _unopened(settings: Settings, error: Exception) -> Target:
    state, explained = await explain_unopened(settings.db_path, error)
    remedy = f"{_RESTORE}: {restore_command(settings)}" if state == "damaged" else explained.remedy
    target = replace(_target(state, explained.observed, remedy), error=type(explained))
    if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK:
        return target
    # Whether the database is sound can be judged only after its recovery.
    check = replace(target.check, status="error", observed=f"could not run: {explained.observed}")
    return replace(target, check=replace(check, remedy=repair_command(settings), data={"error": explained.observed}))


async def explain_unopened(path: Path, error: Exception) -> tuple[State, AbathurError]:
    """Return whether a file that SQLite cannot open is a ``damaged`` Abathur database, and the error. Read-only."""
    explained, code = explain_error(path, error), getattr(error, "sqlite_errorcode", 0) & 0xFF
    if str(error) == "unsupported file format":  # the schema format in the header
        code = sqlite3.SQLITE_NOTADB
    if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or bound_reached(error):
        return "refused", explained
    # Indexes too: their SQL has no comments, and comments differ between versions.
    known = [found.sql for found in expected_objects().values()]
    ours = await asyncio.to_thread(ask, "ours", path, str(APPLICATION_ID), *known)
    fault = await asyncio.to_thread(ask, "header", path) if ours else ""
    if ours and (fault or code == sqlite3.SQLITE_NOTADB):
        destroyed = "its header (the first 100 bytes) is destroyed, the tables after it are Abathur's"
        explained = RefusedError(f"{path} is CORRUPT: {fault or destroyed}", _RESTORE)
    elif not ours and code == sqlite3.SQLITE_CORRUPT:
        explained = RefusedError(f"{path} is another application's, and CORRUPT ({error})", _ANOTHER)
    return "damaged" if ours else "refused", explained


async def identity_fault(conn: Connection, settings: Settings) -> Target | None:
    """Return the Target of a database with another application_id or schema version; else None. Read-only.

    Its check's ``data`` has the ``version`` if that is wrong, and ``remade`` if only the application_id is missing.
    """
    path = settings.db_path
    application_id, version = await pragma(conn, "application_id"), await pragma(conn, "user_version")
    differing = (application_id ^ APPLICATION_ID) % 2**32 << 32 | (version ^ SCHEMA_VERSION) % 2**32
    if not differing:
        return None
    # Only one byte differs, and not the last one, which a newer version would change.
    if differing & 0xFF == 0 and len(differing.to_bytes(8, "big").strip(b"\0")) == 1:
        spoilt = f"its header has application_id {application_id:#x}, user_version {version}: one byte is wrong"
        return _target("damaged", f"{path} is CORRUPT: {spoilt}", f"{_RESTORE}: {restore_command(settings)}")
    differences = Differences.between(await read_schema(conn))
    is_our_schema = not differences.missing and not differences.altered
    if application_id == 0 and is_our_schema:
        observed = f"{path} has Abathur's tables, but its application_id is missing, as after a dump"
        return _target("refused", observed, f"to set it: {repair_command(settings)}", remade=1)
    if application_id != APPLICATION_ID:
        observed = f"{path} is another application's or incomplete: application_id {application_id:#010x}"
        return _target("refused", observed, f"{_ANOTHER} (Abathur has {APPLICATION_ID:#x})")
    if is_our_schema:
        remedy = f"its schema is that of version {SCHEMA_VERSION}: if the number was set by hand, set it back "
        remedy += shell_command(path, [f"PRAGMA user_version = {SCHEMA_VERSION};"])
    else:
        moved = f"mv -n {quote(str(path))} {quote(f'{path}.version-{version}')}"
        remedy = f"stop its users and move it aside: {moved}; then restore a backup: {restore_command(settings)}; "
        remedy += f"or make a new one: {_command('init', settings)}"
    words = "incomplete, or of a schema that was never released"
    if version > SCHEMA_VERSION:
        words, remedy = "newer than this package", f"update abathur_nb; if there is no newer one: {remedy}"
    observed = f"{path} is {words}: user_version {version}, expected {SCHEMA_VERSION}"
    return _target("refused", observed, remedy, version=version)


def shell_command(path: Path, statements: Sequence[str]) -> str:
    """Return the command that runs statements in SQLite's own shell."""
    rest = f"; then run the check again: {len(statements) - _MOST:,} are left" if len(statements) > _MOST else ""
    return f"{SHELL} {quote(str(path))} {quote(' '.join(statements[:_MOST]))}{rest}"


async def refusal(title: str, settings: Settings, *, refuses: Collection[str] = ()) -> Report | None:
    """Return the Report of a function that finds no Abathur database at its path, or None. Read-only."""
    target = await identify(settings, refuses=refuses)
    if target.state == "present":
        return None
    check, refused = wanted(target, settings), True
    if target.state in ("empty", "damaged"):  # findings about a database
        check, refused = to_be_repaired(check, settings), False
    return Report(title, (check,), subject=str(settings.db_path), refused=refused)


def repair_command(settings: Settings) -> str:
    """Return the command that shows why a check fails and the plan of a repair."""
    return _command("troubleshoot", settings)


def restore_command(settings: Settings) -> str:
    """Return the command that shows the plan of a restore."""
    return _command("restore", settings)


def rollback_command(settings: Settings, to: str) -> str:
    """Return the command that shows the plan of a rollback to a backup or to a fresh database."""
    return f"{_command('rollback', settings)} -p to {quote(to)}"


def _command(notebook: str, settings: Settings) -> str:
    # The backups of a given db_path are beside it, unless backup_dir is given.
    usual = settings.is_default_path or settings.backup_dir == settings.db_path.with_name("backups")
    where = "" if usual else f"ABATHUR_BACKUP_DIR={quote(str(settings.backup_dir))} "
    return f"{where}{join(settings.command(notebook))}"


def to_be_repaired(check: Check, settings: Settings) -> Check:
    """Return a check with the command that plans a repair, if it failed, or did not pass and has no remedy."""
    if not check.failed and (check.remedy or check.status == "pass"):
        return check
    by_hand = f"; by hand: {check.remedy}" if check.remedy else ""
    return replace(check, remedy=f"to see why, and how to repair it: {repair_command(settings)}{by_hand}")


def wanted(target: Target, settings: Settings) -> Check:
    """Return the check of a target, which fails if the target is not a database. Read-only."""
    if target.state in ("absent", "remains") and (lost := strays_check(settings.db_path)).failed:
        return lost
    if target.state not in ("absent", "empty"):
        return target.check
    beside = [path.name for path in settings.db_path.parent.glob("*") if target.state == "absent"]
    near, make_it = did_you_mean(settings.db_path.name, beside), target.check.remedy or _command("init", settings)
    if any(settings.backup_dir.glob("abathur_*.db*")):
        make_it = f"restore a backup: {restore_command(settings)}; or make a new one: {make_it}"
    return replace(target.check, status="fail", observed=target.check.observed + near, remedy=make_it)
