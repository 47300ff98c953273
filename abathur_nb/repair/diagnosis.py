"""The diagnosis: what is wrong with a database and why, and which statements repair it. Read-only."""

import asyncio
import os
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import NamedTuple

from aiosqlite import Connection

from abathur_nb.backups.aside import begun, users_of
from abathur_nb.backups.manifest import why_unnamed
from abathur_nb.backups.taking import open_copy
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.files import posix_locks, sweep
from abathur_nb.health.checks import HEADER, OTHERS, file_checks, integrity_check
from abathur_nb.health.path_on_disk import (
    ELSEWHERE,
    FILE_MODES,
    file_system,
    free_mb,
    kind_of,
    log_bytes,
    log_check,
    mounted_files,
)
from abathur_nb.repair import statements
from abathur_nb.repair.quarantine import affected, kept_values
from abathur_nb.repair.salvage import once_salvaged, salvaged_before, stray_rows
from abathur_nb.repair.statements import RowChange, Step
from abathur_nb.report import Check
from abathur_nb.store.apart import WRITE_LOCK, ask
from abathur_nb.store.connection import connect, explain_error, lock_owners, pragma
from abathur_nb.store.guarded import strays
from abathur_nb.store.schema import Differences, SchemaObject, quoted, read_schema
from abathur_nb.store.sql import DATA
from abathur_nb.store.target import examine, identify, restore_command, shell_command, wanted
from abathur_nb.store.values import add_functions
from abathur_nb.text import MB, process_name, some

# The plan names the parameters, because its hash may be required.
REPAIR = "read the plan below: it repairs this, and names the parameters that carry it out"
_RESTORE = "stop its writers; carry out the plan below, which saves all readable rows; then {}"
_FIRST = "first repair what the other checks report, then run this again"
_JSON = ("json_columns", "json_limits", "readable_text")
_UNCHECKED = "a writer with CHECK constraints switched off, or a disk fault"
_CAUSES = {
    "foreign_keys": "a writer with foreign_keys off, which is SQLite's default",
    "json_columns": _UNCHECKED,
    "json_limits": "a writer other than this package, which refuses such values",
    "readable_text": "a writer that stored bytes as text",
    "values": _UNCHECKED,
    "required_values": _UNCHECKED,
    "timestamps": "a writer with a clock format of its own",
    "moments": "a clock that was ahead, or is behind now",
    "indexes": "somebody dropped or changed an index",
    "tables": "somebody changed the schema",
    OTHERS: "another program, such as a replication tool, or somebody by hand",
    "sequences": "somebody edited sqlite_sequence",
    "seed_memories": "somebody edited or deleted version 1, which must not change",
    FILE_MODES: "created with a wide umask, copied without its mode, or opened to others by hand",
    "file_names": "a hard link to it",
    "statistics": "the query planner still uses the row counts of an old ANALYZE",
}
_READ_MARKS = range(123, 128)  # bytes of the -shm that a reader of the log locks (walformat.html, section 2.3)


@dataclass(slots=True)
class Diagnosis:
    """Hold the findings and what a repair does about them; ``refused`` if nothing can be repaired."""

    checks: tuple[Check, ...] = ()
    deeds: tuple[str, ...] = ()  # names of steps outside of the transaction
    changes: list[tuple[RowChange, int]] = field(default_factory=list)  # each with its number of rows
    statements: list[Step] = field(default_factory=list)  # the other statements of the transaction
    changed: str = ""  # the SHA-256 of all rows to be changed, as they are now
    schema: int = 0  # PRAGMA schema_version
    refused: bool = False
    causes: dict[str, str] = field(default_factory=dict)  # of a check, by its id
    remedies: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> list[Step]:
        """Return the statements of the transaction in their order: rows first, then tables and indexes."""
        return [*(Step(change.sql, count) for change, count in self.changes), *self.statements]

    def plan(self, check_id: str, deed: str = "", *, cause: str = "", remedy: str = REPAIR) -> None:
        """Add a step outside of the transaction; give a check its remedy and, if not the usual one, its cause."""
        self.deeds += (deed,) if deed else ()
        self.causes |= {check_id: cause} if cause else {}
        self.remedies[check_id] = remedy

    def explained(self, check: Check) -> Check:
        """Return a check with its cause and its remedy."""
        if check.status == "pass":
            return check
        # The cause is unknown if the check could not run.
        cause = self.causes.get(check.id, "" if check.status == "error" else _CAUSES.get(check.id, ""))
        observed = f"{check.observed}\ncause: {cause}" if cause else check.observed
        return replace(check, observed=observed, remedy=self.remedies.get(check.id, check.remedy))


