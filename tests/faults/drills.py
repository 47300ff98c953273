"""Drills and restorations between databases of every page size: what the one says must be what the other does.

The control restores into a new file, is content with integrity_check, and then copies into the database.
"""

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

from forms import MODES, PAGES, made

import abathur_nb as nb
from abathur_nb.backups.copying import Content
from abathur_nb.backups.manifest import read_backup
from abathur_nb.config.settings import Settings
from faults.contents import content_of, first_backup
from faults.outcomes import Experiment, Outcome

__all__ = ["drills"]


def drills(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: the backup of each page size, into a database of each."""
    backups = [_backup(folder / f"{name}-{size}" / "abathur.db", size) for size in PAGES]
    pairs = [(size, backup) for size in PAGES for backup in backups]
    return [partial(_drill, name, *pair) for pair in pairs[seed % every :: every]]


def _backup(path: Path, size: int) -> Path:
    settings = asyncio.run(made(path, page_size=size))
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    return first_backup(settings).path


def _drill(name: str, size: int, backup: Path, folder: Path) -> Outcome:
    settings = asyncio.run(made(folder / "data" / "abathur.db", page_size=size, mode=MODES[size // 512 % len(MODES)]))
    wanted = read_backup(backup).content
    drilled, restored = (_sound if name == "sound" else _naive)(settings, backup, wanted)
    says = f"the drill says {'yes' if drilled else 'no'}, the restoration {'works' if restored else 'fails'}"
    right = drilled and restored if name == "sound" else drilled == restored
    return Outcome(1, 1, "" if right else f"{backup.parents[1].name} into {size} bytes a page: {says}")


def _sound(settings: Settings, backup: Path, wanted: Content) -> tuple[bool, bool]:
    drill = asyncio.run(nb.restore_database(settings, backup=backup, drill=True))
    report = asyncio.run(nb.restore_database(settings, backup=backup, apply=True))
    return drill.ok, report.ok and content_of(settings.db_path) == wanted


def _naive(settings: Settings, backup: Path, wanted: Content) -> tuple[bool, bool]:
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(":memory:")) as scratch:
        source.backup(scratch)
        drilled = scratch.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        try:
            with closing(sqlite3.connect(settings.db_path)) as live:
                source.backup(live)
        except sqlite3.Error:
            return drilled, False
    return drilled, content_of(settings.db_path) == wanted
