"""The diagnosis: what is wrong with a database and why, and which statements repair it. Read-only."""

import asyncio
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

import aiosqlite

from abathur_nb.backups.aside import JournalError, begun
from abathur_nb.backups.copying import open_copy
from abathur_nb.backups.manifest import list_backups, newest_fit, of_database
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.health.checks import HEADER, file_checks, integrity_check
from abathur_nb.health.objects import OTHERS, in_the_way
from abathur_nb.health.path_on_disk import FILE_MODES, log_check
from abathur_nb.repair.quarantine import affected, digest_of
from abathur_nb.repair.salvage import SALVAGED, salvaged_before, stray_rows
from abathur_nb.repair.statements import (
    RowChange,
    Step,
    broken_json,
    broken_references,
    duplicates,
    lacking,
    rebuild_table,
    rename_back,
    repair_indexes,
)
from abathur_nb.repair.surroundings import Look, leftovers, leftovers_check, locks_check, wal_check, why_no_wal
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import connect, explain_error, pragma
from abathur_nb.store.guarded import strays
from abathur_nb.store.schema import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    Differences,
    SchemaObject,
    expected_objects,
    expected_seeds,
    expected_tables,
    quoted,
    read_schema,
)
from abathur_nb.store.sql import load_queries
from abathur_nb.store.target import examine, identify, mounted_files, restore_command, shell_command, wanted
from abathur_nb.store.values import add_functions
from abathur_nb.text import age, counted, some

# The plan names the parameters, as its hash may be wanted too.
REPAIR = "read the plan below: it repairs this, and names the parameters that carry it out"
RESTORE = (
    "stop its writers; carry out the plan below, which writes what can be read into a file of its own in the backup "
    "directory; then restore a backup: {}"
)
_REWRITE = (
    "carry out the plan below, which writes its rows as UTF-8 into a file of its own and names the commands that put "
    "that in place"
)
_JSON = ("json_columns", "json_limits", "readable_text")
_UNCHECKED = "a writer that had the CHECKs switched off"
_CAUSES = {
    "foreign_keys": "a writer with foreign_keys off, which is SQLite's default",
    "json_columns": _UNCHECKED,
    "json_limits": "a writer other than this package, which refuses such values",
    "readable_text": "a writer that stored bytes as text",
    "values": _UNCHECKED,
    "required_values": _UNCHECKED,
    "timestamps": "a writer with a clock format of its own",
    "moments": "a clock that was ahead, or is behind now",
    "indexes": "somebody dropped or changed one",
    "tables": "somebody changed the schema",
    OTHERS: "another program, such as a replication tool, or somebody by hand",
    "sequences": "somebody edited sqlite_sequence",
    "seed_memories": "somebody edited or deleted version 1, which is to keep its content",
    FILE_MODES: "made under a wide umask, copied without its mode, or opened to others by hand",
    "file_names": "a hard link to it",
}
_STALE, _FEW = 10, 1000  # statistics so many times too large or too small, of a table of so many rows


