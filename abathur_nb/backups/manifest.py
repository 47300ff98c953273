"""List backups by their manifests, choose the one to restore, and remove expired ones."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.config.parameters import check_ranges
from abathur_nb.config.settings import Settings
from abathur_nb.errors import BusyError, ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import misfits, moment, number, printable_text, unsealed, whole_number
from abathur_nb.files import fsync, locked, read_regular
from abathur_nb.report import Check, id_of
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.text import MB, SEE_CLOCK, Table, age, file_stamp, is_ahead, moment_of, printable, shown

MANIFEST = ".manifest.json"  # suffix after the name of the backup
# Backups that are restored only by name: how each was made, by its reason.
BEFORE_A_CHANGE = {"rescued": "rescued", "salvaged": "salvaged"}
BEFORE_A_CHANGE |= {
    f"pre_{change}": "taken before a change" for change in ("put_back", "repair", "restore", "rollback")
}
NAME = re.compile(r"abathur_([a-z][a-z0-9_]{0,40})_(\d{8}_\d{6}_\d{3})\.db(\.zst)?")
FORMAT = 1
# Fields that older manifests lack; 0 means unknown.
_LATER = {"sequence": 0, "bytes_unpacked": 0}
_SHAPE = {
    **dict.fromkeys(("format", "bytes", "application_id", "user_version", *_LATER), whole_number),
    **dict.fromkeys(("file", "sha256_of_file", "reason", "env", "database"), printable_text),
    "taken_at": moment,
    "content": {"digest": printable_text, "schema": printable_text, "rows": {str: whole_number}},
    "proof": {"restored_s": number, "validated_s": number, "findings": [printable_text]},
}
# If one of these checks of validate failed, the store cannot open the restored database or read all its rows.
# The other checks are about files, or about rows that can be read.
_UNFIT = ("application_id", "database_file", "encoding", "header", "indexes", "integrity", "tables", "user_version")
# Two backups are of one period if strftime gives the same text.
_PERIODS = {"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m"}


@dataclass(frozen=True, slots=True)
class Content:
    """Hold what a snapshot contains: the SHA-256 of all rows, that of the schema, the number of rows of each table."""

    digest: str
    schema: str
    rows: Mapping[str, int]

    @property
    def tables(self) -> dict[str, int]:
        """Return the number of rows of each table, except SQLite's own."""
        return {name: count for name, count in self.rows.items() if not name.startswith("sqlite_")}

    @property
    def total(self) -> int:
        """Return the number of rows of all tables, except SQLite's own."""
        return sum(self.tables.values())


@dataclass(frozen=True, slots=True)
class Backup:
    """Hold the path of a backup and the content of its manifest; ``is_lost`` if the backup's file is missing."""

    path: Path
    facts: Mapping[str, Any]
    is_lost: bool = False

    @property
    def taken_at(self) -> datetime:
        """Return the time of the snapshot, in UTC."""
        return moment_of(self.facts["taken_at"])

    @property
    def order(self) -> tuple[int, datetime]:
        """Return the key that sorts backups: the sequence number, which needs no clock, then the time."""
        return self.facts["sequence"], self.taken_at

    @property
    def content(self) -> Content:
        """Return the content of the snapshot."""
        return Content(**{f.name: self.facts["content"][f.name] for f in fields(Content)})

    @property
    def findings(self) -> tuple[str, ...]:
        """Return the ids of the checks that the database failed; older manifests hold the titles of checks."""
        return tuple(map(id_of, self.facts["proof"]["findings"]))

    @property
    def renamed(self) -> str:
        """Return a note with the file name in the manifest if the file has another one, else an empty text."""
        return "" if self.facts["file"] == self.path.name else f"its manifest names {shown(self.facts['file'])}"

    @property
    def unfit(self) -> str:
        """Return why restore does not choose this backup by itself, or an empty text."""
        if self.is_lost:
            return "its file is missing"
        if self.facts["application_id"] != APPLICATION_ID:
            return "it is a backup of another application's database"
        if self.facts["user_version"] > SCHEMA_VERSION:
            return f"its schema version is {self.facts['user_version']}, the newest known is {SCHEMA_VERSION}"
        failed = [check for check in self.findings if check in _UNFIT]
        return f"its database failed {', '.join(failed)}" if failed else ""

    @property
    def before_a_change(self) -> str:
        """Return how a backup that is restored only by name was made, such as before a change; else an empty text."""
        return BEFORE_A_CHANGE.get(self.facts["reason"], "")

    @property
    def manifest(self) -> Path:
        """Return the path of the manifest."""
        return manifest_of(self.path)

    def remove(self) -> None:
        """Remove the backup and its manifest. Raises OSError."""
        # The manifest is removed last: without its backup it is recognized as a leftover.
        self.path.unlink(missing_ok=True)
        self.manifest.unlink(missing_ok=True)


