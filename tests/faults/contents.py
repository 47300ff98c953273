"""What a database holds after a fault, looked at in a copy, and what its backups hold."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from abathur_nb.backups.copying import Content, open_copy, read_content
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings, resolve

__all__ = ["content_of", "first_backup", "newest_backup", "settings_of"]


def settings_of(db: Path) -> Settings:
    """Return development's settings for a database of the sweep's own."""
    return resolve("development", db_path=db)


def content_of(path: Path) -> Content | None:
    """Return what stands at a path after the recovery that a next opener would do, None if it can't be read."""
    copy = path.parents[1] / "copy" / path.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir()
    try:
        for suffix in ("", "-wal", "-journal"):
            if (side := Path(f"{path}{suffix}")).exists():
                shutil.copy(side, f"{copy}{suffix}")
        with closing(sqlite3.connect(f"{copy.as_uri()}?mode=rw", uri=True)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return asyncio.run(_read(copy))
    except (sqlite3.Error, OSError):
        return None
    finally:
        shutil.rmtree(copy.parent)


async def _read(path: Path) -> Content:
    async with open_copy(path) as conn:
        await conn.execute_fetchall("BEGIN")
        return await read_content(conn)


def first_backup(settings: Settings) -> Backup:
    """Return the backup that was taken before anything was done to the database."""
    return list_backups(settings.backup_dir)[0][0]


def newest_backup(settings: Settings) -> Path:
    """Return what a naive look takes for the newest backup."""
    return max(settings.backup_dir.glob("abathur_*.db"))