@dataclass(slots=True)
class Treatment:
    """Gather what would repair the faults, and what is said of each check beyond its own words."""

    deeds: list[str] = field(default_factory=list)
    changes: list[tuple[RowChange, int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    causes: dict[str, str] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)

    def explained(self, check: Check) -> Check:
        """Return a check with its cause and its remedy."""
        if check.status == "pass":
            return check
        usual = "" if check.status == "error" else _CAUSES.get(check.id, "")  # what could not be asked has none yet
        cause = self.causes.get(check.id, usual)
        observed = f"{check.observed}\ncause: {cause}" if cause else check.observed
        return replace(check, observed=observed, remedy=self.remedies.get(check.id, check.remedy))


async def treat(conn: aiosqlite.Connection, failing: Mapping[str, Check], settings: Settings) -> Treatment:
    """Find what repairs each failing check of validate. Read-only; ``conn`` must have the functions of `add_functions`.

    Nothing stands on unsound ground: where pages are damaged or a table is gone, that is repaired first.
    """
    found = Treatment()
    # Who owns the files, and the directory, is for somebody with more rights to change.
    if FILE_MODES in failing and failing[FILE_MODES].data.get("not_0600"):
        found.deeds.append("chmod")
        found.remedies[FILE_MODES] = f"{REPAIR}; by hand: {failing[FILE_MODES].remedy}"
    if HEADER in failing:
        found.deeds.append("salvage")
        found.remedies |= dict.fromkeys((HEADER, "integrity"), RESTORE.format(restore_command(settings)))
    damage = failing.get("integrity")
    if HEADER in failing or (damage and await _treat_damage(conn, damage, found, settings)):
        others = (name for name in failing if name in _CAUSES and name != FILE_MODES)
        found.causes |= dict.fromkeys(others, "not known: what is read of a damaged file proves nothing")
        return found
    if "encoding" in failing:
        found.deeds.append("salvage")
        found.causes["encoding"], found.remedies["encoding"] = "made by another program", _REWRITE
        return found
    if "journal_mode" in failing:
        cause, forbids = why_no_wal(settings)
        found.causes["journal_mode"], found.remedies["journal_mode"] = cause, forbids or REPAIR
        found.deeds += [] if forbids else ["wal"]
    if "application_id" in failing:  # of a database with all tables of ours, which a dump made
        ids = {"application_id": APPLICATION_ID, "user_version": SCHEMA_VERSION}
        found.steps += [Step(f"PRAGMA {name} = {number}") for name, number in ids.items()]
        found.remedies |= dict.fromkeys(ids, REPAIR)
    live = await read_schema(conn)
    tables = Differences.between(live, ("table",))
    if renames := await rename_back(conn, live):
        found.causes["tables"] = "somebody renamed it, by its SQL, which is that of sql/ but for the names"
        lost = [table for table in tables.missing if table in renames]
        other = f"; if that table holds other rows, restore a backup: {_restoring(settings, lost)}" if lost else ""
        # SQLite renames nothing where it can't read a view, and gives no name twice.
        first = some([f"{one.type} {one.name}" for one in in_the_way(live)])
        found.remedies["tables"] = f"first drop {first}, as *other objects* says; then run this again{other}"
        if not first:
            found.steps += [step for steps in renames.values() for step in steps]
            found.remedies["tables"] = REPAIR + other
        return found
    if tables.missing:
        names = ", ".join(tables.missing)
        advice = f"restore a backup: {restore_command(settings)}; the rest cannot be judged without {names}"
        found.remedies |= {name: advice for name in failing if name in _CAUSES and name not in (FILE_MODES, OTHERS)}
        # The plan makes nothing up: a person decides that rows are lost.
        if not _is_backed_up(settings, tables.missing):
            again = "; ".join(f"{expected_objects()[name].sql};" for name in tables.missing)
            found.remedies["tables"] += (
                f"; no backup here has a row of it: if none elsewhere has, make it again: {again}"
            )
        return found
    await _treat_tables(conn, tables, live, failing, found, settings)
    if "sequences" in failing:
        found.steps += map(Step, failing["sequences"].data.get("statements", ()))
        found.remedies["sequences"] = REPAIR
    return found


def _is_backed_up(settings: Settings, tables: Iterable[str]) -> bool:
    """Return whether a backup holds a row of one of these tables, or can't be asked."""
    backups, faults = list_backups(settings.backup_dir)
    return bool(faults) or any(backup.content.rows.get(name) for backup in backups for name in tables)


def _restoring(settings: Settings, tables: Iterable[str] = ()) -> str:
    """Return the command that restores the newest backup, its age, and how many rows of ``tables`` it holds."""
    backup = newest_fit(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path))
    if backup is None:
        return restore_command(settings)
    holds = "".join(f", with {counted(backup.content.rows.get(name, 0), 'row')} of {name}" for name in tables)
    return f"{restore_command(settings)} -p backup {quote(backup.path.name)}, {age(backup.taken_at)}{holds}"