async def diagnose(settings: Settings) -> Diagnosis:
    """Return what is wrong with the database at ``settings.db_path`` and what would repair it. Read-only."""
    found = await _outside(settings) or await _inside(settings)
    if "salvage" in found.deeds and (before := salvaged_before(settings)):
        found.checks = (*once_salvaged(found.checks), before)
        found.deeds = tuple(deed for deed in found.deeds if deed != "salvage")
    return found


async def _outside(settings: Settings) -> Diagnosis | None:
    """Diagnose what prevents reading a database, such as lost files or a destroyed header."""
    path = settings.db_path
    if lost := strays(path):  # the rows are lost when the processes end, and the file at the path is incomplete
        check, newer = await asyncio.to_thread(stray_rows, settings, lost)
        return Diagnosis((check,), ("rescue",) if newer else ())
    there = examine(settings)
    if there.state == "remains":
        return _remains(there.check, path)
    there = await identify(settings, refuses=("trigger",), seen=there)  # a repair would run triggers
    check = there.check
    if there.state == "damaged":
        log = await asyncio.to_thread(log_check, path)
        if log.failed and (why := await _why_alone(path, log, corrupt=True)):
            return _without_log((check,), log, why)
        return Diagnosis((replace(check, remedy=_RESTORE.format(_restoring(settings))),), ("salvage",))
    if check.status == "error":  # a hot journal, which only a writer may roll back
        return Diagnosis((replace(check, remedy=REPAIR),), ("roll back",))
    if there.state == "present" or "remade" in check.data:
        return None
    return Diagnosis((wanted(there, settings),), refused=there.state != "empty")


def _restoring(settings: Settings, what: str = "a backup") -> str:
    """Return the command that restores the newest backup and, if it would be refused, the reason. Read-only."""
    why = why_unnamed(settings)
    return f"restore {what}: {restore_command(settings)}" + (f"; it must name a backup: {why}" if why else "")


def _remains(check: Check, path: Path) -> Diagnosis:
    """Plan to complete an unfinished replacement, or to move side files without a database aside."""
    try:
        completes = begun(path)
    except RefusedError as error:
        return Diagnosis((replace(check, observed=error.observed, remedy=error.remedy),), refused=True)
    if mounted := mounted_files(path):
        return Diagnosis((check, replace(mounted[0], status="fail")), refused=True)
    cause = "a restore or rollback that was killed" if completes else "the database alone was moved or deleted"
    check = replace(check, observed=f"{check.observed}\ncause: {cause}", remedy=REPAIR)
    return Diagnosis((check,), ("complete" if completes else "move aside",))


async def _inside(settings: Settings) -> Diagnosis:
    """Diagnose a database that can be opened, its log and its files."""
    path, found = settings.db_path, Diagnosis()
    first = Look.at_files(path)
    checks = await file_checks(settings, unrepaired=_FIRST)  # the usual remedy is troubleshoot itself
    # Without a check that others depend on, a plan would be incomplete.
    if checks[0].status == "error" or any(check.status == "error" and check.id == "integrity" for check in checks):
        return Diagnosis(checks, refused=True)
    checks = tuple(check for check in checks if check.id != "log")
    failing = {check.id: check for check in checks if check.failed}
    try:
        async with connect(path, settings.busy_timeout_ms) as conn:
            await conn.apply(add_functions)
            await conn.executescript("PRAGMA mmap_size = 0; PRAGMA cache_size = -4000;")  # as `file_checks` does
            await conn.execute_fetchall("BEGIN")
            await _treat(conn, failing, settings, found)
            if "integrity" not in failing:
                checks = (*checks, statistics := await statements.statistics_check(conn, REPAIR))
                found.statements += [] if statistics.status == "pass" else [Step("ANALYZE")]
            digest = sha256()
            async for line in affected(conn, found.changes):
                digest.update(line)
            found.changed = digest.hexdigest()
            found.schema = await pragma(conn, "schema_version")
        unread = Look.at_files(path)  # not while reading, when the log of a busy database grows
        log = await asyncio.to_thread(log_check, path)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(path, error)
        failed = Check("diagnosis", "error", "every fault can be diagnosed", fault.observed, fault.remedy)
        return Diagnosis((*checks, failed))
    if log.status == "error":
        return Diagnosis((*checks, log), refused=True)
    if log.failed:  # any other repair would overwrite the unread rest of the log
        corrupt = "integrity" in failing and bool(failing["integrity"].data.get("is_corrupt"))
        why = await _why_alone(path, log, corrupt=corrupt)
        if why or not corrupt or "salvage" not in found.deeds:
            return _without_log(checks, log, why)
    folders = dict.fromkeys((path.parent, settings.backup_dir))
    if left := ", ".join(str(folder / name) for folder in folders for name in sweep(folder, remove=False)):
        found.plan("file_names", "sweep")
    expected = "no scratch directory of a dead process"
    observed = f"{left}\ncause: a run that was killed" if left else "none"
    leftovers = Check.that("leftovers", not left, expected, observed, REPAIR, "warn")
    then = Look.at_files(path)
    pins = then.behind_since(first)
    size = next(check for check in checks if check.id == "wal_size")
    if size.status != "pass" and "salvage" not in found.deeds and log.status == "pass" and not pins:
        found.plan("wal_size", "checkpoint")
    size = wal_check(size, pins, unread, then, free_mb(path.parent))
    explained = (found.explained(size if check.id == "wal_size" else check) for check in checks)
    found.checks = (*explained, log, _locks(path, first, then), leftovers)
    return found


