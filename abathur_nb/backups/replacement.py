"""Replacing what a database holds: what is there now, the plan, its rehearsal, and the change itself."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Literal, NamedTuple

import aiosqlite

from abathur_nb.backups.aside import begun, discard, new_folder, replace_file, users_of
from abathur_nb.backups.change import Change, Plan, carry_out, make_change
from abathur_nb.backups.copying import Content, copy_in, copy_out, difference, open_copy, publish, read_content
from abathur_nb.backups.taking import COPIES
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.files import ask_system, nearest_existing, os_cause, private_directory, scratch_directory, unwritable
from abathur_nb.health.objects import OTHERS
from abathur_nb.health.path_on_disk import FILE_MODES, file_modes, free_mb
from abathur_nb.report import Check, Report, Status
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import connect, explain_error, kept_open, pragma
from abathur_nb.store.guarded import strays_check
from abathur_nb.store.schema import SCHEMA_VERSION, not_ours, read_schema
from abathur_nb.store.target import examine, explain_unopened, identity_fault, journal_of, mounted_files
from abathur_nb.text import MB, counted

State = Literal["readable", "unreadable", "absent", "forbidden"]


class Form(NamedTuple):
    """Hold what two files must share for SQLite to copy one into the other, and for its readers to go on reading."""

    page_size: int
    encoding: str


async def form_of(conn: aiosqlite.Connection) -> Form:
    """Return the form of a database file. Read-only."""
    return Form(await pragma(conn, "page_size"), await pragma(conn, "encoding"))


@dataclass(frozen=True, slots=True)
class Standing:
    """Say what a replacement finds, and why.

    A database whose rows can all be ``readable``, one that is too damaged for that or of which only side files are
    left (``unreadable``), none (``absent``), or what must not be replaced (``forbidden``). ``path`` is where it is,
    ``folder`` that of a replacement that was begun: then all is said of what its completion leaves.
    """

    state: State
    check: Check
    path: Path
    content: Content | None = None
    form: Form | None = None
    folder: Path | None = None


async def look(settings: Settings) -> Standing:
    """Read all that stands at ``settings.db_path``. Read-only."""
    try:
        found = begun(settings.db_path)
    except RefusedError as error:
        return Standing("forbidden", _check(error.observed, error.remedy), settings.db_path)
    if found is None:
        return await _look(settings, settings.db_path)
    folder, path = found
    standing = replace(await _look(replace(settings, db_path=path), settings.db_path), folder=folder)
    noted = (
        f"a replacement of {settings.db_path} was begun, with {folder}; completed, it leaves: {standing.check.observed}"
    )
    check = replace(standing.check, status="fail" if standing.state == "forbidden" else "warn", observed=noted)
    return replace(standing, check=check)


async def _look(settings: Settings, live: Path) -> Standing:
    path = settings.db_path
    target = examine(settings, journal=False)
    if target.state == "absent":
        return Standing("absent", _check(f"no database at {path}"), path)
    if target.state == "refused":
        return Standing("forbidden", target.check, path)
    if target.state == "remains":
        return Standing("unreadable", _check(target.check.observed), path)
    if target.state == "empty":
        return Standing("unreadable", _check(f"{path} is an empty shell of 0 bytes"), path)
    try:
        # Of a draft nobody writes to, and nothing may be left beside it.
        async with connect(path, settings=settings) if path == live else open_copy(path) as conn:
            await conn.execute_fetchall("BEGIN")
            fault = await identity_fault(conn, settings)
            if fault and fault.state == "damaged":
                return Standing("unreadable", _check(fault.check.observed), path)
            if fault and not fault.check.data.get("version", SCHEMA_VERSION + 1) < SCHEMA_VERSION:
                return Standing("forbidden", _check(fault.check.observed, fault.check.remedy), path)
            content, form = await read_content(conn), await form_of(conn)
            if spoilt := await asyncio.to_thread(ask, "header", path):
                return Standing("unreadable", _check(f"{path} is CORRUPT: its header has {spoilt}"), path)
    except (sqlite3.Error, OSError, AbathurError) as error:
        state, explained = await explain_unopened(path, error)
        if state == "damaged" or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_ERROR:
            unread = _check(f"{path} can't be read to its end: {explained.observed}")
            return Standing("unreadable", unread, path)
        return Standing("forbidden", _check(explained.observed, explained.remedy), path)
    rows = ", ".join(f"{name} {count:,}" for name, count in content.rows.items() if count)
    observed = f"{path}, {counted(content.total, 'row')}: {rows or 'none'}"
    seen = replace(_check(observed), expected="", evidence=(f"digest {content.digest}",))
    return Standing("readable", seen, path, content, form)


def _check(observed: str, remedy: str = "") -> Check:
    expected = "a database of this application, a damaged one, or none"
    status: Status = "fail" if remedy else "pass"
    return Check("existing_database", status, expected, observed, remedy, name="existing database")


_NEW = ".abathur-new"  # a name that nothing has: what will be made is 0600, in a directory that keeps its mode


@dataclass(frozen=True, slots=True)
class Source:
    """Hold a proven database in a file that nobody changes, and what a plan and a report say of it.

    ``not_ours`` names the triggers, views and virtual tables in it.
    """

    path: Path
    name: str
    content: Content
    form: Form
    not_ours: str
    facts: dict[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


async def read_source(path: Path, name: str) -> Source:
    """Return what ``path`` holds, as the source of a replacement. Read-only."""
    async with open_copy(path) as conn:
        return Source(path, name, await read_content(conn), await form_of(conn), not_ours(await read_schema(conn)))


def place_for_scratch(settings: Settings) -> Path:
    """Return the directory for copies that do not stay: that of the database; where it is read-only, the backups'."""
    places = [nearest_existing(folder) for folder in (settings.db_path.parent, settings.backup_dir)]
    return next((place for place in places if os.access(place, os.W_OK | os.X_OK)), places[0])