async def _treat_damage(conn: aiosqlite.Connection, check: Check, found: Treatment, settings: Settings) -> bool:
    """Find what repairs a file that integrity_check fails; tell whether the rest can't be judged before that."""
    if not check.data["is_corrupt"]:
        found.causes["integrity"] = "the rows that are named below"
        return False
    indexes = check.data["indexes"]
    header = await asyncio.to_thread(ask, "header", settings.db_path, "4") if indexes else ""
    if indexes and not header and (rows := await duplicates(conn, indexes)):
        found.causes["integrity"] = f"rows with the key of another, which a whole index keeps out: {some(rows)}"
        found.remedies["integrity"] = (
            f"restore a backup from before them: {_restoring(settings)}; or decide by hand which of these rows stay"
        )
    elif indexes and not header:
        found.steps += [Step(f"REINDEX {quoted(name)}") for name in indexes]
        found.causes["integrity"] = (
            "an index that does not agree with its table: a fault of the disk, or a writer with another SQLite. Each "
            "page of the table can be read, and the index is made anew from it; what else is wrong is reported then"
        )
        found.remedies["integrity"] = REPAIR
    else:
        found.deeds.append("salvage")
        by_whom = "a fault of the disk, or somebody who wrote around SQLite"
        found.causes["integrity"] = f"{header or 'damaged pages'}: {by_whom}"
        found.remedies["integrity"] = RESTORE.format(restore_command(settings))
    return True


async def _treat_tables(
    conn: aiosqlite.Connection,
    tables: Differences,
    live: Mapping[str, SchemaObject],
    failing: Mapping[str, Check],
    found: Treatment,
    settings: Settings,
) -> None:
    """Find what repairs altered tables, the rows of all tables, and the indexes."""
    rebuilds, obstacles = {}, dict[str, str]()
    for table in tables.altered:
        rebuilds[table], hindrances = await rebuild_table(conn, table, live)
        obstacles |= hindrances
    incomplete = [table for table in tables.altered if await lacking(conn, table)]
    if not incomplete:
        seeds = await _seeds(conn, failing, found)
        spoilt = any(name in failing for name in _JSON)
        json = await broken_json(conn, [change for change, _ in seeds]) if spoilt else []
        references = await broken_references(conn) if "foreign_keys" in failing else []
        found.changes += [*json, *seeds, *references]
        found.remedies |= dict.fromkeys([name for name in _JSON if name in failing and (json or seeds)], REPAIR)
        found.remedies |= {"foreign_keys": REPAIR} if references else {}
    done = [table for table, steps in rebuilds.items() if steps]
    found.steps = [*(step for table in done for step in rebuilds[table]), *found.steps]
    indexes = repair_indexes(live, {*done, *incomplete})
    found.steps += indexes
    if indexes or done:
        found.remedies["indexes"] = REPAIR
    if obstacles:
        found.causes["tables"] = f"{_CAUSES['tables']}; in the way of making it anew: {'; '.join(obstacles)}"
        drops = [way for way in obstacles.values() if way.endswith(";")]
        ways = [way for way in dict.fromkeys(obstacles.values()) if way and way not in drops]
        ways += (
            [f"save what these columns hold, then drop them {shell_command(settings.db_path, drops)}"] if drops else []
        )
        again = f"{'; '.join(ways)}; then run this again; or " if ways else ""
        found.remedies["tables"] = f"{again}restore a backup: {restore_command(settings)}"
    elif done:
        found.remedies["tables"] = REPAIR


async def _seeds(
    conn: aiosqlite.Connection, failing: Mapping[str, Check], found: Treatment
) -> list[tuple[RowChange, int]]:
    """Return what gives a changed seed memory its content back; one that is gone is inserted by a step."""
    restored = failing["seed_memories"].data.get("restored_by", ()) if "seed_memories" in failing else ()
    statements = {(one["namespace"], one["key"]): one["sql"] for one in restored}
    changes = []
    for seed in expected_seeds():
        if (seed.namespace, seed.key) not in statements:
            continue
        found.remedies["seed_memories"] = REPAIR
        row = {name: "'" + str(value).replace("'", "''") + "'" for name, value in seed._asdict().items()}
        same = f"namespace = {row['namespace']} AND key = {row['key']} AND version = {seed.version}"
        ((there,),) = await conn.execute_fetchall(f"SELECT count(*) FROM memory_entries WHERE {same}")
        if not there:
            found.steps.append(Step(statements[seed.namespace, seed.key], 1))
        for column in ("value", "metadata", "memory_type", "created_by", "updated_by") if there else ():
            change = RowChange("memory_entries", f"{same} AND {column} IS NOT {row[column]}", column, row[column])
            ((other,),) = await conn.execute_fetchall(change.counting)
            changes += [(change, int(other))] if other else []
    return changes


