"""Roll back: to a fresh database or to a backup; the existing database is kept."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from abathur_nb.backups.change import check_arguments, file_named, make_change
from abathur_nb.backups.manifest import list_backups, newest_fit
from abathur_nb.backups.replacement import Source, find_replacement, place_for_scratch, read_source
from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.files import scratch_directory
from abathur_nb.report import Report
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.restore import proven_backup
from abathur_nb.store.target import identify, journal_of, rollback_command, wanted
from abathur_nb.text import shown

_TITLE = "rollback"
FRESH = "fresh"


async def roll_back(
    settings: Settings, *, to: str | os.PathLike[str] | None, apply: bool = False, confirm: str | None = None
) -> Report:
    """Show the plan of a rollback; carry it out with ``apply``.

    ``to`` is ``fresh``, a new database with its seed memories, or a backup: its path, or its name in
    ``backup_dir``. The existing database is backed up and the backup proven; a database too damaged for that is
    moved aside with its side files. If the settings require it, ``confirm`` must be the hash of the plan. Raises
    ConfigurationError for a wrong argument, and if ``to`` is missing.
    """
    fault, newest = "", None
    if not file_named(to):
        with suppress(OSError):  # this user cannot read the directory
            newest = newest_fit([b for b in list_backups(settings.backup_dir)[0] if b.facts["env"] == settings.env])
        back = f"{rollback_command(settings, newest.path.name)}; or " if newest else ""
        show = f"to see a plan: {back}{rollback_command(settings, FRESH)}"
        fault = f"to: expected '{FRESH}' or a backup, found {shown(to)}; {show}"
    check_arguments(fault, confirm=confirm, file=("to", None if fault else to, "backup"), apply=apply)
    target = await identify(settings, refuses=())
    # A typo in the path of the database must not create one.
    if target.state not in ("present", "damaged") and not os.path.lexists(journal_of(settings.db_path)):
        return Report(_TITLE, (wanted(target, settings),), subject=str(settings.db_path), refused=True)
    source = _fresh(settings) if to == FRESH else proven_backup(settings, to)
    finding = find_replacement(settings, _TITLE, source, apply=apply)
    return await make_change(settings, _TITLE, finding, apply=apply, confirm=confirm)


@asynccontextmanager
async def _fresh(settings: Settings) -> AsyncIterator[Source]:
    """Yield a new database in a scratch directory."""
    with scratch_directory(place_for_scratch(settings), "restore") as scratch:
        fresh = replace(settings, db_path=scratch / "fresh.db")
        made = await initialize_database(fresh)
        if failed := next((check for check in made.checks if check.failed), None):
            raise RefusedError(failed.observed, failed.remedy)
        source = await read_source(fresh.db_path, "a fresh start, with the seed memories")
        # The plan's hash must be the same each time; the rows hold the time at which they were made.
        yield replace(source, facts={"schema": source.content.schema})