async def _why_alone(path: Path, log: Check, *, corrupt: bool) -> str:
    """Return why the file is better without its damaged log, or an empty text. Read-only."""
    newer = await asyncio.to_thread(ask, "newer", path, str(log.data["torn"]))
    if not newer and not corrupt:
        return ""
    try:
        async with open_copy(path) as conn:  # without the log
            alone = await integrity_check(conn, "")
    except (sqlite3.Error, AbathurError):
        return ""
    return "" if alone.data.get("is_corrupt") else "it is newer" if newer else "only the file alone is intact"


def _without_log(checks: tuple[Check, ...], log: Check, why: str) -> Diagnosis:
    """Plan to move a damaged log aside; without ``why``, SQLite first writes its readable part into the database."""
    if not why:
        log = replace(log, remedy=f"{log.remedy}; then {REPAIR}, as far as SQLite reads the log")
        return Diagnosis((*checks, log), ("write log",))
    observed = f"{log.observed}; the plan keeps the database file without its log: {why}"
    log = replace(log, observed=observed, remedy=f"{log.remedy}; then {REPAIR}")
    checks = tuple(replace(check, remedy=REPAIR) if check.failed else check for check in checks)
    return Diagnosis((*checks, log), ("set log aside",))


async def _treat(conn: Connection, failing: Mapping[str, Check], settings: Settings, found: Diagnosis) -> None:
    """Add the repair of each failed check, except those that need damaged pages or missing tables repaired first."""
    # To change the owner of the files and the directory takes another user.
    if FILE_MODES in failing and failing[FILE_MODES].data.get("not_0600"):
        found.plan(FILE_MODES, "chmod", remedy=f"{REPAIR}; by hand: {failing[FILE_MODES].remedy}")
    integrity = failing["integrity"].data if "integrity" in failing else {}
    if HEADER in failing or integrity.get("is_corrupt"):
        await _treat_damage(conn, () if HEADER in failing else integrity["indexes"], settings, found)
        others = (name for name in failing if name in _CAUSES and name != FILE_MODES)
        found.causes |= dict.fromkeys(others, "unknown: data that is read from a damaged file proves nothing")
        return
    if integrity:
        found.causes["integrity"] = "the rows that the checks below report"
    if "encoding" in failing:
        remedy = f"{_restoring(settings)}; or create it again as UTF-8 from its dump"
        found.plan("encoding", cause="made by another program", remedy=remedy)
        return
    if "journal_mode" in failing:
        cause, forbids = _why_no_wal(settings)
        found.plan("journal_mode", "" if forbids else "wal", cause=cause, remedy=forbids or REPAIR)
    if "application_id" in failing:  # a dump lacks these PRAGMAs
        found.statements += statements.MARKS
        found.remedies |= dict.fromkeys(("application_id", "user_version"), REPAIR)
    live = await read_schema(conn)
    tables = Differences.between(live, ("table",))
    if tables.missing:
        names = ", ".join(tables.missing)
        advice = f"{_restoring(settings)}; the rest cannot be checked without {names}"
        if extra := tables.extra:  # after a mere rename, a restore would lose newer rows
            by = f"{extra[0]}_"  # SQLite refuses a name that differs only in case
            steps = [extra[0], *([by] if extra[0].lower() == tables.missing[0] else ()), tables.missing[0]]
            sql = [f"ALTER TABLE {quoted(one)} RENAME TO {quoted(to)};" for one, to in pairwise(steps)]
            renaming = f"if {some(extra)} is the missing table under another name, rename it back"
            advice = f"{renaming} {shell_command(settings.db_path, sql)}; else {advice}"
        found.remedies |= {name: advice for name in failing if name in _CAUSES and name not in (FILE_MODES, OTHERS)}
        found.remedies["tables"] += f"; if no backup has its rows, create an empty table, as in {DATA / 'sql'}"
        return
    await _treat_tables(conn, live, tables.altered, failing, settings, found)
    if "sequences" in failing:
        found.statements += map(Step, failing["sequences"].data.get("statements", ()))
        found.plan("sequences")


