"""Back up: copy the live database while others write to it, and prove the copy at once."""

import os
import re
import sqlite3
from dataclasses import replace
from shlex import quote

from abathur_nb.backups.change import check_arguments
from abathur_nb.backups.manifest import Retention, apply_retention
from abathur_nb.backups.taking import COPIES, back_up, zstd_module
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError
from abathur_nb.files import nearest_existing, os_cause, sweep, unwritable
from abathur_nb.health.path_on_disk import free_mb, install_command, no_folder
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import explain_error
from abathur_nb.store.guarded import strays_check
from abathur_nb.store.target import refusal
from abathur_nb.text import MB, shown

_TITLE = "backup"
_REASON = re.compile(r"[a-z][a-z0-9_]{0,40}")


async def backup_database(
    settings: Settings, *, reason: str = "manual", compress: bool = False, keep: Retention | None = None
) -> Report:
    """Copy the live database into ``backup_dir``, prove the copy by restoring it, and remove older backups by ``keep``.

    Writes ``abathur_REASON_YYYYMMDD_HHMMSS_mmm.db`` (UTC; ``.zst`` with ``compress``) and its manifest; it
    overwrites no file, and only reads the live database. A killed run leaves a complete backup or none. Raises
    ConfigurationError for a wrong argument.
    """
    is_word = isinstance(reason, str) and _REASON.fullmatch(reason)
    wrong = f"reason: expected a word of a-z, 0-9 and _, such as pre_migration, found {shown(reason)}"
    check_arguments("" if is_word else wrong, compress=compress)
    if refused := await refusal(_TITLE, settings):
        return replace(refused, refused=True)
    subject, place = str(settings.db_path), _place(settings)
    if any(check.failed for check in place):
        return Report(_TITLE, tuple(place), subject=subject, refused=True)
    try:
        if compress:
            zstd_module()  # raises before the copy is made
        made, checks = await back_up(settings, reason=reason, compress=compress)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        failed = Check("copy", "error", "a proven copy", f"no backup was made: {fault.observed}", fault.remedy)
        return Report(_TITLE, (*place, failed), subject=subject, refused=True)
    if (lost := strays_check(settings.db_path)).failed:  # the copy lacks the rows that only these processes hold
        checks.append(replace(lost, status="warn"))
    kept = apply_retention(settings, keep or Retention(), made)
    sweep(settings.backup_dir)
    return Report(_TITLE, (*place, *checks, *kept), subject=subject)


def _place(settings: Settings) -> list[Check]:
    """Check the backup directory and its free space; a check that fails forbids the backup. Read-only."""
    folder = settings.backup_dir
    # The directory is made with the backup, so that a refused run leaves none behind.
    place = folder if os.path.lexists(folder) else nearest_existing(folder)
    fault = no_folder(settings) or unwritable(place)
    expected = "a directory, not a link, that this user may write to"
    remedy = (fault and fault.remedy) or install_command(settings, folder)
    checks = [Check.that("backup_directory", not fault, expected, fault.observed if fault else str(folder), remedy)]
    if fault:
        return checks
    try:
        needed = settings.db_path.stat().st_size * COPIES / MB
        free = max(0, free_mb(place) - settings.min_free_mb)
    except OSError as error:
        gone = os_cause(error, place)
        return [*checks, Check("room", "error", "room for the copy and its proof", gone.observed, gone.remedy)]
    expected = f"{needed:,.1f} MB for the copy and its proof"
    observed = f"{free:,.0f} MB beyond the {settings.min_free_mb:,} MB that must stay free"
    remedy = f"make room: du -xh --max-depth=2 {quote(str(place))} | sort -h | tail"
    left = [f"left by a killed process: {place / name}" for name in sweep(place, remove=False)]
    return [*checks, Check.that("room", free >= needed, expected, observed, remedy, evidence=left)]