async def statistics_check(conn: aiosqlite.Connection, found: Treatment) -> Check:
    """Check that what ANALYZE once counted, if it ever did, is about what there is. Read-only."""
    ask = load_queries("troubleshoot.sql")
    ((analysed,),) = await conn.execute_fetchall(ask["has_statistics"].sql)
    rows = await conn.execute_fetchall(ask["statistics"].sql) if analysed else []
    noted = {row["table"]: row["rows"] for row in rows if row["table"] in expected_tables()}
    stale = []
    for table, then in noted.items():
        ((now,),) = await conn.execute_fetchall(f"SELECT count(*) FROM {table} NOT INDEXED")
        if max(now, then) >= _FEW and max(now, then) > _STALE * min(now, then):
            stale.append(f"{table}: {counted(then, 'row')} when analysed, {now:,} now")
    if stale:
        found.steps.append(Step("ANALYZE"))
        found.remedies["statistics"] = REPAIR
        found.causes["statistics"] = "the planner still chooses by what ANALYZE counted long ago"
    return Check.that(
        "statistics",
        not stale,
        expected=f"none, or not off by more than {_STALE} times",
        observed="; ".join(stale) or (f"of {counted(len(noted), 'table')}" if noted else "none"),
        remedy=REPAIR,
        otherwise="warn",
    )


