"""The diagnosis: what is wrong with a database and why, and what would mend it. It only reads."""

import asyncio
import sqlite3
from dataclasses import dataclass, replace

from abathur_nb.connection import connect, explain_error, pragma
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.filesystems import mounted_files
from abathur_nb.limits import add_functions
from abathur_nb.modes import log_check
from abathur_nb.operate.aside import JournalError, begun
from abathur_nb.operate.quarantine import affected, digest_of
from abathur_nb.operate.rebuild import Step
from abathur_nb.operate.rescue import stray_rows
from abathur_nb.operate.rows import Change
from abathur_nb.operate.salvage import SALVAGED, salvaged_before
from abathur_nb.operate.surroundings import Look, leftovers, leftovers_check, locks_check, wal_check
from abathur_nb.operate.treatment import REPAIR, RESTORE, statistics_check, treat
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.strays import strays
from abathur_nb.target import examine, identify, restore_command, wanted
from abathur_nb.validate import file_checks

__all__ = ["Diagnosis", "diagnose"]

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
    changes: tuple[tuple[Change, int], ...] = ()
    statements: tuple[Step, ...] = ()
    changed: str = ""
    schema: int = 0
    refused: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        """The statements of the one transaction, in their order: rows first, then what their tables are made of."""
        return (*(Step(change.sql, count) for change, count in self.changes), *self.statements)


async def diagnose(settings: Settings) -> Diagnosis:
    """Find out what is wrong with the database at ``settings.db_path`` and what would mend it. Read-only."""
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
        return Diagnosis((replace(target.check, remedy=restore),), ("salvage",))
    if target.check.status == "error":  # a hot journal, which only a writer may roll back
        return Diagnosis((replace(target.check, remedy=REPAIR),), ("roll back",))
    if target.state != "present":
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
        log = replace(log, remedy=f"{log.remedy}; then {REPAIR}, but for the transactions behind the damage")
        return Diagnosis((*checks, log), ("set log aside",))
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
