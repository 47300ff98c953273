"""What stands at the database path before it is replaced: whether it can be written into, and what it holds."""

import os
import sqlite3
from dataclasses import dataclass
from typing import Literal

from abathur_nb.connection import connect, explain_error, pragma
from abathur_nb.errors import AbathurError
from abathur_nb.expected import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.operate.content import Content, read_content
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.target import examine, journal_of

__all__ = ["Standing", "look"]

State = Literal["readable", "unreadable", "absent", "forbidden"]
_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_NAME = "what stands there"


@dataclass(frozen=True, slots=True)
class Standing:
    """Say what a replacement finds, and why.

    A database whose rows can all be ``readable``, one that is too damaged for that or of which only side files are
    left (``unreadable``), none (``absent``), or what must not be replaced (``forbidden``).
    """

    state: State
    check: Check
    content: Content | None = None


async def look(settings: Settings) -> Standing:
    """Read all that stands at ``settings.db_path``. Read-only."""
    path = settings.db_path
    target = examine(settings)
    if target.state == "absent":
        return Standing("absent", _check(f"no database at {path}"))
    if target.state == "refused" or os.path.lexists(journal_of(path)):
        return Standing("forbidden", target.check)
    if target.state == "remains":
        return Standing("unreadable", _check(target.check.observed))
    if target.state == "empty":
        return Standing("unreadable", _check(f"{path} is an empty shell of 0 bytes"))
    try:
        async with connect(path, settings=settings) as conn:
            await conn.execute_fetchall("BEGIN")
            application_id, version = await pragma(conn, "application_id"), await pragma(conn, "user_version")
            if application_id != APPLICATION_ID:
                observed = f"{path} is another application's or half-made: application_id {application_id:#010x}"
                remedy = "db_path: name another path, or move it away by hand"
                return Standing("forbidden", _check(observed, remedy))
            if version > SCHEMA_VERSION:
                observed = f"{path} is newer than this package: user_version {version}, known is {SCHEMA_VERSION}"
                return Standing("forbidden", _check(observed, "update abathur_nb"))
            content = await read_content(conn)
    except (sqlite3.Error, AbathurError) as error:
        explained = explain_error(path, error)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNREADABLE:
            return Standing("unreadable", _check(f"{path} can't be read to its end: {explained.observed}"))
        return Standing("forbidden", _check(explained.observed, explained.remedy))
    rows = ", ".join(f"{name} {count:,}" for name, count in content.rows.items() if count)
    observed = f"{path}, {content.total:,} rows: {rows or 'none'}"
    return Standing(
        "readable", Check(_NAME, "pass", observed=observed, evidence=(f"digest {content.digest}",)), content
    )


def _check(observed: str, remedy: str = "") -> Check:
    expected = "a database of this application, a damaged one, or none"
    return Check(_NAME, "fail" if remedy else "pass", expected, observed, remedy)
