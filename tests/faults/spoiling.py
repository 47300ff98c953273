"""Backups that are damaged in one place, theirs or their manifest's: restore must refuse each, and change nothing.

The control is what a careful shell would do, to open the copy and ask for integrity_check; it is asked of damages to
the database itself alone, as it knows no manifest.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from damage import MEMORY, fingerprint, run_sql

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed, unsealed
from faults.experiments import BrokenHarnessError, fault_in
from faults.strikes import prepare

# --- what is done to any file


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= random.randrange(1, 256)
    path.write_bytes(content)


def cut(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def lengthen(path: Path, random: Random) -> None:
    with path.open("ab") as file:
        file.write(random.choice((b"\n", b"\0", b" ", b"{}\n", bytes(4096))))


def take_away(path: Path, _: Random) -> None:
    path.unlink()


def link(path: Path, _: Random) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def pipe(path: Path, _: Random) -> None:
    path.unlink()
    os.mkfifo(path)


# --- what is done to a backup


@dataclass(frozen=True, slots=True)
class _Spoilt:
    """Hold the backup that is damaged, another one of the same database, and what chooses where."""

    backup: Backup
    other: Backup
    random: Random


def _any_file(spoilt: _Spoilt) -> None:
    damage = spoilt.random.choice((cut, lengthen, take_away, link, pipe))
    damage(spoilt.random.choice((spoilt.backup.path, spoilt.backup.manifest)), spoilt.random)


def _overwrite(spoilt: _Spoilt) -> None:
    content = bytearray(spoilt.backup.path.read_bytes())
    start = spoilt.random.randrange(len(content) - 16)
    content[start : start + 16] = spoilt.random.randbytes(16)
    spoilt.backup.path.write_bytes(content)


def _zero_sector(spoilt: _Spoilt) -> None:
    content = bytearray(spoilt.backup.path.read_bytes())
    filled = [start for start in range(0, len(content), 512) if any(content[start : start + 512])]
    start = spoilt.random.choice(filled)
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    spoilt.backup.path.write_bytes(content)


def _edit(spoilt: _Spoilt) -> None:
    """Change a word or a number of the manifest, and leave its own hash."""
    facts: dict[str, Any] = unsealed(spoilt.backup.manifest.read_bytes())
    name = spoilt.random.choice(sorted(name for name, value in facts.items() if isinstance(value, str | int)))
    text = spoilt.backup.manifest.read_text()
    old = f'"{name}":"' if isinstance(facts[name], str) else f'"{name}":'
    spoilt.backup.manifest.write_text(text.replace(old, f"{old}9", 1))


def _rewrite(spoilt: _Spoilt) -> None:
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


_Damage = Callable[[_Spoilt], object]
_OF_THE_FILE: dict[str, _Damage] = {
    "a byte": lambda spoilt: flip(spoilt.backup.path, spoilt.random),
    "16 bytes": _overwrite,
    "a sector": _zero_sector,
    "a row": lambda spoilt: run_sql(
        spoilt.backup.path, "UPDATE metrics SET metric_value = 2", "PRAGMA journal_mode = DELETE"
    ),
    "swapped": lambda spoilt: shutil.copy(spoilt.other.path, spoilt.backup.path),
}
_OF_ANY: dict[str, _Damage] = {
    **_OF_THE_FILE,
    "a file": _any_file,
    "a byte of the manifest": lambda spoilt: flip(spoilt.backup.manifest, spoilt.random),
    "manifests swapped": lambda spoilt: shutil.copy(spoilt.other.manifest, spoilt.backup.manifest),
    "a fact": _edit,
    "a fact and the hash": _rewrite,
}
# A byte goes bad more often than all the rest.
_DRAWN = {
    "sound": (*_OF_ANY, *["a byte"] * 3, *["a file"] * 4, "a fact and the hash"),
    "naive": (*_OF_THE_FILE, *["a byte"] * 3),
}


def two_backups(db: Path) -> None:
    """Make a database with two backups, and two compressed ones."""
    settings = prepare(db)
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    for key in ("'one'", "'another'"):
        run_sql(settings.db_path, MEMORY.replace("'k'", key))
        asyncio.run(nb.backup_database(settings, compress=True)).raise_for_failures()
    for backup in list_backups(settings.backup_dir)[0]:
        if not (report := asyncio.run(nb.restore_database(settings, backup=backup.path))).ok:
            raise BrokenHarnessError(f"{backup.path.name}, undamaged, is refused: {report.summary}")


def damage_one(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Damage one of two backups, every third time a compressed one, and restore it by its name."""
    damage = random.choice(_DRAWN[name])
    packed = name == "sound" and random.random() < 1 / 3 and damage != "a row"
    one, other = (b for b in list_backups(settings.backup_dir)[0] if (b.path.suffix == ".zst") == packed)
    before = _files(settings.backup_dir)
    _OF_ANY[damage](_Spoilt(one, other, random))
    struck = _files(settings.backup_dir) != before
    harm = _harm(settings, one) if name == "sound" else "" if fault_in(one.path) else "not found"
    return struck, f"{damage}: {harm}" if harm else ""


def _files(folder: Path) -> dict[str, object]:
    return {path.name: fingerprint(path) for path in folder.iterdir()}


def _harm(settings: Settings, backup: Backup) -> str:
    before = {path: fingerprint(path) for path in settings.db_path.parent.glob("abathur.db*")}
    report = asyncio.run(nb.restore_database(settings, backup=backup.path.name, apply=True))
    after = {path: fingerprint(path) for path in settings.db_path.parent.glob("abathur.db*")}
    if after != before:
        return "the live database was touched"
    return "" if report.refused and not report.ok else f"not refused: {report.summary}"
