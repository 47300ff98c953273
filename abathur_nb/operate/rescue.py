"""Rescue: what only a process with deleted or moved files of a database still holds, in a proven backup of its own."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from sqlite3 import connect as plain_connect

from abathur_nb.apart import ask
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.expected import expected_tables
from abathur_nb.files import scratch_directory
from abathur_nb.operate.backup import back_up
from abathur_nb.operate.salvage import salvage
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.strays import Stray, strays, strays_check
from abathur_nb.target import restore_command
from abathur_nb.wording import counted

__all__ = ["rescue", "stray_rows"]

_END = "end it by kill -9: ended in any other way, it may write its log over the database"
_KEEP = "leave it running; copy all of its open files from /proc/PID/fd before it ends"


def stray_rows(settings: Settings) -> tuple[Check, bool]:
    """Say of each process with lost files which rows it alone holds, and whether there are any. Read-only.

    It is compared with what others find at the path, on copies of both.
    """
    path, found, told, newer = settings.db_path, strays(settings.db_path), list[str](), False
    with scratch_directory(path.parent, "restore") as scratch:
        live = scratch / "live.db"
        if path.is_file() and not path.is_symlink():
            ask("copy", path, *(name if Path(name).exists() else "" for name in (f"{path}-wal", f"{path}-shm")), live)
        for stray in found:
            try:
                ours, theirs = _compare(_copied(stray, scratch), live if live.exists() else None)
            except (sqlite3.Error, OSError) as error:
                ours, theirs = f"what cannot be compared ({error})", "rows"
            newer |= bool(ours) or "" in stray.lost
            told.append(f"PID {stray.pid} alone holds {ours or 'no row'}; it lacks {theirs or 'no row'} of {path}")
    check = strays_check(path)
    observed = "\n".join((check.observed, *told, "cause: somebody deleted or moved the file under it"))
    remedy = f"the plan below saves it; then {_END}" if newer else _END
    return replace(check, observed=observed, remedy=remedy), newer


async def rescue(settings: Settings) -> list[Check]:
    """Write what each process with lost files holds into a proven backup of its own. Raises RefusedError, OSError.

    The last check fails as long as one still holds them.
    """
    done = list[Check]()
    for stray in strays(settings.db_path):
        name, data = f"rescued from PID {stray.pid}", {"pid": stray.pid}
        with scratch_directory(settings.db_path.parent, "restore") as scratch:
            try:
                copy = replace(settings, db_path=await asyncio.to_thread(_copied, stray, scratch))
                try:
                    kept, _ = await back_up(copy, reason="rescued")
                except (sqlite3.Error, RefusedError):  # pages of another moment: its database was written to by others
                    done.append(replace(await salvage(copy), id="rescued", name=name, data=data))
                    continue
            except (sqlite3.Error, OSError, AbathurError) as error:  # the rows of the other processes are saved
                done.append(Check("rescued", "fail", "its rows in a file", f"{error}", _KEEP, name=name, data=data))
                continue
        observed = f"{kept.path}: {counted(kept.content.total, 'row')}, as PID {stray.pid} sees them, proven"
        remedy = (
            f"then {_END}; to put them in place of the database: {restore_command(settings)} -p backup {kept.path.name}"
        )
        done.append(Check("rescued", "warn", "its rows in a file", observed, remedy, name=name, data=data))
    return [*done, replace(strays_check(settings.db_path), remedy=_END)]


def _copied(stray: Stray, scratch: Path) -> Path:
    if "" not in stray.files:  # SQLite takes a log alone for an empty database
        raise FileNotFoundError(2, f"PID {stray.pid} has no database open with the log", stray.lost.get("-wal"))
    target = scratch / f"of-{stray.pid}.db"
    ask("copy", *(stray.files.get(suffix, "") for suffix in ("", "-wal", "-shm")), target)
    return target


def _compare(copy: Path, live: Path | None) -> tuple[str, str]:
    """Return which tables of a copy hold rows that the other one lacks, and the other way round."""
    with closing(plain_connect(copy, isolation_level=None)) as conn:
        conn.execute("ATTACH ? AS live", (str(live) if live else ":memory:",))
        return _only_in(conn, "main", "live"), _only_in(conn, "live", "main")


def _only_in(conn: sqlite3.Connection, one: str, other: str) -> str:
    def has(name: str, table: str) -> bool:
        return bool(conn.execute(f"SELECT 1 FROM {name}.sqlite_master WHERE name = ?", (table,)).fetchone())

    def counts() -> Iterator[str]:
        for table in expected_tables():
            rest = f"EXCEPT SELECT * FROM {other}.{table}" if has(other, table) else ""
            if has(one, table):
                ((rows,),) = conn.execute(f"SELECT count(*) FROM (SELECT * FROM {one}.{table} {rest})").fetchall()
                if rows:
                    yield f"{counted(rows, 'row')} of {table}"

    return ", ".join(counts())