async def replace_content(
    settings: Settings,
    action: str,
    source: AbstractAsyncContextManager[Source],
    *,
    apply: bool,
    confirm: str | None,
    drill: bool = False,
) -> Report:
    """Show how the content of ``source`` would replace that of the database; do it with ``apply``.

    ``drill`` rehearses it in scratch. What is refused has changed nothing.
    """
    title, finding = f"{action} (drill)" if drill else action, _find(settings, action, source, apply=apply, drill=drill)
    return await make_change(settings, title, finding, apply=apply, confirm=confirm)


@asynccontextmanager
async def _find(
    settings: Settings, action: str, source: AbstractAsyncContextManager[Source], *, apply: bool, drill: bool
) -> AsyncIterator[Change]:
    """Lend the replacement by ``source``, while that stands in scratch; of a drill what came of it."""
    async with source as new:
        standing = await look(settings)
        found = await _obstacles(settings, standing, new, now=apply or drill)
        forbidden = any(check.failed for check in found) or standing.state == "forbidden"
        checks = (*new.checks, standing.check, *found)
        if drill:
            # Beside a database that is mounted read-only too: what it would take is noted, and that it can't be.
            elsewhere = place_for_scratch(settings) != nearest_existing(settings.db_path.parent)
            yield Change((*checks, *([] if forbidden and not elsewhere else await _rehearse(settings, standing, new))))
            return
        facts = new.facts | ({"begun": standing.folder.name} if standing.folder else {})
        plan = Plan(action, settings, _steps(standing, settings, f"pre_{action}", new), facts)
        yield replace(
            _replacement(settings, standing, new, f"pre_{action}"), checks=checks, plan=plan, forbidden=forbidden
        )


