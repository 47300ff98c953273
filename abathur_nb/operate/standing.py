"""What stands at the database path before it is replaced: whether it can be written into, and what it holds."""

import asyncio
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import aiosqlite

from abathur_nb.apart import ask
from abathur_nb.connection import connect, pragma
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.expected import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.operate.aside import begun
from abathur_nb.operate.content import Content, read_content
from abathur_nb.operate.transfer import open_copy
from abathur_nb.report import Check, Status
from abathur_nb.settings import Settings
from abathur_nb.target import examine, explain_unopened, spoilt_ids, version_fault
from abathur_nb.wording import counted

__all__ = ["Form", "Standing", "form_of", "look"]

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
    told = (
        f"a replacement of {settings.db_path} was begun, with {folder}; completed, it leaves: {standing.check.observed}"
    )
    check = replace(standing.check, status="fail" if standing.state == "forbidden" else "warn", observed=told)
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
            application_id, version = await pragma(conn, "application_id"), await pragma(conn, "user_version")
            if ids := spoilt_ids(application_id, version):
                return Standing("unreadable", _check(f"{path} {ids}"), path)
            if application_id != APPLICATION_ID:
                observed = f"{path} is another application's or half-made: application_id {application_id:#010x}"
                remedy = "db_path: name another path, or move it away by hand"
                return Standing("forbidden", _check(observed, remedy), path)
            if version > SCHEMA_VERSION and (fault := await version_fault(conn, settings)):
                return Standing("forbidden", _check(fault.observed, fault.remedy), path)
            content, form = await read_content(conn), await form_of(conn)
            if fault := await asyncio.to_thread(ask, "header", path):
                return Standing("unreadable", _check(f"{path} is CORRUPT: its header has {fault}"), path)
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
    return Check("existing_database", status, expected, observed, remedy, name="what stands there")
