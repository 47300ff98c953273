"""Databases of every form that SQLite knows: page size, encoding, vacuum, journal mode."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from damage import ROWS, run_sql

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve

PAGES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MODES = ("wal", "delete", "truncate", "persist")


def remake(path: Path, *, page_size: int = 4096, encoding: str = "UTF-8", vacuum: int = 0, mode: str = "wal") -> None:
    """Make a database anew in another form, with all that it holds."""
    other = path.with_name("other.db")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(other, isolation_level=None)) as new:
        ids = [old.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        new.executescript(
            f"PRAGMA page_size = {page_size}; PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {vacuum};"
            + "\n".join(old.iterdump())
            + f"PRAGMA application_id = {ids[0]}; PRAGMA user_version = {ids[1]}; PRAGMA journal_mode = {mode};"
        )
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    other.rename(path)
    path.chmod(0o600)


async def made(path: Path, **form: Any) -> Settings:
    settings = resolve("development", db_path=path)
    (await nb.initialize_database(settings)).raise_for_failures()
    run_sql(path, *ROWS)
    remake(path, **form)
    return settings
