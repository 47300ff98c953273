"""Roll back: to a fresh start (the runbook's own strategy) or to a backup; what stood there is kept and proven."""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from abathur_nb.connection import explain_error
from abathur_nb.errors import AbathurError
from abathur_nb.initialize import initialize_database
from abathur_nb.operate.content import Content, read_content
from abathur_nb.operate.plan import Plan, check_apply, require
from abathur_nb.operate.replacement import finish_begun, replace_database, steps_to
from abathur_nb.operate.restore import restore_database
from abathur_nb.operate.standing import look
from abathur_nb.operate.transfer import open_copy
from abathur_nb.report import Check, Report
from abathur_nb.scratch import nearest_existing, scratch_directory, sweep
from abathur_nb.settings import Settings
from abathur_nb.wording import shown

__all__ = ["FRESH", "roll_back"]

_TITLE = "rollback"
FRESH = "fresh"


async def roll_back(
    settings: Settings,
    *,
    to: str | os.PathLike[str] = FRESH,
    apply: bool = False,
    confirm: str | None = None,
) -> Report:
    """Show how the database would be set back; do it with ``apply``.

    ``to`` is ``fresh``, a new database with its seed memories, or a backup: its path, or its name in
    ``backup_dir``. What stands there is backed up and that backup proven; what is too damaged for it is moved aside
    with its side files. Where the settings demand it, ``confirm`` must be the hash of the plan. Raises
    ConfigurationError for a wrong argument.
    """
    faults = check_apply(apply, confirm)
    if not isinstance(to, str | os.PathLike) or not os.fspath(to):
        faults.append(f"to: expected '{FRESH}' or a backup, found {shown(to)}")
    require(faults)
    if to != FRESH:
        return await restore_database(settings, backup=to, apply=apply, confirm=confirm, title=_TITLE)
    subject, checks = str(settings.db_path), list[Check]()
    title = _TITLE if apply else f"{_TITLE} (plan)"
    try:
        if apply:
            checks += finish_begun(settings)
        standing = await look(settings)
        async with _fresh(settings) as (source, content):
            steps = steps_to(standing, settings, "pre_rollback", "a fresh start, with the seed memories")
            plan = Plan(_TITLE, settings, steps, {"schema": content.schema}).approval(apply=apply, confirm=confirm)
            checks += [standing.check, plan]
            if plan.failed or standing.state == "forbidden":
                return Report(title, tuple(checks), subject=subject, refused=True)
            if apply:
                checks += await replace_database(settings, standing, source, content, reason="pre_rollback")
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        failed = Check(_TITLE, "error", "a new state, and a place for it", fault.observed, fault.remedy)
        return Report(title, (*checks, failed), subject=subject, refused=True)
    return Report(title, tuple(checks), subject=subject)


@asynccontextmanager
async def _fresh(settings: Settings) -> AsyncIterator[tuple[Path, Content]]:
    """Lend a new database in scratch, and what it holds."""
    parent = nearest_existing(settings.db_path.parent)
    sweep(parent)
    with scratch_directory(parent, "restore") as scratch:
        fresh = replace(settings, db_path=scratch / "fresh.db")
        (await initialize_database(fresh)).raise_for_failures()
        async with open_copy(fresh.db_path) as conn:
            yield fresh.db_path, await read_content(conn)