def _replacement(settings: Settings, standing: Standing, new: Source, reason: str) -> Change:
    """Return the change that puts the content of ``new`` in place of what was found, which is kept."""

    async def do(done: list[Check], committed: Callable[[], object]) -> None:
        path, since = settings.db_path, False
        if _goes_aside(standing, new):
            await _move_aside(settings, new, done)
            committed()
        elif standing.state == "readable":
            _, since = await copy_in(new.path, settings, written=committed)
        else:
            with private_directory(path.parent), scratch_directory(path.parent, "restore") as scratch:
                await _copy(new.path, scratch / "draft.db", path.parent)
                publish(scratch / "draft.db", path)
                done.append(Check("made", "pass", "no database before", str(path)))
        async with connect(path, settings=settings) as conn:
            await conn.execute_fetchall("BEGIN")
            done.append(_content(new.content, await read_content(conn), since))

    def judged(checks: Iterable[Check]) -> Iterable[Check]:
        """Let what the source was said to hold only warn."""
        return [replace(c, status="warn") if c.failed and c.id == OTHERS and new.not_ours else c for c in checks]

    keeps = reason if standing.state == "readable" else ""
    return Change((), None, do, begun=standing.folder is not None, backup=keeps, judged=judged)


def _goes_aside(standing: Standing, new: Source) -> bool:
    """Return whether the file itself is replaced: SQLite copies only into one of the same form that it can read."""
    return standing.state == "unreadable" or (standing.state == "readable" and standing.form != new.form)


def _steps(standing: Standing, settings: Settings, reason: str, new: Source) -> tuple[str, ...]:
    """Return, in words, what `_replace` will do."""
    path = settings.db_path
    steps = [f"complete the replacement of {path} that was begun with {standing.folder}"] if standing.folder else []
    if standing.state == "readable":
        steps.append(f"back up {path} as abathur_{reason}_… in {settings.backup_dir}, and prove that backup")
    if standing.state == "absent":
        steps.append(f"make {path} of {new.name}, under another name first")
    elif _goes_aside(standing, new):
        steps.append(f"move {path}, with its side files, into a new directory abathur_aside_… beside it")
        steps.append(f"give the name {path.name} to a copy of {new.name}")
    else:
        steps.append(f"write {new.name} into {path}, in one transaction")
    return (*steps, f"validate {path}")


async def _obstacles(settings: Settings, standing: Standing, new: Source, *, now: bool) -> list[Check]:
    """Return a check for each condition of this machine that forbids the replacement. Read-only.

    Who uses the database only warns of what is not to be done ``now``. What forbids to lock it is looked for too, if
    it is to be done now.
    """
    path, found = settings.db_path, list[Check]()

    def forbid(check_id: str, expected: str, observed: str, remedy: str, status: Status = "fail") -> None:
        found.append(Check(check_id, status, expected, observed, remedy))

    if (lost := strays_check(path)).failed:  # its rows are saved first
        found.append(lost)
    moved = standing.folder is not None or _goes_aside(standing, new)
    found += [replace(check, status="fail") for check in mounted_files(path) if moved]
    if moved and (users := users_of(path, own=True)):
        observed = f"{path} is open in {', '.join(users)}"
        expected = "no process has it open while its file is replaced"
        forbid("users", expected, observed, "stop it, then try again", "fail" if now else "warn")
    in_place = standing.state == "readable" and not moved
    if in_place and not os.access(path, os.W_OK):  # which SQLite says at the first change only
        cause = ask_system(path) or PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        refused = os_cause(cause, path)
        forbid("writable", "a file that may be written to", refused.observed, refused.remedy)
    elif in_place and now:
        try:
            async with kept_open(settings), connect(path, settings=settings, mode="rw") as writer:
                await writer.execute_fetchall("BEGIN EXCLUSIVE")
                await writer.rollback()
        except (sqlite3.Error, OSError, AbathurError) as error:
            fault = explain_error(path, error)
            forbid("writable", "the database can be locked and written to", fault.observed, fault.remedy)
    copies = 2 if in_place else 1  # the log, and the file
    needed = {nearest_existing(path.parent): copies * new.path.stat().st_size}
    if standing.state == "readable":
        place = nearest_existing(settings.backup_dir)
        needed[place] = needed.get(place, 0) + COPIES * standing.path.stat().st_size
    for folder, size in needed.items():
        if shut := unwritable(folder):
            forbid("directory", "a directory that may be written to", shut.observed, shut.remedy)
        elif (free := free_mb(folder)) < size / MB:
            observed = f"{free:,.1f} MB free on the disk of {folder}"
            forbid("room", f"{size / MB:,.1f} MB", observed, f"make room: df -h {quote(str(folder))}")
    return found


