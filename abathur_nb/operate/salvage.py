"""Salvage: what can still be read of a damaged database, in a new file; the damaged one is left as it is."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection, DatabaseError
from sqlite3 import connect as plain_connect
from typing import Any

from abathur_nb.errors import RefusedError
from abathur_nb.expected import APPLICATION_ID, SCHEMA_VERSION, expected_columns, expected_objects, expected_tables
from abathur_nb.operate.quarantine import plain, value_of
from abathur_nb.operate.transfer import publish
from abathur_nb.report import Check
from abathur_nb.schema import quoted
from abathur_nb.scratch import make_private_directory, make_private_file, scratch_directory
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.validate import file_checks

__all__ = ["SHELL", "salvage", "salvage_path"]

SHELL = "sqlite3"
_LAST = 2**63 - 1  # the largest rowid
_IDENTITY = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
_ADVICE = "restore a backup, then look in the salvaged file for what is newer than that"
# What comes out of a damaged file need not keep its rules; what does not would be left out without a word.
_RULES = ("PRAGMA ignore_check_constraints = ON", "PRAGMA foreign_keys = OFF")


def salvage_path(settings: Settings) -> Path:
    """Return the name of what is salvaged: that of the damaged file's last change, so that it is done once."""
    moment = datetime.fromtimestamp(settings.db_path.stat().st_mtime, UTC)
    return settings.backup_dir / f"abathur_salvaged_{moment:%Y%m%d_%H%M%S}_{moment.microsecond // 1000:03}.sqlite"


async def salvage(settings: Settings) -> Check:
    """Write what can still be read of the damaged database into a new file, count it, and validate it.

    By the sqlite3 shell's ``.recover``, which reads around the trees of the file too; where there is no shell that
    can (Debian's is built without it), row by row. Only reads the damaged database. Raises RefusedError if nothing at
    all can be read, OSError.
    """
    path, how = salvage_path(settings), "salvaged before"
    if not path.exists():
        make_private_directory(settings.backup_dir, owned_as=settings.db_path.parent)
        with scratch_directory(settings.backup_dir, "backup") as scratch:
            draft = scratch / "salvaged.db"
            make_private_file(draft, owned_as=settings.backup_dir)
            how = await asyncio.to_thread(_fill, settings.db_path, draft)
            failed = [check.name for check in await file_checks(replace(settings, db_path=draft)) if check.failed]
            how += f"; it fails: {', '.join(failed)}" if failed else "; it is valid"
            publish(draft, path)
    rows = await asyncio.to_thread(_count, path)
    return Check(
        "salvaged",
        "warn",
        "what can still be read, in a file of its own",
        f"{path}: {sum(rows.values()):,} rows, {how}",
        _ADVICE,
        tuple(f"{name}: {count:,} rows" for name, count in rows.items()),
    )


def _fill(path: Path, draft: Path) -> str:
    """Fill an empty file with what can be read of another; say how. Raises RefusedError if that is nothing."""
    how = "by .recover"
    told = _recover(path, draft)
    if not _count(draft):
        draft.write_bytes(b"")
        refused = _read_out(path, draft)
        how = f"row by row, as the {SHELL} shell could not ({told})"
        how += f"; {refused:,} rows of it that break its rules were left out" if refused else ""
    with suppress(DatabaseError), closing(plain_connect(draft, isolation_level=None)) as conn:
        conn.executescript(f"{_IDENTITY} PRAGMA journal_mode = WAL;")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if not sum(_count(draft).values()):
        raise RefusedError(f"nothing of {path} can be read any more", "restore a backup")
    return how


def _recover(path: Path, draft: Path) -> str:
    """Pipe the shell's ``.recover`` of one file into another; return what it complained of."""
    if shutil.which(SHELL) is None:
        return "there is none"
    shell = (SHELL, "-batch", "-init", os.devnull)
    # Into a file: a pipe that nobody reads yet would fill up, and both would wait.
    with draft.with_name("messages").open("w+b") as messages:
        read = [*shell, "-readonly", str(path), ".recover"]
        write = [*shell, *(part for rule in _RULES for part in ("-cmd", rule)), str(draft)]
        with subprocess.Popen(read, stdout=subprocess.PIPE, stderr=messages) as source:  # noqa: S603 - no shell
            subprocess.run(write, stdin=source.stdout, stdout=messages, stderr=messages, check=False)  # noqa: S603
        messages.seek(0)
        return " ".join(messages.read(200).decode(errors="replace").split())


def _read_out(path: Path, draft: Path) -> int:
    """Copy each row that the trees of the file still lead to; return how many were refused."""
    refused = 0
    with (
        closing(plain_connect(f"{path.as_uri()}?mode=ro", uri=True)) as source,
        closing(plain_connect(draft, isolation_level=None)) as target,
    ):
        source.text_factory = lambda text: text.decode(errors="surrogateescape")
        target.executescript(f"{'; '.join(_RULES)}; BEGIN;")
        for found in expected_objects().values():
            target.execute(found.sql)
        for table in expected_tables():
            columns = [column.name for column in expected_columns(table)]
            for row in _rows(source, f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED"):
                marks, values = zip(*map(value_of, map(plain, row)), strict=True)
                insert = f"INSERT INTO {table} (rowid, {', '.join(columns)}) VALUES ({', '.join(marks)})"
                try:
                    target.execute(insert, values)
                except DatabaseError:
                    refused += 1
        target.execute("COMMIT")
    return refused


def _rows(conn: Connection, select: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table on both sides of each gap that can't be read; the first value is the rowid."""

    def readable(above: int, below: int, order: str) -> Iterator[tuple[Any, ...]]:
        with suppress(DatabaseError):
            yield from conn.execute(f"{select} WHERE rowid > ? AND rowid < ? ORDER BY rowid {order}", (above, below))

    last, start, step = -1, -1, 1
    while start < _LAST:
        for row in readable(start, _LAST, "ASC"):
            if start > last:  # it is behind a gap, whose other end is looked for from here
                yield from readable(last, row[0], "DESC")
            yield row
            last, step = max(last, row[0]), 1
            start = last
        start, step = start + step, 2 * step
    yield from readable(last, _LAST, "DESC")


def _count(path: Path) -> dict[str, int]:
    try:
        with closing(plain_connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as conn:
            names = [name for (name,) in conn.execute(load_queries("inspect.sql")["tables"].sql)]
            return {name: conn.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()[0] for name in names}
    except DatabaseError:
        return {}