async def _treat_damage(conn: Connection, indexes: Collection[str], settings: Settings, found: Diagnosis) -> None:
    """Add the repair of a corrupt file: rebuild ``indexes`` if only they are wrong, else salvage the file."""
    # A wrong header alone may make indexes differ from their tables.
    header = await asyncio.to_thread(ask, "header", settings.db_path, "4") if indexes else ""
    if header or not indexes:
        cause = f"{header or 'damaged pages'}: a fault of the disk, or a program that wrote to the file without SQLite"
        found.remedies[HEADER] = remedy = _RESTORE.format(_restoring(settings))
        found.plan("integrity", "salvage", cause=cause, remedy=remedy)
    elif rows := await statements.duplicates(conn, indexes):
        cause = f"rows that share a unique key, which an intact index refuses: {some(rows)}"
        remedy = (
            f"{_restoring(settings, 'a backup from before these rows')}; or decide by hand which of these rows to keep"
        )
        found.plan("integrity", cause=cause, remedy=remedy)
    else:
        found.statements += [Step(f"REINDEX {quoted(name)}") for name in indexes]
        by_whom = "a fault of the disk, or a writer with another SQLite"
        found.plan("integrity", cause=f"an index differs from its table: {by_whom}; the plan rebuilds it")


async def _treat_tables(
    conn: Connection,
    live: Mapping[str, SchemaObject],
    altered: Collection[str],
    failing: Mapping[str, Check],
    settings: Settings,
    found: Diagnosis,
) -> None:
    """Add the repair of altered tables, of rows, and of indexes."""
    breaking = [failing[name] for name in ("values", "required_values") if name in failing]
    broken = {rule["table"] for check in breaking for rule in check.data.get("broken", ())}
    path = settings.db_path
    rebuilds = {name: await statements.rebuild_table(conn, path, name, live, broken) for name in altered}
    done = [table for table, one in rebuilds.items() if one.steps]
    incomplete = [table for table, one in rebuilds.items() if one.lacks]
    if not incomplete:
        await _treat_rows(conn, failing, settings, found)
    indexes = statements.repair_indexes(live, {*done, *incomplete})
    found.statements = [*(step for table in done for step in rebuilds[table].steps), *found.statements, *indexes]
    if indexes or done:
        found.plan("indexes")
    if obstacles := {what: way for one in rebuilds.values() for what, way in one.obstacles.items()}:
        cause = f"{_CAUSES['tables']}; its repair is prevented by {'; '.join(obstacles)}"
        ways = "; ".join(way for way in dict.fromkeys(obstacles.values()) if way)
        again = f"{ways}; then run this again; or " if ways else ""
        found.plan("tables", cause=cause, remedy=f"{again}{_restoring(settings)}")
    elif done:
        found.plan("tables")


async def _treat_rows(conn: Connection, failing: Mapping[str, Check], settings: Settings, found: Diagnosis) -> None:
    """Add the repair of seed memories, invalid JSON, and references to missing rows."""
    seeds, spoilt = list[tuple[RowChange, int]](), [name for name in _JSON if name in failing]
    if "seed_memories" in failing:
        seeds, inserts = await statements.restore_seeds(conn, failing["seed_memories"].data.get("restored_by", ()))
        found.statements += inserts
        found.plan("seed_memories")
    json = await statements.broken_json(conn, [change for change, _ in seeds]) if spoilt else []
    kept = await kept_values(conn, settings, json)
    found.remedies |= dict.fromkeys(spoilt, REPAIR + kept) if json or seeds else {}
    references = await statements.broken_references(conn) if "foreign_keys" in failing else []
    found.remedies |= {"foreign_keys": REPAIR} if references else {}
    found.changes += [*json, *seeds, *references]


