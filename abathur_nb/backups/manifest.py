"""A backup: a copy of a database, and the manifest beside it that says what it holds and how that was proven."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.backups.copying import Content
from abathur_nb.errors import BusyError, RefusedError
from abathur_nb.evidence.canonical import misfits, moment, number, printable_text, sealed, unsealed, whole_number
from abathur_nb.files import at, locked, make_private_file, open_regular, os_cause, read_regular
from abathur_nb.health.path_on_disk import free_mb
from abathur_nb.store.apart import ask
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.text import MB, age, is_ahead, moment_of, printable, shown

MANIFEST = ".manifest.json"  # behind the name of the backup
# Taken before something replaces or repairs a database: what was there then is, as a rule, not wanted back.
BEFORE_A_CHANGE = ("pre_put_back", "pre_repair", "pre_restore", "pre_rollback", "rescued")
NAME = re.compile(r"abathur_([a-z][a-z0-9_]{0,40})_(\d{8}_\d{6}_\d{3})\.db(\.zst)?")
_FORMAT = 1
_CHUNK = 2**20  # bytes
# What a file of ours may unpack to: ``pack`` leaves alone what would be more. zstd makes 32,000 bytes of one.
_RATIO, _ALWAYS = 1000, 256 * 2**20
_SPARE_MB = 50  # that unpacking leaves free
# What manifests did not say before: 0 stands for not known.
_LATER = {"sequence": 0, "bytes_unpacked": 0}
_SHAPE = {
    **dict.fromkeys(("format", "bytes", "application_id", "user_version", *_LATER), whole_number),
    **dict.fromkeys(("file", "sha256_of_file", "reason", "env", "database"), printable_text),
    "taken_at": moment,
    "content": {"digest": printable_text, "schema": printable_text, "rows": {str: whole_number}},
    "proof": {"restored_s": number, "validated_s": number, "findings": [printable_text]},
}
# Checks of validate whose failure keeps the store from opening what is restored, or rows from being read. The others
# are about files, or about rows that stand there whole: a copy of them is as good as the database was.
_UNFIT = (
    "application_id",
    "database file",
    "encoding",
    "header",
    "indexes",
    "integrity",
    "tables",
    "user_version",
)


class UnfitBackupError(RefusedError):
    """Refuse a backup that can't serve: `in_place_of` names another."""

    def __init__(self, observed: str) -> None:
        super().__init__(observed, "choose another backup")


