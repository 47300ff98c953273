"""Who ran what, where, with which versions, and which database it was: what identifies a run."""

import asyncio
import os
import platform
import re
import secrets
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from abathur_nb.causes import os_cause
from abathur_nb.connection import connect, explain_error, pragma
from abathur_nb.errors import AbathurError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.schema import read_schema
from abathur_nb.settings import Settings
from abathur_nb.sql import DATA, normalized
from abathur_nb.wording import user_name

__all__ = ["database_identity", "new_run_id", "person_and_host", "shipped_notebook", "versions_of"]

_LONGEST_WAIT = 1000  # ms: who the database is matters less than what the notebook came for
_PACKAGES = ("abathur_nb", "aiosqlite", "papermill", "nbclient", "ipykernel")


def new_run_id() -> str:
    """Return a name for a run that sorts by the time of its making: ``20261123T101500123Z-9f3ac1``."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}Z-{secrets.token_hex(3)}"


def person_and_host() -> dict[str, str]:
    """Return the user's name and the host's."""
    return {"user": user_name(os.geteuid()), "host": platform.node()}


def versions_of() -> dict[str, str]:
    """Return the versions of Python, of SQLite with its source id, and of the packages that a run depends on."""
    conn = sqlite3.connect(":memory:")
    (source_id,) = conn.execute("SELECT sqlite_source_id()").fetchone()
    conn.close()
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version, "SQLite source": source_id}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a notebook needs no papermill in JupyterLab
            continue
    return found


def shipped_notebook(name: str) -> bytes | None:
    """Return the template of this package that has this name, or None."""
    path = DATA / "notebooks" / f"{name}.ipynb"
    return path.read_bytes() if re.fullmatch(r"[a-z_]+", name) and path.is_file() else None


def database_identity(settings: Settings) -> dict[str, Any] | None:
    """Return what identifies the database: its name in its directory, size, ids, the hash of its schema. Read-only.

    None where there is none. What can't be read stands under ``unread``, and is no error here; a link is not
    followed, and a lock waited for no longer than a second.
    """
    try:
        # A notebook's own event loop is busy with the cell that asks.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(_identity(settings))).result()
    except OSError as error:  # too many files open, for a loop of its own
        return {"path": settings.db_path.name, "unread": str(os_cause(error, settings.db_path))}


async def _identity(settings: Settings) -> dict[str, Any] | None:
    path = settings.db_path
    try:
        entry = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return {"path": path.name, "unread": f"{path} cannot be looked at: {error.strerror}"}
    found: dict[str, Any] = {"path": path.name, "size": entry.st_size}
    if not stat.S_ISREG(entry.st_mode) or not entry.st_size:
        return found
    brief = replace(settings, busy_timeout_ms=min(settings.busy_timeout_ms, _LONGEST_WAIT))
    try:
        async with connect(path, settings=brief) as conn:
            ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
            schema = {name: normalized(entry.sql) for name, entry in (await read_schema(conn)).items()}
            digest = sha256(canonical(schema))
    # A schema that was written by hand can have names that are no text.
    except (sqlite3.Error, OSError, AbathurError, TypeError, ValueError) as error:
        return {**found, "unread": str(explain_error(path, error))}
    return {**found, **ids, "schema_sha256": digest}