def manifest_of(path: Path) -> Path:
    """Return the path of a backup's manifest."""
    return path.with_name(f"{path.name}{MANIFEST}")


def read_backup(path: Path) -> Backup:
    """Return a backup as its manifest describes it; the backup itself is not read. Raises RefusedError."""
    if not os.path.lexists(path):
        raise RefusedError(f"there is no backup {path}", f"list the backups: ls {quote(str(path.parent))}")
    return _read_manifest(path, manifest_of(path))


def _read_manifest(path: Path, manifest: Path) -> Backup:
    remedy = "take another backup; this one can't be proven"
    try:
        facts = {**_LATER, **unsealed(read_regular(manifest))}
        if faults := misfits(facts, _SHAPE):
            raise ValueError("; ".join(faults))
    except FileNotFoundError:
        raise RefusedError(f"{path} has no manifest {manifest.name}, so its content is unknown", remedy) from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{manifest} is damaged: {printable(str(error))}", remedy) from None
    if facts["format"] != FORMAT:
        raise RefusedError(f"{manifest} has format {facts['format']}, known is {FORMAT}", "update abathur_nb")
    return Backup(path, facts)


def list_backups(folder: Path) -> tuple[list[Backup], dict[str, str]]:
    """Return the backups in ``folder`` by their manifests, oldest first, and the faults of other files. Read-only."""
    names = _names(folder)
    if _lone(names):  # while a backup is published, only its manifest exists
        with suppress(OSError, BusyError), locked(folder, shared=True):
            names = _names(folder)
    return _listed(folder, names)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - only the names are needed
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lone(names: Sequence[str]) -> list[str]:
    """Return the manifests whose backup is missing."""
    backups = {name: name.removesuffix(MANIFEST) for name in names if name.endswith(MANIFEST)}
    return [name for name, backup in backups.items() if NAME.fullmatch(backup) and backup not in names]


def _listed(folder: Path, names: Sequence[str]) -> tuple[list[Backup], dict[str, str]]:
    lone = {name.removesuffix(MANIFEST): f"the backup of {name} is missing" for name in _lone(names)}
    # A renamed backup is found by its manifest, even if both have one more suffix, such as .bak.
    manifests = {name.replace(MANIFEST, "", 1): name for name in names if MANIFEST in name}
    found, faults = [], dict(lone)
    for name in {*filter(NAME.fullmatch, names), *manifests} - lone.keys():
        manifest = folder / manifests.get(name, f"{name}{MANIFEST}")
        try:
            found.append(replace(_read_manifest(folder / name, manifest), is_lost=name not in names))
        except RefusedError as error:
            with suppress(OSError):  # another manifest may be that of a renamed backup
                is_ours = NAME.fullmatch(name) or name in names or b"sha256_of_file" in read_regular(manifest)
                faults |= {name: error.observed} if is_ours else {}
    # Among copies of a backup, the one with the original name comes last.
    return sorted(found, key=lambda one: (*one.order, not one.renamed, one.path.name)), faults


def next_sequence(folder: Path) -> int:
    """Return the number of the next backup in ``folder``, whose lock must be held. Read-only."""
    highest = max((backup.facts["sequence"] for backup in _listed(folder, _names(folder))[0]), default=0)
    return min(highest + 1, 2**63 - 1)  # a manifest may claim the last number


def of_database(backups: Iterable[Backup], env: str, database: Path) -> list[Backup]:
    """Return those of ``backups`` that are of this database, under any of its paths."""
    real = os.path.realpath(database)
    return [b for b in backups if b.facts["env"] == env and os.path.realpath(b.facts["database"]) == real]


def _may_be_of(backup: Backup, database: Path) -> bool:
    """Return whether a backup is of ``database``, or of a missing file that may have been moved there."""
    try:
        os.stat(backup.facts["database"])
    except OSError as error:  # after another error the file may exist: this user cannot read its directory
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return bool(of_database([backup], backup.facts["env"], database))


def newest_fit(backups: Sequence[Backup]) -> Backup | None:
    """Return the last of ``backups`` that restore may choose by itself."""
    return next((b for b in reversed(backups) if not (b.before_a_change or b.unfit)), None)


