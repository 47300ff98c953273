"""Backups that are damaged in one place, theirs or their manifest's: restore must refuse each, and change nothing.

The control is what a careful shell would do, to open the copy and ask for integrity_check; it is asked of damages to
the database itself alone, as it knows no manifest.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from damage import MEMORY, fingerprint, run_sql

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed, unsealed
from faults.contents import settings_of
from faults.operations import prepare
from faults.outcomes import Experiment, Outcome
from faults.tracing import BrokenHarnessError

__all__ = ["damaged_backups"]

_DAMAGES = 1000


@dataclass(frozen=True, slots=True)
class _Spoilt:
    """Hold the backup that is damaged, another one of the same database, and what chooses where."""

    backup: Backup
    other: Backup
    random: Random


def _flip_bit(path: Path, random: Random) -> str:
    content = bytearray(path.read_bytes())
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.name}"


def _flip(spoilt: _Spoilt) -> str:
    return _flip_bit(spoilt.backup.path, spoilt.random)


def _flip_manifest(spoilt: _Spoilt) -> str:
    return _flip_bit(spoilt.backup.manifest, spoilt.random)


def _overwrite(spoilt: _Spoilt) -> str:
    content = bytearray(spoilt.backup.path.read_bytes())
    start = spoilt.random.randrange(len(content) - 16)
    content[start : start + 16] = spoilt.random.randbytes(16)
    spoilt.backup.path.write_bytes(content)
    return f"16 bytes from {start} written over"


def _zero_sector(spoilt: _Spoilt) -> str:
    content = bytearray(spoilt.backup.path.read_bytes())
    filled = [start for start in range(0, len(content), 512) if any(content[start : start + 512])]
    start = spoilt.random.choice(filled)
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    spoilt.backup.path.write_bytes(content)
    return f"the sector at {start} zeroed"


def _cut(spoilt: _Spoilt) -> str:
    path = spoilt.random.choice((spoilt.backup.path, spoilt.backup.manifest))
    length = spoilt.random.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"{path.name} cut to {length} bytes"


def _lengthen(spoilt: _Spoilt) -> str:
    path = spoilt.random.choice((spoilt.backup.path, spoilt.backup.manifest))
    with path.open("ab") as file:
        file.write(spoilt.random.choice((b"\0", b"\n", b" ", bytes(4096))))
    return f"{path.name} lengthened"


def _change_row(spoilt: _Spoilt) -> str:
    """Let somebody write to the backup, as to any database."""
    run_sql(spoilt.backup.path, "UPDATE metrics SET metric_value = 2", "PRAGMA journal_mode = DELETE")
    return "a row of it changed"


def _swap(spoilt: _Spoilt) -> str:
    shutil.copy(spoilt.other.path, spoilt.backup.path)
    return "the database of another backup under its name"


def _swap_manifest(spoilt: _Spoilt) -> str:
    shutil.copy(spoilt.other.manifest, spoilt.backup.manifest)
    return "the manifest of another backup"


def _take_away(spoilt: _Spoilt) -> str:
    path = spoilt.random.choice((spoilt.backup.path, spoilt.backup.manifest))
    path.unlink()
    return f"{path.name} taken away"


def _link(spoilt: _Spoilt) -> str:
    path = spoilt.random.choice((spoilt.backup.path, spoilt.backup.manifest))
    elsewhere = path.parents[1] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return f"{path.name} moved elsewhere, and a link to it left"


def _pipe(spoilt: _Spoilt) -> str:
    path = spoilt.random.choice((spoilt.backup.path, spoilt.backup.manifest))
    path.unlink()
    os.mkfifo(path)
    return f"a FIFO in place of {path.name}"


def _edit(spoilt: _Spoilt) -> str:
    """Change a word or a number of the manifest, and leave its own hash."""
    facts: dict[str, Any] = unsealed(spoilt.backup.manifest.read_bytes())
    name = spoilt.random.choice(sorted(name for name, value in facts.items() if isinstance(value, str | int)))
    text = spoilt.backup.manifest.read_text()
    old = f'"{name}":"' if isinstance(facts[name], str) else f'"{name}":'
    spoilt.backup.manifest.write_text(text.replace(old, f"{old}9", 1))
    return f"{name} of the manifest edited"


def _rewrite(spoilt: _Spoilt) -> str:
    """Change what a restoration relies on, and the manifest's own hash with it."""
    facts: dict[str, Any] = unsealed(spoilt.backup.manifest.read_bytes())
    content, names = facts["content"], ("digest", "schema", "rows")
    number = spoilt.random.choice((-1, 1, 7))
    name = spoilt.random.choice((*names, "application_id", "user_version", "bytes", "format", "env", "sha256_of_file"))
    if name == "rows":
        content["rows"][spoilt.random.choice(sorted(content["rows"]))] += number
    elif name in names:
        content[name] = spoilt.other.facts["sha256_of_file"]
    else:
        facts[name] = facts[name] + number if isinstance(facts[name], int) else spoilt.random.randbytes(8).hex()
    spoilt.backup.manifest.write_bytes(sealed(facts))
    return f"{name} of the manifest edited, its own hash recomputed"