@dataclass(frozen=True, slots=True)
class Backup:
    """Hold a backup's file and what its manifest says, which is as it was written."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def taken_at(self) -> datetime:
        """When its snapshot was taken, UTC."""
        return moment_of(self.facts["taken_at"])

    @property
    def order(self) -> tuple[int, datetime, str]:
        """What backups are sorted by: the sequence, which no clock turns; before it was kept, the time."""
        return self.facts["sequence"], self.taken_at, self.path.name

    @property
    def is_older(self) -> bool:
        """Return whether its manifest is from before backups had a sequence."""
        return not self.facts["sequence"]

    @property
    def content(self) -> Content:
        """What its snapshot held."""
        return Content(**{f.name: self.facts["content"][f.name] for f in fields(Content)})

    @property
    def findings(self) -> tuple[str, ...]:
        """The names of the checks that its database failed when it was taken."""
        return tuple(self.facts["proof"]["findings"])

    @property
    def renamed(self) -> str:
        """Say which name its manifest gives it, if that is another one; else empty."""
        return "" if self.facts["file"] == self.path.name else f"its manifest is of {shown(self.facts['file'])}"

    @property
    def unfit(self) -> str:
        """Say why no restoration takes it without being asked for it by name; empty if it may serve."""
        if self.facts["application_id"] != APPLICATION_ID:
            return "it is of another application's database"
        if self.facts["user_version"] > SCHEMA_VERSION:
            return f"its schema version is {self.facts['user_version']}, known is {SCHEMA_VERSION}"
        failed = [name for name in self.findings if name in _UNFIT]
        return f"its database failed {', '.join(failed)}" if failed else ""

    @property
    def before_a_change(self) -> bool:
        """Return whether it was taken before a repair or a replacement, for whoever wants that undone."""
        return self.facts["reason"] in BEFORE_A_CHANGE

    @property
    def compressed(self) -> bool:
        """Return whether it has to be unpacked before it can be read."""
        return self.path.suffix == ".zst"

    @property
    def manifest(self) -> Path:
        """The file beside it that says what it holds."""
        return manifest_of(self.path)


def manifest_of(path: Path) -> Path:
    """Return where the manifest of a backup stands."""
    return path.with_name(f"{path.name}{MANIFEST}")


def write_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    """Write what is known of a backup, in canonical form, with its own hash."""
    make_private_file(path)
    with at(path):
        path.write_bytes(sealed({"format": _FORMAT, **facts}))


def read_backup(path: Path) -> Backup:
    """Read the manifest of the backup at ``path``, whose own bytes it leaves for ``unpack``. Read-only.

    Raises RefusedError if there is no backup, or no manifest, or one that was changed.
    """
    if not os.path.lexists(path):
        raise RefusedError(f"there is no backup {path}", f"see what there is: ls {quote(str(path.parent))}")
    return _read_manifest(path, manifest_of(path))


def _read_manifest(path: Path, manifest: Path) -> Backup:
    remedy = "take another backup; this one can't be proven"
    try:
        facts = {**_LATER, **unsealed(read_regular(manifest))}
        if faults := misfits(facts, _SHAPE):
            raise ValueError("; ".join(faults))
    except FileNotFoundError:
        raise RefusedError(f"{path} has no manifest {manifest.name}, so nobody knows what it holds", remedy) from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{manifest} is damaged: {printable(str(error))}", remedy) from None
    if facts["format"] != _FORMAT:
        raise RefusedError(f"{manifest} is of format {facts['format']}, known is {_FORMAT}", "update abathur_nb")
    return Backup(path, facts)


def list_backups(folder: Path) -> tuple[list[Backup], dict[str, str]]:
    """Return the backups in ``folder``, oldest first, and what is wrong with each other file that should be one.

    Read-only. Their own bytes are not read: ``unpack`` does that.
    """
    if _lone_manifests(folder):  # perhaps the backup of one is only being published
        with suppress(OSError, BusyError), locked(folder, shared=True):
            return _listed(folder)
    return _listed(folder)


def _listed(folder: Path) -> tuple[list[Backup], dict[str, str]]:
    found = []
    faults = {name.removesuffix(MANIFEST): f"{name} has lost its backup" for name in _lone_manifests(folder)}
    names = _names(folder)
    for name in filter(NAME.fullmatch, names):
        try:
            found.append(read_backup(folder / name))
        except RefusedError as error:
            faults[name] = error.observed
    for name in (name for name in names if MANIFEST in name):
        backup = name.replace(MANIFEST, "", 1)  # of both, if each got a suffix more, such as .bak
        if not NAME.fullmatch(backup):  # renamed; whether the manifest is ours, it says itself
            try:
                found.append(_read_manifest(folder / backup, folder / name))
            except RefusedError as error:
                if _may_be_ours(folder / backup, folder / name):
                    faults[backup] = error.observed
    return sorted(found, key=lambda backup: backup.order), faults


def _may_be_ours(path: Path, manifest: Path) -> bool:
    """Return whether a manifest that can't be read may be that of a renamed backup. Read-only."""
    with suppress(OSError, ValueError):
        return os.path.lexists(path) or b"sha256_of_file" in read_regular(manifest)
    return False


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lone_manifests(folder: Path) -> list[str]:
    names = _names(folder)
    packed = [name for name in names if name.endswith(MANIFEST) and NAME.fullmatch(name.removesuffix(MANIFEST))]
    return [name for name in packed if name.removesuffix(MANIFEST) not in names]


def next_sequence(folder: Path) -> int:
    """Return the number of the next backup in ``folder``, whose lock must be held. Read-only."""
    highest = max((backup.facts["sequence"] for backup in _listed(folder)[0]), default=0)
    return min(highest + 1, 2**63 - 1)  # a manifest may claim the last number


def sweep_manifests(folder: Path) -> list[str]:
    """Remove the manifests whose backup a killed run or expiry left out, and return their names.

    Waits until no backup is being published.
    """
    swept = []
    with suppress(OSError, BusyError), locked(folder):
        for name in _lone_manifests(folder):
            with suppress(OSError):
                (folder / name).unlink()
                swept.append(name)
    return swept


def of_database(backups: Iterable[Backup], env: str, database: Path) -> list[Backup]:
    """Return those of ``backups`` that are of this very database, by whatever path."""
    return [b for b in backups if b.facts["env"] == env and _is_file(b.facts, database)]