def find_backup(
    folder: Path, name: str | os.PathLike[str] | None, env: str, database: Path
) -> tuple[Backup, list[str]]:
    """Return the backup with this ``name``, by default the newest, and notes on newer ones. Read-only.

    ``name`` is a path, or a file's name in ``folder``. A backup from before a change is chosen only by name. Raises
    RefusedError if there is no backup, or if a newer one cannot be restored: then an older one must be named.
    """
    if name is not None:
        return read_backup(folder / os.path.expanduser(name)), []
    found, faults = list_backups(folder)
    of_env = [b for b in found if b.facts["env"] == env]
    own = of_database(found, env, database)
    # After a move, a database has only backups from before a change, until its next regular backup.
    backups = own if any(not b.before_a_change for b in own) else of_env
    chosen = newest_fit(backups)
    newer = [b for b in found if chosen is None or b.order > chosen.order]
    kept = [b for b in newer if b in backups and b.before_a_change and not b.unfit]
    usual = [b for b in newer if not b.before_a_change]
    worse = [f"{b.path.name}: {b.unfit}" for b in usual if b in backups]
    if chosen and backups is own:  # the file may have been moved, or used by another environment
        others = [b for b in usual if b not in own and _may_be_of(b, database)]
        worse += [f"{b.path.name}, a backup of {b.facts['env']}, {b.facts['database']}" for b in others]
        kept += [b for b in others if not b.unfit]
    worse += [fault for file, fault in faults.items() if _may_be_newer(file, chosen)]
    by_name = "".join(f"-p backup {quote(b.path.name)}" for b in kept[-1:])
    by_name += "".join(f" -p from_env {quote(b.facts['env'])}" for b in kept[-1:] if b.facts["env"] != env)
    if chosen is None:
        known = "; ".join([*worse, *(f"{b.path.name}: {b.before_a_change}" for b in kept)])
        observed = f"{folder} holds no backup of {env} that can be restored: {known or 'none exists'}"
        raise RefusedError(observed, f"name one: {by_name or '-p backup FILE'}")
    if worse:
        passed = f"newer than {chosen.path.name} ({age(chosen.taken_at)}) that cannot be restored: {'; '.join(worse)}"
        remedy = f"to restore the older one, without all later changes: -p backup {quote(chosen.path.name)}"
        remedy += f"; a newer one, restored only by name: {by_name}" if by_name else ""
        raise RefusedError(f"{folder} holds backups {passed}", remedy)
    return chosen, [f"{b.path.name} is newer ({b.before_a_change}): it is restored only by name" for b in kept]


def why_unnamed(settings: Settings) -> str:
    """Return why restore would refuse to choose a backup by itself, or an empty text. Read-only."""
    try:
        find_backup(settings.backup_dir, None, settings.env, settings.db_path)
    except (OSError, RefusedError) as error:
        return str(getattr(error, "observed", error))
    return ""


def _may_be_newer(file: str, chosen: Backup | None) -> bool:
    """Return whether an unreadable backup may be newer than ``chosen``, by its name."""
    match = NAME.fullmatch(file)
    if match and match[1] in BEFORE_A_CHANGE:
        return False
    return not match or not chosen or is_ahead(chosen.taken_at) or match[2] > file_stamp(chosen.taken_at)


def older_than(damaged: Backup, folder: Path, env: str, database: Path) -> str:
    """Return the remedy for a damaged backup: restore the newest one before it. Read-only."""
    of_env = [b for b in list_backups(folder)[0] if b.facts["env"] == env and b.order < damaged.order]
    if older := newest_fit(of_database(of_env, env, database) or of_env):
        words = f"{older.path.name}, {age(older.taken_at)}"
        return f"to restore {words}, without all later changes: -p backup {quote(older.path.name)}"
    return "choose another backup"


@dataclass(frozen=True, slots=True)
class Retention:
    """Hold the numbers of backups to keep: the newest ones, and the newest of each day, week and month.

    Days are UTC; periods without a backup do not count. Raises ConfigurationError unless all are whole numbers from
    0 to 10,000 and one is above 0.
    """

    last: int = 7
    daily: int = 7
    weekly: int = 4
    monthly: int = 12

    def __post_init__(self) -> None:
        found = {f"keep_{f.name}": getattr(self, f.name) for f in fields(self)}
        check_ranges(**found)
        if not any(found.values()):
            raise ConfigurationError(f"{', '.join(found)}: all are 0, and no backup would be kept")


