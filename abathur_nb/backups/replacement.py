"""Replace the content of a database: read the existing database, plan, rehearse, and change."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Literal

import aiosqlite

from abathur_nb.backups.aside import begun, replace_file, users_of
from abathur_nb.backups.change import Change, carry_out
from abathur_nb.backups.manifest import Content
from abathur_nb.backups.taking import COPIES, copy_in, copy_out, difference, open_copy, publish, read_content
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.files import nearest_existing, os_cause, private_directory, scratch_directory, unwritable
from abathur_nb.health.checks import OTHERS
from abathur_nb.health.path_on_disk import FILE_MODES, file_modes, free_mb, mounted_files
from abathur_nb.report import Check, Status
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import connect, explain_error, open_for_change, pragma
from abathur_nb.store.guarded import Connection, strays_check
from abathur_nb.store.schema import SCHEMA_VERSION, not_ours, read_schema
from abathur_nb.store.target import examine, explain_unopened, identify
from abathur_nb.text import MB, counted

_NEW = ".abathur-new"  # a name without a file: a new file is 0600, so only its directory matters


@dataclass(frozen=True, slots=True)
class Standing:
    """Hold what is known of the existing database: readable, damaged, absent, or not to be replaced.

    ``path`` is its file. ``folder`` is that of an unfinished replacement: then all fields are about the database that
    its completion leaves. ``form`` is as in `Source`.
    """

    state: Literal["readable", "unreadable", "absent", "forbidden"]
    check: Check
    path: Path
    content: Content | None = None
    form: tuple[object, ...] = ()
    folder: Path | None = None

    def goes_aside(self, new: "Source") -> bool:
        """Return whether the file must be replaced: SQLite copies only into a readable database of the same form."""
        return self.state == "unreadable" or (self.state == "readable" and self.form != new.form)


@dataclass(frozen=True, slots=True)
class Source:
    """Hold the source of a replacement: a proven database that nobody changes, and facts for its plan and report.

    ``form`` is its page size and encoding, ``not_ours`` names the triggers, views and virtual tables in it.
    """

    path: Path
    name: str
    content: Content
    form: tuple[object, ...]
    ids: Mapping[str, int]
    not_ours: str
    facts: dict[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


async def read_source(path: Path, name: str) -> Source:
    """Return the database at ``path`` as the source of a replacement. Read-only."""
    async with open_copy(path) as conn:
        ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
        alien = not_ours(await read_schema(conn))
        return Source(path, name, await read_content(conn), await _form_of(conn), ids, alien)


async def _form_of(conn: aiosqlite.Connection) -> tuple[object, ...]:
    return await pragma(conn, "page_size"), await pragma(conn, "encoding")


def place_for_scratch(settings: Settings) -> Path:
    """Return the directory for temporary copies: the database's, or backup_dir if the first is read-only."""
    places = [nearest_existing(folder) for folder in (settings.db_path.parent, settings.backup_dir)]
    return next((place for place in places if os.access(place, os.W_OK | os.X_OK)), places[0])


@asynccontextmanager
async def find_replacement(
    settings: Settings, action: str, source: AbstractAsyncContextManager[Source], *, apply: bool, drill: bool = False
) -> AsyncIterator[Change]:
    """Yield the change that replaces the database's content by ``source``; with ``drill``, only rehearse it."""
    async with source as new:
        standing = await _look(settings)
        found = await _obstacles(settings, standing, new, now=apply or drill)
        forbidden = any(check.failed for check in found) or standing.state == "forbidden"
        checks = (*new.checks, standing.check, *found)
        if drill:
            # A drill also runs if the database is mounted read-only, and reports that a restore would fail.
            elsewhere = place_for_scratch(settings) != nearest_existing(settings.db_path.parent)
            yield Change((*checks, *([] if forbidden and not elsewhere else await _rehearse(settings, standing, new))))
            return
        facts = new.facts | ({"begun": standing.folder.name} if standing.folder else {})
        change, reason = _replacement(settings, standing, new), f"pre_{action}" if standing.state == "readable" else ""
        yield replace(change, checks=checks, action=action, facts=facts, forbidden=forbidden, backup=reason)


