"""Backups beside a writer that never rests: each is one moment, and holds what was acknowledged before it began.

The control is the runbook's own recipe (section 1.2): cp.
"""

import asyncio
import shutil
import subprocess
from functools import partial
from pathlib import Path

import abathur_nb as nb
from abathur_nb.backups.taking import unpack
from abathur_nb.config.settings import Settings
from faults.contents import first_backup, settings_of
from faults.outcomes import Experiment, Outcome
from faults.writer import torn, writing

__all__ = ["hot_backups"]

_BACKUPS = 500


def hot_backups(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each makes a copy beside a writer of its own."""
    settings = settings_of(folder / f"template-{name}" / "abathur.db")
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    return [partial(_copy_beside, name, settings.db_path)] * len(range(seed % every, _BACKUPS, every))


def _copy_beside(name: str, template: Path, folder: Path) -> Outcome:
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    with writing(settings.db_path) as writer:
        acknowledged = writer.acknowledged
        copy = _COPIES[name](settings, folder)
        moved = writer.acknowledged > acknowledged
    harm = torn(copy, acknowledged)
    return Outcome(1, int(moved), harm)


def _back_up(settings: Settings, folder: Path) -> Path:
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    return unpack(first_backup(settings), folder)


def _cp(settings: Settings, folder: Path) -> Path:
    copy = folder / "copy.db"
    subprocess.run(["cp", settings.db_path, copy], check=True)
    return copy


_COPIES = {"sound": _back_up, "naive": _cp}