def _why_no_wal(settings: Settings) -> tuple[str, str]:
    """Return why a database is not in WAL mode, and what prevents the switch, or an empty text. Read-only."""
    path, kind = settings.db_path, file_system(settings.db_path.parent)
    if kind_of(kind) in ("shared", "host share"):
        return f"its file system is {kind}, which does not support WAL mode", ELSEWHERE
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return "this user cannot write to the file or its directory", f"check the owners: namei -l {quote(str(path))}"
    users = ", ".join(users_of(path))
    cause = "somebody set another mode, or copied it with VACUUM INTO"
    return f"{cause}; the mode can be switched only when {users} has closed it" if users else cause, ""


class Look(NamedTuple):
    """Hold the state of the log at one moment: the time, its bytes, frames and commits, the writers and the readers.

    A reader is a process, the read mark that it has locked, and the frame of this mark.
    """

    at: float
    bytes: int
    frames: int
    commits: int
    writers: str
    readers: frozenset[tuple[int, int, int]]

    @classmethod
    def at_files(cls, path: Path) -> "Look":
        """Return the present state of the log. Read-only; names processes on Linux only."""
        size = log_bytes(path)
        locks, index = ask("look", path)
        held = {(pid, byte) for _, byte, exclusive, pid in locks if not pid and not exclusive}
        with suppress(OSError):
            shm = os.stat(f"{path}-shm")
            # On btrfs, stat and the kernel report different devices; then no process is named.
            file = f"{os.major(shm.st_dev):02x}:{os.minor(shm.st_dev):02x}:{shm.st_ino}"
            held |= {(lock.pid, lock.start) for lock in posix_locks() if lock.file == file and not lock.exclusive}
        marks = dict(zip(_READ_MARKS, index["marks"], strict=True)) if index else {}
        readers = frozenset((pid, byte, marks[byte]) for pid, byte in held if byte in marks and pid != os.getpid())
        frames, commits = (index["frames"], index["commits"]) if index else (0, 0)
        # Other exclusive locks on the -shm are those of a checkpoint.
        writing = [lock for lock in locks if lock[0] == "" or lock[1] == WRITE_LOCK]
        return cls(monotonic(), size, frames, commits, ", ".join(lock_owners(writing, exclusive=True)), readers)

    def behind_since(self, first: "Look") -> str:
        """Return the readers that have used an older frame than the newest since ``first``: they stop a checkpoint.

        A writer is not among them: its frame is the newest until it commits.
        """
        kept = {pid for pid, _, frame in self.readers & first.readers if frame < self.frames}
        return ", ".join(map(process_name, sorted(kept)))


def _locks(path: Path, first: Look, then: Look) -> Check:
    """Return a check that names the process with the write lock at both looks: no other process can write meanwhile."""
    # A writer that commits in between has begun another transaction.
    held = first.writers if (first.writers, first.commits) == (then.writers, then.commits) else ""
    expected = f"no process holds the write lock at two looks {(then.at - first.at) * 1000:,.0f} ms apart"
    observed = f"held by {held}\ncause: it has an open write transaction" if held else "not held"
    remedy = "let it finish or end it; until then every other writer waits and then fails"
    users = [f"has it open: {user}" for user in users_of(path)]
    return Check.that("locks", not held, expected, observed, remedy, "warn", users)


def wal_check(check: Check, pins: str, since: Look, then: Look, free: float) -> Check:
    """Add to the check of the log's size the processes that prevent its reset, and when it will fill ``free`` MB."""
    read = f"read by {pins} at both looks: SQLite cannot reset the WAL until that read transaction ends"
    observed = f"{check.observed}; {read}" if pins else check.observed
    if (grown := (then.bytes - since.bytes) / MB) > 0:
        hours = free / grown * (then.at - since.at) / 3600
        observed += f"; grew by {grown:.1f} MB between two looks: at this rate the disk is full in {hours:,.1f} hours"
    if check.status == "pass":
        return replace(check, observed=observed)
    cause = "a reader prevents its reset" if pins else "a large transaction, a killed writer, or overlapping readers"
    remedy = f"end {pins}; the next writer resets the log" if pins else check.remedy
    return replace(check, observed=f"{observed}\ncause: {cause}", remedy=remedy)