async def _look(settings: Settings) -> Standing:
    """Read the database at ``settings.db_path``, or the one that an unfinished replacement will leave. Read-only."""
    live = settings.db_path
    try:
        found = begun(live)
    except RefusedError as error:
        return Standing("forbidden", _check(error.observed, error.remedy), live)
    if found is None:
        return await _look_at(settings)
    folder, path = found
    # Nobody writes to a draft, and no side file may appear beside it.
    standing = await _look_at(settings) if path == live else await _read(path, open_copy(path))
    noted = f"the replacement of {live} in {folder} is unfinished; completed, it leaves: {standing.check.observed}"
    check = replace(standing.check, status="fail" if standing.state == "forbidden" else "warn", observed=noted)
    return replace(standing, check=check, folder=folder)


async def _look_at(settings: Settings) -> Standing:
    path = settings.db_path
    target = await identify(settings, refuses=(), seen=examine(settings, journal=False))
    check = target.check
    if target.state == "present" or check.data.get("version", SCHEMA_VERSION) < SCHEMA_VERSION:
        return await _read(path, connect(path, settings.busy_timeout_ms))
    if target.state == "refused":
        return Standing("forbidden", _check(check.observed, check.remedy), path)
    return Standing("absent" if target.state == "absent" else "unreadable", _check(check.observed), path)


async def _read(path: Path, connection: AbstractAsyncContextManager[Connection]) -> Standing:
    try:
        async with connection as conn:
            await conn.execute_fetchall("BEGIN")
            content, form = await read_content(conn), await _form_of(conn)
            if header := await asyncio.to_thread(ask, "header", path):
                return Standing("unreadable", _check(f"{path} is CORRUPT: {header}"), path)
    except (sqlite3.Error, OSError, AbathurError) as error:
        state, explained = await explain_unopened(path, error)
        if state == "damaged" or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_ERROR:
            return Standing("unreadable", _check(f"{path} can't be read to its end: {explained.observed}"), path)
        return Standing("forbidden", _check(explained.observed, explained.remedy), path)
    rows = ", ".join(f"{name} {count:,}" for name, count in content.tables.items() if count)
    observed = f"{path}, {counted(content.total, 'row')}: {rows or 'none'}"
    seen = replace(_check(observed), expected="", evidence=(f"digest {content.digest}",))
    return Standing("readable", seen, path, content, form)


def _check(observed: str, remedy: str = "") -> Check:
    expected = "a database of this application, a damaged one, or none"
    return Check("existing_database", "fail" if remedy else "pass", expected, observed, remedy)


def _replacement(settings: Settings, standing: Standing, new: Source) -> Change:
    """Return the change that replaces the existing database by the content of ``new``."""

    async def write(draft: Path) -> None:
        async with open_copy(new.path) as conn:
            await copy_out(conn, draft, owned_as=settings.db_path.parent)

    async def do(done: list[Check]) -> None:
        path = settings.db_path
        if standing.state == "readable" and not standing.goes_aside(new):
            written = Check("written", "pass", "one transaction", f"wrote {new.name} into {path}")
            found, since = await copy_in(new.path, settings, written=lambda: done.append(written))
            done.append(_content(new.content, found, since))
            return
        if standing.goes_aside(new):
            await replace_file(path, write, done)
        else:
            with private_directory(path.parent), scratch_directory(path.parent, "restore") as scratch:
                await write(scratch / "draft.db")
                publish(scratch / "draft.db", path)
                done.append(Check("made", "pass", "no existing database", str(path)))
        async with connect(path, settings.busy_timeout_ms) as conn:
            await conn.execute_fetchall("BEGIN")
            done.append(_content(new.content, await read_content(conn)))

    def judged(checks: Iterable[Check]) -> Iterable[Check]:
        """Return the checks; a failure that the source is known to have becomes a warning."""
        return [replace(c, status="warn") if c.failed and c.id == OTHERS and new.not_ours else c for c in checks]

    path, folder = settings.db_path, standing.folder
    steps: tuple[str, ...] = (f"write {new.name} into {path}, in one transaction",)
    if standing.state == "absent":
        steps = (f"write {new.name} to a new file, then give it the name {path}",)
    elif standing.goes_aside(new):
        aside = f"move {path}, with its side files, into a new directory abathur_aside_… beside it"
        steps = (aside, f"write {new.name} to a new file, and give it the name {path.name}")
    begun = f"complete the unfinished replacement of {path} in {folder}" if folder else ""
    return Change((), steps=steps, do=do, begun=begun, judged=judged)