def _is_file(facts: Mapping[str, Any], database: Path) -> bool:
    return os.path.realpath(str(facts["database"])) == os.path.realpath(database)


def _elsewhere(backup: Backup, database: Path) -> str:
    """Say why a backup may be of this database though it names another; empty if that one exists, and is another."""
    if _is_file(backup.facts, database):
        return f"it is of {backup.facts['env']}, whose file this is as well: name that by -p from_env"
    place = backup.facts["database"]
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        return f"it is of {place}, which is missing"
    except (OSError, ValueError):  # nobody can tell, in a directory that is closed to this user
        pass
    return ""


def newest_fit(backups: Sequence[Backup]) -> Backup | None:
    """Return the last of ``backups`` that a restoration takes without being asked for it by name."""
    return next((b for b in reversed(backups) if not (b.before_a_change or b.renamed or b.unfit)), None)


def find_backup(
    folder: Path, name: str | os.PathLike[str] | None, env: str, database: Path
) -> tuple[Backup, list[str]]:
    """Return the backup that ``name`` names, or else the newest, and what else there is that is newer. Read-only.

    ``name`` is a path, or a file's name in ``folder``. What was taken before a repair or a replacement is taken by its
    name only. Raises RefusedError if there is none, and where a newer one can't serve: an older one has to be named.
    """
    if name is not None:
        return read_backup(folder / os.path.expanduser(name)), []
    found, faults = list_backups(folder)
    of_env = [b for b in found if b.facts["env"] == env]
    own = of_database(of_env, env, database)
    # One that was moved has none of its own but those that a change takes, and is brought back from the others again.
    backups = own if any(not b.before_a_change for b in own) else of_env
    chosen = newest_fit(backups)
    # A copy of the chosen one under another name has its sequence and time.
    newer = [b for b in backups if chosen is None or b.order[:2] > chosen.order[:2]]
    worse = [f"{b.path.name}: {why}" for b in newer if (why := b.unfit or b.renamed) and not b.before_a_change]
    if chosen and backups is own:  # the file may have been moved, or used as another environment's, meanwhile
        others = [b for b in found if b not in own and not b.before_a_change and b.order[:2] > chosen.order[:2]]
        worse += [f"{b.path.name}: {why}" for b in others if (why := _elsewhere(b, database))]
    worse += [fault for file, fault in faults.items() if _may_be_newer(file, chosen)]
    renamed = [fault for file, fault in faults.items() if not NAME.fullmatch(file)]
    # What a change or a person kept is never taken unasked, and may still be the best there is.
    kept = [
        b.path.name
        for b in newer
        if (b.before_a_change or b.renamed) and not b.unfit and all(map(os.path.lexists, (b.path, b.manifest)))
    ]
    if chosen is None:
        known = "; ".join(
            [*worse, *renamed, *(f"{b.path.name} was taken before a change" for b in newer if b.before_a_change)]
        )
        remedy = f"name one: -p backup {quote(kept[-1]) if kept else 'FILE'}"
        raise RefusedError(f"{folder} holds no backup of {env} that serves: {known or 'there is none at all'}", remedy)
    if worse:
        observed = f"{folder} holds what is newer than {chosen.path.name}, {age(chosen.taken_at)}, and can't serve: "
        remedy = f"to take the older one, and lose what came since: -p backup {quote(chosen.path.name)}"
        remedy += f"; newer, and taken by its name only: -p backup {quote(kept[-1])}" if kept else ""
        raise RefusedError(observed + "; ".join(worse), remedy)
    notes = [f"{b.path.name} is newer, taken before a change: it is taken by name only" for b in newer]
    return chosen, [*notes, *(f"what was renamed may be newer: {fault}" for fault in renamed)]


def in_place_of(damaged: Backup, folder: Path, env: str, database: Path) -> str:
    """Return the remedy of a damaged backup: the newest other one that serves and whose bytes are proven. Read-only."""
    of_env = [b for b in list_backups(folder)[0] if b.facts["env"] == env and b.path != damaged.path]
    for backup in reversed(of_database(of_env, env, database) or of_env):
        with suppress(OSError):
            if newest_fit([backup]) and not _bytes_fault(backup):
                words = f"{backup.path.name}, {age(backup.taken_at)}"
                return f"to take {words}, and lose what came since: -p backup {quote(backup.path.name)}"
    return "choose another backup"


