"""Restore: the content of a proven backup, where the live database stands; or, as a drill, in scratch only."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from abathur_nb.connection import explain_error, pragma
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.expected import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.operate.backup import prove
from abathur_nb.operate.content import difference, read_content
from abathur_nb.operate.manifest import Backup, find_backup, unpack
from abathur_nb.operate.plan import Plan, check_apply, require
from abathur_nb.operate.replacement import finish_begun, replace_database, steps_to
from abathur_nb.operate.standing import look
from abathur_nb.operate.transfer import open_copy
from abathur_nb.report import Check, Report
from abathur_nb.scratch import nearest_existing, scratch_directory, sweep
from abathur_nb.settings import Settings
from abathur_nb.wording import age, duration, shown

__all__ = ["proven_source", "restore_database"]


async def restore_database(
    settings: Settings,
    *,
    backup: str | os.PathLike[str] | None = None,
    from_env: str | None = None,
    drill: bool = False,
    apply: bool = False,
    confirm: str | None = None,
    title: str = "restore",
) -> Report:
    """Show how the content of a backup would be put where the live database stands; do it with ``apply``.

    ``backup`` is a path, or a name in ``backup_dir``; None takes the newest whose database passed validation. One of
    another environment is refused unless ``from_env`` names that. Where the settings demand it, ``confirm`` must be
    the hash of the plan. ``drill`` restores into scratch, leaves the live database alone, and reports what a
    restoration takes (RTO) and what it would lose (RPO). ``title`` is what the report calls it. Raises
    ConfigurationError for a wrong argument.
    """
    faults = check_apply(apply, confirm)
    if not isinstance(drill, bool):
        faults.append(f"drill: expected True or False, found {shown(drill)} ({type(drill).__name__})")
    if drill is True and apply is True:
        faults.append("drill, apply: a drill changes nothing, so that there is nothing to apply: set one of them")
    require(faults)
    subject, checks = str(settings.db_path), list[Check]()
    action = title
    title = f"{action} ({'drill' if drill else 'plan'})" if drill or not apply else action
    try:
        chosen = find_backup(settings.backup_dir, backup, settings.env if from_env is None else from_env)
        _require_fit(chosen, settings, from_env)
        if drill:
            return Report(title, tuple(await _drill(chosen, settings)), subject=subject)
        if apply:
            checks += finish_begun(settings)
        async with proven_source(chosen, settings) as source:
            checks.append(_chosen(chosen))
            standing = await look(settings)
            steps = steps_to(standing, settings, f"pre_{action}", f"the content of {chosen.path.name}")
            facts = {"backup": chosen.facts["sha256_of_file"], "content": chosen.content.digest}
            plan = Plan(action, settings, steps, facts).approval(apply=apply, confirm=confirm)
            checks += [standing.check, plan]
            if plan.failed or standing.state == "forbidden":
                return Report(title, tuple(checks), subject=subject, refused=True)
            if apply:
                checks += await replace_database(settings, standing, source, chosen.content, reason=f"pre_{action}")
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        failed = Check(action, "error", "a proven backup, and a place for it", fault.observed, fault.remedy)
        return Report(title, (*checks, failed), subject=subject, refused=True)
    return Report(title, tuple(checks), subject=subject)


def _require_fit(backup: Backup, settings: Settings, from_env: str | None) -> None:
    """Raise RefusedError for a backup that must not stand in for this database."""
    facts = backup.facts
    if facts["application_id"] != APPLICATION_ID:
        raise RefusedError(f"{backup.path} is a backup of another application's database", "choose another backup")
    if facts["user_version"] > SCHEMA_VERSION:
        observed = f"{backup.path} has schema version {facts['user_version']}, known is {SCHEMA_VERSION}"
        raise RefusedError(observed, "update abathur_nb")
    wanted = settings.env if from_env is None else from_env
    if facts["env"] != wanted:
        observed = f"{backup.path} is a backup of {facts['env']}, not of {wanted}"
        raise RefusedError(observed, f"if that is what you want, say so: -p from_env {facts['env']}")
    with_inode = os.stat(backup.path)
    if settings.db_path.exists() and os.path.samestat(with_inode, os.stat(settings.db_path)):
        raise RefusedError(f"{backup.path} is the live database itself, by another name", "choose another backup")


@asynccontextmanager
async def proven_source(backup: Backup, settings: Settings) -> AsyncIterator[Path]:
    """Lend the path of a backup's database, every byte and row of it proven; scratch is removed at the end.

    Raises RefusedError if anything is another than the manifest says.
    """
    parent = nearest_existing(settings.db_path.parent)
    sweep(parent)
    with scratch_directory(parent, "restore") as scratch:
        source = await asyncio.to_thread(unpack, backup, scratch)
        async with open_copy(source) as conn:
            content = await read_content(conn)
            ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
        told = [f"{name} {value}" for name, value in ids.items() if value != backup.facts[name]]
        if content != backup.content:
            told.append(difference(backup.content, content))
        if told:
            observed = f"{backup.path} holds something else than its manifest says: {', '.join(told)}"
            raise RefusedError(observed, "choose another backup")
        yield source


def _chosen(backup: Backup) -> Check:
    findings = ", ".join(backup.findings)
    return Check.that(
        "backup",
        not findings,
        expected="as its manifest says, of a database that passed validation",
        observed=f"{backup.path}, {backup.content.total:,} rows, {age(backup.taken_at)}"
        + (f"; its database failed: {findings}" if findings else ""),
        remedy="validate afterwards, and run troubleshoot.ipynb",
        otherwise="warn",
        evidence=[f"{name}: {count:,} rows" for name, count in backup.content.rows.items()],
    )


async def _drill(backup: Backup, settings: Settings) -> list[Check]:
    parent = nearest_existing(settings.db_path.parent)
    sweep(parent)
    with scratch_directory(parent, "restore") as scratch:
        proof = await prove(replace(settings, db_path=scratch / "drill.db"), backup, scratch)
    took, since = proof["restored_s"] + proof["validated_s"], (datetime.now(UTC) - backup.taken_at).total_seconds()
    findings = ", ".join(proof["findings"])
    return [
        _chosen(backup),
        Check.that(
            "drill",
            not findings,
            expected="what is restored passes validate",
            observed=f"{backup.content.total:,} rows restored, digest {backup.content.digest[:12]}…"
            + (f"; failed: {findings}" if findings else ""),
            remedy="drill with another backup, and see why this one's database was not sound",
        ),
        Check("RTO", "pass", observed=f"{took:.2f} s to restore and validate"),
        Check("RPO", "pass", observed=f"{duration(max(since, 0))}: what was written since the backup would be lost"),
    ]