async def _obstacles(settings: Settings, standing: Standing, new: Source, *, now: bool) -> list[Check]:
    """Return checks that forbid the replacement; ``now`` requires that no process has the file open or locked."""
    path = settings.db_path
    found = [check for check in (strays_check(path),) if check.failed]  # rows in lost files must be saved first

    def forbid(check_id: str, expected: str, error: AbathurError, status: Status = "fail") -> None:
        found.append(Check(check_id, status, expected, error.observed, error.remedy))

    moved = standing.folder is not None or standing.goes_aside(new)
    in_place = standing.state == "readable" and not moved
    if moved:
        found += [replace(check, status="fail") for check in mounted_files(path)]
        if users := users_of(path, own=True):
            error = RefusedError(f"{path} is open in {', '.join(users)}", "stop it, then try again")
            forbid("users", "no process has the replaced file open", error, "fail" if now else "warn")
    elif in_place and not os.access(path, os.W_OK):  # SQLite reports this only at the first write
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        forbid("writable", "a file that may be written to", os_cause(denied, path))
    elif in_place and now:
        try:
            async with open_for_change(path, settings.busy_timeout_ms) as writer:
                await writer.execute_fetchall("BEGIN EXCLUSIVE")
                await writer.rollback()
        except (sqlite3.Error, OSError, AbathurError) as error:
            forbid("writable", "the database can be locked and written to", explain_error(path, error))
    needed = {nearest_existing(path.parent): (1 + in_place) * new.path.stat().st_size}  # in place, the log grows too
    if standing.state == "readable":
        place = nearest_existing(settings.backup_dir)
        needed[place] = needed.get(place, 0) + COPIES * standing.path.stat().st_size
    disks = {folder: os.stat(folder).st_dev for folder in needed}
    for folder, disk in disks.items():
        size = sum(needed[other] for other in needed if disks[other] == disk)
        if shut := unwritable(folder):
            forbid("directory", "a directory that may be written to", shut)
        elif (free := free_mb(folder)) < size / MB:
            remedy = f"make room: df -h {quote(str(folder))}"
            forbid("room", f"{size / MB:,.1f} MB", RefusedError(f"{free:,.1f} MB free on the disk of {folder}", remedy))
    return found


async def _rehearse(settings: Settings, standing: Standing, new: Source) -> list[Check]:
    """Rehearse the replacement on a scratch copy; return its checks."""
    path = settings.db_path
    with scratch_directory(place_for_scratch(settings), "restore") as scratch:
        copy = replace(settings, db_path=scratch / path.name, backup_dir=scratch / "backups")
        if standing.state == "readable":
            live = connect(standing.path, settings.busy_timeout_ms) if not standing.folder else open_copy(standing.path)
            async with live as conn:
                await copy_out(conn, copy.db_path, owned_as=scratch)
        elif standing.state == "unreadable":
            copy.db_path.touch()  # stands for the damaged file, which is replaced
        started, done = perf_counter(), list[Check]()
        change = _replacement(copy, replace(standing, folder=None), new)
        await carry_out(copy, replace(change, backup="drill" if standing.state == "readable" else ""), done)
        took = perf_counter() - started
    # Check the modes of the database, not of the copy; it keeps them unless its file is replaced.
    keeps = standing.state == "readable" and not standing.folder and not standing.goes_aside(new)
    modes = [await file_modes(path if keeps else path.with_name(_NEW))] if os.path.lexists(path.parent) else []
    failed = ", ".join(check.name for check in done if check.failed and check.id != FILE_MODES)
    expected = "the restored database has the backup's content and passes validate"
    observed = f"{counted(new.content.total, 'row')} restored, digest {new.content.digest[:12]}…"
    observed += f"; failed: {failed}" if failed else ""
    remedy = "run a drill with another backup, and validate the database of this backup"
    return [
        Check.that("drill", not failed, expected, observed, remedy),
        Check("rto", "pass", observed=f"{took:.2f} s to restore and validate", name="RTO"),
        *(check for check in modes if check.failed),
    ]


def _content(wanted: Content, found: Content, written_since: bool = False) -> Check:
    since = f"; {difference(wanted, found)}: another process has written" if written_since and found != wanted else ""
    expected, observed = (f"{counted(one.total, 'row')}, digest {one.digest[:12]}…" for one in (wanted, found))
    remedy = "stop the writer, check which rows are new, and restore again"
    otherwise: Status = "warn" if written_since else "fail"
    return Check.that("content", found == wanted, expected, observed + since, remedy, otherwise)
