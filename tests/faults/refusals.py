"""Refusals, each in a situation that forbids a change: nothing of the database, its backups, its directory is changed.

The control is a script that keeps a copy, goes on with what was begun, and only then asks whether it may.
"""

import asyncio
import inspect
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from situations import CHANGING, SITUATIONS, VERBS, prepared, tree

from abathur_nb.backups.aside import complete
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import AbathurError
from faults.outcomes import Experiment, Outcome

__all__ = ["refusals"]


def refusals(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each verb that changes a database, in each situation that forbids it."""
    template = prepared(folder / f"template-{name}")
    # A file that may not grow is one that this process may not write either.
    pairs = [(s, verb) for s in SITUATIONS for verb in (*CHANGING, "backup", "init") if "no file beyond" not in s]
    return [partial(_refuse, name, template, *pair) for pair in pairs[seed % every :: every]]


def _refuse(name: str, template: Path, situation: str, verb: str, folder: Path) -> Outcome:
    make, changes, given, meanwhile = SITUATIONS[situation]
    shutil.copytree(template, folder, symlinks=True)
    settings = replace(resolve("development", db_path=folder / "data" / "abathur.db"), **changes)
    make(settings)
    with meanwhile(settings):
        before = tree(folder)
        refused = asyncio.run(_sound(verb, settings, given)) if name == "sound" else _naive(settings)
        after = tree(folder)
    if not refused:  # nothing forbids this one here
        return Outcome(1, 1)
    changed = sorted(entry for entry in before.keys() | after.keys() if before.get(entry) != after.get(entry))
    return Outcome(1, 1, f"{verb}, {situation}: refused, and changed {', '.join(changed)}" if changed else "")


async def _sound(verb: str, settings: Settings, given: object) -> bool:
    result = VERBS[verb](settings, **given)  # type: ignore[arg-type]
    return bool((await result if inspect.isawaitable(result) else result).refused)


def _naive(settings: Settings) -> bool:
    with suppress(OSError, AbathurError):
        complete(settings.db_path)
    with suppress(OSError):
        settings.backup_dir.mkdir(exist_ok=True)
        if settings.db_path.is_file():
            shutil.copy(settings.db_path, settings.backup_dir / "before.db")
    with suppress(sqlite3.Error), closing(sqlite3.connect(settings.db_path.with_name("lock.db"))) as conn:
        conn.execute("PRAGMA user_version = 1")
    return True
