"""Histories of three backups, of which a restoration takes the newest, or refuses and names what is wrong with it.

The control takes, by its name, the newest file that passes the runbook's own validation, and says nothing of the rest.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

from damage import MEMORY, TASK, flip_bits, run_sql
from manifests import as_before, redated, rewritten

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.store.schema import expected_objects
from faults.contents import content_of, settings_of
from faults.outcomes import Experiment, Outcome

__all__ = ["choices_of_backups"]

_HISTORIES = 200
# What is done to the database before a backup of it: the first ones leave it fit to be restored.
_HARMLESS = (
    "SELECT 1",
    "CREATE TABLE IF NOT EXISTS _litestream_lock (id INTEGER)",
    "CREATE INDEX IF NOT EXISTS idx_extra ON audit (result)",
    f"{TASK.replace('INSERT', 'INSERT OR REPLACE')}; UPDATE tasks SET input_data = '{{'",
)
_HARMFUL = ("DROP INDEX idx_audit_task", "ALTER TABLE audit ADD COLUMN more", "DROP TABLE metrics")
_CLOCKS = (timedelta(days=365), timedelta(days=-20_000))


def _cut(backup: Backup) -> None:
    backup.manifest.write_bytes(backup.manifest.read_bytes()[:-9])


_SPOILING: tuple[Callable[[Backup], object], ...] = (
    *(_cut, lambda backup: flip_bits(backup.path, 9000), lambda backup: backup.manifest.unlink()),
    *(lambda backup: rewritten(backup, content={}), lambda backup: rewritten(backup, user_version=99)),
)


def choices_of_backups(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each is another history."""
    settings = settings_of(folder / f"template-{name}" / "abathur.db")
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    return [partial(_choose, name, settings.db_path, f"{seed}-{n}") for n in range(seed % every, _HISTORIES, every)]


def _choose(name: str, template: Path, seed: str, folder: Path) -> Outcome:
    random = Random(seed)  # noqa: S311 - to be repeatable
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    told = []
    for number in range(2):
        change = random.choice((*_HARMLESS, *_HARMFUL[:1] * number)) if number else "SELECT 1"
        backup = _back_up(settings, f"old-{number}", change)
        if change in _HARMFUL:
            run_sql(settings.db_path, expected_objects()["idx_audit_task"].sql)
        if random.random() < 0.5:
            clock = random.choice(_CLOCKS)
            backup = redated(backup, clock + timedelta(days=number))
            told.append(f"the clock was off by {clock.days} days")
        if random.random() < 0.3:
            as_before(backup)
    fit = random.random() < 0.6
    change = random.choice(_HARMLESS[1:] if fit else ("SELECT 1", *_HARMFUL))
    newest = _back_up(settings, "newest", change)
    wanted = content_of(settings.db_path)
    if change == "SELECT 1":
        random.choice(_SPOILING if name == "sound" else _SPOILING[1:2])(newest)
    run_sql(settings.db_path, MEMORY.replace("'k'", "'since'"))
    before = content_of(settings.db_path)
    harm = _RESTORES[name](settings, newest, fit)
    after = content_of(settings.db_path)
    if not harm and after != (wanted if fit else before):
        harm = "another one was restored than the newest" if fit else "an older one was restored in silence"
    return Outcome(1, int(before != wanted), f"history {seed} ({change}; {', '.join(told)}): {harm}" if harm else "")


def _back_up(settings: Settings, key: str, change: str) -> Backup:
    run_sql(settings.db_path, MEMORY.replace("'k'", f"'{key}'"), *change.split("; "))
    asyncio.run(nb.backup_database(settings, reason=key.replace("-", "_"))).raise_for_failures()
    return next(b for b in list_backups(settings.backup_dir)[0] if b.facts["reason"] == key.replace("-", "_"))


def _restore(settings: Settings, newest: Backup, fit: bool) -> str:
    report = asyncio.run(nb.restore_database(settings, apply=True))
    if report.refused == fit:
        return f"{'refused' if fit else 'not refused'}: {report.summary}"
    return "" if newest.path.name in str(report) else f"{newest.path.name} is not named"


def _restore_naively(settings: Settings, _newest: Backup, _fit: bool) -> str:
    files = sorted(settings.backup_dir.glob("abathur_*.db"), key=lambda path: path.name.split("_", 2)[-1][-22:])
    sound = [path for path in files if _is_sound(path)]
    for suffix in ("-wal", "-shm"):
        Path(f"{settings.db_path}{suffix}").unlink(missing_ok=True)
    shutil.copy(sound[-1], settings.db_path)
    return ""


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as conn:
            names = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'")}
            broken = conn.execute("SELECT count(*) FROM tasks WHERE NOT json_valid(input_data)").fetchone()
            return (names, broken) == (set(expected_objects()), (0,)) and conn.execute(
                "PRAGMA integrity_check"
            ).fetchall() == [("ok",)]
    except sqlite3.Error:
        return False


_RESTORES = {"sound": _restore, "naive": _restore_naively}