def _may_be_newer(file: str, chosen: Backup | None) -> bool:
    """Return whether a file that can't be read as a backup may be newer than ``chosen``, by what its name says."""
    match = NAME.fullmatch(file)
    if match is None or match[1] in BEFORE_A_CHANGE:
        return False
    own = NAME.fullmatch(chosen.path.name) if chosen else None
    return chosen is None or own is None or is_ahead(chosen.taken_at) or match[2] > own[2]


def unpack(backup: Backup, scratch: Path) -> Path:
    """Return the path of a backup's database, unpacked into ``scratch`` if need be, its bytes proven.

    Raises RefusedError if a single byte is another than when it was taken.
    """
    try:
        fault = _bytes_fault(backup)
    except OSError as error:
        cause = os_cause(error, backup.path)
        raise RefusedError(f"{backup.path} cannot be read: {cause.observed}", cause.remedy) from None
    if fault:
        raise UnfitBackupError(f"{backup.path} is damaged: {fault}")
    if not backup.compressed:
        return backup.path
    target = scratch / backup.path.stem
    _decompress(backup, target)
    return target


def _bytes_fault(backup: Backup) -> str:
    """Say in what the bytes of a backup are others than its manifest says; empty if in nothing. Raises OSError."""
    size, found, wanted = os.lstat(backup.path).st_size, file_sha256(backup.path), backup.facts["sha256_of_file"]
    if (found, size) == (wanted, backup.facts["bytes"]):
        return ""
    return f"{size:,} bytes of {backup.facts['bytes']:,}, sha256 {found[:12]}… where {wanted[:12]}… was written"


def _decompress(backup: Backup, target: Path) -> None:
    """Unpack no more than the manifest says, the ratio of ours allows and the disk has room for."""
    zstd = zstd_module()
    words, most = backup.facts["bytes_unpacked"], max(_ALWAYS, _RATIO * backup.facts["bytes"])
    room = int((free_mb(target.parent) - _SPARE_MB) * MB)
    full = RefusedError(
        f"{backup.path} needs {(words or backup.facts['bytes']) / MB:,.1f} MB unpacked, and the disk of"
        f" {target.parent.parent} has {max(room, 0) / MB:,.1f} MB beyond the {_SPARE_MB} MB that must stay free",
        f"make room: df -h {quote(str(target.parent.parent))}",
    )
    large = UnfitBackupError(
        f"{backup.path} is damaged: {backup.facts['bytes']:,} bytes unpack to more than {min(words or most, most):,}"
    )
    if words > most:
        raise large
    if max(words, backup.facts["bytes"]) > room:
        raise full
    written = 0
    try:
        with open_regular(backup.path) as packed, target.open("xb") as plain:
            target.chmod(0o600)
            reader = zstd.open(packed, "rb")
            while chunk := reader.read(_CHUNK):
                written += len(chunk)
                if written > (words or most):
                    raise large
                if free_mb(target.parent) < _SPARE_MB:
                    raise full
                plain.write(chunk)
    except (zstd.ZstdError, EOFError, MemoryError) as error:
        raise UnfitBackupError(f"{backup.path} can't be unpacked: {error}") from None
    if words and written != words:
        observed = f"{backup.path} unpacks to {written:,} bytes of {words:,}"
        raise UnfitBackupError(observed)
    with target.open("rb") as plain:
        if plain.read(16) != b"SQLite format 3\0":  # else the live database would be blamed
            raise UnfitBackupError(f"{backup.path} is not a SQLite database, once unpacked")


def zstd_module() -> Any:
    """Return the module that reads and writes zstd: Python's own from 3.14 on; raise RefusedError without one."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return import_module(name)
    raise RefusedError("a compressed backup needs zstd, which is not installed", "pip install 'abathur_nb[zstd]'")


def pack(path: Path) -> Path:
    """Compress a file with zstd beside it, remove it, and return the new one's path.

    What shrinks so much that ``unpack`` would refuse it is left as it is.
    """
    zstd = zstd_module()
    target = path.with_name(f"{path.name}.zst")
    with at(target), path.open("rb") as plain, target.open("xb") as packed, zstd.open(packed, "wb") as compressed:
        shutil.copyfileobj(plain, compressed, _CHUNK)
    if path.stat().st_size > max(_ALWAYS, _RATIO * target.stat().st_size):
        path, target = target, path
    else:
        shutil.copymode(path, target)
    path.unlink()
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file, which a store may have open here; raise OSError for others. Read-only."""
    return str(ask("digest", path))