_Damage = Callable[[_Spoilt], str]
# A byte goes bad more often than all the rest.
_OF_THE_FILE: tuple[_Damage, ...] = (*(_flip,) * 4, _overwrite, _zero_sector, _change_row, _swap)
_OF_ANY: tuple[_Damage, ...] = (
    *(*_OF_THE_FILE, _cut, _lengthen, _take_away, _link, _pipe),
    *(_flip_manifest, _swap_manifest, _edit, _rewrite, _rewrite),
)


def damaged_backups(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each damages one of two backups, every third time a compressed one."""
    settings = prepare(folder / f"template-{name}" / "abathur.db")
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    for key in ("'one'", "'another'"):
        run_sql(settings.db_path, MEMORY.replace("'k'", key))
        asyncio.run(nb.backup_database(settings, compress=True)).raise_for_failures()
    for backup in list_backups(settings.backup_dir)[0]:
        if not (report := asyncio.run(nb.restore_database(settings, backup=backup.path))).ok:
            raise BrokenHarnessError(f"{backup.path.name}, undamaged, is refused: {report.summary}")
    numbers = range(seed % every, _DAMAGES, every)
    return [partial(_damage_at, name, settings.db_path, f"{seed}-{number}", number) for number in numbers]


def _damage_at(name: str, template: Path, seed: str, number: int, folder: Path) -> Outcome:
    random = Random(seed)  # noqa: S311 - to be repeatable
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    damage = random.choice(_OF_ANY if name == "sound" else _OF_THE_FILE)
    packed = name == "sound" and number % 3 == 0 and damage is not _change_row
    one, other = (b for b in list_backups(settings.backup_dir)[0] if (b.path.suffix == ".zst") == packed)
    before = _files(settings.backup_dir)
    told = damage(_Spoilt(one, other, random))
    struck = _files(settings.backup_dir) != before
    if name == "naive":
        return Outcome(1, int(struck), f"not found: {told}" if _is_sound(one.path) else "")
    harm = _harm(settings, one)
    return Outcome(1, int(struck), f"damage {seed}, {told}: {harm}" if harm else "")


def _files(folder: Path) -> dict[str, object]:
    return {path.name: fingerprint(path) for path in folder.iterdir()}


def _harm(settings: Settings, backup: Backup) -> str:
    before = {path: fingerprint(path) for path in settings.db_path.parent.glob("abathur.db*")}
    report = asyncio.run(nb.restore_database(settings, backup=backup.path.name, apply=True))
    after = {path: fingerprint(path) for path in settings.db_path.parent.glob("abathur.db*")}
    if after != before:
        return "the live database was touched"
    return "" if report.refused and not report.ok else f"not refused: {report.summary}"


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as conn:
            return conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except (sqlite3.Error, UnicodeDecodeError):  # a message that holds what was damaged
        return False
