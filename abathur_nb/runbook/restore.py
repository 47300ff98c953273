"""Restore: put the content of a proven backup in place of the live database, or of a copy as a drill."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from abathur_nb.backups.change import check_arguments, make_change
from abathur_nb.backups.manifest import Backup, find_backup, older_than
from abathur_nb.backups.replacement import Source, find_replacement, place_for_scratch, read_source
from abathur_nb.backups.taking import UnfitBackupError, difference, unpack
from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError, bound_reached
from abathur_nb.files import scratch_directory
from abathur_nb.report import Check, Report
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.text import SEE_CLOCK, age, counted, duration, is_ahead

_TITLE = "restore"


async def restore_database(
    settings: Settings,
    *,
    backup: str | os.PathLike[str] | None = None,
    from_env: str | None = None,
    drill: bool = False,
    apply: bool = False,
    confirm: str | None = None,
) -> Report:
    """Show the plan of putting the content of a backup in place of the live database; carry it out with ``apply``.

    ``backup`` is a path, or a name in ``backup_dir``; None takes the newest backup, and is refused if that is unfit.
    A backup of another environment is refused unless ``from_env`` names it. If the settings require it, ``confirm``
    must be the hash of the plan. ``drill`` restores over a scratch copy of the live database, and reports how long
    this takes (RTO) and what would be lost (RPO); it fails if a real restore would fail. Raises ConfigurationError
    for a wrong argument.
    """
    both = "drill, apply: a drill changes nothing, so nothing can be applied: set only one of them"
    fault = both if drill is True and apply is True else ""
    check_arguments(fault, confirm=confirm, file=("backup", backup, "backup"), apply=apply, drill=drill)
    source = proven_backup(settings, backup, from_env, drill=drill)
    finding = find_replacement(settings, _TITLE, source, apply=apply, drill=drill)
    return await make_change(settings, f"{_TITLE} (drill)" if drill else _TITLE, finding, apply=apply, confirm=confirm)


@asynccontextmanager
async def proven_backup(
    settings: Settings, name: str | os.PathLike[str] | None, from_env: str | None = None, *, drill: bool = False
) -> AsyncIterator[Source]:
    """Yield the content of a backup, unpacked in scratch, with each byte and row proven; refuse an unfit backup."""
    wanted = settings.env if from_env is None else from_env
    backup, notes = find_backup(settings.backup_dir, name, wanted, settings.db_path)
    with scratch_directory(place_for_scratch(settings), "restore") as scratch:
        try:
            _require_fit(backup, settings, wanted)
            path = await asyncio.to_thread(unpack, backup, scratch)
            source = await _read(backup, path)
        except UnfitBackupError as error:
            instead = await asyncio.to_thread(older_than, backup, settings.backup_dir, wanted, settings.db_path)
            raise RefusedError(error.observed, instead) from None
        facts = {"backup": backup.facts["sha256_of_file"], "content": backup.content.digest}
        checks = [_chosen(backup, settings, source.not_ours, notes)]
        if drill:
            since = duration(max((datetime.now(UTC) - backup.taken_at).total_seconds(), 0))
            observed = f"{since}: rows written since the backup would be lost"
            checks.append(Check("rpo", "pass", observed=observed, name="RPO"))
        yield replace(source, facts=facts, checks=tuple(checks))


def _require_fit(backup: Backup, settings: Settings, env: str) -> None:
    """Raise RefusedError for a backup that must not replace this database."""
    facts = backup.facts
    if facts["application_id"] != APPLICATION_ID:
        raise UnfitBackupError(f"{backup.path} is a backup of another application's database")
    if facts["user_version"] > SCHEMA_VERSION:
        observed = f"{backup.path} has schema version {facts['user_version']}, the newest known is {SCHEMA_VERSION}"
        raise RefusedError(observed, "update abathur_nb")
    if facts["env"] != env:
        observed = f"{backup.path} is a backup of {facts['env']}, not of {env}"
        raise RefusedError(observed, f"to restore it nevertheless: -p from_env {quote(facts['env'])}")
    if settings.db_path.exists() and os.path.samestat(os.stat(backup.path), os.stat(settings.db_path)):
        raise UnfitBackupError(f"{backup.path} is the live database itself, by another name")


async def _read(backup: Backup, path: Path) -> Source:
    """Return the content of a backup, unpacked at ``path``. Raises RefusedError if it differs from the manifest."""
    try:
        source = await read_source(path, f"the content of {backup.path.name}")
    except sqlite3.Error as error:
        raise UnfitBackupError(f"{backup.path} can't be read: {bound_reached(error) or error}") from None
    other = [f"{name} {value}" for name, value in source.ids.items() if value != backup.facts[name]]
    if source.content != backup.content:
        other.append(difference(backup.content, source.content))
    if other:
        raise UnfitBackupError(f"{backup.path} does not hold what its manifest says: {', '.join(other)}")
    return source


def _chosen(backup: Backup, settings: Settings, not_ours: str, notes: list[str]) -> Check:
    noted = {
        f"its database failed: {', '.join(backup.findings)}": backup.findings,
        backup.renamed: backup.renamed,
        f"it holds {not_ours}: validate fails, and the store opens no database with triggers or views": not_ours,
        f"it is of {backup.facts['database']}": backup.facts["database"] != str(settings.db_path),
        SEE_CLOCK: is_ahead(backup.taken_at),
    }
    words = [*(words for words, holds in noted.items() if holds), *notes]
    expected = "the newest backup of this database, which passed validation"
    observed = f"{backup.path}, {counted(backup.content.total, 'row')}, {age(backup.taken_at)}"
    remedy = "check that this is the right backup; validate the database after the restore"
    rows = [f"{name}: {counted(count, 'row')}" for name, count in backup.content.tables.items()]
    return Check.that("backup", not words, expected, "; ".join([observed, *words]), remedy, "warn", rows)