def expired(backups: Sequence[Backup], keep: Retention) -> list[Backup]:
    """Return those of ``backups`` that no rule keeps. All are of one database, oldest first.

    The newest backup and the newest that can be restored are always kept. Backups from before a change are counted
    separately, so that many changes do not expire the others.
    """
    kept = set[Path]()
    for before in (False, True):
        newest_first = [b for b in reversed(backups) if bool(b.before_a_change) == before]
        kept |= {b.path for b in (*newest_first[: max(keep.last, 1)], *[b for b in newest_first if not b.unfit][:1])}
        for period, form in _PERIODS.items():
            newest: dict[str, Path] = {}
            for b in newest_first:
                newest.setdefault(b.taken_at.strftime(form), b.path)
            kept |= {*[*newest.values()][: getattr(keep, period)]}
    return [b for b in backups if b.path not in kept]


def apply_retention(settings: Settings, keep: Retention, made: Backup) -> Iterator[Check]:
    """Remove the backups of this database that ``keep`` does not keep, and yield checks of those that remain.

    ``made``, the backup of this run, is kept. So are backups of another environment or database in the same directory,
    renamed backups and incomplete ones. Manifests without a backup are removed.
    """
    folder, swept, left = settings.backup_dir, list[str](), list[str]()
    with suppress(OSError, BusyError), locked(folder):  # so that no backup is being published
        for name in _lone(_names(folder)):
            with suppress(OSError):
                (folder / name).unlink()
                swept.append(name)
    found, faults = list_backups(folder)
    own = of_database((b for b in found if not b.renamed), settings.env, settings.db_path)
    gone = [backup for backup in expired(own, keep) if backup.path != made.path]
    for backup in gone:
        try:
            backup.remove()
        except OSError as error:
            left.append(f"{backup.path.name}: {error.strerror}")
    if gone:
        fsync(folder)
    rules = ", ".join(f"{getattr(keep, f.name)} {f.name}" for f in fields(keep))
    observed = f"{len(own) - len(gone)} kept, {len(gone) - len(left)} removed, {len(left)} could not be removed"
    remedy, removed = "check who owns them, or remove them by hand", [f"removed {backup.path.name}" for backup in gone]
    yield Check.that("retention", not left, rules, observed, remedy, "warn", [*left, *removed])
    ahead = [f"{b.path.name}: {age(b.taken_at)}" for b in own if b not in gone and is_ahead(b.taken_at)]
    expected = "no backup was taken in the future"
    yield Check.that("clock", not ahead, expected, "; ".join(ahead) or "none", SEE_CLOCK, "warn")
    expected, remedy = "every backup in the directory is complete", "check these files, then remove them by hand"
    observed = f"{len(faults)} incomplete" if faults else "all are complete"
    removed = [f"removed {name}, whose backup is missing" for name in swept]
    yield Check.that("leftovers", not faults, expected, observed, remedy, "warn", [*faults.values(), *removed])


def show_backups(settings: Settings) -> Table:
    """Return the backups in ``backup_dir``, newest first, one row per file. Read-only; proves none again.

    Columns: ``file``, ``its database`` (sound, or its failed checks, and notes such as ``does not serve`` or
    ``renamed``), ``taken at`` (UTC), ``age`` (hours), ``rows``, ``MB`` on the disk, ``restored in`` (seconds that its
    proof took, validation included), ``reason``, ``environment``. Invalid backups get a row with the reason.
    """
    backups, faults = list_backups(settings.backup_dir)
    heads = ("file", "its database", "taken at", "age", "rows", "MB", "restored in", "reason", "environment")
    rows: list[tuple[object, ...]] = []
    for b in reversed(backups):
        state = [f"failed {', '.join(b.findings)}" if b.findings else "sound"]
        notes = {"does not serve": b.unfit, "renamed": b.renamed, "taken in the future": is_ahead(b.taken_at)}
        notes["older manifest"] = not b.facts["sequence"]
        state += [note for note, holds in notes.items() if holds]
        hours = round((datetime.now(UTC) - b.taken_at).total_seconds() / 3600, 1)
        took = round(b.facts["proof"]["restored_s"] + b.facts["proof"]["validated_s"], 2)
        size = round(b.facts["bytes"] / MB, 1)
        facts = (b.taken_at, hours, b.content.total, size, took, b.facts["reason"], b.facts["env"])
        rows.append((b.path.name, "; ".join(state), *facts))
    rows += [(file, f"not a backup: {fault}", *[None] * (len(heads) - 2)) for file, fault in faults.items()]
    return Table(heads, tuple(rows), "no backup")