_FIRST = "first repair what the other checks name, then run this again"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Hold what was found, and what a repair does about it.

    ``deeds`` name what is done outside of the transaction, ``changes`` what becomes of rows and of how many,
    ``statements`` what else the transaction runs. ``changed`` is the SHA-256 of all rows that are changed, as they
    are; ``schema`` is SQLite's number of the schema's version. ``refused`` says that this is nothing to be repaired.
    """

    checks: tuple[Check, ...]
    deeds: tuple[str, ...] = ()
    changes: tuple[tuple[RowChange, int], ...] = ()
    statements: tuple[Step, ...] = ()
    changed: str = ""
    schema: int = 0
    refused: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        """The statements of the one transaction, in their order: rows first, then what their tables are made of."""
        return (*(Step(change.sql, count) for change, count in self.changes), *self.statements)


async def diagnose(settings: Settings) -> Diagnosis:
    """Find out what is wrong with the database at ``settings.db_path`` and what would repair it. Read-only."""
    found = await _diagnose(settings)
    if "salvage" not in found.deeds or not (before := salvaged_before(settings)):
        return found
    checks = [replace(check, remedy=SALVAGED) if check.failed else check for check in found.checks]
    return replace(found, checks=(*checks, before), deeds=tuple(deed for deed in found.deeds if deed != "salvage"))


async def _diagnose(settings: Settings) -> Diagnosis:
    path, restore = settings.db_path, RESTORE.format(restore_command(settings))
    if strays(path):  # what they hold is lost with them, and what is read or repaired meanwhile is half of the truth
        check, newer = await asyncio.to_thread(stray_rows, settings)
        return Diagnosis((check,), ("rescue",) if newer else ())
    target = examine(settings)
    if target.state == "remains":
        try:
            completes = begun(path)
        except JournalError as error:
            return Diagnosis((replace(target.check, observed=error.observed, remedy=REPAIR),), ("set journal aside",))
        except RefusedError as error:
            check = replace(target.check, observed=error.observed, remedy=error.remedy)
            return Diagnosis((check,), refused=True)
        if mounted := mounted_files(path):
            return Diagnosis((target.check, replace(mounted[0], status="fail")), refused=True)
        cause = "a restoration or rollback that was killed" if completes else "its database was moved or deleted alone"
        check = replace(target.check, observed=f"{target.check.observed}\ncause: {cause}", remedy=REPAIR)
        return Diagnosis((check,), ("complete" if completes else "move aside",))
    target = await identify(settings, refuses=("trigger",))  # which a repair would set off
    if target.state == "damaged":
        log = await asyncio.to_thread(log_check, path)
        if log.failed and (why := await _why_alone(path, log, corrupt=True)):
            return _without_log((target.check,), log, why)
        return Diagnosis((replace(target.check, remedy=restore),), ("salvage",))
    if target.check.status == "error":  # a hot journal, which only a writer may roll back
        return Diagnosis((replace(target.check, remedy=REPAIR),), ("roll back",))
    if target.state != "present" and "remade" not in target.check.data:
        return Diagnosis((wanted(target, settings),), refused=target.state != "empty")
    first = Look.at_files(path)
    checks = await file_checks(settings, unrepaired=_FIRST)  # the repair is this very diagnosis
    could_not_run = {check.id for check in checks if check.status == "error"}
    # Nothing is planned without that on which the others rest: it would be a part only.
    if checks[0].status == "error" or "integrity" in could_not_run:
        return Diagnosis(checks, refused=True)
    checks = tuple(check for check in checks if check.id != "log")
    try:
        async with connect(path, settings=settings) as conn:
            await add_functions(conn)
            await conn.executescript("PRAGMA mmap_size = 0; PRAGMA cache_size = -4000;")  # as `file_checks` does
            await conn.execute_fetchall("BEGIN")
            treatment = await treat(conn, {check.id: check for check in checks if check.failed}, settings)
            if not any(check.id == "integrity" and check.failed for check in checks):
                checks = (*checks, await statistics_check(conn, treatment))
            changed = await digest_of(affected(conn, [change for change, _ in treatment.changes]))
            schema = await pragma(conn, "schema_version")
        # Behind the last read transaction: while one lasts, the log of a busy database only grows.
        unpinned = Look.at_files(path)
        log = await asyncio.to_thread(log_check, path)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(path, error)
        failed = Check("diagnosis", "error", "every fault can be looked into", fault.observed, fault.remedy)
        return Diagnosis((*checks, failed))
    if log.status == "error":
        return Diagnosis((*checks, log), refused=True)
    if log.failed:  # any other repair would write, and so throw away what is left of it
        corrupt = any(check.id == "integrity" and check.data.get("is_corrupt") for check in checks)
        why = await _why_alone(path, log, corrupt=corrupt)
        if why or not corrupt or "salvage" not in treatment.deeds:
            return _without_log(checks, log, why)
    if left := leftovers(settings):
        treatment.deeds.append("sweep")
        treatment.remedies["file_names"] = REPAIR
    then = Look.at_files(path)
    checks = tuple(wal_check(settings, c, first, then, unpinned) if c.id == "wal_size" else c for c in checks)
    large = any(check.id == "wal_size" and check.status != "pass" for check in checks)
    if large and "salvage" not in treatment.deeds and log.status == "pass" and not then.behind_since(first):
        treatment.deeds.append("checkpoint")
        treatment.remedies["wal_size"] = REPAIR
    checks = (*map(treatment.explained, checks), log, locks_check(path, first, then), leftovers_check(left))
    return Diagnosis(checks, tuple(treatment.deeds), tuple(treatment.changes), tuple(treatment.steps), changed, schema)


async def _why_alone(path: Path, log: Check, *, corrupt: bool) -> str:
    """Say why the database file alone is to be kept, and not what SQLite reads through its damaged log; or nothing.

    ``corrupt`` says that the latter is damaged. Read-only.
    """
    newer = await asyncio.to_thread(ask, "newer", path, str(log.data["torn"]))
    if not newer and not corrupt:
        return ""
    try:
        async with open_copy(path) as conn:  # which has no log
            alone = await integrity_check(conn, "")
    except (sqlite3.Error, AbathurError):
        return ""
    return "" if alone.data.get("is_corrupt") else "it is newer" if newer else "it alone is sound"


def _without_log(checks: tuple[Check, ...], log: Check, why: str) -> Diagnosis:
    """Plan to set a damaged log aside, after what SQLite reads of it is written unless there is a ``why`` not to."""
    if not why:
        log = replace(log, remedy=f"{log.remedy}; then {REPAIR}, as far as SQLite reads the log")
        return Diagnosis((*checks, log), ("write log",))
    observed = f"{log.observed}; the database file is kept and not what SQLite reads through the log: {why}"
    log = replace(log, observed=observed, remedy=f"{log.remedy}; then {REPAIR}")
    checks = tuple(replace(check, remedy=REPAIR) if check.failed else check for check in checks)
    return Diagnosis((*checks, log), ("set log aside",))