async def _rehearse(settings: Settings, standing: Standing, new: Source) -> list[Check]:
    """Replace, in scratch, a copy of what is there as the database itself would be; return what came of it."""
    with scratch_directory(place_for_scratch(settings), "restore") as scratch:
        copy = replace(settings, db_path=scratch / settings.db_path.name, backup_dir=scratch / "backups")
        if standing.state == "readable":
            live = connect(standing.path, settings=settings) if not standing.folder else open_copy(standing.path)
            async with live as conn:
                await copy_out(conn, copy.db_path, owned_as=scratch)
        elif standing.state == "unreadable":
            copy.db_path.touch()  # which no more can be written into than what is damaged
        started, done = perf_counter(), list[Check]()
        await carry_out(copy, _replacement(copy, replace(standing, folder=None), new, "drill"), done)
        took = perf_counter() - started
    # Who may use the copy says nothing of the database: what is written into keeps its mode.
    keeps = standing.state == "readable" and not standing.folder and not _goes_aside(standing, new)
    path = settings.db_path if keeps else settings.db_path.with_name(_NEW)
    modes = [await file_modes(path)] if os.path.lexists(path.parent) else []
    failed = ", ".join(check.name for check in done if check.failed and check.id != FILE_MODES)
    return [
        Check.that(
            "drill",
            not failed,
            expected="what is restored has the backup's content and passes validate",
            observed=f"{counted(new.content.total, 'row')} restored, digest {new.content.digest[:12]}…"
            + (f"; failed: {failed}" if failed else ""),
            remedy="drill with another backup, and run validate on the database that this one was taken of",
        ),
        Check("rto", "pass", observed=f"{took:.2f} s to restore and validate", name="RTO"),
        *(check for check in modes if check.failed),
    ]


async def _move_aside(settings: Settings, new: Source, done: list[Check]) -> None:
    """Move the database and its side files aside, and give its name to a copy of ``new``."""
    path = settings.db_path
    folder = new_folder(path)
    try:
        await _copy(new.path, folder / "draft.db", path.parent)
        moved = replace_file(path, folder, folder / "draft.db")
    except BaseException:
        discard(folder, path)
        if os.path.lexists(journal_of(path)):
            observed = f"the replacement of {path} was begun with {folder}, and is not complete"
            done.append(Check("begun", "warn", "a replacement that is complete", observed, "run this again"))
        raise
    observed = f"{folder}: {', '.join(entry.name for entry in moved)}"
    done.append(Check("moved_aside", "pass", expected="the file that was there, as it was", observed=observed))


async def _copy(source: Path, draft: Path, owned_as: Path) -> None:
    async with open_copy(source) as conn:
        await copy_out(conn, draft, owned_as=owned_as)


def _content(wanted: Content, found: Content, written_since: bool = False) -> Check:
    since = f"; {difference(wanted, found)}: somebody has written since" if written_since and found != wanted else ""
    return Check.that(
        "content",
        found == wanted,
        expected=f"{counted(wanted.total, 'row')}, digest {wanted.digest[:12]}…",
        observed=f"{counted(found.total, 'row')}, digest {found.digest[:12]}…{since}",
        remedy="stop who writes, see which rows are new, and restore again",
        otherwise="warn" if written_since else "fail",
    )
